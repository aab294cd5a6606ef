package h2

import (
	"bytes"
	"context"
	"crypto/sha256"
	"errors"
	"io"
	"math/rand/v2"
	"net/netip"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/fairlead-mesh/fairlead/internal/netio"
	"github.com/fairlead-mesh/fairlead/proxy/transport"
)

// A stream's goroutine that writes to a transport that takes nothing is freed
// soon after the stream was interrupted.
func TestInterruptFreesAWriterFromAStalledTransport(t *testing.T) {
	ownWorkers(t)
	synctest.Test(t, func(t *testing.T) {
		a, b := netio.Pipe(clientAddr, serverAddr)
		cc, err := NewClient(a, &transport.ClientConfig{})
		if err != nil {
			t.Fatal(err)
		}
		w := newWire(t, b) // never reads
		w.send(words("SETTINGS 4=100000000"))
		w.send(words("WINDOW 0 100000000"))
		w.flush()
		synctest.Wait()
		cs, err := cc.NewStream()
		if err != nil {
			t.Fatal(err)
		}
		done := make(chan error, 1)
		go func() {
			_ = cs.WriteHeaders(postHead("/"), false)
			done <- cs.WriteData(make([]byte, 1<<20), true)
		}()
		time.Sleep(time.Hour)
		cause := errors.New("timeout")
		start := time.Now()
		cs.Interrupt(cause)
		if err := <-done; !errors.Is(err, cause) {
			t.Error(err)
		}
		if d := time.Since(start); d > stuckGrace+100*time.Millisecond {
			t.Errorf("after %v", d)
		}
		cs.Release()
		<-cc.Done()
		_ = b.Close()
		synctest.Wait()
	})
}

// The same while the transport moves, however slowly: nobody else is hurt.
func TestInterruptLeavesASlowTransportAlone(t *testing.T) {
	ownWorkers(t)
	synctest.Test(t, func(t *testing.T) {
		a, b := netio.Pipe(clientAddr, serverAddr)
		cc, err := NewClient(a, &transport.ClientConfig{})
		if err != nil {
			t.Fatal(err)
		}
		w := newWire(t, b)
		w.send(words("SETTINGS 4=100000000"))
		w.send(words("WINDOW 0 100000000"))
		w.flush()
		synctest.Wait()
		stop := make(chan struct{})
		var wg sync.WaitGroup
		wg.Go(func() { // 64 KiB in half a second
			buf := make([]byte, 32<<10)
			for {
				if _, err := b.Read(buf); err != nil {
					return
				}
				select {
				case <-stop:
				default:
					time.Sleep(250 * time.Millisecond)
				}
			}
		})
		var css []transport.ClientStream
		errs := make(chan error, 2)
		for range 2 {
			cs, err := cc.NewStream()
			if err != nil {
				t.Fatal(err)
			}
			css = append(css, cs)
			go func() {
				_ = cs.WriteHeaders(postHead("/"), false)
				errs <- cs.WriteData(make([]byte, 1<<20), true)
			}()
		}
		time.Sleep(2 * time.Second)
		cause := errors.New("timeout")
		css[0].Interrupt(cause)
		if err := <-errs; !errors.Is(err, cause) {
			t.Error(err)
		}
		if err := <-errs; err != nil {
			t.Error(err)
		}
		close(stop)
		for _, cs := range css {
			cs.Release()
		}
		_ = b.CloseWrite()
		<-cc.Done()
		_ = b.Close()
		wg.Wait()
	})
}

// A callback of OnReset that runs while its owner is being reused would meet the
// next request, also if that has reset the stream itself meanwhile.
func TestOnResetCanBeTakenBack(t *testing.T) {
	for name, meanwhile := range map[string]func(transport.ServerStream){
		"while it runs":                      func(transport.ServerStream) {},
		"while it runs and the owner resets": func(s transport.ServerStream) { s.Reset(transport.LocalReset) },
	} {
		t.Run(name, func(t *testing.T) {
			registered, entered, leave, back := make(chan struct{}), make(chan struct{}), make(chan struct{}), make(chan struct{})
			cc, _ := dial(t, &transport.ServerConfig{}, &transport.ClientConfig{}, func(s transport.ServerStream) {
				s.OnReset(func(error) {
					close(entered)
					<-leave
				})
				close(registered)
				<-entered
				meanwhile(s)
				time.AfterFunc(20*time.Millisecond, func() { close(leave) })
				s.OnReset(nil)
				select {
				case <-leave:
				default:
					t.Error("OnReset(nil) returned while the callback ran")
				}
				s.OnReset(nil)
				close(back)
			})
			cs, err := cc.NewStream()
			if err != nil {
				t.Fatal(err)
			}
			_ = cs.WriteHeaders(getHead("/"), true)
			<-registered
			cs.Reset()
			<-back
			cs.Release()
		})
	}
}

