// Package dlp finds sensitive data in requests and responses and reports,
// masks, replaces, tokenizes or blocks it, or has a request take another route: in path, query, headers, bodies of any length
// and trailers. Bodies are scanned as they stream; what is held back is what a
// match may still extend over, and for blocking rules a window, so that small
// messages can be answered cleanly.
package dlp

import (
	"fmt"
	"log/slog"
	"slices"
	"strconv"
	"strings"
	"sync"

	"github.com/fairlead-mesh/fairlead/filters"
	"github.com/fairlead-mesh/fairlead/internal/message"
	"github.com/fairlead-mesh/fairlead/internal/refusal"
	"github.com/fairlead-mesh/fairlead/internal/stats"
)

// Factory makes dlp filters.
type Factory struct{}

// TypeURLs returns the two types of the filter.
func (Factory) TypeURLs() []string { return []string{TypeURL, PerRouteTypeURL} }

// filter is the compiled filter of one route.
type filter struct {
	cfg         *config
	name        string
	key         []byte
	logger      *slog.Logger
	at          refusal.Directory
	findings    *findings
	uninspected map[string]*stats.Counter // by direction
}

// Compile builds the filter for one route.
func (Factory) Compile(env *filters.Env, base, over filters.Config) (filters.HTTPFilter, error) {
	cfg, ok := base.(*config)
	if !ok {
		return nil, fmt.Errorf("dlp: configuration of type %T", base)
	}
	if over != nil {
		o, ok := over.(*override)
		if !ok {
			return nil, fmt.Errorf("dlp: per-route configuration of type %T", over)
		}
		if o.disabled {
			return nil, nil
		}
		var err error
		if cfg, err = cfg.with(o); err != nil {
			return nil, err
		}
	}
	if cfg.request == nil && cfg.answer == nil {
		return nil, nil // every rule is disabled on this route
	}
	f := &filter{cfg: cfg, name: cfg.name, logger: env.Logger, uninspected: map[string]*stats.Counter{}}
	if f.name == "" {
		f.name = env.Name
	}
	if env.Workloads != nil {
		f.at.Workloads = env.Workloads
	}
	f.at.Clusters, _ = env.Upstreams.(refusal.Clusters)
	if env.Events != nil {
		f.logger = env.Events
	}
	if f.logger == nil {
		f.logger = slog.New(slog.DiscardHandler)
	}
	var err error
	if f.key, err = cfg.key(); err != nil {
		return nil, fmt.Errorf("dlp: %w", err)
	}
	f.findings = &findings{scope: env.Stats, policy: f.name, by: map[series]*stats.Counter{}}
	for _, dir := range []string{"request", "response"} {
		f.uninspected[dir] = env.Stats.Counter("fairlead_dlp_uninspectable_total",
			stats.Label{Name: "policy", Value: f.name}, stats.Label{Name: "direction", Value: dir})
	}
	return f, nil
}

// series is a kind of finding in metrics.
type series struct {
	dir    string
	place  place
	typ    string
	action action
}

// findings counts findings. The series are made when they are needed: hundreds
// of detectors in every place would be thousands of zeros.
type findings struct {
	scope  *stats.Scope
	policy string
	mu     sync.RWMutex
	by     map[series]*stats.Counter
}

func (c *findings) inc(k series) {
	c.mu.RLock()
	n := c.by[k]
	c.mu.RUnlock()
	if n == nil {
		n = c.scope.Counter("fairlead_dlp_findings_total", stats.Label{Name: "policy", Value: c.policy},
			stats.Label{Name: "type", Value: k.typ}, stats.Label{Name: "place", Value: k.dir + "_" + placeNames[k.place]},
			stats.Label{Name: "action", Value: actionNames[k.action]})
		c.mu.Lock()
		c.by[k] = n
		c.mu.Unlock()
	}
	n.Inc()
}

// Do inspects the request, and the response on its way back.
func (f *filter) Do(s *filters.Stream, next filters.Next) (*filters.Response, error) {
	var in *inspection
	var g *gate
	if f.cfg.request != nil {
		in = f.inspect(f.cfg.request, "request")
		in.identify(s)
		g = &gate{}
		if r, err := f.request(s, in, g); r != nil || err != nil {
			return r, err
		}
	}
	if f.cfg.answer != nil && f.cfg.answer.looks[inBody] && !f.cfg.dryRun {
		prepareForResponse(&s.Request)
	}
	head := s.Request.Get(message.Method) == "HEAD"
	r, err := next.Do(s)
	if g != nil && !g.answered() {
		// The request was stopped while its body was on the way up: whatever
		// came of it, this is the answer.
		discard(r)
		return f.refuse(s, in, 415), nil
	}
	if err != nil || r == nil || r.Local || f.cfg.answer == nil {
		return r, err
	}
	return f.response(s, r, f.inspect(f.cfg.answer, "response"), head)
}

func discard(r *filters.Response) {
	if r == nil {
		return
	}
	r.Body.Close()
	if r.Tunnel != nil {
		r.Tunnel.Abandon()
		r.Tunnel = nil
	}
}

