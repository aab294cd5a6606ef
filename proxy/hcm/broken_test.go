package hcm

import (
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/fairlead-mesh/fairlead/filters"
	"github.com/fairlead-mesh/fairlead/internal/conntest"
	"github.com/fairlead-mesh/fairlead/internal/message"
	"github.com/fairlead-mesh/fairlead/internal/netio"
	"github.com/fairlead-mesh/fairlead/internal/stats"
	"github.com/fairlead-mesh/fairlead/internal/streaminfo"
	"github.com/fairlead-mesh/fairlead/proxy/transport"
	"github.com/fairlead-mesh/fairlead/proxy/transport/h2"
	"github.com/fairlead-mesh/fairlead/xdsclient/xdsresource"
)

// parrot answers with the request's body, and counts what was not closed.
type parrot struct{ open *atomic.Int32 }

func (f parrot) Do(s *filters.Stream, _ filters.Next) (*filters.Response, error) {
	r := s.NewResponse()
	r.Header.Add(message.Status, "200")
	f.open.Add(1)
	r.Body = &parroted{Body: s.Body, open: f.open}
	return r, nil
}

type parroted struct {
	message.Body
	open   *atomic.Int32
	closed bool
}

func (b *parroted) Close() {
	if !b.closed {
		b.closed = true
		b.open.Add(-1)
	}
	b.Body.Close()
}

// A connection that breaks, at whichever step, ends once, and what was counted and
// taken for it and its streams is given back.
func TestAConnectionThatBreaksEndsOnce(t *testing.T) {
	for name, speak := range map[string]func(netio.Conn){"h1": speakH1, "h2": speakH2} {
		for conns, pair := range conntest.Pairs {
			t.Run(name+" over "+conns, func(t *testing.T) {
				conntest.EachStep(t, func(t *testing.T, n int) (broke bool) { return breakAt(t, n, pair, speak) })
			})
		}
	}
}

func breakAt(t *testing.T, n int, pair func(testing.TB) (a, b netio.Conn), speak func(netio.Conn)) (broke bool) {
	var open atomic.Int32
	m, err := New(Config{Spec: &xdsresource.HTTPConnectionManager{}, Routes: &Routes{}, DefaultChain: []filters.HTTPFilter{parrot{&open}}, Stats: (&stats.Registry{}).Scope("http_")})
	if err != nil {
		t.Fatal(err)
	}
	near, far := pair(t)
	c, tells := conntest.Break(far, n)
	ends := make(chan struct{}, 2)
	go m.Serve(&filters.Connection{Conn: c, Info: &streaminfo.Info{Conn: &streaminfo.Conn{}}}, func() { ends <- struct{}{} })
	speak(near)
	_ = near.Close()
	<-ends
	if n := m.Active(); n != 0 {
		t.Errorf("step %d: %d connections are open", n, n)
	}
	for name, v := range map[string]int64{"cx_active": m.st.cxActive.Value(), "rq_active": m.st.rqActive.Value(), "bodies": int64(open.Load())} {
		if v != 0 {
			t.Errorf("step %d: %s is %d", n, name, v)
		}
	}
	if got := m.st.cxDestroy.Value(); got != 1 {
		t.Errorf("step %d: %d connections were destroyed", n, got)
	}
	if !tells.Ended() {
		t.Errorf("step %d: the connection is kept", n)
	}
	select {
	case <-ends:
		t.Errorf("step %d: it ends twice", n)
	case <-time.After(time.Millisecond):
	}
	return tells.Broke()
}

// speakH1 sends two requests, the second in pieces, and reads until the end.
func speakH1(c netio.Conn) {
	_, _ = c.Write([]byte("POST / HTTP/1.1\r\nhost: a\r\ncontent-length: 5\r\n\r\nhello"))
	buf := make([]byte, 4096)
	for got := ""; !strings.HasSuffix(got, "0\r\n\r\n"); {
		n, err := c.Read(buf)
		if err != nil {
			return
		}
		got += string(buf[:n])
	}
	for _, p := range []string{"POST / HTTP/1.1\r\nhost: a\r\nconnection: close\r\n", "transfer-encoding: chunked\r\n\r\n", "5\r\nhello\r\n", "0\r\n\r\n"} {
		if _, err := c.Write([]byte(p)); err != nil {
			return
		}
	}
	for {
		if _, err := c.Read(buf); err != nil {
			return
		}
	}
}

// speakH2 has two requests open at once.
func speakH2(c netio.Conn) {
	cc, err := h2.NewClient(c, &transport.ClientConfig{})
	if err != nil {
		return
	}
	var streams []transport.ClientStream
	for range 2 {
		cs, err := cc.NewStream()
		if err != nil {
			break
		}
		streams = append(streams, cs)
		var h message.Header
		for _, f := range [][2]string{{message.Method, "POST"}, {message.Scheme, "http"}, {message.Authority, "a"}, {message.Path, "/"}} {
			h.Add(f[0], f[1])
		}
		_ = cs.WriteHeaders(&h, false)
		_ = cs.WriteData([]byte("hel"), false)
	}
	for _, cs := range streams {
		var h message.Header
		_ = cs.WriteData([]byte("lo"), true)
		if _, _, err := cs.ReadHeaders(&h); err == nil {
			b := cs.Body()
			for last := false; err == nil && !last; {
				_, last, err = b.Next()
			}
		}
		cs.Release()
	}
	cc.Drain()
	<-cc.Done()
}
