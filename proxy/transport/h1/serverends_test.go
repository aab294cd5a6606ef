package h1

import (
	"errors"
	"io"
	"strings"
	"testing"
	"time"

	"github.com/fairlead-mesh/fairlead/internal/conntest"
	"github.com/fairlead-mesh/fairlead/internal/message"
	"github.com/fairlead-mesh/fairlead/internal/netio"
	"github.com/fairlead-mesh/fairlead/proxy/transport"
)

func TestTimeouts(t *testing.T) {
	for name, conns := range kinds {
		t.Run(name+": a head that does not end gets 408", func(t *testing.T) {
			cc, sc := conns(t)
			h := &handler{serve: echo}
			_, _ = cc.Write([]byte("GET / HTTP/1.1\r\nHost"))
			done := start(sc, h, &transport.ServerConfig{HeadersTimeout: 30 * time.Millisecond})
			b := make([]byte, 1000)
			n, err := cc.Read(b)
			if err != nil || !strings.HasPrefix(string(b[:n]), "HTTP/1.1 408 Request Timeout\r\n") {
				t.Errorf("got %q, %v", b[:n], err)
			}
			_ = cc.Close()
			wait(t, done)
			if len(h.errs) != 1 || h.errs[0] != "408 request_header_timeout" {
				t.Errorf("told %q", h.errs)
			}
		})
		t.Run(name+": an idle connection ends, but not one in use", func(t *testing.T) {
			cc, sc := conns(t)
			_, _ = cc.Write([]byte("GET / HTTP/1.1\r\nHost: a\r\n\r\n"))
			done := start(sc, &handler{serve: func(s transport.ServerStream) {
				time.Sleep(500 * time.Millisecond)
				echo(s)
			}}, &transport.ServerConfig{IdleTimeout: 200 * time.Millisecond, HeadersTimeout: time.Hour})
			b, err := io.ReadAll(cc)
			if err != nil || !strings.HasPrefix(string(b), "HTTP/1.1 200") {
				t.Errorf("got %q, %v", b, err)
			}
			_ = cc.Close()
			wait(t, done)
		})
		t.Run(name+": an interrupted body leaves room for an answer", func(t *testing.T) {
			cc, sc := conns(t)
			cause := errors.New("too slow")
			done := start(sc, &handler{serve: func(s transport.ServerStream) {
				b := s.Body()
				time.AfterFunc(20*time.Millisecond, func() { b.(interface{ Interrupt(error) }).Interrupt(cause) })
				if _, err := io.ReadAll(message.NewReader(b)); !errors.Is(err, cause) {
					t.Errorf("got %v", err)
				}
				_ = reply(s, ":status=408")
			}}, &transport.ServerConfig{})
			_, _ = cc.Write([]byte("POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 5\r\n\r\nab"))
			b, err := io.ReadAll(cc)
			if err != nil || string(b) != "HTTP/1.1 408 Request Timeout\r\ncontent-length: 0\r\nconnection: close\r\n\r\n" {
				t.Errorf("got %q, %v", b, err)
			}
			_ = cc.Close()
			wait(t, done)
		})
	}
}

