package proxy_test

import (
	"bufio"
	"context"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"golang.org/x/net/http2"

	"github.com/fairlead-mesh/fairlead/filters/builtin"
	"github.com/fairlead-mesh/fairlead/proxy"
)

// hopYAML is how HBONE leaves a waypoint: a cluster whose endpoint is the
// internal listener connect_originate, which tunnels to the pod. %[3]s are
// further listener filters.
const hopYAML = `
static_resources:
  listeners:
  - name: edge
    address: {socket_address: {address: 127.0.0.1, port_value: %[1]d}}
    filter_chains:
    - filters:
      - name: envoy.filters.network.http_connection_manager
        typed_config:
          "@type": type.googleapis.com/envoy.extensions.filters.network.http_connection_manager.v3.HttpConnectionManager
          stat_prefix: edge
          access_log:
          - name: envoy.access_loggers.file
            typed_config:
              "@type": type.googleapis.com/envoy.extensions.access_loggers.file.v3.FileAccessLog
              path: %[4]s
              log_format: {text_format_source: {inline_string: "edge %%REQ(:PATH)%% %%RESPONSE_CODE%% %%RESPONSE_FLAGS%% %%RESPONSE_CODE_DETAILS%% %%BYTES_RECEIVED%% %%BYTES_SENT%% %%UPSTREAM_HOST%%\n"}}
          http_filters:
          - name: envoy.filters.http.router
            typed_config: {"@type": type.googleapis.com/envoy.extensions.filters.http.router.v3.Router, suppress_envoy_headers: true}
          route_config:
            virtual_hosts:
            - name: all
              domains: ["*"]
              routes:
              - match: {prefix: /slow}
                route: {cluster: pod, timeout: 0.2s}
              - match: {prefix: /}
                route: {cluster: pod, timeout: 5s}
  - name: connect_originate
    internal_listener: {}
    listener_filters:
    - name: envoy.filters.listener.original_dst
      typed_config: {"@type": type.googleapis.com/envoy.extensions.filters.listener.original_dst.v3.OriginalDst}
%[3]s
    filter_chains:
    - filters:
      - name: envoy.filters.network.tcp_proxy
        typed_config:
          "@type": type.googleapis.com/envoy.extensions.filters.network.tcp_proxy.v3.TcpProxy
          stat_prefix: connect_originate
          cluster: connect_originate
          idle_timeout: 2s
          %[5]s
          tunneling_config: {hostname: "%%DOWNSTREAM_LOCAL_ADDRESS%%"}
          access_log:
          - name: envoy.access_loggers.file
            typed_config:
              "@type": type.googleapis.com/envoy.extensions.access_loggers.file.v3.FileAccessLog
              path: %[4]s
              log_format: {text_format_source: {inline_string: "hop %%RESPONSE_FLAGS%% %%CONNECTION_TERMINATION_DETAILS%% %%BYTES_RECEIVED%% %%BYTES_SENT%% %%UPSTREAM_CLUSTER%% %%DOWNSTREAM_LOCAL_ADDRESS%%\n"}}
  clusters:
  - name: pod
    type: STATIC
    connect_timeout: 2s
    load_assignment:
      cluster_name: pod
      endpoints:
      - lb_endpoints:
        - endpoint: {address: {envoy_internal_address: {server_listener_name: connect_originate, endpoint_id: "10.1.2.3:9080"}}}
          metadata: {filter_metadata: {envoy.filters.listener.original_dst: {local: "10.1.2.3:9080"}}}
    transport_socket:
      name: internal_upstream
      typed_config:
        "@type": type.googleapis.com/envoy.extensions.transport_sockets.internal_upstream.v3.InternalUpstreamTransport
        passthrough_metadata: [{name: envoy.filters.listener.original_dst, kind: {host: {}}}]
        transport_socket: {name: raw, typed_config: {"@type": type.googleapis.com/envoy.extensions.transport_sockets.raw_buffer.v3.RawBuffer}}
  - name: connect_originate
    type: STATIC
    connect_timeout: 1s
    typed_extension_protocol_options:
      envoy.extensions.upstreams.http.v3.HttpProtocolOptions:
        "@type": type.googleapis.com/envoy.extensions.upstreams.http.v3.HttpProtocolOptions
        explicit_http_config: {http2_protocol_options: {}}
    load_assignment: {cluster_name: connect_originate, endpoints: [{lb_endpoints: [{endpoint: {address: {socket_address: {address: 127.0.0.1, port_value: %[2]d}}}}]}]}
`

