package upstream

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"sync/atomic"
	"time"

	"github.com/sony/gobreaker/v2"

	"github.com/fairlead-mesh/fairlead/filters"
	"github.com/fairlead-mesh/fairlead/internal/message"
	"github.com/fairlead-mesh/fairlead/internal/stats"
	"github.com/fairlead-mesh/fairlead/proxy/transport"
)

// Errors of RoundTrip, besides *transport.ResetError.
var (
	ErrNoSuchCluster    = errors.New("no such cluster")
	ErrResponseTooLarge = errors.New("response body is larger than the limit")
)

// Reasons for the breaker; RoundTrip does not return them.
var (
	errUnavailable = errors.New("upstream: unavailable")
	errAbandoned   = errors.New("upstream: nobody waits for the answer")
)

// A breaker opens after failuresInARow that are not all of one moment: the end of
// one endpoint fails what is under way there at once. However long they took,
// they count. Then its cluster is not called for restPeriod, and after that
// tried with one call at a time, which has probeTime.
const (
	failuresInARow = 10
	moment         = 100 * time.Millisecond
	restPeriod     = time.Second
	probeTime      = 5 * time.Second
)

// calloutGuard is the circuit breaker of callouts to one cluster.
type calloutGuard struct {
	breaker                  *gobreaker.CircuitBreaker[*filters.CalloutResponse]
	rejected, opened, failed *stats.Counter
	scope                    *stats.Scope // of its metrics
	// failing is the time of the first failure after the last success, in
	// nanoseconds since 1970, 0 if there was none.
	failing atomic.Int64
}

// RoundTrip implements filters.Upstreams. A cluster that is persistently
// unavailable (no connection, no answer in time, HTTP status 502 to 504, gRPC
// status UNAVAILABLE) is not called for a second, so that its callers fail fast:
// gobreaker.ErrOpenState. Other answers are not failures: what a client sends
// must not be able to stop the checks of all others.
func (m *Manager) RoundTrip(ctx context.Context, cluster string, req *filters.Callout, limit int64) (*filters.CalloutResponse, error) {
	if m.opt.Offline {
		return nil, fmt.Errorf("cluster %s: %w", cluster, errOffline)
	}
	if req.Timeout > 0 {
		var cancel context.CancelFunc
		ctx, cancel = context.WithTimeout(ctx, req.Timeout)
		defer cancel()
	}
	for n := 0; ; n++ {
		resp, err := m.attempt(ctx, cluster, req, limit)
		if !again(ctx, req.Retry, n, resp, err) {
			if err != nil {
				return nil, fmt.Errorf("cluster %s: %w", cluster, err)
			}
			return resp, nil
		}
	}
}

// errOffline keeps a configuration that is only looked at from asking anybody.
var errOffline = errors.New("no calls are made for a configuration that is not run")

// again waits before repetition n, if there is one.
func again(ctx context.Context, r *filters.Retry, n int, resp *filters.CalloutResponse, err error) bool {
	switch {
	case r == nil || n >= r.Times || ctx.Err() != nil:
		return false
	case err != nil:
		if errors.Is(err, ErrNoSuchCluster) || errors.Is(err, ErrResponseTooLarge) || isOpen(err) {
			return false
		}
	case resp.Status < 500 && !unavailable(resp):
		return false
	}
	most := r.Base
	for range n {
		most = min(2*most, r.Max)
	}
	pause := time.NewTimer(rand.N(max(most, 1)))
	defer pause.Stop()
	select {
	case <-pause.C:
		return true
	case <-ctx.Done():
		return false
	}
}

func isOpen(err error) bool {
	return errors.Is(err, gobreaker.ErrOpenState) || errors.Is(err, gobreaker.ErrTooManyRequests)
}

// attempt makes one call, if the breaker lets it.
func (m *Manager) attempt(ctx context.Context, cluster string, req *filters.Callout, limit int64) (*filters.CalloutResponse, error) {
	c := m.Cluster(cluster)
	if c == nil {
		return nil, ErrNoSuchCluster
	}
	var err error // the callee's own
	g := m.guard(cluster)
	resp, state := g.breaker.Execute(func() (r *filters.CalloutResponse, reason error) {
		callCtx := ctx
		if g.breaker.State() == gobreaker.StateHalfOpen {
			var cancel context.CancelFunc
			callCtx, cancel = context.WithTimeout(ctx, probeTime)
			defer cancel()
		}
		r, err = c.roundTrip(callCtx, req, limit)
		reason = err
		switch {
		case err != nil && ctx.Err() != nil && !errors.Is(context.Cause(ctx), context.DeadlineExceeded):
			return r, errAbandoned
		case errors.Is(err, ErrResponseTooLarge):
			reason = nil
		case err == nil && unavailable(r):
			reason = errUnavailable
		}
		if reason == nil {
			g.failing.Store(0)
		} else {
			g.failing.CompareAndSwap(0, time.Now().UnixNano())
		}
		return r, reason
	})
	switch {
	case state == nil || errors.Is(state, errAbandoned):
	case isOpen(state):
		g.rejected.Inc()
		return nil, state
	default:
		g.failed.Inc()
	}
	return resp, err
}

