package examples

import (
	"crypto/tls"
	"net/http"
	"strings"
	"testing"

	"github.com/fairlead-mesh/fairlead/internal/identity"
)

const reviews = "http://reviews.app.svc.cluster.local:9080"

// TestTheWaypointExample goes all the way: a client's ztunnel, the waypoint, the
// pod's ztunnel, the application.
func TestTheWaypointExample(t *testing.T) {
	w := newWorld(t)
	v1, v2 := w.origin("v1", 11, 9080, ""), w.origin("v2", 12, 9080, "")
	pod := w.ztunnel("waypoint/pod.yaml")
	w.ztunnel("waypoint/client.yaml")
	w.ztunnel("waypoint/stranger.yaml")
	w.proxy("waypoint/waypoint.yaml")
	client, stranger := w.viaZtunnel(3), w.viaZtunnel(4)

	t.Run("nine in ten requests leave by HBONE for v1", func(t *testing.T) {
		const n = 300
		got := map[string]int{}
		for range n {
			status, body := send(t, client, "GET", reviews+"/stars/1", nil)
			if status != 200 {
				t.Fatalf("%d %q", status, body)
			}
			got[body]++
		}
		// 30 are expected; 5 standard deviations are 26.
		if a, b := got["v1 GET /stars/1"], got["v2 GET /stars/1"]; a+b != n || b < 4 || b > 56 {
			t.Errorf("%v", got)
		}
		var metrics strings.Builder
		_ = pod.WritePrometheus(&metrics)
		if m := metrics.String(); !strings.Contains(m, "istio_tcp_connections_opened_total{") || !strings.Contains(m, `source_principal="spiffe://cluster.local/ns/app/sa/waypoint"`) {
			t.Errorf("the pod's ztunnel did not carry the waypoint's traffic:\n%s", m)
		}
		w.logged(`"GET /stars/1 HTTP/1.1" 200 - via_upstream`, ` reviews-v1 `, ` 10.96.0.10:9080 `, " split\n")
		w.logged(`"GET /stars/1 HTTP/1.1" 200 - via_upstream`, `"`+w.ip(12)+`:9080" reviews-v2 `, " split\n")
	})
	v1.take()
	v2.take()

	t.Run("a header chooses the version", func(t *testing.T) {
		for range 20 {
			if status, body := send(t, client, "GET", reviews+"/", nil, "x-version", "v2"); status != 200 || body != "v2 GET /" {
				t.Fatalf("%d %q", status, body)
			}
		}
		if r := v2.take(); len(r) != 20 || r[0].Host != "reviews.app.svc.cluster.local:9080" {
			t.Errorf("the origin saw %d requests", len(r))
		}
	})

	t.Run("policies refuse, and the application sees nothing", func(t *testing.T) {
		for _, c := range []struct {
			name         string
			client       *http.Client
			method, path string
			body         string
			status       int
			reply        string
			log          []string
		}{
			{"RBAC denies a path, however it is written", client, "GET", "/stars/..//%2finternal", "", 403, "RBAC: access denied", []string{`"GET /internal `, "403 - rbac_access_denied_matched_policy[ns[app]-policy[no-internal]-rule[0]]"}},
			{"RBAC allows no other identity", stranger, "GET", "/stars/2", "", 403, "RBAC: access denied", []string{`"GET /stars/2 `, "403 - rbac_access_denied_matched_policy[none]"}},
			{"Rego reads the body", client, "POST", "/stars/3", `{"rating": 11}`, 422, "a rating is a number from 1 to 5\n", []string{`"POST /stars/3 `, "422 UAEX rego_denied{policy}"}},
			{"Rego knows no PUT", client, "PUT", "/stars/4", `{"rating": 1}`, 422, "a rating is a number from 1 to 5\n", []string{`"PUT /stars/4 `, "422 UAEX"}},
		} {
			status, body := send(t, c.client, c.method, reviews+c.path, strings.NewReader(c.body), "content-type", "application/json")
			if status != c.status || body != c.reply {
				t.Errorf("%s: %d %q", c.name, status, body)
			}
			w.logged(c.log...)
		}
		if n := len(v1.take()) + len(v2.take()); n != 0 {
			t.Errorf("%d requests arrived", n)
		}
	})

	t.Run("what Rego allows arrives whole", func(t *testing.T) {
		const body = `{"rating": 5, "text": "splendid"}`
		status, _ := send(t, client, "POST", reviews+"/stars/5", strings.NewReader(body), "content-type", "application/json", "x-version", "v2")
		if r := v2.take(); status != 200 || len(r) != 1 || r[0].body != body {
			t.Errorf("%d, the origin saw %v", status, r)
		}
	})

	t.Run("only mutual TLS 1.3 of the mesh is accepted", func(t *testing.T) {
		other, err := identity.NewDevCA("cluster.local")
		if err != nil {
			t.Fatal(err)
		}
		forged, err := other.Issue(identity.Leaf{URIs: []string{workloads["client"]}})
		if err != nil {
			t.Fatal(err)
		}
		good := w.certificate("client")
		base := func(min, max uint16, certs ...tls.Certificate) *tls.Config {
			return &tls.Config{RootCAs: w.roots(MeshCA), InsecureSkipVerify: true, NextProtos: []string{"h2"}, MinVersion: min, MaxVersion: max, Certificates: certs}
		}
		for _, c := range []struct {
			name   string
			cfg    *tls.Config
			refuse bool
		}{
			{"a client of the mesh", base(tls.VersionTLS13, 0, good), false},
			{"no certificate", base(tls.VersionTLS13, 0), true},
			{"a certificate of another authority", base(tls.VersionTLS13, 0, *forged), true},
			{"TLS 1.2", base(tls.VersionTLS12, tls.VersionTLS12, good), true},
		} {
			if err := refusedTLS(t, w.ip(2)+":15008", c.cfg); (err != nil) != c.refuse {
				t.Errorf("%s: %v", c.name, err)
			}
		}
	})
	w.checkLog()
}
