package otlp

import (
	"encoding/hex"
	"strings"
	"time"

	commonv1pb "go.opentelemetry.io/proto/otlp/common/v1"
)

// Text is a string value, a copy: what a stream holds is overwritten by the next,
// and records live longer. Bytes that are no UTF-8 become U+FFFD, for protobuf
// takes none.
func Text(s string) *commonv1pb.AnyValue {
	return &commonv1pb.AnyValue{Value: &commonv1pb.AnyValue_StringValue{StringValue: Copy(s)}}
}

// Copy returns a copy of s that protobuf takes.
func Copy(s string) string { return strings.Clone(strings.ToValidUTF8(s, "�")) }

// Attribute is a string attribute.
func Attribute(key, value string) *commonv1pb.KeyValue {
	return &commonv1pb.KeyValue{Key: key, Value: Text(value)}
}

// SetAttribute replaces the attribute of v's key in list, or appends v.
func SetAttribute(list []*commonv1pb.KeyValue, v *commonv1pb.KeyValue) []*commonv1pb.KeyValue {
	for i, o := range list {
		if o.GetKey() == v.GetKey() {
			list[i] = v
			return list
		}
	}
	return append(list, v)
}

// UnixNano is t in nanoseconds since 1970, 0 before.
func UnixNano(t time.Time) uint64 { return uint64(max(t.UnixNano(), 0)) }

// ID decodes a trace's or span's ID from hex; anything else than n bytes is
// none.
func ID(s string, n int) []byte {
	if b, err := hex.DecodeString(s); err == nil && len(b) == n {
		return b
	}
	return nil
}