func TestConnectionsEndInOrder(t *testing.T) {
	const ask = "GET / HTTP/1.1\r\nHost: a\r\n\r\n"
	read := func(t *testing.T, c netio.Conn) string {
		t.Helper()
		b := make([]byte, 1000)
		n, err := c.Read(b)
		if err != nil {
			t.Fatal(err)
		}
		return string(b[:n])
	}
	for name, conns := range kinds {
		t.Run(name+": after a number of requests", func(t *testing.T) {
			cc, sc := conns(t)
			done := start(sc, answers(":status=204"), &transport.ServerConfig{MaxRequestsPerConnection: 2})
			_, _ = cc.Write([]byte(ask))
			if got := read(t, cc); strings.Contains(got, "close") {
				t.Errorf("got %q", got)
			}
			_, _ = cc.Write([]byte(ask))
			if got := read(t, cc); !strings.Contains(got, "connection: close") {
				t.Errorf("got %q", got)
			}
			wait(t, done)
			_ = cc.Close()
		})
		t.Run(name+": drained when idle it answers once more", func(t *testing.T) {
			cc, sc := conns(t)
			done := make(chan struct{})
			s := NewServer(sc, &transport.ServerConfig{}, answers(":status=204"))
			go s.Serve(func() { close(done) })
			_, _ = cc.Write([]byte(ask))
			read(t, cc)
			s.Drain()
			time.Sleep(20 * time.Millisecond)
			_, _ = cc.Write([]byte(ask))
			if got := read(t, cc); !strings.Contains(got, "connection: close") {
				t.Errorf("got %q", got)
			}
			wait(t, done)
			_ = cc.Close()
		})
		t.Run(name+": closed when idle", func(t *testing.T) {
			cc, sc := conns(t)
			done := make(chan struct{})
			s := NewServer(sc, &transport.ServerConfig{}, answers(":status=204"))
			go s.Serve(func() { close(done) })
			_, _ = cc.Write([]byte(ask))
			read(t, cc)
			for s.Active() != 0 { // the answer is out before the stream has ended
				time.Sleep(time.Millisecond)
			}
			s.Close(nil)
			wait(t, done)
			if _, err := cc.Read(make([]byte, 1)); !errors.Is(err, io.EOF) {
				t.Errorf("got %v", err)
			}
			_ = cc.Close()
		})
		t.Run(name+": closed when active", func(t *testing.T) {
			cc, sc := conns(t)
			cause := errors.New("cause")
			got := make(chan error, 1)
			done := make(chan struct{})
			var s *Server
			s = NewServer(sc, &transport.ServerConfig{}, &handler{serve: func(st transport.ServerStream) {
				if s.Active() != 1 {
					t.Error("not active")
				}
				st.OnReset(func(err error) { got <- err })
				s.Close(cause)
				got <- <-got
			}})
			go s.Serve(func() { close(done) })
			_, _ = cc.Write([]byte(ask))
			wait(t, done)
			if err := <-got; !errors.Is(err, cause) {
				t.Errorf("got %v", err)
			}
			if _, err := cc.Read(make([]byte, 1)); !errors.Is(err, netio.ErrReset) {
				t.Errorf("got %v", err)
			}
			_ = cc.Close()
		})
		t.Run(name+": after a duration", func(t *testing.T) {
			cc, sc := conns(t)
			done := start(sc, answers(":status=204"), &transport.ServerConfig{MaxConnectionDuration: 30 * time.Millisecond})
			wait(t, done)
			if _, err := cc.Read(make([]byte, 1)); !errors.Is(err, io.EOF) {
				t.Errorf("got %v", err)
			}
			_ = cc.Close()
		})
	}
}

func TestAnIdleConnectionThatParksHoldsNoGoroutine(t *testing.T) {
	cc, sc := conntest.Pipes(t)
	done := make(chan struct{})
	s := NewServer(sc, &transport.ServerConfig{}, answers(":status=204"))
	returned := make(chan struct{})
	go func() { s.Serve(func() { close(done) }); close(returned) }()
	select {
	case <-returned:
	case <-time.After(20 * time.Second):
		t.Fatal("Serve blocks")
	}
	for range 3 {
		_, _ = cc.Write([]byte("GET / HTTP/1.1\r\nHost: a\r\n\r\n"))
		if _, err := cc.Read(make([]byte, 1000)); err != nil {
			t.Fatal(err)
		}
	}
	_ = cc.Close()
	wait(t, done)
	if s.rd.buf != nil || s.x != nil {
		t.Error("buffers are held")
	}
}

// A client with one request may end its direction together with it. The end
// must be seen at once, not when the connection has been quiet for a while: by one
// try of some, the system having other things to do.
func TestAnEndThatComesWithTheRequestIsSeenAtOnce(t *testing.T) {
	least := time.Hour
	for range 20 {
		client, server := conntest.Sockets(t)
		if _, err := client.Write([]byte("GET / HTTP/1.1\r\nhost: a\r\n\r\n")); err != nil {
			t.Fatal(err)
		}
		if err := client.CloseWrite(); err != nil {
			t.Fatal(err)
		}
		time.Sleep(5 * time.Millisecond) // both are there before the server looks
		begin := time.Now()
		done := start(server, &handler{serve: echo}, &transport.ServerConfig{})
		got, err := io.ReadAll(client)
		wait(t, done)
		_ = client.Close()
		if err != nil || !strings.HasPrefix(string(got), "HTTP/1.1 200") {
			t.Fatalf("got %q, %v", got, err)
		}
		if least = min(least, time.Since(begin)); least < 200*time.Millisecond {
			return
		}
	}
	t.Errorf("the connection was closed after %v", least)
}
