package peers

import (
	"fmt"
	"net/netip"
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/google/go-cmp/cmp/cmpopts"

	"github.com/fairlead-mesh/fairlead/filters"
	"github.com/fairlead-mesh/fairlead/internal/streaminfo"
)

var ignoreID = cmpopts.IgnoreFields(streaminfo.Peer{}, "DenseID")

func TestBaggage(t *testing.T) {
	const in = "k8s.deployment.name=reviews-v1,service.name=reviews,service.version=v1,k8s.namespace.name=app,k8s.cluster.name=Kubernetes,k8s.instance.name=reviews-1,cloud.region=r,cloud.availability_zone=z"
	want := &streaminfo.Peer{Workload: "reviews-v1", WorkloadType: "deployment", CanonicalName: "reviews", CanonicalRevision: "v1", AppName: "reviews", AppVersion: "v1", Namespace: "app", ClusterID: "Kubernetes", InstanceName: "reviews-1", Region: "r", Zone: "z"}
	got := FromBaggage(in)
	if d := cmp.Diff(want, got, ignoreID); d != "" {
		t.Error(d)
	}
	if again := FromBaggage(in); again != got || got.DenseID == 0 {
		t.Error("equal baggage must give the same peer")
	}
	if out := Baggage(got); out != in {
		t.Errorf("rendered %q", out)
	}
}

func TestBaggageOfOthers(t *testing.T) {
	for in, want := range map[string]*streaminfo.Peer{
		"":                              nil,
		"userId=alice":                  nil,
		"service.name=a;prop=1, x=y":    {CanonicalName: "a", AppName: "a"},
		"app.name=b,app.version=2":      {CanonicalName: "b", AppName: "b", CanonicalRevision: "2", AppVersion: "2"},
		"k8s.namespace.name=a\x01b":     nil,
		"k8s.namespace.name=n1,=,,;;,a": {Namespace: "n1"},
	} {
		if d := cmp.Diff(want, FromBaggage(in), ignoreID); d != "" {
			t.Errorf("%q: %s", in, d)
		}
	}
}

func TestTheTableOfDescriptionsIsBounded(t *testing.T) {
	for i := range 3 * maxInterned {
		FromBaggage(fmt.Sprintf("service.name=s%d", i))
	}
	if n := len(baggagePeers.m); n > maxInterned {
		t.Errorf("%d entries", n)
	}
}

func TestExchangeRoundTrip(t *testing.T) {
	p := &streaminfo.Peer{Workload: "w", WorkloadType: "deployment", CanonicalName: "c", CanonicalRevision: "r", AppName: "a", AppVersion: "v", Namespace: "n", ClusterID: "k", InstanceName: "i", Labels: map[string]string{"role": "x"}}
	if d := cmp.Diff(p, FromExchange(Exchange(p), []string{"role", "absent"}), ignoreID); d != "" {
		t.Error(d)
	}
	for _, bad := range []string{"", "%%%", "AAAA", "//79"} {
		if got := FromExchange(bad, nil); got != nil && got.Workload != "" {
			t.Errorf("%q: %+v", bad, got)
		}
	}
}

func TestNode(t *testing.T) {
	got := Node(&filters.Node{Namespace: "n", WorkloadName: "wp", ClusterID: "k", Network: "net", Labels: map[string]string{"service.istio.io/canonical-name": "wp", "app": "wp"}, Metadata: map[string]any{"OWNER": "kubernetes://apis/apps/v1/namespaces/n/deployments/wp", "NAME": "wp-1"}})
	want := &streaminfo.Peer{Workload: "wp", WorkloadType: "deployment", Namespace: "n", ClusterID: "k", NetworkID: "net", CanonicalName: "wp", AppName: "wp", InstanceName: "wp-1"}
	if d := cmp.Diff(want, got); d != "" {
		t.Error(d)
	}
}

func TestGatewaysOfOtherNetworksHaveNoWorkload(t *testing.T) {
	md := streaminfo.MetadataFrom(map[string]map[string]any{"istio": {"double_hbone": map[string]any{}}})
	info := &streaminfo.Info{Upstream: streaminfo.Upstream{Address: netip.MustParseAddrPort("10.0.0.1:80"), HostMetadata: &md}}
	if UpstreamAddress(info).IsValid() {
		t.Error("looked up by the gateway's address")
	}
	info.Upstream.HostMetadata = nil
	if !UpstreamAddress(info).IsValid() {
		t.Error("no address")
	}
}

func FuzzDescriptions(f *testing.F) {
	f.Add("service.name=a,k8s.pod.name=b")
	f.Add(Exchange(&streaminfo.Peer{Workload: "w", CanonicalName: "c"}))
	f.Fuzz(func(t *testing.T, s string) {
		if p := parseBaggage(s); p != nil {
			if q := parseBaggage(Baggage(p)); q != nil && q.Namespace != p.Namespace && len(p.Namespace) > 0 && q.Namespace != "" {
				t.Errorf("%q: namespace %q became %q", s, p.Namespace, q.Namespace)
			}
		}
		parseExchange(s, []string{"x"})
	})
}
