package proxy_test

import (
	"context"
	"crypto/tls"
	"fmt"
	"io"
	"net"
	"net/http"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"golang.org/x/net/http2"
)

// meter counts what goes over a connection.
type meter struct {
	net.Conn
	in, out *atomic.Int64
}

func (m meter) Read(p []byte) (int, error) {
	n, err := m.Conn.Read(p)
	m.in.Add(int64(n))
	return n, err
}

func (m meter) Write(p []byte) (int, error) {
	n, err := m.Conn.Write(p)
	m.out.Add(int64(n))
	return n, err
}

// TestBytesOfDownstreamConnectionsAreCounted holds the counters of a connection
// manager to what its clients saw: requests, one that is refused by the codec, an
// upgrade, and HTTP/2 with all its frames.
func TestBytesOfDownstreamConnectionsAreCounted(t *testing.T) {
	w, reg := sidecar(t, "a")
	w.res.Clusters["echo"] = plainCluster(t, "echo", tcpOrigin(t, "HTTP/1.1 101 Switching Protocols\r\nconnection: upgrade\r\nupgrade: websocket\r\n\r\n"), "")
	port := freePort(t)
	w.listen("l", port, "", chainYAML("c", "{}", "", `upgrade_configs: [{upgrade_type: websocket}], route_config: {name: r, virtual_hosts: [{name: v, domains: ["*"], routes: [{match: {prefix: /ws}, route: {cluster: echo}}, {match: {prefix: /}, direct_response: {status: 200, body: {inline_string: hello}}}]}]}`))
	w.mustApply()
	var in, out atomic.Int64
	connect := func(ctx context.Context, _, _ string, _ *tls.Config) (net.Conn, error) {
		c, err := (&net.Dialer{}).DialContext(ctx, "tcp", fmt.Sprintf("127.0.0.1:%d", port))
		return meter{c, &in, &out}, err
	}
	raw := func(request string) {
		c, err := connect(t.Context(), "", "", nil)
		if err != nil {
			t.Fatal(err)
		}
		defer c.Close()
		if _, err := io.WriteString(c, request); err != nil {
			t.Fatal(err)
		}
		_, _ = io.Copy(io.Discard, c)
	}
	counted := func(what string) {
		t.Helper()
		within(t, what, func() bool {
			return seriesOf(t, reg, "envoy_http_downstream_cx_rx_bytes_total") == fmt.Sprint(out.Load()) &&
				seriesOf(t, reg, "envoy_http_downstream_cx_tx_bytes_total") == fmt.Sprint(in.Load())
		})
	}
	raw("GET / HTTP/1.1\r\nhost: a\r\n\r\nPOST / HTTP/1.1\r\nhost: a\r\ncontent-length: 5\r\nconnection: close\r\n\r\nhello")
	counted("requests of HTTP/1.1")
	raw("GET / HTTP/9.9\r\n\r\n")
	counted("a request that is none")
	c, err := connect(t.Context(), "", "", nil)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := io.WriteString(c, "GET /ws HTTP/1.1\r\nhost: a\r\nconnection: upgrade\r\nupgrade: websocket\r\n\r\n"+strings.Repeat("x", 1000)); err != nil {
		t.Fatal(err)
	}
	_ = c.SetDeadline(time.Now().Add(10 * time.Second))
	if _, err := io.ReadFull(c, make([]byte, 1000)); err != nil { // a part of the heads and the echo
		t.Fatal(err)
	}
	_ = c.(meter).Conn.(*net.TCPConn).CloseWrite()
	_, _ = io.Copy(io.Discard, c)
	_ = c.Close()
	counted("an upgrade")
	tr := &http2.Transport{AllowHTTP: true, DialTLSContext: connect}
	for range 3 {
		resp, err := (&http.Client{Transport: tr}).Post("http://a/", "text/plain", strings.NewReader(strings.Repeat("x", 100_000)))
		if err != nil {
			t.Fatal(err)
		}
		_, _ = io.Copy(io.Discard, resp.Body)
		_ = resp.Body.Close()
	}
	tr.CloseIdleConnections()
	counted("HTTP/2")
}
