package netio

import (
	"bytes"
	"errors"
	"io"
	mrand "math/rand/v2"
	"sync"
	"testing"
	"time"

	"go.uber.org/goleak"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

func TestBytesArriveInOrder(t *testing.T) {
	each(t, func(t *testing.T, a, b Conn) {
		write(t, a, "hello")
		write(t, a, " world")
		if got := readN(t, b, 11); got != "hello world" {
			t.Errorf("got %q", got)
		}
		if err := WriteParts(b, []byte("x"), nil, []byte("yz")); err != nil {
			t.Error(err)
		}
		if got := readN(t, a, 3); got != "xyz" {
			t.Errorf("got %q", got)
		}
	})
}

func TestBulkIsIntactBothWaysAtOnceWithASlowReader(t *testing.T) {
	each(t, func(t *testing.T, a, b Conn) {
		const size = 3 << 20
		data := make([]byte, size)
		r := mrand.NewChaCha8([32]byte{1})
		_, _ = r.Read(data)
		var wg sync.WaitGroup
		for _, c := range []Conn{a, b} {
			wg.Go(func() {
				if err := WriteParts(c, data[:10], data[10:size/2], data[size/2:size/2+5]); err != nil {
					t.Error(err)
				}
				for p := data[size/2+5:]; len(p) > 0; {
					n := min(len(p), 100_000)
					if _, err := c.Write(p[:n]); err != nil {
						t.Error(err)
						return
					}
					p = p[n:]
				}
				if err := c.CloseWrite(); err != nil {
					t.Error(err)
				}
			})
			wg.Go(func() {
				time.Sleep(20 * time.Millisecond)
				var got bytes.Buffer
				if c == a {
					_, err := io.Copy(&got, c)
					if err != nil {
						t.Error(err)
					}
				} else {
					for {
						park(c)
						s, err := tryAll(c)
						got.WriteString(s)
						if errors.Is(err, io.EOF) {
							break
						}
						if !errors.Is(err, ErrWouldBlock) {
							t.Error(err)
							break
						}
					}
				}
				if !bytes.Equal(got.Bytes(), data) {
					t.Errorf("%d bytes differ", got.Len())
				}
			})
		}
		wg.Wait()
	})
}

func TestTryReadDoesNotBlockAndParkWaits(t *testing.T) {
	each(t, func(t *testing.T, a, b Conn) {
		for round := range 3 {
			if got, err := tryAll(b); got != "" || !errors.Is(err, ErrWouldBlock) {
				t.Fatalf("got %q, %v", got, err)
			}
			written := make(chan struct{})
			go func() {
				time.Sleep(10 * time.Millisecond)
				write(t, a, "abc")
				close(written)
			}()
			park(b)
			<-written
			got, err := tryAll(b)
			if got != "abc" || !errors.Is(err, ErrWouldBlock) {
				t.Fatalf("round %d: got %q, %v", round, got, err)
			}
			write(t, a, "def")
			park(b)
			if got := readN(t, b, 3); got != "def" {
				t.Fatalf("got %q", got)
			}
		}
	})
}

func TestHalfCloseLeavesTheOtherDirection(t *testing.T) {
	each(t, func(t *testing.T, a, b Conn) {
		write(t, a, "last words")
		if err := a.CloseWrite(); err != nil {
			t.Fatal(err)
		}
		got, err := io.ReadAll(b)
		if string(got) != "last words" || err != nil {
			t.Fatalf("got %q, %v", got, err)
		}
		var last error // the portable form may not get to look in time
		for limit := time.Now().Add(10 * time.Second); time.Now().Before(limit); {
			if _, last = b.TryRead(make([]byte, 1)); !errors.Is(last, ErrWouldBlock) {
				break
			}
		}
		if !errors.Is(last, io.EOF) {
			t.Errorf("after the end: %v", last)
		}
		park(b) // returns: the end is readable
		write(t, b, "answer")
		if got := readN(t, a, 6); got != "answer" {
			t.Errorf("got %q", got)
		}
		if _, err := a.Write([]byte("x")); err == nil {
			t.Error("write after CloseWrite: want an error")
		}
	})
}

func TestParkReturnsOnTheEnd(t *testing.T) {
	each(t, func(t *testing.T, a, b Conn) {
		go func() {
			time.Sleep(10 * time.Millisecond)
			_ = a.Close()
		}()
		park(b)
		if _, err := b.Read(make([]byte, 1)); !errors.Is(err, io.EOF) {
			t.Errorf("got %v", err)
		}
	})
}

func TestBytesPutBackAreReadFirst(t *testing.T) {
	each(t, func(t *testing.T, a, b Conn) {
		write(t, a, "tail")
		p := WithPrefix(b, []byte("head, "))
		park(p)
		if got := readN(t, p, 3); got != "hea" {
			t.Errorf("got %q", got)
		}
		p = WithPrefix(p, []byte("H"))
		if got := readN(t, p, 8); got != "Hd, tail" {
			t.Errorf("got %q", got)
		}
		if _, err := p.TryRead(make([]byte, 1)); !errors.Is(err, ErrWouldBlock) {
			t.Errorf("got %v", err)
		}
	})
}

func TestPeekShowsBytesThatReadThenReturns(t *testing.T) {
	each(t, func(t *testing.T, a, b Conn) {
		p := Peekable(b)
		written := make(chan struct{})
		go func() {
			defer close(written)
			write(t, a, "ab")
			time.Sleep(5 * time.Millisecond)
			write(t, a, "cdefgh")
		}()
		if got, err := p.Peek(5); string(got) != "abcde" || err != nil {
			t.Fatalf("got %q, %v", got, err)
		}
		if got, err := p.Peek(3); string(got) != "abc" || err != nil {
			t.Fatalf("got %q, %v", got, err)
		}
		if got := readN(t, p, 4); got != "abcd" {
			t.Errorf("got %q", got)
		}
		if got, err := p.Peek(4); string(got) != "efgh" || err != nil {
			t.Fatalf("got %q, %v", got, err)
		}
		<-written
		_ = a.CloseWrite()
		if got, err := p.Peek(9); string(got) != "efgh" || !errors.Is(err, io.EOF) {
			t.Fatalf("got %q, %v", got, err)
		}
		if got, err := io.ReadAll(p); string(got) != "efgh" || err != nil {
			t.Errorf("got %q, %v", got, err)
		}
	})
}

func TestWriteReadExchanges(t *testing.T) {
	each(t, func(t *testing.T, a, b Conn) {
		go func() {
			buf := make([]byte, 100)
			for {
				n, err := b.Read(buf)
				if err != nil {
					return
				}
				time.Sleep(time.Millisecond)
				if _, err := b.Write(bytes.ToUpper(buf[:n])); err != nil {
					return
				}
			}
		}()
		in := make([]byte, 100)
		for range 20 {
			n, wrote, err := WriteRead(a, []byte("ping"), in)
			if string(in[:n]) != "PING" || !wrote || err != nil {
				t.Fatalf("%q %v %v", in[:n], wrote, err)
			}
		}
		_ = b.Close()
		if _, _, err := WriteRead(a, []byte("ping"), in); err == nil {
			t.Error("want an error")
		}
	})
}

func TestWriteReadOfMoreThanTheSocketTakes(t *testing.T) {
	each(t, func(t *testing.T, a, b Conn) {
		const size = 8 << 20
		go func() {
			time.Sleep(10 * time.Millisecond)
			if _, err := io.CopyN(io.Discard, b, size); err == nil {
				_, _ = b.Write([]byte("ok"))
			}
		}()
		in := make([]byte, 100)
		n, wrote, err := WriteRead(a, make([]byte, size), in)
		if string(in[:n]) != "ok" || !wrote || err != nil {
			t.Fatalf("%q %v %v", in[:n], wrote, err)
		}
	})
}

func TestUnparkPreventsTheCall(t *testing.T) {
	each(t, func(t *testing.T, a, b Conn) {
		u, ok := b.(Unparker)
		if !ok {
			t.Skip("does not call back")
		}
		if !b.Park(func() { t.Error("called") }) {
			t.Fatal("want a parked connection")
		}
		if !u.Unpark() {
			t.Error("unpark: want true")
		}
		if u.Unpark() {
			t.Error("twice: want false")
		}
		write(t, a, "x")
		if got := readN(t, b, 1); got != "x" {
			t.Errorf("got %q", got)
		}
	})
}

func TestProbeTellsWhatAReadWould(t *testing.T) {
	each(t, func(t *testing.T, a, b Conn) {
		p, ok := b.(Prober)
		if !ok {
			t.Skip("can't")
		}
		if s, err := tryAll(b); s != "" || !errors.Is(err, ErrWouldBlock) { // session tickets
			t.Fatal(s, err)
		}
		if r, e := p.Probe(); r || e {
			t.Errorf("idle: %v %v", r, e)
		}
		write(t, a, "x")
		eventually(t, func() bool { r, e := p.Probe(); return r && !e })
		_ = a.Close()
		eventually(t, func() bool { r, e := p.Probe(); return r && e })
		if got := readN(t, b, 1); got != "x" {
			t.Errorf("got %q", got)
		}
	})
}

// Whoever waits for the far side of a stream learns by Probe that this one was cut:
// nobody reads it meanwhile.
func TestProbeTellsThatTheConnectionWasCut(t *testing.T) {
	for name, cut := range map[string]func(Conn){
		"reset":  func(c Conn) { c.Reset() },
		"closed": func(c Conn) { _ = c.Close() },
	} {
		t.Run(name, func(t *testing.T) {
			each(t, func(t *testing.T, _, b Conn) {
				p, ok := b.(Prober)
				if !ok {
					t.Skip("can't")
				}
				check := func() bool {
					cut(b)
					r, e := p.Probe()
					if !r || !e {
						t.Errorf("readable %v, ended %v", r, e)
					}
					return true
				}
				if l, ok := b.(Looper); ok { // a request is served there
					_ = l.Loop(check)
					return
				}
				check()
			})
		})
	}
}
