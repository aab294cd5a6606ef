package proxy_test

import (
	"context"
	"fmt"
	"net"
	"strings"
	"testing"
	"time"

	"github.com/fairlead-mesh/fairlead/filters/builtin"
	"github.com/fairlead-mesh/fairlead/internal/xdstest"
	"github.com/fairlead-mesh/fairlead/proxy"
)

const adsBootstrap = `
node: {id: n, cluster: c}
dynamic_resources:
  ads_config: {api_type: DELTA_GRPC, transport_api_version: V3, grpc_services: [{envoy_grpc: {cluster_name: xds}}]}
  cds_config: {ads: {}, resource_api_version: V3}
  lds_config: {ads: {}, resource_api_version: V3}
static_resources:
  clusters:
  - name: xds
    type: STATIC
    typed_extension_protocol_options: {envoy.extensions.upstreams.http.v3.HttpProtocolOptions: {"@type": type.googleapis.com/envoy.extensions.upstreams.http.v3.HttpProtocolOptions, explicit_http_config: {http2_protocol_options: {}}}}
    load_assignment: {cluster_name: xds, endpoints: [{lb_endpoints: [{endpoint: {address: {socket_address: {address: 127.0.0.1, port_value: %s}}}}]}]}
`

const listenerAt = `[{"@type": type.googleapis.com/envoy.config.listener.v3.Listener, name: l, enable_reuse_port: false,
  address: {socket_address: {address: 127.0.0.1, port_value: ${PORT}}},
  filter_chains: [{filters: [{name: tcp, typed_config: {"@type": type.googleapis.com/envoy.extensions.filters.network.tcp_proxy.v3.TcpProxy, stat_prefix: x, cluster: xds}}]}]}]`

// A proxy that cannot listen where the control plane says must not be sent
// traffic: pilot-agent is not ready either before a listener update succeeded.
func TestAProxyIsNotReadyBeforeItListens(t *testing.T) {
	busy, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer busy.Close()
	listenAt := func(port int) []xdstest.Resource {
		rs, err := xdstest.Load([]byte(listenerAt), map[string]string{"PORT": fmt.Sprint(port)})
		if err != nil {
			t.Fatal(err)
		}
		return rs
	}
	srv := xdstest.New(t, xdstest.Options{})
	srv.Replace(listenAt(busy.Addr().(*net.TCPAddr).Port))
	_, port, _ := net.SplitHostPort(srv.Addr())
	p, err := proxy.FromBootstrap(fmt.Appendf(nil, adsBootstrap, port), proxy.ProcessOptions{Registry: builtin.Registry(), DrainTime: 100 * time.Millisecond})
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan error, 1)
	go func() { done <- p.Run(ctx) }()
	defer func() {
		cancel()
		if err := <-done; err != nil {
			t.Error(err)
		}
	}()
	await := func(what string, ok func(error) bool) {
		t.Helper()
		for range 2000 {
			if ok(p.Ready()) {
				return
			}
			time.Sleep(10 * time.Millisecond)
		}
		t.Fatalf("%s, but readiness says %v", what, p.Ready())
	}
	await("the port is taken", func(err error) bool { return err != nil && strings.Contains(err.Error(), "in use") })
	srv.Update(listenAt(freePort(t)), nil)
	await("the port is free", func(err error) bool { return err == nil })
	// Once ready, what can't be bound is in the log and on the admin page; the
	// rest goes on to serve.
	srv.Update(listenAt(busy.Addr().(*net.TCPAddr).Port), nil)
	await("a later update failed", func(err error) bool { return err == nil })
}
