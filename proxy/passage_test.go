package proxy_test

import (
	"bufio"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/fairlead-mesh/fairlead/internal/netio"
)

// hcmListener has a route for everything to a cluster.
func hcmListener(name string, port int, cluster, more string) string {
	return fmt.Sprintf(`
  - name: %s
    address: {socket_address: {address: 127.0.0.1, port_value: %d}}
    filter_chains:
    - filters:
      - name: envoy.filters.network.http_connection_manager
        typed_config:
          "@type": type.googleapis.com/envoy.extensions.filters.network.http_connection_manager.v3.HttpConnectionManager
          stat_prefix: %[1]s
          route_config: {virtual_hosts: [{name: all, domains: ["*"], routes: [{match: {prefix: /}, route: {cluster: %[3]s, timeout: 0s}}]}]}
          http_filters: [{name: router, typed_config: {"@type": type.googleapis.com/envoy.extensions.filters.http.router.v3.Router}}]
          %[4]s
`, name, port, cluster, more)
}

// httpCluster has one endpoint that is spoken to as protocol says.
func httpCluster(name, port, protocol string) string {
	return fmt.Sprintf(`
  - name: %s
    type: STATIC
    load_assignment: {cluster_name: %[1]s, endpoints: [{lb_endpoints: [{endpoint: {address: {socket_address: {address: 127.0.0.1, port_value: %[2]s}}}}]}]}
    typed_extension_protocol_options:
      envoy.extensions.upstreams.http.v3.HttpProtocolOptions:
        "@type": type.googleapis.com/envoy.extensions.upstreams.http.v3.HttpProtocolOptions
        explicit_http_config: {%[3]s}
`, name, port, protocol)
}

func urlPort(url string) string { return url[strings.LastIndex(url, ":")+1:] }

// h2cServer serves HTTP/1.1 and HTTP/2 in clear text.
func h2cServer(t *testing.T, h http.HandlerFunc) string {
	t.Helper()
	s := httptest.NewUnstartedServer(h)
	s.Config.Protocols = new(http.Protocols)
	s.Config.Protocols.SetHTTP1(true)
	s.Config.Protocols.SetUnencryptedHTTP2(true)
	s.Start()
	t.Cleanup(s.Close)
	return urlPort(s.URL)
}

// h2cClient speaks HTTP/2 in clear text only.
func h2cClient(t *testing.T) *http.Client {
	t.Helper()
	tr := &http.Transport{Protocols: new(http.Protocols)}
	tr.Protocols.SetUnencryptedHTTP2(true)
	t.Cleanup(tr.CloseIdleConnections)
	return &http.Client{Transport: tr, Timeout: 20 * time.Second}
}

// TestTrailersCrossHTTP1BetweenTwoHTTP2Hops sends a request through two
// listeners with HTTP/1.1 between them.
func TestTrailersCrossHTTP1BetweenTwoHTTP2Hops(t *testing.T) {
	origin := h2cServer(t, func(w http.ResponseWriter, r *http.Request) {
		w.Header().Set("Trailer", "X-Sum")
		b, err := io.ReadAll(r.Body)
		if err != nil {
			t.Error(err)
		}
		w.Header().Set("X-Sum", r.Trailer.Get("X-Request-Sum"))
		fmt.Fprintf(w, "%s %s", r.Proto, b)
		_ = http.NewResponseController(w).Flush() // no content-length
	})
	a, b := freePort(t), freePort(t)
	startProxy(t, "static_resources:\n  listeners:"+
		hcmListener("a", a, "b", "")+hcmListener("b", b, "o", "http_protocol_options: {enable_trailers: true}")+"  clusters:"+
		httpCluster("b", fmt.Sprint(b), "http_protocol_options: {enable_trailers: true}")+httpCluster("o", origin, "http2_protocol_options: {}"), nil)
	req, err := http.NewRequest(http.MethodPost, fmt.Sprintf("http://127.0.0.1:%d/x", a), io.NopCloser(strings.NewReader("body")))
	if err != nil {
		t.Fatal(err)
	}
	req.Trailer = http.Header{"X-Request-Sum": {"42"}}
	resp, err := h2cClient(t).Do(req)
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	body, err := io.ReadAll(resp.Body)
	if err != nil || string(body) != "HTTP/2.0 body" || resp.ProtoMajor != 2 || resp.Trailer.Get("X-Sum") != "42" {
		t.Errorf("%s %q %v, %v", resp.Proto, body, resp.Trailer, err)
	}
}

// maxHeld is more than what a proxy and the kernel buffer between two peers of
// which one doesn't read: sockets on loopback hold a few MiB each.
const maxHeld = 24 << 20

