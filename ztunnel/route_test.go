package ztunnel

import (
	"errors"
	"net/netip"
	"strings"
	"testing"

	"github.com/fairlead-mesh/fairlead/internal/identity"
)

const settings = `
workload: {namespace: default, name: me, serviceAccount: me}
identity: {devCA: true}
`

const meshYAML = settings + `
policies:
- {name: p, namespace: default, scope: WorkloadSelector, action: Deny, rules: [[[{destinationPorts: [1]}]]]}
services:
- {name: plain, namespace: default, hostname: plain.default.svc.cluster.local, vips: [/10.1.0.1], ports: {80: 8080}}
- {name: hb, namespace: default, hostname: hb.default.svc.cluster.local, vips: [/10.1.0.2], ports: {80: 0, 81: 8081}, subjectAltNames: [spiffe://other/ns/x/sa/y, nonsense]}
- {name: empty, namespace: default, hostname: empty, vips: [/10.1.0.3], ports: {80: 80}}
- {name: pass, namespace: default, hostname: pass, vips: [/10.1.0.4], ports: {80: 80}, loadBalancer: {mode: Passthrough}}
- {name: wped, namespace: default, hostname: wped, vips: [/10.1.0.5], ports: {80: 80}, waypoint: {destination: default/wp, hboneMtlsPort: 15008}}
- {name: lost, namespace: default, hostname: lost, vips: [/10.1.0.6], ports: {80: 80}, waypoint: {destination: default/nowhere}}
- {name: lostip, namespace: default, hostname: lostip, vips: [/10.1.0.7], ports: {80: 80}, waypoint: {destination: /10.99.0.1}, loadBalancer: {mode: Passthrough}}
- {name: wp, namespace: default, hostname: wp, vips: [/10.1.0.8], ports: {15008: 15018}}
- {name: range, namespace: default, hostname: range, cidrVips: [/10.2.0.0/16], vips: [], ports: {80: 8080}}
- {name: hidden, namespace: other, hostname: hidden, vips: [/10.1.0.9], ports: {80: 80}, visibility: Namespace}
- {name: far, namespace: default, hostname: far, vips: [/10.1.0.10], ports: {80: 80}}
- {name: wwp, namespace: default, hostname: wwp, vips: [/10.1.0.11], ports: {80: 80}, weightedWaypoints: [{destination: {destination: /10.0.0.9}, weight: 0}, {destination: {destination: /10.1.0.8}, weight: 3}]}
workloads:
- {name: me, namespace: default, serviceAccount: me, workloadIps: [10.0.0.1], protocol: HBONE, services: {}}
- {name: a, namespace: default, workloadIps: [10.0.0.2], services: {default/plain.default.svc.cluster.local: {}, default/range: {}}}
- {name: b, namespace: default, serviceAccount: b, workloadIps: [10.0.0.3], protocol: HBONE, services: {default/hb.default.svc.cluster.local: {80: 9090}}}
- {name: sick, namespace: default, workloadIps: [10.0.0.4], status: Unhealthy, services: {default/empty: {}}}
- {name: wp, namespace: default, serviceAccount: wp, workloadIps: [10.0.0.9], protocol: HBONE, services: {default/wp: {}}}
- {name: c, namespace: default, workloadIps: [10.0.0.5], protocol: HBONE, waypoint: {destination: /10.0.0.9}, services: {}}
- {name: d, namespace: default, workloadIps: [10.0.0.6], waypoint: {destination: default/nowhere}, services: {}}
- {name: e, namespace: default, workloadIps: [10.0.0.7], protocol: HBONE, waypoint: {destination: /10.0.0.1}, services: {}}
- {name: host, namespace: default, workloadIps: [10.0.0.8], networkMode: HostNetwork, services: {}}
- {name: remote, namespace: default, network: other, workloadIps: [10.5.0.1], protocol: HBONE, services: {default/far: {}}}
- {name: odd, namespace: default, trustDomain: "a/b", workloadIps: [10.0.0.10], protocol: HBONE, services: {}}
`

func parse(t testing.TB, doc string) *Config {
	t.Helper()
	c, err := Parse([]byte(doc))
	if err != nil {
		t.Fatal(err)
	}
	return c
}

