package abuse

import (
	"bytes"
	"context"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/fairlead-mesh/fairlead/conformance/running"
)

// victim is a running Fairlead.
type victim struct {
	t                   *testing.T
	h2, h1, admin       int
	pid                 int
	canaryOK, canaryBad atomic.Int64
}

const bootstrap = `
admin: {address: {socket_address: {address: 127.0.0.1, port_value: %[3]d}}}
static_resources:
  listeners:
  - name: h2
    address: {socket_address: {address: 127.0.0.1, port_value: %[1]d}}
    filter_chains: [{filters: [{name: hcm, typed_config: {"@type": type.googleapis.com/envoy.extensions.filters.network.http_connection_manager.v3.HttpConnectionManager,
      stat_prefix: h2, codec_type: HTTP2, route_config: &routes {virtual_hosts: [{name: all, domains: ["*"], routes: [
        {match: {prefix: /big}, route: {cluster: origin}}, {match: {prefix: /}, direct_response: {status: 200, body: {inline_string: ok}}}]}]},
      http_filters: [{name: router, typed_config: {"@type": type.googleapis.com/envoy.extensions.filters.http.router.v3.Router}}]}}]}]
  - name: h1
    address: {socket_address: {address: 127.0.0.1, port_value: %[2]d}}
    filter_chains: [{filters: [{name: hcm, typed_config: {"@type": type.googleapis.com/envoy.extensions.filters.network.http_connection_manager.v3.HttpConnectionManager,
      stat_prefix: h1, codec_type: HTTP1, common_http_protocol_options: {idle_timeout: 2s}, request_headers_timeout: 2s, route_config: *routes,
      http_filters: [{name: router, typed_config: {"@type": type.googleapis.com/envoy.extensions.filters.http.router.v3.Router}}]}}]}]
  clusters:
  - name: origin
    type: STATIC
    load_assignment: {cluster_name: origin, endpoints: [{lb_endpoints: [{endpoint: {address: {socket_address: {address: 127.0.0.1, port_value: %[4]d}}}}]}]}
`

// newVictim starts a Fairlead of one processor and a canary that asks it 50
// times a second, and ends both with the test.
func newVictim(t *testing.T) *victim {
	t.Helper()
	big := make([]byte, 1<<20)
	origin := &http.Server{Handler: http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) { _, _ = w.Write(big) }), ReadHeaderTimeout: time.Minute}
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	go func() { _ = origin.Serve(l) }()
	t.Cleanup(func() { _ = origin.Close() })
	v := &victim{t: t, h2: running.FreePort(t), h1: running.FreePort(t), admin: running.FreePort(t)}
	v.pid = running.Start(t, fmt.Sprintf(bootstrap, v.h2, v.h1, v.admin, running.Port(l)), v.h2)
	v.canary()
	return v
}

// canary asks on one connection of its own.
func (v *victim) canary() {
	ctx, cancel := context.WithCancel(context.Background())
	var wg sync.WaitGroup
	cl := &http.Client{Timeout: 20 * time.Second, Transport: &http.Transport{}}
	wg.Go(func() {
		for ctx.Err() == nil {
			resp, err := cl.Get("http://" + running.Address(v.h1) + "/canary")
			ok := err == nil && resp.StatusCode == http.StatusOK
			if err == nil {
				_, err = io.Copy(io.Discard, resp.Body)
				ok = ok && err == nil
				_ = resp.Body.Close()
			}
			if ok {
				v.canaryOK.Add(1)
			} else {
				v.canaryBad.Add(1)
			}
			time.Sleep(20 * time.Millisecond)
		}
	})
	v.t.Cleanup(func() { cancel(); wg.Wait(); cl.CloseIdleConnections() })
}

// usage is processor time and resident memory of the victim.
func (v *victim) usage() (cpu time.Duration, rss int64) {
	v.t.Helper()
	b, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", v.pid))
	if err != nil {
		v.t.Fatal(err)
	}
	f := strings.Fields(string(b[bytes.LastIndexByte(b, ')')+1:]))
	n := func(i int) int64 {
		x, err := strconv.ParseInt(f[i], 10, 64)
		if err != nil {
			v.t.Fatal(err)
		}
		return x
	}
	return time.Duration(n(11)+n(12)) * 10 * time.Millisecond, n(21) * int64(os.Getpagesize())
}

// idleCPU is what the victim uses in d with nobody but the canary.
func (v *victim) idleCPU(d time.Duration) time.Duration {
	before, _ := v.usage()
	time.Sleep(d)
	after, _ := v.usage()
	return after - before
}
