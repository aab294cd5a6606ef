package proxywasm

import (
	"context"
	"encoding/binary"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/fairlead-mesh/fairlead/filters"
	"github.com/fairlead-mesh/fairlead/internal/message"
)

// callouts are the calls that a VM waits for.
type callouts struct {
	ctx    context.Context //nolint:containedctx // that of the VM's life
	cancel context.CancelFunc
	// open has the calls in flight, with what ends one.
	open map[calloutKey]callout
	// last are the last tokens of HTTP and gRPC.
	http, grpc uint32
}

// callout is a call in flight, and for whom.
type callout struct {
	cancel context.CancelFunc
	root   *guestContext
}

// calloutKey tells calls apart: HTTP and gRPC have tokens of their own.
type calloutKey struct {
	grpc  bool
	token uint32
}

func (c *callouts) init() {
	c.ctx, c.cancel = context.WithCancel(context.Background())
	c.open = map[calloutKey]callout{}
}

func (c *callouts) cancelAll() { c.cancel() }

// cancelOf ends the calls for a plugin that is gone.
func (c *callouts) cancelOf(root *guestContext) {
	for k, o := range c.open {
		if o.root == root {
			delete(c.open, k)
			o.cancel()
		}
	}
}

// answer is what a call brought, while the guest may look at it.
type answer struct {
	grpc             bool
	header, trailers *message.Header
	body             []byte
}

// calloutClusters is what Upstreams may say about clusters beforehand.
type calloutClusters interface{ HasCluster(name string) bool }

func (v *vm) hasCluster(name string) bool {
	u := v.pool.env.Upstreams
	if u == nil {
		return false
	}
	c, ok := u.(calloutClusters)
	return !ok || c.HasCluster(name)
}

func (v *vm) httpCall(a []uint64) Status {
	cluster, ok1 := v.read(a[0], a[1])
	fields, ok2 := v.read(a[2], a[3])
	body, ok3 := v.read(a[4], a[5])
	trailers, ok4 := v.read(a[6], a[7])
	if !ok1 || !ok2 || !ok3 || !ok4 || !v.put(a[9], 0) {
		return StatusInvalidMemoryAccess
	}
	if len(trailers) > 0 {
		if t, ok := parsePairs(trailers); !ok || len(t) > 0 {
			return StatusUnimplemented // requests of callouts have none
		}
	}
	pairs, ok := parsePairs(fields)
	if !ok || int32(a[8]) < 0 || !v.hasCluster(string(cluster)) {
		return StatusBadArgument
	}
	c := &filters.Callout{Body: slices.Clone(body), Timeout: time.Duration(uint32(a[8])) * time.Millisecond}
	if !fillCallout(&c.Header, pairs, len(body), uint32(a[8])) {
		return StatusBadArgument
	}
	root := v.acting().root
	if root == nil || len(v.callouts.open) >= maxCallouts {
		return StatusInternalFailure
	}
	k := v.callouts.next(false)
	v.callouts.start(v, root, string(cluster), c, k, (*guestContext).httpAnswered)
	v.put(a[9], k.token)
	return StatusOK
}

// fillCallout makes the head of a request of pairs, with what Envoy adds.
func fillCallout(h *message.Header, pairs [][2][]byte, body int, timeout uint32) bool {
	var all message.Header
	for _, kv := range pairs {
		name := lower(kv[0])
		if !validField(requestHeaders, name, kv[1]) {
			return false
		}
		if name != "content-length" {
			all.AddBytes([]byte(name), kv[1])
		}
	}
	for _, name := range needed[requestHeaders] {
		if all.Count(name) != 1 {
			return false
		}
	}
	if !all.Has(message.Scheme) {
		all.Set(message.Scheme, "http")
	}
	if body > 0 {
		all.Add("content-length", strconv.Itoa(body))
	}
	all.Set("x-envoy-internal", "true")
	if timeout > 0 {
		all.Set("x-envoy-expected-rq-timeout-ms", strconv.FormatUint(uint64(timeout), 10))
	}
	h.CopyFrom(pseudoFirst(&all))
	return true
}

// next returns a token that is not in use. Those of unary gRPC calls are odd;
// even ones would be streams'.
func (c *callouts) next(grpc bool) calloutKey {
	last, step := &c.http, uint32(1)
	if grpc {
		last, step = &c.grpc, 2
		*last |= 1
	}
	for {
		k := calloutKey{grpc, *last}
		*last += step
		if _, taken := c.open[k]; !taken && k.token != 0 {
			return k
		}
	}
}

// start makes a call and has done tell the guest. The VM is locked.
func (c *callouts) start(v *vm, root *guestContext, cluster string, req *filters.Callout, k calloutKey, done func(*guestContext, uint32, *filters.CalloutResponse, error)) {
	ctx, cancel := context.WithCancel(c.ctx)
	c.open[k] = callout{cancel, root}
	go func() {
		defer cancel()
		r, err := v.pool.env.Upstreams.RoundTrip(ctx, cluster, req, maxCalloutBody)
		v.mu.Lock()
		defer v.mu.Unlock()
		_, wanted := c.open[k]
		delete(c.open, k)
		if wanted && !v.closed && !v.failed.Load() && v.contexts[root.id] == root {
			done(root, k.token, r, err)
		}
	}()
}

