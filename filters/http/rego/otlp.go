package rego

import (
	"errors"
	"fmt"
	"log/slog"

	commonv1pb "go.opentelemetry.io/proto/otlp/common/v1"
	logsv1pb "go.opentelemetry.io/proto/otlp/logs/v1"
	"google.golang.org/protobuf/proto"

	"github.com/fairlead-mesh/fairlead/filters"
	"github.com/fairlead-mesh/fairlead/internal/message"
	"github.com/fairlead-mesh/fairlead/internal/otlp"
	"github.com/fairlead-mesh/fairlead/internal/stats"
)

// exporter sends log records to a collector in batches. It is shared by all
// decision logs that name the same one.
type exporter = otlp.Exporter[*logsv1pb.LogRecord]

type exporterKey struct{ cfg otlpConfig }

func acquireExporter(env *filters.Env, shared *filters.Shared, c *otlpConfig, logger *slog.Logger) (*exporter, func(), error) {
	if env.Upstreams == nil {
		return nil, nil, errors.New("no clusters here")
	}
	v, release, err := shared.Acquire(exporterKey{*c}, func() (any, error) { return newExporter(env, c, logger), nil })
	if err != nil {
		return nil, nil, err
	}
	e, ok := v.(*exporter)
	if !ok {
		panic(fmt.Sprintf("rego: %T shared under an exporter's key", v)) // programmer error: the key is private
	}
	return e, release, nil
}

func newExporter(env *filters.Env, c *otlpConfig, logger *slog.Logger) *exporter {
	cluster := stats.Label{Name: "cluster", Value: c.cluster}
	count := func(result string) *stats.Counter {
		return env.Stats.Counter("fairlead_policy_log_exported_total", cluster, stats.Label{Name: "result", Value: result})
	}
	who := resource(env.Node)
	scope := &commonv1pb.InstrumentationScope{Name: "github.com/fairlead-mesh/fairlead/filters/http/rego"}
	target := otlp.Target{Cluster: c.cluster, Scheme: c.scheme, Authority: c.authority, Path: c.path, GRPC: c.grpc, Timeout: c.timeout}
	if c.credentials != (credentials{}) {
		target.Header = func(h *message.Header) error {
			v, _, err := c.credentials.header()
			if err == nil {
				h.AddField(message.Field{Name: "authorization", Value: v, NeverIndex: true})
			}
			return err
		}
	}
	return otlp.New(otlp.Config[*logsv1pb.LogRecord]{
		Target: target, Flush: c.flush, Batch: c.batch, Queue: c.queue, What: "decisions",
		Encode: func(batch []*logsv1pb.LogRecord) ([]byte, error) {
			// LogsData has the form of ExportLogsServiceRequest.
			return proto.Marshal(&logsv1pb.LogsData{ResourceLogs: []*logsv1pb.ResourceLogs{{
				Resource: who, ScopeLogs: []*logsv1pb.ScopeLogs{{Scope: scope, LogRecords: batch}},
			}}})
		},
		Upstreams: env.Upstreams, Logger: logger.With("cluster", c.cluster),
		Sent: count("sent"), Dropped: count("dropped"), Failed: count("failed"),
	})
}
