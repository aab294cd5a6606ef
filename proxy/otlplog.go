package proxy

import (
	"fmt"

	commonv1pb "go.opentelemetry.io/proto/otlp/common/v1"
	logsv1pb "go.opentelemetry.io/proto/otlp/logs/v1"
	resourcev1pb "go.opentelemetry.io/proto/otlp/resource/v1"
	"google.golang.org/protobuf/proto"

	"github.com/fairlead-mesh/fairlead/internal/accesslog"
	"github.com/fairlead-mesh/fairlead/internal/format"
	"github.com/fairlead-mesh/fairlead/internal/otlp"
	"github.com/fairlead-mesh/fairlead/xdsclient/xdsresource"
)

type (
	logExporter    = otlp.Exporter[*logsv1pb.LogRecord]
	logExporterKey struct{ exporter xdsresource.Digest }
)

// otlpLog returns the logger for a, and what releases its exporter, which sends
// what it has and ends when nobody uses it any more.
func (s *Server) otlpLog(a *xdsresource.AccessLog) (*accesslog.Logger, func()) {
	if s.opt.Offline {
		return accesslog.NewLogger(a.Filter, func(*format.Context) {}), func() {}
	}
	v, release, err := s.shared.Acquire(logExporterKey{a.OTLP.Exporter}, func() (any, error) { return s.logExporter(a.OTLP), nil })
	if err != nil {
		panic(err) // create returns none
	}
	e, ok := v.(*logExporter)
	if !ok {
		panic(fmt.Sprintf("proxy: %T shared under the key of a log", v)) // programmer error: the key is private
	}
	spec := a.OTLP
	return accesslog.NewLogger(a.Filter, func(c *format.Context) { e.Add(logRecord(spec, c)) }), release
}

// logRecord is the record of a stream, which refers to nothing of it.
func logRecord(l *xdsresource.OTLPLog, c *format.Context) *logsv1pb.LogRecord {
	r := &logsv1pb.LogRecord{Attributes: otlp.RenderAttributes(l.Attributes, c)}
	if l.Body != nil {
		r.Body = l.Body.Render(c)
	}
	info := c.Info
	if info == nil {
		return r
	}
	r.TimeUnixNano = otlp.UnixNano(info.Start)
	r.TraceId, r.SpanId = otlp.ID(info.TraceID, 16), otlp.ID(info.SpanID, 8)
	for i := range l.Tags {
		if kv := l.Tags[i].Attribute(c); kv != nil {
			r.Attributes = append(r.Attributes, kv)
		}
	}
	return r
}

func (s *Server) logExporter(l *xdsresource.OTLPLog) *logExporter {
	var labels []*commonv1pb.KeyValue
	if l.Builtin {
		labels = append(labels, otlp.Attribute("log_name", l.LogName), otlp.Attribute("zone_name", s.node.Zone),
			otlp.Attribute("cluster_name", s.node.Cluster), otlp.Attribute("node_name", s.node.ID))
	}
	for _, kv := range l.Resource {
		labels = otlp.SetAttribute(labels, kv)
	}
	who := &resourcev1pb.Resource{Attributes: labels}
	count := s.exported("logs", l.Target.Cluster)
	return otlp.New(otlp.Config[*logsv1pb.LogRecord]{
		Target: *l.Target, Flush: l.Flush, Batch: exportBatch, Queue: recordQueue, What: "access logs",
		Encode: func(batch []*logsv1pb.LogRecord) ([]byte, error) {
			// LogsData has the form of ExportLogsServiceRequest.
			return proto.Marshal(&logsv1pb.LogsData{ResourceLogs: []*logsv1pb.ResourceLogs{{
				Resource: who, ScopeLogs: []*logsv1pb.ScopeLogs{{LogRecords: batch}},
			}}})
		},
		Upstreams: s.clusters, Logger: s.log.With("cluster", l.Target.Cluster),
		Sent: count("sent"), Dropped: count("dropped"), Failed: count("failed"),
	})
}
