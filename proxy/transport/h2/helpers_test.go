package h2

import (
	"io"
	"net"
	"net/netip"
	"sync"
	"testing"
	"time"

	"go.uber.org/goleak"

	"github.com/fairlead-mesh/fairlead/internal/message"
	"github.com/fairlead-mesh/fairlead/internal/netio"
	"github.com/fairlead-mesh/fairlead/proxy/transport"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

var (
	clientAddr = netip.MustParseAddrPort("10.0.0.1:1000")
	serverAddr = netip.MustParseAddrPort("10.0.0.2:2000")
)

// handlerFunc is a transport.Handler that remembers protocol errors.
type handlerFunc struct {
	f  func(transport.ServerStream)
	mu sync.Mutex
	pe []string
}

func (h *handlerFunc) ServeStream(s transport.ServerStream) { h.f(s) }

func (h *handlerFunc) ProtocolError(_ int, details string) {
	h.mu.Lock()
	h.pe = append(h.pe, details)
	h.mu.Unlock()
}

func (h *handlerFunc) errors() []string {
	h.mu.Lock()
	defer h.mu.Unlock()
	return append([]string(nil), h.pe...)
}

// serve runs a server on one end of a pipe and returns the other. The test ends
// when the connection and all its handlers have.
func serve(t testing.TB, cfg *transport.ServerConfig, h transport.Handler) (netio.Conn, *Server) {
	t.Helper()
	a, b := netio.Pipe(clientAddr, serverAddr)
	s := NewServer(b, cfg, h)
	done := make(chan struct{})
	go s.Serve(func() { close(done) })
	t.Cleanup(func() {
		_ = a.Close()
		tm := time.NewTimer(5 * time.Second)
		defer tm.Stop()
		select {
		case <-done:
		case <-tm.C:
			t.Error("the server connection did not end")
		}
	})
	return a, s
}

// dial is serve with our client at the other end.
func dial(t testing.TB, scfg *transport.ServerConfig, ccfg *transport.ClientConfig, f func(transport.ServerStream)) (transport.ClientConn, *Server) {
	t.Helper()
	a, s := serve(t, scfg, &handlerFunc{f: f})
	cc, err := NewClient(a, ccfg)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		cc.Close(nil)
		<-cc.Done()
	})
	return cc, s
}

func header(kv ...string) *message.Header {
	h := new(message.Header)
	for i := 0; i < len(kv); i += 2 {
		h.Add(kv[i], kv[i+1])
	}
	return h
}

func getHead(path string) *message.Header {
	return header(":method", "GET", ":scheme", "http", ":authority", "example.com", ":path", path)
}

func postHead(path string) *message.Header {
	return header(":method", "POST", ":scheme", "http", ":authority", "example.com", ":path", path)
}

func readBody(b message.Body) (string, error) {
	var out []byte
	for {
		p, last, err := b.Next()
		out = append(out, p...)
		if err != nil {
			return string(out), err
		}
		if last {
			return string(out), nil
		}
	}
}

// echo answers with the request's body and an x-path header.
func echo(s transport.ServerStream) {
	var h message.Header
	s.ReadHeaders(&h)
	path := h.Get(":path")
	b := s.Body()
	defer b.Close()
	for first := true; ; first = false {
		p, last, err := b.Next()
		if err != nil {
			s.Reset(transport.LocalReset)
			return
		}
		if first && s.WriteHeaders(header(":status", "200", "x-path", path), false) != nil {
			return
		}
		if last && b.Trailers() != nil {
			if s.WriteData(p, false) == nil {
				_ = s.WriteTrailers(b.Trailers())
			}
			return
		}
		if s.WriteData(p, last) != nil || last {
			return
		}
	}
}

// stdConn makes a netio.Conn a net.Conn for x/net.
type stdConn struct{ netio.Conn }

func (c stdConn) LocalAddr() net.Addr { return net.TCPAddrFromAddrPort(c.Conn.LocalAddr()) }

func (c stdConn) RemoteAddr() net.Addr             { return net.TCPAddrFromAddrPort(c.Conn.RemoteAddr()) }
func (c stdConn) SetDeadline(time.Time) error      { return nil }
func (c stdConn) SetReadDeadline(time.Time) error  { return nil }
func (c stdConn) SetWriteDeadline(time.Time) error { return nil }

var _ io.ReadWriteCloser = stdConn{}
