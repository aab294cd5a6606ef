package refusal

import (
	"bytes"
	"encoding/json"
	"log/slog"
	"maps"
	"net/netip"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/fairlead-mesh/fairlead/internal/message"
	"github.com/fairlead-mesh/fairlead/internal/stats"
	"github.com/fairlead-mesh/fairlead/internal/streaminfo"
)

type table map[netip.Addr]*streaminfo.Peer

func (t table) Peer(a netip.Addr) *streaminfo.Peer { return t[a] }

// clusters knows the cluster reviews.
type clusters struct{}

func (clusters) ClusterMetadata(name string) *streaminfo.Metadata {
	if name != "reviews" {
		return nil
	}
	md := streaminfo.MetadataFrom(map[string]map[string]any{"istio": {"services": []any{map[string]any{"namespace": "app", "name": "reviews", "host": "reviews.app.svc.cluster.local"}}}})
	return &md
}

// recorded is a Recorder with what it wrote.
type recorded struct {
	*Recorder
	out bytes.Buffer
	reg stats.Registry
	now time.Time
}

func newRecorded(perSecond int) *recorded {
	r := &recorded{now: time.Unix(1000, 0)}
	h := slog.NewJSONHandler(&r.out, &slog.HandlerOptions{ReplaceAttr: func(_ []string, a slog.Attr) slog.Attr {
		if a.Key == slog.TimeKey {
			return slog.Attr{}
		}
		return a
	}})
	peers := table{
		netip.MustParseAddr("10.0.0.7"):  {Namespace: "app", Workload: "client", CanonicalName: "client"},
		netip.MustParseAddr("10.0.1.11"): {Namespace: "app", Workload: "reviews-v1", CanonicalName: "reviews", Identity: "spiffe://cluster.local/ns/app/sa/reviews"},
	}
	r.Recorder = New(Options{Logger: slog.New(h), Stats: r.reg.Scope(""), Workloads: peers, Clusters: clusters{}, PerSecond: perSecond, Now: func() time.Time { return r.now }})
	return r
}

func (r *recorded) events(t *testing.T) []map[string]any {
	t.Helper()
	var out []map[string]any
	for line := range strings.Lines(r.out.String()) {
		var m map[string]any
		if err := json.Unmarshal([]byte(line), &m); err != nil {
			t.Fatal(err)
		}
		out = append(out, m)
	}
	return out
}

func (r *recorded) metrics(t *testing.T) string {
	t.Helper()
	var b bytes.Buffer
	if err := r.reg.WritePrometheusUsed(&b, func(string) bool { return true }); err != nil {
		t.Fatal(err)
	}
	var lines []string
	for l := range strings.Lines(b.String()) {
		if !strings.HasPrefix(l, "#") {
			lines = append(lines, l)
		}
	}
	return strings.Join(lines, "")
}

func info() *streaminfo.Info {
	ci := &streaminfo.Conn{
		Local: netip.MustParseAddrPort("10.96.0.10:9080"), Remote: netip.MustParseAddrPort("10.0.0.7:1234"), DirectRemote: netip.MustParseAddrPort("10.0.0.7:1234"),
		ListenerName: "main_internal", FilterChainName: "reviews",
	}
	ci.FilterState.Set("io.istio.peer_principal", streaminfo.String("spiffe://cluster.local/ns/app/sa/client"), streaminfo.SharingNone)
	i := &streaminfo.Info{Conn: ci, Start: time.Unix(1000, 0), End: time.Unix(1000, 1500_000), RouteName: "default", VirtualHost: "v", RequestID: "id"}
	i.FilterState.Reset(&ci.FilterState)
	return i
}

func head(kv ...string) *message.Header {
	h := &message.Header{}
	for i := 0; i < len(kv); i += 2 {
		h.Add(kv[i], kv[i+1])
	}
	return h
}

var request = head(":method", "GET", ":authority", "reviews", ":path", "/secret?token=hush", "traceparent", "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01")