func TestTheOutboundTable(t *testing.T) {
	c := parse(t, meshYAML)
	r := &router{m: c.mesh, self: c.mesh.find("default", "me", "me"), illegal: func(p uint16) bool { return p == 15001 }, intn: func(uint64) uint64 { return 0 }}
	const sa = "spiffe://cluster.local/ns/default/sa/"
	for _, tc := range []struct {
		name, dst, want string
		err             error
	}{
		{"OB-1: a call to ourselves is refused", "127.0.0.1:15001", "", errRecursive},
		{"OB-1: another loopback port is not ours", "127.0.0.1:9", "tcp 127.0.0.1:9", nil},
		{"the unspecified address is refused", "0.0.0.0:9", "", errRecursive},
		{"OB-3: an unknown waypoint of a service fails", "10.1.0.6:80", "", errUnknownWaypoint},
		{"OB-3: also by address, and before PASSTHROUGH", "10.1.0.7:80", "", errUnknownWaypoint},
		{"OB-5: a service goes to its waypoint", "10.1.0.5:80", "hbone 10.0.0.9:15018 10.1.0.5:80 " + sa + "wp", nil},
		{"OB-5: weighted waypoints without weight are not used", "10.1.0.11:80", "hbone 10.0.0.9:15018 10.1.0.11:80 " + sa + "wp", nil},
		{"OB-6: PASSTHROUGH keeps the destination", "10.1.0.4:80", "tcp 10.1.0.4:80", nil},
		{"OB-7: no healthy endpoint fails", "10.1.0.3:80", "", errNoHealthy},
		{"OB-7: an unknown port fails", "10.1.0.1:81", "", errNoHealthy},
		{"OB-8: an unknown address is passed through", "192.0.2.1:443", "tcp 192.0.2.1:443", nil},
		{"OB-8: a hidden service is unknown", "10.1.0.9:80", "tcp 10.1.0.9:80", nil},
		{"OB-8: a host network address is unknown", "10.0.0.8:80", "tcp 10.0.0.8:80", nil},
		{"OB-8: an address of another network is unknown", "10.5.0.1:80", "tcp 10.5.0.1:80", nil},
		{"OB-9: an endpoint on another network fails", "10.1.0.10:80", "", errOtherNetwork},
		{"OB-10: a workload goes to its waypoint", "10.0.0.5:80", "hbone 10.0.0.9:15008 10.0.0.5:80 " + sa + "wp", nil},
		{"OB-10: an unknown waypoint of a workload fails", "10.0.0.6:80", "", errUnknownWaypoint},
		{"OB-10: the waypoint itself goes to the workload", "10.0.0.7:80", "hbone 10.0.0.7:15008 10.0.0.7:80 " + sa + "default", nil},
		{"OB-11: a workload with HBONE", "10.0.0.3:80", "hbone 10.0.0.3:15008 10.0.0.3:80 " + sa + "b", nil},
		{"OB-11: a service with a named port and SANs", "10.1.0.2:80", "hbone 10.0.0.3:15008 10.0.0.3:9090 " + sa + "b,spiffe://other/ns/x/sa/y", nil},
		{"OB-11: a service with a target port", "10.1.0.2:81", "hbone 10.0.0.3:15008 10.0.0.3:8081 " + sa + "b,spiffe://other/ns/x/sa/y", nil},
		{"OB-11: a workload without a valid identity fails", "10.0.0.10:80", "", errNoIdentity},
		{"OB-12: a service with plain endpoints", "10.1.0.1:80", "tcp 10.0.0.2:8080", nil},
		{"OB-12: a range of virtual addresses", "10.2.3.4:80", "tcp 10.0.0.2:8080", nil},
		{"OB-12: a plain workload", "10.0.0.2:7", "tcp 10.0.0.2:7", nil},
	} {
		rt, err := r.route(netip.MustParseAddrPort(tc.dst))
		got := ""
		if err == nil {
			if got = "tcp " + rt.addr.String(); rt.tunnel {
				got = "hbone " + rt.addr.String() + " " + rt.authority + " " + strings.Join(rt.expect, ",")
			}
		}
		if !errors.Is(err, tc.err) || got != tc.want {
			t.Errorf("%s: %q, %v; want %q, %v", tc.name, got, err, tc.want, tc.err)
		}
	}
}

