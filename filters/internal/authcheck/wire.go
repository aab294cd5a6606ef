package authcheck

import (
	"math"

	"google.golang.org/protobuf/encoding/protowire"
)

// text appends a string field, or nothing if it is empty.
func text(b []byte, field protowire.Number, s string) []byte {
	if s == "" {
		return b
	}
	return protowire.AppendString(protowire.AppendTag(b, field, protowire.BytesType), s)
}

// varint appends a number, or nothing if it is 0.
func varint(b []byte, field protowire.Number, v uint64) []byte {
	if v == 0 {
		return b
	}
	return protowire.AppendVarint(protowire.AppendTag(b, field, protowire.VarintType), v)
}

// entry appends an entry of a map of strings.
func entry(b []byte, field protowire.Number, k, v string) []byte {
	n := 2 + len(k) + len(v) + protowire.SizeVarint(uint64(len(k))) + protowire.SizeVarint(uint64(len(v)))
	b = protowire.AppendVarint(protowire.AppendTag(b, field, protowire.BytesType), uint64(n))
	b = protowire.AppendString(append(b, 1<<3|2), k)
	return protowire.AppendString(append(b, 2<<3|2), v)
}

// nested appends a message field that fill writes.
func nested(b []byte, field protowire.Number, fill func(b []byte) []byte) []byte {
	b = append(protowire.AppendTag(b, field, protowire.BytesType), 0) // most lengths are one byte
	start := len(b)
	b = fill(b)
	n := len(b) - start
	size := protowire.SizeVarint(uint64(n))
	if size > 1 {
		b = append(b, make([]byte, size-1)...)
		copy(b[start+size-1:], b[start:start+n])
	}
	protowire.AppendVarint(b[:start-1], uint64(n))
	return b
}

// appendStruct appends the fields of a google.protobuf.Struct.
func appendStruct(b []byte, m map[string]any) []byte {
	for k, v := range m {
		b = nested(b, 1, func(b []byte) []byte {
			b = text(b, 1, clean(k))
			return nested(b, 2, func(b []byte) []byte { return appendValue(b, v) })
		})
	}
	return b
}

// appendValue appends the field of a google.protobuf.Value. What JSON has no
// value for is null.
func appendValue(b []byte, v any) []byte {
	switch v := v.(type) {
	case bool:
		return protowire.AppendVarint(protowire.AppendTag(b, 4, protowire.VarintType), protowire.EncodeBool(v))
	case string:
		return protowire.AppendString(protowire.AppendTag(b, 3, protowire.BytesType), clean(v))
	case float64:
		return number(b, v)
	case int:
		return number(b, float64(v))
	case int64:
		return number(b, float64(v))
	case uint64:
		return number(b, float64(v))
	case map[string]any:
		return nested(b, 5, func(b []byte) []byte { return appendStruct(b, v) })
	case []any:
		return nested(b, 6, func(b []byte) []byte {
			for _, e := range v {
				b = nested(b, 1, func(b []byte) []byte { return appendValue(b, e) })
			}
			return b
		})
	}
	return protowire.AppendVarint(protowire.AppendTag(b, 1, protowire.VarintType), 0)
}

func number(b []byte, v float64) []byte {
	return protowire.AppendFixed64(protowire.AppendTag(b, 2, protowire.Fixed64Type), math.Float64bits(v))
}
