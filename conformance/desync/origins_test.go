package desync

import (
	"fmt"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/fairlead-mesh/fairlead/conformance/running"
)

// server is a real origin that logs each request as "case|request line|host".
type server struct {
	name, binary, pkg string
	// conf is its configuration: %[1]s is a folder of its own, %[2]d its port.
	file, conf string
	args       func(dir, file string) []string
}

// servers are those of Debian; the one of Go is in this process.
var servers = []server{
	{"nginx", "nginx", "nginx-light", "nginx.conf", `daemon off; master_process off; worker_processes 1; pid %[1]s/pid; error_log /dev/null crit;
events { worker_connections 512; }
http {
  log_format request '$http_x_case|$request|$http_host'; access_log %[1]s/log request; keepalive_requests 1000000; default_type text/plain;
  client_body_temp_path %[1]s/b; proxy_temp_path %[1]s/p; fastcgi_temp_path %[1]s/f; uwsgi_temp_path %[1]s/u; scgi_temp_path %[1]s/s;
  server { listen 127.0.0.1:%[2]d; location / { return 200 "ok"; } }
}
`, func(dir, file string) []string { return []string{"-c", file, "-p", dir} }},
	{"Apache", "apache2", "apache2-bin", "apache2.conf", `ServerRoot "%[1]s"
PidFile "%[1]s/pid"
Listen 127.0.0.1:%[2]d
ServerName h.example
LoadModule mpm_event_module /usr/lib/apache2/modules/mod_mpm_event.so
LoadModule authz_core_module /usr/lib/apache2/modules/mod_authz_core.so
ErrorLog /dev/null
DocumentRoot "%[1]s"
MaxKeepAliveRequests 0
KeepAliveTimeout 60
RegisterHttpMethod REPORT PROPFIND
LogFormat "%%{X-Case}i|%%r|%%{Host}i" request
CustomLog "%[1]s/log" request
`, func(_, file string) []string { return []string{"-D", "FOREGROUND", "-f", file} }},
	{"lighttpd", "lighttpd", "lighttpd", "lighttpd.conf", `server.document-root = "%[1]s"
server.bind = "127.0.0.1"
server.port = %[2]d
server.modules = ( "mod_accesslog" )
server.max-keep-alive-requests = 1000000
accesslog.filename = "%[1]s/log"
accesslog.format = "%%{X-Case}i|%%r|%%{Host}i"
`, func(_, file string) []string { return []string{"-D", "-f", file} }},
	{"h2o", "h2o", "h2o", "h2o.yaml", `listen: {host: 127.0.0.1, port: %[2]d}
num-threads: 1
hosts: {default: {paths: {/: {file.dir: %[1]s}}}}
access-log: {path: %[1]s/log, format: "%%{x-case}i|%%r|%%V"}
`, func(_, file string) []string { return []string{"-m", "worker", "-c", file} }},
	{"Node", "node", "nodejs", "server.js", `const fs = require('fs'), log = fs.openSync('%[1]s/log', 'a');
require('http').createServer({keepAliveTimeout: 60000}, (q, r) => {
  fs.writeSync(log, (q.headers['x-case'] || '-') + '|' + q.method + ' ' + q.url + ' HTTP/' + q.httpVersion + '|' + q.headers.host + '\n');
  q.resume(); q.on('end', () => r.end('ok'));
}).listen(%[2]d, '127.0.0.1');
`, func(_, file string) []string { return []string{file} }},
}

// find looks where Debian has servers, too.
func (s *server) find() string {
	for _, name := range []string{s.binary, "/usr/sbin/" + s.binary} {
		if p, err := exec.LookPath(name); err == nil {
			return p
		}
	}
	return ""
}

