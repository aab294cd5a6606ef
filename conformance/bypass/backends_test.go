package bypass

import (
	"fmt"
	"net"
	"net/http"
	"net/http/httptest"
	"os"
	"os/exec"
	"path"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/fairlead-mesh/fairlead/conformance/running"
)

// secret is the text that nobody may get, public one that everybody may.
const (
	secret = "5ecr3t-of-the-admin"
	public = "for-everybody"
)

// site is a document root with both.
func site(t *testing.T) string {
	t.Helper()
	dir := t.TempDir()
	for name, text := range map[string]string{"admin/secret": secret, "admin/index.html": secret, "public/x": public, "public/index.html": public, "index.html": public} {
		file := filepath.Join(dir, "www", name)
		if err := os.MkdirAll(filepath.Dir(file), 0o755); err != nil { //nolint:gosec // another user serves it
			t.Fatal(err)
		}
		if err := os.WriteFile(file, []byte(text), 0o644); err != nil { //nolint:gosec // as above
			t.Fatal(err)
		}
	}
	for d := dir; d != os.TempDir() && d != "/"; d = filepath.Dir(d) {
		if err := os.Chmod(d, 0o755); err != nil { //nolint:gosec // as above
			t.Fatal(err)
		}
	}
	return filepath.Join(dir, "www")
}

// nginx serves root; 0 where it isn't installed.
func nginx(t *testing.T, root string) (port int) {
	t.Helper()
	bin, err := exec.LookPath("nginx")
	if err != nil {
		if bin = "/usr/sbin/nginx"; os.Getenv("CI") == "" {
			if _, err := os.Stat(bin); err != nil {
				return 0
			}
		}
	}
	dir := t.TempDir()
	port = running.FreePort(t)
	conf := fmt.Sprintf(`daemon off; master_process off; worker_processes 1; pid %[1]s/pid; error_log %[1]s/error.log;
events { worker_connections 512; }
http {
  access_log off; keepalive_requests 1000000; default_type text/plain;
  client_body_temp_path %[1]s/b; proxy_temp_path %[1]s/p; fastcgi_temp_path %[1]s/f; uwsgi_temp_path %[1]s/u; scgi_temp_path %[1]s/s;
  server { listen 127.0.0.1:%[2]d default_server; server_name public.test; root %[3]s; }
  server { listen 127.0.0.1:%[2]d; server_name secret.test; location / { return 200 "%[4]s"; } }
}
`, dir, port, root, secret)
	file := filepath.Join(dir, "nginx.conf")
	if err := os.WriteFile(file, []byte(conf), 0o600); err != nil {
		t.Fatal(err)
	}
	cmd := exec.Command(bin, "-c", file, "-p", dir)
	cmd.Stderr = os.Stderr
	if err := cmd.Start(); err != nil {
		t.Fatalf("nginx (apt-get install nginx): %v", err)
	}
	t.Cleanup(func() { _ = cmd.Process.Kill(); _ = cmd.Wait() })
	for range 1500 {
		if c, err := net.Dial("tcp", running.Address(port)); err == nil {
			_ = c.Close()
			return port
		}
		time.Sleep(20 * time.Millisecond)
	}
	t.Fatal("nginx does not accept")
	return 0
}

func serveGo(t *testing.T, h http.Handler) int {
	t.Helper()
	s := httptest.NewServer(h)
	t.Cleanup(s.Close)
	return running.Port(s.Listener)
}

// credulous takes a backslash for a slash, as servers on other systems do. (One
// that decodes twice can't be guarded by a policy that sees the path once.)
func credulous(w http.ResponseWriter, r *http.Request) {
	p := path.Clean("/" + strings.ReplaceAll(r.URL.Path, `\`, "/"))
	text := public
	if p == "/admin" || strings.HasPrefix(p, "/admin/") {
		text = secret
	}
	_, _ = w.Write([]byte(text))
}

// attributes guards by host, method and header what Go's server takes them for.
func attributes(w http.ResponseWriter, r *http.Request) {
	text := public
	host, _, _ := strings.Cut(r.Host, ":")
	if strings.EqualFold(strings.TrimRight(host, "."), "secret.test") || strings.EqualFold(r.Method, "DELETE") {
		text = secret
	}
	for _, v := range r.Header["X-Role"] {
		for p := range strings.SplitSeq(v, ",") {
			if strings.TrimSpace(p) == "admin" {
				text = secret
			}
		}
	}
	_, _ = w.Write([]byte(text))
}
