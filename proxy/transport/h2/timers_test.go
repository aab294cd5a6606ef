package h2

import (
	"bytes"
	"errors"
	"io"
	"runtime"
	"strconv"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/fairlead-mesh/fairlead/internal/message"
	"github.com/fairlead-mesh/fairlead/internal/netio"
	"github.com/fairlead-mesh/fairlead/proxy/transport"
)

// ownWorkers gives the connections of one test a pool of their own: goroutines
// that idle in the process's pool may not be woken from inside a bubble.
func ownWorkers(t *testing.T) {
	t.Helper()
	old := workers
	workers = &workerPool{}
	t.Cleanup(func() { workers = old })
}

// bubble runs a server and the frames of a client in a synctest bubble. f gets
// the client's wire, which has sent preface and SETTINGS, and the server.
func bubble(t *testing.T, cfg *transport.ServerConfig, greet bool, f func(*wire, *Server)) {
	ownWorkers(t)
	synctest.Test(t, func(t *testing.T) {
		c, s := serve(t, cfg, &handlerFunc{f: newSite().serve})
		w := newWire(t, c)
		if greet {
			w.out = append(w.out, preface...)
			w.send([]string{"SETTINGS"})
			w.flush()
		}
		f(w, s)
		_ = c.Close()
		synctest.Wait()
	})
}

func (w *wire) mustSee(d time.Duration, lines ...string) {
	w.t.Helper()
	start := time.Now()
	for _, l := range lines {
		if err := w.expect(words(l)); err != nil {
			w.t.Fatalf("%s: %v", l, err)
		}
	}
	if got := time.Since(start); got < d || got > d+d/4+100*time.Millisecond {
		w.t.Errorf("%v after %v, want %v", lines, got, d)
	}
}

func TestAnIdleConnectionIsClosedInOrder(t *testing.T) {
	bubble(t, &transport.ServerConfig{IdleTimeout: time.Minute}, true, func(w *wire, _ *Server) {
		time.Sleep(50 * time.Second)
		w.send(words("GET 1 end :path=/204"))
		w.mustSee(0, "HEADERS 1 end")
		w.mustSee(time.Minute, "GOAWAY NO_ERROR 1", "CLOSED")
	})
}

func TestAnOpenStreamKeepsItsConnection(t *testing.T) {
	bubble(t, &transport.ServerConfig{IdleTimeout: time.Minute}, true, func(w *wire, s *Server) {
		w.send(words("POST 1 :path=/hang"))
		w.flush()
		time.Sleep(time.Hour)
		if s.Active() != 1 {
			t.Error("closed")
		}
		w.send(words("RST 1 CANCEL"))
		w.flush()
		w.mustSee(time.Minute, "GOAWAY NO_ERROR 1", "CLOSED")
	})
}

func TestAnIdleTimeoutOfMinusOneIsNever(t *testing.T) {
	bubble(t, &transport.ServerConfig{IdleTimeout: -1}, true, func(w *wire, _ *Server) {
		time.Sleep(1000 * time.Hour)
		w.send(words("GET 1 end :path=/204"))
		w.mustSee(0, "HEADERS 1 end")
	})
}

func TestAClientThatDoesNotGreetIsClosed(t *testing.T) {
	bubble(t, &transport.ServerConfig{}, false, func(w *wire, _ *Server) {
		w.mustSee(handshakeTimeout, "GOAWAY SETTINGS_TIMEOUT", "CLOSED")
	})
	bubble(t, &transport.ServerConfig{}, false, func(w *wire, _ *Server) {
		w.out = append(w.out, preface...)
		w.flush()
		w.mustSee(handshakeTimeout, "GOAWAY SETTINGS_TIMEOUT", "CLOSED")
	})
}

