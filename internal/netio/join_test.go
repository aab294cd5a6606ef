package netio

import (
	"errors"
	"io"
	"net/netip"
	"runtime"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"
)

// joined returns the outer ends of two pairs whose inner ends are joined.
func joined(t *testing.T, kind func(t *testing.T) (Conn, Conn), opts JoinOptions) (a, b Conn, done chan [3]any) {
	t.Helper()
	a, ai := kind(t)
	b, bi := kind(t)
	done = make(chan [3]any, 1)
	go func() {
		x, y, err := Join(ai, bi, opts)
		done <- [3]any{x, y, err}
	}()
	return a, b, done
}

func TestJoinCopiesBothWaysAndPassesHalfCloseOn(t *testing.T) {
	for _, p := range pairs {
		t.Run(p.name, func(t *testing.T) {
			var mu sync.Mutex
			var seenA, seenB uint64
			a, b, done := joined(t, p.make, JoinOptions{OnBytes: func(x, y uint64) {
				mu.Lock()
				seenA, seenB = x, y
				mu.Unlock()
			}})
			write(t, a, "hello")
			if got := readN(t, b, 5); got != "hello" {
				t.Errorf("got %q", got)
			}
			if err := a.CloseWrite(); err != nil {
				t.Error(err)
			}
			if _, err := b.Read(make([]byte, 1)); !errors.Is(err, io.EOF) {
				t.Errorf("half-close: %v", err)
			}
			big := strings.Repeat("0123456789", 50_000)
			go func() {
				write(t, b, big)
				_ = b.CloseWrite()
			}()
			got, err := io.ReadAll(a)
			if string(got) != big || err != nil {
				t.Errorf("%d bytes, %v", len(got), err)
			}
			r := <-done
			if r[0] != uint64(5) || r[1] != uint64(len(big)) || r[2] != nil {
				t.Errorf("got %v", r)
			}
			mu.Lock()
			if seenA != 5 || seenB != uint64(len(big)) {
				t.Errorf("told %d, %d", seenA, seenB)
			}
			mu.Unlock()
			_ = a.Close()
			_ = b.Close()
		})
	}
}

// An end that arrives together with the last bytes makes no event of its own.
func TestAJoinPassesHalfCloseOnAtOnce(t *testing.T) {
	for _, p := range pairs {
		t.Run(p.name, func(t *testing.T) {
			late := 0
			for range 50 {
				a, b, done := joined(t, p.make, JoinOptions{})
				began := time.Now()
				write(t, a, "last")
				_ = a.CloseWrite()
				if got, err := io.ReadAll(b); string(got) != "last" || err != nil {
					t.Fatalf("got %q, %v", got, err)
				}
				write(t, b, "words")
				_ = b.CloseWrite()
				if got, err := io.ReadAll(a); string(got) != "words" || err != nil {
					t.Fatalf("got %q, %v", got, err)
				}
				<-done
				_ = a.Close()
				_ = b.Close()
				if d := time.Since(began); d > 700*time.Millisecond {
					t.Logf("the ends arrived after %v", d)
					late++
				}
			}
			if late > 10 { // the machine may be busy now and then
				t.Errorf("%d of 50 ends arrived late", late)
			}
		})
	}
}

func TestAResetOnOneSideOfAJoinResetsTheOther(t *testing.T) {
	for _, p := range pairs {
		if p.name == "unix" {
			continue // knows no RST
		}
		for _, onA := range []bool{true, false} {
			t.Run(p.name, func(t *testing.T) {
				a, b, done := joined(t, p.make, JoinOptions{})
				write(t, a, "x")
				readN(t, b, 1)
				first, other := a, b
				if !onA {
					first, other = b, a
				}
				first.Reset()
				if _, err := other.Read(make([]byte, 1)); !errors.Is(err, ErrReset) {
					t.Errorf("the other side sees %v", err)
				}
				err, _ := (<-done)[2].(error)
				var je *JoinError
				if !errors.As(err, &je) || je.OnA != onA || !errors.Is(err, ErrReset) {
					t.Errorf("got %v", err)
				}
				_ = other.Close()
			})
		}
	}
}

func TestAJoinEndsWhenIdle(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		a, b, done := joined(t, func(*testing.T) (Conn, Conn) { return Pipe(netip.AddrPort{}, netip.AddrPort{}) }, JoinOptions{IdleTimeout: 10 * time.Second})
		start := time.Now()
		for range 4 {
			time.Sleep(9 * time.Second)
			write(t, a, "x")
			readN(t, b, 1)
		}
		last := time.Now()
		if _, err := b.Read(make([]byte, 1)); !errors.Is(err, io.EOF) {
			t.Errorf("got %v", err)
		}
		if d := time.Since(last); d < 10*time.Second || d > 13*time.Second {
			t.Errorf("idle for %v (after %v)", d, time.Since(start))
		}
		if r := <-done; r[2] != ErrJoinIdle { //nolint:errorlint // as it is
			t.Errorf("got %v", r)
		}
		_ = a.Close()
		_ = b.Close()
	})
}

func TestAnIdleJoinOfParkingConnectionsHoldsNoGoroutine(t *testing.T) {
	a, ai := Pipe(netip.AddrPort{}, netip.AddrPort{})
	b, bi := Pipe(netip.AddrPort{}, netip.AddrPort{})
	before := runtime.NumGoroutine()
	done := make(chan error, 1)
	JoinAsync(ai, bi, JoinOptions{}, func(_, _ uint64, err error) { done <- err })
	for range 3 {
		write(t, a, "x")
		readN(t, b, 1)
		eventually(t, func() bool { return runtime.NumGoroutine() <= before })
	}
	_ = a.Close()
	_ = b.Close()
	if err := <-done; err != nil {
		t.Error(err)
	}
}

func TestAJoinOfASlowReaderHoldsBackTheWriter(t *testing.T) {
	a, b, done := joined(t, tcpPair, JoinOptions{})
	var sent int
	stuck := make(chan struct{})
	go func() {
		defer close(stuck)
		p := make([]byte, 1<<20)
		for range 64 {
			n, err := a.Write(p)
			sent += n
			if err != nil {
				return
			}
		}
	}()
	select {
	case <-stuck:
		t.Error("64 MiB were swallowed")
	case <-time.After(300 * time.Millisecond):
	}
	b.Reset()
	<-stuck
	<-done
	_ = a.Close()
}
