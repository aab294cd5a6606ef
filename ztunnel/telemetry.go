package ztunnel

import (
	"context"
	"errors"
	"log/slog"
	"net/netip"
	"sync"
	"time"

	"github.com/fairlead-mesh/fairlead/internal/stats"
	"github.com/fairlead-mesh/fairlead/internal/workload"
	"github.com/fairlead-mesh/fairlead/proxy/hbone"
)

// flowLabels are the labels of Istio's TCP metrics, in ztunnel's order.
var flowLabels = []string{
	"reporter", "source_workload", "source_canonical_service", "source_canonical_revision", "source_workload_namespace",
	"source_principal", "source_app", "source_version", "source_cluster",
	"destination_service", "destination_service_namespace", "destination_service_name",
	"destination_workload", "destination_canonical_service", "destination_canonical_revision", "destination_workload_namespace",
	"destination_principal", "destination_app", "destination_version", "destination_cluster",
	"request_protocol", "response_flags", "connection_security_policy",
}

const flagIndex = 21 // of response_flags

type metrics struct {
	opened, closed, received, sent, failed *stats.CounterFamily
}

func newMetrics(r *stats.Registry) *metrics {
	s := r.Scope("")
	return &metrics{
		opened:   s.CounterFamily("istio_tcp_connections_opened_total", "TCP connections opened.", flowLabels...),
		closed:   s.CounterFamily("istio_tcp_connections_closed_total", "TCP connections closed.", flowLabels...),
		received: s.CounterFamily("istio_tcp_received_bytes_total", "Bytes from client to server.", flowLabels...),
		sent:     s.CounterFamily("istio_tcp_sent_bytes_total", "Bytes from server to client.", flowLabels...),
		failed:   s.CounterFamily("istio_tcp_connections_failed_total", "TCP connections that failed before they were open.", flowLabels...),
	}
}

// flow is the telemetry of one connection.
type flow struct {
	m                 *metrics
	log               *slog.Logger
	start             time.Time
	inbound           bool
	src, dst          netip.AddrPort
	hboneAddr         string
	srcID, dstID      string
	srcW, dstW        *workload.Workload
	service           *workload.Service
	labels            []string
	received, sent    *stats.Counter
	seenRecv, seenSnt uint64
	mu                sync.Mutex
}

func (f *flow) values(flag string) []string {
	v := make([]string, 0, len(flowLabels))
	v = append(v, pick(f.inbound, "destination", "source"))
	v = appendWorkload(v, f.srcW, f.srcID)
	if f.service != nil {
		v = append(v, f.service.Hostname, f.service.Namespace, f.service.Name)
	} else {
		v = append(v, unknown, unknown, unknown)
	}
	v = appendWorkload(v, f.dstW, f.dstID)
	return append(v, "tcp", flag, pick(f.srcID != "", "mutual_tls", unknown))
}

const unknown = "unknown"

func appendWorkload(v []string, w *workload.Workload, id string) []string {
	if w == nil {
		return append(v, unknown, unknown, unknown, unknown, orElse(id, unknown), unknown, unknown, unknown)
	}
	name, rev := orElse(w.CanonicalName, unknown), orElse(w.CanonicalRevision, "latest")
	return append(v, orElse(w.WorkloadName, w.Name), name, rev, w.Namespace, orElse(id, unknown), name, rev, w.ClusterID)
}

func pick(b bool, yes, no string) string {
	if b {
		return yes
	}
	return no
}

// open counts the connection as established.
func (f *flow) open() {
	f.labels = f.values("-")
	f.m.opened.With(f.labels...).Inc()
	f.received, f.sent = f.m.received.With(f.labels...), f.m.sent.With(f.labels...)
}

// progress takes the bytes from client and from server so far.
func (f *flow) progress(received, sent uint64) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.received.Add(received - min(f.seenRecv, received))
	f.sent.Add(sent - min(f.seenSnt, sent))
	f.seenRecv, f.seenSnt = max(f.seenRecv, received), max(f.seenSnt, sent)
}

// end counts and logs the connection's end.
func (f *flow) end(received, sent uint64, err error) {
	flag := flagOf(err)
	if f.labels == nil {
		f.m.failed.With(f.values(flag)...).Inc()
	} else {
		f.progress(received, sent)
		f.labels[flagIndex] = flag
		f.m.closed.With(f.labels...).Inc()
	}
	a := make([]slog.Attr, 0, 16)
	a = append(a, slog.String("src.addr", f.src.String()))
	a = workloadAttrs(a, "src", f.srcW, f.srcID)
	a = append(a, slog.String("dst.addr", f.dst.String()))
	if f.hboneAddr != "" {
		a = append(a, slog.String("dst.hbone_addr", f.hboneAddr))
	}
	if f.service != nil {
		a = append(a, slog.String("dst.service", f.service.Hostname))
	}
	a = workloadAttrs(a, "dst", f.dstW, f.dstID)
	out, in := received, sent // the client's view
	if f.inbound {
		out, in = sent, received
	}
	a = append(a, slog.String("direction", pick(f.inbound, "inbound", "outbound")), slog.Uint64("bytes_sent", out),
		slog.Uint64("bytes_recv", in), slog.String("duration", time.Since(f.start).Round(time.Millisecond).String()))
	level := slog.LevelInfo
	if err != nil {
		level = slog.LevelError
		a = append(a, slog.String("error", err.Error()))
	}
	f.log.LogAttrs(context.Background(), level, "connection complete", a...)
}

func workloadAttrs(a []slog.Attr, side string, w *workload.Workload, id string) []slog.Attr {
	if w != nil {
		a = append(a, slog.String(side+".workload", w.Name), slog.String(side+".namespace", w.Namespace))
	}
	if id != "" {
		a = append(a, slog.String(side+".identity", id))
	}
	if w != nil {
		a = append(a, slog.String(side+".cluster", w.ClusterID))
	}
	return a
}

// flagOf is ztunnel's response flag for an error.
func flagOf(err error) string {
	var denied *deniedError
	var status *hbone.StatusError
	var dial *hbone.DialError
	switch {
	case err == nil:
		return "-"
	case errors.As(err, &denied), errors.As(err, &status) && status.Status == 401:
		return "DENY"
	case errors.As(err, &dial) && dial.Hint != "":
		return "NETWORK_POLICY"
	case errors.As(err, &dial) && dial.Stage == "tls handshake":
		return "TLS_FAILURE"
	}
	return "CONNECT"
}
