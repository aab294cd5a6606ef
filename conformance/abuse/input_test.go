package abuse

import (
	"bufio"
	"bytes"
	"crypto/tls"
	"encoding/json"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"
	"unicode/utf8"

	"github.com/fairlead-mesh/fairlead/conformance/running"
)

// inputBootstrap: port %[1]d speaks HTTP/2, %[2]d HTTP/1.1, %[3]d is of the
// administrator, %[4]d and %[5]d speak HTTP/1.1 over TLS, one of them without
// tls_inspector; folder %[6]s has the certificates, and gets the logs; %[7]s are
// filters before all others.
const inputBootstrap = `
admin: {address: {socket_address: {address: 127.0.0.1, port_value: %[3]d}}}
static_resources:
  listeners:
  - name: h2
    address: {socket_address: {address: 127.0.0.1, port_value: %[1]d}}
    filter_chains: [{filters: [{name: hcm, typed_config: {"@type": type.googleapis.com/envoy.extensions.filters.network.http_connection_manager.v3.HttpConnectionManager,
      stat_prefix: h2, codec_type: HTTP2, access_log: &logs [
        {name: f, typed_config: {"@type": type.googleapis.com/envoy.extensions.access_loggers.file.v3.FileAccessLog, path: %[6]s/text, log_format: {text_format_source: {inline_string: "line %%RESPONSE_CODE%% %%REQ(:METHOD)%% %%REQ(:PATH)%% %%REQ(:AUTHORITY)%% %%REQ(USER-AGENT)%% %%REQUESTED_SERVER_NAME%%\n"}}}},
        {name: f, typed_config: {"@type": type.googleapis.com/envoy.extensions.access_loggers.file.v3.FileAccessLog, path: %[6]s/json, log_format: {json_format: {status: "%%RESPONSE_CODE%%", method: "%%REQ(:METHOD)%%", path: "%%REQ(:PATH)%%", host: "%%REQ(:AUTHORITY)%%", agent: "%%REQ(USER-AGENT)%%", sni: "%%REQUESTED_SERVER_NAME%%"}}}}],
      route_config: &routes {virtual_hosts: [{name: all, domains: ["*"], routes: [
        {match: {prefix: /parameters, query_parameters: [{name: last, string_match: {exact: "1"}}]}, direct_response: {status: 200, body: {inline_string: found}}},
        {match: {prefix: /headers, headers: [{name: x-last, string_match: {exact: "1"}}]}, direct_response: {status: 200, body: {inline_string: found}}},
        {match: {prefix: /runaway}, direct_response: {status: 200}}, {match: {prefix: /policy}, direct_response: {status: 200}},
        {match: {prefix: /}, direct_response: {status: 200, body: {inline_string: ok}},
          typed_per_filter_config: {fairlead.rego: {"@type": type.googleapis.com/envoy.config.route.v3.FilterConfig, disabled: true}}}]}]},
      http_filters: &filters [ %[7]s
        {name: fairlead.rego, typed_config: {"@type": type.googleapis.com/udpa.type.v1.TypedStruct, type_url: type.googleapis.com/fairlead.rego.v1.Config, value: {name: endless, policy: {sources: [
          {inline_string: "package envoy.authz\ndefault allow := false\nallow if { not input.parsed_path[0] in {\"runaway\", \"policy\"} }\nallow if { input.parsed_path[0] == \"policy\"; count([x | some i in numbers.range(1, 300); x := i * i]) > 0 }\nallow if { some i in numbers.range(1, 100000); some j in numbers.range(1, 100000); i * j == -1 }\n"}]}}}},
        {name: istio.stats, typed_config: {"@type": type.googleapis.com/stats.PluginConfig}},
        {name: router, typed_config: {"@type": type.googleapis.com/envoy.extensions.filters.http.router.v3.Router}}]}}]}]
  - name: h1
    address: {socket_address: {address: 127.0.0.1, port_value: %[2]d}}
    filter_chains: [{filters: [{name: hcm, typed_config: {"@type": type.googleapis.com/envoy.extensions.filters.network.http_connection_manager.v3.HttpConnectionManager,
      stat_prefix: h1, codec_type: HTTP1, access_log: *logs, route_config: *routes, http_filters: *filters}}]}]
  - name: inspected
    address: {socket_address: {address: 127.0.0.1, port_value: %[4]d}}
    listener_filters: [{name: tls_inspector, typed_config: {"@type": type.googleapis.com/envoy.extensions.filters.listener.tls_inspector.v3.TlsInspector}}]
    filter_chains: &tls
    - transport_socket: {name: tls, typed_config: {"@type": type.googleapis.com/envoy.extensions.transport_sockets.tls.v3.DownstreamTlsContext,
        common_tls_context: {tls_certificates: [{certificate_chain: {filename: %[6]s/cert.pem}, private_key: {filename: %[6]s/key.pem}}]}}}
      filters: [{name: hcm, typed_config: {"@type": type.googleapis.com/envoy.extensions.filters.network.http_connection_manager.v3.HttpConnectionManager,
        stat_prefix: tls, codec_type: HTTP1, access_log: *logs, route_config: *routes, http_filters: *filters}}]
  - name: uninspected
    address: {socket_address: {address: 127.0.0.1, port_value: %[5]d}}
    filter_chains: *tls
`

