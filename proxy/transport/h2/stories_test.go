package h2

import (
	"fmt"
	"math/rand/v2"
	"slices"
	"strings"
	"testing"

	"golang.org/x/net/http2/hpack"
)

// storyEncoder writes blocks in ways that encoders of all kinds choose, and keeps
// the table that its reader must have afterwards.
type storyEncoder struct {
	r       *rand.Rand
	style   storyStyle
	entries []hpack.HeaderField // newest first
	size    uint32
	max     uint32
	limit   uint32 // what the reader allows
}

// storyStyle is how an encoder chooses.
type storyStyle struct {
	name string
	// index, huffman, static and never are how often, in percent, a literal goes
	// into the table, a string is Huffman-coded, a name or field that a table has is
	// referred to, and a field is never to be indexed.
	index, huffman, refer, never int
	// resize is how often, in percent, a block begins with a change of the table's
	// size, and twice how often with two.
	resize int
	limit  uint32
}

var storyStyles = []storyStyle{
	{"plain literals", 0, 0, 0, 0, 0, 4096},
	{"literals in Huffman's code", 0, 100, 0, 0, 0, 4096},
	{"static names only", 0, 50, 100, 0, 0, 4096},
	{"everything indexed", 100, 100, 100, 0, 0, 4096},
	{"everything indexed, plain", 100, 0, 100, 0, 0, 4096},
	{"now and then", 50, 50, 50, 0, 0, 4096},
	{"never", 20, 50, 50, 60, 0, 4096},
	{"a table of 256", 100, 50, 100, 5, 0, 256},
	{"a table of 64, for one field or none", 100, 50, 100, 0, 0, 64},
	{"no table", 100, 50, 100, 0, 0, 0},
	{"a table that changes its size", 80, 50, 80, 5, 50, 4096},
	{"a table that is emptied again and again", 100, 50, 100, 0, 90, 512},
	{"a large table", 100, 100, 90, 5, 10, 65536},
	{"the same again without reference", 100, 50, 10, 0, 5, 4096},
}

func (e *storyEncoder) often(percent int) bool { return e.r.IntN(100) < percent }

func (e *storyEncoder) resize(max uint32) {
	e.max = max
	for e.size > max {
		e.evict()
	}
}

func (e *storyEncoder) evict() {
	last := e.entries[len(e.entries)-1]
	e.entries = e.entries[:len(e.entries)-1]
	e.size -= last.Size()
}

func (e *storyEncoder) insert(f hpack.HeaderField) {
	for len(e.entries) > 0 && e.size+f.Size() > e.max {
		e.evict()
	}
	if f.Size() <= e.max {
		e.entries = slices.Insert(e.entries, 0, f)
		e.size += f.Size()
	}
}

// find returns the indices of the field and of its name, 0 if there is none.
func (e *storyEncoder) find(f hpack.HeaderField) (whole, name uint64) {
	for i := range staticTable[1:] {
		if s := &staticTable[i+1]; s.name == f.Name {
			name = uint64(i + 1)
			if s.value == f.Value {
				return name, name
			}
		}
	}
	for i, x := range e.entries {
		if x.Name == f.Name {
			name = staticLen + 1 + uint64(i)
			if x.Value == f.Value {
				return name, name
			}
		}
	}
	return 0, name
}

func (e *storyEncoder) text(b []byte, s string) []byte {
	if e.often(e.style.huffman) {
		b = appendInteger(b, 0x80, 7, hpack.HuffmanEncodeLength(s))
		return hpack.AppendHuffmanString(b, s)
	}
	return append(appendInteger(b, 0, 7, uint64(len(s))), s...)
}

// block encodes fields. Of two changes of size the first is b[:two].
func (e *storyEncoder) block(fs []hpack.HeaderField) (b []byte, two int) {
	if e.often(e.style.resize) {
		least := uint32(e.r.IntN(int(e.limit) + 1))
		if e.often(50) { // down, and up again
			e.resize(least)
			b = appendInteger(b, 0x20, 5, uint64(least))
			two = len(b)
			least += uint32(e.r.IntN(int(e.limit-least) + 1))
		}
		e.resize(least)
		b = appendInteger(b, 0x20, 5, uint64(least))
	}
	for _, f := range fs {
		whole, name := e.find(f)
		refer := e.often(e.style.refer)
		if f.Sensitive {
			whole = 0
		}
		if whole > 0 && refer {
			b = appendInteger(b, 0x80, 7, whole)
			continue
		}
		first, prefix := byte(0x00), uint8(4)
		switch {
		case f.Sensitive:
			first = 0x10
		case e.often(e.style.index):
			first, prefix = 0x40, 6
		}
		if name == 0 || !refer {
			b = e.text(append(b, first), f.Name)
		} else {
			b = appendInteger(b, first, prefix, name)
		}
		b = e.text(b, f.Value)
		if first == 0x40 {
			e.insert(f)
		}
	}
	return b, two
}

