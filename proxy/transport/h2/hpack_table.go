package h2

// tableEntry is one entry of an HPACK table (RFC 7541 section 2.3).
type tableEntry struct {
	name, value string
	// size is the entry's size by section 4.1; value may be shorter than what
	// was counted, because surrounding white space is cut off.
	size uint32
	kind fieldKind
	// bad says why the field may not appear in a message; "" if it may.
	bad string
}

const entryOverhead = 32

// defaultTableSize is SETTINGS_HEADER_TABLE_SIZE until a peer says otherwise.
const defaultTableSize = 4096

// dynTable is a dynamic table: a ring of entries whose strings live in slabs
// that are never written again once handed out, so that header lists may point
// into them after the entry was evicted.
type dynTable struct {
	ring      []tableEntry // length 0 or a power of two
	added     uint32       // entries ever added; the newest is added-1
	n         uint32       // entries held
	size, max uint32
	slab      []byte
}

// at returns the i-th entry, 0 being the newest; i < n.
func (t *dynTable) at(i uint32) *tableEntry {
	return &t.ring[(t.added-1-i)&uint32(len(t.ring)-1)]
}

// add inserts e, evicting older entries. An entry larger than the table empties
// it (section 4.4); add reports whether e was stored.
func (t *dynTable) add(e tableEntry) bool {
	t.evict(e.size)
	if e.size > t.max {
		return false
	}
	if int(t.n) == len(t.ring) {
		t.grow()
	}
	t.ring[t.added&uint32(len(t.ring)-1)] = e
	t.added++
	t.n++
	t.size += e.size
	return true
}

// evict drops the oldest entries until room octets fit.
func (t *dynTable) evict(room uint32) {
	for t.n > 0 && t.size+room > t.max {
		e := t.at(t.n - 1)
		t.size -= e.size
		*e = tableEntry{}
		t.n--
	}
}

func (t *dynTable) setMax(m uint32) {
	t.max = m
	t.evict(0)
}

func (t *dynTable) grow() {
	old := t.ring
	t.ring = make([]tableEntry, max(8, 2*len(old)))
	mask, newMask := uint32(len(old)-1), uint32(len(t.ring)-1)
	for i := t.added - t.n; i != t.added; i++ {
		t.ring[i&newMask] = old[i&mask]
	}
}

const maxSlab = 4 << 10

// keep copies b into the slab.
func (t *dynTable) keep(b []byte) string {
	if len(b) == 0 {
		return ""
	}
	if len(b) > maxSlab/4 {
		return string(b)
	}
	if len(t.slab)+len(b) > cap(t.slab) {
		t.slab = make([]byte, 0, min(maxSlab, max(512, 2*cap(t.slab))))
		if cap(t.slab) < len(b) {
			t.slab = make([]byte, 0, maxSlab)
		}
	}
	n := len(t.slab)
	t.slab = append(t.slab, b...)
	return unsafeString(t.slab[n:])
}

// staticTable is RFC 7541 appendix A; index 0 is unused.
var staticTable = [...]tableEntry{
	1:  {name: ":authority"},
	2:  {name: ":method", value: "GET"},
	3:  {name: ":method", value: "POST"},
	4:  {name: ":path", value: "/"},
	5:  {name: ":path", value: "/index.html"},
	6:  {name: ":scheme", value: "http"},
	7:  {name: ":scheme", value: "https"},
	8:  {name: ":status", value: "200"},
	9:  {name: ":status", value: "204"},
	10: {name: ":status", value: "206"},
	11: {name: ":status", value: "304"},
	12: {name: ":status", value: "400"},
	13: {name: ":status", value: "404"},
	14: {name: ":status", value: "500"},
	15: {name: "accept-charset"},
	16: {name: "accept-encoding", value: "gzip, deflate"},
	17: {name: "accept-language"},
	18: {name: "accept-ranges"},
	19: {name: "accept"},
	20: {name: "access-control-allow-origin"},
	21: {name: "age"},
	22: {name: "allow"},
	23: {name: "authorization"},
	24: {name: "cache-control"},
	25: {name: "content-disposition"},
	26: {name: "content-encoding"},
	27: {name: "content-language"},
	28: {name: "content-length"},
	29: {name: "content-location"},
	30: {name: "content-range"},
	31: {name: "content-type"},
	32: {name: "cookie"},
	33: {name: "date"},
	34: {name: "etag"},
	35: {name: "expect"},
	36: {name: "expires"},
	37: {name: "from"},
	38: {name: "host"},
	39: {name: "if-match"},
	40: {name: "if-modified-since"},
	41: {name: "if-none-match"},
	42: {name: "if-range"},
	43: {name: "if-unmodified-since"},
	44: {name: "last-modified"},
	45: {name: "link"},
	46: {name: "location"},
	47: {name: "max-forwards"},
	48: {name: "proxy-authenticate"},
	49: {name: "proxy-authorization"},
	50: {name: "range"},
	51: {name: "referer"},
	52: {name: "refresh"},
	53: {name: "retry-after"},
	54: {name: "server"},
	55: {name: "set-cookie"},
	56: {name: "strict-transport-security"},
	57: {name: "transfer-encoding"},
	58: {name: "user-agent"},
	59: {name: "vary"},
	60: {name: "via"},
	61: {name: "www-authenticate"},
}

const staticLen = uint64(len(staticTable) - 1)

// known maps names to their canonical string and kind, so that a literal name
// on the wire needs neither memory nor validation.
var known = func() map[string]knownName {
	m := make(map[string]knownName, 160)
	add := func(name string) {
		m[name] = knownName{name: name, kind: classify(name)}
	}
	for i := range staticTable[1:] {
		e := &staticTable[i+1]
		e.kind = classify(e.name)
		e.size = uint32(len(e.name)+len(e.value)) + entryOverhead
		// ":path" and ":authority" without a value are found bad by the head's
		// own rules; "connection" and its like by kind.
		add(e.name)
	}
	for _, n := range []string{
		":protocol", "connection", "keep-alive", "proxy-connection", "upgrade", "te", "http2-settings",
		"accept-datetime", "baggage", "b3", "content-security-policy", "dnt", "forwarded", "grpc-accept-encoding",
		"grpc-encoding", "grpc-message", "grpc-status", "grpc-timeout", "grpc-status-details-bin", "grpc-trace-bin",
		"origin", "pragma", "priority", "sec-websocket-key", "sec-websocket-version", "sec-websocket-protocol",
		"sec-websocket-extensions", "traceparent", "tracestate", "trailer", "upgrade-insecure-requests",
		"x-b3-flags", "x-b3-parentspanid", "x-b3-sampled", "x-b3-spanid", "x-b3-traceid", "x-content-type-options",
		"x-envoy-attempt-count", "x-envoy-decorator-operation", "x-envoy-expected-rq-timeout-ms",
		"x-envoy-external-address", "x-envoy-internal", "x-envoy-original-path", "x-envoy-peer-metadata",
		"x-envoy-peer-metadata-id", "x-envoy-upstream-service-time", "x-forwarded-client-cert", "x-forwarded-for",
		"x-forwarded-host", "x-forwarded-port", "x-forwarded-proto", "x-forwarded-network", "x-frame-options",
		"x-istio-attributes", "x-istio-source", "x-real-ip", "x-request-id", "x-requested-with",
	} {
		add(n)
	}
	return m
}()

type knownName struct {
	name string
	kind fieldKind
}
