package otlp

import (
	"encoding/binary"
	"fmt"
	"strconv"

	"google.golang.org/protobuf/encoding/protowire"

	"github.com/fairlead-mesh/fairlead/filters"
	"github.com/fairlead-mesh/fairlead/internal/format"
	"github.com/fairlead-mesh/fairlead/internal/message"
)

// Paths of the gRPC calls.
const (
	LogsExport   = "/opentelemetry.proto.collector.logs.v1.LogsService/Export"
	TracesExport = "/opentelemetry.proto.collector.trace.v1.TraceService/Export"
)

// request makes the head and the framed body of a request with message body.
func (t *Target) request(body []byte) (*message.Header, []byte, error) {
	q := &message.Header{}
	q.Add(message.Method, "POST")
	q.Add(message.Scheme, t.Scheme)
	q.Add(message.Authority, t.Authority)
	q.Add(message.Path, t.Path)
	if t.GRPC {
		q.Add("content-type", "application/grpc")
		q.Add("te", "trailers")
		body = append(binary.BigEndian.AppendUint32([]byte{0}, uint32(len(body))), body...)
	} else {
		q.Add("content-type", "application/x-protobuf")
		q.Add("content-length", strconv.Itoa(len(body)))
	}
	q.Add("user-agent", "fairlead")
	for _, f := range t.Fields {
		q.Set(f.Name, f.Value.Render(&format.Context{}))
	}
	if t.Header != nil {
		if err := t.Header(q); err != nil {
			return nil, nil, err
		}
	}
	return q, body, nil
}

// refusedError is an answer after which a batch is not sent again.
type refusedError struct{ what string }

// Error implements error.
func (r *refusedError) Error() string { return "the collector answered " + r.what }

// check returns the message of a good answer, or why it is none.
func (t *Target) check(a *filters.CalloutResponse) ([]byte, error) {
	switch {
	case a.Status == 429 || a.Status == 502 || a.Status == 503 || a.Status == 504:
		return nil, fmt.Errorf("the collector answered %d", a.Status)
	case a.Status < 200 || a.Status > 299:
		return nil, &refusedError{strconv.Itoa(a.Status)}
	case !t.GRPC:
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
// ExportLogsServiceResponse, or rejected_spans of an ExportTraceServiceResponse:
// they have the same place.
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
