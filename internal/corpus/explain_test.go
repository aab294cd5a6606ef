package corpus

import (
	"slices"
	"strings"

	"github.com/fairlead-mesh/fairlead/internal/explain"
)

// explained asks the proxy what it will do with a request; nil if the question
// can't be put: CONNECT can't be given headers, and what a chain without TLS of
// its own finds in a ClientHello is no HTTP.
func (w *world) explained(d door, q *request) *explain.Report {
	if d.source != "" || d.authority == "" && d.sni != "" && !d.terminated {
		return nil
	}
	x := &explain.Request{
		Listener: d.listener, Destination: d.authority, Method: q.method, Path: q.path, Host: q.authority, SNI: d.sni, HTTP1: d.protocol != "h2c",
		Source: explain.Source{Identity: w.caller(d.chain), Address: "127.0.0.1"},
	}
	if d.terminated {
		x.ALPN = []string{"http/1.1"}
	}
	if d.authority == "" {
		x.Destination = w.addrs[d.listener].String()
	}
	for _, h := range q.header {
		x.Headers = append(x.Headers, h[0]+": "+h[1])
	}
	r, err := w.proxy.Server().Explain(x)
	if err != nil {
		w.t.Errorf("%v %s %s%s: %v", d, q.method, q.authority, q.path, err)
		return nil
	}
	return r
}

// agrees compares what was explained with what came of the request. Where
// chance decides, any of the choices will do.
func (w *world) agrees(at, chain string, r *explain.Report, got *result) {
	if r == nil {
		return
	}
	w.asked++
	h := r.Hops[len(r.Hops)-1]
	if h.FilterChain != chain {
		w.t.Errorf("%s: explained by chain %q, want %q", at, h.FilterChain, chain)
		return
	}
	switch r.Outcome {
	case explain.Forward:
		choices := []string{h.Upstream.Cluster}
		if rt := h.Routing; rt != nil && rt.Route != nil {
			for _, c := range rt.Route.Weighted {
				choices = append(choices, c.Cluster)
			}
		}
		if strings.Contains(got.body, "grpc-status:0") { // what the origin saw is in frames
			return
		}
		if got.echo.Cluster == "" || !slices.Contains(choices, got.echo.Cluster) {
			w.t.Errorf("%s: explained as forwarded to one of %q; status %d of %q", at, choices, got.status, got.echo.Cluster)
		}
		if len(choices) == 1 && h.Upstream.Request != nil && got.echo.Path != h.Upstream.Request.Path {
			w.t.Errorf("%s: explained as %s, the origin saw %s", at, h.Upstream.Request.Path, got.echo.Path)
		}
	case explain.Deny, explain.Answer:
		if got.echo.Cluster != "" || got.status != r.Status {
			w.t.Errorf("%s: explained as %s by %s: %d %s; status %d of %q", at, r.Outcome, r.Decider, r.Status, r.Details, got.status, got.echo.Cluster)
		}
	case explain.Unknown:
		w.unknown++
	default:
		w.t.Errorf("%s: explained as %s by %s, status %d", at, r.Outcome, r.Decider, got.status)
	}
}