// inputVictim is a victim that logs, counts by host and has an endless policy.
type inputVictim struct {
	*victim
	dir string
	tls [2]int
}

func newInputVictim(t *testing.T, filters ...string) *inputVictim {
	t.Helper()
	dir, _, _ := credentials(t)
	v := &inputVictim{victim: &victim{t: t, h2: running.FreePort(t), h1: running.FreePort(t), admin: running.FreePort(t)}, dir: dir, tls: [2]int{running.FreePort(t), running.FreePort(t)}}
	v.pid = running.Start(t, fmt.Sprintf(inputBootstrap, v.h2, v.h1, v.admin, v.tls[0], v.tls[1], dir, strings.Join(filters, " ")), v.tls[1])
	return v
}

// forgeries are values that want to look like more than one.
var forgeries = []string{
	"\r\nline 200 forged", "\nline 200 forged", "\rline 200 forged", "\x1b[2J\x1b[Hforged", "\x00forged", "\x07", "\x7f", "\xff\xfe\xfd", "\xc0\x8a", "\xed\xa0\x80", "\u2028forged", "\u0085forged",
	`","status":200,"forged":"`, `\n`, `\`, `\u000a`, "%0d%0aforged", "\tforged", `'"<>&`, "\xe2\x80\xae",
}

// attempt sends a forgery in one place of a request, and reports whether there was
// an answer.
func (v *inputVictim) attempt(version, place, f string) (answered bool) {
	v.t.Helper()
	at := func(where, otherwise string) string {
		if where == place {
			return otherwise + f
		}
		return otherwise
	}
	switch version {
	case "HTTP/2":
		c, err := net.Dial("tcp", running.Address(v.h2))
		if err != nil {
			v.t.Fatal(err)
		}
		defer c.Close()
		_ = c.SetDeadline(time.Now().Add(20 * time.Second))
		head := encodeHead([][2]string{{":method", at("method", "GET")}, {":scheme", "http"}, {":authority", at("host", "a")}, {":path", at("path", "/p")}, {"user-agent", at("agent", "u")}})
		_, _ = c.Write(frame(frame([]byte(preface), tSettings, 0, 0, nil), tHeaders, endStream|endHeaders, 1, head))
		br := bufio.NewReader(c)
		for {
			h := make([]byte, 9)
			if _, err := io.ReadFull(br, h); err != nil {
				return false
			}
			if _, err := br.Discard(int(h[0])<<16 | int(h[1])<<8 | int(h[2])); err != nil {
				return false
			}
			if h[3] == tHeaders || h[3] == tRST {
				return h[3] == tHeaders
			}
		}
	default:
		var c net.Conn
		var err error
		switch version {
		case "HTTP/1.1":
			c, err = net.Dial("tcp", running.Address(v.h1))
		default:
			port := v.tls[0]
			if version == "TLS, not inspected" {
				port = v.tls[1]
			}
			c, err = tls.Dial("tcp", running.Address(port), &tls.Config{ServerName: at("sni", "s"), InsecureSkipVerify: true}) //nolint:gosec // the client attacks
		}
		if err != nil {
			return false
		}
		defer c.Close()
		_ = c.SetDeadline(time.Now().Add(20 * time.Second))
		_, _ = fmt.Fprintf(c, "%s %s HTTP/1.1\r\nHost: %s\r\nUser-Agent: %s\r\nConnection: close\r\n\r\n", at("method", "GET"), at("path", "/p"), at("host", "a"), at("agent", "u"))
		b, _ := io.ReadAll(c)
		return bytes.HasPrefix(b, []byte("HTTP/1.1 "))
	}
}