// run starts it and returns its port and log.
func (s *server) run(t *testing.T) (port int, log string) {
	t.Helper()
	bin := s.find()
	if bin == "" {
		t.Skipf("%s isn't installed: apt-get install %s", s.name, s.pkg)
	}
	dir := t.TempDir()
	for d := dir; d != os.TempDir() && d != "/"; d = filepath.Dir(d) { // another user may serve it
		_ = os.Chmod(d, 0o777)
	}
	port = running.FreePort(t)
	file := filepath.Join(dir, s.file)
	if err := os.WriteFile(file, fmt.Appendf(nil, s.conf, dir, port), 0o644); err != nil {
		t.Fatal(err)
	}
	cmd := exec.Command(bin, s.args(dir, file)...)
	cmd.Stderr = os.Stderr
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = cmd.Process.Signal(os.Interrupt); _ = cmd.Process.Kill(); _ = cmd.Wait() })
	for range 1500 {
		if c, err := net.Dial("tcp", running.Address(port)); err == nil {
			_ = c.Close()
			return port, filepath.Join(dir, "log")
		}
		time.Sleep(20 * time.Millisecond)
	}
	t.Fatalf("%s does not accept", s.name)
	return 0, ""
}

// runGo is a server of net/http.
func runGo(t *testing.T) (port int, log string) {
	t.Helper()
	log = filepath.Join(t.TempDir(), "log")
	f, err := os.Create(log)
	if err != nil {
		t.Fatal(err)
	}
	l, err := net.Listen("tcp", running.Address(0))
	if err != nil {
		t.Fatal(err)
	}
	var mu sync.Mutex
	s := &http.Server{ReadHeaderTimeout: time.Minute, Handler: http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		id := r.Header.Get("X-Case")
		if id == "" {
			id = "-"
		}
		mu.Lock()
		_, _ = fmt.Fprintf(f, "%s|%s %s %s|%s\n", id, r.Method, r.RequestURI, r.Proto, r.Host)
		mu.Unlock()
		_, _ = w.Write([]byte("ok"))
	})}
	go func() { _ = s.Serve(l) }()
	t.Cleanup(func() { _ = s.Close(); _ = f.Close() })
	return running.Port(l), log
}

// unescape takes back what servers do to bytes in their logs.
func unescape(s string) string {
	var b strings.Builder
	for i := 0; i < len(s); i++ {
		if s[i] != '\\' || i+1 == len(s) {
			b.WriteByte(s[i])
			continue
		}
		if s[i+1] == 'x' && i+3 < len(s) {
			if n, err := strconv.ParseUint(s[i+2:i+4], 16, 8); err == nil {
				b.WriteByte(byte(n))
				i += 3
				continue
			}
		}
		if s[i+1] == '\\' || s[i+1] == '"' {
			i++
		}
		b.WriteByte(s[i])
	}
	return b.String()
}

// logged reads a log up to the request for /very-last, and counts its lines without
// what is behind "|to ", which tells, in our own, where a request went and how it
// ended: those that went nowhere are left out.
func logged(t *testing.T, file string) (lines map[string]int, ends map[string]string) {
	t.Helper()
	for range 200 {
		b, err := os.ReadFile(file)
		if err != nil {
			t.Fatal(err)
		}
		lines, ends = map[string]int{}, map[string]string{}
		last := false
		for l := range strings.Lines(string(b)) {
			l, end, own := strings.Cut(strings.TrimSuffix(l, "\n"), "|to ")
			if !own {
				l = unescape(l)
			}
			switch {
			case strings.Contains(l, "GET /very-last "):
				last = true
				continue
			case own && strings.HasPrefix(end, "- "):
				continue
			case strings.HasPrefix(l, "|"):
				l = "-" + l
			}
			lines[l]++
			ends[l] = end
		}
		if last {
			return lines, ends
		}
		time.Sleep(50 * time.Millisecond)
	}
	t.Fatalf("the last request is not in %s", file)
	return nil, nil
}

