package websocket

import (
	"bufio"
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"strings"
	"syscall"
	"testing"
	"time"

	"golang.org/x/net/http2"

	"github.com/fairlead-mesh/fairlead/conformance/running"
)

// TestMain starts itself again with RFC 8441 in x/net's server, which reads the
// environment once.
func TestMain(m *testing.M) {
	const on = "http2xconnect=1"
	if !strings.Contains(os.Getenv("GODEBUG"), on) {
		if err := syscall.Exec(os.Args[0], os.Args, append(os.Environ(), "GODEBUG="+on)); err != nil {
			panic(err)
		}
	}
	os.Exit(m.Run())
}

// bootstrap: %[1]d is HTTP/1.1 to HTTP/1.1, %[2]d HTTP/2 to HTTP/1.1, %[3]d HTTP/1.1
// to HTTP/2, %[4]d HTTP/1.1 to the second listener; %[5]d and %[6]d are the origins.
const bootstrap = `
static_resources:
  listeners:
  - name: h1h1
    address: {socket_address: {address: 127.0.0.1, port_value: %[1]d}}
    filter_chains: [{filters: [{name: hcm, typed_config: {"@type": type.googleapis.com/envoy.extensions.filters.network.http_connection_manager.v3.HttpConnectionManager,
      stat_prefix: a, codec_type: HTTP1, upgrade_configs: [{upgrade_type: websocket}],
      route_config: {virtual_hosts: [{name: all, domains: ["*"], routes: [{match: {prefix: /}, route: {cluster: h1, timeout: 0s}}]}]},
      http_filters: &filters [{name: router, typed_config: {"@type": type.googleapis.com/envoy.extensions.filters.http.router.v3.Router}}]}}]}]
  - name: h2h1
    address: {socket_address: {address: 127.0.0.1, port_value: %[2]d}}
    filter_chains: [{filters: [{name: hcm, typed_config: {"@type": type.googleapis.com/envoy.extensions.filters.network.http_connection_manager.v3.HttpConnectionManager,
      stat_prefix: b, codec_type: HTTP2, http2_protocol_options: {allow_connect: true}, upgrade_configs: [{upgrade_type: websocket}],
      route_config: {virtual_hosts: [{name: all, domains: ["*"], routes: [{match: {prefix: /}, route: {cluster: h1, timeout: 0s}}]}]}, http_filters: *filters}}]}]
  - name: h1h2
    address: {socket_address: {address: 127.0.0.1, port_value: %[3]d}}
    filter_chains: [{filters: [{name: hcm, typed_config: {"@type": type.googleapis.com/envoy.extensions.filters.network.http_connection_manager.v3.HttpConnectionManager,
      stat_prefix: c, codec_type: HTTP1, upgrade_configs: [{upgrade_type: websocket}],
      route_config: {virtual_hosts: [{name: all, domains: ["*"], routes: [{match: {prefix: /}, route: {cluster: h2, timeout: 0s}}]}]}, http_filters: *filters}}]}]
  - name: h1h2h1
    address: {socket_address: {address: 127.0.0.1, port_value: %[4]d}}
    filter_chains: [{filters: [{name: hcm, typed_config: {"@type": type.googleapis.com/envoy.extensions.filters.network.http_connection_manager.v3.HttpConnectionManager,
      stat_prefix: d, codec_type: HTTP1, upgrade_configs: [{upgrade_type: websocket}],
      route_config: {virtual_hosts: [{name: all, domains: ["*"], routes: [{match: {prefix: /}, route: {cluster: self, timeout: 0s}}]}]}, http_filters: *filters}}]}]
  clusters:
  - name: h1
    type: STATIC
    load_assignment: {cluster_name: h1, endpoints: [{lb_endpoints: [{endpoint: {address: {socket_address: {address: 127.0.0.1, port_value: %[5]d}}}}]}]}
  - name: h2
    type: STATIC
    typed_extension_protocol_options: &http2 {envoy.extensions.upstreams.http.v3.HttpProtocolOptions: {"@type": type.googleapis.com/envoy.extensions.upstreams.http.v3.HttpProtocolOptions,
      explicit_http_config: {http2_protocol_options: {allow_connect: true}}}}
    load_assignment: {cluster_name: h2, endpoints: [{lb_endpoints: [{endpoint: {address: {socket_address: {address: 127.0.0.1, port_value: %[6]d}}}}]}]}
  - name: self
    type: STATIC
    typed_extension_protocol_options: *http2
    load_assignment: {cluster_name: self, endpoints: [{lb_endpoints: [{endpoint: {address: {socket_address: {address: 127.0.0.1, port_value: %[2]d}}}}]}]}
`

// end is one end of an established WebSocket: bytes only.
type end struct {
	io.Reader
	io.Writer
	finish func() // ends this direction, if the transport can
	close  func()
	head   http.Header // of the other end's handshake
}