// TestAPeerThatDoesNotReadHoldsBackTheOther lets each end send without limit to
// another that doesn't read: it is stopped, on all pairs of protocols.
func TestAPeerThatDoesNotReadHoldsBackTheOther(t *testing.T) {
	var sent atomic.Int64
	quit := make(chan struct{})
	origin := h2cServer(t, func(w http.ResponseWriter, r *http.Request) {
		if r.URL.Path == "/upload" {
			<-quit // HTTP/1.1 servers notice no end before they have read the body
			return
		}
		for buf := make([]byte, 64<<10); ; {
			n, err := w.Write(buf)
			if sent.Add(int64(n)); err != nil {
				return
			}
		}
	})
	t.Cleanup(func() { close(quit) })
	one, two := freePort(t), freePort(t)
	startProxy(t, "static_resources:\n  listeners:"+hcmListener("one", one, "one", "")+hcmListener("two", two, "two", "")+"  clusters:"+
		httpCluster("one", origin, "http_protocol_options: {}")+httpCluster("two", origin, "http2_protocol_options: {}"), nil)
	for upstream, port := range map[string]int{"HTTP/1.1": one, "HTTP/2": two} {
		for downstream, cl := range map[string]*http.Client{"HTTP/1.1": {Transport: &http.Transport{DisableKeepAlives: true}}, "HTTP/2": h2cClient(t)} {
			url := fmt.Sprintf("http://127.0.0.1:%d", port)
			t.Run(downstream+" from "+upstream, func(t *testing.T) {
				sent.Store(0)
				resp, err := cl.Get(url + "/download")
				if err != nil {
					t.Fatal(err)
				}
				stalls(t, &sent)
				_ = resp.Body.Close()
			})
			t.Run(downstream+" to "+upstream, func(t *testing.T) {
				sent.Store(0)
				r, w := io.Pipe()
				req, err := http.NewRequest(http.MethodPost, url+"/upload", r)
				if err != nil {
					t.Fatal(err)
				}
				ended := make(chan struct{})
				go func() {
					defer close(ended)
					for buf := make([]byte, 64<<10); ; {
						n, err := w.Write(buf)
						if sent.Add(int64(n)); err != nil {
							return
						}
					}
				}()
				go func() {
					if resp, err := cl.Do(req.WithContext(t.Context())); err == nil {
						_ = resp.Body.Close()
					}
				}()
				stalls(t, &sent)
				_ = r.Close()
				<-ended
			})
		}
	}
}

// stalls waits until sent stops growing, below maxHeld.
func stalls(t *testing.T, sent *atomic.Int64) {
	t.Helper()
	last := int64(-1)
	within(t, "a stop", func() bool {
		now := sent.Load()
		if now > maxHeld {
			t.Fatalf("%d bytes are held for a peer that does not read", now)
		}
		still := now == last && now > 0
		last = now
		time.Sleep(100 * time.Millisecond)
		return still
	})
	t.Logf("stopped after %d KiB", last>>10)
}

// TestATunnelHalfClosesBothWays passes a TCP connection through HBONE and
// tcp_proxy; each end in turn ends its direction first.
func TestATunnelHalfClosesBothWays(t *testing.T) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	first := make(chan string, 1) // who ends first
	go func() {
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			tc, ok := c.(*net.TCPConn)
			if !ok {
				return
			}
			if <-first == "origin" {
				_, _ = io.WriteString(tc, "origin's all")
				_ = tc.CloseWrite()
			}
			b, err := io.ReadAll(tc)
			if err != nil {
				t.Error(err)
			}
			_, _ = fmt.Fprintf(tc, "after %s", b) // fails if the origin has ended
			first <- string(b)
			_ = tc.Close()
		}
	}()
	ca, src := devCA(t)
	port := freePort(t)
	doc := fmt.Sprintf(waypointYAML, port, urlPort(l.Addr().String()))
	startProxy(t, strings.Replace(doc, "  clusters:\n", `    default_filter_chain:
      filters:
      - name: tcp
        typed_config: {"@type": type.googleapis.com/envoy.extensions.filters.network.tcp_proxy.v3.TcpProxy, stat_prefix: tcp, cluster: app}
  clusters:
`, 1), src)

	c, cl := tunnel(t, ca, clientID, port, "10.1.2.3:9000")
	defer cl.Close(netio.ErrClosed)
	first <- "client"
	if _, err := io.WriteString(c, "client's all"); err != nil {
		t.Fatal(err)
	}
	if err := c.CloseWrite(); err != nil {
		t.Fatal(err)
	}
	if b, err := io.ReadAll(bufio.NewReader(c)); err != nil || string(b) != "after client's all" {
		t.Errorf("client first: got %q, %v", b, err)
	}
	if got := <-first; got != "client's all" {
		t.Errorf("the origin got %q", got)
	}
	_ = c.Close()

	c = openStream(t, cl, "10.1.2.3:9000")
	first <- "origin"
	if b, err := io.ReadAll(bufio.NewReader(c)); err != nil || string(b) != "origin's all" {
		t.Errorf("origin first: got %q, %v", b, err)
	}
	if _, err := io.WriteString(c, "later"); err != nil {
		t.Fatal(err)
	}
	if err := c.CloseWrite(); err != nil {
		t.Fatal(err)
	}
	if got := <-first; got != "later" {
		t.Errorf("the origin got %q", got)
	}
	_ = c.Close()
}
