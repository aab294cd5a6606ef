package routing_test

import (
	"bufio"
	"encoding/json"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"sigs.k8s.io/yaml"

	"github.com/fairlead-mesh/fairlead/internal/message"
)

// TestEnvoyAgreesWithTheCorpus checks the expectations of the corpus against
// the Envoy binary that FAIRLEAD_ENVOY names. Cases with "@random" are left
// out: nobody can tell Envoy its random number.
func TestEnvoyAgreesWithTheCorpus(t *testing.T) {
	bin := os.Getenv("FAIRLEAD_ENVOY")
	if bin == "" {
		t.Skip("FAIRLEAD_ENVOY is not set")
	}
	clusters := []string{"c1", "c2", "c3", "c4"}
	ports := make([]string, len(clusters))
	for i, c := range clusters {
		ports[i] = echo(t, c)
	}
	for _, f := range readCorpus(t) {
		t.Run(f.name, func(t *testing.T) {
			addr := startEnvoy(t, bin, &f, clusters, ports)
			for i := range f.cases {
				c := &f.cases[i]
				if c.random == nil && c.tgt != "-" {
					envoyOutcome(t, addr, c).check(t, c, false)
				}
			}
		})
	}
}

// echo answers with the request's headers as JSON.
func echo(t *testing.T, name string) string {
	t.Helper()
	l, err := (&net.ListenConfig{}).Listen(t.Context(), "tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	srv := &http.Server{ReadHeaderTimeout: time.Minute, Handler: http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		h := [][2]string{{message.Path, r.RequestURI}, {message.Authority, r.Host}, {message.Method, r.Method}}
		for k, vs := range r.Header {
			for _, v := range vs {
				h = append(h, [2]string{strings.ToLower(k), v})
			}
		}
		w.Header().Set("X-Upstream", "yes")
		w.Header().Set("X-Echo-Cluster", name)
		_ = json.NewEncoder(w).Encode(h)
	})}
	go func() { _ = srv.Serve(l) }()
	t.Cleanup(func() { _ = srv.Close() })
	_, port, _ := net.SplitHostPort(l.Addr().String())
	return port
}

const envoyBootstrap = `{"static_resources":{"listeners":[{"name":"l","address":{"socket_address":{"address":"127.0.0.1","port_value":%s}},"filter_chains":[{"filters":[{"name":"hcm","typed_config":{
"@type":"type.googleapis.com/envoy.extensions.filters.network.http_connection_manager.v3.HttpConnectionManager","stat_prefix":"x","route_config":%s,
"http_filters":[{"name":"router","typed_config":{"@type":"type.googleapis.com/envoy.extensions.filters.http.router.v3.Router"}}]}}]}]}],"clusters":[%s]}}`

func startEnvoy(t *testing.T, bin string, f *corpusFile, clusters, ports []string) string {
	t.Helper()
	routes, err := yaml.YAMLToJSON(f.routes)
	if err != nil {
		t.Fatal(err)
	}
	var cs []string
	for i, c := range clusters {
		cs = append(cs, fmt.Sprintf(`{"name":%q,"load_assignment":{"cluster_name":%q,"endpoints":[{"lb_endpoints":[{"endpoint":{"address":{"socket_address":{"address":"127.0.0.1","port_value":%s}}}}]}]}}`, c, c, ports[i]))
	}
	l, err := (&net.ListenConfig{}).Listen(t.Context(), "tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	addr := l.Addr().String()
	_ = l.Close()
	_, port, _ := net.SplitHostPort(addr)
	conf := filepath.Join(t.TempDir(), "envoy.json")
	if err := os.WriteFile(conf, fmt.Appendf(nil, envoyBootstrap, port, routes, strings.Join(cs, ",")), 0o600); err != nil {
		t.Fatal(err)
	}
	cmd := exec.Command(bin, "--use-dynamic-base-id", "-l", "error", "--concurrency", "1", "-c", conf)
	cmd.Stderr = os.Stderr
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = cmd.Process.Kill(); _ = cmd.Wait() })
	for range 200 {
		if c, err := (&net.Dialer{}).DialContext(t.Context(), "tcp", addr); err == nil {
			_ = c.Close()
			return addr
		}
		time.Sleep(50 * time.Millisecond)
	}
	t.Fatal("Envoy doesn't listen")
	return ""
}

func envoyOutcome(t *testing.T, addr string, c *corpusCase) *outcome {
	t.Helper()
	conn, err := (&net.Dialer{}).DialContext(t.Context(), "tcp", addr)
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = conn.Close() }()
	var b strings.Builder
	fmt.Fprintf(&b, "%s %s HTTP/1.1\r\nHost: %s\r\n", c.method, c.tgt, c.authority)
	for _, kv := range c.headers {
		fmt.Fprintf(&b, "%s: %s\r\n", kv[0], kv[1])
	}
	if _, err := io.WriteString(conn, b.String()+"\r\n"); err != nil {
		t.Fatal(err)
	}
	_ = conn.SetDeadline(time.Now().Add(5 * time.Second))
	resp, err := http.ReadResponse(bufio.NewReader(conn), &http.Request{Method: c.method})
	if err != nil {
		t.Fatalf("%v: %v", c, err)
	}
	defer func() { _ = resp.Body.Close() }()
	body, err := io.ReadAll(resp.Body)
	if err != nil {
		t.Fatalf("%v: %v", c, err)
	}
	o := &outcome{status: resp.StatusCode, body: string(body), resp: &message.Header{}, cluster: resp.Header.Get("X-Echo-Cluster")}
	for k, vs := range resp.Header {
		for _, v := range vs {
			o.resp.Add(strings.ToLower(k), v)
		}
	}
	if o.cluster == "" {
		o.local, o.none = true, resp.StatusCode == http.StatusNotFound
		return o
	}
	var hs [][2]string
	if err := json.Unmarshal(body, &hs); err != nil {
		t.Fatalf("%v: %v", c, err)
	}
	o.upstream = &message.Header{}
	for _, kv := range hs {
		o.upstream.Add(kv[0], kv[1])
	}
	return o
}