// tunnelServer is an HBONE server without TLS, of Go's HTTP/2: it serves
// HTTP/1.1 inside its CONNECT streams.
type tunnelServer struct {
	port    int
	tunnels atomic.Int64
	open    atomic.Int64 // tunnels that have not ended
	status  atomic.Int64 // answer to CONNECT, 0: 200
	baggage string       // of the answer, "" for none
	mu      sync.Mutex
	hosts   []string
	told    []string // baggage of requests
}

func newTunnelServer(t *testing.T) *tunnelServer {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	a, _ := l.Addr().(*net.TCPAddr)
	s := &tunnelServer{port: a.Port}
	var wg sync.WaitGroup
	var mu sync.Mutex
	var conns []net.Conn
	wg.Go(func() {
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			mu.Lock()
			conns = append(conns, c)
			mu.Unlock()
			wg.Go(func() { (&http2.Server{}).ServeConn(c, &http2.ServeConnOpts{Handler: s}) })
		}
	})
	t.Cleanup(func() {
		_ = l.Close()
		mu.Lock()
		for _, c := range conns {
			_ = c.Close()
		}
		mu.Unlock()
		wg.Wait()
	})
	return s
}

// ServeHTTP implements http.Handler.
func (s *tunnelServer) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	s.tunnels.Add(1)
	s.open.Add(1)
	defer s.open.Add(-1)
	s.mu.Lock()
	s.hosts = append(s.hosts, r.Method+" "+r.Host)
	s.told = append(s.told, r.Header.Get("baggage"))
	s.mu.Unlock()
	if code := s.status.Load(); code != 0 {
		w.WriteHeader(int(code))
		return
	}
	rc := http.NewResponseController(w)
	if s.baggage != "" {
		w.Header().Set("baggage", s.baggage)
	}
	w.WriteHeader(http.StatusOK)
	_ = rc.Flush()
	br := bufio.NewReader(r.Body)
	for {
		in, err := http.ReadRequest(br)
		if err != nil {
			return
		}
		body, err := io.ReadAll(in.Body)
		if err != nil {
			return
		}
		switch {
		case in.URL.Path == "/reset":
			panic(http.ErrAbortHandler)
		case in.URL.Path == "/half":
			fmt.Fprintf(w, "HTTP/1.1 200 OK\r\ncontent-length: 100\r\n\r\nhalf")
			return
		case in.URL.Path == "/garbage":
			fmt.Fprintf(w, "what?\r\n\r\n")
		case in.URL.Path == "/close":
			return
		case strings.HasPrefix(in.URL.Path, "/slow"):
			<-r.Context().Done() // longer than anybody waits
			return
		case in.URL.Path == "/big":
			fmt.Fprintf(w, "HTTP/1.1 200 OK\r\ncontent-length: %d\r\n\r\n", 1<<20)
			_, _ = w.Write(make([]byte, 1<<20))
		default:
			fmt.Fprintf(w, "HTTP/1.1 200 OK\r\ncontent-length: %d\r\n\r\n%s", len(body), body)
		}
		_ = rc.Flush()
	}
}