func TestASlowHeadIsCut(t *testing.T) {
	for _, head := range []string{"GET 1 end more", "RAW 0000ff0104000000 01", "RAW 0000ff0104000000"} {
		bubble(t, &transport.ServerConfig{HeadersTimeout: 5 * time.Second}, true, func(w *wire, _ *Server) {
			w.send(words("GET 1 end"))
			w.mustSee(0, "HEADERS 1", "DATA 1 end")
			time.Sleep(20 * time.Second)
			w.send(words(strings.Replace(head, "GET 1", "GET 3", 1)))
			w.flush()
			w.mustSee(5*time.Second, "GOAWAY ENHANCE_YOUR_CALM", "CLOSED")
		})
	}
}

func TestASlowBodyIsNoSlowHead(t *testing.T) {
	bubble(t, &transport.ServerConfig{HeadersTimeout: 5 * time.Second}, true, func(w *wire, _ *Server) {
		w.send(words("POST 1 :path=/count"))
		for range 10 {
			w.send(words("RAW 000001000000000001"))
			w.flush()
			time.Sleep(4 * time.Second)
			w.send(words("RAW 61"))
		}
		w.send(words("DATA 1 end"))
		w.mustSee(0, "HEADERS 1", "DATA 1 end n=10")
	})
}

func TestADeadClientIsFoundByPing(t *testing.T) {
	bubble(t, &transport.ServerConfig{KeepaliveInterval: 10 * time.Second, KeepaliveTimeout: 3 * time.Second}, true, func(w *wire, _ *Server) {
		// A client that answers lives; next answers PING.
		w.send(words("GET 1 end :path=/minute"))
		w.mustSee(time.Minute, "HEADERS 1 end")
		start := time.Now()
		for {
			if _, err := w.fr.ReadFrame(); err != nil {
				break
			}
		}
		if d := time.Since(start); d < 13*time.Second || d > 24*time.Second {
			t.Errorf("closed after %v", d)
		}
	})
}

func TestAConnectionHasAMaximalAge(t *testing.T) {
	bubble(t, &transport.ServerConfig{MaxConnectionDuration: time.Minute}, true, func(w *wire, _ *Server) {
		w.send(words("POST 1 :path=/count"))
		w.mustSee(time.Minute, "GOAWAY NO_ERROR 2147483647", "GOAWAY NO_ERROR 1")
		time.Sleep(time.Minute)
		w.send(words("DATA 1 end"))
		w.mustSee(0, "HEADERS 1", "DATA 1 end n=0", "CLOSED")
	})
}

func TestADrainDoesNotWaitForAClientThatIgnoresPing(t *testing.T) {
	bubble(t, &transport.ServerConfig{}, true, func(w *wire, s *Server) {
		s.Drain()
		start := time.Now()
		var buf bytes.Buffer
		_, _ = io.Copy(&buf, readOnly{w.conn})
		if d := time.Since(start); d < drainNotice || d > drainNotice+100*time.Millisecond {
			t.Errorf("closed after %v", d)
		}
		if n := bytes.Count(buf.Bytes(), []byte{0, 0, 8, byte(frameGoAway)}); n != 2 {
			t.Errorf("%d GOAWAY frames", n)
		}
	})
}

func TestAServerIsClosedWithItsStreams(t *testing.T) {
	cause := errors.New("listener removed")
	got := make(chan error, 1)
	cc, s := dial(t, &transport.ServerConfig{}, &transport.ClientConfig{}, func(s transport.ServerStream) {
		_, err := readBody(s.Body())
		got <- err
	})
	cs, err := cc.NewStream()
	if err != nil {
		t.Fatal(err)
	}
	_ = cs.WriteHeaders(postHead("/"), false)
	_ = cs.Flush()
	waitFor(t, func() bool { return s.Active() == 1 })
	s.Close(cause)
	if err := <-got; transport.ReasonOf(err) != transport.ConnectionTermination || !strings.Contains(err.Error(), cause.Error()) {
		t.Error(err)
	}
	var h message.Header
	if _, _, err := cs.ReadHeaders(&h); transport.ReasonOf(err) == 0 {
		t.Error(err)
	}
	cs.Release()
	<-cc.Done()
}

