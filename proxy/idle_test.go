package proxy_test

import (
	"bufio"
	"fmt"
	"path/filepath"
	"runtime"
	"strconv"
	"testing"
	"time"

	"github.com/fairlead-mesh/fairlead/internal/message"
	"github.com/fairlead-mesh/fairlead/internal/netio"
	"github.com/fairlead-mesh/fairlead/proxy/transport"
)

// openStream opens one more CONNECT stream on a tunnel.
func openStream(t *testing.T, cl transport.ClientConn, authority string) netio.Conn {
	t.Helper()
	st, err := cl.NewStream()
	if err != nil {
		t.Fatal(err)
	}
	c, err := connectStream(st, authority)
	if err != nil {
		t.Fatal(err)
	}
	return c
}

// connectStream makes st a tunnel.
func connectStream(st transport.ClientStream, authority string) (netio.Conn, error) {
	var h message.Header
	h.Add(message.Method, "CONNECT")
	h.Add(message.Authority, authority)
	if err := st.WriteHeaders(&h, false); err != nil {
		return nil, err
	}
	if err := st.Flush(); err != nil {
		return nil, err
	}
	if status, _, err := st.ReadHeaders(&h); err != nil || status != 200 {
		return nil, fmt.Errorf("CONNECT: %d, %w", status, err)
	}
	return st.Tunnel(), nil
}

// TestAnIdleStreamHoldsNeitherGoroutineNorBuffer counts client, proxy and
// origin together: the streams' upstream connection is shared, since requests
// follow each other.
func TestAnIdleStreamHoldsNeitherGoroutineNorBuffer(t *testing.T) {
	if raceEnabled {
		t.Skip("the race detector keeps memory of its own")
	}
	ca, src := devCA(t)
	h1, hbone := freePort(t), freePort(t)
	log := strconv.Quote(filepath.Join(t.TempDir(), "access.log"))
	startProxy(t, fmt.Sprintf(allocYAML, h1, hbone, answerer(t), log), src)
	first, cl := tunnel(t, ca, "spiffe://cluster.local/ns/app/sa/client", hbone, "10.1.2.3:9080")
	defer cl.Close(netio.ErrClosed)
	use := func(c netio.Conn) {
		if status, body := get(t, c, bufio.NewReaderSize(c, 512), "/api/x"); status != 200 || body != "hello" {
			t.Fatalf("got %d %q", status, body)
		}
	}
	use(first)
	const n = 90 // of the 100 that a connection may have
	measure := func() (goroutines int, heap uint64) {
		for range 3 {
			runtime.GC()
			time.Sleep(20 * time.Millisecond)
		}
		var m runtime.MemStats
		runtime.ReadMemStats(&m)
		return runtime.NumGoroutine(), m.HeapAlloc
	}
	g0, m0 := measure()
	streams := make([]netio.Conn, n)
	for i := range streams {
		streams[i] = openStream(t, cl, "10.1.2.3:9080")
		use(streams[i])
	}
	g1, m1 := measure()
	for end := time.Now().Add(20 * time.Second); g1-g0 > n/4 && time.Now().Before(end); {
		g1, m1 = measure() // a busy machine was still at the last answers
	}
	each := float64(int64(m1)-int64(m0)) / n
	t.Logf("%d goroutines for %d idle streams, %.0f bytes each", g1-g0, n, each)
	if g1-g0 > n/4 { // workers stay for a while, as many as were busy at once
		t.Errorf("%d goroutines more for %d idle streams", g1-g0, n)
	}
	// Both ends of each stream are in this process.
	if each > 8<<10 {
		t.Errorf("an idle stream holds %.0f bytes", each)
	}
	for _, c := range streams {
		use(c)
		_ = c.Close()
	}
}