// hopRun sends the same requests through one form of the hop and returns what
// was to be seen from outside. late says that the requests took so long that the
// tunnels' times may have ended some.
func hopRun(t *testing.T, listenerFilters, tcp string) (seen []string, tunnels int64, late bool) {
	srv := newTunnelServer(t)
	port := freePort(t)
	log := filepath.Join(t.TempDir(), "log")
	doc := fmt.Sprintf(hopYAML, port, srv.port, listenerFilters, log, tcp)
	p, err := proxy.FromBootstrap([]byte(doc), proxy.ProcessOptions{Registry: builtin.Registry(), DrainTime: 10 * time.Millisecond})
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() { done <- p.Run(ctx) }()
	tr := &http.Transport{}
	cl := &http.Client{Transport: tr}
	url := fmt.Sprintf("http://127.0.0.1:%d", port)
	waitAccepts(t, port)
	do := func(path string, body int) {
		resp, err := cl.Post(url+path, "text/plain", strings.NewReader(strings.Repeat("x", body)))
		if err != nil {
			seen = append(seen, path+": "+"error")
			return
		}
		defer resp.Body.Close()
		b, err := io.ReadAll(resp.Body)
		text := string(b)
		if len(b) > 200 {
			text = fmt.Sprint(len(b), " bytes")
		}
		seen = append(seen, fmt.Sprintf("%s %d: %d %q body error %t", path, body, resp.StatusCode, text, err != nil))
	}
	idle := func() {
		eventually(t, "the tunnels are closed", func() bool { return srv.open.Load() == 0 })
		time.Sleep(500 * time.Millisecond) // here, too
	}
	began := time.Now()
	for _, path := range []string{"/ok", "/ok", "/big", "/half", "/ok", "/garbage", "/close", "/reset", "/ok", "/slow", "/ok"} {
		do(path, 10)
	}
	do("/ok", 1<<20)
	late = time.Since(began) > 1500*time.Millisecond
	idle() // the idle timeout closes the tunnel
	do("/ok", 3)
	srv.status.Store(503)
	idle()
	do("/ok", 3)
	srv.status.Store(0)
	do("/ok", 3)
	idle()
	tr.CloseIdleConnections()
	cancel()
	if err := <-done; err != nil {
		t.Fatal(err)
	}
	raw, err := os.ReadFile(log)
	if err != nil {
		t.Fatal(err)
	}
	lines := strings.Split(strings.TrimSpace(string(raw)), "\n")
	slices.Sort(lines)
	for _, h := range srv.hosts {
		if h != "CONNECT 10.1.2.3:9080" {
			t.Errorf("the tunnel was asked for %q", h)
		}
	}
	return append(seen, lines...), srv.tunnels.Load(), late
}

func waitAccepts(t *testing.T, port int) {
	t.Helper()
	for range 2000 {
		c, err := net.Dial("tcp", fmt.Sprintf("127.0.0.1:%d", port))
		if err == nil {
			_ = c.Close()
			return
		}
		time.Sleep(10 * time.Millisecond)
	}
	t.Fatal("the listener does not accept")
}

// A listener filter that reads bytes keeps the hop from being fused.
const inspector = `    - name: envoy.filters.listener.tls_inspector
      typed_config: {"@type": type.googleapis.com/envoy.extensions.filters.listener.tls_inspector.v3.TlsInspector}`

func TestTheFusedHopIsSeenAsTheGenericOne(t *testing.T) {
	for name, tcp := range map[string]string{"idle timeout": "", "longest duration": "max_downstream_connection_duration: 2.2s"} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			var fused, generic []string
			var nf, ng int64
			for tries, late := 0, true; late; tries++ {
				if tries == 4 {
					t.Skip("the machine is too busy for the times of this test")
				}
				var lateToo bool
				var wg sync.WaitGroup
				wg.Go(func() { fused, nf, late = hopRun(t, "", tcp) })
				wg.Go(func() { generic, ng, lateToo = hopRun(t, inspector, tcp) })
				wg.Wait()
				late = late || lateToo
			}
			if !slices.Equal(fused, generic) {
				t.Errorf("fused:\n%s\n\ngeneric:\n%s", strings.Join(fused, "\n"), strings.Join(generic, "\n"))
			}
			if nf != ng || nf < 7 {
				t.Errorf("%d tunnels fused, %d generic", nf, ng)
			}
			t.Log(strings.Join(fused, "\n"))
		})
	}
}

func TestIdleConnectionsToUpstreamsDoNotHoldUpTheEnd(t *testing.T) {
	srv := newTunnelServer(t)
	port := freePort(t)
	doc := fmt.Sprintf(strings.Replace(hopYAML, "idle_timeout: 2s", "idle_timeout: 60s", 1), port, srv.port, "", filepath.Join(t.TempDir(), "log"), "")
	p, err := proxy.FromBootstrap([]byte(doc), proxy.ProcessOptions{Registry: builtin.Registry(), DrainTime: 10 * time.Second})
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() { done <- p.Run(ctx) }()
	waitAccepts(t, port)
	tr := &http.Transport{}
	resp, err := (&http.Client{Transport: tr}).Get(fmt.Sprintf("http://127.0.0.1:%d/ok", port))
	if err != nil {
		t.Fatal(err)
	}
	_, _ = io.Copy(io.Discard, resp.Body)
	_ = resp.Body.Close()
	tr.CloseIdleConnections()
	began := time.Now()
	cancel()
	if err := <-done; err != nil {
		t.Error(err)
	}
	if d := time.Since(began); d > 5*time.Second {
		t.Errorf("ended after %v, though no client was connected", d)
	}
}