// Bytes arrive as they were sent, whatever the sizes of writes, windows, frames
// and reads, over a pipe and over a socket.
func TestBytesAreTheSameAtBothEnds(t *testing.T) {
	const total = 8 << 20
	for _, tc := range []struct {
		name   string
		socket bool
		frame  uint32
		window uint32
	}{
		{"pipe", false, 0, 0},
		{"pipe, large frames", false, 1 << 20, 4 << 20},
		{"pipe, small window", false, 0, 5000},
		{"socket", true, 0, 0},
		{"socket, large frames", true, 1 << 20, 4 << 20},
	} {
		t.Run(tc.name, func(t *testing.T) {
			sums := make(chan [32]byte, 1)
			h := &handlerFunc{f: tunnelHandler(func(c netio.Conn) {
				sum := sha256.New()
				var back bytes.Buffer
				r := rand.New(rand.NewPCG(1, 1))
				buf := make([]byte, 100_000)
				for {
					n, err := c.Read(buf[:1+r.IntN(len(buf)-1)])
					sum.Write(buf[:n])
					if back.Len() < total/4 {
						back.Write(buf[:n])
					}
					if err != nil {
						break
					}
				}
				sums <- [32]byte(sum.Sum(nil))
				_, _ = c.Write(back.Bytes())
				_ = c.CloseWrite()
				_ = c.Close()
			})}
			scfg := &transport.ServerConfig{MaxFrameSize: tc.frame, InitialStreamWindow: tc.window, AllowConnect: true}
			ccfg := &transport.ClientConfig{MaxFrameSize: tc.frame, InitialStreamWindow: tc.window}
			var nc netio.Conn
			if tc.socket {
				nc = serveSocket(t, scfg, h)
			} else {
				nc, _ = serve(t, scfg, h)
			}
			cc, err := NewClient(nc, ccfg)
			if err != nil {
				t.Fatal(err)
			}
			defer func() {
				cc.Close(nil)
				<-cc.Done()
			}()
			tun := connect(t, cc)
			data := make([]byte, total)
			src := rand.NewChaCha8([32]byte{7})
			_, _ = src.Read(data)
			r := rand.New(rand.NewPCG(2, 2))
			for p := data; len(p) > 0; {
				n := min(len(p), 1+r.IntN(200_000))
				if r.IntN(3) == 0 {
					n = min(len(p), 1+r.IntN(100))
				}
				if _, err := tun.Write(p[:n]); err != nil {
					t.Fatal(err)
				}
				p = p[n:]
			}
			_ = tun.CloseWrite()
			if <-sums != sha256.Sum256(data) {
				t.Error("the server got something else")
			}
			got, err := io.ReadAll(tun)
			if err != nil || len(got) < total/4 || !bytes.Equal(got, data[:len(got)]) {
				t.Errorf("the client got %d octets, %v", len(got), err)
			}
			_ = tun.Close()
		})
	}
}

func serveSocket(t testing.TB, cfg *transport.ServerConfig, h transport.Handler) netio.Conn {
	t.Helper()
	l, err := netio.Listen(netip.MustParseAddrPort("127.0.0.1:0"), netio.ListenOptions{})
	if err != nil {
		t.Fatal(err)
	}
	done := make(chan struct{})
	go func() {
		c, err := l.Accept()
		_ = l.Close()
		if err != nil {
			close(done)
			return
		}
		NewServer(c, cfg, h).Serve(func() { close(done) })
	}()
	t.Cleanup(func() { <-done })
	c, err := netio.Dial(context.Background(), l.Addr(), netio.DialOptions{})
	if err != nil {
		t.Fatal(err)
	}
	return c
}

// A stream's goroutine is not kept flushing for others.
func TestAFlusherHandsOn(t *testing.T) {
	a, _ := serve(t, &transport.ServerConfig{}, &handlerFunc{f: echo})
	cc, err := NewClient(a, &transport.ClientConfig{})
	if err != nil {
		t.Fatal(err)
	}
	c := &cc.(*client).c
	var wg sync.WaitGroup
	for range 30 {
		wg.Go(func() {
			for range 30 {
				if _, body, err := roundTrip(cc, postHead("/"), string(make([]byte, 20_000))); err != nil || len(body) != 20_000 {
					t.Error(len(body), err)
				}
			}
		})
	}
	wg.Wait()
	waitFor(t, func() bool {
		c.mu.Lock()
		defer c.mu.Unlock()
		return !c.flushing && c.writer == nil && len(c.out) == 0
	})
	cc.Close(nil)
	<-cc.Done()
}
