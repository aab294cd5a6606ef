package otlp

import "testing"

func FuzzCollectorAnswer(f *testing.F) {
	f.Add([]byte{0x0a, 0x02, 0x08, 0x01})
	f.Add([]byte{0x0a, 0xff})
	f.Add([]byte{})
	f.Fuzz(func(_ *testing.T, b []byte) { rejectedRecords(b) })
}
