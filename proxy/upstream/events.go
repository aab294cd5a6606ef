package upstream

import (
	"time"

	"github.com/fairlead-mesh/fairlead/internal/stats"
)

// Event is something that happened to a request for a cluster and that only the
// caller knows of.
type Event uint8

// The events, named after Envoy's cluster counters.
const (
	EventRetry Event = iota
	EventRetrySuccess
	EventRetryOverflow
	EventRetryLimitExceeded
	EventRetryBackoff
	EventRetryBackoffRateLimited
	EventTimeout
	EventPerTryTimeout
	EventPerTryIdleTimeout
	EventMaxDuration
	EventRxReset
	EventTxReset
	EventAbandoned
	EventConnectAttemptsExceeded
)

// Count counts e.
func (c *Cluster) Count(e Event) {
	if n := c.stats().event(e); n != nil {
		n.Inc()
	}
}

func (s *clusterStats) event(e Event) *stats.Counter {
	switch e {
	case EventRetry:
		return s.rqRetry
	case EventRetrySuccess:
		return s.rqRetrySuccess
	case EventRetryOverflow:
		return s.rqRetryOverflow
	case EventRetryLimitExceeded:
		return s.rqRetryLimit
	case EventRetryBackoff:
		return s.rqRetryBackoff
	case EventRetryBackoffRateLimited:
		return s.rqRetryBackoffRateLimited
	case EventTimeout:
		return s.rqTimeout
	case EventPerTryTimeout:
		return s.rqPerTryTimeout
	case EventPerTryIdleTimeout:
		return s.rqPerTryIdleTimeout
	case EventMaxDuration:
		return s.rqMaxDuration
	case EventRxReset:
		return s.rqRxReset
	case EventTxReset:
		return s.rqTxReset
	case EventAbandoned:
		return s.abandoned
	case EventConnectAttemptsExceeded:
		return s.cxAttemptsExceeded
	}
	return nil
}

// CountCode counts a response, or a local reply that stands for one, by its
// status. fromInside says that the request came from inside, as its header
// x-envoy-internal tells.
func (c *Cluster) CountCode(status int, fromInside bool) {
	from := external
	if fromInside {
		from = internal
	}
	c.stats().code(status, from)
}

// CountRetried counts a response that nobody gets, for the request is sent
// again.
func (c *Cluster) CountRetried(status int) { c.stats().retried(status) }

// ObserveTime records how long a request took from being complete to the end
// of its response.
func (c *Cluster) ObserveTime(d time.Duration) { c.stats().rqTime.ObserveMillis(d) }

// TakeRetry asks the circuit breaker (max_retries, retry_budget) for a retry.
// If it returns true GiveRetry must follow when the retry has its outcome.
func (c *Cluster) TakeRetry(high bool) bool { return c.breaker(high).takeRetry() }

// GiveRetry ends what TakeRetry began.
func (c *Cluster) GiveRetry(high bool) { c.breaker(high).retries.give() }