func TestLoadBalancing(t *testing.T) {
	const head = settings + `
workloads:
- {name: me, namespace: default, serviceAccount: me, workloadIps: [10.0.0.1], locality: {region: r, zone: z}, services: {}}
- {name: near, namespace: default, workloadIps: [10.0.0.2], locality: {region: r, zone: z}, capacity: 2, services: {default/s: {}}}
- {name: mid, namespace: default, workloadIps: [10.0.0.3], locality: {region: r, zone: y}, services: {default/s: {}}}
- {name: none, namespace: default, workloadIps: [10.0.0.4], capacity: 0, locality: {region: q}, services: {default/s: {}}}
- {name: far, namespace: default, workloadIps: [10.0.0.5], locality: {region: q, zone: z}, services: {default/s: {}}}
services:
- {name: s, namespace: default, hostname: s, vips: [/10.1.0.1], ports: {80: 80}`
	for _, tc := range []struct{ name, lb, want string }{
		{"by capacity", "}", "near near mid far"},
		{"failover keeps the best rank", ", loadBalancer: {mode: Failover, routingPreferences: [Region, Zone]}}", "near near"},
		{"failover stops at the first mismatch", ", loadBalancer: {mode: Failover, routingPreferences: [Region]}}", "near near mid"},
		{"strict needs all", ", loadBalancer: {mode: Strict, routingPreferences: [Region, Zone]}}", "near near"},
		{"strict without a match has nothing", ", loadBalancer: {mode: Strict, routingPreferences: [Region, Subzone, Node, Cluster, Network, Zone]}}", "near near"},
	} {
		c := parse(t, head+tc.lb+"\n")
		r := &router{m: c.mesh, self: c.mesh.find("default", "me", "me")}
		total := uint64(1)
		var got []string
		for i := uint64(0); i < total; i++ {
			r.intn = func(n uint64) uint64 { total = n; return i }
			if e := r.balance(c.mesh.services["default/s"], 80, false); e != nil {
				got = append(got, e.w.Name)
			}
		}
		if g := strings.Join(got, " "); g != tc.want {
			t.Errorf("%s: %s, want %s", tc.name, g, tc.want)
		}
	}
}

func TestTheInboundTable(t *testing.T) {
	c := parse(t, strings.Replace(meshYAML, "name: me, namespace: default, serviceAccount: me, workloadIps: [10.0.0.1], protocol: HBONE, services: {}",
		"name: me, namespace: default, serviceAccount: me, workloadIps: [10.0.0.1], protocol: HBONE, services: {default/hb.default.svc.cluster.local: {80: 9091}}", 1))
	self := c.mesh.find("default", "me", "me")
	illegal := func(p uint16) bool { return p == 15008 }
	strict := &inboundTable{m: c.mesh, self: self, illegal: illegal}
	local := &inboundTable{m: c.mesh, self: self, illegal: illegal, upstream: netip.MustParseAddr("127.0.0.1")}
	for _, tc := range []struct {
		name      string
		t         *inboundTable
		authority string
		want      string
		status    int
	}{
		{"the own address", strict, "10.0.0.1:80", "10.0.0.1:80", 0},
		{"HB-41: no port", strict, "10.0.0.1", "", 400},
		{"HB-41: no host", strict, ":80", "", 400},
		{"HB-41: port zero", strict, "10.0.0.1:0", "", 400},
		{"HB-41: not a port", strict, "10.0.0.1:65536", "", 400},
		{"HB-41: nothing", strict, "", "", 400},
		{"HB-43: another address", strict, "10.0.0.2:80", "", 400},
		{"HB-44: an unknown host", strict, "nobody:80", "", 503},
		{"HB-44: a service of somebody else", strict, "plain.default.svc.cluster.local:80", "", 503},
		{"HB-44: an own port by address", strict, "10.0.0.1:15008", "", 503},
		{"IN-4: an own service", strict, "hb.default.svc.cluster.local:80", "10.0.0.1:9091", 0},
		{"IN-4: a port that it lacks", strict, "hb.default.svc.cluster.local:82", "", 503},
		{"a configured application address", local, "10.0.0.1:80", "127.0.0.1:80", 0},
		{"a configured one is no open relay", local, "127.0.0.1:80", "", 400},
	} {
		got, err := tc.t.target(tc.authority, netip.MustParseAddr("10.0.0.1"))
		if err != nil {
			if s := statusOf(err); s != tc.status {
				t.Errorf("%s: status %d (%v), want %d", tc.name, s, err, tc.status)
			}
			continue
		}
		if got.String() != tc.want || tc.status != 0 {
			t.Errorf("%s: %s, want %q %d", tc.name, got, tc.want, tc.status)
		}
	}
}

