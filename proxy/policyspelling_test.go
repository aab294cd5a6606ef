package proxy_test

import (
	"bufio"
	"bytes"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"path"
	"strings"
	"testing"
	"time"

	"golang.org/x/net/http2"
	"golang.org/x/net/http2/hpack"
)

// forbidden is what the policies of these tests guard.
const forbidden = "f0rb1dden"

// gullible serves what it has, and takes a request for as much as it can.
func gullible(w http.ResponseWriter, r *http.Request) {
	host, _, _ := strings.Cut(r.Host, ":")
	p := strings.ToLower(path.Clean("/" + r.URL.Path))
	if strings.HasPrefix(p, "/admin") || strings.EqualFold(strings.TrimRight(host, "."), "secret.test") || strings.EqualFold(r.Method, "DELETE") || r.URL.Path == "/svc/Method" {
		_, _ = io.WriteString(w, forbidden)
	}
	_, _ = fmt.Fprintf(w, " %s %s", r.Method, r.RequestURI)
}

const guard = `{name: rbac, typed_config: {"@type": type.googleapis.com/envoy.extensions.filters.http.rbac.v3.RBAC, rules: {action: DENY, policies: {
              path: {permissions: [{or_rules: {rules: [{url_path: {path: {prefix: /admin, ignore_case: true}}}, {url_path: {path: {exact: /svc/Method}}}]}}], principals: [{any: true}]},
              host: {permissions: [{or_rules: {rules: [{header: {name: ":authority", string_match: {exact: secret.test, ignore_case: true}}}, {header: {name: ":authority", string_match: {prefix: "secret.test:", ignore_case: true}}}]}}], principals: [{any: true}]},
              method: {permissions: [{header: {name: ":method", string_match: {exact: DELETE}}}], principals: [{any: true}]}}}}}, `

const guardedRoutes = `routes: [{match: {connect_matcher: {}}, route: {cluster: app, upgrade_configs: [{upgrade_type: CONNECT, connect_config: {}}]}},
            {match: {prefix: /pub/}, route: {cluster: app, prefix_rewrite: /}}, {match: {prefix: /pub}, route: {cluster: app, prefix_rewrite: /}},
            {match: {path_separated_prefix: /sep}, route: {cluster: app, prefix_rewrite: /s}},
            {match: {prefix: /re/}, route: {cluster: app, regex_rewrite: {pattern: {regex: "^/re/(.*)$"}, substitution: '/\1'}}},
            {match: {prefix: /}, route: {cluster: app, timeout: 5s}}]`

const guardedManager = `normalize_path: true
          merge_slashes: true
          path_with_escaped_slashes_action: UNESCAPE_AND_FORWARD
          strip_trailing_host_dot: true
          http_protocol_options: {accept_http_10: true, default_host_for_http_10: app.test}
          http2_protocol_options: {allow_connect: true}
          upgrade_configs: [{upgrade_type: websocket}, {upgrade_type: h2c}, {upgrade_type: CONNECT}]`

// raw sends bytes over HTTP/1 and returns what comes back.
func raw(t *testing.T, port int, text string) string {
	t.Helper()
	c, err := net.DialTimeout("tcp", fmt.Sprintf("127.0.0.1:%d", port), 20*time.Second)
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	_ = c.SetDeadline(time.Now().Add(20 * time.Second))
	if _, err := io.WriteString(c, text); err != nil {
		return ""
	}
	br := bufio.NewReader(c)
	resp, err := http.ReadResponse(br, nil)
	if err != nil {
		return ""
	}
	defer resp.Body.Close()
	if resp.StatusCode == http.StatusSwitchingProtocols || strings.HasPrefix(text, "CONNECT ") {
		_ = c.SetDeadline(time.Now().Add(300 * time.Millisecond)) // tunnels stay open
	}
	b, _ := io.ReadAll(resp.Body)
	return fmt.Sprintf("%d%s", resp.StatusCode, b)
}

