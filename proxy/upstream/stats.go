package upstream

import (
	"context"
	"errors"
	"io"
	"strconv"
	"sync/atomic"

	"github.com/fairlead-mesh/fairlead/internal/netio"
	"github.com/fairlead-mesh/fairlead/internal/stats"
	"github.com/fairlead-mesh/fairlead/proxy/transport"
)

// clusterStats are the handles of one cluster's metrics, in Envoy's names.
// They are taken when the cluster is first used: a waypoint knows thousands of
// clusters that carry nothing.
type clusterStats struct {
	scope *stats.Scope

	cxTotal, cxHTTP1, cxHTTP2, cxConnectFail, cxConnectTimeout, cxOverflow      *stats.Counter
	cxDestroy, cxDestroyActive, cxDestroyLocal, cxDestroyRemote                 *stats.Counter
	cxDestroyLocalActive, cxDestroyRemoteActive                                 *stats.Counter
	cxIdleTimeout, cxMaxRequests, cxMaxDuration                                 *stats.Counter
	cxNoneHealthy, cxRxBytes, cxTxBytes, cxAttemptsExceeded, cxProtocolError    *stats.Counter
	rqTotal, rqCompleted, rqPendingTotal, rqPendingOverflow, rqPendingFailure   *stats.Counter
	rqCancelled, rqTimeout, rqPerTryTimeout, rqPerTryIdleTimeout, rqMaxDuration *stats.Counter
	rqRetry, rqRetrySuccess, rqRetryOverflow, rqRetryLimit, rqRetryBackoff      *stats.Counter
	rqRetryBackoffRateLimited, rqRxReset, rqTxReset, rqActiveOverflow           *stats.Counter
	abandoned, lbPanic, rqDropOverload, membershipChange                        *stats.Counter
	updateAttempt, updateSuccess, updateFailure, originalDstBad                 *stats.Counter
	bindErrors                                                                  *stats.Counter

	cxActive, rqActive, rqPendingActive               *stats.Gauge
	membershipTotal, membershipHealthy, membershipDeg *stats.Gauge

	cxConnectMS, cxLengthMS, rqTime *stats.Histogram

	outlier outlierStats
	class   [6]*stats.Counter
	codes   [600]atomic.Pointer[codeCounters]
	origins [2]atomic.Pointer[originStats]
}

// side is where a request came from, as x-envoy-internal says.
type side uint8

const (
	external side = iota
	internal
)

var originNames = [...]string{"external_", "internal_"}

// originStats count the responses to requests of one origin. They are made for the
// first one.
type originStats struct {
	completed *stats.Counter
	class     [6]*stats.Counter
}

// codeCounters count the responses with one status; those by origin are made for
// the first one.
type codeCounters struct {
	all *stats.Counter
	by  [2]atomic.Pointer[stats.Counter]
}

type outlierStats struct {
	active                                                  *stats.Gauge
	total, overflow                                         *stats.Counter
	consecutive5xx, gateway, local, successRate, failurePct *stats.Counter
}

// statsScope is that of the metrics of a cluster.
func statsScope(root *stats.Scope, name string) *stats.Scope {
	return root.Scope("envoy_cluster_", stats.Label{Name: "envoy_cluster_name", Value: name}).Own()
}

// uncounted discards.
var uncounted = newClusterStats(nil, "")

