package istiometrics

import (
	"net/netip"
	"strings"
	"testing"
	"time"

	"github.com/fairlead-mesh/fairlead/filters"
	"github.com/fairlead-mesh/fairlead/filters/internal/decodetest"
	"github.com/fairlead-mesh/fairlead/filters/internal/grpccount"
	"github.com/fairlead-mesh/fairlead/internal/message"
	"github.com/fairlead-mesh/fairlead/internal/stats"
	"github.com/fairlead-mesh/fairlead/internal/streaminfo"
)

const (
	clientID   = "spiffe://cluster.local/ns/app/sa/client"
	waypointID = "spiffe://cluster.local/ns/app/sa/waypoint"
)

var (
	client   = &streaminfo.Peer{Workload: "client-v1", Namespace: "app", CanonicalName: "client", CanonicalRevision: "v1", AppName: "client", AppVersion: "v1", ClusterID: "Kubernetes", Identity: clientID, DenseID: 7}
	server   = &streaminfo.Peer{Workload: "reviews-v1", Namespace: "back", CanonicalName: "reviews", CanonicalRevision: "v1", AppName: "reviews", AppVersion: "v1", ClusterID: "Kubernetes", Identity: "spiffe://cluster.local/ns/back/sa/reviews", Labels: map[string]string{"app": "rev"}, DenseID: 8}
	services = streaminfo.MetadataFrom(map[string]map[string]any{"istio": {"services": []any{map[string]any{"host": "reviews.back.svc.cluster.local", "name": "reviews", "namespace": "back"}}}})
)

func compile(t testing.TB, config, direction string) (*Metrics, *stats.Registry) {
	t.Helper()
	d := &filters.Decoding{}
	c, err := Decode(filters.Any{TypeURL: TypeURL, JSON: true, Value: []byte(config)}, d)
	if err != nil {
		t.Fatal(err)
	}
	reg := &stats.Registry{}
	env := &filters.Env{Stats: reg.Scope(""), Direction: direction, Node: &filters.Node{
		Namespace: "gw", WorkloadName: "gw-istio", ClusterID: "Kubernetes", IstioVersion: "1.32.0",
		Labels: map[string]string{"service.istio.io/canonical-name": "gw", "service.istio.io/canonical-revision": "latest", "app": "gw"},
	}}
	return New(env, c), reg
}

func stream() *filters.Stream {
	s := &filters.Stream{}
	s.Reset()
	s.Info.Conn = &streaminfo.Conn{}
	fs := &s.Info.FilterState
	fs.Set("downstream_peer", client, streaminfo.SharingNone)
	fs.Set("upstream_peer", server, streaminfo.SharingNone)
	fs.Set("io.istio.peer_principal", streaminfo.String(clientID), streaminfo.SharingNone)
	fs.Set("io.istio.local_principal", streaminfo.String(waypointID), streaminfo.SharingNone)
	s.Request.Add(message.Method, "GET")
	s.Request.Add(message.Authority, "reviews:9080")
	s.Request.Add(message.Path, "/")
	i := &s.Info
	i.Upstream.ClusterRaw, i.Upstream.ClusterMetadata = "inbound-vip|9080|http|reviews.back.svc.cluster.local", &services
	i.ResponseCode = 200
	i.Start = time.Unix(0, 0)
	i.End = i.Start.Add(7*time.Millisecond + 900*time.Microsecond)
	i.WireBytesReceived, i.WireBytesSent = 120, 3000
	return s
}

func dump(t testing.TB, reg *stats.Registry) string {
	t.Helper()
	var b strings.Builder
	if err := reg.WritePrometheus(&b); err != nil {
		t.Fatal(err)
	}
	return b.String()
}

