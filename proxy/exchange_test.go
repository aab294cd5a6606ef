package proxy_test

import (
	"bytes"
	"crypto/tls"
	"encoding/json"
	"fmt"
	"io"
	"net"
	"strings"
	"testing"
	"time"

	"github.com/fairlead-mesh/fairlead/filters"
	"github.com/fairlead-mesh/fairlead/filters/builtin"
	"github.com/fairlead-mesh/fairlead/internal/identity"
	"github.com/fairlead-mesh/fairlead/internal/stats"
	"github.com/fairlead-mesh/fairlead/proxy"
	"github.com/fairlead-mesh/fairlead/xdsclient/xdsresource"
)

// sidecar is a Server with a workload's name and metrics of its own.
func sidecar(t *testing.T, name string) (*world, *stats.Registry) {
	t.Helper()
	reg := &stats.Registry{}
	s, err := proxy.New(proxy.Options{
		Registry: builtin.Registry(), DrainTime: 50 * time.Millisecond, Stats: reg,
		Node: filters.Node{ID: "sidecar~" + name, Namespace: "ns-" + name, WorkloadName: name, Labels: map[string]string{"app": name + "-app"}},
	})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(s.Close)
	return &world{Server: s, t: t, res: proxy.Resources{Listeners: map[string]*xdsresource.Listener{}, Clusters: map[string]*xdsresource.Cluster{}}}, reg
}

const exchangeFilter = `{name: istio.metadata_exchange, typed_config: {"@type": type.googleapis.com/udpa.type.v1.TypedStruct, type_url: type.googleapis.com/envoy.tcp.metadataexchange.config.MetadataExchange, value: {protocol: istio-peer-exchange}}}`

// tcpChain is a chain of exchange, metrics and a TCP proxy; more is fields of the
// chain.
func tcpChain(cluster, more string) string {
	return fmt.Sprintf(`{%s filters: [%s, {name: istio.stats, typed_config: {"@type": type.googleapis.com/stats.PluginConfig}},
  {name: tcp, typed_config: {"@type": type.googleapis.com/envoy.extensions.filters.network.tcp_proxy.v3.TcpProxy, stat_prefix: x, cluster: %s}}]}`, more, exchangeFilter, cluster)
}

func plainCluster(t *testing.T, name string, port int, more string) *xdsresource.Cluster {
	t.Helper()
	return decode[*xdsresource.Cluster](t, xdsresource.ClusterType, fmt.Sprintf(`{name: %[1]s, type: STATIC, %[3]s
  load_assignment: {cluster_name: %[1]s, endpoints: [{lb_endpoints: [{endpoint: {address: {socket_address: {address: 127.0.0.1, port_value: %[2]d}}}}]}]}}`, name, port, more))
}

func quoted(s string) string { b, _ := json.Marshal(s); return string(b) }

// seriesOf is the value of one of the series of a family whose labels hold all of want.
func seriesOf(t *testing.T, reg *stats.Registry, family string, want ...string) string {
	t.Helper()
	var b bytes.Buffer
	if err := reg.WritePrometheus(&b); err != nil {
		t.Fatal(err)
	}
	for line := range strings.Lines(b.String()) {
		found := strings.HasPrefix(line, family+"{") || strings.HasPrefix(line, family+" ")
		for _, w := range want {
			found = found && strings.Contains(line, w)
		}
		if found {
			return strings.TrimSpace(line[strings.LastIndexByte(line, ' '):])
		}
	}
	return ""
}

