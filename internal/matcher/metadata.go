package matcher

import (
	"errors"

	"github.com/fairlead-mesh/fairlead/internal/streaminfo"
)

// Value is a compiled envoy.type.matcher.v3.ValueMatcher. It matches a value
// of streaminfo.Metadata, or its absence.
type Value struct {
	match func(v any, present bool) bool
}

// Match reports whether v matches; present tells whether there is a value.
func (m *Value) Match(v any, present bool) bool { return m.match(v, present) }

// NullValue matches the JSON null.
func NullValue() Value {
	return Value{func(v any, present bool) bool { return present && v == nil }}
}

// DoubleValue matches a number in [start, end).
func DoubleValue(start, end float64) Value {
	return Value{func(v any, _ bool) bool { f, ok := v.(float64); return ok && f >= start && f < end }}
}

// DoubleExactValue matches a number.
func DoubleExactValue(want float64) Value {
	return Value{func(v any, _ bool) bool { f, ok := v.(float64); return ok && f == want }}
}

// StringValue matches a string.
func StringValue(s String) Value {
	return Value{func(v any, _ bool) bool { t, ok := v.(string); return ok && s.Match(t) }}
}

// BoolValue matches a boolean.
func BoolValue(want bool) Value {
	return Value{func(v any, _ bool) bool { b, ok := v.(bool); return ok && b == want }}
}

// PresentValue matches if there is a value. As in Envoy, PresentValue(false)
// never matches.
func PresentValue(want bool) Value {
	return Value{func(_ any, present bool) bool { return want && present }}
}

// ListValue matches a list of which at least one element matches.
func ListValue(one Value) Value {
	return Value{func(v any, _ bool) bool {
		l, ok := v.([]any)
		if !ok {
			return false
		}
		for _, e := range l {
			if one.match(e, true) {
				return true
			}
		}
		return false
	}}
}

// OrValue matches if one of the matchers does.
func OrValue(ms ...Value) Value {
	return Value{func(v any, present bool) bool {
		for i := range ms {
			if ms[i].match(v, present) {
				return true
			}
		}
		return false
	}}
}

// Metadata matches metadata: envoy.type.matcher.v3.MetadataMatcher. The zero
// Metadata matches nothing.
type Metadata struct {
	ns     string
	path   []string
	value  Value
	invert bool
}

// NewMetadata compiles a matcher of the value found in namespace ns (Envoy's
// "filter") under path.
func NewMetadata(ns string, path []string, value Value, invert bool) (Metadata, error) {
	switch {
	case ns == "":
		return Metadata{}, errors.New("filter: a metadata matcher needs a namespace")
	case len(path) == 0:
		return Metadata{}, errors.New("path: a metadata matcher needs a path")
	case value.match == nil:
		return Metadata{}, errors.New("value: a metadata matcher needs a value to match")
	}
	return Metadata{ns: ns, path: path, value: value, invert: invert}, nil
}

// Match reports whether md matches. md may be nil.
func (m *Metadata) Match(md *streaminfo.Metadata) bool {
	if m.value.match == nil {
		return false
	}
	v, ok := md.Lookup(m.ns, m.path...)
	return m.value.match(v, ok) != m.invert
}
