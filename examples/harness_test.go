package examples

import (
	"bufio"
	"context"
	"crypto/tls"
	"crypto/x509"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"go.uber.org/goleak"

	"github.com/fairlead-mesh/fairlead/filters/builtin"
	"github.com/fairlead-mesh/fairlead/internal/stats"
	"github.com/fairlead-mesh/fairlead/proxy"
	"github.com/fairlead-mesh/fairlead/ztunnel"
)

func TestMain(m *testing.M) {
	// OPA starts this one when it is linked.
	goleak.VerifyTestMain(m, goleak.IgnoreTopFunction("go.opencensus.io/stats/view.(*worker).start"))
}

// world runs the files of an example as they are, but for four replacements:
//
//   - "127.0.0." becomes a loopback network of the test's own, so that the fixed
//     ports are free,
//   - "certs/" becomes a directory with fresh certificates,
//   - "/dev/stdout" becomes a file, which is the access log,
//   - a policy in Rego has more time than 100 ms: the machine may be busy.
type world struct {
	t   *testing.T
	net string // "127.x.y."
	dir string
	// lines of the access log that are demanded.
	lines [][]string
}

var worlds atomic.Uint32

func newWorld(t *testing.T) *world {
	t.Helper()
	pid := os.Getpid()
	w := &world{t: t, dir: t.TempDir(), net: fmt.Sprintf("127.%d.%d.", 100+pid/100%100, pid%100+100*int(worlds.Add(1)%2))}
	if err := WriteCertificates(filepath.Join(w.dir, "certs")); err != nil {
		t.Fatal(err)
	}
	return w
}

// ip returns the address that stands as 127.0.0.last in the files.
func (w *world) ip(last int) string { return fmt.Sprintf("%s%d", w.net, last) }

// file returns an example's file with the replacements.
func (w *world) file(name string) []byte {
	w.t.Helper()
	b, err := os.ReadFile(name)
	if err != nil {
		w.t.Fatal(err)
	}
	var out strings.Builder
	for line := range strings.Lines(string(b)) {
		if text := strings.TrimLeft(line, " "); strings.HasPrefix(text, "policy:") { // of fairlead.rego
			out.WriteString(line[:len(line)-len(text)] + "timeout: 10s\n")
		}
		out.WriteString(line)
	}
	return []byte(strings.NewReplacer("127.0.0.", w.net, " certs/", " "+w.dir+"/certs/", "/dev/stdout", w.dir+"/access.log").Replace(out.String()))
}

// proxy runs a bootstrap file until the test ends.
func (w *world) proxy(name string) *proxy.Process {
	w.t.Helper()
	ready := make(chan struct{})
	p, err := proxy.FromBootstrap(w.file(name), proxy.ProcessOptions{
		Registry: builtin.Registry(), DrainTime: 100 * time.Millisecond, OnReady: func() { close(ready) },
		Logger: slog.New(slog.DiscardHandler),
	})
	if err != nil {
		w.t.Fatalf("%s: %v", name, err)
	}
	w.run(name, p.Run)
	t := time.NewTimer(30 * time.Second)
	defer t.Stop()
	select {
	case <-ready:
	case <-t.C:
		w.t.Fatalf("%s: not ready: %v", name, p.Ready())
	}
	return p
}

func (w *world) run(name string, run func(context.Context) error) {
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan struct{})
	go func() {
		defer close(done)
		if err := run(ctx); err != nil {
			w.t.Errorf("%s: %v", name, err)
		}
	}()
	w.t.Cleanup(func() { cancel(); <-done })
}

// ztunnel runs a ztunnel's file until the test ends, and returns its metrics.
func (w *world) ztunnel(name string) *stats.Registry {
	w.t.Helper()
	cfg, err := ztunnel.Parse(w.file(name))
	if err != nil {
		w.t.Fatalf("%s: %v", name, err)
	}
	cfg.Registry, cfg.DrainTime = &stats.Registry{}, 100*time.Millisecond
	z, err := ztunnel.New(cfg)
	if err != nil {
		w.t.Fatalf("%s: %v", name, err)
	}
	w.run(name, z.Run)
	w.eventually(name+" listens", func() bool {
		for _, a := range []string{cfg.Connect.String(), cfg.HBONE.String()} {
			if c, err := net.Dial("tcp", a); err == nil {
				_ = c.Close()
				return true
			}
		}
		return false
	})
	return cfg.Registry
}

