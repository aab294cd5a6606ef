package h2

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"testing"
	"time"

	"github.com/fairlead-mesh/fairlead/internal/message"
	"github.com/fairlead-mesh/fairlead/internal/netio"
	"github.com/fairlead-mesh/fairlead/proxy/transport"
)

// connect opens a tunnel.
func connect(t testing.TB, cc transport.ClientConn) netio.Conn {
	t.Helper()
	cs, err := cc.NewStream()
	if err != nil {
		t.Fatal(err)
	}
	if err := cs.WriteHeaders(header(":method", "CONNECT", ":authority", "10.1.2.3:80"), false); err != nil {
		t.Fatal(err)
	}
	_ = cs.Flush() // the peer may have answered and closed already: the answer tells
	var h message.Header
	status, _, err := cs.ReadHeaders(&h)
	if err != nil || status != 200 {
		t.Fatal(status, err)
	}
	tun := cs.Tunnel()
	cs.Release()
	return tun
}

// tunnelHandler accepts CONNECT and gives the tunnel to f on its goroutine.
func tunnelHandler(f func(netio.Conn)) func(transport.ServerStream) {
	return func(s transport.ServerStream) {
		var h message.Header
		s.ReadHeaders(&h)
		if err := s.WriteHeaders(header(":status", "200"), false); err != nil {
			return
		}
		f(s.Tunnel())
	}
}

func TestATunnelHalfClosesFromTheServerFirst(t *testing.T) {
	got := make(chan string, 1)
	cc, _ := dial(t, &transport.ServerConfig{}, &transport.ClientConfig{}, tunnelHandler(func(c netio.Conn) {
		go func() {
			_, _ = c.Write([]byte("bye"))
			_ = c.CloseWrite()
			b, err := io.ReadAll(c)
			got <- fmt.Sprint(len(b), err)
			_ = c.Close()
		}()
	}))
	tun := connect(t, cc)
	if b, err := io.ReadAll(tun); string(b) != "bye" || err != nil {
		t.Fatal(string(b), err)
	}
	// The server has ended its side; a MiB still goes the other way.
	if n, err := tun.Write(make([]byte, 1<<20)); n != 1<<20 || err != nil {
		t.Fatal(n, err)
	}
	if err := tun.CloseWrite(); err != nil {
		t.Fatal(err)
	}
	if g := <-got; g != "1048576 <nil>" {
		t.Error(g)
	}
	_ = tun.Close()
	waitFor(t, func() bool { return cc.Active() == 0 })
}

func TestATunnelHalfClosesFromTheClientFirst(t *testing.T) {
	cc, _ := dial(t, &transport.ServerConfig{}, &transport.ClientConfig{}, tunnelHandler(func(c netio.Conn) {
		b, _ := io.ReadAll(c)
		_, _ = c.Write(bytes.Repeat(b, 1000))
		_ = c.Close()
	}))
	tun := connect(t, cc)
	_, _ = tun.Write([]byte("0123456789"))
	_ = tun.CloseWrite()
	if b, err := io.ReadAll(tun); len(b) != 10_000 || err != nil {
		t.Fatal(len(b), err)
	}
	if _, err := tun.Write([]byte("x")); !errors.Is(err, netio.ErrClosed) {
		t.Error(err)
	}
	_ = tun.Close()
}

func TestATunnelThatThePeerHasClosedIsEndedInOrder(t *testing.T) {
	closed := make(chan struct{})
	cc, _ := dial(t, &transport.ServerConfig{}, &transport.ClientConfig{}, tunnelHandler(func(c netio.Conn) {
		_, _ = c.Write([]byte("bye"))
		_ = c.Close()
		close(closed)
	}))
	tun := connect(t, cc)
	<-closed
	waitFor(t, func() bool { return cc.Active() == 0 }) // RST_STREAM is there
	if b, err := io.ReadAll(tun); string(b) != "bye" || err != nil {
		t.Error(string(b), err)
	}
	if err := tun.CloseWrite(); err != nil {
		t.Error(err)
	}
	_ = tun.Close()
}

func TestResetOfATunnelReachesThePeer(t *testing.T) {
	ends := make(chan netio.Conn, 1)
	cc, _ := dial(t, &transport.ServerConfig{}, &transport.ClientConfig{}, tunnelHandler(func(c netio.Conn) { ends <- c }))
	tun := connect(t, cc)
	srv := <-ends
	srv.Reset()
	if _, err := tun.Read(make([]byte, 1)); !errors.Is(err, netio.ErrReset) || transport.ReasonOf(err) != transport.RemoteReset {
		t.Error(err)
	}
	if _, err := tun.Write([]byte("x")); !errors.Is(err, netio.ErrReset) {
		t.Error(err)
	}
	if _, err := srv.Read(make([]byte, 1)); !errors.Is(err, netio.ErrClosed) {
		t.Error(err)
	}
	_ = tun.Close()
	_ = srv.Close()
}

func TestAParkedTunnelCallsBack(t *testing.T) {
	ends := make(chan netio.Conn, 1)
	cc, _ := dial(t, &transport.ServerConfig{}, &transport.ClientConfig{}, tunnelHandler(func(c netio.Conn) { ends <- c }))
	tun := connect(t, cc)
	srv := <-ends
	for _, wake := range []func(){
		func() { _, _ = tun.Write([]byte("x")) },
		func() { _ = tun.CloseWrite() },
		func() { tun.Reset() },
	} {
		called := make(chan struct{})
		if _, err := srv.TryRead(make([]byte, 8)); !errors.Is(err, netio.ErrWouldBlock) {
			t.Fatal(err)
		}
		if !srv.Park(func() { close(called) }) {
			t.Fatal("did not park")
		}
		wake()
		<-called
		n, err := srv.TryRead(make([]byte, 8))
		if errors.Is(err, netio.ErrWouldBlock) {
			t.Fatal("woken for nothing", n)
		}
		if errors.Is(err, io.EOF) {
			break // CloseWrite
		}
	}
	_ = srv.Close()
	_ = tun.Close()
}

func TestInterruptUnblocksATunnel(t *testing.T) {
	ends := make(chan netio.Conn, 1)
	cc, _ := dial(t, &transport.ServerConfig{}, &transport.ClientConfig{}, tunnelHandler(func(c netio.Conn) { ends <- c }))
	tun := connect(t, cc)
	srv := <-ends
	cause := errors.New("enough")
	errs := make(chan error, 2)
	go func() { _, err := tun.Read(make([]byte, 1)); errs <- err }()
	go func() { _, err := tun.Write(make([]byte, 8<<20)); errs <- err }()
	time.Sleep(20 * time.Millisecond)
	tun.Interrupt(cause)
	for range 2 {
		if err := <-errs; !errors.Is(err, cause) {
			t.Error(err)
		}
	}
	_ = tun.Close()
	_ = srv.Close()
}
