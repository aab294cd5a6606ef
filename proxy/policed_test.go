package proxy_test

import (
	"bytes"
	"fmt"
	"log/slog"
	"maps"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/fairlead-mesh/fairlead/filters/builtin"
	"github.com/fairlead-mesh/fairlead/internal/identity"
	"github.com/fairlead-mesh/fairlead/internal/netio"
	"github.com/fairlead-mesh/fairlead/internal/stats"
	"github.com/fairlead-mesh/fairlead/proxy"
	"github.com/fairlead-mesh/fairlead/xdsclient/xdsresource"
)

const (
	otherID = "spiffe://cluster.local/ns/app/sa/other"

	// admitAll and admitClient are policies over the identity that crosses the
	// hop; certAll and certClient over that of the certificate.
	admitAll    = `{policies: {"ns[app]-policy[all]-rule[0]": {permissions: [{any: true}], principals: [{any: true}]}}}`
	admitClient = `{policies: {"ns[app]-policy[client]-rule[0]": {permissions: [{any: true}], principals: [{filter_state: {key: io.istio.peer_principal, string_match: {exact: "` + clientID + `"}}}]}}}`
	certClient  = `{policies: {"ns[app]-policy[client]-rule[0]": {permissions: [{any: true}], principals: [{authenticated: {principal_name: {exact: "` + clientID + `"}}}]}}}`
	denyPort    = `{action: DENY, policies: {"ns[app]-policy[port]-rule[0]": {permissions: [{header: {name: ":authority", string_match: {suffix: ":9001"}}}], principals: [{any: true}]}}}`
	denyAll     = `{action: DENY, policies: {"ns[app]-policy[nobody]-rule[0]": {permissions: [{any: true}], principals: [{any: true}]}}}`
)

// policed is a waypoint whose policies change: on the CONNECT, and on the TCP
// connections inside, which go to an echo.
type policed struct {
	*proxy.Server
	t          *testing.T
	ca         *identity.DevCA
	port, echo int
	log        *eventLog
	reg        *stats.Registry
	access     string // the file of tcp_proxy's log
	res        proxy.Resources
	// validation replaces the usual validation context of clients.
	validation string
	// byExtension has policies delivered by ECDS.
	byExtension bool
	// idle is of tcp_proxy: a change that concerns no policy.
	idle string
	// network and connect go before the filters that the policies are in.
	network, connect string
}

func newPoliced(t *testing.T) *policed {
	t.Helper()
	ca, src := devCA(t)
	p := &policed{t: t, ca: ca, port: freePort(t), echo: tcpOrigin(t, ""), log: &eventLog{}, reg: &stats.Registry{}, access: filepath.Join(t.TempDir(), "tcp.log"), idle: "3600s"}
	s, err := proxy.New(proxy.Options{Registry: builtin.Registry(), Identity: src, DrainTime: time.Minute, Stats: p.reg, Logger: slog.New(slog.NewJSONHandler(p.log, nil))})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(s.Close)
	p.Server = s
	p.res = proxy.Resources{Listeners: map[string]*xdsresource.Listener{}, Clusters: map[string]*xdsresource.Cluster{}, Extensions: map[string]*xdsresource.ExtensionConfig{}, Secrets: map[string]*xdsresource.Secret{}}
	p.validation = `combined_validation_context: {default_validation_context: {match_typed_subject_alt_names: [{san_type: URI, matcher: {prefix: "spiffe://cluster.local/"}}]},
    validation_context_sds_secret_config: {name: ROOTCA, sds_config: {api_config_source: {api_type: GRPC, transport_api_version: V3, grpc_services: [{envoy_grpc: {cluster_name: sds-grpc}}]}}}}`
	p.cluster("main_internal", `{envoy_internal_address: {server_listener_name: main_internal}}`, `transport_socket: {name: internal_upstream, typed_config: {"@type": type.googleapis.com/envoy.extensions.transport_sockets.internal_upstream.v3.InternalUpstreamTransport,
    transport_socket: {name: raw, typed_config: {"@type": type.googleapis.com/envoy.extensions.transport_sockets.raw_buffer.v3.RawBuffer}}}}`)
	p.cluster("echo", fmt.Sprintf(`{socket_address: {address: 127.0.0.1, port_value: %d}}`, p.echo), "")
	return p
}

