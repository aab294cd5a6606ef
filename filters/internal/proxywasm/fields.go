package proxywasm

import (
	"slices"
	"strings"
	"unsafe"

	"github.com/fairlead-mesh/fairlead/internal/message"
)

// The header maps of the ABI.
const (
	requestHeaders = iota
	requestTrailers
	responseHeaders
	responseTrailers
	grpcInitialMetadata
	grpcTrailingMetadata
	callHeaders
	callTrailers
	mapTypes
)

// fields returns a map that the guest may read, nil if it may not now.
func (v *vm) fields(kind uint64) *message.Header {
	c := v.acting()
	if kind >= grpcInitialMetadata {
		if c.root == nil || c.root.answer == nil {
			return nil
		}
		a := c.root.answer
		if (kind <= grpcTrailingMetadata) != a.grpc {
			return nil
		}
		if kind == grpcInitialMetadata || kind == callHeaders {
			return a.header
		}
		return a.trailers
	}
	if !c.accessible() {
		return nil
	}
	return [...]*message.Header{c.request, c.requestTrailers, c.response, c.responseTrailers}[kind]
}

// writable is fields for changes.
func (v *vm) writable(kind uint64) *message.Header {
	if kind >= grpcInitialMetadata || v.acting().readOnly {
		return nil
	}
	return v.fields(kind)
}

// lower returns b as a name for lookups; it is valid as long as b if b is lower
// case.
func lower(b []byte) string {
	for _, c := range b {
		if 'A' <= c && c <= 'Z' {
			return alias(strings.ToLower(string(b)))
		}
	}
	return alias(unsafe.String(unsafe.SliceData(b), len(b)))
}

func alias(name string) string {
	if name == "host" {
		return message.Authority
	}
	return name
}

func (v *vm) getHeader(a []uint64) Status {
	if a[0] >= mapTypes {
		return StatusBadArgument
	}
	key, ok := v.read(a[1], a[2])
	if !ok {
		return StatusInvalidMemoryAccess
	}
	h := v.fields(a[0])
	if h == nil {
		return StatusBadArgument
	}
	value, ok := h.Lookup(lower(key))
	if !ok {
		if v.pool.module.abi == ABI010 {
			return v.giveString("", a[3], a[4])
		}
		return StatusNotFound
	}
	return v.giveString(value, a[3], a[4])
}

func (v *vm) addHeader(a []uint64) Status     { return v.change(a, true) }
func (v *vm) replaceHeader(a []uint64) Status { return v.change(a, false) }

// change adds or replaces a field. Names and values that can't be sent, and
// framing, are refused: what a guest writes must not end a line.
func (v *vm) change(a []uint64, add bool) Status {
	if a[0] >= mapTypes {
		return StatusBadArgument
	}
	key, ok1 := v.read(a[1], a[2])
	value, ok2 := v.read(a[3], a[4])
	if !ok1 || !ok2 {
		return StatusInvalidMemoryAccess
	}
	h := v.writable(a[0])
	if h == nil {
		return StatusBadArgument
	}
	name := lower(key)
	if !validField(a[0], name, value) || h.Len() >= maxPairs || len(value) > maxPairsBytes {
		return StatusBadArgument
	}
	if name[0] == ':' && add && h.Has(name) {
		return StatusBadArgument // there is one of each
	}
	name = h.Intern(unsafe.Slice(unsafe.StringData(name), len(name)))
	v.touch(a[0], h, name)
	switch text := h.Intern(value); {
	case add && name[0] != ':':
		h.Add(name, text)
	default:
		h.Set(name, text)
	}
	return StatusOK
}

// touch notes a change of a field.
func (v *vm) touch(kind uint64, h *message.Header, name string) {
	if kind != requestHeaders {
		return
	}
	c := v.acting()
	c.rerouted = true
	h.DelAliases(name)
	if c.stream.Body != message.NoBody && !slices.Contains(c.touched, name) {
		c.touched = append(c.touched, strings.Clone(name))
	}
}

func (v *vm) removeHeader(a []uint64) Status {
	if a[0] >= mapTypes {
		return StatusBadArgument
	}
	key, ok := v.read(a[1], a[2])
	if !ok {
		return StatusInvalidMemoryAccess
	}
	h := v.writable(a[0])
	name := lower(key)
	if h == nil || name == "" || name[0] == ':' {
		return StatusBadArgument
	}
	if h.Del(name) || a[0] == requestHeaders {
		v.touch(a[0], h, h.Intern(unsafe.Slice(unsafe.StringData(name), len(name))))
	}
	return StatusOK
}

func (v *vm) getHeaders(a []uint64) Status {
	if a[0] >= mapTypes {
		return StatusBadArgument
	}
	h := v.fields(a[0])
	if h == nil || h.Len() == 0 {
		return v.point(0, 0, a[1], a[2])
	}
	return v.give(headerPairs(nil, h), a[1], a[2])
}

func headerPairs(b []byte, h *message.Header) []byte {
	return appendPairs(b, h.Len(), func(i int) (string, string) {
		f := h.At(i)
		return f.Name, f.Value
	})
}

