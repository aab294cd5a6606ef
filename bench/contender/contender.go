// Package contender starts the proxies that are compared, each on the same CPU
// and with the same work to do, and reads what they use.
package contender

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync/atomic"
	"time"
)

// Ports are where a contender listens and where it sends to.
type Ports struct {
	// One for each shape, and the admin port.
	Plain, HBONE, H1, H2TLS, GRPC, Admin int
	// The origins, and the control plane.
	OriginPlain, OriginHBONE, OriginGRPC, ADS int
}

// Of returns the port of a shape.
func (p *Ports) Of(s Shape) int {
	switch s {
	case HBONEPlain:
		return p.Plain
	case HBONEHBONE:
		return p.HBONE
	case H2TLSH1:
		return p.H2TLS
	case GRPC:
		return p.GRPC
	default:
		return p.H1
	}
}

// Listen fills the ports that the contender listens on with free ones, each with
// another one.
func (p *Ports) Listen() error {
	ports := []*int{&p.Plain, &p.HBONE, &p.H1, &p.H2TLS, &p.GRPC, &p.Admin}
	held := make([]net.Listener, 0, len(ports))
	defer func() {
		for _, l := range held {
			_ = l.Close()
		}
	}()
	for _, port := range ports { // all are held until the last is found
		l, err := net.Listen("tcp", "127.0.0.1:0")
		if err != nil {
			return err
		}
		held = append(held, l)
		a, _ := l.Addr().(*net.TCPAddr)
		*port = a.Port
	}
	return nil
}

// Spec is what a contender runs with.
type Spec struct {
	Ports Ports
	// Dir is where its files go; Dir holds what WriteCertificates writes.
	Dir string
	// CPU pins it to one processor, -1: not pinned.
	CPU int
	// Routes is how many routes the chain of H1H1 has, 1 if less. Requests take
	// the last one.
	Routes int
	// Cores is how many processors it may use; with 2 or more CPU counts for
	// nothing, and it gets the first ones.
	Cores int
	// Expensive gives the chains of main_plain many routes with regular
	// expressions that don't match.
	Expensive bool
	// ADS replaces the static configuration by that of the control plane.
	ADS bool
}

func (s *Spec) cores() int { return max(s.Cores, 1) }

// Contender is a running proxy.
type Contender struct {
	Name  string
	Ports Ports
	// StartTime is from the start of the process until it was ready.
	StartTime time.Duration
	kind      *kind
	cmd       *exec.Cmd
	log       string
	accessLog string
	done      chan struct{}
}

// Missing is the error of a contender that is not installed.
type Missing struct{ What string }

// Error says what is missing.
func (m *Missing) Error() string { return "not installed: " + m.What }

// started makes the names of files unique.
var started atomic.Uint32

// Start runs the contender called name: fairlead, fairlead+istio, envoy,
// haproxy, nginx, ztunnel, naive or floor; NAME=PATH or a path is another
// Fairlead binary. The error is a *Missing if it isn't there.
func Start(ctx context.Context, name string, s Spec) (*Contender, error) {
	label, k := kindOf(name)
	if k == nil {
		return nil, fmt.Errorf("unknown contender %q", name)
	}
	c := &Contender{Name: label, Ports: s.Ports, kind: k, done: make(chan struct{})}
	base := fmt.Sprintf("%03d-%s", started.Add(1), strings.NewReplacer("/", "-", "+", "-").Replace(label))
	file := filepath.Join(s.Dir, base+filepath.Ext(k.config))
	c.log, c.accessLog = filepath.Join(s.Dir, base+".log"), filepath.Join(s.Dir, base+".access.log")
	args, err := c.command(file, base, &s)
	if err != nil {
		return nil, err
	}
	out, err := os.OpenFile(c.log, os.O_CREATE|os.O_WRONLY|os.O_APPEND, 0o600)
	if err != nil {
		return nil, err
	}
	defer out.Close()
	c.cmd = exec.CommandContext(ctx, args[0], args[1:]...) //nolint:gosec // the contender's own command
	c.cmd.Stdout, c.cmd.Stderr = out, out
	c.cmd.Env = append(os.Environ(), fmt.Sprintf("GOMAXPROCS=%d", s.cores()))
	begin := time.Now()
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
	c.StartTime = time.Since(begin)
	return c, nil
}

