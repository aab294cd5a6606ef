package istiometrics

import (
	"slices"

	"github.com/fairlead-mesh/fairlead/internal/format"
	"github.com/fairlead-mesh/fairlead/internal/stats"
)

// Standard labels in the order in which Istio's Envoy filter writes them.
const (
	lReporter = iota
	lSourceWorkload
	lSourceCanonicalService
	lSourceCanonicalRevision
	lSourceWorkloadNamespace
	lSourcePrincipal
	lSourceApp
	lSourceVersion
	lSourceCluster
	lDestinationWorkload
	lDestinationWorkloadNamespace
	lDestinationPrincipal
	lDestinationApp
	lDestinationVersion
	lDestinationService
	lDestinationCanonicalService
	lDestinationCanonicalRevision
	lDestinationServiceName
	lDestinationServiceNamespace
	lDestinationCluster
	lRequestProtocol
	lResponseCode
	lGRPCResponseStatus
	lResponseFlags
	lConnectionSecurityPolicy
	labelCount

	// peerLabels is the number of labels that describe the two ends.
	peerLabels = lRequestProtocol
)

var labelNames = [labelCount]string{
	"reporter",
	"source_workload", "source_canonical_service", "source_canonical_revision", "source_workload_namespace",
	"source_principal", "source_app", "source_version", "source_cluster",
	"destination_workload", "destination_workload_namespace", "destination_principal", "destination_app", "destination_version",
	"destination_service", "destination_canonical_service", "destination_canonical_revision", "destination_service_name",
	"destination_service_namespace", "destination_cluster",
	"request_protocol", "response_code", "grpc_response_status", "response_flags", "connection_security_policy",
}

// Standard metrics.
const (
	mRequests = iota
	mDuration
	mRequestBytes
	mResponseBytes
	mRequestMessages
	mResponseMessages
	mOpened
	mClosed
	mSent
	mReceived
	metricCount
)

var metricNames = [metricCount]string{
	"requests_total", "request_duration_milliseconds", "request_bytes", "response_bytes", "request_messages_total", "response_messages_total",
	"tcp_connections_opened_total", "tcp_connections_closed_total", "tcp_sent_bytes_total", "tcp_received_bytes_total",
}

var metricHelp = [metricCount]string{
	"Requests, counted when they end.", "Duration of requests in milliseconds.", "Bytes of requests on the wire.", "Bytes of responses on the wire.",
	"gRPC messages received from clients.", "gRPC messages sent to clients.",
	"TCP connections opened.", "TCP connections closed.", "Bytes sent to clients.", "Bytes received from clients.",
}

func metricIndex(name string) int { return slices.Index(metricNames[:], name) }

// standardLabels returns the labels of metric m.
func standardLabels(m int) []int {
	var ls []int
	for l := range labelCount {
		switch {
		case l < peerLabels:
		case m == mRequestMessages || m == mResponseMessages:
			continue // reported before the request ends
		case m >= mOpened && (l == lResponseCode || l == lGRPCResponseStatus):
			continue
		}
		ls = append(ls, l)
	}
	return ls
}

// column is one label of a metric: a standard label, or an expression.
type column struct {
	name  string
	label int // -1: expr
	expr  int // index of Metrics.exprs
}

// metric is a family with its columns. A dropped metric has neither.
type metric struct {
	columns  []column
	counters *stats.CounterFamily
	histos   *stats.HistogramFamily
}

func (m *metric) values(labels *[labelCount]string, exprs []string) []string {
	vs := make([]string, len(m.columns))
	for i, c := range m.columns {
		if c.label >= 0 {
			vs[i] = labels[c.label]
		} else {
			vs[i] = exprs[c.expr]
		}
	}
	return vs
}

func (m *metric) counter(labels *[labelCount]string, exprs []string) *stats.Counter {
	if m.counters == nil {
		return nil
	}
	return m.counters.With(m.values(labels, exprs)...)
}

func (m *metric) histogram(labels *[labelCount]string, exprs []string) *stats.Histogram {
	if m.histos == nil {
		return nil
	}
	return m.histos.With(m.values(labels, exprs)...)
}

// build applies the overrides in Istio's order: drop, then change or remove
// labels, then add new ones.
func (ms *Metrics) build(c *Config, scope *stats.Scope) {
	for i := range metricCount {
		m := &ms.metrics[i]
		for _, l := range standardLabels(i) {
			m.columns = append(m.columns, column{name: labelNames[l], label: l})
		}
		dropped := false
		for _, o := range c.Overrides {
			if o.Metric != "" && o.Metric != metricNames[i] {
				continue
			}
			if o.Drop {
				dropped = dropped || o.Metric != ""
				continue
			}
			m.override(o, ms.expr)
		}
		if dropped || scope == nil {
			continue
		}
		names := make([]string, len(m.columns))
		for k, col := range m.columns {
			names[k] = col.name
		}
		if i >= mDuration && i <= mResponseBytes {
			m.histos = scope.HistogramFamily("istio_"+metricNames[i], metricHelp[i], nil, names...)
		} else {
			m.counters = scope.CounterFamily("istio_"+metricNames[i], metricHelp[i], names...)
		}
	}
}

func (m *metric) override(o Override, expr func(*format.CEL) int) {
	for _, tag := range o.Remove {
		if slices.Contains(labelNames[:], tag) {
			m.columns = slices.DeleteFunc(m.columns, func(c column) bool { return c.name == tag })
		}
	}
	for _, dim := range o.Dimensions {
		i := slices.IndexFunc(m.columns, func(c column) bool { return c.name == dim.Tag })
		switch {
		case i >= 0:
			m.columns[i].label, m.columns[i].expr = -1, expr(dim.Expr)
		case !slices.Contains(labelNames[:], dim.Tag):
			m.columns = append(m.columns, column{name: dim.Tag, label: -1, expr: expr(dim.Expr)})
		}
	}
}