func TestADenialNamesBothEndsAndThePolicy(t *testing.T) {
	r := newRecorded(0)
	i := info()
	i.ResponseCode, i.Details = 403, "rbac_access_denied_matched_policy[ns[app]-policy[deny]-rule[1]]"
	i.Decision = &streaminfo.Decision{Filter: "rbac", Policy: "ns[app]-policy[deny]-rule[1]", Reason: "matched_policy", Why: func() string { return "because" }}
	r.HTTP(&Stream{Info: i, Request: request, Local: true, Cluster: "reviews"})
	want := []map[string]any{{
		"level": "INFO", "msg": "request denied", "status": 403.0, "response_code_details": i.Details,
		"filter": "rbac", "policy": "app/deny", "rule": "1", "reason": "matched_policy", "clause": "because",
		"source":      map[string]any{"address": "10.0.0.7:1234", "identity": "spiffe://cluster.local/ns/app/sa/client", "namespace": "app", "workload": "client", "service": "client"},
		"destination": map[string]any{"address": "10.96.0.10:9080", "cluster": "reviews", "namespace": "app", "service": "reviews"},
		"listener":    "main_internal", "filter_chain": "reviews", "method": "GET", "authority": "reviews", "path": "/secret", "route": "default", "virtual_host": "v",
		"request_id": "id", "trace_id": "0af7651916cd43dd8448eb211c80319c", "duration_ms": 1.5,
	}}
	if d := cmp.Diff(want, r.events(t)); d != "" {
		t.Error(d)
	}
	const metrics = `fairlead_local_replies_total{reason="rbac_access_denied_matched_policy",response_code="403"} 1
fairlead_policy_denials_total{filter="rbac",policy="app/deny",reason="matched_policy"} 1
`
	if d := cmp.Diff(metrics, r.metrics(t)); d != "" {
		t.Error(d)
	}
}

// What was open and is ended is told as a denial is, and counted beside.
func TestARevocationIsADenialOfWhatWasOpen(t *testing.T) {
	r := newRecorded(0)
	const details = "rbac_access_denied_matched_policy[ns[app]-policy[deny]-rule[1]]"
	v := &streaminfo.Revocation{Details: details, Decision: &streaminfo.Decision{Filter: "rbac", Policy: "ns[app]-policy[deny]-rule[1]", Reason: "matched_policy"}}
	tunnel, conn := info(), info()
	tunnel.ResponseCode, tunnel.Details = 200, details
	tunnel.Revoke(v)
	r.HTTP(&Stream{Info: tunnel, Request: request})
	conn.Revoke(v)
	r.Connection(conn)
	evs := r.events(t)
	if len(evs) != 2 || evs[0]["msg"] != "tunnel revoked" || evs[0]["status"] != 200.0 || evs[0]["response_code_details"] != details || evs[0]["policy"] != "app/deny" ||
		evs[1]["msg"] != "connection revoked" || evs[1]["termination_details"] != details || evs[1]["rule"] != "1" {
		t.Errorf("%v", evs)
	}
	const metrics = `fairlead_connections_revoked_total{reason="rbac_access_denied_matched_policy"} 2
fairlead_policy_denials_total{filter="rbac",policy="app/deny",reason="matched_policy"} 2
`
	if d := cmp.Diff(metrics, r.metrics(t)); d != "" {
		t.Error(d)
	}
}

func TestAFailureNamesUpstreamAndTheLimit(t *testing.T) {
	r := newRecorded(0)
	i := info()
	i.ResponseCode, i.Details, i.Flags, i.Limit = 504, "response_timeout", streaminfo.UpstreamRequestTimeout, "route timeout 10s"
	i.Upstream = streaminfo.Upstream{ClusterRaw: "reviews-v1", Host: "envoy://x/10.0.1.11:9080", Address: netip.MustParseAddrPort("10.0.1.11:9080"), TransportFailureReason: "refused"}
	r.HTTP(&Stream{Info: i, Request: request, Local: true, Cluster: "reviews"})
	ev := r.events(t)[0]
	want := map[string]any{
		"address": "10.96.0.10:9080", "namespace": "app", "workload": "reviews-v1", "service": "reviews", "identity": "spiffe://cluster.local/ns/app/sa/reviews", "cluster": "reviews-v1", "host": "envoy://x/10.0.1.11:9080",
		"transport_failure": "refused",
	}
	if d := cmp.Diff(want, ev["destination"]); d != "" {
		t.Error(d)
	}
	if ev["msg"] != "request failed" || ev["level"] != "WARN" || ev["limit"] != "route timeout 10s" || ev["response_flags"] != "UT" {
		t.Errorf("%v", ev)
	}
}

