package router

import (
	"slices"
	"strings"

	"github.com/fairlead-mesh/fairlead/filters"
	"github.com/fairlead-mesh/fairlead/internal/explain"
	"github.com/fairlead-mesh/fairlead/internal/message"
	"github.com/fairlead-mesh/fairlead/internal/streaminfo"
	"github.com/fairlead-mesh/fairlead/proxy/upstream"
	"github.com/fairlead-mesh/fairlead/routing"
	"github.com/fairlead-mesh/fairlead/xdsclient/xdsresource"
)

// Plan says what Do would do with s: the cluster and its hosts, timeouts and
// retries as they apply to this request, and the head as upstream would see it;
// or the answer that it would make. Nothing is sent, picked or counted. s is
// changed as Do changes it.
func (f *Filter) Plan(s *filters.Stream) *explain.Upstream {
	out := &explain.Upstream{}
	r, _ := s.Route.(*routing.Route)
	if r == nil {
		out.Reply = planned(s.LocalReply(404, "", "route_not_found", streaminfo.NoRouteFound), s)
		return out
	}
	if resp := r.DirectReply(s); resp != nil {
		out.Reply = planned(resp, s)
		return out
	}
	if r.Config.Action == nil {
		resp, _ := refusal(s, r)
		out.Reply, out.Problem = planned(resp, s), r.Config.Broken
		return out
	}
	name := r.Cluster(s)
	c := f.d.Clusters.Cluster(name)
	if c == nil {
		out.Cluster, out.Problem = name, "there is no such cluster"
		out.Reply = planned(clusterNotFound(s, r), s)
		return out
	}
	if resp := f.checkHeaders(s); resp != nil {
		out.Reply = planned(resp, s)
		return out
	}
	c.Explain(out)
	u := &s.Info.Upstream
	u.Cluster, u.ClusterRaw, u.ClusterMetadata = c.StatName(), c.Name(), &c.Spec().Metadata
	f.planLimits(s, r, c, out)
	if !r.FinalizeRequest(s, f.cfg.SuppressEnvoyHeaders) {
		out.Reply = planned(strayed(s), s)
		return out
	}
	out.Request = Head(&s.Request)
	for _, m := range r.Mirrors() {
		name := m.Cluster
		if m.ClusterHeader != "" {
			name = s.Request.Get(m.ClusterHeader)
		}
		out.Mirrors = append(out.Mirrors, name)
	}
	if !c.Usable() {
		out.Reply = planned(s.LocalReply(503, "no healthy upstream", "no_healthy_upstream", streaminfo.NoHealthyUpstream), s)
		return out
	}
	if kindOf(s, r.Config.Action) == terminate {
		if h, _ := c.InternalHost(upstream.ConnectOptions{}); h != nil {
			out.Next = h.Internal()
		}
	}
	return out
}

// planLimits computes timeouts and retries as begin does.
func (f *Filter) planLimits(s *filters.Stream, r *routing.Route, c *upstream.Cluster, out *explain.Upstream) {
	policy, envoy := r.Retry(), hasEnvoyHeader(&s.Request)
	t := timeoutsOf(s, r.Config.Action, policy, envoy, f.cfg.RespectExpectedRqTimeout)
	if d := c.Spec().HTTP.MaxStreamDuration; d > 0 && (t.duration == 0 || d < t.duration) {
		t.duration = d
	}
	out.Timeouts = &explain.Timeouts{
		Route: explain.Duration(t.route), PerTry: explain.Duration(t.perTry), PerTryIdle: explain.Duration(t.perTryIdle),
		MaxDuration: explain.Duration(t.duration), Connect: explain.Duration(c.Spec().ConnectTimeout),
	}
	var rs retryState
	rs.init(policy, &s.Request, envoy)
	if rs.on == 0 {
		return
	}
	out.Retry = &explain.Retry{On: conditionNames(rs.on), Attempts: rs.left, BackOff: explain.Duration(rs.next), MaxWait: explain.Duration(rs.max), Codes: rs.codes}
	if policy != nil {
		out.Retry.Codes = append(slices.Clip(out.Retry.Codes), policy.StatusCodes...)
	}
}

// conditionNames returns the names of a set of retry conditions, sorted.
func conditionNames(on xdsresource.RetryOn) []string {
	var out []string
	for _, m := range []map[string]xdsresource.RetryOn{retryNames, retryGRPCNames} {
		for name, bit := range m {
			if on&bit != 0 {
				out = append(out, name)
			}
		}
	}
	slices.Sort(out)
	return out
}

func planned(r *filters.Response, s *filters.Stream) *explain.Reply {
	out := &explain.Reply{Status: s.Info.ResponseCode, Details: s.Info.Details, Location: r.Header.Get("location")}
	if out.Status == 0 {
		out.Status = r.Status()
	}
	if b, _, err := r.Body.Next(); err == nil {
		out.Body = string(b[:min(len(b), 256)])
	}
	r.Body.Close()
	return out
}

// Head renders a request head for people; the values of credentials are left
// out.
func Head(h *message.Header) *explain.Head {
	out := &explain.Head{Method: h.Get(message.Method), Authority: h.Get(message.Authority), Path: h.Get(message.Path)}
	for i := range h.Len() {
		f := h.At(i)
		switch {
		case strings.HasPrefix(f.Name, ":"):
		case secret(f.Name):
			out.Headers = append(out.Headers, f.Name+": (not shown)")
		default:
			out.Headers = append(out.Headers, f.Name+": "+f.Value)
		}
	}
	return out
}

func secret(name string) bool {
	switch name {
	case "authorization", "proxy-authorization", "cookie", "x-api-key":
		return true
	}
	return strings.Contains(name, "token") || strings.Contains(name, "secret")
}
