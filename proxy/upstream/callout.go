package upstream

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/sony/gobreaker/v2"

	"github.com/fairlead-mesh/fairlead/filters"
	"github.com/fairlead-mesh/fairlead/internal/message"
	"github.com/fairlead-mesh/fairlead/proxy/transport"
)

// Errors of RoundTrip, besides *transport.ResetError.
var (
	ErrNoSuchCluster    = errors.New("no such cluster")
	ErrResponseTooLarge = errors.New("response body is larger than the limit")
)

// errServerFault makes the breaker count a 5xx answer as a failure; RoundTrip
// does not return it.
var errServerFault = errors.New("upstream: server fault")

// RoundTrip implements filters.Upstreams. A cluster that fails persistently
// (more than half of at least 20 calls within 10 s, connection errors,
// timeouts and 5xx) is not called for 5 s, so that its callers fail fast:
// gobreaker.ErrOpenState.
func (m *Manager) RoundTrip(ctx context.Context, cluster string, req *filters.Callout, limit int64) (*filters.CalloutResponse, error) {
	c := m.Cluster(cluster)
	if c == nil {
		return nil, fmt.Errorf("cluster %s: %w", cluster, ErrNoSuchCluster)
	}
	resp, err := m.guard(cluster).Execute(func() (*filters.CalloutResponse, error) {
		resp, err := c.roundTrip(ctx, req, limit)
		if err == nil && resp.Status >= 500 {
			return resp, errServerFault
		}
		return resp, err
	})
	if errors.Is(err, errServerFault) {
		err = nil
	}
	if err != nil {
		return nil, fmt.Errorf("cluster %s: %w", cluster, err)
	}
	return resp, nil
}

// guard returns the circuit breaker of callouts to one cluster.
func (m *Manager) guard(cluster string) *gobreaker.CircuitBreaker[*filters.CalloutResponse] {
	m.mu.Lock()
	defer m.mu.Unlock()
	if b := m.callouts[cluster]; b != nil {
		return b
	}
	if m.callouts == nil {
		m.callouts = map[string]*gobreaker.CircuitBreaker[*filters.CalloutResponse]{}
	}
	b := gobreaker.NewCircuitBreaker[*filters.CalloutResponse](gobreaker.Settings{
		Name: cluster, MaxRequests: 1, Interval: 10 * time.Second, Timeout: 5 * time.Second,
		ReadyToTrip: func(n gobreaker.Counts) bool { return n.Requests >= 20 && 2*n.TotalFailures > n.Requests },
		IsSuccessful: func(err error) bool {
			return err == nil || errors.Is(err, context.Canceled) || errors.Is(err, ErrResponseTooLarge)
		},
		OnStateChange: func(name string, from, to gobreaker.State) {
			m.log.Warn("callout breaker", "cluster", name, "from", from.String(), "to", to.String())
		},
	})
	m.callouts[cluster] = b
	return b
}

func (c *Cluster) roundTrip(ctx context.Context, req *filters.Callout, limit int64) (*filters.CalloutResponse, error) {
	if req.Timeout > 0 {
		var cancel context.CancelFunc
		ctx, cancel = context.WithTimeout(ctx, req.Timeout)
		defer cancel()
	}
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
		c.stats().code(resp.Status)
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