// httpAnswered tells the guest of the end of a call; one that failed has no
// headers.
func (c *guestContext) httpAnswered(token uint32, r *filters.CalloutResponse, err error) {
	v := c.vm
	f := v.fn.httpCallResponse
	if f == nil {
		return
	}
	if err != nil {
		c.statusCode, c.statusText = uint32(StatusBrokenConnection), "reset"
		v.call(f, c, uint64(c.id), uint64(token), 0, 0, 0)
		c.statusText = ""
		return
	}
	c.answer = &answer{header: &r.Header, trailers: &r.Trailers, body: r.Body}
	v.call(f, c, uint64(c.id), uint64(token), uint64(r.Header.Len()), uint64(len(r.Body)), uint64(r.Trailers.Len()))
	c.answer = nil
}

// grpcCall makes a unary call.
func (v *vm) grpcCall(a []uint64) Status {
	var parts [5][]byte
	for i := range parts {
		b, ok := v.read(a[2*i], a[2*i+1])
		if !ok {
			return StatusInvalidMemoryAccess
		}
		parts[i] = b
	}
	if !v.put(a[11], 0) {
		return StatusInvalidMemoryAccess
	}
	target, ok := parseGRPCService(parts[0])
	if !ok {
		target = grpcTarget{cluster: string(parts[0])} // the name of a cluster is taken too
		if !v.hasCluster(target.cluster) {
			return StatusParseFailure
		}
	}
	if !v.hasCluster(target.cluster) {
		return StatusBadArgument
	}
	if target.authority == "" {
		target.authority = target.cluster
	}
	c := &filters.Callout{HTTP2: true, Timeout: time.Duration(uint32(a[10])) * time.Millisecond}
	if !fillGRPC(c, target, parts[1], parts[2], parts[3]) {
		return StatusBadArgument
	}
	request := parts[4]
	c.Body = append(binary.BigEndian.AppendUint32([]byte{0}, uint32(len(request))), request...)
	root := v.acting().root
	if root == nil || len(v.callouts.open) >= maxCallouts {
		return StatusInternalFailure
	}
	k := v.callouts.next(true)
	v.callouts.start(v, root, target.cluster, c, k, (*guestContext).grpcAnswered)
	v.put(a[11], k.token)
	return StatusOK
}

func fillGRPC(c *filters.Callout, target grpcTarget, service, method, metadata []byte) bool {
	path := "/" + string(service) + "/" + string(method)
	if !validPseudo(message.Path, path) || !validPseudo(message.Authority, target.authority) {
		return false
	}
	h := &c.Header
	h.Add(message.Method, "POST")
	h.Add(message.Scheme, "http")
	h.Add(message.Authority, target.authority)
	h.Add(message.Path, path)
	h.Add("te", "trailers")
	h.Add("content-type", "application/grpc")
	if c.Timeout > 0 {
		h.Add("grpc-timeout", strconv.FormatInt(c.Timeout.Milliseconds(), 10)+"m")
	}
	if len(metadata) == 0 {
		return true
	}
	pairs, ok := parsePairs(metadata)
	if !ok {
		return false
	}
	for _, kv := range pairs {
		name := lower(kv[0])
		if !validField(requestHeaders, name, kv[1]) || name[0] == ':' || strings.HasPrefix(name, "grpc-") || name == "content-type" || name == "content-length" {
			return false
		}
		h.AddBytes([]byte(name), kv[1])
	}
	return true
}

// Statuses of gRPC.
const (
	grpcInternal    = 13
	grpcUnavailable = 14
)

// grpcAnswered tells the guest of the end of a unary call: its message, if there
// is one, else why there is none.
func (c *guestContext) grpcAnswered(token uint32, r *filters.CalloutResponse, err error) {
	code, text, body := grpcResult(r, err)
	v := c.vm
	if code == 0 {
		if f := v.fn.grpcReceive; f != nil {
			c.answer = &answer{grpc: true, header: &r.Header, trailers: &r.Trailers, body: body}
			v.call(f, c, uint64(c.id), uint64(token), uint64(len(body)))
			c.answer = nil
		}
		return
	}
	if f := v.fn.grpcEnd; f != nil {
		c.statusCode, c.statusText = code, text
		v.call(f, c, uint64(c.id), uint64(token), uint64(code))
		c.statusText = ""
	}
}

func grpcResult(r *filters.CalloutResponse, err error) (code uint32, text string, body []byte) {
	if err != nil {
		return grpcUnavailable, "reset", nil
	}
	if r.Status != 200 {
		return grpcUnavailable, "HTTP status " + strconv.Itoa(r.Status), nil
	}
	from := &r.Trailers
	if !from.Has("grpc-status") {
		from = &r.Header
	}
	n, err := strconv.ParseUint(from.Get("grpc-status"), 10, 32)
	switch b := r.Body; {
	case err != nil:
		return grpcInternal, "no grpc-status", nil
	case n != 0:
		return uint32(n), from.Get("grpc-message"), nil
	case len(b) < 5 || b[0] != 0 || uint64(binary.BigEndian.Uint32(b[1:])) != uint64(len(b)-5):
		return grpcInternal, "not one message", nil
	default:
		return 0, "", b[5:]
	}
}

// grpcCancel ends a call without an answer.
func (v *vm) grpcCancel(a []uint64) Status {
	k := calloutKey{true, uint32(a[0])}
	o, ok := v.callouts.open[k]
	if !ok {
		return StatusNotFound
	}
	delete(v.callouts.open, k)
	o.cancel()
	return StatusOK
}
