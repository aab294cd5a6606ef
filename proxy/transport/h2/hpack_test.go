package h2

import (
	"bytes"
	"hash/maphash"
	"math/bits"
	"math/rand/v2"
	"strings"
	"testing"

	"golang.org/x/net/http2/hpack"

	"github.com/fairlead-mesh/fairlead/internal/message"
	"github.com/fairlead-mesh/fairlead/internal/sweep"
)

// decodeOwn decodes blocks with one decoder and returns the fields of each.
func decodeOwn(t testing.TB, d *decoder, block []byte) ([]message.Field, error) {
	t.Helper()
	var h message.Header
	var b head
	b.reset(&h, sectionAny, 1<<30, 1<<30)
	if err := d.decode(block, &b); err != nil {
		return nil, err
	}
	var fs []message.Field
	for i := range h.Len() {
		f := h.At(i)
		fs = append(fs, message.Field{Name: strings.Clone(f.Name), Value: strings.Clone(f.Value), NeverIndex: f.NeverIndex})
	}
	return fs, nil
}

func newTestDecoder() *decoder {
	d := &decoder{limit: defaultTableSize}
	d.tab.max = defaultTableSize
	return d
}

var someNames = []string{"x-a", "x-b", "content-type", "user-agent", "x-request-id", "grpc-status", "accept", "authorization", "date", "server", "etag", "via"}

func randomValue(r *rand.Rand) string {
	switch r.IntN(4) {
	case 0:
		return "v" + string(rune('a'+r.IntN(4)))
	case 1:
		b := make([]byte, r.IntN(80))
		for i := range b {
			b[i] = byte('!' + r.IntN(90))
		}
		return string(b)
	case 2:
		return "0123456789abcdef"[:r.IntN(17)]
	}
	return ""
}

func TestTheEncoderIsUnderstoodByXNetAndByOurDecoder(t *testing.T) {
	r := rand.New(rand.NewPCG(3, 4))
	enc := &encoder{}
	enc.tab.max = defaultTableSize
	var want, got []hpack.HeaderField
	theirs := hpack.NewDecoder(defaultTableSize, func(f hpack.HeaderField) { got = append(got, f) })
	ours := newTestDecoder()
	for block := range 3000 {
		want, got = want[:0], got[:0]
		switch r.IntN(50) {
		case 0:
			enc.setPeerLimit(uint32(r.IntN(5000)))
		case 1:
			enc.setPeerLimit(0)
			enc.setPeerLimit(uint32(r.IntN(5000)))
		case 2:
			enc.restart()
		}
		out := enc.begin(nil)
		for range r.IntN(12) {
			f := hpack.HeaderField{Name: someNames[r.IntN(len(someNames))], Value: randomValue(r), Sensitive: r.IntN(10) == 0}
			if r.IntN(5) == 0 {
				e := &staticTable[1+r.IntN(len(staticTable)-1)]
				f.Name, f.Value = e.name, e.value
				if f.Name[0] == ':' && f.Value == "" || classify(f.Name) == kindConnection {
					continue
				}
			}
			var ok bool
			if out, ok = enc.field(out, f.Name, f.Value, f.Sensitive); !ok {
				t.Fatalf("refused %q: %q", f.Name, f.Value)
			}
			if strings.HasSuffix(f.Name, "authorization") {
				f.Sensitive = true
			}
			want = append(want, f)
		}
		if _, err := theirs.Write(out); err != nil {
			t.Fatalf("block %d: %v", block, err)
		}
		if err := theirs.Close(); err != nil {
			t.Fatalf("block %d: %v", block, err)
		}
		own, err := decodeOwn(t, ours, out)
		if err != nil {
			t.Fatalf("block %d: %v", block, err)
		}
		if len(got) != len(want) || len(own) != len(want) {
			t.Fatalf("block %d: %d and %d fields, want %d", block, len(got), len(own), len(want))
		}
		for i, w := range want {
			if got[i] != w {
				t.Fatalf("block %d: x/net read %+v, want %+v", block, got[i], w)
			}
			if o := own[i]; o.Name != w.Name || o.Value != w.Value || o.NeverIndex != w.Sensitive {
				t.Fatalf("block %d: own read %+v, want %+v", block, o, w)
			}
		}
	}
}

