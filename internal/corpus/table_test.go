package corpus

import (
	"maps"
	"slices"
	"sync/atomic"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/fairlead-mesh/fairlead/internal/netio"
	"github.com/fairlead-mesh/fairlead/proxy/transport"
	"github.com/fairlead-mesh/fairlead/proxy/transport/h2"
)

// opaque chains pass on what is inside a tunnel without a look: HBONE again.
func (w *world) opaque(chain string) bool {
	for _, c := range w.clustersOf(w.t, w.chain(chain)) {
		for _, le := range w.endpoints[c].GetEndpoints() {
			for _, ep := range le.GetLbEndpoints() {
				if ep.GetEndpoint().GetAddress().GetEnvoyInternalAddress().GetServerListenerName() == forwarded {
					return true
				}
			}
		}
	}
	return false
}

// within begins TLS, or HBONE, inside a tunnel.
func (w *world) within(conn netio.Conn, d door, id string) (netio.Conn, error) {
	if d.sni != "" {
		return w.tls(conn, id, d.sni, "acme")
	}
	inner, err := w.tls(conn, id, "", "h2")
	if err != nil {
		return nil, err
	}
	cl, err := h2.NewClient(inner, &transport.ClientConfig{})
	if err != nil {
		return nil, err
	}
	return connect(cl, d.authority, "")
}

// expectation is what a scenario must come to.
type expectation struct {
	chains, routes int
	// unreached are chains and routes that no request can get to, and why.
	unreached map[string]string
	callers   map[string]string
	taken     []*taken
}

// everything lists the chains and routes of the scenario by name.
func (w *world) everything() (chains, routes []string) {
	for _, l := range w.listeners {
		for _, fc := range l.GetFilterChains() {
			chains = append(chains, fc.GetName())
			hcm, _ := terminal(w.t, fc)
			for _, vh := range w.table(hcm).GetVirtualHosts() {
				for _, r := range vh.GetRoutes() {
					routes = append(routes, r.GetName())
				}
			}
		}
	}
	return chains, routes
}

// explainedRequests are asked about at least: how many it takes until each
// weighted cluster was seen is chance. Few of them depend on an
// authorizer outside, which explanations do not ask.
const explainedRequests = 250

func TestTrafficThroughEveryChainAndRouteOfAnIstiod(t *testing.T) {
	var asked, unknown atomic.Int64
	t.Cleanup(func() { // after the scenarios
		t.Logf("%d requests were explained before, %d of them without a verdict", asked.Load(), unknown.Load())
		if !t.Failed() && (asked.Load() < explainedRequests || unknown.Load() > asked.Load()/10) {
			t.Errorf("want %d, at most a tenth without", explainedRequests)
		}
	})
	for _, name := range sortedKeys(expectations) {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			x := expectations[name]
			w := start(t, name, x.taken)
			w.callers = x.callers
			for _, d := range w.proxy.Server().Snapshot().Diagnostics {
				if d.Severity == "error" {
					t.Error(d)
				}
			}
			w.walk()
			chains, routes := w.everything()
			c := w.lines(slices.Concat(chains, routes), x.unreached)
			var missing []string
			for _, n := range chains {
				if !c.chains[n] {
					missing = append(missing, n)
				}
			}
			for _, n := range routes {
				if !c.routes[n] {
					missing = append(missing, n)
				}
			}
			slices.Sort(missing)
			if d := cmp.Diff(sortedKeys(x.unreached), missing); d != "" {
				t.Errorf("without traffic (-want +got):\n%s", d)
			}
			if len(chains) != x.chains || len(routes) != x.routes {
				t.Errorf("%d chains and %d routes, want %d and %d", len(chains), len(routes), x.chains, x.routes)
			}
			for _, k := range x.taken {
				if k.n == 0 {
					t.Errorf("no chain has %s any more (%s)", k.filter, k.why)
				}
			}
			asked.Add(int64(w.asked))
			unknown.Add(int64(w.unknown))
			t.Logf("%d requests, %d chains, %d routes", w.n, len(chains), len(routes))
		})
	}
}

// noWorkloads is why a waypoint of services alone never uses these chains, which
// istiod always sends.
var noWorkloads = map[string]string{
	"direct-http": "no workload has this waypoint", "direct-http/inbound|http|0/0/default": "no workload has this waypoint", "direct-tcp": "no workload has this waypoint",
}

// noRemotes is why chains for double HBONE are of no use in one network.
var noRemotes = map[string]string{"inner_connect_originate#0": "no endpoint is in another network", "outer_connect_originate#0": "no endpoint is in another network"}

// plaintext is the virtual host that answers with a redirect to HTTPS before it
// looks at its route.
var plaintext = map[string]string{"http.8081/classic.example.com:8081/0/": "the listener is plaintext and the virtual host requires TLS"}

func merge(ms ...map[string]string) map[string]string {
	out := map[string]string{}
	for _, m := range ms {
		maps.Copy(out, m)
	}
	return out
}

var expectations = map[string]expectation{
	"waypoint-minimal":       {chains: 7, routes: 3, unreached: merge(noWorkloads, noRemotes)},
	"waypoint-baggage":       {chains: 7, routes: 3, unreached: merge(noWorkloads, noRemotes)},
	"waypoint-layered-authz": {chains: 7, routes: 3, unreached: merge(noWorkloads, noRemotes), callers: map[string]string{"*": "spiffe://cluster.local/ns/app/sa/productpage"}},
	"waypoint-multinetwork":  {chains: 8, routes: 4, unreached: noWorkloads},
	"eastwest":               {chains: 8, routes: 1},
	"egress": {
		chains: 15, routes: 8, unreached: merge(noWorkloads, noRemotes, map[string]string{"connect_originate#0": "no endpoint is in the mesh"}),
		taken: []*taken{
			{"inbound-vip|80|http|*.wild.example.com", "envoy.filters.http.rbac", unsatisfiable, 0},
			{"inbound-vip|443|tcp|httpbin.org", "envoy.filters.network.rbac", denyAll, 0},
			{"inbound-vip|443|tcp|*.wild.example.com", "envoy.filters.network.rbac", unsatisfiable, 0},
		},
	},
	"ingress":              {chains: 26, routes: 28, unreached: plaintext, taken: gateway()},
	"ingress-multinetwork": {chains: 29, routes: 29, unreached: plaintext, taken: gateway()},
	"waypoint-rich": {
		chains: 49, routes: 45, unreached: noRemotes,
		callers: map[string]string{"inbound-vip|80|http|httpbin.org": "spiffe://cluster.local/ns/app/sa/reviews"},
		taken: []*taken{
			{"*", "extensions.istio.io/trafficextension/*", notExecuted, 0},
			{"*", "acme*", notExecuted, 0},
			{"*", "envoy.filters.network.rbac", denyAll, 0},
			{"inbound-vip|9080|http|reviews.app.svc.cluster.local", "envoy.filters.http.jwt_authn", "no token is valid for its keys", 0},
			{"inbound-vip|9080|http|reviews.app.svc.cluster.local", "envoy.filters.http.rbac", unsatisfiable, 0},
		},
	},
}

const (
	notExecuted   = "closes its chain: see TestAFilterThatIsNotExecutedClosesItsChain"
	denyAll       = "lets nothing pass"
	unsatisfiable = "no request satisfies it"
)

func gateway() []*taken {
	return []*taken{{"*", "acme.rego", notExecuted, 0}, {"*", "envoy.filters.network.rbac", denyAll, 0}}
}