func TestPolicies(t *testing.T) {
	peer := identity.ID{TrustDomain: "cluster.local", Namespace: "a", ServiceAccount: "b"}
	const head = settings + "workloads: [{name: me, namespace: default, serviceAccount: me, workloadIps: [10.0.0.1], services: {}, authorizationPolicies: [%]}]\npolicies:\n"
	for _, tc := range []struct {
		name, policies string
		selected       string
		id             identity.ID
		denied         bool
	}{
		{"no policy allows", "  []", "", peer, false},
		{"an allow policy that matches", "- {name: p, namespace: default, scope: Namespace, action: Allow, rules: [[[{principals: [!Exact cluster.local/ns/a/sa/b]}]]]}", "", peer, false},
		{"the map form", "- {name: p, namespace: default, scope: Namespace, action: Allow, rules: [[[{principals: [{exact: spiffe://cluster.local/ns/a/sa/b}]}]]]}", "", peer, false},
		{"an allow policy that does not match", "- {name: p, namespace: default, scope: Namespace, action: Allow, rules: [[[{principals: [!Exact cluster.local/ns/a/sa/c]}]]]}", "", peer, true},
		{"an allow policy without rules denies", "- {name: p, namespace: default, scope: Namespace, action: Allow, rules: []}", "", peer, true},
		{"a rule without clauses matches", "- {name: p, namespace: default, scope: Namespace, action: Deny, rules: [[]]}", "", peer, true},
		{"a policy of another namespace", "- {name: p, namespace: x, scope: Namespace, action: Deny, rules: [[]]}", "", peer, false},
		{"a global policy", "- {name: p, namespace: x, scope: Global, action: Deny, rules: [[]]}", "", peer, true},
		{"a selector policy that is not selected", "- {name: p, namespace: x, scope: WorkloadSelector, action: Deny, rules: [[]]}", "", peer, false},
		{"a selector policy that is", "- {name: p, namespace: x, scope: WorkloadSelector, action: Deny, rules: [[]]}", "x/p", peer, true},
		{"a dry run does nothing", "- {name: p, namespace: x, scope: Global, action: Deny, dryRun: true, rules: [[]]}", "", peer, false},
		{"a dry run of an allow policy does nothing", "- {name: p, namespace: x, scope: Global, action: Allow, dryRun: true, rules: []}", "", peer, false},
		{"deny wins over allow", "- {name: p, namespace: x, scope: Global, action: Allow, rules: [[]]}\n- {name: q, namespace: x, scope: Global, action: Deny, rules: [[[{destinationPorts: [80]}]]]}", "", peer, true},
		{"clauses are ANDed", "- {name: p, namespace: x, scope: Global, action: Deny, rules: [[[{destinationPorts: [80]}], [{destinationPorts: [81]}]]]}", "", peer, false},
		{"matches are ORed", "- {name: p, namespace: x, scope: Global, action: Deny, rules: [[[{destinationPorts: [80]}, {destinationPorts: [81]}]]]}", "", peer, true},
		{"fields are ANDed", "- {name: p, namespace: x, scope: Global, action: Deny, rules: [[[{destinationPorts: [80], sourceIps: [10.9.0.0/16]}]]]}", "", peer, false},
		{"negated", "- {name: p, namespace: x, scope: Global, action: Deny, rules: [[[{notDestinationPorts: [80]}]]]}", "", peer, false},
		{"negated namespaces", "- {name: p, namespace: x, scope: Global, action: Deny, rules: [[[{notNamespaces: [!Exact z]}]]]}", "", peer, true},
		{"a source address", "- {name: p, namespace: x, scope: Global, action: Deny, rules: [[[{sourceIps: [10.0.0.7]}]]]}", "", peer, true},
		{"a destination address", "- {name: p, namespace: x, scope: Global, action: Deny, rules: [[[{destinationIps: [10.0.0.1/32]}]]]}", "", peer, true},
		{"a service account", "- {name: p, namespace: x, scope: Global, action: Deny, rules: [[[{serviceAccounts: [{namespace: a, serviceAccount: b}]}]]]}", "", peer, true},
		{"plaintext has no principal", "- {name: p, namespace: x, scope: Global, action: Deny, rules: [[[{notPrincipals: [!Presence []]}]]]}", "", identity.ID{}, true},
		{"a peer has one", "- {name: p, namespace: x, scope: Global, action: Deny, rules: [[[{notPrincipals: [!Presence []]}]]]}", "", peer, false},
		{"a prefix", "- {name: p, namespace: x, scope: Global, action: Deny, rules: [[[{principals: [!Prefix cluster.local/ns/a/]}]]]}", "", peer, true},
		{"a suffix", "- {name: p, namespace: x, scope: Global, action: Deny, rules: [[[{principals: [!Suffix /sa/b]}]]]}", "", peer, true},
	} {
		c, err := Parse([]byte(strings.Replace(head, "%", tc.selected, 1) + tc.policies + "\n"))
		if err != nil {
			t.Errorf("%s: %v", tc.name, err)
			continue
		}
		err = c.mesh.authorize(c.mesh.find("default", "me", "me"), &flowInfo{source: netip.MustParseAddr("10.0.0.7"), id: tc.id, destination: netip.MustParseAddrPort("10.0.0.1:80")})
		if (err != nil) != tc.denied {
			t.Errorf("%s: %v", tc.name, err)
		}
	}
}