func TestRepeatedFieldsBecomeOneOctet(t *testing.T) {
	enc := &encoder{}
	enc.tab.max = defaultTableSize
	fields := [][2]string{{":method", "POST"}, {":path", "/pkg.Service/Method"}, {"content-type", "application/grpc"}, {"x-tenant", "blue"}}
	// Two fields may have the same place by the seed of this process.
	place := func(f [2]string) uint64 {
		return (maphash.String(hashSeed, f[0]) ^ bits.RotateLeft64(maphash.String(hashSeed, f[1]), 17)) & 127
	}
	for place(fields[1]) == place(fields[2]) {
		fields[1][1] += "x"
	}
	for place(fields[3]) == place(fields[1]) || place(fields[3]) == place(fields[2]) {
		fields[3][1] += "x"
	}
	var out []byte
	for range 2 {
		out = enc.begin(out[:0])
		for _, f := range fields {
			out, _ = enc.field(out, f[0], f[1], false)
		}
	}
	if len(out) != len(fields) {
		t.Errorf("second block takes %d octets for %d fields", len(out), len(fields))
	}
}

func TestANameWhoseValuesNeverRepeatDoesNotFillTheTable(t *testing.T) {
	enc := &encoder{}
	enc.tab.max = defaultTableSize
	var out []byte
	for i := range 1000 {
		out, _ = enc.field(out[:0], "x-request-id", strings.Repeat(string(rune('a'+i%26)), 1+i%37)+string(rune('a'+i/26%26)), false)
	}
	if enc.tab.added > 40 {
		t.Errorf("%d insertions", enc.tab.added)
	}
	if a, ok := enc.field(nil, "x-request-id", "one more", false); !ok || len(a) > 12 {
		t.Errorf("name is not indexed: % x", a)
	}
}

func TestFieldsThatMayNotBeSentAreRefused(t *testing.T) {
	for _, f := range [][2]string{
		{"", "v"},
		{"A", "v"},
		{"a b", "v"},
		{"a:", "v"},
		{"a", "x\ny"},
		{"a", "x\r"},
		{"a", "\x00"},
		{"a\x00", "v"},
		{"\x80", "v"},
		{":path", ""},
		{":path", "/a b"},
		{":path", "/\x80"},
		{":authority", "a@b"},
		{":method", "GE T"},
		{"a", "\x7f"},
	} {
		enc := &encoder{}
		enc.tab.max = defaultTableSize
		if out, ok := enc.field(nil, f[0], f[1], false); ok {
			t.Errorf("%q: %q was encoded: % x", f[0], f[1], out)
		}
	}
}

func TestInvalidBlocksAreCompressionErrors(t *testing.T) {
	long := bytes.Repeat([]byte{0xff}, 8)
	cases := map[string][]byte{
		"index 0":                              {0x80},
		"index beyond the tables":              {0xff, 0x00},
		"literal with an index beyond":         {0x7f, 0x20, 0x01, 'a'},
		"integer without end":                  append([]byte{0xff}, long...),
		"integer cut short":                    {0xff, 0x80},
		"name cut short":                       {0x40, 0x05, 'a'},
		"value missing":                        {0x40, 0x01, 'a'},
		"value cut short":                      {0x40, 0x01, 'a', 0x02, 'b'},
		"size update after a field":            {0x82, 0x20},
		"size update above the limit":          {0x3f, 0xe2, 0x1f},
		"three size updates":                   {0x20, 0x3f, 0xe1, 0x1f, 0x20, 0x82},
		"Huffman padding longer than 7 bits":   {0x40, 0x01, 'a', 0x82, 0x07, 0xff},
		"Huffman padding that is not all ones": {0x40, 0x01, 'a', 0x81, 0x18},
		"Huffman EOS in the string":            {0x40, 0x01, 'a', 0x84, 0xff, 0xff, 0xff, 0xff},
	}
	if len(cases) != 14 {
		t.Fatal(len(cases))
	}
	for name, b := range cases {
		if fs, err := decodeOwn(t, newTestDecoder(), b); err == nil {
			t.Errorf("%s: decoded as %v", name, fs)
		}
	}
}

func TestStringsOutliveTheEvictionOfTheirEntry(t *testing.T) {
	d := newTestDecoder()
	var h message.Header
	var b head
	b.reset(&h, sectionRequest, 1<<20, 1000)
	block := []byte{0x40, 3, 'x', '-', 'a', 3, 'o', 'n', 'e'}
	if err := d.decode(block, &b); err != nil {
		t.Fatal(err)
	}
	for i := range 200 {
		var scratch message.Header
		var b2 head
		b2.reset(&scratch, sectionRequest, 1<<20, 1000)
		v := bytes.Repeat([]byte{byte('a' + i%26)}, 100)
		if err := d.decode(append([]byte{0x40, 3, 'x', '-', 'b', 100}, v...), &b2); err != nil {
			t.Fatal(err)
		}
	}
	if f := h.At(0); f.Name != "x-a" || f.Value != "one" {
		t.Errorf("got %+v", f)
	}
}

