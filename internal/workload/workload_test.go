package workload

import (
	"encoding/json"
	"fmt"
	"net/netip"
	"os"
	"strings"
	"sync"
	"testing"

	"google.golang.org/protobuf/encoding/protojson"
	"google.golang.org/protobuf/proto"

	"github.com/fairlead-mesh/fairlead/internal/streaminfo"
	"github.com/fairlead-mesh/fairlead/internal/sweep"
	"github.com/fairlead-mesh/fairlead/internal/workload/authzpb"
	"github.com/fairlead-mesh/fairlead/internal/workload/workloadpb"
)

// load reads a dump of istiod's: a list of names and resources.
func load(t testing.TB, file string, m func() proto.Message) map[string][]byte {
	t.Helper()
	b, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	var list []struct {
		Name     string
		Resource json.RawMessage
	}
	if err := json.Unmarshal(b, &list); err != nil {
		t.Fatal(err)
	}
	out := map[string][]byte{}
	for _, e := range list {
		msg := m()
		if err := protojson.Unmarshal(e.Resource, msg); err != nil {
			t.Fatalf("%s: %v", e.Name, err)
		}
		if out[e.Name], err = proto.Marshal(msg); err != nil {
			t.Fatal(err)
		}
	}
	return out
}

func TestKnowsThePeersThatIstiodDescribes(t *testing.T) {
	var tab Table
	all := load(t, "testdata/workloads.json", func() proto.Message { return &workloadpb.Workload{} })
	if len(all) != 3 {
		t.Fatalf("%d workloads in the dump, want 3", len(all))
	}
	var cs []Change
	for n, b := range all {
		r, err := DecodeRecord(b)
		if err != nil {
			t.Fatal(err)
		}
		cs = append(cs, Change{n, r})
	}
	tab.Update(cs)
	p := tab.Peer(netip.MustParseAddr("::ffff:10.244.1.11"))
	if p == nil {
		t.Fatal("10.244.1.11 is unknown")
	}
	want := streaminfo.Peer{
		Namespace: "app", Workload: "reviews-v1-aaa", WorkloadType: "pod", CanonicalName: "reviews", CanonicalRevision: "v1",
		AppName: "reviews", AppVersion: "v1", ClusterID: "Kubernetes", InstanceName: "reviews-v1-aaa",
		Identity: "spiffe://cluster.local/ns/app/sa/reviews", Region: "r1", Zone: "z1", DenseID: p.DenseID,
	}
	if !samePeer(p, &want) || p.DenseID == 0 {
		t.Errorf("peer = %+v", p)
	}
	if tab.Peer(netip.MustParseAddr("10.0.0.1")) != nil || tab.Peer(netip.Addr{}) != nil || tab.Len() != 3 {
		t.Error("an unknown address has an owner")
	}
}

func record(t testing.TB, w *workloadpb.Workload) *Record {
	t.Helper()
	b, err := proto.Marshal(w)
	if err != nil {
		t.Fatal(err)
	}
	r, err := DecodeRecord(b)
	if err != nil {
		t.Fatal(err)
	}
	return r
}

func TestFillsInDefaults(t *testing.T) {
	p := record(t, &workloadpb.Workload{Uid: "u", TrustDomain: "td"}).Peer
	if p.Identity != "spiffe://td/ns/default/sa/default" || p.CanonicalRevision != "latest" || p.ClusterID != "Kubernetes" || p.WorkloadType != "deployment" {
		t.Errorf("peer = %+v", p)
	}
	if p := record(t, &workloadpb.Workload{Uid: "u"}).Peer; p.Identity != "spiffe://cluster.local/ns/default/sa/default" {
		t.Errorf("identity = %s", p.Identity)
	}
}

func TestTheBestClaimOfAnAddressWins(t *testing.T) {
	ip := []byte{10, 0, 0, 1}
	a := netip.MustParseAddr("10.0.0.1")
	wl := func(uid string, hbone bool, mode workloadpb.NetworkMode) *Record {
		w := &workloadpb.Workload{Uid: uid, Name: uid, Addresses: [][]byte{ip}, NetworkMode: mode}
		if hbone {
			w.TunnelProtocol = workloadpb.TunnelProtocol_HBONE
		}
		return record(t, w)
	}
	all := []Change{
		{"se", wl("c/se", true, 0)},
		{"pod", wl("c//Pod/ns/p", false, 0)},
		{"hbone", wl("c//Pod/ns/h", true, 0)},
		{"hbone2", wl("c//Pod/ns/i", true, 0)},
		{"host", wl("c//Pod/ns/a", true, workloadpb.NetworkMode_HOST_NETWORK)},
	}
	for range 20 {
		var tab Table
		for i := len(all) - 1; i > 0; i-- {
			j := int(dense.Add(7)) % (i + 1)
			all[i], all[j] = all[j], all[i]
		}
		tab.Update(all)
		for _, step := range []struct{ remove, want string }{
			{"", "c//Pod/ns/h"}, {"hbone", "c//Pod/ns/i"}, {"hbone2", "c//Pod/ns/p"}, {"host", "c//Pod/ns/p"}, {"pod", "c/se"}, {"se", ""},
		} {
			if step.remove != "" {
				tab.Update([]Change{{step.remove, nil}})
			}
			got := ""
			if p := tab.Peer(a); p != nil {
				got = p.InstanceName
			}
			if got != step.want {
				t.Fatalf("after removing %q the owner is %q, want %q", step.remove, got, step.want)
			}
		}
		if tab.Len() != 0 || len(tab.owner)+len(tab.claims) != 0 {
			t.Fatal("something is left")
		}
	}
}

