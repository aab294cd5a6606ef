package transport_test

import (
	"net/netip"
	"testing"
	"time"

	"github.com/fairlead-mesh/fairlead/internal/conntest"
	"github.com/fairlead-mesh/fairlead/internal/message"
	"github.com/fairlead-mesh/fairlead/internal/netio"
	"github.com/fairlead-mesh/fairlead/proxy/transport"
	"github.com/fairlead-mesh/fairlead/proxy/transport/h1"
	"github.com/fairlead-mesh/fairlead/proxy/transport/h2"
)

// echo answers with the request's body.
type echo struct{}

func (echo) ServeStream(s transport.ServerStream) {
	var h message.Header
	s.ReadHeaders(&h)
	h.Reset()
	h.Add(message.Status, "200")
	if s.WriteHeaders(&h, false) != nil {
		return
	}
	b := s.Body()
	for {
		p, last, err := b.Next()
		if err != nil || s.WriteData(p, last) != nil || last {
			return
		}
	}
}

func (echo) ProtocolError(int, string) {}

// A client's connection that breaks, at whichever step, says once that it has ended,
// has no stream then, and is given back.
func TestAClientConnectionThatBreaksEndsOnce(t *testing.T) {
	type server interface{ Serve(done func()) }
	for name, kind := range map[string]struct {
		client func(netio.Conn, *transport.ClientConfig) transport.ClientConn
		server func(netio.Conn, *transport.ServerConfig) server
	}{
		"h1": {h1.NewClient, func(c netio.Conn, cfg *transport.ServerConfig) server { return h1.NewServer(c, cfg, echo{}) }},
		"h2": {func(c netio.Conn, cfg *transport.ClientConfig) transport.ClientConn {
			cc, err := h2.NewClient(c, cfg)
			if err != nil {
				t.Fatal(err)
			}
			return cc
		}, func(c netio.Conn, cfg *transport.ServerConfig) server { return h2.NewServer(c, cfg, echo{}) }},
	} {
		t.Run(name, func(t *testing.T) {
			conntest.EachStep(t, func(t *testing.T, n int) (broke bool) {
				a, b := netio.Pipe(netip.AddrPort{}, netip.AddrPort{})
				c, tells := conntest.Break(a, n)
				served := make(chan struct{})
				go kind.server(b, &transport.ServerConfig{}).Serve(func() { close(served) })
				closed := make(chan error, 2)
				cc := kind.client(c, &transport.ClientConfig{OnClose: func(_ transport.ClientConn, err error) { closed <- err }})
				for range 3 {
					if !exchange(cc) {
						break
					}
				}
				if n := cc.Active(); n != 0 {
					t.Errorf("step %d: %d streams", n, n)
				}
				cc.Drain()
				<-cc.Done()
				<-closed
				<-served
				if !tells.Ended() {
					t.Errorf("step %d: the connection is kept", n)
				}
				if cc.Available() != 0 || cc.Active() != 0 {
					t.Errorf("step %d: %d places, %d streams", n, cc.Available(), cc.Active())
				}
				select {
				case <-closed:
					t.Errorf("step %d: it ends twice", n)
				case <-time.After(time.Millisecond):
				}
				return tells.Broke()
			})
		})
	}
}

// exchange reports whether a stream could be had.
func exchange(cc transport.ClientConn) bool {
	cs, err := cc.NewStream()
	if err != nil {
		return false
	}
	defer cs.Release()
	var h message.Header
	for _, f := range [][2]string{{message.Method, "POST"}, {message.Scheme, "http"}, {message.Authority, "a"}, {message.Path, "/"}} {
		h.Add(f[0], f[1])
	}
	if cs.WriteHeaders(&h, false) == nil && cs.WriteData([]byte("hel"), false) == nil {
		_ = cs.WriteData([]byte("lo"), true)
	}
	if _, end, err := cs.ReadHeaders(&h); err != nil || end {
		return true
	}
	b := cs.Body()
	for last := false; err == nil && !last; {
		_, last, err = b.Next()
	}
	return true
}
