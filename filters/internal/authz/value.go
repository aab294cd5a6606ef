package authz

import (
	"errors"
	"fmt"

	"github.com/fairlead-mesh/fairlead/internal/matcher"
)

func compileMetadata(m *Metadata) (match, error) {
	vm, err := newValue(&m.Value)
	if err != nil {
		return nil, err
	}
	ns, path, invert, route := m.Namespace, m.Path, m.Invert, m.Route
	if route {
		return func(in Input) bool {
			if in.Route == nil {
				return false
			}
			v, ok := in.Route.Lookup(ns, path...)
			return vm.Match(v, ok) != invert
		}, nil
	}
	return func(in Input) bool {
		v, ok := dynamic(in, ns, path)
		return vm.Match(v, ok) != invert
	}, nil
}

// dynamic reads dynamic metadata. A connection's own metadata (what crossed an
// internal hop) is visible to TCP filters only, as in Envoy.
func dynamic(in Input, ns string, path []string) (any, bool) {
	v, ok := in.Info.Metadata.Lookup(ns, path...)
	if !ok && in.Request == nil {
		return in.Info.Conn.Metadata.Lookup(ns, path...)
	}
	return v, ok
}

func newValue(v *Value) (matcher.Value, error) {
	switch v.Kind {
	case ValueNull:
		return matcher.NullValue(), nil
	case ValueNumber:
		return matcher.DoubleExactValue(v.Min), nil
	case ValueRange:
		return matcher.DoubleValue(v.Min, v.Max), nil
	case ValueString:
		s, err := newString(v.String)
		return matcher.StringValue(s), err
	case ValueBool:
		return matcher.BoolValue(v.Bool), nil
	case ValuePresent:
		return matcher.PresentValue(v.Bool), nil
	case ValueOneOf:
		if len(v.Values) != 1 {
			return matcher.Value{}, errors.New("list_match without one_of")
		}
		one, err := newValue(&v.Values[0])
		return matcher.ListValue(one), err
	case ValueOr:
		ms := make([]matcher.Value, len(v.Values))
		for i := range v.Values {
			var err error
			if ms[i], err = newValue(&v.Values[i]); err != nil {
				return matcher.Value{}, err
			}
		}
		return matcher.OrValue(ms...), nil
	}
	return matcher.Value{}, fmt.Errorf("value match kind %d is not supported", v.Kind)
}

// MatchMetadata compiles m alone, for filters that are switched on by metadata
// (ext_authz's filter_enabled_metadata).
func MatchMetadata(m Metadata) (func(in Input) bool, error) { return compileMetadata(&m) }