// refuse answers a message that must not go on.
func (f *filter) refuse(s *filters.Stream, in *inspection, uninspectableStatus int) *filters.Response {
	status := uninspectableStatus
	if in.blocker != nil {
		status = in.blocker.status
	} else if status == 415 && in.reason == "decompression_limit" {
		status = 413
	}
	return s.Deny(status, "", in.details(), 0, in.decision())
}

// prepareForResponse asks for a response that can be inspected: whole, so that
// no value is divided over two answers, and not encoded.
func prepareForResponse(h *message.Header) {
	h.Del("range")
	h.Del("if-range")
	if h.Has("accept-encoding") {
		h.Set("accept-encoding", "identity")
	}
}

// request inspects what is there of the request and wraps its body. A
// response means: stop here.
func (f *filter) request(s *filters.Stream, in *inspection, g *gate) (*filters.Response, error) {
	claimed := !f.cfg.dryRun && slices.ContainsFunc(in.set.routes, s.Request.Has)
	in.setHeaders(&s.Request)
	if claimed { // the client chose a route that only findings choose
		s.ClearRouteCache()
	}
	in.head(&s.Request)
	if in.stopped() {
		in.report()
		return f.refuse(s, in, 415), nil
	}
	tunnel := s.Request.Get(message.Method) == "CONNECT" || s.Request.Has("upgrade")
	switch {
	case tunnel && in.set.looks[inBody]:
		in.tunnel()
	case !in.set.looks[inBody] && !in.set.looks[inTrailer], message.IsEmpty(s.Body), tunnel:
	default:
		b := f.wrap(&s.Request, s.Body, in, s.Info.IsGRPC, func(err error) {
			if !g.stopped() {
				s.Interrupt(err)
			}
		})
		s.Body = filters.Interruptible(b, s.Body)
		f.hold(&s.Request, b)
		switch {
		case in.stopped():
			in.report()
			return f.refuse(s, in, 415), nil
		case b.err != nil:
			return nil, b.err
		}
		return f.depart(s, in), nil // reports when the body ends
	}
	if in.refused {
		in.report()
		return f.refuse(s, in, 415), nil
	}
	r := f.depart(s, in)
	in.report()
	return r, nil
}

// depart makes the head of a request what it has to be before it goes on: the
// headers that rules add, and the route that they choose. A response means
// that no other route can be chosen.
func (f *filter) depart(s *filters.Stream, in *inspection) *filters.Response {
	in.setHeaders(&s.Request)
	in.gone = true
	if !in.reroute {
		return nil
	}
	before := s.Route
	s.ClearRouteCache()
	if s.Route != before {
		return nil
	}
	in.refused, in.reason = true, "no_other_route"
	in.report()
	return f.refuse(s, in, 503)
}

// setHeaders makes the headers of rules what the rules said: those that the
// message came with are not.
func (in *inspection) setHeaders(h *message.Header) {
	if in.f.cfg.dryRun {
		return
	}
	for _, name := range in.set.headers {
		h.Del(name)
	}
	for _, a := range in.headers {
		h.Set(a[0], a[1])
	}
}

// tunnel notes bytes that nobody will look at. They pass unless the
// configuration says DENY.
func (in *inspection) tunnel() {
	in.uninspectable("tunnel")
	in.refused = in.refused && in.f.cfg.deny == denyAlways
}

// response inspects r and wraps its body.
func (f *filter) response(s *filters.Stream, r *filters.Response, in *inspection, head bool) (*filters.Response, error) {
	in.identify(s)
	in.setHeaders(&r.Header)
	in.head(&r.Header)
	body := !head && r.Status() != 204 && r.Status() != 304 && r.Tunnel == nil && !message.IsEmpty(r.Body) &&
		(in.set.looks[inBody] || in.set.looks[inTrailer])
	if r.Tunnel != nil && in.set.looks[inBody] {
		in.tunnel()
	}
	if head && !r.Local {
		f.describe(&r.Header)
	}
	if body && !in.stopped() {
		if r.Status() == 206 && in.set.looks[inBody] { // a part of what may be a match; ranges were not asked for
			in.uninspectable("partial_content")
			in.fixed = true // content-range counts its bytes
		}
		b := f.wrap(&r.Header, r.Body, in, strings.HasPrefix(strings.ToLower(r.Header.Get("content-type")), "application/grpc"), func(error) {
			d := in.decision() // too late for another answer, but not for the record
			s.Info.Decision = &d
		})
		r.Body = b
		f.hold(&r.Header, b)
		if b.err != nil && !in.stopped() {
			return r, nil // broken by upstream: the codec will see it
		}
	} else {
		in.report()
	}
	if in.stopped() {
		in.report()
		discard(r)
		return f.refuse(s, in, 502), nil
	}
	in.setHeaders(&r.Header)
	return r, nil
}

