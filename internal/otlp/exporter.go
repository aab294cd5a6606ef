// Package otlp sends OpenTelemetry data to a collector over a cluster: batches,
// a bounded queue, repetitions, and the forms of its messages. Traces, access
// logs and decision logs share it.
package otlp

import (
	"context"
	"errors"
	"log/slog"
	"sync"
	"sync/atomic"
	"time"

	"github.com/fairlead-mesh/fairlead/filters"
	"github.com/fairlead-mesh/fairlead/internal/format"
	"github.com/fairlead-mesh/fairlead/internal/message"
	"github.com/fairlead-mesh/fairlead/internal/stats"
)

const (
	// maxExportAnswer bounds a collector's answer.
	maxExportAnswer = 64 << 10
	// Attempts is how often a batch is sent before it is dropped.
	Attempts = 4
	// firstRetry is the pause before the second attempt; it doubles.
	firstRetry = 200 * time.Millisecond
	// lastExport bounds what is sent when an exporter is closed.
	lastExport = time.Second
)

// Target is where a collector is and how it is spoken to. It is immutable.
type Target struct {
	// Cluster is called with Scheme, Authority and Path. GRPC says that it is a
	// gRPC call, else the body of a POST is the message.
	Cluster, Scheme, Authority, Path string
	GRPC                             bool
	// Timeout bounds one attempt; 0: nothing does.
	Timeout time.Duration
	// Fields are added to each request.
	Fields []Field
	// Header, if not nil, adds fields to each request.
	Header func(h *message.Header) error
}

// Field is a header field of requests; Value is rendered for each, and refers to
// no stream.
type Field struct {
	Name  string
	Value *format.String
}

// Config is what an Exporter of records of type T works with.
type Config[T any] struct {
	Target Target
	// Flush is how long a record waits for company, Batch how many leave
	// together at most, Queue how many wait.
	Flush        time.Duration
	Batch, Queue int
	// Encode makes the request message of a batch. It is called by one goroutine.
	Encode func(batch []T) ([]byte, error)
	// What names the records in logs: "decisions".
	What      string
	Upstreams filters.Upstreams
	Logger    *slog.Logger
	// Sent and Dropped count records, Failed attempts; nil ones count nothing.
	Sent, Dropped, Failed *stats.Counter
}

// Exporter sends records in batches. Make it with New. It is safe for
// concurrent use.
type Exporter[T any] struct {
	cfg     Config[T]
	queue   chan T
	closing chan struct{}
	cancel  context.CancelFunc
	done    sync.WaitGroup
	closed  atomic.Bool
}

// New starts an exporter, which lives until Close.
func New[T any](c Config[T]) *Exporter[T] {
	e := &Exporter[T]{cfg: c, queue: make(chan T, c.Queue), closing: make(chan struct{})}
	ctx, cancel := context.WithCancel(context.Background()) //nolint:gosec // Close cancels
	e.cancel = cancel
	e.done.Go(func() { e.run(ctx) })
	return e
}

// Add queues r, or drops it if the queue is full or e is closed. It never
// blocks.
func (e *Exporter[T]) Add(r T) {
	if e.closed.Load() {
		e.cfg.Dropped.Inc()
		return
	}
	select {
	case e.queue <- r:
	default:
		e.cfg.Dropped.Inc()
	}
}

// Close sends what is queued, for at most a second, and ends the exporter. It
// may be called again.
func (e *Exporter[T]) Close() error {
	if !e.closed.Swap(true) {
		close(e.closing)
	}
	t := time.AfterFunc(lastExport, e.cancel)
	e.done.Wait()
	t.Stop()
	e.cancel()
	return nil
}

// Finish is Close, for filters.Shared.
func (e *Exporter[T]) Finish() { _ = e.Close() }

func (e *Exporter[T]) run(ctx context.Context) {
	for {
		var first T
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
		if !e.send(ctx, batch) {
			e.drain(ctx)
			return
		}
	}
}

// collect waits for company of first. end reports that the exporter closes.
func (e *Exporter[T]) collect(first T) (batch []T, end bool) {
	batch = append(batch, first)
	t := time.NewTimer(e.cfg.Flush)
	defer t.Stop()
	for len(batch) < e.cfg.Batch {
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
func (e *Exporter[T]) drain(ctx context.Context, batch ...T) {
	for {
		select {
		case r := <-e.queue:
			batch = append(batch, r)
			if len(batch) < e.cfg.Batch {
				continue
			}
		default:
			if len(batch) == 0 {
				return
			}
		}
		if err := e.export(ctx, batch); err != nil {
			e.cfg.Failed.Inc()
			e.cfg.Dropped.Add(uint64(len(batch)))
			e.cfg.Logger.Warn("otlp: last "+e.cfg.What+" could not be exported", "records", len(batch), "error", err)
		}
		batch = nil
	}
}

// send exports batch, again if the collector may take it later. It returns
// false if the exporter closes meanwhile; the batch is then gone.
func (e *Exporter[T]) send(ctx context.Context, batch []T) bool {
	pause := firstRetry
	for n := 1; ; n++ {
		err := e.export(ctx, batch)
		if err == nil {
			return true
		}
		e.cfg.Failed.Inc()
		var fatal *refusedError
		if n == Attempts || errors.As(err, &fatal) {
			e.cfg.Dropped.Add(uint64(len(batch)))
			e.cfg.Logger.Warn("otlp: "+e.cfg.What+" could not be exported and are dropped (is the collector there, and does it take this protocol?)",
				"records", len(batch), "attempts", n, "error", err)
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

// export sends one request.
func (e *Exporter[T]) export(ctx context.Context, batch []T) error {
	body, err := e.cfg.Encode(batch)
	if err != nil {
		return &refusedError{err.Error()}
	}
	q, body, err := e.cfg.Target.request(body)
	if err != nil {
		return err
	}
	t := &e.cfg.Target
	a, err := e.cfg.Upstreams.RoundTrip(ctx, t.Cluster, &filters.Callout{Header: *q, Body: body, Timeout: t.Timeout, HTTP2: t.GRPC}, maxExportAnswer)
	if err != nil {
		return err
	}
	answer, err := t.check(a)
	if err != nil {
		return err
	}
	rejected := min(rejectedRecords(answer), uint64(len(batch)))
	e.cfg.Dropped.Add(rejected)
	e.cfg.Sent.Add(uint64(len(batch)) - rejected)
	return nil
}