func (w *world) eventually(what string, ok func() bool) {
	w.t.Helper()
	for end := time.Now().Add(30 * time.Second); !ok(); time.Sleep(5 * time.Millisecond) {
		if time.Now().After(end) {
			w.t.Fatalf("not within 10 s: %s", what)
		}
	}
}

// logged demands a line in the access log that holds all of parts. It is looked
// for by checkLog, since the log is written with a delay.
func (w *world) logged(parts ...string) { w.lines = append(w.lines, parts) }

// checkLog waits for all lines that were demanded.
func (w *world) checkLog() {
	w.t.Helper()
	if len(w.lines) == 0 {
		w.t.Error("no line was demanded")
	}
	var all string
	for end := time.Now().Add(30 * time.Second); len(w.lines) > 0 && time.Now().Before(end); time.Sleep(20 * time.Millisecond) {
		b, _ := os.ReadFile(filepath.Join(w.dir, "access.log"))
		all = string(b)
		w.lines = slices.DeleteFunc(w.lines, func(parts []string) bool {
			for line := range strings.Lines(all) {
				if holds(line, parts) {
					return true
				}
			}
			return false
		})
	}
	for _, parts := range w.lines {
		w.t.Errorf("no line of the access log holds all of %q", parts)
	}
	if len(w.lines) > 0 {
		w.t.Logf("its end is\n%s", all[max(0, len(all)-6000):])
	}
}

func holds(s string, parts []string) bool {
	for _, p := range parts {
		if !strings.Contains(s, p) {
			return false
		}
	}
	return true
}

// seen is a request as an origin saw it.
type seen struct {
	*http.Request
	body string
}

// origin is a server that a proxy leads to. It answers with its name.
type origin struct {
	name string
	mu   sync.Mutex
	reqs []seen
	// progress, if set, learns how much of a body has arrived.
	progress func(n int)
}

func (o *origin) ServeHTTP(rw http.ResponseWriter, r *http.Request) {
	var body []byte
	buf := make([]byte, 4096)
	for {
		n, err := r.Body.Read(buf)
		body = append(body, buf[:n]...)
		o.mu.Lock()
		f := o.progress
		o.mu.Unlock()
		if f != nil {
			f(len(body))
		}
		if err != nil {
			break
		}
	}
	o.mu.Lock()
	o.reqs = append(o.reqs, seen{r, string(body)})
	o.mu.Unlock()
	_, _ = io.WriteString(rw, o.name+" "+r.Method+" "+r.URL.Path)
}

// take returns the requests since the last call.
func (o *origin) take() []seen {
	o.mu.Lock()
	defer o.mu.Unlock()
	r := o.reqs
	o.reqs = nil
	return r
}

// origin serves on 127.0.0.last:port of the files; certificate "" is plaintext.
func (w *world) origin(name string, last, port int, certificate string) *origin {
	w.t.Helper()
	l, err := net.Listen("tcp", fmt.Sprintf("%s:%d", w.ip(last), port))
	if err != nil {
		w.t.Fatal(err)
	}
	if certificate != "" {
		l = tls.NewListener(l, &tls.Config{Certificates: []tls.Certificate{w.certificate(certificate)}, NextProtos: []string{"http/1.1"}, MinVersion: tls.VersionTLS12})
	}
	o := &origin{name: name}
	s := &http.Server{Handler: o, ReadHeaderTimeout: 10 * time.Second, ErrorLog: slog.NewLogLogger(slog.DiscardHandler, slog.LevelError)}
	done := make(chan struct{})
	go func() { defer close(done); _ = s.Serve(l) }()
	w.t.Cleanup(func() { _ = s.Close(); <-done })
	return o
}