// labelSet parses the labels of the only series of name whose line contains
// all of having.
func labelSet(t *testing.T, out, name string, having ...string) (map[string]string, string) {
	t.Helper()
	var found []string
lines:
	for line := range strings.SplitSeq(out, "\n") {
		if !strings.HasPrefix(line, name+"{") {
			continue
		}
		for _, h := range having {
			if !strings.Contains(line, h) {
				continue lines
			}
		}
		found = append(found, line)
	}
	if len(found) != 1 {
		t.Fatalf("%d series of %s", len(found), name)
	}
	rest, value, _ := strings.Cut(found[0][len(name)+1:], "} ")
	ls := map[string]string{}
	for kv := range strings.SplitSeq(strings.TrimSuffix(rest, `"`), `",`) {
		k, v, _ := strings.Cut(kv, `="`)
		ls[k] = v
	}
	return ls, value
}

func check(t *testing.T, got map[string]string, want string) {
	t.Helper()
	n := 0
	for kv := range strings.FieldsSeq(want) {
		k, v, _ := strings.Cut(kv, "=")
		if g, ok := got[k]; !ok || g != v {
			t.Errorf("%s = %q, want %q", k, g, v)
		}
		n++
	}
	if len(got) != n {
		t.Errorf("%d labels, want %d: %v", len(got), n, got)
	}
}

const waypointPeers = "reporter=waypoint source_workload=client-v1 source_canonical_service=client source_canonical_revision=v1 source_workload_namespace=app source_principal=" + clientID + " source_app=client source_version=v1 source_cluster=Kubernetes " +
	"destination_workload=reviews-v1 destination_workload_namespace=back destination_principal=spiffe://cluster.local/ns/back/sa/reviews destination_app=reviews destination_version=v1 destination_service=reviews.back.svc.cluster.local destination_canonical_service=reviews destination_canonical_revision=v1 destination_service_name=reviews destination_service_namespace=back destination_cluster=Kubernetes "

func TestWaypointRequest(t *testing.T) {
	ms, reg := compile(t, `{"reporter":"SERVER_GATEWAY","disableHostHeaderFallback":true}`, "inbound")
	s := stream()
	s.Info.Flags = streaminfo.UpstreamConnectionFailure | streaminfo.UpstreamRetryLimitExceeded
	s.Info.ResponseCode = 503
	ms.Request(s, s.NewResponse(), nil)
	out := dump(t, reg)
	ls, v := labelSet(t, out, "istio_requests_total")
	check(t, ls, waypointPeers+"request_protocol=http response_code=503 grpc_response_status= response_flags=UF,URX connection_security_policy=mutual_tls")
	if v != "1" {
		t.Errorf("value %s", v)
	}
	for _, want := range []string{"istio_request_duration_milliseconds_sum", "istio_request_bytes_sum", "istio_response_bytes_sum"} {
		if _, v := labelSet(t, out, want); v != map[string]string{"istio_request_duration_milliseconds_sum": "7", "istio_request_bytes_sum": "120", "istio_response_bytes_sum": "3000"}[want] {
			t.Errorf("%s = %s", want, v)
		}
	}
	if !strings.Contains(out, `istio_build{component="proxy",tag="1.32.0"} 1`) {
		t.Error("istio_build is missing")
	}
}

func TestUnknownPeers(t *testing.T) {
	ms, reg := compile(t, `{"reporter":"SERVER_GATEWAY","disableHostHeaderFallback":true}`, "inbound")
	s := &filters.Stream{}
	s.Reset()
	s.Info.Conn = &streaminfo.Conn{}
	s.Request.Add(message.Authority, "attacker.example")
	ms.Request(s, nil, nil)
	ls, _ := labelSet(t, dump(t, reg), "istio_requests_total")
	check(t, ls, strings.ReplaceAll("reporter=waypoint source_workload=? source_canonical_service=? source_canonical_revision=latest source_workload_namespace=? source_principal=? source_app=? source_version=? source_cluster=? destination_workload=? destination_workload_namespace=? destination_principal=? destination_app=? destination_version=? destination_service=? destination_canonical_service=? destination_canonical_revision=? destination_service_name=? destination_service_namespace=? destination_cluster=? request_protocol=http response_code=0 grpc_response_status= response_flags=- connection_security_policy=none", "?", "unknown"))
}