// lines waits until the request for /end is in a log.
func (v *inputVictim) lines(name string) []string {
	v.t.Helper()
	for range 1500 {
		b, err := os.ReadFile(filepath.Join(v.dir, name))
		if err == nil && bytes.Contains(b, []byte("/end")) && bytes.HasSuffix(b, []byte("\n")) {
			return strings.Split(strings.TrimSuffix(string(b), "\n"), "\n")
		}
		time.Sleep(20 * time.Millisecond)
	}
	v.t.Fatalf("the request for /end is not in the log %s", name)
	return nil
}

// Whatever is in a method, path, host, agent or server name: one request is one
// line, which has no controls, and one object of JSON.
func TestRequestsCannotForgeLines(t *testing.T) {
	v := newInputVictim(t)
	answered, tried := 0, 0
	try := func(version, place, f string) {
		tried++
		if v.attempt(version, place, f) {
			answered++
		}
	}
	for _, f := range forgeries {
		for _, version := range []string{"HTTP/1.1", "HTTP/2"} {
			for _, place := range []string{"method", "path", "host", "agent"} {
				try(version, place, f)
			}
		}
		try("TLS", "sni", f)
		try("TLS, not inspected", "sni", f)
	}
	for _, version := range []string{"HTTP/1.1", "HTTP/2", "TLS", "TLS, not inspected"} {
		if !v.attempt(version, "", "") {
			t.Errorf("a plain request by %s is not answered", version)
		}
	}
	a := dialAsker(t, v.h1)
	defer a.c.Close()
	if s := a.ask("/end", 20*time.Second); s != http.StatusOK {
		t.Fatal(s)
	}
	text, objects := v.lines("text"), v.lines("json")
	t.Logf("%d tries, %d answered; %d lines of text, %d of JSON", tried, answered, len(text), len(objects))
	if tried != 200 || answered < 40 {
		t.Errorf("%d tries, %d answered: the cases do not test what they should", tried, answered)
	}
	if len(text) != len(objects) || len(text) < answered || len(text) > tried+5 {
		t.Errorf("%d lines of text and %d of JSON for %d answers and %d tries", len(text), len(objects), answered, tried)
	}
	for _, l := range text {
		if !strings.HasPrefix(l, "line ") || strings.HasPrefix(l, "line 200 forged") || strings.ContainsFunc(l, func(r rune) bool { return r < ' ' && r != '\t' || r == 0x7f }) {
			t.Errorf("a line of text: %q", l)
		}
	}
	for _, l := range objects {
		var o map[string]any
		if err := json.Unmarshal([]byte(l), &o); err != nil || len(o) > 6 || o["forged"] != nil || !utf8.ValidString(l) {
			t.Errorf("a line of JSON: %q, %v", l, err)
		}
	}
}