func TestAnUpdateThatChangesNothingKeepsThePeer(t *testing.T) {
	var tab Table
	w := &workloadpb.Workload{Uid: "u", Name: "n", Addresses: [][]byte{{10, 0, 0, 1}}}
	tab.Update([]Change{{"u", record(t, w)}})
	old := tab.Peer(netip.MustParseAddr("10.0.0.1"))
	w.Addresses, w.Status = [][]byte{{10, 0, 0, 2}}, workloadpb.WorkloadStatus_UNHEALTHY
	tab.Update([]Change{{"u", record(t, w)}, {"unknown", nil}})
	if tab.Peer(netip.MustParseAddr("10.0.0.2")) != old || tab.Peer(netip.MustParseAddr("10.0.0.1")) != nil {
		t.Error("the peer was replaced, or the old address is still known")
	}
	w.CanonicalRevision = "v2"
	tab.Update([]Change{{"u", record(t, w)}})
	if p := tab.Peer(netip.MustParseAddr("10.0.0.2")); p == old || p.CanonicalRevision != "v2" || p.DenseID == old.DenseID {
		t.Errorf("peer = %+v", p)
	}
}

func TestRefusesWhatIsNoWorkload(t *testing.T) {
	for name, w := range map[string]*workloadpb.Workload{
		"no uid":         {},
		"short address":  {Uid: "u", Addresses: [][]byte{{1, 2, 3}}},
		"unknown tunnel": {Uid: "u", TunnelProtocol: 9},
		"empty gateway":  {Uid: "u", Waypoint: &workloadpb.GatewayAddress{}},
	} {
		b, _ := proto.Marshal(w)
		if _, err := DecodeWorkload(b); err == nil {
			t.Errorf("%s: no error", name)
		}
	}
	if _, err := DecodeWorkload([]byte{0xff}); err == nil {
		t.Error("garbage: no error")
	}
}

func TestDecodesAllAddressesOfIstiod(t *testing.T) {
	all := load(t, "testdata/addresses.json", func() proto.Message { return &workloadpb.Address{} })
	var ws, ss, waypoints, vips int
	for n, b := range all {
		w, s, err := DecodeAddress(b)
		if err != nil {
			t.Fatalf("%s: %v", n, err)
		}
		switch {
		case w != nil:
			ws++
			if w.UID != n {
				t.Errorf("workload %q is called %q", w.UID, n)
			}
		case s != nil:
			ss++
			if s.Key() != n {
				t.Errorf("service %q is called %q", s.Key(), n)
			}
			vips += len(s.VIPs)
			if s.Waypoint != nil {
				waypoints++
			}
		}
	}
	if ws != 14 || ss != 11 || vips == 0 || waypoints == 0 {
		t.Errorf("%d workloads, %d services, %d VIPs, %d with waypoint", ws, ss, vips, waypoints)
	}
}

func TestDecodesServices(t *testing.T) {
	b, _ := proto.Marshal(&workloadpb.Address{Type: &workloadpb.Address_Service{Service: &workloadpb.Service{
		Name: "n", Namespace: "ns", Hostname: "h", Visibility: workloadpb.Service_NAMESPACE,
		Addresses: []*workloadpb.NetworkAddress{{Network: "n1", Address: []byte{10, 0, 0, 0}, Length: proto.Uint32(8)}, {Address: make([]byte, 16)}},
		Ports:     []*workloadpb.Port{{ServicePort: 80, TargetPort: 8080, AppProtocol: workloadpb.AppProtocol_HTTP2}},
		LoadBalancing: &workloadpb.LoadBalancing{
			Mode: workloadpb.LoadBalancing_FAILOVER, RoutingPreference: []workloadpb.LoadBalancing_Scope{workloadpb.LoadBalancing_NETWORK, workloadpb.LoadBalancing_REGION},
		},
		WeightedWaypoints: []*workloadpb.WeightedWaypoint{{Weight: 3, Destination: &workloadpb.GatewayAddress{
			HboneMtlsPort: 15008, Destination: &workloadpb.GatewayAddress_Hostname{Hostname: &workloadpb.NamespacedHostname{Namespace: "ns", Hostname: "w"}},
		}}},
	}}})
	_, s, err := DecodeAddress(b)
	if err != nil {
		t.Fatal(err)
	}
	if got := fmt.Sprint(s.VIPs, s.Ports, s.Mode, s.Preference, s.NamespaceOnly, s.WeightedWaypoints[0].Weight, s.WeightedWaypoints[0].Hostname); got != "[{n1 10.0.0.0/8} { ::/128}] [{80 8080 http2}] 2 [6 1] true 3w" { //nolint:staticcheck // numbers, not text
		t.Error(got)
	}
}

