package abuse

import (
	"fmt"
	"io"
	"net"
	"net/http"
	"sync/atomic"
	"testing"
	"time"

	"golang.org/x/net/http2"

	"github.com/fairlead-mesh/fairlead/conformance/running"
)

// stuckOrigin sends without end to /down and does not read what comes to /up; it
// counts its requests; /hello is answered.
func stuckOrigin(t *testing.T) (port int, asked *atomic.Int64) {
	t.Helper()
	asked = &atomic.Int64{}
	quit := make(chan struct{})
	chunk := make([]byte, 32<<10)
	s := &http.Server{ReadHeaderTimeout: time.Minute, Handler: http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if r.URL.Path == "/hello" {
			return
		}
		asked.Add(1)
		if r.URL.Path == "/up" {
			<-quit
			return
		}
		for {
			if _, err := w.Write(chunk); err != nil {
				return
			}
		}
	})}
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	go func() { _ = s.Serve(l) }()
	t.Cleanup(func() { close(quit); _ = s.Close() })
	return running.Port(l), asked
}

// hold opens connections that ask and then do not read (down), or send as much
// as they may (up).
func hold(t *testing.T, port, conns, streams int, h2, up bool) {
	t.Helper()
	path, method := "/down", "GET"
	if up {
		path, method = "/up", "POST"
	}
	chunk := make([]byte, 16<<10)
	for range conns {
		c, err := net.Dial("tcp", running.Address(port))
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { _ = c.Close() })
		if !h2 {
			head := method + " " + path + " HTTP/1.1\r\nhost: a\r\n"
			if up {
				head += "transfer-encoding: chunked\r\n"
			}
			if _, err := io.WriteString(c, head+"\r\n"); err != nil {
				t.Fatal(err)
			}
			if up {
				go func() {
					for {
						if _, err := fmt.Fprintf(c, "%x\r\n%s\r\n", len(chunk), chunk); err != nil {
							return
						}
					}
				}()
			}
			continue
		}
		b := []byte(http2.ClientPreface)
		b = frame(b, tSettings, 0, 0, setting(4, 1<<30)) // it could send a GiB on each stream
		b = frame(b, tWindowUpdate, 0, 0, u32(1<<30))
		for i := range streams {
			flags := byte(endStream | endHeaders)
			if up {
				flags = endHeaders
			}
			b = frame(b, tHeaders, flags, streamID(i), request(path, ":method", method))
		}
		if _, err := c.Write(b); err != nil {
			t.Fatal(err)
		}
		if up {
			go pour(c, streams, chunk)
		}
	}
}

func streamID(i int) uint32 { return uint32(2*i + 1) } //nolint:gosec // small

// pour sends on all streams what the windows allow: 256 KiB a stream, 1 MiB a
// connection and what is granted later.
func pour(c net.Conn, streams int, chunk []byte) {
	fr := http2.NewFramer(io.Discard, c)
	var conn atomic.Int64
	windows := make([]atomic.Int64, streams)
	conn.Store(65535)
	for i := range windows {
		windows[i].Store(256 << 10)
	}
	go func() {
		for {
			f, err := fr.ReadFrame()
			if err != nil {
				return
			}
			if w, ok := f.(*http2.WindowUpdateFrame); ok {
				if w.StreamID == 0 {
					conn.Add(int64(w.Increment))
				} else if i := int(w.StreamID-1) / 2; i < streams {
					windows[i].Add(int64(w.Increment))
				}
			}
		}
	}()
	for {
		sent := false
		for i := range streams {
			n := int64(len(chunk))
			if conn.Load() < n || windows[i].Load() < n {
				continue
			}
			conn.Add(-n)
			windows[i].Add(-n)
			if _, err := c.Write(frame(nil, tData, 0, streamID(i), chunk)); err != nil {
				return
			}
			sent = true
		}
		if !sent {
			time.Sleep(10 * time.Millisecond)
		}
	}
}