// A client inside a tunnel, a server inside a tunnel: neither holds a goroutine
// while nothing happens.
func TestConnectionsInsideTunnelsHoldNoGoroutine(t *testing.T) {
	var inner sync.WaitGroup
	cc, _ := dial(t, &transport.ServerConfig{}, &transport.ClientConfig{}, tunnelHandler(func(c netio.Conn) {
		inner.Add(1)
		NewServer(c, &transport.ServerConfig{}, &handlerFunc{f: echo}).Serve(inner.Done)
	}))
	var ccs []transport.ClientConn
	before := 0
	for i := range 21 {
		in, err := NewClient(connect(t, cc), &transport.ClientConfig{})
		if err != nil {
			t.Fatal(err)
		}
		if _, body, err := roundTrip(in, postHead("/"), "through"); body != "through" || err != nil {
			t.Fatal(body, err)
		}
		ccs = append(ccs, in)
		if i == 0 {
			waitFor(t, func() bool { workers.mu.Lock(); defer workers.mu.Unlock(); return workers.n <= 4 })
			before = runtime.NumGoroutine()
		}
	}
	waitFor(t, func() bool { return runtime.NumGoroutine() <= before+4 })
	for _, in := range ccs {
		in.Close(nil)
		<-in.Done()
	}
	inner.Wait()
}

func TestWhatAConnectionBuffersIsBounded(t *testing.T) {
	release := make(chan struct{})
	cc, s := dial(t, &transport.ServerConfig{}, &transport.ClientConfig{}, func(s transport.ServerStream) {
		<-release
		n := 0
		b := s.Body()
		defer b.Close()
		for {
			p, last, err := b.Next()
			n += len(p)
			if err != nil {
				return
			}
			if last {
				break
			}
		}
		if n != 256<<10 {
			t.Errorf("%d octets", n)
		}
		_ = s.WriteHeaders(header(":status", "200"), true)
	})
	// 80 stalled streams would buffer 20 MiB.
	var wg sync.WaitGroup
	for range 80 {
		wg.Go(func() {
			if _, _, err := roundTrip(cc, postHead("/"), strings.Repeat("s", 256<<10)); err != nil {
				t.Error(err)
			}
		})
	}
	last := int64(-1)
	waitFor(t, func() bool {
		time.Sleep(30 * time.Millisecond)
		n := s.c.buffered.Load()
		same := n == last
		last = n
		return same && n > 1<<20
	})
	if limit := s.c.lim.buffered + s.c.lim.connWindow; last > limit {
		t.Errorf("%d octets are buffered, limit %d", last, limit)
	}
	close(release)
	wg.Wait()
}

// The HTTP/2 bomb: one-octet references to a table entry, and window 0.
func TestABombCostsNothing(t *testing.T) {
	if raceEnabled {
		t.Skip("measured without the race detector")
	}
	before := heap()
	for range 3 {
		c, _ := serve(t, &transport.ServerConfig{}, &handlerFunc{f: newSite().serve})
		w := newWire(t, c)
		w.out = append(w.out, preface...)
		w.send(words("SETTINGS 4=0"))
		w.send(words("GET 1 end cookie=a=b x=y :path=/204"))
		w.mustSee(0, "HEADERS 1 end")
		block := append(w.fields(usual, []string{":path=/hang"}), bytes.Repeat([]byte{0xbe}, 16_000)...)
		for i := range 100 {
			w.payload(frameHeaders, flagEndHeaders|flagEndStream, uint32(2*i+3), block, -1)
			w.flush()
			w.mustSee(0, "HEADERS "+strconv.Itoa(2*i+3)+" end :status=431")
		}
	}
	if grown := int64(heap() - before); grown > 4<<20 {
		t.Errorf("%d octets", grown)
	}
}
