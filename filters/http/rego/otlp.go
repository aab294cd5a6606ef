package rego

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"log/slog"
	"strconv"
	"sync"
	"sync/atomic"
	"time"

	commonv1pb "go.opentelemetry.io/proto/otlp/common/v1"
	logsv1pb "go.opentelemetry.io/proto/otlp/logs/v1"
	resourcev1pb "go.opentelemetry.io/proto/otlp/resource/v1"
	"google.golang.org/protobuf/encoding/protowire"
	"google.golang.org/protobuf/proto"

	"github.com/fairlead-mesh/fairlead/filters"
	"github.com/fairlead-mesh/fairlead/internal/message"
	"github.com/fairlead-mesh/fairlead/internal/stats"
)

const (
	// maxExportAnswer bounds a collector's answer.
	maxExportAnswer = 64 << 10
	// attempts is how often a batch is sent before it is dropped.
	attempts = 4
	// firstRetry is the pause before the second attempt; it doubles.
	firstRetry = 200 * time.Millisecond
	// lastExport bounds what is sent when the exporter is closed.
	lastExport = time.Second
)

// exporter sends log records to a collector in batches. It is shared by all
// decision logs that name the same one.
type exporter struct {
	cfg       *otlpConfig
	upstreams filters.Upstreams
	logger    *slog.Logger
	resource  *resourcev1pb.Resource
	queue     chan *logsv1pb.LogRecord
	closing   chan struct{}
	cancel    context.CancelFunc
	done      sync.WaitGroup
	closed    atomic.Bool

	sent, dropped, failed *stats.Counter
}

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
	e := &exporter{
		cfg: c, upstreams: env.Upstreams, logger: logger.With("cluster", c.cluster), resource: resource(env.Node),
		queue: make(chan *logsv1pb.LogRecord, c.queue), closing: make(chan struct{}),
		sent: count("sent"), dropped: count("dropped"), failed: count("failed"),
	}
	ctx, cancel := context.WithCancel(context.Background())
	e.cancel = cancel
	e.done.Go(func() { e.run(ctx) })
	return e
}

// add queues r, or drops it if the queue is full.
func (e *exporter) add(r *logsv1pb.LogRecord) {
	if e.closed.Load() {
		e.dropped.Inc()
		return
	}
	select {
	case e.queue <- r:
	default:
		e.dropped.Inc()
	}
}

// Close sends what is queued, for at most lastExport, and ends the exporter.
func (e *exporter) Close() error {
	e.closed.Store(true)
	close(e.closing)
	t := time.AfterFunc(lastExport, e.cancel)
	e.done.Wait()
	t.Stop()
	e.cancel()
	return nil
}

func (e *exporter) run(ctx context.Context) {
	for {
		var first *logsv1pb.LogRecord
		select {
		case <-e.closing:
			e.drain(ctx)
			return
		case first = <-e.queue:
		}
		batch, end := e.collect(first)
		if end {
			e.drain(ctx, batch...)
			return
		}
		if e.send(ctx, batch) {
			continue
		}
		e.drain(ctx)
		return
	}
}

// collect waits for company of first. end reports that the exporter closes.
func (e *exporter) collect(first *logsv1pb.LogRecord) (batch []*logsv1pb.LogRecord, end bool) {
	batch = append(batch, first)
	t := time.NewTimer(e.cfg.flush)
	defer t.Stop()
	for len(batch) < e.cfg.batch {
		select {
		case r := <-e.queue:
			batch = append(batch, r)
		case <-t.C:
			return batch, false
		case <-e.closing:
			return batch, true
		}
	}
	return batch, false
}

// drain sends batch and what is queued once, until ctx ends.
func (e *exporter) drain(ctx context.Context, batch ...*logsv1pb.LogRecord) {
	for {
		select {
		case r := <-e.queue:
			batch = append(batch, r)
			if len(batch) < e.cfg.batch {
				continue
			}
		default:
			if len(batch) == 0 {
				return
			}
		}
		if err := e.export(ctx, batch); err != nil {
			e.failed.Inc()
			e.dropped.Add(uint64(len(batch)))
			e.logger.Warn("rego: last decisions could not be exported", "records", len(batch), "error", err)
		}
		batch = nil
	}
}

// send exports batch, again if the collector may take it later. It returns
// false if the exporter closes meanwhile; the batch is then gone.
func (e *exporter) send(ctx context.Context, batch []*logsv1pb.LogRecord) bool {
	pause := firstRetry
	for n := 1; ; n++ {
		err := e.export(ctx, batch)
		if err == nil {
			return true
		}
		e.failed.Inc()
		var fatal *refusedError
		if n == attempts || errors.As(err, &fatal) {
			e.dropped.Add(uint64(len(batch)))
			e.logger.Warn("rego: decisions could not be exported and are dropped", "records", len(batch), "attempts", n, "error", err)
			return true
		}
		t := time.NewTimer(pause)
		select {
		case <-e.closing:
			t.Stop()
			e.drain(ctx, batch...)
			return false
		case <-t.C:
		}
		pause *= 2
	}
}

