package h2

import (
	"encoding/hex"
	"slices"
	"strings"
	"testing"

	"golang.org/x/net/http2/hpack"
)

// The examples of RFC 7541 appendix C. Blocks of one example share a table.
type rfcExample struct {
	name   string
	limit  uint32
	blocks []rfcBlock
}

type rfcBlock struct {
	hex string
	// fields are "name: value", those that are never indexed end in " (never)".
	fields []string
	// table is the dynamic table after the block, newest entry first, and size
	// its size by section 4.1.
	table []string
	size  uint32
}

const (
	rfcDate1    = "date: Mon, 21 Oct 2013 20:13:21 GMT"
	rfcDate2    = "date: Mon, 21 Oct 2013 20:13:22 GMT"
	rfcLocation = "location: https://www.example.com"
	rfcCookie   = "set-cookie: foo=ASDJKHQKBZXOQWEOPIUAXQWEOIU; max-age=3600; version=1"
	rfcHost     = ":authority: www.example.com"
)

// rfcRequests are what the blocks of C.3 and C.4 mean.
func rfcRequests(blocks ...string) []rfcBlock {
	return []rfcBlock{
		{blocks[0], []string{":method: GET", ":scheme: http", ":path: /", rfcHost}, []string{rfcHost}, 57},
		{
			blocks[1],
			[]string{":method: GET", ":scheme: http", ":path: /", rfcHost, "cache-control: no-cache"},
			[]string{"cache-control: no-cache", rfcHost},
			110,
		},
		{
			blocks[2],
			[]string{":method: GET", ":scheme: https", ":path: /index.html", rfcHost, "custom-key: custom-value"},
			[]string{"custom-key: custom-value", "cache-control: no-cache", rfcHost},
			164,
		},
	}
}

// rfcResponses are what the blocks of C.5 and C.6 mean.
func rfcResponses(blocks ...string) []rfcBlock {
	const private = "cache-control: private"
	return []rfcBlock{
		{blocks[0], []string{":status: 302", private, rfcDate1, rfcLocation}, []string{rfcLocation, rfcDate1, private, ":status: 302"}, 222},
		{blocks[1], []string{":status: 307", private, rfcDate1, rfcLocation}, []string{":status: 307", rfcLocation, rfcDate1, private}, 222},
		{
			blocks[2],
			[]string{":status: 200", private, rfcDate2, rfcLocation, "content-encoding: gzip", rfcCookie},
			[]string{rfcCookie, "content-encoding: gzip", rfcDate2},
			215,
		},
	}
}

var rfcExamples = []rfcExample{
	{"C.2.1 literal with indexing", defaultTableSize, []rfcBlock{{
		"400a 6375 7374 6f6d 2d6b 6579 0d63 7573 746f 6d2d 6865 6164 6572",
		[]string{"custom-key: custom-header"},
		[]string{"custom-key: custom-header"},
		55,
	}}},
	{"C.2.2 literal without indexing", defaultTableSize, []rfcBlock{{"040c 2f73 616d 706c 652f 7061 7468", []string{":path: /sample/path"}, nil, 0}}},
	{"C.2.3 literal never indexed", defaultTableSize, []rfcBlock{{"1008 7061 7373 776f 7264 0673 6563 7265 74", []string{"password: secret (never)"}, nil, 0}}},
	{"C.2.4 indexed", defaultTableSize, []rfcBlock{{"82", []string{":method: GET"}, nil, 0}}},
	{"C.3 requests without Huffman codes", defaultTableSize, rfcRequests(
		"8286 8441 0f77 7777 2e65 7861 6d70 6c65 2e63 6f6d",
		"8286 84be 5808 6e6f 2d63 6163 6865",
		"8287 85bf 400a 6375 7374 6f6d 2d6b 6579 0c63 7573 746f 6d2d 7661 6c75 65",
	)},
	{"C.4 requests with Huffman codes", defaultTableSize, rfcRequests(
		"8286 8441 8cf1 e3c2 e5f2 3a6b a0ab 90f4 ff",
		"8286 84be 5886 a8eb 1064 9cbf",
		"8287 85bf 4088 25a8 49e9 5ba9 7d7f 8925 a849 e95b b8e8 b4bf",
	)},
	{"C.5 responses without Huffman codes, with eviction", 256, rfcResponses(
		"4803 3330 3258 0770 7269 7661 7465 611d 4d6f 6e2c 2032 3120 4f63 7420 3230 3133 2032 303a 3133 3a32 3120 474d 54"+
			"6e 1768 7474 7073 3a2f 2f77 7777 2e65 7861 6d70 6c65 2e63 6f6d",
		"4803 3330 37c1 c0bf",
		"88c1 611d 4d6f 6e2c 2032 3120 4f63 7420 3230 3133 2032 303a 3133 3a32 3220 474d 54c0 5a04 677a 6970"+
			"7738 666f 6f3d 4153 444a 4b48 514b 425a 584f 5157 454f 5049 5541 5851 5745 4f49 553b 206d 6178 2d61 6765 3d33 3630 303b 2076 6572 7369 6f6e 3d31",
	)},
	{"C.6 responses with Huffman codes and eviction", 256, rfcResponses(
		"4882 6402 5885 aec3 771a 4b61 96d0 7abe 9410 54d4 44a8 2005 9504 0b81 66e0 82a6 2d1b ff6e 919d 29ad 1718 63c7 8f0b 97c8 e9ae 82ae 43d3",
		"4883 640e ffc1 c0bf",
		"88c1 6196 d07a be94 1054 d444 a820 0595 040b 8166 e084 a62d 1bff c05a 839b d9ab 77ad 94e7 821d d7f2 e6c7 b335 dfdf cd5b 3960 d5af 2708 7f36 72c1 ab27 0fb5 291f 9587 3160 65c0 03ed 4ee5 b106 3d50 07",
	)},
}