func TestGatewayReportsAsSource(t *testing.T) {
	ms, reg := compile(t, `{"disableHostHeaderFallback":true}`, "outbound")
	s := stream()
	s.Info.FilterState.Reset(nil)
	host := streaminfo.MetadataFrom(map[string]map[string]any{"istio": {"workload": "reviews-v2;back;reviews;v2;Kubernetes"}})
	s.Info.Upstream.HostMetadata = &host
	ms.Request(s, s.NewResponse(), nil)
	ls, _ := labelSet(t, dump(t, reg), "istio_requests_total")
	check(t, ls, "reporter=source source_workload=gw-istio source_canonical_service=gw source_canonical_revision=latest source_workload_namespace=gw source_principal=unknown source_app=gw source_version= source_cluster=Kubernetes "+
		"destination_workload=reviews-v2 destination_workload_namespace=back destination_principal=unknown destination_app=unknown destination_version=unknown destination_service=reviews.back.svc.cluster.local destination_canonical_service=reviews destination_canonical_revision=v2 destination_service_name=reviews destination_service_namespace=back destination_cluster=Kubernetes "+
		"request_protocol=http response_code=200 grpc_response_status= response_flags=- connection_security_policy=unknown")
}

func TestGRPCStatusAndMessages(t *testing.T) {
	ms, reg := compile(t, `{"reporter":"SERVER_GATEWAY","disableHostHeaderFallback":true,"tcpReportingDuration":"0.02s"}`, "inbound")
	s := stream()
	s.Info.IsGRPC = true
	counts := &grpccount.Counts{}
	s.Info.FilterState.Set(grpccount.Key, counts, streaminfo.SharingNone)
	counts.Request.Store(2)
	m := ms.WatchMessages(s)
	deadline := time.Now().Add(20 * time.Second)
	for !strings.Contains(dump(t, reg), "istio_request_messages_total{") || func() bool { _, v := labelSet(t, dump(t, reg), "istio_request_messages_total"); return v != "2" }() {
		if time.Now().After(deadline) {
			t.Fatal("no periodic report")
		}
		time.Sleep(5 * time.Millisecond)
	}
	counts.Request.Store(3)
	counts.Response.Store(5)
	r := s.NewResponse()
	r.Header.Add("grpc-status", "14")
	ms.Request(s, r, m)
	out := dump(t, reg)
	ls, v := labelSet(t, out, "istio_request_messages_total")
	check(t, ls, waypointPeers)
	if v != "3" {
		t.Errorf("request messages %s", v)
	}
	if _, v = labelSet(t, out, "istio_response_messages_total"); v != "5" {
		t.Errorf("response messages %s", v)
	}
	ls, _ = labelSet(t, out, "istio_requests_total")
	if ls["request_protocol"] != "grpc" || ls["grpc_response_status"] != "14" {
		t.Errorf("%v", ls)
	}
}

// The filter that finds the destination's workload runs after the one that counts.
func TestMessagesOfAShortStreamNameItsDestination(t *testing.T) {
	ms, reg := compile(t, `{"reporter":"SERVER_GATEWAY","disableHostHeaderFallback":true}`, "inbound")
	s := stream()
	s.Info.IsGRPC = true
	peer := s.Info.FilterState.Get("upstream_peer")
	s.Info.FilterState.Set("upstream_peer", nil, streaminfo.SharingNone)
	counts := &grpccount.Counts{}
	counts.Request.Store(2)
	s.Info.FilterState.Set(grpccount.Key, counts, streaminfo.SharingNone)
	m := ms.WatchMessages(s)
	s.Info.FilterState.Set("upstream_peer", peer, streaminfo.SharingNone)
	ms.Request(s, s.NewResponse(), m)
	out := dump(t, reg)
	ls, v := labelSet(t, out, "istio_request_messages_total")
	check(t, ls, waypointPeers)
	if v != "2" || strings.Count(out, "istio_request_messages_total{") != 1 {
		t.Errorf("%s messages in\n%s", v, out)
	}
}

