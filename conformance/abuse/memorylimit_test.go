package abuse

import (
	"bufio"
	"bytes"
	"fmt"
	"io"
	"net"
	"net/http"
	"strings"
	"testing"
	"time"

	"golang.org/x/net/http2"

	"github.com/fairlead-mesh/fairlead/conformance/running"
)

// When memory is nearly used up by stuck uploads, the connections that are open
// go on, new ones are refused, a line says so, and all is well again within five
// seconds of their end.
func TestWithoutMemoryOpenConnectionsGoOn(t *testing.T) {
	const limit = 224 << 20
	t.Setenv("GOMEMLIMIT", fmt.Sprint(limit))
	origin, _ := stuckOrigin(t)
	v := &victim{t: t, h2: running.FreePort(t), h1: running.FreePort(t)}
	var logged func() string
	v.pid, logged = running.StartLogged(t, fmt.Sprintf(stuckBootstrap, v.h2, v.h1, origin), v.h2)
	old := dialAsker(t, v.h1)
	defer old.c.Close()
	ask := func() {
		t.Helper()
		if s := old.ask("/hello", 20*time.Second); s != http.StatusOK {
			_, rss := v.usage()
			t.Fatalf("an open connection got %d, with %d MiB resident:\n%s", s, rss>>20, logged())
		}
	}
	ask()
	var flood []net.Conn
	refused := 0
	for began := time.Now(); refused < 3 && time.Since(began) < 60*time.Second; {
		c, err := net.Dial("tcp", running.Address(v.h2))
		if err != nil { // reset before Dial returned
			refused++
			ask()
			continue
		}
		defer c.Close()
		b := frame([]byte(http2.ClientPreface), tSettings, 0, 0, setting(4, 1<<30))
		b = frame(b, tWindowUpdate, 0, 0, u32(1<<30))
		const streams = 32 // 8 MiB, what the proxy takes of a connection
		for i := range streams {
			b = frame(b, tHeaders, endHeaders, streamID(i), request("/up", ":method", "POST"))
		}
		up := answers(c, b)
		if up == nil {
			refused++
			time.Sleep(100 * time.Millisecond)
			ask()
			continue
		}
		flood = append(flood, c)
		go pour(up, streams, make([]byte, 16<<10))
		v.settle(200 * time.Millisecond)
		ask()
	}
	if refused < 3 {
		t.Fatalf("%d connections are open, none is refused:\n%s", len(flood), logged())
	}
	for range 20 {
		ask()
		time.Sleep(20 * time.Millisecond)
	}
	_, rss := v.usage()
	if rss > limit+limit*15/100 {
		t.Errorf("%d MiB resident with a limit of %d", rss>>20, limit>>20)
	}
	if n := strings.Count(logged(), "new connections are refused, open ones go on"); n == 0 || n > 5 {
		t.Errorf("%d lines say what is refused:\n%s", n, logged())
	}
	for _, c := range flood {
		_ = c.Close()
	}
	began := time.Now()
	for {
		if c, err := net.Dial("tcp", running.Address(v.h1)); err == nil {
			fresh := &asker{c, bufio.NewReader(c)}
			ok := fresh.ask("/hello", 20*time.Second) == http.StatusOK
			_ = c.Close()
			if ok {
				break
			}
		}
		if time.Since(began) > 30*time.Second {
			t.Fatalf("still refused after %v:\n%s", time.Since(began), logged())
		}
		time.Sleep(20 * time.Millisecond)
	}
	ask()
	t.Logf("%d connections of 8 MiB, %d MiB resident, recovered after %v", len(flood), rss>>20, time.Since(began).Round(time.Millisecond))
}

// settle waits, 15 seconds at most, until the process grows no more for some steps:
// all that an upload may send has arrived, if late.
func (v *victim) settle(step time.Duration) {
	v.t.Helper()
	_, last := v.usage()
	quiet := 0
	for end := time.Now().Add(15 * time.Second); time.Now().Before(end); {
		time.Sleep(step)
		_, rss := v.usage()
		if quiet++; rss-last >= 256<<10 {
			quiet = 0
		}
		if quiet == 4 {
			return
		}
		last = rss
	}
}

// begun is a connection whose first bytes have been read.
type begun struct {
	net.Conn
	r io.Reader
}

func (b begun) Read(p []byte) (int, error) { return b.r.Read(p) }

// answers sends b; it returns nil if there is no answer.
func answers(c net.Conn, b []byte) net.Conn {
	_ = c.SetDeadline(time.Now().Add(20 * time.Second))
	defer func() { _ = c.SetDeadline(time.Time{}) }()
	if _, err := c.Write(b); err != nil {
		return nil
	}
	first := make([]byte, 9)
	if _, err := io.ReadFull(c, first); err != nil {
		return nil
	}
	return begun{c, io.MultiReader(bytes.NewReader(first), c)}
}