// command writes the configuration and returns how to start the process.
func (c *Contender) command(file, base string, s *Spec) ([]string, error) {
	bin, missing := c.kind.find()
	if bin == "" || !isFile(bin) {
		return nil, &Missing{missing}
	}
	config := c.kind.config
	if s.ADS {
		if !c.kind.ads {
			return nil, fmt.Errorf("%s knows no control plane", c.Name)
		}
		config = "ads.yaml"
	}
	if config != "" {
		doc, err := render(config, base, s, c.kind.istio)
		if err != nil {
			return nil, err
		}
		if err := os.WriteFile(file, []byte(doc), 0o600); err != nil {
			return nil, err
		}
	}
	if !filepath.IsAbs(bin) {
		bin = "." + string(filepath.Separator) + bin
	}
	args := append([]string{bin}, c.kind.args(file, s)...)
	switch {
	case s.Cores > 1:
		args = append([]string{"taskset", "-c", fmt.Sprintf("0-%d", s.Cores-1)}, args...)
	case s.CPU >= 0:
		args = append([]string{"taskset", "-c", strconv.Itoa(s.CPU)}, args...)
	}
	return args, nil
}

// ready waits until the admin port says so.
func (c *Contender) ready(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, 60*time.Second)
	defer cancel()
	cl := &http.Client{Timeout: 10 * time.Second, Transport: &http.Transport{DisableKeepAlives: true}}
	again := time.NewTicker(5 * time.Millisecond)
	defer again.Stop()
	for {
		req, err := http.NewRequestWithContext(ctx, http.MethodGet, "http://"+local(c.Ports.Admin)+c.kind.ready, http.NoBody)
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
		case <-again.C:
		}
	}
}

func (c *Contender) tail() string {
	b, err := os.ReadFile(c.log)
	if err != nil {
		return err.Error()
	}
	const part = 500
	if len(b) > 2*part {
		b = slices.Concat(b[:part], []byte(" … "), b[len(b)-part:])
	}
	return string(bytes.TrimSpace(b))
}

// Supports reports whether it can do shape.
func (c *Contender) Supports(shape Shape) bool {
	return slices.Contains(c.kind.shapes, shape)
}

// Profiles reports whether Profile works.
func (c *Contender) Profiles() bool { return c.kind.profiles }

// TrimLogs empties the logs, which grow by hundreds of bytes a request.
func (c *Contender) TrimLogs() {
	for _, file := range []string{c.log, c.accessLog} {
		if err := os.Truncate(file, 0); err != nil && !errors.Is(err, os.ErrNotExist) {
			return
		}
	}
}

// Stop ends the process.
func (c *Contender) Stop() {
	_ = c.cmd.Process.Kill()
	<-c.done
}

// Profile writes a CPU profile of d to file, if Profiles.
func (c *Contender) Profile(ctx context.Context, d time.Duration, file string) error {
	return c.pprof(ctx, fmt.Sprintf("profile?seconds=%d", int(d.Seconds())), file)
}

// HeapProfile writes what memory is in use, after a collection, to file, if
// Profiles. With GODEBUG=memprofilerate=1 it is exact.
func (c *Contender) HeapProfile(ctx context.Context, file string) error {
	return c.pprof(ctx, "heap?gc=1", file)
}

// Runtime is what Go's runtime has counted since the start of a process.
type Runtime struct {
	Mallocs     uint64        // objects
	Collections uint64        // of garbage
	Stopped     time.Duration // everything, for collections
}

// Runtime returns what was counted so far, if Profiles. To ask costs some
// allocations.
func (c *Contender) Runtime(ctx context.Context) (r Runtime, err error) {
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, "http://"+local(c.Ports.Admin)+"/debug/pprof/heap?debug=1", http.NoBody)
	if err != nil {
		return r, err
	}
	resp, err := (&http.Client{}).Do(req)
	if err != nil {
		return r, err
	}
	defer resp.Body.Close()
	b, err := io.ReadAll(resp.Body)
	if err != nil {
		return r, err
	}
	return parseRuntime(b)
}

// parseRuntime reads the comments below a heap profile in text. PauseNs are the
// last 256 pauses, in a ring that ends at NumGC.
func parseRuntime(profile []byte) (r Runtime, err error) {
	found := 0
	for line := range bytes.Lines(profile) {
		name, value, ok := bytes.Cut(bytes.TrimPrefix(bytes.TrimSpace(line), []byte("# ")), []byte(" = "))
		if !ok {
			continue
		}
		switch string(name) {
		case "Mallocs":
			r.Mallocs, err = strconv.ParseUint(string(value), 10, 64)
		case "NumGC":
			r.Collections, err = strconv.ParseUint(string(value), 10, 64)
		case "PauseNs":
			for n := range bytes.FieldsSeq(bytes.Trim(value, "[]")) {
				ns, bad := strconv.ParseUint(string(n), 10, 63)
				r.Stopped += time.Duration(ns)
				err = errors.Join(err, bad)
			}
		default:
			continue
		}
		if err != nil {
			return r, fmt.Errorf("heap profile: %s: %w", name, err)
		}
		found++
	}
	if found != 3 {
		return r, errors.New("the heap profile lacks Mallocs, NumGC or PauseNs")
	}
	return r, nil
}

func (c *Contender) pprof(ctx context.Context, what, file string) error {
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, "http://"+local(c.Ports.Admin)+"/debug/pprof/"+what, http.NoBody)
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