// TestProxiesTellEachOtherWhoTheyAre sends bytes through two proxies that agree
// on a metadata exchange, as sidecars of plain TCP do, and through one of them
// from clients that agree and say nothing, or don't agree.
func TestProxiesTellEachOtherWhoTheyAre(t *testing.T) {
	ca, err := identity.NewDevCA("cluster.local")
	if err != nil {
		t.Fatal(err)
	}
	chain, key := pair(t, ca, identity.Leaf{DNSNames: []string{"b"}})
	a, aReg := sidecar(t, "a")
	b, bReg := sidecar(t, "b")
	ports := freePorts(t, 4)
	for i, greeting := range []string{"", "220 welcome\r\n"} {
		name := fmt.Sprintf("tcp%d", i)
		b.res.Clusters[name] = plainCluster(t, name, tcpOrigin(t, greeting), "")
		b.listen(name, ports[i], "traffic_direction: INBOUND,", tcpChain(name, `transport_socket: {name: tls, typed_config: {"@type": type.googleapis.com/envoy.extensions.transport_sockets.tls.v3.DownstreamTlsContext,
  common_tls_context: {alpn_protocols: [istio-peer-exchange, istio], tls_certificates: [{certificate_chain: {inline_string: `+quoted(chain)+`}, private_key: {inline_string: `+quoted(key)+`}}]}}},`))
		a.res.Clusters[name] = plainCluster(t, name, ports[i], `filters: [`+exchangeFilter+`],
  transport_socket: {name: tls, typed_config: {"@type": type.googleapis.com/envoy.extensions.transport_sockets.tls.v3.UpstreamTlsContext, common_tls_context: {alpn_protocols: [istio-peer-exchange, istio]}}},`)
		a.listen(name, ports[2+i], "traffic_direction: OUTBOUND,", tcpChain(name, ""))
	}
	b.mustApply()
	a.mustApply()
	for i, greeting := range []string{"", "220 welcome\r\n"} {
		c := dial(t, ports[2+i])
		exchangeBytes(t, c, greeting, "through both")
		_ = c.Close()
	}
	within(t, "both report both ends", func() bool {
		return seriesOf(t, aReg, "istio_tcp_connections_closed_total", `reporter="source"`, `source_workload="a"`, `destination_workload="b"`, `destination_app="b-app"`, `destination_workload_namespace="ns-b"`) == "2" &&
			seriesOf(t, bReg, "istio_tcp_connections_closed_total", `reporter="destination"`, `source_workload="a"`, `source_app="a-app"`, `source_workload_namespace="ns-a"`, `destination_workload="b"`) == "2"
	})
	for reg, n := range map[*stats.Registry]string{aReg: "2", bReg: "2"} {
		if got := seriesOf(t, reg, "envoy_metadata_exchange_metadata_added"); got != n {
			t.Errorf("metadata_added %s, want %s", got, n)
		}
	}
	// A client that agrees, and then is silent, gets what the origin says first,
	// behind the proxy's own frame.
	silent := &tls.Config{RootCAs: ca.Roots(), ServerName: "b", NextProtos: []string{"istio-peer-exchange"}}
	c, err := tls.Dial("tcp", fmt.Sprintf("127.0.0.1:%d", ports[1]), silent)
	if err != nil {
		t.Fatal(err)
	}
	_ = c.SetDeadline(time.Now().Add(20 * time.Second))
	head := make([]byte, 8)
	if _, err := io.ReadFull(c, head); err != nil || !bytes.HasPrefix(head, []byte{0x3d, 0x23, 0x04, 0x67}) {
		t.Fatalf("%x, %v", head, err)
	}
	if _, err := io.CopyN(io.Discard, c, int64(head[6])<<8|int64(head[7])); err != nil {
		t.Fatal(err)
	}
	line := make([]byte, 13)
	if _, err := io.ReadFull(c, line); err != nil || string(line) != "220 welcome\r\n" {
		t.Errorf("a silent client reads %q, %v", line, err)
	}
	_ = c.Close()
	// One that doesn't agree has its first bytes passed on as they are, whatever
	// they look like.
	other := silent.Clone()
	other.NextProtos = []string{"istio"}
	if c, err = tls.Dial("tcp", fmt.Sprintf("127.0.0.1:%d", ports[0]), other); err != nil {
		t.Fatal(err)
	}
	exchangeBytes(t, c, "", "\x3d\x23\x04\x67\x00\x00\x00\x02xx")
	_ = c.Close()
	within(t, "strangers are reported as unknown", func() bool {
		return seriesOf(t, bReg, "istio_tcp_connections_closed_total", `source_workload="unknown"`) == "2"
	})
}

// exchangeBytes reads a greeting and has text echoed.
func exchangeBytes(t *testing.T, c net.Conn, greeting, text string) {
	t.Helper()
	_ = c.SetDeadline(time.Now().Add(20 * time.Second))
	got := make([]byte, len(greeting))
	if _, err := io.ReadFull(c, got); err != nil || string(got) != greeting {
		t.Fatalf("greeted with %q, %v", got, err)
	}
	if _, err := io.WriteString(c, text); err != nil {
		t.Fatal(err)
	}
	got = make([]byte, len(text))
	if _, err := io.ReadFull(c, got); err != nil || string(got) != text {
		t.Fatalf("echoed %q, %v", got, err)
	}
}
