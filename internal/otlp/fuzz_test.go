package otlp

import (
	"testing"

	"google.golang.org/protobuf/encoding/protowire"
)

// FuzzCollectorAnswer: the number of rejected records that an answer is made
// with is read from it, among other fields; other bytes count nothing before
// they have ended.
func FuzzCollectorAnswer(f *testing.F) {
	f.Add([]byte{0x0a, 0x02, 0x08, 0x01}, uint64(1), "x")
	f.Add([]byte{0x0a, 0xff}, uint64(0), "")
	f.Add([]byte{}, uint64(1<<63), "why")
	f.Fuzz(func(t *testing.T, b []byte, n uint64, why string) {
		if got := rejectedRecords(b); got > 0 && len(b) < 4 {
			t.Fatalf("% x: %d", b, got)
		}
		inner := protowire.AppendString(protowire.AppendTag(nil, 2, protowire.BytesType), why)
		inner = protowire.AppendVarint(protowire.AppendTag(inner, 1, protowire.VarintType), n)
		out := protowire.AppendFixed64(protowire.AppendTag(nil, 9, protowire.Fixed64Type), n)
		out = protowire.AppendBytes(protowire.AppendTag(out, 1, protowire.BytesType), inner)
		if got := rejectedRecords(out); got != n {
			t.Fatalf("% x: %d, want %d", out, got, n)
		}
		if got := rejectedRecords(out[:len(out)-1]); got != 0 {
			t.Fatalf("% x, cut short: %d", out, got)
		}
	})
}
