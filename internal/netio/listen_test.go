package netio

import (
	"bytes"
	"context"
	"errors"
	"log/slog"
	"net"
	"net/netip"
	"os"
	"strings"
	"syscall"
	"testing"
	"time"
)

func TestAListenerOutOfDescriptorsWaitsLogsAndGoesOn(t *testing.T) {
	var log bytes.Buffer
	old := slog.Default()
	slog.SetDefault(slog.New(slog.NewTextHandler(&log, nil)))
	defer slog.SetDefault(old)
	l, err := Listen(loopback, ListenOptions{})
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	// A connection that is open already.
	a, err := Dial(t.Context(), l.Addr(), DialOptions{})
	if err != nil {
		t.Fatal(err)
	}
	b, err := l.Accept()
	if err != nil {
		t.Fatal(err)
	}
	fails := []error{syscall.EMFILE, syscall.ENFILE, syscall.ECONNABORTED, syscall.ENOBUFS}
	real := l.accept
	l.accept = func() (*net.TCPConn, error) {
		if len(fails) > 0 {
			err := fails[0]
			fails = fails[1:]
			return nil, &net.OpError{Op: "accept", Err: os.NewSyscallError("accept4", err)}
		}
		return real()
	}
	got := make(chan Conn, 1)
	start := time.Now()
	go func() {
		c, err := l.Accept()
		if err != nil {
			t.Error(err)
		}
		got <- c
	}()
	write(t, a, "still here")
	readN(t, b, 10)
	c, err := Dial(t.Context(), l.Addr(), DialOptions{})
	if err != nil {
		t.Fatal(err)
	}
	d := <-got
	if waited := time.Since(start); waited < 5*time.Millisecond {
		t.Errorf("waited only %v", waited)
	}
	if n := strings.Count(log.String(), "out of descriptors"); n != 1 {
		t.Errorf("logged %d times: %s", n, log.String())
	}
	for _, c := range []Conn{a, b, c, d} {
		_ = c.Close()
	}
}

func TestClosingAListenerEndsAcceptButNoConnection(t *testing.T) {
	l, err := Listen(loopback, ListenOptions{ReusePort: true, Backlog: 10})
	if err != nil {
		t.Fatal(err)
	}
	second, err := Listen(l.Addr(), ListenOptions{ReusePort: true})
	if err != nil {
		t.Errorf("port reuse: %v", err)
	} else {
		_ = second.Close()
	}
	a, err := Dial(t.Context(), l.Addr(), DialOptions{})
	if err != nil {
		t.Fatal(err)
	}
	b, err := l.Accept()
	if err != nil {
		t.Fatal(err)
	}
	done := make(chan error, 1)
	go func() {
		_, err := l.Accept()
		done <- err
	}()
	time.Sleep(10 * time.Millisecond)
	if err := l.Close(); err != nil {
		t.Error(err)
	}
	if err := <-done; !errors.Is(err, ErrClosed) {
		t.Errorf("got %v", err)
	}
	if err := l.Close(); err != nil {
		t.Error(err)
	}
	write(t, a, "x")
	readN(t, b, 1)
	_ = a.Close()
	_ = b.Close()
}

func TestDialTellsWhereItFailed(t *testing.T) {
	l, err := Listen(loopback, ListenOptions{})
	if err != nil {
		t.Fatal(err)
	}
	addr := l.Addr()
	_ = l.Close()
	_, err = Dial(t.Context(), addr, DialOptions{})
	if !errors.Is(err, syscall.ECONNREFUSED) || !strings.Contains(err.Error(), addr.String()) {
		t.Errorf("got %v", err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if _, err := Dial(ctx, addr, DialOptions{}); !errors.Is(err, context.Canceled) && !strings.Contains(err.Error(), "canceled") {
		t.Errorf("got %v", err)
	}
	if _, err := DialUnix(t.Context(), "/nonexistent/s"); err == nil || !strings.Contains(err.Error(), "/nonexistent/s") {
		t.Errorf("got %v", err)
	}
}

func TestDialFromASourceWithKeepalive(t *testing.T) {
	l, err := Listen(loopback, ListenOptions{})
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	a, err := Dial(t.Context(), l.Addr(), DialOptions{
		Source:        netip.MustParseAddrPort("127.0.0.2:0"),
		KeepaliveIdle: 30 * time.Second, KeepaliveCount: 3,
	})
	if err != nil {
		t.Fatal(err)
	}
	b, err := l.Accept()
	if err != nil {
		t.Fatal(err)
	}
	if b.RemoteAddr().Addr() != netip.MustParseAddr("127.0.0.2") || b.RemoteAddr() != a.LocalAddr() || a.RemoteAddr() != l.Addr() {
		t.Errorf("from %v", b.RemoteAddr())
	}
	_ = a.Close()
	_ = b.Close()
}

func TestBuffersAreOfTheSmallestClass(t *testing.T) {
	for n, want := range map[int]int{0: SmallBuffer, 1: SmallBuffer, 4096: SmallBuffer, 4097: MediumBuffer, 16384: MediumBuffer, 16385: LargeBuffer, 65536: LargeBuffer, 65537: 65537} {
		b := GetBuffer(n)
		if len(*b) != want {
			t.Errorf("%d: got %d, want %d", n, len(*b), want)
		}
		*b = (*b)[:0]
		PutBuffer(b)
	}
	PutBuffer(nil)
	b := GetBuffer(10)
	copy(*b, "hello")
	b = GrowBuffer(b, 5, 5000)
	if len(*b) != MediumBuffer || string((*b)[:5]) != "hello" {
		t.Errorf("got %d, %q", len(*b), (*b)[:5])
	}
	PutBuffer(b)
}