// The reports on a stream that lasts name the workload that the table has for the
// host: the filter that says so has not run when the response begins.
func TestMessagesOfALongStreamNameItsDestination(t *testing.T) {
	for _, tc := range []struct{ config, direction, want string }{
		{`{"reporter":"SERVER_GATEWAY","disableHostHeaderFallback":true,"tcpReportingDuration":"0.02s"}`, "inbound", waypointPeers},
		{`{"disableHostHeaderFallback":true,"tcpReportingDuration":"0.02s"}`, "outbound", ""},
		{`{"disableHostHeaderFallback":true,"tcpReportingDuration":"0.02s"}`, "inbound", ""},
	} {
		ms, reg := compile(t, tc.config, tc.direction)
		ms.workloads = table{netip.MustParseAddr("10.0.0.9"): server}
		s := stream()
		s.Info.IsGRPC = true
		s.Info.FilterState.Set("upstream_peer", nil, streaminfo.SharingNone)
		s.Info.Upstream.Address = netip.MustParseAddrPort("10.0.0.9:80")
		counts := &grpccount.Counts{}
		counts.Request.Store(2)
		s.Info.FilterState.Set(grpccount.Key, counts, streaminfo.SharingNone)
		m := ms.WatchMessages(s)
		for end := time.Now().Add(20 * time.Second); !strings.Contains(dump(t, reg), "istio_request_messages_total{"); time.Sleep(5 * time.Millisecond) {
			if time.Now().After(end) {
				t.Fatal("no periodic report")
			}
		}
		s.Info.FilterState.Set("upstream_peer", server, streaminfo.SharingNone)
		ms.Request(s, s.NewResponse(), m)
		out := dump(t, reg)
		ls, v := labelSet(t, out, "istio_request_messages_total")
		if tc.want != "" {
			check(t, ls, tc.want)
		}
		want := map[string]string{"inbound": "gw-istio", "outbound": "reviews-v1"}[tc.direction]
		if tc.want == "" && ls["destination_workload"] != want || v != "2" {
			t.Errorf("%s %s: %s messages, %v", tc.config, tc.direction, v, ls)
		}
		if p := ls["destination_principal"]; tc.direction == "outbound" && p != server.Identity {
			t.Errorf("destination_principal %q", p)
		}
	}
}

func TestOverrides(t *testing.T) {
	ms, reg := compile(t, `{"reporter":"SERVER_GATEWAY","disableHostHeaderFallback":true,"metrics":[
		{"drop":true,"name":"request_bytes"},
		{"name":"requests_total","dimensions":{"request_host":"request.host","reporter":"'me'","missing":"request.headers['x-absent']","dest_labels":"filter_state.upstream_peer.labels['app']"},"tagsToRemove":["response_flags","source_app"]},
		{"tagsToRemove":["source_version"]}]}`, "inbound")
	s := stream()
	ms.Request(s, s.NewResponse(), nil)
	out := dump(t, reg)
	ls, _ := labelSet(t, out, "istio_requests_total")
	for k, want := range map[string]string{"request_host": "reviews:9080", "reporter": "me", "missing": "unknown", "dest_labels": "rev"} {
		if ls[k] != want {
			t.Errorf("%s = %q, want %q", k, ls[k], want)
		}
	}
	for _, gone := range []string{"response_flags", "source_app", "source_version"} {
		if _, ok := ls[gone]; ok {
			t.Errorf("%s is still there", gone)
		}
	}
	if strings.Contains(out, "istio_request_bytes") {
		t.Error("a dropped metric is reported")
	}
	ls, _ = labelSet(t, out, "istio_response_bytes_count")
	if _, ok := ls["source_version"]; ok || ls["source_app"] != "client" || ls["request_host"] != "" {
		t.Errorf("%v", ls)
	}
}

func TestHostHeaderFallback(t *testing.T) {
	for config, want := range map[string]string{`{"reporter":"SERVER_GATEWAY"}`: "reviews:9080", `{"reporter":"SERVER_GATEWAY","disableHostHeaderFallback":true}`: "unknown"} {
		ms, reg := compile(t, config, "inbound")
		s := stream()
		s.Info.Upstream = streaminfo.Upstream{}
		ms.Request(s, s.NewResponse(), nil)
		if ls, _ := labelSet(t, dump(t, reg), "istio_requests_total"); ls["destination_service"] != want {
			t.Errorf("%s: %q", config, ls["destination_service"])
		}
	}
}

