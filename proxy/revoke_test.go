package proxy_test

import (
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"os"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/fairlead-mesh/fairlead/internal/netio"
	"github.com/fairlead-mesh/fairlead/proxy/transport"
	"github.com/fairlead-mesh/fairlead/xdsclient/xdsresource"
)

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