// raw2 sends one HTTP/2 request with exactly these fields.
func raw2(t *testing.T, port int, fields ...string) string {
	t.Helper()
	c, err := net.DialTimeout("tcp", fmt.Sprintf("127.0.0.1:%d", port), 20*time.Second)
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	_ = c.SetDeadline(time.Now().Add(20 * time.Second))
	fr := http2.NewFramer(c, c)
	fr.ReadMetaHeaders = hpack.NewDecoder(4096, nil)
	_, _ = io.WriteString(c, http2.ClientPreface)
	_ = fr.WriteSettings()
	var block bytes.Buffer
	enc := hpack.NewEncoder(&block)
	connect := false
	for i := 0; i < len(fields); i += 2 {
		_ = enc.WriteField(hpack.HeaderField{Name: fields[i], Value: fields[i+1]})
		connect = connect || fields[i+1] == "CONNECT"
	}
	_ = fr.WriteHeaders(http2.HeadersFrameParam{StreamID: 1, BlockFragment: block.Bytes(), EndStream: !connect, EndHeaders: true})
	out := ""
	for {
		f, err := fr.ReadFrame()
		if err != nil {
			return out
		}
		switch f := f.(type) {
		case *http2.SettingsFrame:
			if !f.IsAck() {
				_ = fr.WriteSettingsAck()
			}
		case *http2.MetaHeadersFrame:
			out += f.PseudoValue("status")
			if f.StreamEnded() {
				return out
			}
			if connect {
				_ = c.SetDeadline(time.Now().Add(300 * time.Millisecond))
			}
		case *http2.DataFrame:
			out += string(f.Data())
			if f.StreamEnded() {
				return out
			}
		case *http2.RSTStreamFrame, *http2.GoAwayFrame:
			return out + "reset"
		}
	}
}

// spelling is a request that may not bring what is forbidden. want is how its
// answer begins, "" if only that counts.
type spelling struct {
	name, h1 string
	h2       []string
	want     string
}

func get1(target string, more ...string) string {
	return "GET " + target + " HTTP/1.1\r\nHost: app.test\r\n" + strings.Join(more, "") + "\r\n"
}

func get2(method, authority, target string, more ...string) []string {
	return append([]string{":method", method, ":scheme", "http", ":authority", authority, ":path", target}, more...)
}

func spellings() (list []spelling) {
	add := func(s ...spelling) { list = append(list, s...) }
	// Rewrites: a policy judges the path that the client meant.
	for target, want := range map[string]string{
		"/admin": "403", "/pub/admin": "200", "/pub/..%2fadmin": "403", "/pub/%2e%2e/admin": "403", "/pub/..%5cadmin": "403", "/pub//../admin": "200", "/pub../admin": "400", "/pub..//admin": "400",
		"/pub..": "400", "/pub./x": "400", "/pub..?x": "400", "/pub-x": "200 GET /-x", "/pub/x": "200 GET /x", "/pub/x?a=/../y": "200 GET /x?a=/../y", "/pub/.x": "200 GET /.x", "/sep/x": "200 GET /s/x", "/sep-x": "200 GET /sep-x",
		"/sep../x": "200 GET /sep../x", "/re/x": "200 GET /x", "/re//x": "200 GET /x", "/re/..%2fadmin": "403", "/re/%2e%2e%2fadmin": "403",
	} {
		s := spelling{name: "rewrite " + target, h1: get1(target), h2: get2("GET", "app.test", target), want: want}
		if want == "200" {
			s.want = "200f0rb1dden" // the operator's own route to it
		}
		add(s)
	}
	for _, h := range []string{
		"secret.test", "Secret.TEST", "secret.test.", "SECRET.TEST.", "secret.test..", "secret.test:80", "secret.test:443", "secret.test:08080", "secret.test:", "secret.test.:80", "secret.test:80@x", "x@secret.test", "user:p@secret.test",
		"\uff33\uff25\uff23\uff32\uff25\uff34.test", "xn--secret.test", "secret.test%00", "secret%2etest", "secret.test\x00", " secret.test", "secret.test ", "secret.test,app.test", "secret.test/", "secret.test#x", "secret.test?x",
	} {
		add(spelling{name: "host " + h, h2: get2("GET", h, "/x")}, spelling{name: "host field " + h, h2: append(get2("GET", "app.test", "/x"), "host", h)})
	}
	for _, s := range []string{"HTTPS", "httpS", "https", "HTTP", "http", "ftp", "", "http ", "file"} {
		add(spelling{name: "scheme " + s, h2: []string{":method", "GET", ":scheme", s, ":authority", "app.test", ":path", "/admin"}})
	}
	add(spelling{name: "no scheme", h2: []string{":method", "GET", ":authority", "app.test", ":path", "/admin"}, want: "reset"})
	for _, p := range []string{"svc/Method", "//svc/Method", "/svc//Method", "/svc/Method/", "/svc/Method?x", "/SVC/method", "/svc/Method", "/svc/./Method", "/svc%2fMethod", "svc/../svc/Method", "*", "?/svc/Method"} {
		add(spelling{name: "gRPC " + p, h2: append(get2("POST", "app.test", p), "content-type", "application/grpc", "te", "trailers")})
	}
	for _, m := range []string{"DELETE", "delete", "Delete", "DeLeTe", "DELETE ", " DELETE", "DEL\x00ETE", "DELETE\t", "PRI", "G\x00ET", strings.Repeat("M", 100)} {
		add(spelling{name: "method " + m, h1: m + " /x HTTP/1.1\r\nHost: app.test\r\n\r\n", h2: get2(m, "app.test", "/x")})
	}
	add(spelling{name: "method override", h1: get1("/x", "X-HTTP-Method-Override: DELETE\r\n"), h2: append(get2("GET", "app.test", "/x"), "x-http-method-override", "DELETE"), want: "200 GET /x"})
	// Upgrades and other protocols are judged like a plain GET.
	const ws = "Connection: Upgrade\r\nUpgrade: websocket\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\nSec-WebSocket-Version: 13\r\n"
	add(
		spelling{name: "WebSocket", h1: get1("/admin", ws), want: "403"},
		spelling{name: "WebSocket to a host", h1: "GET /x HTTP/1.1\r\nHost: secret.test\r\n" + ws + "\r\n", want: "403"},
		spelling{name: "h2c upgrade", h1: get1("/admin", "Connection: Upgrade, HTTP2-Settings\r\nUpgrade: h2c\r\nHTTP2-Settings: AAMAAABkAAQAAP__\r\n"), want: "403"},
		spelling{name: "CONNECT", h1: "CONNECT secret.test:80 HTTP/1.1\r\nHost: secret.test:80\r\n\r\n", h2: []string{":method", "CONNECT", ":authority", "secret.test:80"}, want: "403"},
		spelling{name: "extended CONNECT", h2: append(get2("CONNECT", "app.test", "/admin"), ":protocol", "websocket")},
		spelling{name: "HTTP/1.0", h1: "GET /admin HTTP/1.0\r\n\r\n", want: "403"},
		spelling{name: "HTTP/1.0 to a host", h1: "GET /x HTTP/1.0\r\nHost: secret.test\r\n\r\n", want: "403"},
		spelling{name: "gRPC-Web", h1: "POST /svc/Method HTTP/1.1\r\nHost: app.test\r\nContent-Type: application/grpc-web\r\nContent-Length: 0\r\n\r\n"},
		spelling{name: "absolute form", h1: "GET http://app.test/admin HTTP/1.1\r\nHost: app.test\r\n\r\n"},
		spelling{name: "absolute form, two hosts", h1: "GET http://secret.test/x HTTP/1.1\r\nHost: app.test\r\n\r\n"},
	)
	for _, h := range []string{"X-Original-URL", "X-Rewrite-URL", "X-Envoy-Original-Path", "X-Forwarded-Prefix", "X-Forwarded-Uri", "X-Original-Host", "X-Forwarded-Host"} {
		add(spelling{name: h, h1: get1("/x", h+": /admin\r\n"), h2: append(get2("GET", "app.test", "/x"), strings.ToLower(h), "/admin"), want: "200 GET /x"})
	}
	return list
}