// compare takes what only one of both saw. An origin may leave out what it refused,
// or what we broke off, and may know no more of it than its first line.
func compare(t *testing.T, ours, theirs map[string]int, ends map[string]string) (same int) {
	t.Helper()
	refused := map[string]bool{}
	for l, n := range ours {
		same += min(n, theirs[l])
		if n <= theirs[l] {
			continue
		}
		// 0: the client, which ends its direction, had gone meanwhile.
		if _, code, _ := strings.Cut(ends[l], " "); !slices.Contains([]string{"0", "400", "431", "503"}, code) {
			t.Errorf("only we saw %q, %s", l, ends[l])
		}
		_, l, _ = strings.Cut(l, "|")
		line, _, _ := strings.Cut(l, "|")
		refused[line] = true
	}
	for l, n := range theirs {
		line, _ := strings.CutPrefix(l, "-|")
		line, _, _ = strings.Cut(line, "|")
		if n > ours[l] && !refused[line] {
			t.Errorf("only the origin saw %q", l)
		}
	}
	return same
}

const loggingBootstrap = `
static_resources:
  listeners:
  - name: h1
    address: {socket_address: {address: 127.0.0.1, port_value: %[1]d}}
    filter_chains: [{filters: [{name: hcm, typed_config: {"@type": type.googleapis.com/envoy.extensions.filters.network.http_connection_manager.v3.HttpConnectionManager,
      stat_prefix: h1, codec_type: HTTP1, route_config: {virtual_hosts: [{name: all, domains: ["*"], routes: [{match: {prefix: /}, route: {cluster: origin, timeout: 3s}}]}]},
      access_log: [{name: f, typed_config: {"@type": type.googleapis.com/envoy.extensions.access_loggers.file.v3.FileAccessLog, path: %[3]s, log_format: {text_format_source: {inline_string: "%%REQ(X-CASE)%%|%%REQ(:METHOD)%% %%REQ(:PATH)%% HTTP/1.1|%%REQ(:AUTHORITY)%%|to %%UPSTREAM_HOST%% %%RESPONSE_CODE%%\n"}}}}],
      http_filters: [{name: router, typed_config: {"@type": type.googleapis.com/envoy.extensions.filters.http.router.v3.Router}}]}}]}]
  clusters:
  - name: origin
    type: STATIC
    load_assignment: {cluster_name: origin, endpoints: [{lb_endpoints: [{endpoint: {address: {socket_address: {address: 127.0.0.1, port_value: %[2]d}}}}]}]}
`

// Real servers behind Fairlead see the requests that Fairlead saw: as many, in the
// same words, none within another.
func TestRealOriginsSeeTheRequestsThatWeSaw(t *testing.T) {
	var cases []string
	for i, c := range h1Cases() {
		if i%4 == 0 || c.valid {
			cases = append(cases, c.bytes)
		}
	}
	for _, c := range tieredCases() {
		cases = append(cases, c.bytes+smuggled)
	}
	if len(cases) != 2632 {
		t.Errorf("%d cases, want 2632", len(cases))
	}
	check := func(t *testing.T, port int, log string) {
		t.Helper()
		own := filepath.Join(t.TempDir(), "own")
		h1 := running.FreePort(t)
		running.Start(t, fmt.Sprintf(loggingBootstrap, h1, port, own), h1)
		each(len(cases), func(i int) {
			_, _ = send(running.Address(h1), []byte(strings.Replace(cases[i], "Host: h.example\r\n", fmt.Sprintf("Host: h.example\r\nX-Case: %d\r\n", i), 1)))
		})
		if _, err := send(running.Address(h1), []byte("GET /very-last HTTP/1.1\r\nHost: h.example\r\n\r\n")); err != nil {
			t.Fatal(err)
		}
		ours, ends := logged(t, own)
		theirs, _ := logged(t, log)
		same := compare(t, ours, theirs, ends)
		t.Logf("%d cases; %d requests are the same in both logs", len(cases), same)
		if same < 370 {
			t.Errorf("%d requests are in both logs: the cases do not test what they should", same)
		}
	}
	for _, s := range servers {
		t.Run(s.name, func(t *testing.T) {
			port, log := s.run(t)
			check(t, port, log)
		})
	}
	t.Run("Go", func(t *testing.T) {
		port, log := runGo(t)
		check(t, port, log)
	})
}