func (w *world) certificate(name string) tls.Certificate {
	w.t.Helper()
	c, err := tls.LoadX509KeyPair(filepath.Join(w.dir, "certs", name+".pem"), filepath.Join(w.dir, "certs", name+"-key.pem"))
	if err != nil {
		w.t.Fatal(err)
	}
	return c
}

func (w *world) roots(name string) *x509.CertPool {
	w.t.Helper()
	b, err := os.ReadFile(filepath.Join(w.dir, "certs", name))
	if err != nil {
		w.t.Fatal(err)
	}
	p := x509.NewCertPool()
	if !p.AppendCertsFromPEM(b) {
		w.t.Fatal("no certificate in " + name)
	}
	return p
}

// client returns an HTTP client that dials by dial; it doesn't follow redirects.
func (w *world) client(tr *http.Transport) *http.Client {
	w.t.Cleanup(tr.CloseIdleConnections)
	return &http.Client{
		Transport: tr, Timeout: 20 * time.Second,
		CheckRedirect: func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse },
	}
}

// viaZtunnel is a client that asks the ztunnel on 127.0.0.last:15081 for tunnels.
func (w *world) viaZtunnel(last int) *http.Client {
	return w.client(&http.Transport{DialContext: func(ctx context.Context, _, addr string) (net.Conn, error) {
		c, err := new(net.Dialer).DialContext(ctx, "tcp", w.ip(last)+":15081")
		if err != nil {
			return nil, err
		}
		if _, err = fmt.Fprintf(c, "CONNECT %s HTTP/1.1\r\nhost: %s\r\n\r\n", addr, addr); err == nil {
			var resp *http.Response
			br := bufio.NewReader(c)
			if resp, err = http.ReadResponse(br, &http.Request{Method: http.MethodConnect}); err == nil && (resp.StatusCode != http.StatusOK || br.Buffered() > 0) {
				err = fmt.Errorf("CONNECT %s: %s", addr, resp.Status)
			}
		}
		if err != nil {
			_ = c.Close()
			return nil, err
		}
		return c, nil
	}})
}

// send sends a request and returns status and body; headers are name, value, ….
func send(t *testing.T, c *http.Client, method, url string, body io.Reader, headers ...string) (int, string) {
	t.Helper()
	status, got, _ := exchange(t, c, method, url, body, headers...)
	return status, got
}

func exchange(t *testing.T, c *http.Client, method, url string, body io.Reader, headers ...string) (int, string, http.Header) {
	t.Helper()
	req, err := http.NewRequestWithContext(t.Context(), method, url, body)
	if err != nil {
		t.Fatal(err)
	}
	for i := 0; i+1 < len(headers); i += 2 {
		if headers[i] == "host" {
			req.Host = headers[i+1]
			continue
		}
		req.Header.Set(headers[i], headers[i+1])
	}
	resp, err := c.Do(req)
	if err != nil {
		t.Fatalf("%s %s: %v", method, url, err)
	}
	defer resp.Body.Close()
	b, err := io.ReadAll(resp.Body)
	if err != nil {
		t.Fatalf("%s %s: %v", method, url, err)
	}
	return resp.StatusCode, string(b), resp.Header
}

// refusedTLS makes a handshake with the server at addr and returns why it, or
// the first read after it, failed; nil if it did not.
func refusedTLS(t *testing.T, addr string, cfg *tls.Config) error {
	t.Helper()
	c, err := tls.DialWithDialer(&net.Dialer{Timeout: 10 * time.Second}, "tcp", addr, cfg)
	if err != nil {
		return err
	}
	defer c.Close()
	// In TLS 1.3 the server judges the client after the client is done.
	_ = c.SetReadDeadline(time.Now().Add(6 * time.Second))
	_, err = c.Read(make([]byte, 1))
	if ne, ok := err.(net.Error); ok && ne.Timeout() { //nolint:errorlint // it is not wrapped
		return nil
	}
	return err
}
