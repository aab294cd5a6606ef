package netio

import (
	"errors"
	"testing"
)

// echoLoop answers every byte on c inside its loop.
func echoLoop(c Conn) chan struct{} {
	done := make(chan struct{})
	go func() {
		defer close(done)
		buf := make([]byte, 4096)
		_ = c.(Looper).Loop(func() bool {
			for {
				n, err := c.TryRead(buf)
				if errors.Is(err, ErrWouldBlock) {
					return true
				}
				if err != nil {
					return false
				}
				if _, err := c.Write(buf[:n]); err != nil {
					return false
				}
			}
		})
	}()
	return done
}

func TestIODoesNotAllocate(t *testing.T) {
	if raced {
		t.Skip("the race detector allocates")
	}
	for name, c := range map[string]struct {
		pair  func(t *testing.T) (Conn, Conn)
		limit float64
	}{
		"tcp": {tcpPair, 0.1},
		// crypto/tls allocates for each record it reads; nothing is added.
		"tls": {func(t *testing.T) (Conn, Conn) { a, b := tcpPair(t); return tlsPair(t, a, b) }, 3.1},
	} {
		t.Run(name, func(t *testing.T) {
			a, b := c.pair(t)
			done := echoLoop(b)
			out, in := []byte("hello"), make([]byte, 100)
			if got := testing.AllocsPerRun(300, func() {
				if _, _, err := WriteRead(a, out, in); err != nil {
					t.Fatal(err)
				}
			}); got > c.limit {
				t.Errorf("WriteRead and an echo: %v allocations", got)
			}
			if got := testing.AllocsPerRun(300, func() {
				if err := WriteParts(a, out, out, out); err != nil {
					t.Fatal(err)
				}
				for n := 0; n < 15; {
					k, err := a.Read(in)
					if err != nil {
						t.Fatal(err)
					}
					n += k
				}
			}); got > c.limit {
				t.Errorf("WriteParts, Read and an echo: %v allocations", got)
			}
			_ = a.Close()
			<-done
			_ = b.Close()
		})
	}
}

func BenchmarkEcho(b *testing.B) {
	t := &testing.T{}
	for name, pair := range map[string]func(t *testing.T) (Conn, Conn){
		"tcp": tcpPairB(b), "tls": func(*testing.T) (Conn, Conn) { x, y := tcpPairB(b)(t); return tlsPair(t, x, y) },
	} {
		b.Run(name, func(b *testing.B) {
			x, y := pair(t)
			done := echoLoop(y)
			out, in := make([]byte, 1024), make([]byte, 4096)
			b.ReportAllocs()
			for b.Loop() {
				if _, _, err := WriteRead(x, out, in); err != nil {
					b.Fatal(err)
				}
			}
			_ = x.Close()
			<-done
			_ = y.Close()
		})
	}
}

func tcpPairB(b *testing.B) func(*testing.T) (Conn, Conn) {
	b.Helper()
	return func(*testing.T) (Conn, Conn) {
		l, err := Listen(loopback, ListenOptions{})
		if err != nil {
			b.Fatal(err)
		}
		defer l.Close()
		x, err := Dial(b.Context(), l.Addr(), DialOptions{})
		if err != nil {
			b.Fatal(err)
		}
		y, err := l.Accept()
		if err != nil {
			b.Fatal(err)
		}
		return x, y
	}
}
