package tracing

import (
	"strconv"

	commonv1pb "go.opentelemetry.io/proto/otlp/common/v1"

	"github.com/fairlead-mesh/fairlead/internal/format"
	"github.com/fairlead-mesh/fairlead/internal/otlp"
)

// ValueType is CustomTag.ValueType.
type ValueType uint8

// Value types. A text that is not of the type stays a string.
const (
	StringValue ValueType = iota
	IntValue
	DoubleValue
	BoolValue
)

// Tag is a compiled custom tag (envoy.type.tracing.v3.CustomTag). It is
// immutable.
type Tag struct {
	// Name is the attribute's.
	Name string
	Type ValueType
	// value renders the tag; "" is none.
	value func(c *format.Context) string
}

// LiteralTag is a tag of a constant value: literal, environment.
func LiteralTag(name, value string) Tag {
	return Tag{Name: name, value: func(*format.Context) string { return value }}
}

// HeaderTag is the value of a request header, in lower case, or def.
func HeaderTag(name, header, def string) Tag {
	return Tag{Name: name, value: func(c *format.Context) string {
		if c.Request != nil {
			if v, ok := c.Request.Lookup(header); ok {
				return v
			}
		}
		return def
	}}
}

// FormatTag renders f, and is def if that gives nothing.
func FormatTag(name string, f *format.String, def string) Tag {
	return Tag{Name: name, value: func(c *format.Context) string {
		if v := f.Render(c); v != "" {
			return v
		}
		return def
	}}
}

// Attribute returns the tag's attribute, nil if it has no value for c.
func (t *Tag) Attribute(c *format.Context) *commonv1pb.KeyValue {
	v := t.value(c)
	if v == "" {
		return nil
	}
	return &commonv1pb.KeyValue{Key: t.Name, Value: typed(t.Type, v)}
}

func typed(t ValueType, v string) *commonv1pb.AnyValue {
	switch t {
	case IntValue:
		if n, err := strconv.ParseInt(v, 10, 64); err == nil {
			return &commonv1pb.AnyValue{Value: &commonv1pb.AnyValue_IntValue{IntValue: n}}
		}
	case DoubleValue:
		if f, err := strconv.ParseFloat(v, 64); err == nil {
			return &commonv1pb.AnyValue{Value: &commonv1pb.AnyValue_DoubleValue{DoubleValue: f}}
		}
	case BoolValue:
		if v == "true" || v == "false" {
			return &commonv1pb.AnyValue{Value: &commonv1pb.AnyValue_BoolValue{BoolValue: v == "true"}}
		}
	case StringValue:
	}
	return otlp.Text(v)
}
