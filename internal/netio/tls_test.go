package netio

import (
	"context"
	"crypto/tls"
	"errors"
	"io"
	"net"
	"net/netip"
	"sync/atomic"
	"testing"
	"time"
)

// dribble is a net.Conn that hands crypto/tls a few bytes at a time, and a
// temporary error between any two.
type dribble struct {
	net.Conn
	on    atomic.Bool
	turn  int
	calls int
}

func (d *dribble) Read(p []byte) (int, error) {
	if !d.on.Load() {
		return d.Conn.Read(p)
	}
	if d.turn++; d.turn%2 == 1 {
		d.calls++
		return 0, wouldBlock{}
	}
	return d.Conn.Read(p[:min(len(p), 3)])
}

// TLS of this package stands on this undocumented behaviour of crypto/tls: a
// temporary error of the connection below is returned, breaks nothing, and a
// partial record is kept for the next Read.
func TestCryptoTLSGoesOnAfterATemporaryErrorInTheMiddleOfARecord(t *testing.T) {
	for _, version := range []uint16{tls.VersionTLS12, tls.VersionTLS13} {
		x, y := net.Pipe()
		srv := tls.Server(y, &tls.Config{Certificates: []tls.Certificate{testCert()}, MaxVersion: version})
		go func() {
			for range 3 {
				if _, err := srv.Write([]byte("hello, world")); err != nil {
					t.Error(err)
				}
			}
			_ = srv.CloseWrite()
		}()
		d := &dribble{Conn: x}
		c := tls.Client(d, &tls.Config{InsecureSkipVerify: true, MaxVersion: version})
		if err := c.HandshakeContext(t.Context()); err != nil {
			t.Fatal(err)
		}
		d.on.Store(true)
		var got []byte
		b := make([]byte, 5)
		for {
			n, err := c.Read(b)
			got = append(got, b[:n]...)
			if errors.Is(err, ErrWouldBlock) {
				continue
			}
			if err != nil {
				if !errors.Is(err, io.EOF) {
					t.Error(err)
				}
				break
			}
		}
		if want := "hello, worldhello, worldhello, world"; string(got) != want || d.calls < 20 {
			t.Errorf("version %x: got %q after %d interruptions", version, got, d.calls)
		}
		_ = x.Close()
		_ = y.Close()
	}
}

func TestAHandshakeIsBoundedByItsContext(t *testing.T) {
	for _, p := range pairs[:4] {
		t.Run(p.name, func(t *testing.T) {
			a, b := p.make(t)
			ctx, cancel := context.WithTimeout(t.Context(), 30*time.Millisecond)
			defer cancel()
			start := time.Now()
			_, err := ServerTLS(ctx, b, serverConfig()) // the peer says nothing
			if !errors.Is(err, context.DeadlineExceeded) || time.Since(start) > 20*time.Second {
				t.Errorf("got %v after %v", err, time.Since(start))
			}
			if _, err := b.Read(make([]byte, 1)); err == nil {
				t.Error("the connection is not closed")
			}
			_ = a.Close()
		})
	}
}

func TestAFailedHandshakeTellsThePeerWhy(t *testing.T) {
	a, b := tcpPair(t)
	done := make(chan error, 1)
	go func() {
		_, err := ServerTLS(context.Background(), b, &tls.Config{Certificates: []tls.Certificate{testCert()}, MinVersion: tls.VersionTLS13})
		done <- err
	}()
	_, err := ClientTLS(t.Context(), a, &tls.Config{InsecureSkipVerify: true, MaxVersion: tls.VersionTLS12})
	if err == nil || <-done == nil {
		t.Fatal("want errors")
	}
	var alert tls.AlertError
	if oe := (*net.OpError)(nil); !errors.As(err, &alert) && !errors.As(err, &oe) {
		t.Errorf("got %v", err)
	}
}

func TestTheStateOfASessionIsThatOfTheStreamItself(t *testing.T) {
	a, b := tcpPair(t)
	if a.TLS() != nil {
		t.Error("a socket has none")
	}
	ta, tb := tlsPair(t, a, b)
	if s := ta.TLS(); s == nil || !s.HandshakeComplete || len(s.PeerCertificates) != 1 {
		t.Errorf("got %+v", s)
	}
	if ta.LocalAddr() != tb.RemoteAddr() || !ta.LocalAddr().IsValid() {
		t.Errorf("addresses %v, %v", ta.LocalAddr(), tb.RemoteAddr())
	}
	_ = ta.Close()
	_ = tb.Close()
}

func TestClosingTLSDoesNotWaitForAPeerThatDoesNotRead(t *testing.T) {
	for _, over := range []string{"tcp", "pipe"} {
		t.Run(over, func(t *testing.T) {
			var a, b Conn
			if over == "tcp" {
				a, b = tcpPair(t)
			} else {
				a, b = Pipe(netip.AddrPort{}, netip.AddrPort{})
			}
			ta, tb := tlsPair(t, a, b)
			stuck := make(chan error, 1)
			go func() {
				big := make([]byte, 1<<20)
				for {
					if _, err := ta.Write(big); err != nil {
						stuck <- err
						return
					}
				}
			}()
			time.Sleep(50 * time.Millisecond)
			start := time.Now()
			_ = ta.Close()
			if err := <-stuck; err == nil || time.Since(start) > 4*time.Second {
				t.Errorf("got %v after %v", err, time.Since(start))
			}
			_ = tb.Close()
		})
	}
}

func TestAnIdleTLSConnectionHoldsNoBuffer(t *testing.T) {
	a, b := tcpPair(t)
	ta, tb := tlsPair(t, a, b)
	tl, ok := tb.(*tlsDozer)
	if !ok {
		t.Fatalf("%T", tb)
	}
	write(t, ta, "hello")
	park(tb)
	if got, err := tryAll(tb); got != "hello" || !errors.Is(err, ErrWouldBlock) {
		t.Fatal(got, err)
	}
	if tl.io.buf != nil || tl.io.out.b != nil {
		t.Error("buffers are held")
	}
	_ = ta.Close()
	_ = tb.Close()
}

func TestTruncationIsNoOrderlyEnd(t *testing.T) {
	a, b := tcpPair(t)
	ta, tb := tlsPair(t, a, b)
	write(t, ta, "hello")
	_, _ = a.Write([]byte{23, 3, 3, 0, 100, 1, 2}) // part of a record
	_ = a.CloseWrite()
	readN(t, tb, 5)
	if _, err := tb.Read(make([]byte, 1)); err == nil || errors.Is(err, io.EOF) {
		t.Errorf("got %v", err)
	}
	_ = a.Close()
	_ = tb.Close()
	_ = ta.Close()
}