type table map[netip.Addr]*streaminfo.Peer

func (w table) Peer(a netip.Addr) *streaminfo.Peer { return w[a] }

func TestConnection(t *testing.T) {
	ms, reg := compile(t, `{"reporter":"SERVER_GATEWAY","disableHostHeaderFallback":true}`, "inbound")
	ms.workloads = table{netip.MustParseAddr("10.0.0.2"): server}
	info := &stream().Info
	info.ResponseCode, info.WireBytesReceived, info.WireBytesSent = 0, 0, 0
	info.FilterState.Set("upstream_peer", nil, streaminfo.SharingNone)
	info.Upstream.Address = netip.MustParseAddrPort("10.0.0.2:80")
	c := ms.NewConnection()
	info.BytesReceived = 10
	c.Report(info, false)
	info.BytesReceived, info.BytesSent = 15, 7
	c.Report(info, false)
	c.Report(info, true)
	out := dump(t, reg)
	for name, want := range map[string]string{"istio_tcp_connections_opened_total": "1", "istio_tcp_connections_closed_total": "1", "istio_tcp_received_bytes_total": "15", "istio_tcp_sent_bytes_total": "7"} {
		ls, v := labelSet(t, out, name)
		check(t, ls, waypointPeers+"request_protocol=tcp response_flags=- connection_security_policy=mutual_tls")
		if v != want {
			t.Errorf("%s = %s, want %s", name, v, want)
		}
	}
}

func TestDifferentOutcomesAreDifferentSeries(t *testing.T) {
	ms, reg := compile(t, `{"reporter":"SERVER_GATEWAY","disableHostHeaderFallback":true}`, "inbound")
	s := stream()
	for range 3 {
		ms.Request(s, s.NewResponse(), nil)
	}
	s.Info.ResponseCode = 404
	ms.Request(s, s.NewResponse(), nil)
	s.Info.FilterState.Set("downstream_peer", server, streaminfo.SharingNone)
	ms.Request(s, s.NewResponse(), nil)
	if n := strings.Count(dump(t, reg), "\nistio_requests_total{"); n != 3 {
		t.Errorf("%d series, want 3", n)
	}
}

func TestWarmReportDoesNotAllocate(t *testing.T) {
	ms, _ := compile(t, `{"reporter":"SERVER_GATEWAY","disableHostHeaderFallback":true}`, "inbound")
	s := stream()
	r := s.NewResponse()
	for range 10 {
		ms.Request(s, r, nil)
	}
	if a := testing.AllocsPerRun(200, func() { ms.Request(s, r, nil) }); a != 0 {
		t.Errorf("%v allocations", a)
	}
}

func BenchmarkRequest(b *testing.B) {
	ms, _ := compile(b, `{"reporter":"SERVER_GATEWAY","disableHostHeaderFallback":true}`, "inbound")
	s := stream()
	r := s.NewResponse()
	b.ReportAllocs()
	for b.Loop() {
		ms.Request(s, r, nil)
	}
}

// FuzzDecode: both forms of a configuration give the same, what is no message is
// refused, and what is accepted counts a request.
func FuzzDecode(f *testing.F) {
	f.Add([]byte(`{"reporter":"SERVER_GATEWAY","metrics":[{"name":"requests_total","dimensions":{"a":"request.host"},"tagsToRemove":["reporter"]}]}`), true)
	f.Fuzz(func(t *testing.T, b []byte, isJSON bool) {
		c, err := decodetest.Forms(t, filters.Any{TypeURL: TypeURL, JSON: isJSON, Value: b}, func(a filters.Any, d *filters.Decoding) (filters.Config, error) { return Decode(a, d) })
		if err != nil {
			return
		}
		ms := New(&filters.Env{Stats: (&stats.Registry{}).Scope("")}, c.(*Config))
		s := stream()
		ms.Request(s, s.NewResponse(), nil)
	})
}
