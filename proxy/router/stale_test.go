package router

import (
	"bufio"
	"net"
	"net/http"
	"sync"
	"sync/atomic"
	"testing"

	"github.com/fairlead-mesh/fairlead/internal/message"
	"github.com/fairlead-mesh/fairlead/proxy/upstream"
	"github.com/fairlead-mesh/fairlead/xdsclient/xdsresource"
)

// closer is an origin that, once told to, ends each connection behind its answer
// without having said so.
type closer struct {
	ln      net.Listener
	closing atomic.Bool
	wg      sync.WaitGroup
	ended   chan struct{} // a connection, behind an answer
}

func newCloser(t *testing.T) *closer {
	t.Helper()
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	o := &closer{ln: ln, ended: make(chan struct{}, 1)}
	o.wg.Go(func() {
		for {
			c, err := ln.Accept()
			if err != nil {
				return
			}
			o.wg.Go(func() { o.serve(c) })
		}
	})
	t.Cleanup(func() { _ = ln.Close(); o.wg.Wait() })
	return o
}

func (o *closer) serve(c net.Conn) {
	defer c.Close()
	r := bufio.NewReader(c)
	for {
		q, err := http.ReadRequest(r)
		if err != nil {
			return
		}
		_, _ = q.Body.Read(make([]byte, 10))
		closing := o.closing.Load()
		if _, err := c.Write([]byte("HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nok")); err != nil {
			return
		}
		if closing {
			_ = c.Close()
			o.ended <- struct{}{}
			return
		}
	}
}

// TestAnOriginThatEndsItsConnectionsLosesNoRequest: connections that were in use
// just now are trusted, until one turns out to have ended.
func TestAnOriginThatEndsItsConnectionsLosesNoRequest(t *testing.T) {
	o := newCloser(t)
	w := newWorld(t, &origin{})
	w.m = upstream.NewManager(upstream.Options{})
	defer w.m.Close()
	w.m.Apply([]*xdsresource.Cluster{clusterOf("c", o.ln.Addr().String())})
	w.f = New(nil, Deps{Clusters: w.m})
	get := func(n int) {
		t.Helper()
		for i := range n {
			if r := w.do(newStream(message.Method, "GET")); r.status != 200 || r.err != nil {
				t.Fatalf("request %d: %d %v", i, r.status, r.err)
			}
			if o.closing.Load() {
				<-o.ended // a look finds it, unless the kernel takes its time
			}
		}
	}
	get(200)
	o.closing.Store(true)
	get(300)
	if n := w.m.Clusters()[0].Hosts[0].RqTotal; n < 500 || n > 600 {
		t.Errorf("%d requests were sent for 500, of which few met a connection that had ended", n)
	}
	w.idle()
}
