package upstream

import (
	"sync/atomic"

	"github.com/fairlead-mesh/fairlead/xdsclient/xdsresource"
)

// limit is one bounded resource of a circuit breaker.
type limit struct {
	n   atomic.Int64
	max int64
}

// take takes one unit if fewer than the maximum are out.
func (l *limit) take() bool {
	for {
		n := l.n.Load()
		if n >= l.max {
			return false
		}
		if l.n.CompareAndSwap(n, n+1) {
			return true
		}
	}
}

// force takes one unit whatever the maximum is.
func (l *limit) force() { l.n.Add(1) }

func (l *limit) give() { l.n.Add(-1) }

// breaker is the circuit breaker of one priority: Envoy's resource manager. It
// outlives configuration updates of its cluster only if the cluster is kept.
type breaker struct {
	connections, pending, requests, retries limit
	budget                                  *xdsresource.RetryBudget
}

func (b *breaker) configure(s *xdsresource.CircuitBreaker) {
	b.connections.max = int64(s.MaxConnections)
	b.pending.max = int64(s.MaxPendingRequests)
	b.requests.max = int64(s.MaxRequests)
	b.retries.max = int64(s.MaxRetries)
	b.budget = s.RetryBudget
}

// takeRetry admits a retry: by max_retries, or by the budget's share of the
// requests that are active or pending.
func (b *breaker) takeRetry() bool {
	if b.budget == nil {
		return b.retries.take()
	}
	active := b.requests.n.Load() + b.pending.n.Load()
	allowed := max(int64(b.budget.Percent*float64(active)/100), int64(b.budget.MinRetryConcurrency))
	for {
		n := b.retries.n.Load()
		if n >= allowed {
			return false
		}
		if b.retries.n.CompareAndSwap(n, n+1) {
			return true
		}
	}
}