func newClusterStats(root *stats.Scope, name string) *clusterStats {
	s := statsScope(root, name)
	c := func(n string) *stats.Counter { return s.Counter(n) }
	t := &clusterStats{
		scope:   s,
		cxTotal: c("upstream_cx_total"), cxHTTP1: c("upstream_cx_http1_total"), cxHTTP2: c("upstream_cx_http2_total"),
		cxConnectFail: c("upstream_cx_connect_fail"), cxConnectTimeout: c("upstream_cx_connect_timeout"), cxOverflow: c("upstream_cx_overflow"),
		cxDestroy: c("upstream_cx_destroy"), cxDestroyActive: c("upstream_cx_destroy_with_active_rq"), cxIdleTimeout: c("upstream_cx_idle_timeout"),
		cxDestroyLocal: c("upstream_cx_destroy_local"), cxDestroyRemote: c("upstream_cx_destroy_remote"),
		cxDestroyLocalActive: c("upstream_cx_destroy_local_with_active_rq"), cxDestroyRemoteActive: c("upstream_cx_destroy_remote_with_active_rq"),
		cxMaxRequests: c("upstream_cx_max_requests"), cxMaxDuration: c("upstream_cx_max_duration_reached"), cxNoneHealthy: c("upstream_cx_none_healthy"),
		cxRxBytes: c("upstream_cx_rx_bytes_total"), cxTxBytes: c("upstream_cx_tx_bytes_total"), cxAttemptsExceeded: c("upstream_cx_connect_attempts_exceeded"),
		cxProtocolError: c("upstream_cx_protocol_error"),
		rqTotal:         c("upstream_rq_total"), rqCompleted: c("upstream_rq_completed"), rqPendingTotal: c("upstream_rq_pending_total"),
		rqPendingOverflow: c("upstream_rq_pending_overflow"), rqPendingFailure: c("upstream_rq_pending_failure_eject"), rqCancelled: c("upstream_rq_cancelled"),
		rqTimeout: c("upstream_rq_timeout"), rqPerTryTimeout: c("upstream_rq_per_try_timeout"), rqPerTryIdleTimeout: c("upstream_rq_per_try_idle_timeout"),
		rqMaxDuration: c("upstream_rq_max_duration_reached"),
		rqRetry:       c("upstream_rq_retry"), rqRetrySuccess: c("upstream_rq_retry_success"), rqRetryOverflow: c("upstream_rq_retry_overflow"),
		rqRetryLimit: c("upstream_rq_retry_limit_exceeded"), rqRetryBackoff: c("upstream_rq_retry_backoff_exponential"),
		rqRetryBackoffRateLimited: c("upstream_rq_retry_backoff_ratelimited"), rqRxReset: c("upstream_rq_rx_reset"), rqTxReset: c("upstream_rq_tx_reset"),
		rqActiveOverflow: c("upstream_rq_active_overflow"), abandoned: c("retry_or_shadow_abandoned"), lbPanic: c("lb_healthy_panic"),
		rqDropOverload: c("upstream_rq_drop_overload"), membershipChange: c("membership_change"),
		updateAttempt: c("update_attempt"), updateSuccess: c("update_success"), updateFailure: c("update_failure"),
		originalDstBad: c("original_dst_host_invalid"), bindErrors: c("bind_errors"),
		cxActive: s.Gauge("upstream_cx_active"), rqActive: s.Gauge("upstream_rq_active"), rqPendingActive: s.Gauge("upstream_rq_pending_active"),
		membershipTotal: s.Gauge("membership_total"), membershipHealthy: s.Gauge("membership_healthy"), membershipDeg: s.Gauge("membership_degraded"),
		cxConnectMS: s.Histogram("upstream_cx_connect_ms", nil), cxLengthMS: s.Histogram("upstream_cx_length_ms", nil), rqTime: s.Histogram("upstream_rq_time", nil),
		outlier: outlierStats{
			active: s.Gauge("outlier_detection_ejections_active"), total: c("outlier_detection_ejections_enforced_total"), overflow: c("outlier_detection_ejections_overflow"),
			consecutive5xx: c("outlier_detection_ejections_enforced_consecutive_5xx"), gateway: c("outlier_detection_ejections_enforced_consecutive_gateway_failure"),
			local:       c("outlier_detection_ejections_enforced_consecutive_local_origin_failure"),
			successRate: c("outlier_detection_ejections_enforced_success_rate"), failurePct: c("outlier_detection_ejections_enforced_failure_percentage"),
		},
	}
	for i := 1; i < len(t.class); i++ {
		t.class[i] = s.Counter("upstream_rq_xx", stats.Label{Name: "envoy_response_code_class", Value: strconv.Itoa(i)})
	}
	return t
}

