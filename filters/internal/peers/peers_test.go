package peers

import (
	"fmt"
	"net/netip"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/google/go-cmp/cmp/cmpopts"

	"github.com/fairlead-mesh/fairlead/filters"
	"github.com/fairlead-mesh/fairlead/internal/streaminfo"
	"github.com/fairlead-mesh/fairlead/internal/sweep"
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

// naiveBaggage reads what W3C Baggage says of a workload: the last member with a
// key wins, only printable ASCII counts, the first 64 members are read.
func naiveBaggage(s string) map[string]string {
	keys := map[string]string{
		"k8s.namespace.name": "ns", "k8s.cluster.name": "cluster", "service.name": "service", "service.version": "version", "app.name": "app", "app.version": "appversion",
		"k8s.instance.name": "instance", "cloud.region": "region", "cloud.availability_zone": "zone",
		"k8s.deployment.name": "deployment", "k8s.pod.name": "pod", "k8s.cronjob.name": "cronjob", "k8s.job.name": "job",
	}
	out := map[string]string{}
	for i, m := range strings.Split(s, ",") {
		if i >= maxMembers {
			break
		}
		k, v, ok := strings.Cut(strings.Split(m, ";")[0], "=")
		k, v = strings.TrimSpace(k), strings.TrimSpace(v)
		what, known := keys[k]
		if !ok || !known || strings.IndexFunc(v, func(r rune) bool { return r < '!' || r > '~' }) >= 0 {
			continue
		}
		switch what {
		case "deployment", "pod", "cronjob", "job":
			out["workload"], out["type"] = v, what
		default:
			out[what] = v
		}
	}
	if len(out) == 0 {
		return nil
	}
	for _, twin := range [][2]string{{"service", "app"}, {"version", "appversion"}} {
		for _, t := range [][2]string{twin, {twin[1], twin[0]}} {
			if out[t[0]] == "" {
				out[t[0]] = out[t[1]]
			}
		}
	}
	return out
}

func same(p *streaminfo.Peer, m map[string]string) bool {
	return p.Namespace == m["ns"] && p.ClusterID == m["cluster"] && p.CanonicalName == m["service"] && p.CanonicalRevision == m["version"] && p.AppName == m["app"] && p.AppVersion == m["appversion"] &&
		p.InstanceName == m["instance"] && p.Region == m["region"] && p.Zone == m["zone"] && p.Workload == m["workload"] && p.WorkloadType == m["type"]
}

// FuzzBaggage: a naive reader of W3C Baggage finds the same workload, and what is
// written about it is read as the same again, but for values with a "=".
func FuzzBaggage(f *testing.F) {
	f.Add("service.name=a,k8s.pod.name=b")
	f.Add(" app.name = x ;p=1,cloud.region=r=s,k8s.job.name=,k8s.namespace.name=\u00fc,=,,")
	f.Add(Baggage(&streaminfo.Peer{Workload: "w", WorkloadType: "deployment", CanonicalName: "c", AppName: "a", Zone: "z"}))
	f.Fuzz(sweep.Around(f, func(t *testing.T, s string) {
		p, want := parseBaggage(s), naiveBaggage(s)
		if (p == nil) != (want == nil) {
			t.Fatalf("%q: %+v, naively %v", s, p, want)
		}
		if p == nil {
			return
		}
		sweep.Accepted()
		if !same(p, want) {
			t.Fatalf("%q: %+v, naively %v", s, p, want)
		}
		for _, v := range want {
			if strings.Contains(v, "=") {
				return
			}
		}
		q := parseBaggage(Baggage(p))
		if q == nil {
			q = &streaminfo.Peer{}
		}
		if q.WorkloadType == "" || q.Workload == "" {
			q.Workload, q.WorkloadType, p.Workload, p.WorkloadType = "", "", "", ""
		}
		if d := cmp.Diff(p, q, ignoreID); d != "" {
			t.Fatalf("%q: %s", s, d)
		}
	}))
}

// FuzzExchange: metadata that is read and written is read as the same again, of
// the workload types known, and what is written is base64 of a Struct.
func FuzzExchange(f *testing.F) {
	f.Add(Exchange(&streaminfo.Peer{Workload: "w", WorkloadType: "deployment", CanonicalName: "c", Labels: map[string]string{"x": "y"}}))
	f.Add("AAAA")
	f.Fuzz(func(t *testing.T, s string) {
		p := parseExchange(s, []string{"x"})
		if p == nil {
			return
		}
		out := Exchange(p)
		q := parseExchange(out, []string{"x"})
		if q == nil {
			t.Fatalf("%q: %+v is written as %q", s, p, out)
		}
		if strings.ContainsAny(p.Workload+p.Namespace, "/") {
			p.WorkloadType, q.WorkloadType = "", ""
		}
		if d := cmp.Diff(p, q, ignoreID); d != "" {
			t.Fatalf("%q: %s", s, d)
		}
	})
}
