package netio

import (
	"bytes"
	"errors"
	"io"
	"testing"
	"time"
)

func TestLoopEchoesUntilTheEnd(t *testing.T) {
	each(t, func(t *testing.T, a, b Conn) {
		l, ok := b.(Looper)
		if !ok {
			t.Skip("no loop")
		}
		done := make(chan error, 1)
		go func() {
			buf := make([]byte, 50)
			done <- l.Loop(func() bool {
				for {
					n, err := b.TryRead(buf)
					if errors.Is(err, ErrWouldBlock) {
						return true
					}
					if err != nil {
						return false
					}
					if _, err := b.Write(buf[:n]); err != nil {
						t.Error(err)
						return false
					}
				}
			})
		}()
		for i := range 50 {
			s := string(bytes.Repeat([]byte{byte('a' + i%26)}, 1+i*7))
			write(t, a, s)
			if got := readN(t, a, len(s)); got != s {
				t.Fatalf("got %q", got)
			}
		}
		write(t, a, "end")
		_ = a.CloseWrite() // perhaps in one edge with the bytes
		if got, err := io.ReadAll(io.LimitReader(a, 3)); string(got) != "end" || err != nil {
			t.Errorf("got %q, %v", got, err)
		}
		if err := <-done; err != nil {
			t.Error(err)
		}
	})
}

func TestLoopEndsWhenTheConnectionIsClosedOrInterrupted(t *testing.T) {
	for name, end := range map[string]func(Conn){
		"close": func(c Conn) { _ = c.Close() }, "reset": Conn.Reset, "interrupt": func(c Conn) { c.Interrupt(errCause) },
	} {
		t.Run(name, func(t *testing.T) {
			each(t, func(t *testing.T, a, b Conn) {
				l, ok := b.(Looper)
				if !ok {
					t.Skip("no loop")
				}
				done := make(chan error, 1)
				go func() {
					var seen error // by the callback
					err := l.Loop(func() bool {
						_, err := b.TryRead(make([]byte, 10))
						if errors.Is(err, ErrWouldBlock) {
							return true
						}
						seen = err
						return false
					})
					done <- errors.Join(err, seen)
				}()
				time.Sleep(10 * time.Millisecond)
				end(b)
				if err := <-done; err == nil {
					t.Error("want an error")
				}
				if name == "interrupt" {
					if _, err := b.Read(make([]byte, 1)); !errors.Is(err, errCause) {
						t.Error(err)
					}
					return
				}
				if _, err := a.Read(make([]byte, 1)); err == nil {
					t.Error("the peer sees no end")
				}
			})
		})
	}
}

func TestClosingInsideTheLoopEndsIt(t *testing.T) {
	each(t, func(t *testing.T, a, b Conn) {
		l, ok := b.(Looper)
		if !ok {
			t.Skip("no loop")
		}
		write(t, a, "x")
		err := l.Loop(func() bool {
			n, _ := b.TryRead(make([]byte, 10))
			if n > 0 {
				write(t, b, "bye")
				_ = b.Close()
			}
			return true
		})
		if !errors.Is(err, ErrClosed) {
			t.Errorf("got %v", err)
		}
		if got, err := io.ReadAll(a); string(got) != "bye" || err != nil {
			t.Errorf("got %q, %v", got, err)
		}
	})
}