func TestABrokenPolicyFailsClosed(t *testing.T) {
	broken := &authzpb.Match{SourceIps: []*authzpb.Address{{Address: []byte{1}}}}
	good := &authzpb.Match{Principals: []*authzpb.StringMatch{{MatchType: &authzpb.StringMatch_Prefix{Prefix: "a/"}}}}
	rules := []*authzpb.Group{
		{Rules: []*authzpb.Rules{{Matches: []*authzpb.Match{good}}}},
		{Rules: []*authzpb.Rules{{Matches: []*authzpb.Match{good}}, {Matches: []*authzpb.Match{broken}}}},
	}
	decode := func(a authzpb.Action) *Policy {
		b, _ := proto.Marshal(&authzpb.Authorization{Name: "n", Namespace: "ns", Action: a, Groups: rules, Scope: authzpb.Scope_WORKLOAD_SELECTOR})
		p, err := DecodePolicy(b)
		if err != nil {
			t.Fatal(err)
		}
		return p
	}
	if p := decode(authzpb.Action_ALLOW); len(p.Rules) != 1 || len(p.Broken) != 1 || p.Deny || p.Key() != "ns/n" || p.Scope != PolicySelector {
		t.Errorf("ALLOW: %+v", p)
	}
	p := decode(authzpb.Action_DENY)
	if len(p.Rules) != 2 || !p.Rules[1][1][0].Always || p.Rules[1][1][0].Empty() || p.Rules[0][0][0].Always || len(p.Broken) != 1 {
		t.Errorf("DENY: %+v", p)
	}
	if m := p.Rules[0][0][0].Principals[0]; !m.Match("a/b") || m.Match("b") {
		t.Errorf("match = %+v", m)
	}
	b, _ := proto.Marshal(&authzpb.Authorization{Action: 7})
	if _, err := DecodePolicy(b); err == nil || !strings.Contains(err.Error(), "action") {
		t.Errorf("unknown action: %v", err)
	}
}

// FuzzDecode: an address is a workload or a service, and one that is added to
// the table and removed leaves nothing.
func FuzzDecode(f *testing.F) {
	for _, b := range load(f, "testdata/addresses.json", func() proto.Message { return &workloadpb.Address{} }) {
		f.Add(b)
	}
	f.Fuzz(sweep.Around(f, func(t *testing.T, b []byte) {
		if w, s, err := DecodeAddress(b); err == nil && (w == nil) == (s == nil) {
			t.Error("neither or both")
		}
		if r, err := DecodeRecord(b); err == nil {
			sweep.Accepted()
			var tab Table
			tab.Update([]Change{{"x", r}})
			tab.Update([]Change{{"x", nil}})
			if len(tab.owner) != 0 {
				t.Error("something is left")
			}
		}
		_, _ = DecodePolicy(b)
	}))
}

func TestLookupsDoNotAllocateAndMayRunDuringUpdates(t *testing.T) {
	var tab Table
	var cs []Change
	for i := range 1000 {
		cs = append(cs, Change{fmt.Sprint(i), record(t, &workloadpb.Workload{Uid: fmt.Sprint(i), Addresses: [][]byte{{10, 0, byte(i >> 8), byte(i)}}})})
	}
	tab.Update(cs)
	a := netip.MustParseAddr("10.0.1.7")
	if n := testing.AllocsPerRun(100, func() { _ = tab.Peer(a) }); n != 0 {
		t.Errorf("%v allocations", n)
	}
	var wg sync.WaitGroup
	for range 4 {
		wg.Go(func() {
			for range 1000 {
				if tab.Peer(a) == nil {
					t.Error("a stable workload vanished")
					return
				}
			}
		})
	}
	for i := range 50 {
		c := cs[i]
		tab.Update([]Change{{c.Name, nil}})
		tab.Update([]Change{c})
	}
	wg.Wait()
}

func BenchmarkUpdateOneOf50000(b *testing.B) {
	var tab Table
	var cs []Change
	for i := range 50000 {
		cs = append(cs, Change{fmt.Sprint(i), record(b, &workloadpb.Workload{Uid: fmt.Sprint(i), Addresses: [][]byte{{10, byte(i >> 16), byte(i >> 8), byte(i)}}})})
	}
	tab.Update(cs)
	b.ReportAllocs()
	for i := 0; b.Loop(); i++ {
		c := cs[i%len(cs)]
		tab.Update([]Change{{c.Name, nil}, c})
	}
}

func BenchmarkPeer(b *testing.B) {
	var tab Table
	tab.Update([]Change{{"u", record(b, &workloadpb.Workload{Uid: "u", Addresses: [][]byte{{10, 0, 0, 1}}})}})
	a := netip.MustParseAddr("10.0.0.1")
	b.ReportAllocs()
	for b.Loop() {
		_ = tab.Peer(a)
	}
}