func rfcBytes(t *testing.T, s string) []byte {
	t.Helper()
	b, err := hex.DecodeString(strings.ReplaceAll(s, " ", ""))
	if err != nil {
		t.Fatal(err)
	}
	return b
}

// x/net reads the examples as well, which shows that they are written down right.
func TestTheExamplesOfRFC7541AreDecodedWithTheirTables(t *testing.T) {
	blocks := 0
	for _, e := range rfcExamples {
		t.Run(e.name, func(t *testing.T) {
			d := &decoder{limit: e.limit}
			d.tab.max = e.limit
			var theirs []string
			x := hpack.NewDecoder(e.limit, func(f hpack.HeaderField) {
				s := f.Name + ": " + f.Value
				if f.Sensitive {
					s += " (never)"
				}
				theirs = append(theirs, s)
			})
			for i, b := range e.blocks {
				blocks++
				in := rfcBytes(t, b.hex)
				theirs = nil
				if _, err := x.Write(in); err != nil || !slices.Equal(theirs, b.fields) {
					t.Fatalf("block %d: x/net read %q, %v", i+1, theirs, err)
				}
				fs, err := decodeOwn(t, d, in)
				if err != nil {
					t.Fatalf("block %d: %v", i+1, err)
				}
				var got, table []string
				for _, f := range fs {
					s := f.Name + ": " + f.Value
					if f.NeverIndex {
						s += " (never)"
					}
					got = append(got, s)
				}
				for n := range d.tab.n {
					f := d.tab.at(n)
					table = append(table, f.name+": "+f.value)
				}
				if !slices.Equal(got, b.fields) {
					t.Errorf("block %d: fields %q, want %q", i+1, got, b.fields)
				}
				if !slices.Equal(table, b.table) || d.tab.size != b.size {
					t.Errorf("block %d: table %q of %d, want %q of %d", i+1, table, d.tab.size, b.table, b.size)
				}
			}
		})
	}
	if blocks != 16 {
		t.Errorf("%d blocks, want 16", blocks)
	}
}

// C.1.1 to C.1.3.
func TestTheIntegersOfRFC7541(t *testing.T) {
	for _, c := range []struct {
		v      uint64
		prefix uint8
		want   []byte
	}{
		{10, 5, []byte{10}}, {1337, 5, []byte{31, 154, 10}}, {42, 8, []byte{42}},
	} {
		v, rest, err := readInteger(c.want, c.prefix)
		if v != c.v || len(rest) > 0 || err != nil {
			t.Errorf("% x is read as %d, % x, %v", c.want, v, rest, err)
		}
		if got := appendInteger(nil, 0, c.prefix, c.v); !slices.Equal(got, c.want) {
			t.Errorf("%d is written as % x, want % x", c.v, got, c.want)
		}
	}
}
