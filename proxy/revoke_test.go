package proxy_test

import (
	"bytes"
	"fmt"
	"io"
	"log/slog"
	"maps"
	"net"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/fairlead-mesh/fairlead/filters/builtin"
	"github.com/fairlead-mesh/fairlead/internal/identity"
	"github.com/fairlead-mesh/fairlead/internal/netio"
	"github.com/fairlead-mesh/fairlead/internal/stats"
	"github.com/fairlead-mesh/fairlead/proxy"
	"github.com/fairlead-mesh/fairlead/proxy/transport"
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
	p := &policed{t: t, ca: ca, port: freePort(t), echo: echoServer(t).Addr().(*net.TCPAddr).Port, log: &eventLog{}, reg: &stats.Registry{}, access: filepath.Join(t.TempDir(), "tcp.log"), idle: "3600s"}
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
		if d := time.Since(began); err == nil || d > 2*time.Second {
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

// A policy that denies who has an open tunnel ends that tunnel, and no other: on
// TCP connections inside and on the CONNECT itself, in a listener and by
// extension, where there was one and where there was none.
func TestAPolicyThatDeniesEndsOpenTunnels(t *testing.T) {
	for _, tc := range []struct {
		name                           string
		ecds                           bool
		tcp, connect                   string // before
		tcp2, connect2                 string // after
		msg, details, policy, identity string
	}{
		{"TCP, in its listener", false, admitAll, "", admitClient, "", "connection revoked", "rbac_access_denied_matched_policy[none]", "", otherID},
		{"TCP, by extension", true, admitAll, "", admitClient, "", "connection revoked", "rbac_access_denied_matched_policy[none]", "", otherID},
		{"TCP, the first policy", false, "", "", admitClient, "", "connection revoked", "rbac_access_denied_matched_policy[none]", "", otherID},
		{"CONNECT, in its listener", false, "", admitAll, "", certClient, "tunnel revoked", "rbac_access_denied_matched_policy[none]", "", otherID},
		{"CONNECT, by extension", true, "", admitAll, "", certClient, "tunnel revoked", "rbac_access_denied_matched_policy[none]", "", otherID},
		{"CONNECT, the first policy", false, "", "", "", certClient, "tunnel revoked", "rbac_access_denied_matched_policy[none]", "", otherID},
		{"CONNECT, by what crosses the hop", true, "", admitAll, "", admitClient, "tunnel revoked", "rbac_access_denied_matched_policy[none]", "", otherID},
		{"CONNECT, by its authority", true, "", admitAll, "", denyPort, "tunnel revoked", "rbac_access_denied_matched_policy[ns[app]-policy[port]-rule[0]]", "app/port", otherID},
		{"TCP, a filter that can't be executed", false, admitAll, "", "!", "", "connection revoked", "filter_not_executable{tcp-policy}", "", ""},
		{"CONNECT, a filter that can't be executed", false, "", admitAll, "", "!", "tunnel revoked", "filter_not_executable{connect-policy}", "", ""},
	} {
		t.Run(tc.name, func(t *testing.T) {
			p := newPoliced(t)
			p.byExtension = tc.ecds
			p.apply(tc.tcp, tc.connect)
			stays, goes := p.open(clientID, "10.1.2.3:9000"), p.open(otherID, "10.1.2.3:9001")
			p.idle = "1800s"
			p.apply(tc.tcp, tc.connect)
			p.uses(stays, "after a change that is no policy's")
			p.uses(goes, "after a change that is no policy's")
			p.apply(tc.tcp2, tc.connect2)
			p.ends("the tunnel of who is denied", goes)
			all := strings.HasPrefix(tc.tcp2+tc.connect2, "!")
			if all {
				p.ends("the tunnel of who may be", stays)
			} else {
				p.uses(stays, "after the policy")
			}
			ev := p.event(tc.msg)
			if got := ev["termination_details"]; tc.msg == "connection revoked" && got != tc.details {
				t.Errorf("details %v", got)
			}
			if got := ev["response_code_details"]; tc.msg == "tunnel revoked" && got != tc.details {
				t.Errorf("details %v", got)
			}
			if src, _ := ev["source"].(map[string]any); tc.identity != "" && src["identity"] != tc.identity || tc.policy != "" && ev["policy"] != tc.policy || !all && (ev["filter"] != "rbac" || ev["clause"] == nil) {
				t.Errorf("%v", ev)
			}
			n := "1"
			if all {
				n = "2"
			}
			reason, _, _ := strings.Cut(strings.ReplaceAll(tc.details, "{", "["), "[")
			series := fmt.Sprintf("fairlead_connections_revoked_total{reason=%q}", reason)
			eventually(t, series+" "+n, func() bool { return p.counted(series) == n })
			if tc.tcp2 == admitClient {
				if v := p.counted(`envoy_rbac_denied{envoy_rbac_prefix="tcp"}`); v != "1" {
					t.Errorf("%s denials are counted", v)
				}
				eventually(t, "the line of the access log", func() bool {
					b, _ := os.ReadFile(p.access)
					return string(b) == tc.details+" -\n"
				})
			}
			p.refuses(otherID, "10.1.2.3:9001")
		})
	}
}

// The request ID that the proxy made up is not kept with a tunnel: a policy that
// asks for one finds one.
func TestATunnelIsJudgedWithARequestID(t *testing.T) {
	p := newPoliced(t)
	p.apply("", admitAll)
	c := p.open(clientID, "10.1.2.3:9000")
	for i, policy := range []string{
		`{policies: {identified: {permissions: [{header: {name: x-request-id, string_match: {safe_regex: {regex: "[0-9a-f-]{36}"}}}}], principals: [{any: true}]}}}`,
		`{action: DENY, policies: {anonymous: {permissions: [{not_rule: {header: {name: x-request-id, present_match: true}}}], principals: [{any: true}]}}}`,
	} {
		p.apply("", policy)
		p.uses(c, fmt.Sprintf("after policy %d", i))
		p.uses(p.open(clientID, "10.1.2.3:9000"), fmt.Sprintf("one that was opened after policy %d", i))
	}
	p.apply("", denyAll)
	p.ends("the tunnel", c)
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

// While policies flip, tunnels are opened as fast as it goes. Whatever was
// admitted is gone once it is denied.
func TestNoTunnelSlipsThroughAChangeOfPolicy(t *testing.T) {
	for _, tc := range []struct {
		name         string
		ecds, onTCP  bool
		allow, denie string
	}{
		{"TCP, in its listener", false, true, admitAll, admitClient},
		{"TCP, by extension", true, true, admitAll, admitClient},
		{"CONNECT, in its listener", false, false, admitAll, certClient},
		{"CONNECT, by extension", true, false, admitAll, certClient},
	} {
		t.Run(tc.name, func(t *testing.T) {
			p := newPoliced(t)
			p.byExtension = tc.ecds
			set := func(policy string) {
				if tc.onTCP {
					p.apply(policy, "")
				} else {
					p.apply("", policy)
				}
			}
			for round := range 3 {
				set(tc.allow)
				stop := make(chan struct{})
				var mu sync.Mutex
				var opened []netio.Conn
				var wg sync.WaitGroup
				for range 4 {
					_, cl := tunnel(t, p.ca, otherID, p.port, "10.1.2.3:9000")
					defer cl.Close(netio.ErrClosed)
					wg.Go(func() {
						for i := 0; ; i++ {
							select {
							case <-stop:
								return
							default:
							}
							c := tryStream(cl, "10.1.2.3:9000")
							if c == nil { // it is draining, denied, or has enough streams
								time.Sleep(time.Millisecond)
								continue
							}
							if i%2 == 0 {
								_ = echoed(c, "x")
							}
							mu.Lock()
							opened = append(opened, c)
							mu.Unlock()
						}
					})
				}
				eventually(t, "some tunnels", func() bool { mu.Lock(); defer mu.Unlock(); return len(opened) > 12 })
				set(tc.denie)
				time.Sleep(20 * time.Millisecond)
				close(stop)
				wg.Wait()
				for i, c := range opened {
					over := make(chan struct{})
					go func() {
						defer close(over)
						for buf := make([]byte, 8); ; {
							if _, err := c.Read(buf); err != nil {
								return
							}
						}
					}()
					select {
					case <-over:
					case <-time.After(10 * time.Second):
						t.Fatalf("round %d: tunnel %d of %d is still open", round, i, len(opened))
					}
				}
			}
		})
	}
}

// tryStream opens one more CONNECT stream, nil if there is none to be had.
func tryStream(cl transport.ClientConn, authority string) netio.Conn {
	st, err := cl.NewStream()
	if err != nil {
		return nil
	}
	c, err := connectStream(st, authority)
	if err != nil {
		st.Reset()
		return nil
	}
	return c
}

// upgradeOrigin takes upgrades and answers bytes with the same.
func upgradeOrigin(t *testing.T) (port string) {
	t.Helper()
	o := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
		w.Header().Set("connection", "upgrade")
		w.Header().Set("upgrade", "websocket")
		w.WriteHeader(http.StatusSwitchingProtocols)
		c, rw, err := w.(http.Hijacker).Hijack()
		if err != nil {
			return
		}
		defer c.Close()
		_, _ = io.Copy(c, rw)
	}))
	t.Cleanup(o.Close)
	return urlPort(o.URL)
}