// handler takes a WebSocket over HTTP/1.1, hijacked, or HTTP/2.
func handler(ends chan<- *end) http.HandlerFunc {
	return func(w http.ResponseWriter, r *http.Request) {
		done := make(chan struct{})
		e := &end{head: r.Header, finish: func() {}}
		ext := r.Header.Get("Sec-Websocket-Extensions")
		if r.ProtoMajor == 2 {
			if r.Method != http.MethodConnect || r.Header.Get(":protocol") != "websocket" {
				http.Error(w, "no WebSocket: "+r.Method, http.StatusBadRequest)
				return
			}
			c := http.NewResponseController(w)
			if ext != "" {
				w.Header().Set("Sec-Websocket-Extensions", ext)
			}
			w.WriteHeader(http.StatusOK)
			_ = c.Flush()
			e.Reader, e.Writer = r.Body, flushing{w, c}
			e.close = func() { close(done) }
			ends <- e
			<-done
			return
		}
		c, rw, err := http.NewResponseController(w).Hijack()
		if err != nil {
			http.Error(w, err.Error(), http.StatusInternalServerError)
			return
		}
		_ = c.SetDeadline(time.Time{})
		more := ""
		if ext != "" {
			more = "Sec-WebSocket-Extensions: " + ext + "\r\n"
		}
		_, _ = fmt.Fprintf(c, "HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\nUpgrade: websocket\r\nSec-WebSocket-Accept: s3pPLMBiTxaQ9kYGzzhZRbK+xOo=\r\n%s\r\n", more)
		e.Reader, e.Writer = rw.Reader, c
		e.finish = func() { _ = c.(*net.TCPConn).CloseWrite() }
		e.close = func() { _ = c.Close() }
		ends <- e
	}
}

type flushing struct {
	w io.Writer
	c *http.ResponseController
}

func (f flushing) Write(p []byte) (int, error) {
	n, err := f.w.Write(p)
	return n, errors.Join(err, f.c.Flush())
}

// lab is a Fairlead between clients and two origins.
type lab struct {
	ports [4]int
	ends  chan *end
	h2    *http2.Transport
}

func newLab(t *testing.T) *lab {
	t.Helper()
	l := &lab{ends: make(chan *end, 1)}
	o1, o2 := listen(t), listen(t)
	s := &http.Server{Handler: handler(l.ends), ReadHeaderTimeout: time.Minute}
	go func() { _ = s.Serve(o1) }()
	t.Cleanup(func() { _ = s.Close() })
	go func() {
		for {
			c, err := o2.Accept()
			if err != nil {
				return
			}
			go (&http2.Server{}).ServeConn(c, &http2.ServeConnOpts{Handler: handler(l.ends)})
		}
	}()
	l.start(t, running.Port(o1), running.Port(o2))
	l.h2 = &http2.Transport{AllowHTTP: true, DialTLSContext: func(ctx context.Context, network, addr string, _ *tls.Config) (net.Conn, error) {
		return (&net.Dialer{}).DialContext(ctx, network, addr)
	}}
	t.Cleanup(l.h2.CloseIdleConnections)
	return l
}

// start runs Fairlead in front of the two origins.
func (l *lab) start(t *testing.T, h1, h2 int) {
	t.Helper()
	for i := range l.ports {
		l.ports[i] = running.FreePort(t)
	}
	running.Start(t, fmt.Sprintf(bootstrap, l.ports[0], l.ports[1], l.ports[2], l.ports[3], h1, h2), l.ports[3])
}

func listen(t *testing.T) net.Listener {
	t.Helper()
	x, err := net.Listen("tcp", running.Address(0))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = x.Close() })
	return x
}

// ways are how a WebSocket goes through, in the order of the ports.
var ways = []string{"h1 to h1", "h2 to h1", "h1 to h2", "h1 to h2 to h1"}

// open makes a WebSocket; extensions may be empty.
func (l *lab) open(t *testing.T, way int, extensions string) (client, server *end) {
	t.Helper()
	if way == 1 {
		client = l.open2(t, extensions)
	} else {
		client = l.open1(t, way, extensions)
	}
	select {
	case server = <-l.ends:
	case <-time.After(10 * time.Second):
		t.Fatal("no WebSocket reached the origin")
	}
	t.Cleanup(func() { client.close(); server.close() })
	return client, server
}

func (l *lab) open1(t *testing.T, way int, extensions string) *end {
	t.Helper()
	c, err := net.Dial("tcp", running.Address(l.ports[way]))
	if err != nil {
		t.Fatal(err)
	}
	_ = c.SetDeadline(time.Now().Add(time.Minute))
	more := ""
	if extensions != "" {
		more = "Sec-WebSocket-Extensions: " + extensions + "\r\n"
	}
	_, _ = fmt.Fprintf(c, "GET /chat HTTP/1.1\r\nHost: a\r\nConnection: Upgrade\r\nUpgrade: websocket\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\nSec-WebSocket-Version: 13\r\n%s\r\n", more)
	br := bufio.NewReader(c)
	resp, err := http.ReadResponse(br, &http.Request{Method: http.MethodGet})
	if err != nil || resp.StatusCode != http.StatusSwitchingProtocols {
		t.Fatalf("the handshake got %v, %v", resp, err)
	}
	return &end{Reader: br, Writer: c, head: resp.Header, finish: func() { _ = c.(*net.TCPConn).CloseWrite() }, close: func() { _ = c.Close() }}
}

func (l *lab) open2(t *testing.T, extensions string) *end {
	t.Helper()
	r, w := io.Pipe()
	req, err := http.NewRequestWithContext(t.Context(), http.MethodConnect, "http://"+running.Address(l.ports[1])+"/chat", r)
	if err != nil {
		t.Fatal(err)
	}
	req.Header.Set(":protocol", "websocket")
	req.Header.Set("Sec-Websocket-Version", "13")
	if extensions != "" {
		req.Header.Set("Sec-Websocket-Extensions", extensions)
	}
	resp, err := l.h2.RoundTrip(req)
	if err != nil || resp.StatusCode != http.StatusOK {
		t.Fatalf("extended CONNECT got %v, %v", resp, err)
	}
	return &end{Reader: resp.Body, Writer: w, head: resp.Header, finish: func() { _ = w.Close() }, close: func() { _ = w.Close(); _ = resp.Body.Close() }}
}
