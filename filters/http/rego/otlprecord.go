package rego

import (
	"encoding/json"
	"maps"
	"slices"
	"strconv"
	"time"

	commonv1pb "go.opentelemetry.io/proto/otlp/common/v1"
	logsv1pb "go.opentelemetry.io/proto/otlp/logs/v1"
	resourcev1pb "go.opentelemetry.io/proto/otlp/resource/v1"

	"github.com/fairlead-mesh/fairlead/filters"
	"github.com/fairlead-mesh/fairlead/internal/otlp"
)

// eventName is what OpenTelemetry's event_name of a decision is.
const eventName = "fairlead.policy.decision"

// record makes a log record of an event: the event is its body, and what one
// looks for are its attributes.
func record(event map[string]any, now time.Time, traceID, spanID string) *logsv1pb.LogRecord {
	r := &logsv1pb.LogRecord{
		TimeUnixNano: otlp.UnixNano(now), ObservedTimeUnixNano: otlp.UnixNano(now),
		SeverityNumber: logsv1pb.SeverityNumber_SEVERITY_NUMBER_INFO, SeverityText: "INFO",
		EventName: eventName, Body: anyValue(event),
		TraceId: otlp.ID(traceID, 16), SpanId: otlp.ID(spanID, 8),
	}
	if pass, _ := event["passed"].(bool); !pass {
		r.SeverityNumber, r.SeverityText = logsv1pb.SeverityNumber_SEVERITY_NUMBER_WARN, "WARN"
	}
	for _, k := range []string{"policy", "outcome", "passed", "dry_run", "decision_id", "source_principal"} {
		if v, ok := event[k]; ok {
			r.Attributes = append(r.Attributes, &commonv1pb.KeyValue{Key: "fairlead." + k, Value: anyValue(v)})
		}
	}
	return r
}

// anyValue converts what JSON can hold.
func anyValue(v any) *commonv1pb.AnyValue {
	switch v := v.(type) {
	case string:
		return otlp.Text(v)
	case bool:
		return &commonv1pb.AnyValue{Value: &commonv1pb.AnyValue_BoolValue{BoolValue: v}}
	case float64:
		return &commonv1pb.AnyValue{Value: &commonv1pb.AnyValue_DoubleValue{DoubleValue: v}}
	case json.Number:
		if n, err := strconv.ParseInt(string(v), 10, 64); err == nil {
			return &commonv1pb.AnyValue{Value: &commonv1pb.AnyValue_IntValue{IntValue: n}}
		}
		if f, err := v.Float64(); err == nil {
			return &commonv1pb.AnyValue{Value: &commonv1pb.AnyValue_DoubleValue{DoubleValue: f}}
		}
		return otlp.Text(string(v))
	case map[string]any:
		kvs := &commonv1pb.KeyValueList{}
		for _, k := range slices.Sorted(maps.Keys(v)) {
			kvs.Values = append(kvs.Values, &commonv1pb.KeyValue{Key: k, Value: anyValue(v[k])})
		}
		return &commonv1pb.AnyValue{Value: &commonv1pb.AnyValue_KvlistValue{KvlistValue: kvs}}
	case []any:
		a := &commonv1pb.ArrayValue{}
		for _, e := range v {
			a.Values = append(a.Values, anyValue(e))
		}
		return &commonv1pb.AnyValue{Value: &commonv1pb.AnyValue_ArrayValue{ArrayValue: a}}
	case []string:
		a := &commonv1pb.ArrayValue{}
		for _, e := range v {
			a.Values = append(a.Values, otlp.Text(e))
		}
		return &commonv1pb.AnyValue{Value: &commonv1pb.AnyValue_ArrayValue{ArrayValue: a}}
	}
	return &commonv1pb.AnyValue{}
}

// resource says who logs.
func resource(n *filters.Node) *resourcev1pb.Resource {
	r := &resourcev1pb.Resource{}
	add := func(k, v string) {
		if v != "" {
			r.Attributes = append(r.Attributes, &commonv1pb.KeyValue{Key: k, Value: otlp.Text(v)})
		}
	}
	if n == nil {
		n = &filters.Node{}
	}
	name := n.WorkloadName
	if name == "" {
		name = "fairlead"
	}
	add("service.name", name)
	add("service.namespace", n.Namespace)
	add("service.instance.id", n.ID)
	add("k8s.namespace.name", n.Namespace)
	add("k8s.cluster.name", n.ClusterID)
	return r
}
