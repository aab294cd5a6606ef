package netio

import (
	"context"
	"errors"
	"io"
	"net/netip"
	"testing"
	"time"
)

// A socket that is closed in order with unread bytes must not reset the
// connection: what it wrote is still on its way.
func TestCloseWithUnreadBytesLosesNothingThatWasWritten(t *testing.T) {
	for range 20 {
		l, err := Listen(netip.MustParseAddrPort("127.0.0.1:0"), ListenOptions{})
		if err != nil {
			t.Fatal(err)
		}
		client, err := Dial(context.Background(), l.Addr(), DialOptions{})
		if err != nil {
			t.Fatal(err)
		}
		server, err := l.Accept()
		if err != nil {
			t.Fatal(err)
		}
		_ = l.Close()
		if _, err := client.Write([]byte("nobody reads this")); err != nil {
			t.Fatal(err)
		}
		time.Sleep(2 * time.Millisecond)
		// More than the client's side takes without being read.
		big := make([]byte, 1<<20)
		wrote := make(chan error, 1)
		go func() {
			_, err := server.Write(big)
			_ = server.Close()
			wrote <- err
		}()
		time.Sleep(10 * time.Millisecond)
		n, buf := 0, make([]byte, 64<<10)
		for {
			m, err := client.Read(buf)
			n += m
			if err != nil {
				if !errors.Is(err, io.EOF) {
					t.Fatalf("after %d bytes: %v", n, err)
				}
				break
			}
		}
		if err := <-wrote; err != nil || n != len(big) {
			t.Fatalf("%d of %d bytes arrived, %v", n, len(big), err)
		}
		_ = client.Close()
	}
}

func TestQuietTellsWhatAReadWouldDo(t *testing.T) {
	l, err := Listen(netip.MustParseAddrPort("127.0.0.1:0"), ListenOptions{})
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	for _, tc := range []struct {
		name  string
		do    func(c Conn)
		quiet bool
	}{
		{"nothing", func(Conn) {}, true},
		{"bytes", func(c Conn) { _, _ = c.Write([]byte("x")) }, false},
		{"an end", func(c Conn) { _ = c.CloseWrite() }, false},
		{"a reset", func(c Conn) { c.Reset() }, false},
	} {
		a, err := Dial(context.Background(), l.Addr(), DialOptions{})
		if err != nil {
			t.Fatal(err)
		}
		b, err := l.Accept()
		if err != nil {
			t.Fatal(err)
		}
		tc.do(b)
		time.Sleep(5 * time.Millisecond)
		q, ok := a.(Quieter)
		if !ok {
			t.Fatal("a socket is no Quieter")
		}
		for range 2 { // looking changes nothing
			if got := q.Quiet(); got != tc.quiet {
				t.Errorf("%s: quiet %t", tc.name, got)
			}
		}
		_ = a.Close()
		if q.Quiet() {
			t.Errorf("%s: a closed socket is quiet", tc.name)
		}
		_ = b.Close()
	}
}

// LoopWrite is Write without the poller's books: what it is told, whatever
// becomes of the connection, is the same.
func TestLoopWriteIsWrite(t *testing.T) {
	cause := errors.New("enough")
	for _, c := range []struct {
		name string
		size int
		end  func(server, client Conn)
		want error
	}{
		{"a small piece", 100, func(Conn, Conn) {}, nil},
		{"more than the peer takes at once", 8 << 20, func(Conn, Conn) {}, nil},
		{"interrupted", 100, func(s, _ Conn) { s.Interrupt(cause) }, cause},
		{"closed", 100, func(s, _ Conn) { _ = s.Close() }, ErrClosed},
		{"reset", 100, func(s, _ Conn) { s.Reset() }, ErrClosed},
		{"reset by the peer", 100, func(_, c Conn) { c.Reset(); time.Sleep(20 * time.Millisecond) }, ErrReset},
	} {
		t.Run(c.name, func(t *testing.T) {
			l, err := Listen(netip.MustParseAddrPort("127.0.0.1:0"), ListenOptions{})
			if err != nil {
				t.Fatal(err)
			}
			defer l.Close()
			client, err := Dial(context.Background(), l.Addr(), DialOptions{})
			if err != nil {
				t.Fatal(err)
			}
			defer client.Close()
			server, err := l.Accept()
			if err != nil {
				t.Fatal(err)
			}
			defer server.Close()
			if _, ok := server.(LoopWriter); !ok {
				t.Skip("sockets of this system don't loop")
			}
			got := make(chan int, 1)
			if c.want == nil {
				go func() {
					n, buf := 0, make([]byte, 64<<10)
					for n < c.size {
						m, err := client.Read(buf)
						if err != nil {
							break
						}
						n += m
					}
					got <- n
				}()
			}
			var n int
			_ = server.(Looper).Loop(func() bool {
				c.end(server, client)
				n, err = server.(LoopWriter).LoopWrite(make([]byte, c.size))
				return false
			})
			if c.want != nil {
				if !errors.Is(err, c.want) {
					t.Errorf("%d, %v, want %v", n, err, c.want)
				}
				return
			}
			if err != nil || n != c.size {
				t.Errorf("%d, %v", n, err)
			}
			if n := <-got; n != c.size {
				t.Errorf("%d bytes arrived", n)
			}
		})
	}
}