func (p *policed) cluster(name, address, more string) {
	if more != "" {
		more += ", "
	}
	p.res.Clusters[name] = decode[*xdsresource.Cluster](p.t, xdsresource.ClusterType, fmt.Sprintf(
		`{name: %s, type: STATIC, %s load_assignment: {cluster_name: %[1]s, endpoints: [{lb_endpoints: [{endpoint: {address: %[3]s}}]}]}}`, name, more, address))
}

// filter is a policy as a filter of a chain; none without rules.
func (p *policed) filter(name, typ, rules string) string {
	if rules == "" {
		return ""
	}
	if strings.HasPrefix(rules, "!") {
		return fmt.Sprintf(`{name: %s, typed_config: %s},`, name, unknownFilter)
	}
	config := fmt.Sprintf(`{"@type": type.googleapis.com/envoy.extensions.filters.%s.rbac.v3.RBAC, %s rules: %s}`, typ, map[string]string{"network": "stat_prefix: tcp., "}[typ], rules)
	if !p.byExtension {
		return fmt.Sprintf(`{name: %s, typed_config: %s},`, name, config)
	}
	p.res.Extensions[name] = decode[*xdsresource.ExtensionConfig](p.t, xdsresource.ExtensionConfigType, fmt.Sprintf(`{name: %s, typed_config: %s}`, name, config))
	return fmt.Sprintf(`{name: %s, config_discovery: {config_source: {ads: {}}, type_urls: [type.googleapis.com/envoy.extensions.filters.%s.rbac.v3.RBAC]}},`, name, typ)
}

// apply puts policies in force: on TCP and on the CONNECT, "" for none.
func (p *policed) apply(tcp, connect string) {
	p.t.Helper()
	tcp, connect = p.filter("tcp-policy", "network", tcp), p.filter("connect-policy", "http", connect)
	p.res.Listeners["connect_terminate"] = decode[*xdsresource.Listener](p.t, xdsresource.ListenerType, fmt.Sprintf(`
name: connect_terminate
address: {socket_address: {address: 127.0.0.1, port_value: %d}}
filter_chains:
- name: default
  filters:
  - name: hcm
    typed_config:
      "@type": type.googleapis.com/envoy.extensions.filters.network.http_connection_manager.v3.HttpConnectionManager
      stat_prefix: connect_terminate
      http2_protocol_options: {allow_connect: true}
      upgrade_configs: [{upgrade_type: CONNECT}]
      http_filters: [%s
        {name: connect_authority, typed_config: {"@type": type.googleapis.com/envoy.extensions.filters.http.set_filter_state.v3.Config, on_request_headers: [
          {object_key: envoy.filters.listener.original_dst.local_ip, format_string: {text_format_source: {inline_string: "%%REQ(:AUTHORITY)%%"}}, shared_with_upstream: ONCE},
          {object_key: io.istio.peer_principal, factory_key: envoy.string, format_string: {text_format_source: {inline_string: "%%DOWNSTREAM_PEER_URI_SAN%%"}}, shared_with_upstream: ONCE}]}},
        %s %s]
      route_config: {virtual_hosts: [{name: default, domains: ["*"], routes: [{match: {connect_matcher: {}}, route: {cluster: main_internal, upgrade_configs: [{upgrade_type: CONNECT, connect_config: {}}]}}]}]}
  transport_socket:
    name: tls
    typed_config:
      "@type": type.googleapis.com/envoy.extensions.transport_sockets.tls.v3.DownstreamTlsContext
      require_client_certificate: true
      common_tls_context:
        alpn_protocols: [h2]
        tls_certificate_sds_secret_configs: [{name: default, sds_config: {api_config_source: {api_type: GRPC, transport_api_version: V3, grpc_services: [{envoy_grpc: {cluster_name: sds-grpc}}]}}}]
        %s
`, p.port, p.connect, connect, routerFilter, p.validation))
	p.res.Listeners["main_internal"] = decode[*xdsresource.Listener](p.t, xdsresource.ListenerType, fmt.Sprintf(`
name: main_internal
internal_listener: {}
listener_filters: [{name: original_dst, typed_config: {"@type": type.googleapis.com/envoy.extensions.filters.listener.original_dst.v3.OriginalDst}}]
filter_chains:
- name: tcp
  filters:
  %s
  - {name: tcp, typed_config: {"@type": type.googleapis.com/envoy.extensions.filters.network.tcp_proxy.v3.TcpProxy, stat_prefix: tcp, cluster: echo, idle_timeout: %s, access_log: [
      {name: file, typed_config: {"@type": type.googleapis.com/envoy.extensions.access_loggers.file.v3.FileAccessLog, path: %q,
        log_format: {text_format_source: {inline_string: "%%CONNECTION_TERMINATION_DETAILS%% %%RESPONSE_FLAGS%%\n"}}}}]}}
`, listed(p.network+tcp), p.idle, p.access))
	r := proxy.Resources{Listeners: maps.Clone(p.res.Listeners), Clusters: maps.Clone(p.res.Clusters), Extensions: maps.Clone(p.res.Extensions), Secrets: maps.Clone(p.res.Secrets)}
	if err := p.Apply(&r); err != nil {
		p.t.Fatal(err)
	}
}

