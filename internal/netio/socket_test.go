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
