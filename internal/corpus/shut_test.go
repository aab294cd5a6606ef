package corpus

import (
	"net/http"
	"slices"
	"testing"

	listenerv3pb "github.com/envoyproxy/go-control-plane/envoy/config/listener/v3"
)

// What no chain of a scenario is for gets nowhere.
func TestNothingElseIsLetIn(t *testing.T) {
	n := 0
	for _, name := range sortedKeys(expectations) {
		t.Run(name, func(t *testing.T) {
			w := start(t, name, expectations[name].taken)
			w.callers = expectations[name].callers
			if !slices.ContainsFunc(w.listeners, func(l *listenerv3pb.Listener) bool { return l.GetName() == terminates }) {
				w.otherNames()
				return
			}
			n++
			id := w.caller("*")
			for _, authority := range []string{"10.254.254.254:9080", "nowhere.example:9080", "10.96.1.1:1", "[fd00::1]:9080"} {
				w.refused(door{listener: terminates, authority: authority})
			}
			if got, err := w.ask(id); err != nil || got.status != http.StatusNotFound {
				t.Errorf("a request that is no CONNECT gets %+v, %v", got, err)
			}
			if got, err := w.ask("spiffe://evil.local/ns/app/sa/client"); err == nil {
				t.Errorf("a workload of another trust domain gets %+v", got)
			}
		})
	}
	if n != 7 {
		t.Errorf("%d scenarios end tunnels, want 7", n)
	}
}

// ask sends a plain request to the listener that ends tunnels.
func (w *world) ask(id string) (*result, error) {
	conn, err := w.dial(terminates)
	if err != nil {
		return nil, err
	}
	defer func() { _ = conn.Close() }()
	if conn, err = w.tls(conn, id, "", "h2"); err != nil {
		return nil, err
	}
	return exchangeH2(conn, &request{method: "GET", authority: "10.96.1.1:9080", path: "/"})
}

// otherNames asks every TLS listener of a gateway for a name that it has not.
func (w *world) otherNames() {
	asked := map[string]bool{}
	for _, d := range w.doors(w.t) {
		if d.sni == "" || asked[d.listener] {
			continue
		}
		asked[d.listener] = true
		d.sni = "nowhere.example.org"
		conn, err := w.enter(d, appClient)
		if err != nil {
			continue
		}
		if got, err := exchange(conn, &request{method: "GET", authority: d.sni, path: "/"}); err == nil {
			w.t.Errorf("%v: status %d", d, got.status)
		}
		_ = conn.Close()
	}
	if len(asked) != 6 {
		w.t.Errorf("%d listeners tell names apart, want 6", len(asked))
	}
}
