package h1

import (
	"net/netip"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/fairlead-mesh/fairlead/internal/conntest"
	"github.com/fairlead-mesh/fairlead/internal/message"
	"github.com/fairlead-mesh/fairlead/internal/netio"
	"github.com/fairlead-mesh/fairlead/proxy/transport"
)

// A headers timeout that runs out while the head gets complete may be told when the
// request has been served: it must not end what is idle, or the next head.
func TestALateHeadersTimeoutDoesNotMeetTheNextRequest(t *testing.T) {
	cc, sc := conntest.Pipes(t)
	done := make(chan struct{})
	s := NewServer(sc, &transport.ServerConfig{HeadersTimeout: time.Hour}, answers(":status=204"))
	go s.Serve(func() { close(done) })
	buf := make([]byte, 1000)
	for range 3 {
		if _, err := cc.Write([]byte("GET / HT")); err != nil {
			t.Fatal(err)
		}
		for limit := time.Now().Add(10 * time.Second); s.heading.Load() <= 0; time.Sleep(time.Millisecond) {
			if time.Now().After(limit) {
				t.Fatal("the head is not waited for")
			}
		}
		n := s.heading.Load()
		s.headExpired(n - 1) // that of the request before
		if _, err := cc.Write([]byte("TP/1.1\r\nHost: a\r\n\r\n")); err != nil {
			t.Fatal(err)
		}
		k, err := cc.Read(buf)
		if err != nil || !strings.HasPrefix(string(buf[:k]), "HTTP/1.1 204") {
			t.Fatalf("got %q, %v", buf[:k], err)
		}
		for s.state.Load() != stateIdle {
			time.Sleep(time.Millisecond)
		}
		s.headExpired(n)
	}
	_ = cc.Close()
	wait(t, done)
}

// An origin may answer at once and take no more of the request. The answer must be
// read while the writer is stuck, also that behind an informational one.
func TestAnEarlyAnswerIsReadWhileTheRequestIsStuck(t *testing.T) {
	for name, answers := range map[string][]string{
		"final":                   {"HTTP/1.1 413 X\r\ncontent-length: 0\r\n\r\n"},
		"informational and final": {"HTTP/1.1 103 X\r\n\r\n", "HTTP/1.1 413 X\r\ncontent-length: 0\r\n\r\n"},
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				near, far := netio.Pipe(netip.AddrPort{}, netip.AddrPort{})
				cl := NewClient(near, &transport.ClientConfig{})
				st, err := cl.NewStream()
				if err != nil {
					t.Fatal(err)
				}
				var h message.Header
				for _, f := range [][2]string{{message.Method, "POST"}, {message.Scheme, "http"}, {message.Authority, "a"}, {message.Path, "/"}} {
					h.Add(f[0], f[1])
				}
				if err := st.WriteHeaders(&h, false); err != nil {
					t.Fatal(err)
				}
				wrote := make(chan error, 1)
				go func() { wrote <- st.WriteData(make([]byte, 1<<20), true) }()
				synctest.Wait() // it is stuck
				for i, a := range answers {
					if _, err := far.Write([]byte(a)); err != nil {
						t.Fatal(err)
					}
					status := make(chan int, 1)
					go func() {
						n, _, _ := st.ReadHeaders(&h)
						status <- n
					}()
					synctest.Wait()
					select {
					case n := <-status:
						if last := i == len(answers)-1; last && n != 413 || !last && n != 103 {
							t.Error(n)
						}
					default:
						t.Error("the answer is not read")
					}
				}
				st.Interrupt(netio.ErrClosed)
				<-wrote
				st.Reset()
				st.Release()
				_ = far.Close()
			})
		})
	}
}