var storyNames = []string{":method", ":path", ":authority", ":status", "accept", "cookie", "user-agent", "x-request-id", "content-type", "date", "etag", "x-a", "x-b", "grpc-status", "server"}

// storyFields is one head: names repeat, values do or don't.
func storyFields(r *rand.Rand, never int) []hpack.HeaderField {
	fs := make([]hpack.HeaderField, 1+r.IntN(12))
	for i := range fs {
		f := &fs[i]
		f.Name = storyNames[r.IntN(len(storyNames))]
		switch r.IntN(4) {
		case 0:
			f.Value = []string{"GET", "/", "200", "", "text/plain", "gzip, deflate"}[r.IntN(6)]
		case 1:
			f.Value = fmt.Sprint("value-", r.IntN(20))
		case 2:
			f.Value = strings.Repeat(string(rune('!'+r.IntN(94))), r.IntN(300))
		default:
			b := make([]byte, r.IntN(40))
			for j := range b {
				b[j] = byte('!' + r.IntN(94))
			}
			f.Value = string(b)
		}
		f.Sensitive = r.IntN(100) < never
	}
	return fs
}

// Stories of many encoders are read as they were told, by our decoder and by x/net's,
// and leave the table that the encoder thinks they leave: the same entries of the
// same size after each block.
func TestStoriesOfManyEncoders(t *testing.T) {
	const each, blocks = 30, 20
	stories, resized, evicted := 0, 0, 0
	for _, style := range storyStyles {
		for seed := range uint64(each) {
			stories++
			name := fmt.Sprintf("%s, story %d", style.name, seed)
			r := rand.New(rand.NewPCG(seed, uint64(stories)))
			e := &storyEncoder{r: r, style: style, limit: style.limit, max: style.limit}
			d := &decoder{limit: style.limit}
			d.tab.setMax(style.limit)
			x := hpack.NewDecoder(style.limit, nil)
			for n := range blocks {
				fs := storyFields(r, style.never)
				before := len(e.entries)
				b, two := e.block(fs)
				if b[0]&0xe0 == 0x20 {
					resized++
				}
				if len(e.entries) < before {
					evicted++
				}
				// x/net takes two changes of size for an error unless its table is empty.
				if _, err := x.DecodeFull(b[:two]); err != nil {
					t.Fatal(err)
				}
				theirs, err := x.DecodeFull(b[two:])
				if err != nil || !slices.Equal(theirs, fs) {
					t.Fatalf("%s, block %d: x/net reads %v, %v, told was %v", name, n, theirs, err, fs)
				}
				got, err := decodeOwn(t, d, b)
				if err != nil {
					t.Fatalf("%s, block %d: %v", name, n, err)
				}
				own := make([]hpack.HeaderField, len(got))
				for i, f := range got {
					own[i] = hpack.HeaderField{Name: f.Name, Value: f.Value, Sensitive: f.NeverIndex}
				}
				if !slices.Equal(own, fs) {
					t.Fatalf("%s, block %d: read %v, told was %v", name, n, own, fs)
				}
				if d.tab.size != e.size || d.tab.max != e.max || int(d.tab.n) != len(e.entries) {
					t.Fatalf("%s, block %d: a table of %d entries, %d of %d octets, want %d, %d of %d", name, n, d.tab.n, d.tab.size, d.tab.max, len(e.entries), e.size, e.max)
				}
				for i, f := range e.entries {
					if g := d.tab.at(uint32(i)); g.name != f.Name || g.value != f.Value || g.size != f.Size() {
						t.Fatalf("%s, block %d: entry %d is %s: %q of %d, want %v", name, n, i, g.name, g.value, g.size, f)
					}
				}
			}
		}
	}
	t.Logf("%d stories of %d blocks, %d that change the table's size, %d that leave fewer entries", stories, blocks, resized, evicted)
	if stories != 420 || resized < 500 || evicted < 300 {
		t.Errorf("%d stories, %d changes of size, %d blocks that leave fewer entries: they do not tell what they should", stories, resized, evicted)
	}
}
