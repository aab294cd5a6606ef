package xdstest

import (
	"context"
	"strings"
	"testing"
	"time"

	corev3pb "github.com/envoyproxy/go-control-plane/envoy/config/core/v3"
	discoveryv3pb "github.com/envoyproxy/go-control-plane/envoy/service/discovery/v3"
	"go.uber.org/goleak"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/grpc/status"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

type peer struct {
	t *testing.T
	discoveryv3pb.AggregatedDiscoveryService_DeltaAggregatedResourcesClient
}

func dial(t *testing.T, s *Server) *peer {
	t.Helper()
	c, err := grpc.NewClient(s.Addr(), grpc.WithTransportCredentials(insecure.NewCredentials()))
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithTimeout(t.Context(), 10*time.Second)
	t.Cleanup(func() { cancel(); _ = c.Close() })
	st, err := discoveryv3pb.NewAggregatedDiscoveryServiceClient(c).DeltaAggregatedResources(ctx)
	if err != nil {
		t.Fatal(err)
	}
	return &peer{t, st}
}

func (p *peer) ask(r *discoveryv3pb.DeltaDiscoveryRequest) {
	p.t.Helper()
	if r.Node == nil {
		r.Node = &corev3pb.Node{Id: "n"}
	}
	if err := p.Send(r); err != nil {
		p.t.Fatal(err)
	}
}

// got renders the next response: "+name@version -name".
func (p *peer) got() string {
	p.t.Helper()
	r, err := p.Recv()
	if err != nil {
		return status.Code(err).String()
	}
	var out []string
	for _, x := range r.GetResources() {
		out = append(out, "+"+x.GetName()+"@"+x.GetVersion())
	}
	for _, n := range r.GetRemovedResources() {
		out = append(out, "-"+n)
	}
	return strings.Join(out, " ")
}

func TestServesTheDeltaProtocol(t *testing.T) {
	s := New(t, Options{})
	s.SetBytes(Cluster, "b", "1", nil)
	s.SetBytes(Cluster, "a", "1", nil)
	s.SetBytes(Endpoints, "a", "1", nil)
	p := dial(t, s)
	p.ask(&discoveryv3pb.DeltaDiscoveryRequest{TypeUrl: Cluster, InitialResourceVersions: map[string]string{"a": "1", "gone": "1"}})
	if got := p.got(); got != "+b@1 -gone" {
		t.Errorf("first answer %q", got)
	}
	p.ask(&discoveryv3pb.DeltaDiscoveryRequest{TypeUrl: Endpoints, ResourceNamesSubscribe: []string{"a", "missing"}})
	if got := p.got(); got != "+a@1" {
		t.Errorf("named answer %q", got)
	}
	// Neither a second subscription nor an ACK is answered; a change is.
	p.ask(&discoveryv3pb.DeltaDiscoveryRequest{TypeUrl: Endpoints, ResourceNamesSubscribe: []string{"a"}})
	p.ask(&discoveryv3pb.DeltaDiscoveryRequest{TypeUrl: Endpoints, ResponseNonce: "x"})
	p.ask(&discoveryv3pb.DeltaDiscoveryRequest{TypeUrl: Endpoints, ResourceNamesUnsubscribe: []string{"a"}})
	if !s.Await(20*time.Second, func(rs []Request) bool { return len(rs) == 5 && rs[3].IsACK() }) {
		t.Fatalf("requests %v", s.Requests())
	}
	s.Update([]Resource{{TypeURL: Cluster, Name: "a", Version: "2"}, {TypeURL: Endpoints, Name: "a", Version: "2"}}, []Key{{Cluster, "b"}})
	if got := p.got(); got != "+a@2 -b" {
		t.Errorf("change %q", got)
	}
	s.Resend(Cluster)
	if got := p.got(); got != "+a@2" {
		t.Errorf("resend %q", got)
	}
	if s.Open() != 1 || s.Streams() != 1 {
		t.Errorf("%d open of %d", s.Open(), s.Streams())
	}
	s.DropStreams(status.Error(codes.Aborted, "x"))
	if got := p.got(); got != "Aborted" {
		t.Errorf("end %q", got)
	}
}

func TestEndsTheStreamAsIstiodDoes(t *testing.T) {
	s := New(t, Options{Types: []string{"acme"}})
	p := dial(t, s)
	p.ask(&discoveryv3pb.DeltaDiscoveryRequest{TypeUrl: "unknown"})
	if got := p.got(); got != "PermissionDenied" {
		t.Errorf("unknown type: %s", got)
	}
	p = dial(t, s)
	p.ask(&discoveryv3pb.DeltaDiscoveryRequest{TypeUrl: Cluster, Node: &corev3pb.Node{}})
	if got := p.got(); got != "InvalidArgument" {
		t.Errorf("no node: %s", got)
	}
	p = dial(t, s)
	p.ask(&discoveryv3pb.DeltaDiscoveryRequest{TypeUrl: "acme"})
	if got := p.got(); got != "" {
		t.Errorf("additional type: %s", got)
	}
}

func TestLoadsResourcesFromYAML(t *testing.T) {
	rs, err := Load([]byte(`
resources:
- "@type": type.googleapis.com/envoy.config.cluster.v3.Cluster
  name: c
  connect_timeout: ${T}
- "@type": type.googleapis.com/envoy.config.endpoint.v3.ClusterLoadAssignment
  cluster_name: e
`), map[string]string{"T": "1s"})
	if err != nil || len(rs) != 2 || rs[0].TypeURL != Cluster || rs[0].Name != "c" || rs[1].Name != "e" || len(rs[0].Value) == 0 {
		t.Errorf("%+v, %v", rs, err)
	}
	for _, bad := range []string{"x", "- {}", "- {'@type': type.googleapis.com/none}", "- {'@type': type.googleapis.com/envoy.config.cluster.v3.Cluster}"} {
		if _, err := Load([]byte(bad), nil); err == nil {
			t.Errorf("%q: no error", bad)
		}
	}
	rs, err = LoadNamed(Cluster, []byte(`[{"name":"n","resource":{"name":"c"}}]`))
	if err != nil || rs[0].Name != "n" || rs[0].TypeURL != Cluster {
		t.Errorf("%+v, %v", rs, err)
	}
}