// setHeaders replaces all fields. What a message can't do without must be among
// them.
func (v *vm) setHeaders(a []uint64) Status {
	if a[0] >= mapTypes {
		return StatusBadArgument
	}
	b, ok := v.read(a[1], a[2])
	if !ok {
		return StatusInvalidMemoryAccess
	}
	h := v.writable(a[0])
	if h == nil {
		return StatusBadArgument
	}
	pairs, ok := parsePairs(b)
	if !ok {
		return StatusBadArgument
	}
	var n message.Header
	for _, kv := range pairs {
		name := lower(kv[0])
		if !validField(a[0], name, kv[1]) || name[0] == ':' && n.Has(name) {
			return StatusBadArgument
		}
		n.AddBytes([]byte(name), kv[1])
	}
	for _, name := range needed[a[0]] {
		if !n.Has(name) {
			return StatusBadArgument
		}
	}
	if a[0] == requestHeaders {
		for i := range h.Len() {
			v.touch(a[0], &n, h.At(i).Name)
		}
	}
	scheme, hadScheme := h.Lookup(message.Scheme)
	if hadScheme && a[0] == requestHeaders && !n.Has(message.Scheme) {
		n.Set(message.Scheme, strings.Clone(scheme))
	}
	h.CopyFrom(pseudoFirst(&n))
	for i := range h.Len() {
		v.touch(a[0], h, h.At(i).Name)
	}
	return StatusOK
}

var needed = [mapTypes][]string{
	requestHeaders:  {message.Method, message.Path, message.Authority},
	responseHeaders: {message.Status},
}

// pseudoFirst returns h with its pseudo-headers before the others.
func pseudoFirst(h *message.Header) *message.Header {
	var out message.Header
	for _, pseudo := range []bool{true, false} {
		for i := range h.Len() {
			if f := h.At(i); (f.Name[0] == ':') == pseudo {
				out.AddField(f)
			}
		}
	}
	return &out
}

func (v *vm) getHeadersSize(a []uint64) Status {
	if a[0] >= mapTypes {
		return StatusBadArgument
	}
	h := v.fields(a[0])
	if h == nil {
		return StatusBadArgument
	}
	n := 0
	for i := range h.Len() {
		n += len(h.At(i).Name) + len(h.At(i).Value)
	}
	if !v.put(a[1], uint32(n)) {
		return StatusInvalidMemoryAccess
	}
	return StatusOK
}

// validField reports whether a guest may write this field in a map of this kind.
func validField(kind uint64, name string, value []byte) bool {
	if !validName(name) || framing(name) {
		return false
	}
	for _, c := range value {
		if c < ' ' && c != '\t' || c == 0x7f {
			return false
		}
	}
	text := unsafe.String(unsafe.SliceData(value), len(value))
	switch {
	case name == "content-length":
		return kind != requestTrailers && kind != responseTrailers && digits(text)
	case kind == requestTrailers:
		return name[0] != ':' && !message.ForbiddenRequestTrailer(name)
	case kind == responseTrailers:
		return name[0] != ':' && !message.ForbiddenTrailer(name)
	case name[0] != ':':
		return true
	case kind == responseHeaders:
		return name == message.Status && len(text) == 3 && digits(text) && text[0] >= '2' && text[0] <= '5'
	}
	return validPseudo(name, text)
}

func digits(s string) bool {
	for i := range len(s) {
		if s[i] < '0' || s[i] > '9' {
			return false
		}
	}
	return s != "" && len(s) < 19
}

// validName reports whether n may name a header: a token (RFC 9110 section
// 5.6.2), lower case, or a pseudo-header's name.
func validName(n string) bool {
	n = strings.TrimPrefix(n, ":")
	for i := range len(n) {
		if c := n[i]; c <= ' ' || c >= 0x7f || 'A' <= c && c <= 'Z' || strings.IndexByte(`"(),/:;<=>?@[\]{}`, c) >= 0 {
			return false
		}
	}
	return n != "" && len(n) < 1<<10
}

// framing names headers that belong to one message or connection. A guest may
// take content-length away, which it must if it changes a body.
func framing(name string) bool {
	switch name {
	case "transfer-encoding", "connection", "upgrade", "te", "keep-alive", "proxy-connection", "expect", "trailer":
		return true
	}
	return false
}

// validPseudo reports whether a pseudo-header of a request may have this value.
func validPseudo(name, v string) bool {
	for i := range len(v) {
		if c := v[i]; c <= ' ' || c >= 0x7f || c == '#' {
			return false
		}
	}
	switch name {
	case message.Path:
		return strings.HasPrefix(v, "/") || v == "*"
	case message.Method:
		return v != "CONNECT" && validName(strings.ToLower(v)) && v[0] != ':'
	case message.Authority:
		return v != "" && !strings.ContainsAny(v, "/?@\\")
	case message.Scheme:
		return v == "http" || v == "https"
	}
	return false
}

// validResponse reports whether all fields may stand in an answer of the guest's.
func validResponse(pairs [][2][]byte) bool {
	for _, kv := range pairs {
		name := strings.ToLower(string(kv[0]))
		if !validField(responseHeaders, name, kv[1]) || name == message.Status || name == "content-length" {
			return false
		}
	}
	return true
}
