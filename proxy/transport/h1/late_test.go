package h1

import (
	"strings"
	"testing"
	"time"

	"github.com/fairlead-mesh/fairlead/proxy/transport"
)

// A headers timeout that runs out while the head gets complete may be told when the
// request has been served: it must not end what is idle, or the next head.
func TestALateHeadersTimeoutDoesNotMeetTheNextRequest(t *testing.T) {
	cc, sc := pipe(t)
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
