package ztunnel

import (
	"net/netip"
	"strings"
	"testing"
)

const me = "workloads: [{name: me, namespace: default, serviceAccount: me, workloadIps: [10.0.0.1], services: {}}]\n"

func TestWhatIsNotUnderstoodIsRefused(t *testing.T) {
	policy := func(match string) string {
		return settings + me + "policies: [{name: p, namespace: d, scope: Global, action: Deny, rules: [[[" + match + "]]]}]\n"
	}
	for _, tc := range []struct{ name, doc, want string }{
		{"an empty file", "", "empty"},
		{"an unknown setting", settings + me + "polices: []\n", "polices"},
		{"an unknown field of a workload", settings + "workloads: [{name: x}]\n", "name"},
		{"a misspelled match", policy("{destinationPort: [80]}"), "destinationPort"},
		{"a misspelled account", policy("{serviceAccounts: [{namespace: a, serviceAcount: b}]}"), "serviceAcount"},
		{"an empty match", policy("{}"), "empty match"},
		{"a null match", policy("null"), "value is missing"},
		{"a field without value", policy("{destinationPorts: , namespaces: [!Exact a]}"), "value is missing"},
		{"a plain string", policy("{namespaces: [a]}"), "!Exact"},
		{"an unknown kind", policy("{namespaces: [!Regex a]}"), "!Exact"},
		{"a range that is none", policy("{sourceIps: [10.0.0.0/33]}"), "sourceIps"},
		{"a policy without action", settings + me + "policies: [{name: p, namespace: d, scope: Global}]\n", "action"},
		{"an unknown action", settings + me + "policies: [{name: p, namespace: d, scope: Global, action: Audit}]\n", "Audit"},
		{"the same policy twice", settings + me + "policies: [{name: p, namespace: d, scope: Global, action: Deny}, {name: p, namespace: d, scope: Global, action: Deny}]\n", "already"},
		{"a policy that is not there", settings + strings.Replace(me, "services: {}", "services: {}, authorizationPolicies: [a/b]", 1), "a/b"},
		{"a service that is not there", settings + strings.Replace(me, "services: {}", "services: {a/b: {}}", 1), "a/b"},
		{"a second document", settings + me + "---\nx: 1\n", "document"},
		{"an unknown own workload", settings, "not among the workloads"},
		{"no identity", "workload: {namespace: default, name: me, serviceAccount: me}\n" + me, "identity"},
		{"two identities", strings.Replace(settings, "devCA: true", "devCA: true, key: k", 1) + me, "exclude"},
		{"a SOCKS port for everybody", settings + me + "listeners: {socks5: '0.0.0.0:1080'}\n", "loopback"},
		{"a CONNECT port for everybody", settings + me + "listeners: {connect: '0.0.0.0:1080'}\n", "loopback"},
		{"a forward for everybody", settings + me + "listeners: {forward: [{listen: '0.0.0.0:1', destination: 'a:1'}]}\n", "loopback"},
		{"a forward to nowhere", settings + me + "listeners: {forward: [{listen: '127.0.0.1:1', destination: 'a'}]}\n", "destination"},
		{"an application tunnel", settings + strings.Replace(me, "services: {}", "applicationTunnel: {protocol: PROXY}", 1), "applicationTunnel"},
		{"an unknown protocol", settings + strings.Replace(me, "services: {}", "protocol: LEGACY", 1), "LEGACY"},
	} {
		_, err := Parse([]byte(tc.doc))
		if err == nil || !strings.Contains(err.Error(), tc.want) {
			t.Errorf("%s: %v, want %q", tc.name, err, tc.want)
		}
	}
}

// FuzzParse: there is a configuration or an error, and one that is accepted
// opens ports for applications on loopback only.
func FuzzParse(f *testing.F) {
	f.Add([]byte(meshYAML))
	f.Add([]byte(settings + me))
	f.Add([]byte(settings + me + "listeners: {socks5: '127.0.0.1:1080', connect: '[::1]:1', forward: [{listen: '127.0.0.1:1', destination: 'a:1'}]}\n"))
	f.Fuzz(func(t *testing.T, b []byte) {
		c, err := Parse(b)
		if (c == nil) == (err == nil) {
			t.Fatalf("config %v, error %v", c, err)
		}
		if err != nil {
			return
		}
		open := []netip.AddrPort{c.SOCKS5, c.Connect}
		for _, fw := range c.Forwards {
			open = append(open, fw.Listen)
		}
		for _, a := range open {
			if a.IsValid() && !a.Addr().IsLoopback() {
				t.Fatalf("%s: %v is open to everybody", b, a)
			}
		}
		if c.Name == "" || c.mesh == nil {
			t.Fatalf("%s: %+v", b, c)
		}
	})
}

// FuzzSplitAuthority: a host and port that were split and joined are split to
// the same.
func FuzzSplitAuthority(f *testing.F) {
	for _, s := range []string{"a:1", "[::1]:80", "10.0.0.1:65535", "a.b.:080", "::1:1", "[fe80::1%x]:1", ".:1", "a..:1"} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, s string) {
		h, p, err := splitAuthority(s)
		if err != nil {
			return
		}
		h2, p2, err := splitAuthority(joinHost(h, p))
		if err != nil || h2 != h || p2 != p {
			t.Fatalf("%q: %q %d, then %q %d %v", s, h, p, h2, p2, err)
		}
	})
}
