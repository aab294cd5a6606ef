package wasmmodule

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"net/url"
	"strings"
	"time"

	"github.com/fairlead-mesh/fairlead/filters"
)

// fault is why a module can't be had.
type fault struct {
	result string // for the metric
	// final: the same request will have the same answer; it is only repeated
	// because what it asks for may change.
	final bool
	err   error
}

func (f *fault) Error() string { return f.err.Error() }
func (f *fault) Unwrap() error { return f.err }

// The results of attempts, in istio-agent's words.
const (
	resultSuccess  = "success"
	resultDownload = "download_failure"
	resultManifest = "manifest_failure"
	resultChecksum = "checksum_mismatched"
	resultInvalid  = "invalid_module"
	resultConfig   = "invalid_reference"
)

func final(result string, err error) error { return &fault{result, true, err} }

// fetch tries to get m until it is here or nobody wants it.
func (s *Store) fetch(ctx context.Context, m *module) {
	attempts := s.opt.Attempts
	if m.ref.Retries >= 0 {
		attempts = m.ref.Retries + 1
	}
	p := newPauses(m, s.opt.LaterPause)
	start := time.Now()
	for try := 1; ; try++ {
		sum, err := s.attempt(ctx, m)
		if ctx.Err() != nil {
			if err == nil {
				s.cache.unpin(sum)
			}
			return
		}
		if err == nil {
			s.arrived(m, sum, try, time.Since(start))
			return
		}
		f, known := errors.AsType[*fault](err)
		failed := try >= attempts || known && f.final
		pause := p.next(failed)
		s.failed(m, err, failed, pause)
		t := time.NewTimer(pause)
		select {
		case <-ctx.Done():
			t.Stop()
			return
		case <-t.C:
		}
	}
}

// pauses are those between attempts: they double, and are random from half of
// their length on.
type pauses struct {
	step, max, later time.Duration
	failed           bool
}

func newPauses(m *module, later time.Duration) *pauses {
	p := &pauses{step: firstPause, max: maxFirstPause, later: later}
	if m.ref.Base > 0 {
		p.step = m.ref.Base
		p.max = 10 * m.ref.Base
	}
	if m.ref.Max > 0 {
		p.max = m.ref.Max
	}
	return p
}

func (p *pauses) next(failed bool) time.Duration {
	if failed && !p.failed {
		p.failed, p.step, p.max = true, p.later, max(maxLaterPause, p.later)
	}
	d := p.step
	p.step = min(2*p.step, p.max)
	return d/2 + rand.N(d/2+1)
}

// arrived notes that m is here. The content called sum is pinned.
func (s *Store) arrived(m *module, sum string, try int, took time.Duration) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.modules[m.key] != m || s.closed {
		s.cache.unpin(sum)
		return
	}
	if m.sum != "" {
		s.cache.unpin(m.sum)
	}
	m.sum, m.err, m.settled = sum, nil, true
	m.wait.Stop()
	s.log.Info("a WebAssembly module is here", "url", shown(m.ref.URL), "sha256", sum, "attempts", try, "after", took.Round(time.Millisecond))
	s.changed()
}

func (s *Store) failed(m *module, err error, settled bool, pause time.Duration) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.modules[m.key] != m || s.closed {
		return
	}
	first := settled && !m.settled
	news := m.err == nil || m.err.Error() != err.Error()
	m.err = err
	m.settled = m.settled || settled
	if news || first {
		s.log.Warn("a WebAssembly module can't be fetched", "url", shown(m.ref.URL), "error", err, "next_attempt_in", pause.Round(time.Millisecond))
	}
	if first || news && m.settled {
		m.wait.Stop()
		s.changed()
	}
}

// attempt gets m once, keeps it, and returns the digest of its content, which is
// pinned.
func (s *Store) attempt(ctx context.Context, m *module) (sum string, err error) {
	select {
	case s.slots <- struct{}{}:
		defer func() { <-s.slots }()
	case <-ctx.Done():
		return "", ctx.Err()
	}
	timeout := s.opt.Timeout
	if m.ref.Timeout > 0 {
		timeout = m.ref.Timeout
	}
	ctx, cancel := context.WithTimeoutCause(ctx, timeout, fmt.Errorf("no answer within %v", timeout))
	defer cancel()
	sum, err = s.get(ctx, &m.ref)
	result := resultSuccess
	if err != nil {
		result = resultDownload
		if f, ok := errors.AsType[*fault](err); ok {
			result = f.result
		}
		if cause := context.Cause(ctx); cause != nil && errors.Is(err, context.DeadlineExceeded) {
			err = cause
		}
	} else {
		s.cache.remember(m.key, sum)
	}
	s.st.fetched(result)
	return sum, err
}

// get is attempt for what ref's URL says.
func (s *Store) get(ctx context.Context, ref *filters.ModuleRef) (sum string, err error) {
	if d := digestOf(ref); d != "" && !isSHA256(d) {
		return "", final(resultConfig, fmt.Errorf("sha256 is %q: want 64 hexadecimal digits", d))
	}
	u, err := url.Parse(ref.URL)
	if err != nil || u.Host == "" {
		return "", final(resultConfig, errors.New("the URL is malformed"))
	}
	switch u.Scheme {
	case "oci":
		return s.pull(ctx, ref, strings.TrimPrefix(ref.URL, "oci://"))
	case "http", "https":
	default:
		return "", final(resultConfig, fmt.Errorf("the URL's scheme is %q: want http, https or oci", u.Scheme))
	}
	b, err := s.download(ctx, ref, u)
	if err != nil {
		return "", err
	}
	raw := sumOf(b)
	b, err = unbox(b, s.opt.MaxModule)
	if err != nil {
		return "", final(resultInvalid, err)
	}
	// Envoy's digest is that of the file, istio-agent's of the module in it.
	if want := digestOf(ref); want != "" && want != raw && want != sumOf(b) {
		return "", final(resultChecksum, fmt.Errorf("its sha256 is %s, not %s", raw, want))
	}
	return s.cache.put(b)
}

// download gets a file over HTTP, by a cluster if ref names one.
func (s *Store) download(ctx context.Context, ref *filters.ModuleRef, u *url.URL) ([]byte, error) {
	if ref.Cluster == "" || ref.Cluster == "_" {
		return s.web.get(ctx, u, s.opt.MaxModule)
	}
	if s.opt.Upstreams == nil {
		return nil, final(resultConfig, errors.New("there are no clusters here"))
	}
	return s.callCluster(ctx, ref, u)
}