// upgraded opens a WebSocket, as far as its head.
func upgraded(t *testing.T, port int, path string) *client {
	t.Helper()
	c := dial(t, port)
	t.Cleanup(func() { _ = c.Close() })
	if _, err := fmt.Fprintf(c, "GET %s HTTP/1.1\r\nhost: a\r\nconnection: upgrade\r\nupgrade: websocket\r\nsec-websocket-key: AAAAAAAAAAAAAAAAAAAAAA==\r\nsec-websocket-version: 13\r\n\r\n", path); err != nil {
		t.Fatal(err)
	}
	resp, err := http.ReadResponse(c.br, nil)
	if err != nil || resp.StatusCode != http.StatusSwitchingProtocols {
		t.Fatalf("%s: %v %v", path, resp, err)
	}
	if err := c.echoes("hello"); err != nil {
		t.Fatalf("%s: %v", path, err)
	}
	return c
}

func (c *client) echoes(line string) error {
	if _, err := io.WriteString(c, line); err != nil {
		return err
	}
	_, err := io.ReadFull(c.br, make([]byte, len(line)))
	return err
}

// A WebSocket is judged by the path that its client asked for, and by the policy
// of the route that it would get now.
func TestAPolicyThatDeniesEndsOpenWebSockets(t *testing.T) {
	const perRoute = `typed_per_filter_config: {policy: {"@type": type.googleapis.com/envoy.extensions.filters.http.rbac.v3.RBACPerRoute, rbac: {rules: ` + denyAll + `}}}`
	for _, tc := range []struct{ name, before, after, route string }{
		{"in its listener", admitAll, `{action: DENY, policies: {p: {permissions: [{url_path: {path: {prefix: /secret}}}], principals: [{any: true}]}}}`, ""},
		{"by its route", admitAll, admitAll, perRoute},
	} {
		t.Run(tc.name, func(t *testing.T) {
			p := newPoliced(t)
			p.cluster("ws", fmt.Sprintf(`{socket_address: {address: 127.0.0.1, port_value: %s}}`, upgradeOrigin(t)), "")
			edge := freePort(t)
			set := func(rules, secret string) {
				p.res.Listeners["edge"] = decode[*xdsresource.Listener](t, xdsresource.ListenerType, fmt.Sprintf(
					`{name: edge, address: {socket_address: {address: 127.0.0.1, port_value: %d}}, filter_chains: [%s]}`, edge,
					chainYAML("c", "{}", p.filter("policy", "http", rules), fmt.Sprintf(`upgrade_configs: [{upgrade_type: websocket}], route_config: {name: r, virtual_hosts: [{name: v, domains: ["*"], routes: [
            {name: secret, match: {prefix: /secret}, route: {cluster: ws, prefix_rewrite: /open}, %s}, {name: all, match: {prefix: /}, route: {cluster: ws, prefix_rewrite: /secret}}]}]}`, secret))))
				p.apply("", "")
			}
			set(tc.before, "")
			goes, stays := upgraded(t, edge, "/secret"), upgraded(t, edge, "/other")
			set(tc.after, tc.route)
			eventually(t, "the end of the one", func() bool { return goes.echoes("x") != nil })
			if err := stays.echoes("hello"); err != nil {
				t.Errorf("the other: %v", err)
			}
			if ev := p.event("tunnel revoked"); ev["path"] == nil || ev["filter"] != "rbac" || ev["status"] != float64(101) {
				t.Errorf("%v", ev)
			}
		})
	}
}

