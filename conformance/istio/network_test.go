package istio

import (
	"io"
	"net"
	"net/http"
	"strings"
	"testing"
	"time"
)

// asks sends a line to the database's port; false if the connection was closed and
// the application saw nothing.
func (s *scenario) asks(t *testing.T, c *client, port string) bool {
	t.Helper()
	s.db.reset()
	conn, err := c.dial(t.Context(), "db.app.svc.cluster.local:"+port)
	if err != nil {
		return false
	}
	defer conn.Close()
	_ = conn.SetDeadline(time.Now().Add(10 * time.Second))
	_, _ = io.WriteString(conn, "hello")
	_ = conn.(*net.TCPConn).CloseWrite()
	b, err := io.ReadAll(conn)
	reached := false
	for _, seen := range s.db.streams() {
		reached = reached || seen.Data != ""
	}
	if answered := string(b) == "5 bytes\nhello" && err == nil; answered != reached {
		t.Errorf("answered %q, %v; the application saw the bytes: %t", b, err, reached)
	}
	return reached
}

// unsupported is what the waypoint says that it can't execute.
func unsupported(t *testing.T) string {
	t.Helper()
	return operator(t, "/debug/unsupported")
}

// operator asks the waypoint what operators may.
func operator(t *testing.T, path string) string {
	t.Helper()
	return fetch(t, "http://127.0.0.1:15000"+path)
}

// fetch is what the proxy answers at one of its own ports.
func fetch(t *testing.T, url string) string {
	t.Helper()
	resp, err := http.Get(url)
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	b, err := io.ReadAll(resp.Body)
	if err != nil {
		t.Fatal(err)
	}
	return string(b)
}

func TestNetworkFiltersAttachedByEnvoyFilter(t *testing.T) {
	s := begin(t, "envoyfilter-network")
	if !s.asks(t, s.shop, "5432") {
		t.Error("the principal that the filter allows is closed")
	}
	if s.asks(t, s.stranger, "5432") {
		t.Error("another principal gets through")
	}
	s.event(t, `msg="connection denied"`, "filter=rbac", "source.identity=spiffe://cluster.local/ns/client/sa/stranger", "destination.address=10.96.0.14:5432", "termination_details=rbac_access_denied_matched_policy[none]")
	if s.asks(t, s.shop, "5433") {
		t.Error("a filter that nobody knows lets connections through")
	}
	if d := unsupported(t); !strings.Contains(d, "acme.v1.Unknown") || !strings.Contains(d, "5433") {
		t.Errorf("not diagnosed: %s", d)
	}
}

func TestAPluginForConnectionsIsRefused(t *testing.T) {
	const good = `{policy: {sources: [{inline_string: "package envoy.authz\nallow := true"}]}}`
	for _, c := range []struct {
		name, kind, spec string
		open             bool
	}{
		{"WasmPlugin", "WasmPlugin", `url: "file:///go-native/rego", type: NETWORK, failStrategy: FAIL_CLOSE, pluginConfig: ` + good, false},
		{"WasmPlugin, by default", "WasmPlugin", `url: "file:///go-native/rego", type: NETWORK, pluginConfig: ` + good, false},
		{"WasmPlugin, open", "WasmPlugin", `url: "file:///go-native/rego", type: NETWORK, failStrategy: FAIL_OPEN, pluginConfig: ` + good, true},
		{"TrafficExtension", "TrafficExtension", `wasm: {url: "file:///go-native/rego", type: NETWORK, failStrategy: FAIL_CLOSE, pluginConfig: ` + good + `}`, false},
		{"TrafficExtension, open", "TrafficExtension", `wasm: {url: "file:///go-native/rego", type: NETWORK, failStrategy: FAIL_OPEN, pluginConfig: ` + good + `}`, true},
	} {
		t.Run(c.name, func(t *testing.T) {
			s := begin(t, "plugin-network", "${KIND}", c.kind, "${SPEC}", c.spec)
			if got := s.asks(t, s.shop, "5432"); got != c.open {
				t.Errorf("connections go through: %t, want %t", got, c.open)
			}
			if d := unsupported(t); !strings.Contains(d, "app.subject") || !strings.Contains(d, "network filter") {
				t.Errorf("not diagnosed: %s", d)
			}
			// The plugin's own service only.
			if a := s.shop.get(t, web+"/"); a.Status != 200 {
				t.Errorf("another service: %+v", a)
			}
		})
	}
}
