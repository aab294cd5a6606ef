package abuse

import (
	"io"
	"net"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/fairlead-mesh/fairlead/conformance/running"
)

// A thousand clients send a head a byte at a time, without end: each is cut when the
// time for heads is over, holds little until then, and others are served.
func TestSlowHeadsAreCut(t *testing.T) {
	v := newVictim(t)
	const clients, perConn = 1000, 32 << 10
	const head = "GET / HTTP/1.1\r\nhost: a\r\nx: "
	time.Sleep(200 * time.Millisecond)
	bad, ok := v.canaryBad.Load(), v.canaryOK.Load()
	_, before := v.usage()
	conns := make([]net.Conn, clients)
	for i := range conns {
		c, err := net.Dial("tcp", running.Address(v.h1))
		if err != nil {
			t.Fatal(err)
		}
		defer c.Close()
		conns[i] = c
	}
	began := time.Now()
	var wg sync.WaitGroup
	var late, early atomic.Int64
	for _, c := range conns {
		wg.Go(func() {
			_ = c.SetReadDeadline(began.Add(40 * time.Second))
			_, _ = io.Copy(io.Discard, c)
			switch d := time.Since(began); {
			case d > 30*time.Second:
				late.Add(1)
			case d < time.Second:
				early.Add(1)
			}
		})
	}
	var held int64
	for i := 0; time.Since(began) < 3*time.Second; i++ {
		for _, c := range conns {
			b := byte('x')
			if i < len(head) {
				b = head[i]
			}
			_ = c.SetWriteDeadline(time.Now().Add(100 * time.Millisecond))
			_, _ = c.Write([]byte{b})
		}
		if i == 5 {
			_, held = v.usage()
		}
		time.Sleep(100 * time.Millisecond)
	}
	wg.Wait()
	t.Logf("%d slow heads held %+.1f MiB, the last was cut after %v; the canary was answered %d times", clients, float64(held-before)/(1<<20), time.Since(began).Round(100*time.Millisecond), v.canaryOK.Load()-ok)
	if late.Load() > 0 || early.Load() > 0 {
		t.Errorf("%d of %d were open after 30 s, %d ended within a second; heads are given 2 s", late.Load(), clients, early.Load())
	}
	if held-before > clients*perConn {
		t.Errorf("memory grew by %d KiB, want at most %d a connection", (held-before)>>10, perConn>>10)
	}
	if n := v.canaryBad.Load() - bad; n > 0 || v.canaryOK.Load() == ok {
		t.Errorf("the canary lost %d requests", n)
	}
}