func TestWhatIsRecorded(t *testing.T) {
	for name, c := range map[string]struct {
		status  int
		details string
		local   bool
		denied  bool
		grpc    bool
		want    string
	}{
		"upstream's own error":           {status: 503, details: "via_upstream"},
		"success":                        {status: 200, details: "via_upstream"},
		"a direct response":              {status: 503, details: "direct_response", local: true},
		"a preflight":                    {status: 200, details: "cors_response", local: true},
		"a redirect":                     {status: 301, local: true},
		"no route":                       {status: 404, details: "route_not_found", local: true, want: "request rejected"},
		"a malformed request":            {status: 400, details: "http1.codec_error", local: true, want: "request rejected"},
		"no host":                        {status: 503, details: "no_healthy_upstream", local: true, want: "request failed"},
		"no host, gRPC":                  {status: 200, details: "no_healthy_upstream", local: true, grpc: true, want: "request failed"},
		"cut off by a timer":             {status: 200, details: "stream_idle_timeout", want: "response cut off"},
		"cut off by upstream":            {status: 200, details: "upstream_reset_after_response_started{connection_termination}", want: "response cut off"},
		"given up by the client":         {status: 200, details: "downstream_remote_disconnect"},
		"blocked in the response's body": {status: 200, details: "dlp", denied: true, want: "request denied"},
	} {
		t.Run(name, func(t *testing.T) {
			r := newRecorded(0)
			i := info()
			i.ResponseCode, i.Details, i.IsGRPC = c.status, c.details, c.grpc
			if c.denied {
				i.Decision = &streaminfo.Decision{Filter: "dlp"}
			}
			r.HTTP(&Stream{Info: i, Request: request, Response: head("grpc-status", "14"), Local: c.local})
			got := ""
			for _, e := range r.events(t) {
				got += e["msg"].(string)
			}
			if got != c.want {
				t.Errorf("%q, want %q", got, c.want)
			}
		})
	}
}

func TestConnections(t *testing.T) {
	for name, c := range map[string]struct {
		change func(i *streaminfo.Info)
		want   string // message, and label of the counter
	}{
		"served": {func(*streaminfo.Info) {}, ""},
		"denied": {func(i *streaminfo.Info) {
			i.Conn.TerminationDetails = "rbac_access_denied_matched_policy[none]"
			i.Decision = &streaminfo.Decision{Filter: "rbac", Reason: "no_policy_matched"}
		}, "connection denied rbac_access_denied_matched_policy"},
		"no chain":           {func(i *streaminfo.Info) { i.Flags, i.Details = streaminfo.NoRouteFound, "filter_chain_not_found" }, "connection closed filter_chain_not_found"},
		"no upstream":        {func(i *streaminfo.Info) { i.Flags = streaminfo.NoHealthyUpstream }, "connection closed uh"},
		"reset while served": {func(i *streaminfo.Info) { i.Flags = streaminfo.UpstreamConnectionTermination }, ""},
		"handshake":          {func(i *streaminfo.Info) { i.Conn.TransportFailureReason = "tls: bad certificate" }, "connection closed handshake_failed"},
		"probe":              {func(i *streaminfo.Info) { i.Conn.TransportFailureReason = "tls: EOF" }, ""},
		"idle": {func(i *streaminfo.Info) {
			i.LocalClose, i.Limit = "tcp_session_idle_timeout", "idle timeout 1h0m0s"
		}, "connection closed tcp_session_idle_timeout"},
	} {
		t.Run(name, func(t *testing.T) {
			r := newRecorded(0)
			i := info()
			c.change(i)
			r.Connection(i)
			got := ""
			for _, e := range r.events(t) {
				got += e["msg"].(string)
			}
			if _, rest, ok := strings.Cut(r.metrics(t), `connections_refused_total{reason="`); ok {
				label, _, _ := strings.Cut(rest, `"`)
				got += " " + label
			}
			if got != c.want {
				t.Errorf("%q, want %q", got, c.want)
			}
		})
	}
}

func TestEventsAreBoundedAndCountersAreNot(t *testing.T) {
	r := newRecorded(5)
	i := info()
	i.ResponseCode, i.Details = 404, "route_not_found"
	asked := 0
	i.Decision = &streaminfo.Decision{Filter: "x", Why: func() string { asked++; return "" }}
	for range 100 {
		r.HTTP(&Stream{Info: i, Request: request, Local: true, Cluster: "reviews"})
	}
	if n := len(r.events(t)); n != 10 {
		t.Errorf("%d events, want 10", n)
	}
	if asked != 10 {
		t.Errorf("asked %d times", asked)
	}
	r.now = r.now.Add(time.Second)
	for range 100 {
		r.HTTP(&Stream{Info: i, Request: request, Local: true, Cluster: "reviews"})
	}
	if n := len(r.events(t)); n != 15 {
		t.Errorf("%d events a second later, want 15", n)
	}
	if m := r.metrics(t); !strings.Contains(m, `fairlead_local_replies_total{reason="route_not_found",response_code="404"} 200`) || !strings.Contains(m, "fairlead_refusal_events_suppressed_total 185") {
		t.Error(m)
	}
}

