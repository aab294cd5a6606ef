package rego

import (
	"bytes"
	"crypto/sha256"
	"encoding/json"
	"fmt"
	"log/slog"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/fairlead-mesh/fairlead/filters"
	"github.com/fairlead-mesh/fairlead/internal/stats"
)

// program is a policy that lives as long as any route uses it. If it comes
// from files, one goroutine reads them again and swaps the compiled policy
// when their content changed; content that doesn't compile changes nothing.
type program struct {
	current  atomic.Pointer[compiled]
	policy   policyConfig
	query    string
	allow    []string
	logger   *slog.Logger
	failures *stats.Counter
	stop     chan struct{}
	done     sync.WaitGroup
	sum      [sha256.Size]byte // of the sources that were tried last
}

type programKey struct{ sum [sha256.Size]byte }

// acquireProgram returns the program of c, shared by all routes with an equal
// policy.
func acquireProgram(shared *filters.Shared, c *config, logger *slog.Logger, failures *stats.Counter) (*program, func(), error) {
	var b bytes.Buffer
	fmt.Fprintf(&b, "%q %q %d %v %q", c.query, c.allowBuiltins, c.policy.version, c.policy.poll, c.policy.data)
	for _, s := range c.policy.sources {
		fmt.Fprintf(&b, " %q %q", s.inline, s.filename)
	}
	v, release, err := shared.Acquire(programKey{sha256.Sum256(b.Bytes())}, func() (any, error) {
		return newProgram(c, logger, failures)
	})
	if err != nil {
		return nil, nil, err
	}
	p, ok := v.(*program)
	if !ok {
		panic(fmt.Sprintf("rego: %T shared under a program's key", v)) // programmer error: the key is private
	}
	return p, release, nil
}

func newProgram(c *config, logger *slog.Logger, failures *stats.Counter) (*program, error) {
	p := &program{policy: c.policy, query: c.query, allow: c.allowBuiltins, logger: logger, failures: failures, stop: make(chan struct{})}
	srcs, err := readSources(&p.policy)
	if err != nil {
		return nil, err
	}
	comp, err := compileSources(srcs, &p.policy, p.query, p.allow)
	if err != nil {
		return nil, err
	}
	p.current.Store(comp)
	p.sum = sumSources(srcs)
	if p.policy.hasFiles() {
		p.done.Go(p.watch)
	}
	return p, nil
}

// Close stops the watcher and waits for it.
func (p *program) Close() error {
	close(p.stop)
	p.done.Wait()
	return nil
}

func (p *program) watch() {
	t := time.NewTicker(p.policy.poll)
	defer t.Stop()
	for {
		select {
		case <-p.stop:
			return
		case <-t.C:
			p.reload()
		}
	}
}

// reload compiles the files if their content changed since the last try.
func (p *program) reload() {
	srcs, err := readSources(&p.policy)
	if err != nil {
		p.failures.Inc()
		p.logger.Error("rego: policy files can't be read; the former policy stays in force", "error", err)
		return
	}
	sum := sumSources(srcs)
	if sum == p.sum {
		return
	}
	p.sum = sum
	comp, err := compileSources(srcs, &p.policy, p.query, p.allow)
	if err != nil {
		p.failures.Inc()
		p.logger.Error("rego: policy files don't compile; the former policy stays in force", "error", err)
		return
	}
	p.current.Store(comp)
	p.logger.Info("rego: policy reloaded")
}

func sumSources(srcs []source) [sha256.Size]byte {
	var b strings.Builder
	e := json.NewEncoder(&b)
	for _, s := range srcs {
		_ = e.Encode([2]string{s.name, s.text})
	}
	return sha256.Sum256([]byte(b.String()))
}
