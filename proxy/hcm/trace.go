package hcm

import (
	"math"
	"math/rand/v2"
	"strconv"

	"github.com/fairlead-mesh/fairlead/internal/message"
	"github.com/fairlead-mesh/fairlead/internal/tracing"
	"github.com/fairlead-mesh/fairlead/routing"
	"github.com/fairlead-mesh/fairlead/xdsclient/xdsresource"
)

const decoratorHeader = "x-envoy-decorator-operation"

// beginTrace decides about sampling, begins the span, and exchanges names of
// operations: ConnectionManagerImpl::ActiveStream::traceRequest. The route has
// been selected.
func (st *stream) beginTrace() {
	t := st.m.spec.Tracing
	if t == nil {
		return
	}
	if st.trace == nil {
		st.trace = &tracing.Trace{}
	}
	var route *xdsresource.Route
	if r, ok := st.s.Route.(*routing.Route); ok {
		route = r.Config
	}
	sampled := st.decideTrace(t, route)
	if c := st.m.cfg.Trace; c != nil {
		if route != nil && route.Tracing != nil {
			st.traced = st.trace.Start(c, &route.Tracing.Span, &st.s, sampled)
		} else {
			st.traced = st.trace.Start(c, nil, &st.s, sampled)
		}
	}
	if t.Operation != nil || route != nil && route.Tracing != nil && route.Tracing.Span.Operation != nil {
		return // peers' and routes' names don't count
	}
	h := &st.s.Request
	if route != nil && route.Operation != "" {
		st.trace.SetOperation(route.Operation)
		if !route.DecoratorStays {
			st.decorated = route.Operation
		}
	}
	if st.m.cfg.Egress {
		if st.decorated != "" {
			h.Set(decoratorHeader, st.decorated)
		}
		return
	}
	if name, ok := h.Lookup(decoratorHeader); ok {
		if name != "" {
			st.trace.SetOperation(name)
			st.decorated = ""
		}
		h.Del(decoratorHeader)
	}
}

// decorate exchanges names of operations with the response.
func (st *stream) decorate(h *message.Header) {
	switch {
	case st.m.spec.Tracing == nil:
	case !st.m.cfg.Egress:
		if st.decorated != "" {
			h.Set(decoratorHeader, st.decorated)
		}
	default:
		if name, ok := h.Lookup(decoratorHeader); ok {
			if name != "" && st.trace != nil {
				st.trace.SetOperation(st.s.Request.Intern([]byte(name)))
			}
			h.Del(decoratorHeader)
		}
	}
}

// endTrace finishes the span. The logs have been written.
func (st *stream) endTrace() {
	if st.traced {
		defer st.contain()
		st.trace.Finish(&st.s)
	}
}

// percentages are the sampling settings in force for a request, 0 to 100.
type percentages struct{ client, random, overall float64 }

// decideTrace is ConnectionManagerUtility::mutateTracingRequestHeader: whether
// the request is sampled is part of its id, for all hops to agree.
func (st *stream) decideTrace(t *xdsresource.Tracing, route *xdsresource.Route) bool {
	spec, h := st.m.spec, &st.s.Request
	if !spec.UseRequestIDForTraceSampling {
		return true
	}
	id := st.s.Info.RequestID
	if len(id) < 8 {
		return false
	}
	n, err := strconv.ParseUint(id[:8], 16, 32)
	if err != nil {
		return false
	}
	n %= 10_000
	p := percentages{t.ClientSampling, t.RandomSampling, t.OverallSampling}
	if route != nil && route.Tracing != nil {
		p = percentages{100 * route.Tracing.ClientSampling, 100 * route.Tracing.RandomSampling, 100 * route.Tracing.OverallSampling}
	}
	had := traceReason(id)
	reason := had
	if reason == traceNone {
		switch {
		case h.Has("x-client-trace-id") && sampled(p.client):
			reason = traceClient
		case h.Has("x-envoy-force-trace"):
			reason = traceForced
		case float64(n) < math.Round(p.random*100):
			reason = traceSampled
		}
	}
	if reason != traceNone && float64(n%100) >= p.overall {
		reason = traceNone
	}
	if reason != had && len(id) == 36 && spec.PackTraceReason {
		var b [36]byte
		copy(b[:], id)
		b[14] = reason
		id = h.Intern(b[:])
		h.Set("x-request-id", id)
		st.s.Info.RequestID = id
	}
	return reason != traceNone
}

// traceReason is what an id says about sampling.
func traceReason(id string) byte {
	if len(id) == 36 {
		switch id[14] {
		case traceSampled, traceForced, traceClient:
			return id[14]
		}
	}
	return traceNone
}

// sampled draws against a percentage.
func sampled(percent float64) bool {
	return percent >= 100 || percent > 0 && rand.Float64()*100 < percent
}
