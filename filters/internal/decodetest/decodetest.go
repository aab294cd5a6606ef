// Package decodetest holds decoders of configuration to the two forms in which
// it comes, for fuzz targets.
package decodetest

import (
	"reflect"
	"regexp"
	"testing"

	"google.golang.org/protobuf/encoding/protojson"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/reflect/protoreflect"
	"google.golang.org/protobuf/reflect/protoregistry"

	"github.com/fairlead-mesh/fairlead/filters"
)

// Decoder is Factory.Decode or Factory.DecodeOverride.
type Decoder = func(filters.Any, *filters.Decoding) (filters.Config, error)

// Forms decodes a, and holds decode to what proto says about it: what is no
// message of a's type is refused; and the message written in the wire form and
// as JSON gives an equal configuration, or is refused, as a was. a.TypeURL must
// be set; for a type that is not linked only determinism is checked.
func Forms(tb testing.TB, a filters.Any, decode Decoder) (filters.Config, error) {
	tb.Helper()
	c, err := decode(a, nil)
	var d filters.Decoding
	again, err2 := decode(a, &d)
	same(tb, "the second time", c, again, err, err2, true)
	mt, notFound := protoregistry.GlobalTypes.FindMessageByURL(a.TypeURL)
	if notFound != nil {
		return c, err
	}
	m := mt.New().Interface()
	var invalid error
	if a.JSON {
		invalid = protojson.Unmarshal(a.Value, m)
	} else {
		invalid = proto.Unmarshal(a.Value, m)
	}
	if invalid != nil {
		if err == nil {
			tb.Fatalf("accepts what is no %s: %v", a.TypeURL, invalid)
		}
		return c, err
	}
	plain, opaque := inside(m.ProtoReflect())
	wire, werr := proto.MarshalOptions{Deterministic: true}.Marshal(m)
	if werr == nil {
		w, err2 := decode(filters.Any{TypeURL: a.TypeURL, Value: wire}, nil)
		same(tb, "in the wire form", c, w, err, err2, plain && !opaque)
	}
	if js, jerr := protojson.Marshal(m); jerr == nil && plain {
		j, err2 := decode(filters.Any{TypeURL: a.TypeURL, Value: js, JSON: true}, nil)
		same(tb, "as JSON", c, j, err, err2, !opaque)
	}
	return c, err
}

func same(tb testing.TB, how string, a, b filters.Config, err1, err2 error, deep bool) {
	tb.Helper()
	if (err1 == nil) != (err2 == nil) {
		tb.Fatalf("%v, and %s %v", err1, how, err2)
	}
	if err1 == nil && deep && !equal(reflect.ValueOf(a), reflect.ValueOf(b), 0) {
		tb.Fatalf("%+v, and %s %+v", a, how, b)
	}
}

// inside tells whether all fields of m are known, and whether one is an Any,
// which has more than one form.
func inside(m protoreflect.Message) (known, opaque bool) {
	known = len(m.GetUnknown()) == 0
	opaque = m.Descriptor().FullName() == "google.protobuf.Any"
	look := func(v protoreflect.Value) {
		k, o := inside(v.Message())
		known, opaque = known && k, opaque || o
	}
	m.Range(func(f protoreflect.FieldDescriptor, v protoreflect.Value) bool {
		switch {
		case f.IsMap() && f.MapValue().Message() != nil:
			v.Map().Range(func(_ protoreflect.MapKey, v protoreflect.Value) bool { look(v); return true })
		case f.IsMap() || f.Message() == nil:
		case f.IsList():
			for i := range v.List().Len() {
				look(v.List().Get(i))
			}
		default:
			look(v)
		}
		return true
	})
	return known, opaque
}

// deepest bounds the comparison of compiled parts that refer to themselves.
const deepest = 24

// equal is reflect.DeepEqual but for functions, which are as good as their
// neighbours, and regular expressions, which are their source.
func equal(a, b reflect.Value, depth int) bool {
	if a.IsValid() != b.IsValid() || !a.IsValid() || depth > deepest {
		return a.IsValid() == b.IsValid()
	}
	if a.Type() != b.Type() {
		return false
	}
	depth++
	switch a.Kind() { //nolint:exhaustive // the others are compared as they are
	case reflect.Func, reflect.Chan, reflect.UnsafePointer:
		return a.IsNil() == b.IsNil()
	case reflect.Pointer, reflect.Interface:
		if a.IsNil() || b.IsNil() {
			return a.IsNil() == b.IsNil()
		}
		if a.Type() == reflect.TypeFor[*regexp.Regexp]() {
			return equal(a.Elem().FieldByName("expr"), b.Elem().FieldByName("expr"), depth)
		}
		return equal(a.Elem(), b.Elem(), depth)
	case reflect.Struct, reflect.Slice, reflect.Array, reflect.Map:
		return equalParts(a, b, depth)
	case reflect.Float32, reflect.Float64:
		x, y := a.Float(), b.Float()
		return x == y || x != x && y != y
	}
	return a.Equal(b)
}

// equalParts compares what a and b, of one type, are made of.
func equalParts(a, b reflect.Value, depth int) bool {
	switch a.Kind() { //nolint:exhaustive // equal's callers
	case reflect.Struct:
		for i := range a.NumField() {
			if !equal(a.Field(i), b.Field(i), depth) {
				return false
			}
		}
		return true
	case reflect.Map:
		for _, k := range a.MapKeys() {
			if !equal(a.MapIndex(k), b.MapIndex(k), depth) {
				return false
			}
		}
		return a.Len() == b.Len()
	}
	if a.Len() != b.Len() {
		return false
	}
	for i := range a.Len() {
		if !equal(a.Index(i), b.Index(i), depth) {
			return false
		}
	}
	return true
}