// listed writes filters, each followed by a comma, as items of a list.
func listed(filters string) string {
	if filters == "" {
		return ""
	}
	return "- " + strings.ReplaceAll(strings.TrimSuffix(filters, ","), "},{name:", "}\n  - {name:")
}

// echoed sends a line through c and waits for it to come back.
func echoed(c netio.Conn, line string) error {
	if _, err := c.Write([]byte(line)); err != nil {
		return err
	}
	got := make([]byte, len(line))
	for n := 0; n < len(got); {
		m, err := c.Read(got[n:])
		if err != nil {
			return err
		}
		n += m
	}
	if string(got) != line {
		return fmt.Errorf("%q came back as %q", line, got)
	}
	return nil
}

// open opens a tunnel and uses it.
func (p *policed) open(id, authority string) netio.Conn {
	p.t.Helper()
	c, cl := tunnel(p.t, p.ca, id, p.port, authority)
	p.t.Cleanup(func() { cl.Close(netio.ErrClosed) })
	p.uses(c, "at first")
	return c
}

func (p *policed) uses(c netio.Conn, when string) {
	p.t.Helper()
	if err := echoed(c, "hello"); err != nil {
		p.t.Fatalf("%s: %v", when, err)
	}
}

// ends waits for the end of what nothing is sent on.
func (p *policed) ends(what string, c netio.Conn) {
	p.t.Helper()
	began, over := time.Now(), make(chan error, 1)
	go func() {
		_, err := c.Read(make([]byte, 1))
		over <- err
	}()
	select {
	case err := <-over:
		if d := time.Since(began); err == nil || d > 8*time.Second {
			p.t.Errorf("%s: %v after %v", what, err, d)
		}
	case <-time.After(10 * time.Second):
		p.t.Fatalf("%s: it is still open", what)
	}
}

// counted returns the value of a metric, given with its labels.
func (p *policed) counted(series string) string {
	p.t.Helper()
	var b bytes.Buffer
	if err := p.reg.WritePrometheus(&b); err != nil {
		p.t.Fatal(err)
	}
	for line := range strings.Lines(b.String()) {
		if v, ok := strings.CutPrefix(line, series+" "); ok {
			return strings.TrimSpace(v)
		}
	}
	return ""
}

// event waits for the event msg and returns it.
func (p *policed) event(msg string) map[string]any {
	p.t.Helper()
	var found map[string]any
	eventually(p.t, msg, func() bool {
		for _, e := range p.log.events() {
			if e["msg"] == msg {
				found = e
				return true
			}
		}
		return false
	})
	return found
}

// refuses fails if a new tunnel carries anything.
func (p *policed) refuses(id, authority string) {
	p.t.Helper()
	c, cl, err := tryTunnel(p.t, p.ca, id, p.port, authority)
	defer cl.Close(netio.ErrClosed)
	if err == nil {
		err = echoed(c, "x")
	}
	if err == nil {
		p.t.Error("a new one is admitted")
	}
}
