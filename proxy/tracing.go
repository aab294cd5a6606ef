package proxy

import (
	"fmt"
	"time"

	commonv1pb "go.opentelemetry.io/proto/otlp/common/v1"
	resourcev1pb "go.opentelemetry.io/proto/otlp/resource/v1"
	tracev1pb "go.opentelemetry.io/proto/otlp/trace/v1"
	"google.golang.org/protobuf/proto"

	"github.com/fairlead-mesh/fairlead/internal/otlp"
	"github.com/fairlead-mesh/fairlead/internal/stats"
	"github.com/fairlead-mesh/fairlead/internal/tracing"
	"github.com/fairlead-mesh/fairlead/xdsclient/xdsresource"
)

// Batches of spans and of log records.
const (
	exportFlush = time.Second
	exportBatch = 512
	recordQueue = 4096
)

type (
	spanExporter    = otlp.Exporter[*tracev1pb.Span]
	spanExporterKey struct{ provider xdsresource.Digest }
)

// tracer compiles a tracing block; nil if nothing is traced. release gives back
// what it holds.
func (b *builder) tracer(ls *xdsresource.Listener, spec *xdsresource.Tracing) (c *tracing.Config, release func()) {
	release = func() {}
	if spec == nil || spec.Provider == nil {
		return nil, release
	}
	c = &tracing.Config{
		Egress: ls.Direction == "outbound", SpawnUpstream: spec.SpawnUpstreamSpan, MaxPath: spec.MaxPathTagLength, Tags: spec.Tags,
		Operation: spec.Operation, UpstreamOperation: spec.UpstreamOperation, NoPropagation: spec.NoContextPropagation,
		Sampler: spec.Provider.Sampler, NodeID: b.s.node.ID, Zone: b.s.node.Zone,
	}
	if spec.Provider.Target == nil || b.s.opt.Offline {
		return c, release
	}
	v, release, err := b.s.shared.Acquire(spanExporterKey{spec.Provider.Digest}, func() (any, error) { return b.s.spanExporter(spec.Provider), nil })
	if err != nil {
		panic(err) // create returns none
	}
	e, ok := v.(*spanExporter)
	if !ok {
		panic(fmt.Sprintf("proxy: %T shared under the key of spans", v)) // programmer error: the key is private
	}
	c.Export = e.Add
	return c, release
}

func (s *Server) exported(signal, cluster string) func(result string) *stats.Counter {
	return func(result string) *stats.Counter {
		return s.stats.Counter("fairlead_otlp_exported_total", stats.Label{Name: "cluster", Value: cluster},
			stats.Label{Name: "result", Value: result}, stats.Label{Name: "signal", Value: signal})
	}
}

func (s *Server) spanExporter(p *xdsresource.TracingProvider) *spanExporter {
	var scope *commonv1pb.InstrumentationScope
	if !p.NoScope {
		scope = &commonv1pb.InstrumentationScope{Name: "fairlead"}
	}
	who := &resourcev1pb.Resource{Attributes: p.Resource}
	count := s.exported("traces", p.Target.Cluster)
	return otlp.New(otlp.Config[*tracev1pb.Span]{
		Target: *p.Target, Flush: exportFlush, Batch: min(exportBatch, p.MaxQueue), Queue: p.MaxQueue, What: "spans",
		Encode: func(batch []*tracev1pb.Span) ([]byte, error) {
			// TracesData has the form of ExportTraceServiceRequest.
			return proto.Marshal(&tracev1pb.TracesData{ResourceSpans: []*tracev1pb.ResourceSpans{{
				Resource: who, ScopeSpans: []*tracev1pb.ScopeSpans{{Scope: scope, Spans: batch}},
			}}})
		},
		Upstreams: s.clusters, Logger: s.log.With("cluster", p.Target.Cluster),
		Sent: count("sent"), Dropped: count("dropped"), Failed: count("failed"),
	})
}