// code counts a response with this status.
func (t *clusterStats) code(status int, from side) {
	t.rqCompleted.Inc()
	if status < 100 || status >= len(t.codes) || t.scope == nil {
		return
	}
	t.class[status/100].Inc()
	o := t.origins[from].Load()
	if o == nil {
		o = t.newOrigin(from)
	}
	o.completed.Inc()
	o.class[status/100].Inc()
	c := t.codes[status].Load()
	if c == nil {
		c = &codeCounters{all: t.codeCounter("", status)}
		if !t.codes[status].CompareAndSwap(nil, c) {
			c = t.codes[status].Load()
		}
	}
	c.all.Inc()
	n := c.by[from].Load()
	if n == nil {
		n = t.codeCounter(originNames[from], status)
		c.by[from].Store(n)
	}
	n.Inc()
}

func (t *clusterStats) codeCounter(prefix string, status int) *stats.Counter {
	return t.scope.Counter(prefix+"upstream_rq", stats.Label{Name: "envoy_response_code", Value: strconv.Itoa(status)})
}

func (t *clusterStats) newOrigin(from side) *originStats {
	o := &originStats{completed: t.scope.Counter(originNames[from] + "upstream_rq_completed")}
	for i := 1; i < len(o.class); i++ {
		o.class[i] = t.scope.Counter(originNames[from]+"upstream_rq_xx", stats.Label{Name: "envoy_response_code_class", Value: strconv.Itoa(i)})
	}
	t.origins[from].Store(o)
	return o
}

// destroyed counts a connection that has ended; active says that streams were on
// it.
func (t *clusterStats) destroyed(remote, active bool) {
	t.cxDestroy.Inc()
	side, sideActive := t.cxDestroyLocal, t.cxDestroyLocalActive
	if remote {
		side, sideActive = t.cxDestroyRemote, t.cxDestroyRemoteActive
	}
	side.Inc()
	if active {
		t.cxDestroyActive.Inc()
		sideActive.Inc()
	}
}

// byPeer reports whether err is that of a connection which the peer ended, or
// which broke.
func byPeer(err error) bool {
	switch transport.ReasonOf(err) {
	case transport.ConnectionTermination, transport.RemoteReset, transport.RemoteRefused:
		return true
	case transport.ConnectionFailure:
		return !errors.Is(err, context.DeadlineExceeded)
	case transport.LocalReset, transport.ProtocolError, transport.Overflow:
		return false
	}
	return errors.Is(err, io.EOF) || errors.Is(err, netio.ErrReset)
}

// retried counts a response that was followed by another attempt, which is rare
// enough for handles to be looked up.
func (t *clusterStats) retried(status int) {
	if status < 100 || status >= len(t.codes) {
		return
	}
	s := t.scope
	s.Counter("retry_upstream_rq_completed").Inc()
	s.Counter("retry_upstream_rq_xx", stats.Label{Name: "envoy_response_code_class", Value: strconv.Itoa(status / 100)}).Inc()
	s.Counter("retry_upstream_rq", stats.Label{Name: "envoy_response_code", Value: strconv.Itoa(status)}).Inc()
}

// managerStats are envoy_cluster_manager_*.
type managerStats struct{ added, modified, removed *stats.Counter }

func (t *managerStats) register(m *Manager) {
	s := m.opt.Stats.Scope("envoy_cluster_manager_")
	t.added, t.modified, t.removed = s.Counter("cluster_added"), s.Counter("cluster_modified"), s.Counter("cluster_removed")
	s.GaugeFunc("warming_clusters", func() float64 {
		m.mu.Lock()
		defer m.mu.Unlock()
		return float64(len(m.warming))
	})
	s.GaugeFunc("active_clusters", func() float64 {
		n := 0
		for range m.each {
			n++
		}
		return float64(n)
	})
}