// A listener that was removed and has come back with another policy judges what it
// had left open; so does a chain that takes connections of another from now on.
func TestConnectionsOfFormerListenersAndChainsAreJudged(t *testing.T) {
	p := newPoliced(t)
	port := freePort(t)
	chain := func(name, match, rules string) string {
		return fmt.Sprintf(`{name: %s, filter_chain_match: %s, filters: [%s {name: tcp, typed_config: {"@type": type.googleapis.com/envoy.extensions.filters.network.tcp_proxy.v3.TcpProxy, stat_prefix: %[1]s, cluster: echo}}]}`,
			name, match, p.filter("policy", "network", rules))
	}
	set := func(chains ...string) {
		delete(p.res.Listeners, "l")
		if len(chains) > 0 {
			p.res.Listeners["l"] = decode[*xdsresource.Listener](t, xdsresource.ListenerType, fmt.Sprintf(
				`{name: l, address: {socket_address: {address: 127.0.0.1, port_value: %d}}, filter_chains: [%s]}`, port, strings.Join(chains, ", ")))
		}
		p.apply("", "")
	}
	open := func() *client {
		c := dial(t, port)
		t.Cleanup(func() { _ = c.Close() })
		if err := c.echoes("hello"); err != nil {
			t.Fatal(err)
		}
		return c
	}
	set(chain("all", "{}", admitAll))
	c := open()
	set()
	if err := c.echoes("x"); err != nil {
		t.Fatalf("of a listener that was removed: %v", err)
	}
	set(chain("all", "{}", admitAll))
	if err := c.echoes("x"); err != nil {
		t.Fatalf("of one that is there again: %v", err)
	}
	set(chain("all", "{}", denyAll))
	eventually(t, "the end of the connection of the removed listener", func() bool { return c.echoes("x") != nil })

	set(chain("all", "{}", admitAll))
	c = open()
	set(chain("all", "{}", admitAll), chain("elsewhere", "{source_prefix_ranges: [{address_prefix: 10.0.0.0, prefix_len: 8}]}", denyAll))
	if err := c.echoes("x"); err != nil {
		t.Fatalf("of a chain that goes on: %v", err)
	}
	set(chain("all", "{}", admitAll), chain("here", "{source_prefix_ranges: [{address_prefix: 127.0.0.0, prefix_len: 8}]}", denyAll))
	eventually(t, "the end of the connection of the other chain", func() bool { return c.echoes("x") != nil })
}
