package otlp

import (
	"errors"
	"fmt"

	commonv1pb "go.opentelemetry.io/proto/otlp/common/v1"

	"github.com/fairlead-mesh/fairlead/internal/format"
)

// Template is a compiled value whose strings are format strings; other values
// are constants. It is immutable.
type Template struct {
	value func(c *format.Context) *commonv1pb.AnyValue
}

// Render returns the value for c, which keeps nothing of c. Operators without a
// value are "-".
func (t *Template) Render(c *format.Context) *commonv1pb.AnyValue { return t.value(c) }

// AttributeTemplate is one attribute.
type AttributeTemplate struct {
	Key   string
	Value *Template
}

// maxTemplateDepth bounds nesting.
const maxTemplateDepth = 32

// CompileValue compiles v.
func CompileValue(v *commonv1pb.AnyValue) (*Template, error) { return compileValue(v, 0) }

func compileValue(v *commonv1pb.AnyValue, depth int) (*Template, error) {
	if depth > maxTemplateDepth {
		return nil, errors.New("nested too deep")
	}
	switch v := v.GetValue().(type) {
	case *commonv1pb.AnyValue_StringValue:
		f, err := format.Compile(v.StringValue)
		if err != nil {
			return nil, err
		}
		return &Template{func(c *format.Context) *commonv1pb.AnyValue { return Text(string(f.Append(nil, c))) }}, nil
	case *commonv1pb.AnyValue_ArrayValue:
		var list []*Template
		for i, e := range v.ArrayValue.GetValues() {
			t, err := compileValue(e, depth+1)
			if err != nil {
				return nil, fmt.Errorf("array_value.values[%d]: %w", i, err)
			}
			list = append(list, t)
		}
		return &Template{func(c *format.Context) *commonv1pb.AnyValue {
			a := &commonv1pb.ArrayValue{}
			for _, t := range list {
				a.Values = append(a.Values, t.value(c))
			}
			return &commonv1pb.AnyValue{Value: &commonv1pb.AnyValue_ArrayValue{ArrayValue: a}}
		}}, nil
	case *commonv1pb.AnyValue_KvlistValue:
		list, err := compileAttributes(v.KvlistValue, depth+1)
		if err != nil {
			return nil, fmt.Errorf("kvlist_value.%w", err)
		}
		return &Template{func(c *format.Context) *commonv1pb.AnyValue {
			return &commonv1pb.AnyValue{Value: &commonv1pb.AnyValue_KvlistValue{KvlistValue: &commonv1pb.KeyValueList{Values: RenderAttributes(list, c)}}}
		}}, nil
	}
	return &Template{func(*format.Context) *commonv1pb.AnyValue { return v }}, nil
}

// CompileAttributes compiles the values of m.
func CompileAttributes(m *commonv1pb.KeyValueList) ([]AttributeTemplate, error) {
	return compileAttributes(m, 0)
}

func compileAttributes(m *commonv1pb.KeyValueList, depth int) ([]AttributeTemplate, error) {
	var out []AttributeTemplate
	for i, kv := range m.GetValues() {
		t, err := compileValue(kv.GetValue(), depth)
		if err != nil {
			return nil, fmt.Errorf("values[%d].value: %w", i, err)
		}
		out = append(out, AttributeTemplate{kv.GetKey(), t})
	}
	return out, nil
}

// RenderAttributes renders list for c.
func RenderAttributes(list []AttributeTemplate, c *format.Context) []*commonv1pb.KeyValue {
	out := make([]*commonv1pb.KeyValue, 0, len(list))
	for _, a := range list {
		out = append(out, &commonv1pb.KeyValue{Key: a.Key, Value: a.Value.value(c)})
	}
	return out
}
