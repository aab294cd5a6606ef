package soak

import (
	"bytes"
	_ "embed"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/fairlead-mesh/fairlead/conformance/running"
)

//go:embed bootstrap.yaml
var bootstrap string

// process is a running Fairlead.
type process struct {
	generation, admin int
	cmd               *exec.Cmd
	log               string // file
	done              chan error
}

// fleet starts processes on the same ports, one after the other.
type fleet struct {
	t     *testing.T
	dir   string
	bin   string
	vars  map[string]string
	drain time.Duration
	count int
}

func newFleet(t *testing.T, vars map[string]string, drain time.Duration) *fleet {
	t.Helper()
	bin := os.Getenv("FAIRLEAD_BIN")
	if bin == "" {
		bin = filepath.Join("..", "..", "bin", "fairlead")
	}
	if _, err := os.Stat(bin); err != nil {
		t.Fatalf("no fairlead to test: run make build, or set FAIRLEAD_BIN to an absolute path: %v", err)
	}
	return &fleet{t: t, dir: t.TempDir(), bin: bin, vars: vars, drain: drain}
}

// start returns a process that is ready.
func (f *fleet) start() (*process, error) {
	f.count++
	p := &process{generation: f.count, admin: running.FreePort(f.t), done: make(chan error, 1), log: filepath.Join(f.dir, fmt.Sprintf("log.%d", f.count))}
	doc := bootstrap
	for k, v := range f.vars {
		doc = strings.ReplaceAll(doc, "${"+k+"}", v)
	}
	doc = strings.ReplaceAll(doc, "${ADMIN}", strconv.Itoa(p.admin))
	file := filepath.Join(f.dir, fmt.Sprintf("bootstrap.%d.yaml", f.count))
	if err := os.WriteFile(file, []byte(doc), 0o600); err != nil {
		return nil, err
	}
	log, err := os.Create(p.log)
	if err != nil {
		return nil, err
	}
	defer func() { _ = log.Close() }()
	p.cmd = exec.Command(f.bin, "proxy", "-c", file, "--drain-time", f.drain.String(), "-l", "warning")
	p.cmd.Stdout, p.cmd.Stderr = log, log
	if err := p.cmd.Start(); err != nil {
		return nil, err
	}
	go func() { p.done <- p.cmd.Wait() }()
	f.t.Cleanup(func() { _ = p.cmd.Process.Kill() })
	for range 1500 {
		if b, err := p.get("/ready"); err == nil && strings.HasPrefix(b, "LIVE") {
			return p, nil
		}
		time.Sleep(20 * time.Millisecond)
	}
	return nil, fmt.Errorf("process %d does not become ready:\n%s", p.generation, p.said())
}

func (p *process) get(path string) (string, error) {
	cl := http.Client{Timeout: 5 * time.Second, Transport: &http.Transport{DisableKeepAlives: true}}
	resp, err := cl.Get("http://" + running.Address(p.admin) + path)
	if err != nil {
		return "", err
	}
	defer func() { _ = resp.Body.Close() }()
	b, err := io.ReadAll(resp.Body)
	return string(b), err
}

func (p *process) said() string {
	b, _ := os.ReadFile(p.log)
	return string(b)
}

// retire asks a process to end, and waits until it has.
func (p *process) retire(within time.Duration) error {
	if err := p.cmd.Process.Signal(syscall.SIGTERM); err != nil {
		return err
	}
	t := time.NewTimer(within)
	defer t.Stop()
	select {
	case err := <-p.done:
		if err != nil {
			return fmt.Errorf("process %d: %w:\n%s", p.generation, err, p.said())
		}
	case <-t.C:
		return fmt.Errorf("process %d has not ended within %s:\n%s", p.generation, within, p.said())
	}
	return p.complaints()
}

// complaints are what a process must not log. That a resource was rejected is no
// complaint: bad ones are pushed.
func (p *process) complaints() error {
	for line := range strings.Lines(p.said()) {
		for _, bad := range []string{"panic", "goroutine ", "were cut", "level=ERROR"} {
			if strings.Contains(line, bad) && !strings.Contains(line, "xds resource rejected") {
				return fmt.Errorf("process %d logged %.1500s", p.generation, line)
			}
		}
	}
	return nil
}

// look measures.
func (p *process) look(s *sample) error {
	b, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", p.cmd.Process.Pid))
	if err != nil {
		return err
	}
	f := strings.Fields(string(b[bytes.LastIndexByte(b, ')')+1:]))
	if len(f) < 22 {
		return errors.New("/proc: too few fields")
	}
	n := func(i int) int64 { x, _ := strconv.ParseInt(f[i], 10, 64); return x }
	s.generation, s.cpu, s.rss = p.generation, time.Duration(n(11)+n(12))*10*time.Millisecond, n(21)*int64(os.Getpagesize())
	d, err := os.ReadDir(fmt.Sprintf("/proc/%d/fd", p.cmd.Process.Pid))
	if err != nil {
		return err
	}
	s.files = len(d)
	text, err := p.get("/memory")
	if err != nil {
		return err
	}
	var m map[string]any
	if err := json.Unmarshal([]byte(text), &m); err != nil {
		return fmt.Errorf("/memory: %w", err)
	}
	num := func(k string) int64 { x, _ := strconv.ParseInt(fmt.Sprint(m[k]), 10, 64); return x }
	s.goroutines, s.heap = int(num("goroutines")), num("allocated")
	return nil
}
