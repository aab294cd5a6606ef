package proxy_test

import (
	"context"
	"fmt"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/fairlead-mesh/fairlead/filters/builtin"
	"github.com/fairlead-mesh/fairlead/proxy"
)

const sharedPort = `
static_resources:
  listeners:
  - name: l
    address: {socket_address: {address: 127.0.0.1, port_value: %d}}
    enable_reuse_port: true
    filter_chains: [{filters: [{name: hcm, typed_config: {"@type": type.googleapis.com/envoy.extensions.filters.network.http_connection_manager.v3.HttpConnectionManager,
      stat_prefix: l, http_filters: [` + routerFilter + `],
      route_config: {virtual_hosts: [{name: all, domains: ["*"], routes: [{match: {prefix: /}, direct_response: {status: 200, body: {inline_string: ok}}}]}]}}}]}]
`

// A process that was started beside another, on the same ports, takes over when
// that ends. Nobody who connects meanwhile may notice.
func TestAProcessEndsWithoutLosingAConnectionToItsSuccessor(t *testing.T) {
	port := freePort(t)
	start := func() (end func()) {
		ready, done := make(chan struct{}), make(chan error, 1)
		p, err := proxy.FromBootstrap(fmt.Appendf(nil, sharedPort, port), proxy.ProcessOptions{Registry: builtin.Registry(), DrainTime: 20 * time.Second, OnReady: func() { close(ready) }})
		if err != nil {
			t.Fatal(err)
		}
		ctx, cancel := context.WithCancel(context.Background())
		go func() { done <- p.Run(ctx) }()
		<-ready
		return func() {
			cancel()
			if err := <-done; err != nil {
				t.Error(err)
			}
		}
	}
	end := start()
	var clients sync.WaitGroup
	var stop atomic.Bool
	var asked, failed atomic.Int64
	for range 6 {
		clients.Go(func() {
			for !stop.Load() {
				asked.Add(1)
				c, err := connect(t, port)
				if err != nil {
					failed.Add(1)
					t.Log(err)
					continue
				}
				if status, body := c.get("/"); status != 200 {
					failed.Add(1)
					t.Logf("%d %s", status, body)
				}
				_ = c.Close()
			}
		})
	}
	for range 3 {
		next := start()
		end()
		end = next
	}
	stop.Store(true)
	clients.Wait()
	end()
	if n := failed.Load(); n > 0 {
		t.Errorf("%d of %d requests failed", n, asked.Load())
	}
	t.Logf("%d requests", asked.Load())
}