// refusedError is an answer after which a batch is not sent again.
type refusedError struct{ what string }

func (r *refusedError) Error() string { return "the collector answered " + r.what }

// export sends one request.
func (e *exporter) export(ctx context.Context, batch []*logsv1pb.LogRecord) error {
	// LogsData has the form of ExportLogsServiceRequest.
	body, err := proto.Marshal(&logsv1pb.LogsData{ResourceLogs: []*logsv1pb.ResourceLogs{{
		Resource: e.resource,
		ScopeLogs: []*logsv1pb.ScopeLogs{{
			Scope: &commonv1pb.InstrumentationScope{Name: "github.com/fairlead-mesh/fairlead/filters/http/rego"}, LogRecords: batch,
		}},
	}}})
	if err != nil {
		return &refusedError{err.Error()}
	}
	var q message.Header
	q.Add(message.Method, "POST")
	q.Add(message.Scheme, e.cfg.scheme)
	q.Add(message.Authority, e.cfg.authority)
	q.Add(message.Path, e.cfg.path)
	if e.cfg.grpc {
		q.Add("content-type", "application/grpc")
		q.Add("te", "trailers")
		body = append(binary.BigEndian.AppendUint32([]byte{0}, uint32(len(body))), body...)
	} else {
		q.Add("content-type", "application/x-protobuf")
		q.Add("content-length", strconv.Itoa(len(body)))
	}
	q.Add("user-agent", "fairlead")
	if e.cfg.credentials != (credentials{}) {
		v, _, err := e.cfg.credentials.header()
		if err != nil {
			return err
		}
		q.AddField(message.Field{Name: "authorization", Value: v, NeverIndex: true})
	}
	a, err := e.upstreams.RoundTrip(ctx, e.cfg.cluster, &filters.Callout{Header: q, Body: body, Timeout: e.cfg.timeout, HTTP2: e.cfg.grpc}, maxExportAnswer)
	if err != nil {
		return err
	}
	answer, err := e.check(a)
	if err != nil {
		return err
	}
	rejected := min(rejectedRecords(answer), uint64(len(batch)))
	e.dropped.Add(rejected)
	e.sent.Add(uint64(len(batch)) - rejected)
	return nil
}

// check returns the message of a good answer, or why it is none.
func (e *exporter) check(a *filters.CalloutResponse) ([]byte, error) {
	switch {
	case a.Status == 429 || a.Status == 502 || a.Status == 503 || a.Status == 504:
		return nil, fmt.Errorf("the collector answered %d", a.Status)
	case a.Status < 200 || a.Status > 299:
		return nil, &refusedError{strconv.Itoa(a.Status)}
	case !e.cfg.grpc:
		return a.Body, nil
	}
	status, ok := a.Trailers.Lookup("grpc-status")
	if !ok {
		status = a.Header.Get("grpc-status") // trailers only
	}
	switch status {
	case "0":
		if len(a.Body) < 5 {
			return nil, nil
		}
		return a.Body[5:], nil
	case "1", "4", "8", "10", "11", "14", "15", "":
		// CANCELLED, DEADLINE_EXCEEDED, RESOURCE_EXHAUSTED, ABORTED,
		// OUT_OF_RANGE, UNAVAILABLE, DATA_LOSS: OTLP's retryable codes.
		return nil, fmt.Errorf("the collector answered grpc-status %q", status)
	}
	return nil, &refusedError{"grpc-status " + strconv.Quote(status)}
}

// rejectedRecords reads partial_success.rejected_log_records of an
// ExportLogsServiceResponse.
func rejectedRecords(b []byte) uint64 {
	partial := field(b, 1, protowire.BytesType)
	if partial == nil {
		return 0
	}
	inner, n := protowire.ConsumeBytes(partial)
	if n < 0 {
		return 0
	}
	v := field(inner, 1, protowire.VarintType)
	if v == nil {
		return 0
	}
	rejected, n := protowire.ConsumeVarint(v)
	if n < 0 {
		return 0
	}
	return rejected
}

// field returns b from the value of the first field num on, nil if there is
// none.
func field(b []byte, num protowire.Number, typ protowire.Type) []byte {
	for len(b) > 0 {
		got, t, n := protowire.ConsumeTag(b)
		if n < 0 {
			return nil
		}
		if b = b[n:]; got == num && t == typ {
			return b
		}
		if n = protowire.ConsumeFieldValue(got, t, b); n < 0 {
			return nil
		}
		b = b[n:]
	}
	return nil
}
