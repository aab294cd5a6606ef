package hcm

import (
	"bufio"
	"context"
	"io"
	"net/http"
	"net/netip"
	"sync/atomic"
	"testing"
	"time"

	"github.com/fairlead-mesh/fairlead/filters"
	"github.com/fairlead-mesh/fairlead/internal/netio"
	"github.com/fairlead-mesh/fairlead/internal/overload"
	"github.com/fairlead-mesh/fairlead/internal/streaminfo"
	"github.com/fairlead-mesh/fairlead/proxy/transport"
	"github.com/fairlead-mesh/fairlead/xdsclient/xdsresource"
)

func TestWhileMemoryIsShortTunnelsAreRefusedAndThenRequests(t *testing.T) {
	var used atomic.Uint64
	mon := overload.New(overload.Options{Limit: 1000, Used: used.Load})
	ctx, cancel := context.WithCancel(t.Context())
	stopped := make(chan struct{})
	go func() { mon.Run(ctx); close(stopped) }()
	defer func() { cancel(); <-stopped }()
	spec := &xdsresource.HTTPConnectionManager{Codec: xdsresource.CodecHTTP1, Server: transport.ServerConfig{AllowConnect: true}}
	m, err := New(Config{Spec: spec, Routes: &Routes{}, DefaultChain: []filters.HTTPFilter{seen{}}, Overload: mon})
	if err != nil {
		t.Fatal(err)
	}
	a := netip.MustParseAddrPort("9.9.9.9:1000")
	near, far := netio.Pipe(a, a)
	done := make(chan struct{})
	go m.Serve(&filters.Connection{Conn: far, Info: &streaminfo.Info{Conn: &streaminfo.Conn{Local: a, Remote: a, DirectRemote: a}}}, func() { close(done) })
	br := bufio.NewReader(near)
	for _, c := range []struct {
		used    uint64
		request string
		status  int
	}{
		{100, "GET / HTTP/1.1\r\nhost: a\r\n\r\n", 200},
		{850, "GET / HTTP/1.1\r\nhost: a\r\n\r\n", 200},
		{950, "GET / HTTP/1.1\r\nhost: a\r\n\r\n", 503},
		{100, "GET / HTTP/1.1\r\nhost: a\r\n\r\n", 200},
		{850, "CONNECT a:1 HTTP/1.1\r\nhost: a:1\r\n\r\n", 503},
	} {
		used.Store(c.used)
		for limit := time.Now().Add(10 * time.Second); mon.RefusesConnections() != (c.used > 800) || mon.RefusesRequests() != (c.used > 900); {
			if time.Now().After(limit) {
				t.Fatal("the monitor did not see it")
			}
			time.Sleep(time.Millisecond)
		}
		if _, err := near.Write([]byte(c.request)); err != nil {
			t.Fatal(err)
		}
		resp, err := http.ReadResponse(br, nil)
		if err != nil {
			t.Fatal(err)
		}
		b, _ := io.ReadAll(resp.Body)
		_ = resp.Body.Close()
		if resp.StatusCode != c.status || c.status == 503 && string(b) != "envoy overloaded" {
			t.Errorf("%d of 1000, %q: %d %q", c.used, c.request, resp.StatusCode, b)
		}
	}
	_ = near.Close()
	<-done
}
