//go:build linux && (amd64 || arm64)

package netio

import (
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"runtime"
	"sync"
	"sync/atomic"
	"testing"
	"time"
)

// dozingEcho echoes what comes on c until it ends.
type dozingEcho struct {
	c     Conn
	dozed atomic.Int32
	done  chan error
	buf   [256]byte
	seen  error // by step
}

func startDozingEcho(t *testing.T, c Conn) *dozingEcho {
	t.Helper()
	if _, ok := c.(Dozer); !ok {
		t.Skip("it can't doze")
	}
	e := &dozingEcho{c: c, done: make(chan error, 1)}
	go e.run()
	return e
}

func (e *dozingEcho) run() {
	dozing, err := e.c.(Dozer).LoopOrDoze(e.step, e.resumed)
	if !dozing {
		e.done <- errors.Join(err, e.seen)
	}
}

func (e *dozingEcho) resumed() {
	e.dozed.Add(1)
	e.run()
}

func (e *dozingEcho) step() bool {
	for {
		n, err := e.c.TryRead(e.buf[:])
		if errors.Is(err, ErrWouldBlock) {
			return true
		}
		if err == nil {
			_, err = e.c.Write(e.buf[:n])
		}
		if err != nil {
			e.seen = err
			return false
		}
	}
}

// eachDozer runs f on both ends of a connection whose second end can doze.
func eachDozer(t *testing.T, f func(t *testing.T, a, b Conn)) {
	t.Run("tcp", func(t *testing.T) {
		a, b := tcpPair(t)
		defer a.Close()
		f(t, a, b)
	})
	t.Run("tls", func(t *testing.T) {
		a, b := tcpPair(t)
		a, b = tlsPair(t, a, b)
		defer a.Close()
		f(t, a, b)
	})
}

// dozing waits until c dozes.
func dozing(t *testing.T, c Conn) {
	t.Helper()
	if d, ok := c.(*tlsDozer); ok {
		c = d.inner
	}
	s, ok := c.(*socket)
	if !ok {
		t.Fatalf("%T", c)
	}
	for end := time.Now().Add(10 * time.Second); ; time.Sleep(5 * time.Millisecond) {
		dozers.mu.Lock()
		yes := s.resume != nil
		dozers.mu.Unlock()
		if yes {
			return
		}
		if time.Now().After(end) {
			t.Fatal("it does not doze")
		}
	}
}

func TestAQuietLoopDozesAndGoesOn(t *testing.T) {
	eachDozer(t, func(t *testing.T, a, b Conn) {
		e := startDozingEcho(t, b)
		for i := range 3 {
			msg := fmt.Sprintf("message %d", i)
			write(t, a, msg)
			if got := readN(t, a, len(msg)); got != msg {
				t.Fatalf("got %q", got)
			}
			dozing(t, b)
		}
		_ = a.Close()
		if err := <-e.done; !errors.Is(err, io.EOF) {
			t.Errorf("the end is seen as %v", err)
		}
		if n := e.dozed.Load(); n != 3 {
			t.Errorf("it dozed %d times", n)
		}
		_ = b.Close()
	})
}

func TestADozeEndsWhenTheConnectionIsClosedOrInterrupted(t *testing.T) {
	for name, tc := range map[string]struct {
		end  func(Conn)
		want error
	}{
		"close":          {func(c Conn) { _ = c.Close() }, ErrClosed},
		"reset":          {Conn.Reset, ErrClosed},
		"interrupt":      {func(c Conn) { c.Interrupt(errCause) }, errCause},
		"interrupt read": {func(c Conn) { InterruptRead(c, errCause) }, errCause},
	} {
		t.Run(name, func(t *testing.T) {
			eachDozer(t, func(t *testing.T, _, b Conn) {
				e := startDozingEcho(t, b)
				dozing(t, b)
				tc.end(b)
				if err := <-e.done; !errors.Is(err, tc.want) {
					t.Errorf("got %v", err)
				}
				_ = b.Close()
			})
		})
	}
}