func TestPolicyNames(t *testing.T) {
	for name, want := range map[string][2]string{
		"ns[app]-policy[a]-rule[12]": {"app/a", "12"}, "custom": {"custom", ""}, "": {}, "ns[a]-policy[b]": {"ns[a]-policy[b]", ""}, "ns[a]-policy[b]-rule[": {"ns[a]-policy[b]-rule[", ""},
	} {
		if p, r := SplitPolicy(name); [2]string{p, r} != want {
			t.Errorf("%q: %q %q", name, p, r)
		}
	}
}

func TestPassingCostsNothing(t *testing.T) {
	r := newRecorded(0)
	i := info()
	i.ResponseCode, i.Details = 200, "via_upstream"
	passing := &Stream{Info: i, Request: request}
	if a := testing.AllocsPerRun(100, func() { r.HTTP(passing) }); a != 0 {
		t.Errorf("%v allocations", a)
	}
}

// A flood of refusals, of which most are only counted, makes no garbage.
func TestCountingRefusalsCostsNothing(t *testing.T) {
	r := newRecorded(1)
	i := info()
	i.ResponseCode, i.Details = 503, "reached_concurrency_limit"
	i.Decision = &streaminfo.Decision{Filter: "adaptive_concurrency", Reason: "concurrency_limit"}
	refused := &Stream{Info: i, Request: request, Local: true, Cluster: "reviews"}
	for range 10 {
		r.HTTP(refused)
	}
	if a := testing.AllocsPerRun(100, func() { r.HTTP(refused) }); a != 0 {
		t.Errorf("%v allocations", a)
	}
	if m := r.metrics(t); !strings.Contains(m, `fairlead_policy_denials_total{filter="adaptive_concurrency",policy="",reason="concurrency_limit"} 111`) {
		t.Error(m)
	}
}

func TestWhoIsAtTheEnds(t *testing.T) {
	service := map[string]any{"address": "10.96.0.10:9080", "namespace": "app", "service": "reviews", "cluster": "reviews"}
	for name, c := range map[string]struct {
		change func(i *streaminfo.Info)
		key    string
		want   map[string]any
	}{
		"a client that only its identity tells": {func(i *streaminfo.Info) { i.Conn.Remote = netip.MustParseAddrPort("10.9.9.9:1") }, "source", map[string]any{
			"address": "10.9.9.9:1", "direct_address": "10.0.0.7:1234", "identity": "spiffe://cluster.local/ns/app/sa/client", "namespace": "app", "service_account": "client",
		}},
		"a client of another kind": {func(i *streaminfo.Info) {
			i.Conn.Remote = netip.MustParseAddrPort("10.9.9.9:1")
			i.FilterState.Set("io.istio.peer_principal", streaminfo.String("spiffe://vm/host/7"), streaminfo.SharingNone)
		}, "source", map[string]any{"address": "10.9.9.9:1", "direct_address": "10.0.0.7:1234", "identity": "spiffe://vm/host/7"}},
		"no workload was chosen": {func(*streaminfo.Info) {}, "destination", service},
		"the proxy is not the server": {func(i *streaminfo.Info) {
			i.FilterState.Set("io.istio.local_principal", streaminfo.String("spiffe://cluster.local/ns/app/sa/waypoint"), streaminfo.SharingNone)
		}, "destination", merge(service, "proxy_identity", "spiffe://cluster.local/ns/app/sa/waypoint")},
		"the server showed a certificate": {func(i *streaminfo.Info) {
			i.Upstream.TLS = &streaminfo.TLS{Peer: streaminfo.Certificate{URISANs: []string{"spiffe://cluster.local/ns/app/sa/reviews"}}}
		}, "destination", merge(service, "identity", "spiffe://cluster.local/ns/app/sa/reviews")},
	} {
		t.Run(name, func(t *testing.T) {
			r := newRecorded(0)
			i := info()
			i.ResponseCode, i.Details = 503, "no_healthy_upstream"
			c.change(i)
			r.HTTP(&Stream{Info: i, Request: request, Local: true, Cluster: "reviews"})
			if d := cmp.Diff(any(c.want), r.events(t)[0][c.key]); d != "" {
				t.Error(d)
			}
		})
	}
}

func merge(m map[string]any, key string, value any) map[string]any {
	m = maps.Clone(m)
	m[key] = value
	return m
}