// series counts those that the victim tells.
func (v *inputVictim) series() (n int, all string) {
	v.t.Helper()
	resp, err := http.Get("http://" + running.Address(v.admin) + "/stats/prometheus") //nolint:noctx // a test
	if err != nil {
		v.t.Fatal(err)
	}
	defer resp.Body.Close()
	b, err := io.ReadAll(resp.Body)
	if err != nil {
		v.t.Fatal(err)
	}
	for l := range strings.Lines(string(b)) {
		if !strings.HasPrefix(l, "#") {
			n++
		}
	}
	return n, string(b)
}

// maxFamilySeries is how many series of one name traffic may make.
const maxFamilySeries = 5000

// 10,000 hosts that nobody knows make as many series as one family may have, and
// the rest is counted under a name of its own.
func TestHostsThatNobodyKnowsMakeFewSeries(t *testing.T) {
	v := newInputVictim(t)
	before, _ := v.series()
	_, rss0 := v.usage()
	const hosts = 10_000
	var wg sync.WaitGroup
	var failed atomic.Int64
	for w := range 4 {
		wg.Go(func() {
			c, err := net.Dial("tcp", running.Address(v.h1))
			if err != nil {
				failed.Add(1)
				return
			}
			defer c.Close()
			a := &asker{c, bufio.NewReader(c)}
			for i := w; i < hosts; i += 4 {
				_ = c.SetDeadline(time.Now().Add(20 * time.Second))
				_, _ = fmt.Fprintf(c, "GET / HTTP/1.1\r\nHost: host-%d.example\r\n\r\n", i)
				if a.answer(20*time.Second) != http.StatusOK {
					failed.Add(1)
					return
				}
			}
		})
	}
	wg.Wait()
	if failed.Load() > 0 {
		t.Errorf("%d connections failed", failed.Load())
	}
	after, all := v.series()
	_, rss1 := v.usage()
	t.Logf("%d series before, %d after %d hosts; memory %+.1f MiB", before, after, hosts, float64(rss1-rss0)/(1<<20))
	count := map[string]int{}
	for l := range strings.Lines(all) {
		if name, _, ok := strings.Cut(l, "{"); ok && !strings.Contains(l, `le="`) && !strings.HasPrefix(l, "#") {
			count[name]++
		}
	}
	for name, n := range count {
		if n > maxFamilySeries+1 {
			t.Errorf("%s has %d series, want at most %d", name, n, maxFamilySeries)
		}
	}
	if n := count["istio_requests_total"]; n < 1000 || !strings.Contains(all, `"overflow"`) {
		t.Errorf("istio_requests_total has %d series: hosts are not counted at all", n)
	}
	// A name of 50,000 bytes is no label, and no harm.
	long := strings.Repeat("h", 50_000)
	c, err := net.Dial("tcp", running.Address(v.h1))
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	_, _ = fmt.Fprintf(c, "GET / HTTP/1.1\r\nHost: %s\r\n\r\n", long)
	status := (&asker{c, bufio.NewReader(c)}).answer(20 * time.Second)
	_, all = v.series()
	t.Logf("a host of 50,000 bytes got %d", status)
	if strings.Contains(all, long[:1000]) {
		t.Error("a host of 50,000 bytes is a label")
	}
}

// cost is the processor time of n requests by a connection, the least of three.
func (v *inputVictim) cost(n int, request string) time.Duration {
	v.t.Helper()
	least := time.Hour
	for range 3 {
		a := dialAsker(v.t, v.h1)
		before, _ := v.usage()
		for range n {
			_ = a.c.SetDeadline(time.Now().Add(20 * time.Second))
			_, _ = io.WriteString(a.c, request)
			if s := a.answer(20 * time.Second); s != http.StatusOK {
				v.t.Fatalf("status %d", s)
			}
		}
		after, _ := v.usage()
		_ = a.c.Close()
		least = min(least, after-before)
	}
	return least
}