// unavailable reports whether r says that nobody was there to answer.
func unavailable(r *filters.CalloutResponse) bool {
	const grpcUnavailable = "14"
	return r.Status >= 502 && r.Status <= 504 || r.Trailers.Get("grpc-status") == grpcUnavailable || r.Header.Get("grpc-status") == grpcUnavailable
}

// guard returns the circuit breaker of callouts to one cluster. That of a cluster
// which has just been removed is for this call only.
func (m *Manager) guard(cluster string) *calloutGuard {
	if g, ok := m.callouts.Load(cluster); ok {
		return g.(*calloutGuard) //nolint:errcheck,forcetypeassert // nothing else is stored
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	if g, ok := m.callouts.Load(cluster); ok {
		return g.(*calloutGuard) //nolint:errcheck,forcetypeassert // nothing else is stored
	}
	root := m.opt.Stats
	_, there := m.slots.Load().Get(cluster)
	if !there {
		root = nil
	}
	sc := root.Scope("fairlead_callout_", stats.Label{Name: "envoy_cluster_name", Value: cluster}).Own()
	g := &calloutGuard{scope: sc, rejected: sc.Counter("rejected_total"), opened: sc.Counter("breaker_opened_total"), failed: sc.Counter("failed_total")}
	g.breaker = gobreaker.NewCircuitBreaker[*filters.CalloutResponse](gobreaker.Settings{
		Name: cluster, MaxRequests: 1, Timeout: restPeriod,
		ReadyToTrip: func(n gobreaker.Counts) bool {
			return n.ConsecutiveFailures >= failuresInARow && time.Since(time.Unix(0, g.failing.Load())) >= moment
		},
		IsExcluded: func(err error) bool { return errors.Is(err, errAbandoned) },
		OnStateChange: func(name string, from, to gobreaker.State) {
			if to == gobreaker.StateOpen {
				g.opened.Inc()
			}
			m.log.Warn("callout breaker", "cluster", name, "from", from.String(), "to", to.String())
		},
	})
	sc.GaugeFunc("breaker_state", func() float64 { return float64(g.breaker.State()) })
	if there {
		m.callouts.Store(cluster, g)
	}
	return g
}

func (c *Cluster) roundTrip(ctx context.Context, req *filters.Callout, limit int64) (*filters.CalloutResponse, error) {
	h, err := c.Pick(&PickContext{})
	if err != nil {
		return nil, err
	}
	s, err := c.NewStream(ctx, h, &ConnectOptions{Version: message.HTTP2, HTTP2: req.HTTP2, Authority: req.Header.Get(message.Authority)})
	if err != nil {
		if transport.ReasonOf(err) == transport.ConnectionFailure {
			c.Failed(h, FailureConnect)
		}
		return nil, err
	}
	interrupted := make(chan struct{})
	stop := context.AfterFunc(ctx, func() {
		s.Interrupt(context.Cause(ctx))
		close(interrupted)
	})
	resp, err := exchange(s, req, limit)
	if !stop() {
		<-interrupted // s must not be touched after its release
		err = errors.Join(err, context.Cause(ctx))
	}
	if err != nil {
		s.Reset()
		switch {
		case ctx.Err() != nil:
			c.Failed(h, FailureTimeout)
		case !errors.Is(err, ErrResponseTooLarge):
			c.Failed(h, FailureReset)
		}
	} else {
		c.stats().code(resp.Status, internal)
		c.Status(h, resp.Status)
	}
	s.Release()
	return resp, err
}

func exchange(s *Stream, req *filters.Callout, limit int64) (*filters.CalloutResponse, error) {
	end := len(req.Body) == 0
	if err := s.WriteHeaders(&req.Header, end); err != nil {
		return nil, err
	}
	if !end {
		if err := s.WriteData(req.Body, true); err != nil {
			return nil, err
		}
	}
	resp := &filters.CalloutResponse{}
	for {
		status, done, err := s.ReadHeaders(&resp.Header)
		if err != nil {
			return nil, err
		}
		if status < 200 && status != 101 {
			resp.Header.Reset()
			continue
		}
		resp.Status = status
		h := message.Header{}
		h.CopyFrom(&resp.Header)
		resp.Header = h
		if done {
			return resp, nil
		}
		break
	}
	body := s.Body()
	defer body.Close()
	for {
		p, last, err := body.Next()
		if err != nil {
			return nil, err
		}
		if int64(len(resp.Body)+len(p)) > limit {
			return nil, fmt.Errorf("%w of %d bytes", ErrResponseTooLarge, limit)
		}
		resp.Body = append(resp.Body, p...)
		if last {
			if t := body.Trailers(); t != nil {
				resp.Trailers.CopyFrom(t)
			}
			return resp, nil
		}
	}
}

var _ filters.Upstreams = (*Manager)(nil)
