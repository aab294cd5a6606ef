package h2

import (
	"testing"
	"testing/synctest"
	"time"

	"github.com/fairlead-mesh/fairlead/internal/message"
	"github.com/fairlead-mesh/fairlead/internal/netio"
	"github.com/fairlead-mesh/fairlead/internal/timer"
	"github.com/fairlead-mesh/fairlead/proxy/transport"
)

// Streams are reused by other connections: one that is over must not be kept by
// those that wait for its connection's window, nor be in there twice.
func TestAStreamThatIsOverDoesNotWaitForTheWindow(t *testing.T) {
	var c *conn
	set := make(chan struct{})
	cc, srv := dial(t, &transport.ServerConfig{}, &transport.ClientConfig{}, func(s transport.ServerStream) {
		<-set
		c.mu.Lock()
		c.sendWin = 0
		c.mu.Unlock()
		if s.WriteHeaders(header(message.Status, "200"), false) == nil && s.WriteData(make([]byte, 100), true) == nil {
			t.Error("the window is 0")
		}
	})
	c = &srv.c
	close(set)
	cs, err := cc.NewStream()
	if err != nil {
		t.Fatal(err)
	}
	if err := cs.WriteHeaders(getHead("/"), true); err != nil {
		t.Fatal(err)
	}
	waiting := func() (queued, goroutines int) {
		c.mu.Lock()
		defer c.mu.Unlock()
		for _, s := range c.streams {
			goroutines = s.wake.n
		}
		return len(c.winWait), goroutines
	}
	waitFor(t, func() bool { n, g := waiting(); return n > 0 && g > 0 })
	for range 3 { // as WINDOW_UPDATEs of the stream do
		c.mu.Lock()
		for _, s := range c.streams {
			s.wake.wake()
		}
		c.mu.Unlock()
		waitFor(t, func() bool { _, g := waiting(); return g > 0 })
	}
	if n, _ := waiting(); n != 1 {
		t.Errorf("it waits %d times", n)
	}
	cs.Reset()
	cs.Release()
	waitFor(t, func() bool { return srv.Active() == 0 })
	if n, _ := waiting(); n != 0 {
		t.Error("it still waits")
	}
}

// A connection that is to end with its last stream ends too if that was reset
// between its head and its becoming a tunnel.
func TestATunnelThatIsOverBeforeItBeginsEndsItsConnection(t *testing.T) {
	answered := make(chan struct{})
	cc, _ := dial(t, &transport.ServerConfig{}, &transport.ClientConfig{}, func(s transport.ServerStream) {
		_ = s.WriteHeaders(header(message.Status, "200"), false)
		_ = s.Flush()
		<-answered
		s.Reset(transport.LocalReset)
	})
	cs, err := cc.NewStream()
	if err != nil {
		t.Fatal(err)
	}
	cc.Drain()
	_ = cs.WriteHeaders(header(message.Method, "CONNECT", message.Authority, "10.1.2.3:80"), false)
	var h message.Header
	if status, _, err := cs.ReadHeaders(&h); err != nil || status != 200 {
		t.Fatal(status, err)
	}
	close(answered)
	c := &cc.(*client).c
	waitFor(t, func() bool {
		c.mu.Lock()
		defer c.mu.Unlock()
		return len(c.streams) == 0
	})
	tun := cs.Tunnel()
	cs.Release()
	_ = tun.Close()
	deadline(t, cc.Done(), "the connection")
}

// An upgrade waits for the peer's settings, which say whether it may be sent.
func TestAStreamThatWaitsForSettingsCanBeReset(t *testing.T) {
	ownWorkers(t)
	synctest.Test(t, func(t *testing.T) {
		near, far := netio.Pipe(clientAddr, serverAddr)
		cc, err := NewClient(near, &transport.ClientConfig{})
		if err != nil {
			t.Fatal(err)
		}
		cs, err := cc.NewStream()
		if err != nil {
			t.Fatal(err)
		}
		errs := make(chan error, 1)
		go func() {
			h := getHead("/")
			h.Add("upgrade", "websocket")
			errs <- cs.WriteHeaders(h, false)
		}()
		synctest.Wait()
		cs.Reset()
		synctest.Wait()
		select {
		case err := <-errs:
			if transport.ReasonOf(err) != transport.LocalReset {
				t.Error(err)
			}
		default:
			t.Error("it still waits")
		}
		cc.Close(nil)
		<-cc.Done()
		_ = far.Close()
	})
}

func TestTimersDoNotKeepAConnectionThatIsClosedBeforeItBegins(t *testing.T) {
	near, far := netio.Pipe(clientAddr, serverAddr)
	s := NewServer(far, &transport.ServerConfig{MaxConnectionDuration: time.Hour, KeepaliveInterval: time.Hour}, &handlerFunc{})
	s.Close(nil)
	done := make(chan struct{})
	go s.Serve(func() { close(done) })
	deadline(t, done, "the connection")
	for name, tm := range map[string]*timer.Timer{"handshake": &s.c.handshakeTimer, "idle": &s.c.idleTimer, "life": &s.c.lifeTimer, "ping": &s.c.pingTimer} {
		if tm.Stop() {
			t.Error(name + " timer is armed")
		}
	}
	_ = near.Close()
}

// Who reads the answer to a head that could not be sent does not wait for ever,
// whether it came first or ignores that.
func TestAStreamWhoseHeadWasNotSentHasNoAnswer(t *testing.T) {
	for _, first := range []bool{true, false} {
		ownWorkers(t)
		synctest.Test(t, func(t *testing.T) {
			near, far := netio.Pipe(clientAddr, serverAddr)
			cc, err := NewClient(near, &transport.ClientConfig{})
			if err != nil {
				t.Fatal(err)
			}
			cs, err := cc.NewStream()
			if err != nil {
				t.Fatal(err)
			}
			answer := make(chan error, 1)
			read := func() {
				var h message.Header
				_, _, err := cs.ReadHeaders(&h)
				answer <- err
			}
			if first {
				go read()
				synctest.Wait()
			}
			cc.Close(nil)
			_ = cs.WriteHeaders(getHead("/"), true)
			if !first {
				go read()
			}
			synctest.Wait()
			select {
			case err := <-answer:
				if transport.ReasonOf(err) != transport.RemoteRefused {
					t.Error(err)
				}
			default:
				t.Error("it waits")
				cs.Interrupt(netio.ErrClosed)
			}
			cs.Release()
			<-cc.Done()
			_ = far.Close()
		})
	}
}
