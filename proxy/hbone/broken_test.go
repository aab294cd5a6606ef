package hbone

import (
	"context"
	"crypto/tls"
	"net/netip"
	"testing"
	"time"

	"github.com/fairlead-mesh/fairlead/internal/conntest"
	"github.com/fairlead-mesh/fairlead/internal/netio"
)

// A connection that breaks, at whichever step and on whichever side, leaves neither
// dialer nor server with a connection, a stream or a tunnel.
func TestAConnectionThatBreaksLeavesNothing(t *testing.T) {
	for _, side := range []string{"dialer", "server"} {
		t.Run(side, func(t *testing.T) {
			conntest.EachStep(t, func(t *testing.T, n int) (broke bool) { return breakAt(t, n, side == "server") })
		})
	}
}

func breakAt(t *testing.T, n int, server bool) (broke bool) {
	tunnels, ended := make(chan struct{}, 10), make(chan struct{}, 10)
	a, b := netio.Pipe(clientAddr, serverAddr)
	ours, theirs := a, b
	var tells *conntest.Conn
	if server {
		theirs, tells = conntest.Break(b, n)
	} else {
		ours, tells = conntest.Break(a, n)
	}
	served := make(chan struct{})
	go func() {
		tc, err := netio.ServerTLS(context.Background(), theirs, pki().server)
		if err != nil {
			close(served)
			return
		}
		NewServer(tc, nil, func(r *Request) {
			if c, err := r.Accept(); err == nil {
				tunnels <- struct{}{}
				netio.JoinAsync(c, loop(), netio.JoinOptions{}, func(uint64, uint64, error) { ended <- struct{}{} })
			}
		}).Serve(func() { close(served) })
	}()
	first := true
	d := NewDialer(Config{
		TLS: func(*Target) *tls.Config { return pki().client },
		Connect: func(context.Context, netip.AddrPort, netio.DialOptions) (netio.Conn, error) {
			if !first {
				return nil, netio.ErrReset // it is tried again
			}
			first = false
			return ours, nil
		},
	})
	for range 2 {
		c, err := d.Dial(t.Context(), target("a:1"), nil)
		if err != nil {
			break
		}
		if _, err := c.Write([]byte("hello")); err == nil {
			_, _ = c.Read(make([]byte, 5))
		}
		_ = c.CloseWrite()
		_, _ = c.Read(make([]byte, 5))
		_ = c.Close()
	}
	d.Close()
	waitFor(t, func() bool { conns, streams := d.Stats(); return conns == 0 && streams == 0 })
	if !tells.Broke() {
		_ = a.Close()
	}
	select {
	case <-served:
	case <-time.After(10 * time.Second):
		t.Errorf("step %d: the server's connection does not end", n)
	}
	for range len(tunnels) {
		select {
		case <-ended:
		case <-time.After(10 * time.Second):
			t.Errorf("step %d: a tunnel does not end", n)
		}
	}
	waitFor(t, tells.Ended)
	return tells.Broke()
}