func TestHpackDoesNotAllocateInTheSteadyState(t *testing.T) {
	enc := &encoder{}
	enc.tab.max = defaultTableSize
	d := newTestDecoder()
	var h message.Header
	var b head
	var out []byte
	n := 0
	ids := make([]string, 64)
	for i := range ids {
		ids[i] = strings.Repeat(string(rune('a'+i%26)), 20) + string(rune('0'+i/26))
	}
	run := func() {
		out = enc.begin(out[:0])
		for _, f := range [][2]string{
			{":method", "POST"},
			{":scheme", "http"},
			{":authority", "backend.default.svc.cluster.local"},
			{":path", "/pkg.Service/Method"},
			{"content-type", "application/grpc"},
			{"te", "trailers"},
			{"x-custom", "abc"},
			{"x-request-id", ids[n%64]},
		} {
			out, _ = enc.field(out, f[0], f[1], false)
		}
		n++
		b.reset(&h, sectionRequest, 60<<10, 100)
		if err := d.decode(out, &b); err != nil {
			t.Fatal(err)
		}
		b.finishRequest(true)
		if b.fault != "" || h.Len() != 8 {
			t.Fatal(b.fault, h.Len())
		}
	}
	for range 100 {
		run()
	}
	if a := testing.AllocsPerRun(1000, run); a > 0 {
		t.Errorf("%v allocations a request", a)
	}
}

// FuzzHpackDecodeAgreesWithXNet: two blocks are decoded, by one table, to the
// fields that x/net finds, or both refuse them.
func FuzzHpackDecodeAgreesWithXNet(f *testing.F) {
	f.Add([]byte{0x82, 0x86, 0x84, 0x41, 0x8c, 0xf1, 0xe3, 0xc2, 0xe5, 0xf2, 0x3a, 0x6b, 0xa0, 0xab, 0x90, 0xf4, 0xff}, []byte{0xbe})
	f.Add([]byte{0x40, 3, 'x', '-', 'a', 3, 'o', 'n', 'e'}, []byte{0xbe, 0x3f, 0x01, 0x20})
	f.Add([]byte{0x20, 0x3f, 0xe1, 0x1f, 0x10, 1, 'a', 0}, []byte{0x0f, 0x2f, 1, 'b'})
	f.Add([]byte{0x40, 0x01, 'a', 0x84, 0xff, 0xff, 0xff, 0xff}, []byte{})
	f.Add([]byte{0x40, 0x01, 'a', 0x01, 'b'}, []byte{0x3f, 0x30, 0x3f, 0x30})
	f.Fuzz(sweep.Around(f, func(t *testing.T, one, two []byte) {
		var want []hpack.HeaderField
		theirs := hpack.NewDecoder(defaultTableSize, func(f hpack.HeaderField) { want = append(want, f) })
		ours := newTestDecoder()
		for _, block := range [][]byte{one, two} {
			want = want[:0]
			_, err := theirs.Write(block)
			if err == nil {
				err = theirs.Close()
			}
			var h message.Header
			var b head
			b.reset(&h, sectionAny, 1<<30, 1<<30)
			errOwn := ours.decode(block, &b)
			if errOwn == errHpackUpdate { //nolint:errorlint // returned as it is
				return // x/net lets misplaced updates pass while its table is empty
			}
			if err != nil && errOwn == nil && leadingUpdates(block) > 1 && strings.Contains(err.Error(), "size update MUST") {
				return // x/net lets a block begin with one update, RFC 7541 (section 4.2) with two
			}
			if (err == nil) != (errOwn == nil) {
				t.Fatalf("% x: x/net %v, own %v", block, err, errOwn)
			}
			if err != nil {
				return
			}
			sweep.Accepted()
			if b.count != len(want) {
				t.Fatalf("% x: %d fields, want %d", block, b.count, len(want))
			}
			for i, w := range want {
				g := h.At(i)
				if g.Name != w.Name || g.Value != strings.Trim(w.Value, " \t") {
					t.Fatalf("% x: field %d is %+v, want %+v", block, i, g, w)
				}
			}
		}
	}))
}

// leadingUpdates counts the updates of the table's size that b begins with.
func leadingUpdates(b []byte) (n int) {
	for ; len(b) > 0 && b[0]&0xe0 == 0x20; n++ {
		long := b[0]&0x1f == 0x1f
		for b = b[1:]; long && len(b) > 0; b = b[1:] {
			long = b[0]&0x80 != 0
		}
	}
	return n
}