func TestDozingConnectionsNeedNoGoroutine(t *testing.T) {
	const n = 50
	var as, bs []Conn
	for range n {
		a, b := tcpPair(t)
		as, bs = append(as, a), append(bs, b)
	}
	before := runtime.NumGoroutine()
	var es []*dozingEcho
	for _, b := range bs {
		es = append(es, startDozingEcho(t, b))
	}
	for _, b := range bs {
		dozing(t, b)
	}
	time.Sleep(10 * time.Millisecond)
	if now := runtime.NumGoroutine(); now > before+5 {
		t.Errorf("%d goroutines for %d connections", now-before, n)
	}
	for i, a := range as {
		_ = a.Close()
		<-es[i].done
		_ = bs[i].Close()
	}
}

// Bytes come, and connections end, at any moment of falling asleep.
func TestNothingIsLostAtTheEdgeOfADoze(t *testing.T) {
	var wg sync.WaitGroup
	for i := range 24 {
		a, b := tcpPair(t)
		if i%3 == 0 {
			a, b = tlsPair(t, a, b)
		}
		e := startDozingEcho(t, b)
		wg.Go(func() {
			r := rand.New(rand.NewPCG(uint64(i), 1))
			buf := make([]byte, 8)
			for k := range 6 {
				time.Sleep(dozeCheck*time.Duration(1+r.IntN(2)) + time.Duration(r.IntN(12)-2)*time.Millisecond)
				msg := fmt.Sprintf("%08d", k)
				if _, err := a.Write([]byte(msg)); err != nil {
					t.Error(err)
					return
				}
				if _, err := io.ReadFull(a, buf); err != nil || string(buf) != msg {
					t.Errorf("got %q, %v", buf, err)
					return
				}
			}
			time.Sleep(dozeCheck + time.Duration(r.IntN(12)-2)*time.Millisecond)
			if i%2 == 0 {
				_ = a.Close()
			} else {
				b.Interrupt(errCause)
			}
			if err := <-e.done; !errors.Is(err, io.EOF) && !errors.Is(err, errCause) {
				t.Error(err)
			}
			_ = a.Close()
			_ = b.Close()
		})
	}
	wg.Wait()
}

// A loop whose f takes long is not quiet, and is not made to doze right after.
func TestALoopAtWorkDoesNotDoze(t *testing.T) {
	for range 20 {
		if atWork(t) {
			return
		}
	}
	t.Error("the loop was never at work when it was looked at")
}

// atWork reports whether the bytes came in time: before the loop dozed.
func atWork(t *testing.T) bool {
	a, b := tcpPair(t)
	defer a.Close()
	defer b.Close()
	rounds := 0
	var ended time.Time
	resumed := make(chan struct{})
	sent := make(chan struct{})
	time.AfterFunc(dozeCheck/2, func() {
		_, _ = a.Write([]byte("x"))
		close(sent)
	})
	dozing, err := b.(Dozer).LoopOrDoze(func() bool {
		if n, _ := b.TryRead(make([]byte, 8)); n > 0 {
			rounds++
			time.Sleep(4 * dozeCheck)
			ended = time.Now()
		}
		return true
	}, func() { close(resumed) })
	inTime := rounds > 0
	if quiet := time.Since(ended); !dozing || err != nil || inTime && (rounds != 1 || quiet < dozeCheck/2) {
		t.Errorf("dozing %t, %v, %d rounds, %v after the last", dozing, err, rounds, quiet)
	}
	<-sent
	write(t, a, "y")
	<-resumed
	return inTime
}

// A look at a former loop may end the next one as quiet before that has run: bytes
// that were put back would wait for others.
func TestALoopWithBytesThatWerePutBackDoesNotDoze(t *testing.T) {
	_, b := tcpPair(t)
	s := WithPrefix(b, []byte("head")).(*socket)
	s.dozes.Store(true)
	s.quiet.Store(true)
	_ = s.nc.SetReadDeadline(past)
	var got string
	err := s.runLoop(func() bool {
		got, _ = tryAll(s)
		return false
	})
	if got != "head" || err != nil {
		t.Errorf("%q, %v", got, err)
	}
	_ = b.Close()
}