func TestNoSpellingOfARequestGetsPastAPolicyOnItsWay(t *testing.T) {
	list := spellings()
	if len(list) != 121 {
		t.Errorf("%d spellings, want 121", len(list))
	}
	app := h2cServer(t, gullible)
	port := freePort(t)
	listener := strings.NewReplacer("http_filters: [", "http_filters: ["+guard, "routes: [{match: {prefix: /}, route: {cluster: app, timeout: 0s}}]", guardedRoutes).Replace(hcmListener("main", port, "app", guardedManager))
	startProxy(t, "node: {id: a, cluster: a}\nstatic_resources:\n  listeners:"+listener+"\n  clusters:"+httpCluster("app", app, "http_protocol_options: {}"), nil)
	sent := 0
	for _, s := range list {
		try := func(version, got string) {
			sent++
			if strings.Contains(got, forbidden) && !strings.HasPrefix(s.want, "200"+forbidden) {
				t.Errorf("bypass: %s in %s: %s", s.name, version, got)
			}
			if !strings.HasPrefix(got, s.want) {
				t.Errorf("%s in %s: %q, want %q", s.name, version, got, s.want)
			}
		}
		if s.h1 != "" {
			try("HTTP/1", raw(t, port, s.h1))
		}
		if s.h2 != nil {
			try("HTTP/2", raw2(t, port, s.h2...))
		}
	}
	t.Logf("%d spellings, %d requests", len(list), sent)
	// Nothing has broken, and the back end would have told.
	if got := raw(t, port, get1("/x")); got != "200 GET /x" {
		t.Errorf("afterwards: %q", got)
	}
}