// wrap puts the inspection around a body. If the body can't be inspected, in
// says so and it is scanned as it is.
func (f *filter) wrap(h *message.Header, inner message.Body, in *inspection, grpc bool, stop func(error)) *body {
	list, known := codings(h)
	contentType := strings.ToLower(h.Get("content-type"))
	coding := "grpc-encoding"
	if strings.HasPrefix(contentType, "application/connect+") {
		grpc, coding = true, "connect-content-encoding"
	}
	if grpc && strings.Contains(contentType, "grpc-web-text") {
		grpc = false // base64 of the framing
		in.uninspectable("grpc_web_text")
	}
	if grpc {
		return newBody(inner, newGRPCSource(inner, in, h.Get(coding), f.cfg.window/4), in, stop)
	}
	switch {
	case !known:
		in.uninspectable("content_encoding")
		list = nil
	case opaqueCharset(contentType):
		in.uninspectable("charset")
		list = nil
	}
	media, _, _ := strings.Cut(contentType, ";")
	media = strings.TrimSpace(media)
	in.fixed = in.fixed || prefixed(media)
	json := strings.HasPrefix(media, "application/") && (strings.HasSuffix(media, "json") || strings.HasSuffix(media, "json-seq"))
	pass := f.cfg.dryRun || !in.set.blocks && !in.set.edits
	var d *decodedBody
	if len(list) > 0 {
		d = newDecodedBody(inner, list, f.cfg.ratio)
		inner = d
	}
	src := newPlainSource(inner, in, media == "application/x-www-form-urlencoded", json)
	if strings.HasPrefix(media, "multipart/") {
		src.parts = []byte{}
	}
	if d != nil {
		return newBody(d, newEncodedSource(src, d, pass, f.cfg.window), in, stop)
	}
	src.tee = pass && (f.cfg.dryRun || !in.set.heads)
	return newBody(inner, &src, in, stop)
}

// prefixed reports whether values of a media type have their length before
// them: nothing that is scanned as text may change it.
func prefixed(media string) bool {
	switch media {
	case "application/protobuf", "application/x-protobuf", "application/proto", "application/vnd.google.protobuf", "application/x-google-protobuf",
		"application/msgpack", "application/x-msgpack", "application/vnd.msgpack", "application/cbor", "application/bson",
		"application/avro", "avro/binary", "application/x-thrift", "application/vnd.apache.thrift.binary", "application/vnd.apache.thrift.compact":
		return true
	}
	return false
}

// dropDigests removes what would be wrong of a changed body.
func dropDigests(h *message.Header) {
	for _, name := range []string{"content-md5", "digest", "content-digest", "repr-digest"} {
		h.Del(name)
	}
}

// opaqueCharset reports whether the text is in a form that detectors, which
// read ASCII and UTF-8, can't see through.
func opaqueCharset(contentType string) bool {
	_, cs, ok := strings.Cut(strings.ToLower(contentType), "charset=")
	cs = strings.Trim(cs, `"' `)
	return ok && (strings.HasPrefix(cs, "utf-16") || strings.HasPrefix(cs, "utf-32") || strings.HasPrefix(cs, "utf-7") ||
		strings.HasPrefix(cs, "utf16") || strings.HasPrefix(cs, "ucs-2") || strings.HasPrefix(cs, "ibm") || strings.HasPrefix(cs, "cp037"))
}

// holds reports whether the beginning of the body is awaited before the head
// goes on: for rules that block or add a header, unless the message is meant
// to be read as it comes.
func (f *filter) holds(set *ruleSet, h *message.Header) bool {
	if !set.blocks && !set.heads || f.cfg.dryRun {
		return false
	}
	ct := strings.ToLower(h.Get("content-type"))
	for _, streaming := range []string{"text/event-stream", "application/grpc", "multipart/x-mixed-replace", "application/x-ndjson", "application/stream+json", "application/connect+"} {
		if strings.HasPrefix(ct, streaming) {
			return false
		}
	}
	return true
}

// hold awaits the beginning of a body where that is wanted, and makes the
// headers fit what will be sent.
func (f *filter) hold(h *message.Header, b *body) {
	if f.holds(b.in.set, h) {
		b.hold(f.cfg.window)
	}
	known := b.done && b.err == nil
	encoded := false
	if s, ok := b.src.(*encodedSource); ok {
		if original, ok := s.original(); ok && known {
			b.queue = original // with its length, its digests and its tag
			return
		}
		s.depart()
		encoded = s.enc != nil && !s.passing
	}
	changed := b.in.set.edits && !f.cfg.dryRun && (!known || b.in.body)
	if b.rewrites = changed || encoded; !b.rewrites {
		return
	}
	dropDigests(h)
	h.Del("etag")
	t := b.inner.Trailers()
	if known && t != nil {
		dropDigests(t)
	}
	switch {
	case known && t == nil:
		h.Set("content-length", strconv.Itoa(len(b.queue)))
	case encoded, b.in.set.replaces, b.recodes():
		h.Del("content-length")
	}
}

// describe makes the answer to HEAD say no more about a body than can be said
// without inspecting it.
func (f *filter) describe(h *message.Header) {
	if !f.cfg.answer.edits || f.cfg.dryRun {
		return
	}
	dropDigests(h)
	h.Del("etag")
	if f.cfg.answer.replaces || h.Has("content-encoding") {
		h.Del("content-length")
	}
}
