package h1

import (
	"errors"
	"io"
	"testing"
	"time"

	"github.com/fairlead-mesh/fairlead/internal/conntest"
	"github.com/fairlead-mesh/fairlead/internal/message"
	"github.com/fairlead-mesh/fairlead/internal/netio"
	"github.com/fairlead-mesh/fairlead/proxy/transport"
)

func TestAStaleConnectionIsRefusedBeforeAnythingIsSent(t *testing.T) {
	for name, conns := range kinds {
		for what, spoil := range map[string]func(c netio.Conn){
			"closed":      func(c netio.Conn) { _ = c.Close() },
			"half-closed": func(c netio.Conn) { _ = c.CloseWrite() },
			"reset":       func(c netio.Conn) { c.Reset() },
			"data":        func(c netio.Conn) { _, _ = c.Write([]byte("HTTP/1.1 200 OK\r\nContent-Length: 4\r\n\r\nevil")) },
		} {
			t.Run(name+" "+what, func(t *testing.T) {
				cc, sc := conns(t)
				seen := origin(t, sc, "HTTP/1.1 204 No\r\n\r\n")
				closed := make(chan error, 1)
				idle := 0
				cl := NewClient(cc, &transport.ClientConfig{
					OnIdle:  func(transport.ClientConn) { idle++ },
					OnClose: func(_ transport.ClientConn, err error) { closed <- err },
				})
				st := open(t, cl)
				var h message.Header
				_ = st.WriteHeaders(request(simple), true)
				if _, end, err := st.ReadHeaders(&h); err != nil || !end {
					t.Fatal(err)
				}
				for range seen {
				}
				st.Release()
				if idle != 1 || cl.Available() != 1 || cl.Active() != 0 {
					t.Fatalf("idle %d, available %d, active %d", idle, cl.Available(), cl.Active())
				}
				spoil(sc)
				time.Sleep(10 * time.Millisecond)
				if _, err := cl.NewStream(); transport.ReasonOf(err) != transport.ConnectionTermination {
					t.Errorf("got %v", err)
				}
				<-cl.Done()
				<-closed
				_ = sc.Close()
			})
		}
	}
}

// A connection may have been made for a request that did not need it any more. Peers
// wait for a first request only so long.
func TestThePeersCloseOfAConnectionThatWasNeverUsedIsNoticed(t *testing.T) {
	cc, sc := conntest.Sockets(t)
	cl := NewClient(cc, &transport.ClientConfig{}).(*Client)
	_ = sc.Close()
	for range 1000 {
		if cl.stale() {
			break
		}
		time.Sleep(10 * time.Millisecond)
	}
	cl.born = cl.born.Add(-time.Minute)
	if _, err := cl.NewStream(); transport.ReasonOf(err) != transport.ConnectionTermination {
		t.Errorf("got %v", err)
	}
	<-cl.Done()
}

func TestThePeersCloseOfAnIdleConnectionIsNoticed(t *testing.T) {
	cc, sc := conntest.Sockets(t)
	origin(t, sc, "HTTP/1.1 204 No\r\n\r\n")
	cl := NewClient(cc, &transport.ClientConfig{})
	st := open(t, cl)
	var h message.Header
	_ = st.WriteHeaders(request(simple), true)
	_, _, _ = st.ReadHeaders(&h)
	st.Release()
	_ = sc.Close()
	select {
	case <-cl.Done():
	case <-time.After(20 * time.Second):
		t.Error("not noticed")
	}
}

func TestSessionTicketsDoNotSpoilAnIdleConnection(t *testing.T) {
	cc, sc := secured(t) // the server sends tickets behind the handshake
	origin(t, sc, "HTTP/1.1 204 No\r\n\r\n", "HTTP/1.1 204 No\r\n\r\n")
	cl := NewClient(cc, &transport.ClientConfig{})
	var h message.Header
	for range 2 {
		st := open(t, cl)
		_ = st.WriteHeaders(request(simple), true)
		if _, _, err := st.ReadHeaders(&h); err != nil {
			t.Fatal(err)
		}
		st.Release()
	}
	cl.Close(nil)
	_ = sc.Close()
}

func TestInterruptFailsWithItsCause(t *testing.T) {
	cause := errors.New("cause")
	cc, sc := conntest.Sockets(t)
	origin(t, sc, "HTTP/1.1 200 OK\r\nContent-Length: 9\r\n\r\nx")
	cl := NewClient(cc, &transport.ClientConfig{})
	st := open(t, cl)
	_ = st.WriteHeaders(request(simple), true)
	var h message.Header
	if _, _, err := st.ReadHeaders(&h); err != nil {
		t.Fatal(err)
	}
	time.AfterFunc(10*time.Millisecond, func() { st.Interrupt(cause) })
	if _, err := io.ReadAll(message.NewReader(st.Body())); !errors.Is(err, cause) {
		t.Errorf("got %v", err)
	}
	st.Release()
	if cl.Available() != 0 {
		t.Error("reused")
	}
	_ = sc.Close()
}

func TestAConnectionThatDiesUnansweredSaysSo(t *testing.T) {
	cc, sc := conntest.Sockets(t)
	origin(t, sc, "HTTP/1.1 204 No\r\n\r\n")
	cl := NewClient(cc, &transport.ClientConfig{})
	st := open(t, cl)
	_ = st.WriteHeaders(request(simple), true)
	var h message.Header
	_, _, _ = st.ReadHeaders(&h)
	st.Release()
	st = open(t, cl)
	_ = st.WriteHeaders(request(simple), true)
	go func() {
		time.Sleep(10 * time.Millisecond)
		sc.Reset()
	}()
	_, _, err := st.ReadHeaders(&h)
	if transport.ReasonOf(err) != transport.ConnectionTermination || st.BytesIn() != 0 {
		t.Errorf("got %v, %d bytes", err, st.BytesIn())
	}
	st.Release()
}

func TestDrainAndCloseOfClients(t *testing.T) {
	cc, sc := conntest.Pipes(t)
	origin(t, sc, "HTTP/1.1 204 No\r\n\r\n")
	cl := NewClient(cc, &transport.ClientConfig{})
	st := open(t, cl)
	if _, err := cl.NewStream(); transport.ReasonOf(err) != transport.Overflow {
		t.Errorf("second stream: %v", err)
	}
	cl.Drain()
	_ = st.WriteHeaders(request(simple), true)
	var h message.Header
	if _, _, err := st.ReadHeaders(&h); err != nil {
		t.Error(err)
	}
	st.Release()
	<-cl.Done()
	if _, err := cl.NewStream(); transport.ReasonOf(err) != transport.ConnectionTermination {
		t.Errorf("drained: %v", err)
	}
	_ = sc.Close()

	cc, sc = conntest.Pipes(t)
	cl = NewClient(cc, &transport.ClientConfig{})
	st = open(t, cl)
	_ = st.WriteHeaders(request(simple), true)
	cause := errors.New("cause")
	time.AfterFunc(10*time.Millisecond, func() { cl.Close(cause) })
	if _, _, err := st.ReadHeaders(&h); !errors.Is(err, cause) {
		t.Errorf("closed: %v", err)
	}
	st.Release()
	_ = sc.Close()
}