// Twice as many headers, all of one length and almost alike, or twice as many
// parameters, cost about twice as much.
func TestManyNamesCostNoMoreThanTheirNumber(t *testing.T) {
	v := newInputVictim(t)
	v.idleCPU(500 * time.Millisecond)
	headers := func(n int) string {
		var b strings.Builder
		b.WriteString("GET /headers HTTP/1.1\r\nHost: a\r\n")
		for i := range n {
			fmt.Fprintf(&b, "x-aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa-%03d: 1\r\n", i)
		}
		return b.String() + "x-last: 1\r\n\r\n"
	}
	parameters := func(n int) string {
		var b strings.Builder
		b.WriteString("GET /parameters?")
		for i := range n {
			fmt.Fprintf(&b, "%04x&", i)
		}
		return b.String() + "last=1 HTTP/1.1\r\nHost: a\r\n\r\n"
	}
	for _, c := range []struct {
		name       string
		f          func(int) string
		n, samples int
	}{{"headers", headers, 45, 3000}, {"parameters", parameters, 5000, 400}} {
		var one, two time.Duration
		for try := 0; ; try++ { // ticks are of 10 ms, and other processes cool the caches
			one, two = v.cost(c.samples, c.f(c.n)), v.cost(c.samples, c.f(2*c.n))
			t.Logf("%s: %d requests with %d cost %v, with %d %v", c.name, c.samples, c.n, one, 2*c.n, two)
			if float64(two) <= 2.3*float64(max(one, 50*time.Millisecond)) {
				break
			}
			if try == 4 {
				t.Errorf("%s: twice as many cost %v instead of %v", c.name, two, one)
				break
			}
		}
		if each := two / time.Duration(c.samples); each > 5*time.Millisecond {
			t.Errorf("%s: %v a request", c.name, each)
		}
	}
}

// A policy that would run for hours ends at its limit and refuses; others are
// served meanwhile, and nothing of it goes on afterwards.
func TestAnEndlessPolicyCostsOnlyItsRequests(t *testing.T) {
	v := newInputVictim(t)
	v.canary()
	time.Sleep(200 * time.Millisecond)
	bad, ok := v.canaryBad.Load(), v.canaryOK.Load()
	var wg sync.WaitGroup
	var refused, other atomic.Int64
	var longest atomic.Int64
	least, most := time.Now().Add(2*time.Second), time.Now().Add(time.Minute) // a busy machine needs more
	for range 4 {
		a := dialAsker(t, v.h1)
		wg.Go(func() {
			defer a.c.Close()
			for time.Now().Before(least) || (refused.Load() < 10 || v.canaryOK.Load()-ok < 10) && time.Now().Before(most) {
				began := time.Now()
				if a.ask("/runaway", 20*time.Second) == http.StatusForbidden {
					refused.Add(1)
				} else {
					other.Add(1)
					return
				}
				longest.Store(max(longest.Load(), int64(time.Since(began))))
			}
		})
	}
	wg.Wait()
	t.Logf("%d refused, the slowest after %v; the canary was answered %d times", refused.Load(), time.Duration(longest.Load()).Round(time.Millisecond), v.canaryOK.Load()-ok)
	if refused.Load() < 10 || other.Load() > 0 {
		t.Errorf("%d requests were refused, %d were not", refused.Load(), other.Load())
	}
	if d := time.Duration(longest.Load()); d > 15*time.Second {
		t.Errorf("a request waited %v for a policy that is given 100 ms", d)
	}
	if n := v.canaryBad.Load() - bad; n > 0 || v.canaryOK.Load()-ok < 10 {
		t.Errorf("the canary lost %d requests, and got %d answers", n, v.canaryOK.Load()-ok)
	}
	if idle := v.idleCPU(time.Second); idle > 300*time.Millisecond {
		t.Errorf("%v of processor time in a second after the last request", idle)
	}
}