// What stuck peers make the proxy hold is what docs/flow-control.md says.
func TestStuckPeersHoldWhatTheTableSays(t *testing.T) {
	const kib = 1 << 10
	for _, c := range []struct {
		name           string
		conns, streams int
		h2, up         bool
		// bound of a stream and of a connection, in bytes.
		stream, conn int64
	}{
		{"HTTP/1.1 downloads that nobody reads", 200, 1, false, false, 64*kib + 4*kib, 0},
		{"HTTP/1.1 uploads that nobody takes", 200, 1, false, true, 64*kib + 4*kib, 0},
		{"HTTP/2 downloads that nobody reads", 4, 50, true, false, 64*kib + 4*kib, 64 * kib},
		{"HTTP/2 uploads that nobody takes", 4, 50, true, true, 4 * kib, 8 << 20},
	} {
		t.Run(c.name, func(t *testing.T) {
			origin, asked := stuckOrigin(t)
			v := &victim{t: t, h2: running.FreePort(t), h1: running.FreePort(t), admin: running.FreePort(t)}
			v.pid = running.Start(t, fmt.Sprintf(stuckBootstrap, v.h2, v.h1, origin), v.h2)
			port := v.h1
			if c.h2 {
				port = v.h2
			}
			hold(t, port, 1, 1, c.h2, c.up) // the pages of the code come back that starting had given up
			time.Sleep(500 * time.Millisecond)
			_, before := v.usage()
			hold(t, port, c.conns, c.streams, c.h2, c.up)
			n := int64(c.conns * c.streams)
			for end := time.Now().Add(time.Minute); asked.Load() != n+1 && time.Now().Before(end); {
				time.Sleep(10 * time.Millisecond)
			}
			if a := asked.Load(); a != n+1 {
				t.Errorf("%d of %d requests reached the origin", a, n+1)
			}
			var rss, last int64
			for range 100 { // until it grows no more
				time.Sleep(200 * time.Millisecond)
				if _, rss = v.usage(); rss == last {
					break
				}
				last = rss
			}
			// stacks and bookkeeping of a stream with its upstream connection, and the collector's half again
			bound := (n*(c.stream+24*kib)+int64(c.conns)*c.conn)*3/2 + 6<<20
			grown := rss - before
			for end := time.Now().Add(30 * time.Second); grown > bound && time.Now().Before(end); { // the collector may come late
				time.Sleep(200 * time.Millisecond)
				_, rss = v.usage()
				grown = rss - before
			}
			t.Logf("%d streams: %d KiB more, %d KiB a stream; bound %d KiB", n, grown/kib, grown/kib/n, bound/kib)
			if grown > bound {
				t.Errorf("%d KiB more, the table says at most %d", grown/kib, bound/kib)
			}
		})
	}
}

const stuckBootstrap = `
static_resources:
  listeners:
  - name: h2
    address: {socket_address: {address: 127.0.0.1, port_value: %[1]d}}
    filter_chains: [{filters: [{name: hcm, typed_config: {"@type": type.googleapis.com/envoy.extensions.filters.network.http_connection_manager.v3.HttpConnectionManager,
      stat_prefix: h2, codec_type: HTTP2, route_config: &routes {virtual_hosts: [{name: all, domains: ["*"], routes: [{match: {prefix: /}, route: {cluster: origin, timeout: 0s}}]}]},
      http_filters: [{name: router, typed_config: {"@type": type.googleapis.com/envoy.extensions.filters.http.router.v3.Router}}]}}]}]
  - name: h1
    address: {socket_address: {address: 127.0.0.1, port_value: %[2]d}}
    filter_chains: [{filters: [{name: hcm, typed_config: {"@type": type.googleapis.com/envoy.extensions.filters.network.http_connection_manager.v3.HttpConnectionManager,
      stat_prefix: h1, codec_type: HTTP1, route_config: *routes,
      http_filters: [{name: router, typed_config: {"@type": type.googleapis.com/envoy.extensions.filters.http.router.v3.Router}}]}}]}]
  clusters:
  - name: origin
    type: STATIC
    connect_timeout: 60s
    circuit_breakers: {thresholds: [{max_connections: 2000, max_requests: 2000}]}
    load_assignment: {cluster_name: origin, endpoints: [{lb_endpoints: [{endpoint: {address: {socket_address: {address: 127.0.0.1, port_value: %[3]d}}}}]}]}
`