// Names too long for SNI, and addresses with zones, break nothing.
func TestStrangeAuthoritiesOnTheWayToTLS(t *testing.T) {
	origin := httptest.NewTLSServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) { _, _ = io.WriteString(w, "sni="+r.TLS.ServerName) }))
	origin.Config.ErrorLog = nil
	defer origin.Close()
	port := freePort(t)
	cluster := httpCluster("app", urlPort(origin.URL), "http_protocol_options: {}}\n        upstream_http_protocol_options: {auto_sni: true")
	cluster += "    transport_socket: {name: tls, typed_config: {'@type': type.googleapis.com/envoy.extensions.transport_sockets.tls.v3.UpstreamTlsContext}}\n"
	startProxy(t, "node: {id: a, cluster: a}\nstatic_resources:\n  listeners:"+hcmListener("main", port, "app", "")+"\n  clusters:"+cluster, nil)
	ok := func() {
		t.Helper()
		if got := raw(t, port, get1("/x")); got != "200sni=app.test" {
			t.Errorf("%q", got)
		}
	}
	ok()
	for _, host := range []string{
		strings.Repeat("a", 255), strings.Repeat("a", 256), strings.Repeat("a", 300), strings.Repeat("a", 8000), strings.Repeat("a.", 128) + "test", strings.Repeat("a", 64) + ".test",
		"[fe80::1%25eth0]:80", "[fe80::1%25eth0]", "[::1]:80", "10.0.0.1:443", "a..b", "-a.test", "a_b.test", "[::ffff:10.0.0.1]", "*.test",
	} {
		for version, got := range map[string]string{
			"HTTP/1": raw(t, port, "GET /x HTTP/1.1\r\nHost: "+host+"\r\n\r\n"), "HTTP/2": raw2(t, port, get2("GET", host, "/x")...),
		} {
			if strings.HasPrefix(got, "500") || len(got) < 3 {
				t.Errorf("%.40s in %s: %q", host, version, got)
			}
			if _, name, _ := strings.Cut(got, "sni="); len(name) > 255 || strings.ContainsAny(name, "%[]:") {
				t.Errorf("%.40s in %s became a server name: %.80q", host, version, name)
			}
		}
		ok()
	}
}

// internalHeaders are those that only Envoy itself, or a client inside, may set
// (Envoy's ConnectionManagerUtility::cleanInternalHeaders, and what an edge
// replaces).
var internalHeaders = []string{
	"x-envoy-retriable-status-codes", "x-envoy-retriable-header-names", "x-envoy-retry-on", "x-envoy-retry-grpc-on", "x-envoy-max-retries", "x-envoy-upstream-alt-stat-name",
	"x-envoy-upstream-rq-timeout-ms", "x-envoy-upstream-rq-per-try-timeout-ms", "x-envoy-upstream-rq-timeout-alt-response", "x-envoy-expected-rq-timeout-ms", "x-envoy-force-trace",
	"x-envoy-ip-tags", "x-envoy-original-url", "x-envoy-hedge-on-per-try-timeout", "x-envoy-decorator-operation", "x-envoy-downstream-service-cluster", "x-envoy-downstream-service-node",
	"x-envoy-original-path", "x-envoy-original-host", "x-envoy-internal", "x-envoy-external-address", "x-forwarded-client-cert", "x-forwarded-proto",
}

func TestHeadersThatOnlyAProxyMaySetAreNotTheClients(t *testing.T) {
	if len(internalHeaders) != 23 {
		t.Errorf("%d headers, want 23", len(internalHeaders))
	}
	origin := h2cServer(t, func(w http.ResponseWriter, r *http.Request) {
		for name, values := range r.Header {
			for _, v := range values {
				if strings.Contains(v, "spoofed") || strings.Contains(v, "6.6.6.6") {
					_, _ = fmt.Fprintf(w, "%s: %s\n", name, v)
				}
			}
		}
	})
	port := freePort(t)
	edge := "use_remote_address: true\n          internal_address_config: {cidr_ranges: [{address_prefix: 192.0.2.0, prefix_len: 24}]}"
	startProxy(t, "node: {id: a, cluster: a}\nstatic_resources:\n  listeners:"+hcmListener("main", port, "app", edge)+"\n  clusters:"+httpCluster("app", origin, "http_protocol_options: {}"), nil)
	for _, name := range internalHeaders {
		for version, got := range map[string]string{
			"HTTP/1": raw(t, port, get1("/x", name+": spoofed\r\n")), "HTTP/1 twice": raw(t, port, get1("/x", name+": a\r\n", strings.ToUpper(name)+": spoofed\r\n")),
			"HTTP/2": raw2(t, port, append(get2("GET", "app.test", "/x"), name, "spoofed")...),
			// A client cannot make itself an internal one.
			"as if inside": raw(t, port, get1("/x", "X-Forwarded-For: 192.0.2.1\r\n", "X-Envoy-Internal: true\r\n", name+": spoofed\r\n")),
		} {
			if got != "200" {
				t.Errorf("%s in %s: %q", name, version, got)
			}
		}
	}
	if got := raw(t, port, get1("/x", "X-Other: spoofed\r\n")); !strings.Contains(got, "X-Other: spoofed") {
		t.Errorf("the origin tells nothing: %q", got)
	}
}
