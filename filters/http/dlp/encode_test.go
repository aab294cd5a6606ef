package dlp

import (
	"bytes"
	"compress/flate"
	"compress/gzip"
	"compress/zlib"
	"fmt"
	"io"
	"math/rand/v2"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/andybalholm/brotli"
	"github.com/klauspost/compress/zstd"

	"github.com/fairlead-mesh/fairlead/filters"
	"github.com/fairlead-mesh/fairlead/internal/message"
	"github.com/fairlead-mesh/fairlead/internal/sweep"
)

// decoder undoes what encode does.
func decoder(t testing.TB, coding string, r io.Reader) io.Reader {
	t.Helper()
	var err error
	switch coding {
	case "gzip":
		r, err = gzip.NewReader(r)
	case "zlib":
		r, err = zlib.NewReader(r)
	case "flate":
		r = flate.NewReader(r)
	case "br":
		r = brotli.NewReader(r)
	case "zstd":
		var z *zstd.Decoder
		if z, err = zstd.NewReader(r, zstd.WithDecoderConcurrency(1)); err == nil {
			t.Cleanup(z.Close)
			r = z
		}
	}
	if err != nil {
		t.Fatalf("%s: %v", coding, err)
	}
	return r
}

func decode(t testing.TB, coding, s string) string {
	t.Helper()
	b, err := io.ReadAll(decoder(t, coding, strings.NewReader(s)))
	if err != nil {
		t.Fatalf("%s: %v in %q", coding, err, s)
	}
	return string(b)
}

// encodings are values of content-encoding, and how their layers are made, the
// first applied first.
var encodings = map[string][]string{
	"gzip": {"gzip"}, "x-gzip": {"gzip"}, "GZIP": {"gzip"}, "deflate": {"zlib"}, "deflate ": {"flate"}, "br": {"br"}, "zstd": {"zstd"},
	"gzip, br": {"gzip", "br"}, "zstd, identity, gzip": {"zstd", "gzip"}, "deflate, br, zstd": {"flate", "br", "zstd"},
}

func layered(t testing.TB, layers []string, s string) string {
	for _, l := range layers {
		s = encode(t, l, s)
	}
	return s
}

func unlayered(t testing.TB, layers []string, s string) string {
	for _, layer := range slices.Backward(layers) {
		s = decode(t, layer, s)
	}
	return s
}

var digests = [][2]string{{"etag", `"x"`}, {"content-md5", "x"}, {"digest", "sha-256=x"}, {"content-digest", "sha-256=:x:"}, {"repr-digest", "sha-256=:x:"}}

// TestBodiesAreEncodedAgain is what the other side gets of an encoded body: the
// same codings in the same order, edited, with headers that are true.
func TestBodiesAreEncodedAgain(t *testing.T) {
	clean := strings.Repeat("nothing to see, really. ", 20)
	n := 0
	for name, layers := range encodings {
		for action, want := range map[string]string{"MASK": masked, "REPLACE": "[CREDIT_CARD_NUMBER]", "BLOCK": ""} {
			for _, pad := range []int{0, 4000} { // held whole, and streamed
				text := clean + card + " end " + strings.Repeat("more of it. ", pad)
				if action == "BLOCK" {
					text = strings.Replace(text, card, "no card", 1)
				}
				want := strings.Replace(text, card, want, 1)
				body := layered(t, layers, text)
				header := append([][2]string{{"content-encoding", name}, {"content-length", fmt.Sprint(len(body))}}, digests...)
				x := compile(t, one(action), "")
				check := func(where, got string, h map[string]string) {
					t.Helper()
					if h["content-encoding"] != name || unlayered(t, layers, got) != want {
						t.Errorf("%s, %s, %d: %s: %v %.100q", name, action, pad, where, h, got)
					}
					if cl, ok := h["content-length"]; ok && cl != fmt.Sprint(len(got)) {
						t.Errorf("%s, %s, %d: %s: content-length %s of %d bytes", name, action, pad, where, cl, len(got))
					}
					for _, d := range digests {
						if _, ok := h[d[0]]; ok && got != body {
							t.Errorf("%s, %s, %d: %s: %s of another body", name, action, pad, where, d[0])
						}
					}
					n++
				}
				got := x.run(t, request{header: header, body: &pieces{p: split(body, 4)}}, nil)
				check("request", got.u.body, got.u.header)
				got = x.run(t, request{method: "GET"}, &upstream{response: header, answer: &pieces{p: split(body, 4)}})
				check("response", got.body, got.header)
			}
		}
	}
	if want := len(encodings) * 3 * 2 * 2; n != want {
		t.Errorf("%d cases: want %d", n, want)
	}
}

// TestAnEncodedBodyThatNothingIsFoundInStaysAsItIs: with its length, its tag and
// its digests, if it is awaited whole, or if no rule could change or stop it.
func TestAnEncodedBodyThatNothingIsFoundInStaysAsItIs(t *testing.T) {
	for name, layers := range encodings {
		for conf, found := range map[string]bool{one("BLOCK"): false, one("REPORT"): true, one("REPORT", `"addHeader":{"name":"x-f","value":"1"}`): true, strings.Replace(one("BLOCK"), "{", `{"dryRun":true,`, 1): true} {
			text := "nothing"
			if found {
				text = "card " + card + strings.Repeat(" and text, much of it", 9000)
			}
			body := layered(t, layers, text)
			header := append([][2]string{{"content-encoding", name}, {"content-length", fmt.Sprint(len(body))}}, digests...)
			x := compile(t, conf, "")
			got := x.run(t, request{header: header, body: &pieces{p: split(body, 3)}}, nil)
			if got.status != 200 || got.u.body != body {
				t.Errorf("%s: status %d, details %q, upstream got %.90q of %.90q", name, got.status, got.s.Info.Details, got.u.body, body)
			}
			for _, h := range header {
				if got.u.header[h[0]] != h[1] {
					t.Errorf("%s: %s: %q became %q", name, h[0], h[1], got.u.header[h[0]])
				}
			}
			if strings.Contains(x.log.String(), "CREDIT_CARD_NUMBER") != found || strings.Contains(x.log.String(), "uninspectable") {
				t.Errorf("%s: log %s", name, x.log)
			}
		}
	}
	// Of nothing there is no encoding.
	if got := compile(t, one("MASK"), "").run(t, request{header: header("content-encoding", "gzip"), body: &pieces{p: []string{""}}}, nil); got.status != 200 || got.u.body != "" {
		t.Errorf("status %d, upstream got %q", got.status, got.u.body)
	}
}

// TestEncodedEventsAreNotDelayed reads, decoded, each event of an encoded stream
// as soon as it was sent.
func TestEncodedEventsAreNotDelayed(t *testing.T) {
	for _, action := range []string{"MASK", "REPORT", "BLOCK"} {
		var enc bytes.Buffer
		w := gzip.NewWriter(&enc)
		var sent []string
		for i := range 3 {
			fmt.Fprintf(w, "data: %d%s\n\n", i, map[bool]string{true: " jane@example.com"}[action != "BLOCK"])
			_ = w.Flush()
			sent = append(sent, enc.String())
			enc.Reset()
		}
		src := &pieces{p: append(sent, "")}
		x := compile(t, one(action), "")
		s := request{method: "GET"}.stream()
		s.SetChain([]filters.HTTPFilter{x.f, &upstream{answer: src, response: [][2]string{{"content-type", "text/event-stream"}, {"content-encoding", "gzip"}}}})
		r, err := filters.Start(s)
		if err != nil {
			t.Fatal(err)
		}
		var got bytes.Buffer
		for i := range 3 {
			for len(src.p) == 4-i { // until the next event is asked for
				p, _, err := r.Body.Next()
				if err != nil {
					t.Fatal(err)
				}
				got.Write(p)
			}
			z, err := gzip.NewReader(bytes.NewReader(got.Bytes()))
			if err != nil {
				t.Fatal(err)
			}
			text, _ := io.ReadAll(z) // breaks off behind the flushed part
			if !strings.HasSuffix(string(text), "\n\n") || strings.Count(string(text), "\n\n") < i+1 {
				t.Errorf("%s: after event %d the client has %q", action, i, text)
			}
			if action == "MASK" && strings.Contains(string(text), "jane") {
				t.Errorf("%q", text)
			}
		}
		r.Body.Close()
	}
}

// TestLayersOfNothing is a bomb whose decoded form is empty: the layers between
// are what is large.
func TestLayersOfNothing(t *testing.T) {
	empty := encode(t, "gzip", "")
	bomb := encode(t, "gzip", strings.Repeat(empty, 4<<20/len(empty)))
	for _, text := range []string{bomb, encode(t, "gzip", bomb)} {
		start := time.Now()
		coding := "gzip,gzip"
		if len(text) < len(bomb) {
			coding += ",gzip"
		}
		got := compile(t, one("BLOCK"), "").run(t, request{header: header("content-encoding", coding), body: &pieces{p: split(text, 2)}}, nil)
		if got.status != 413 || got.s.Info.Details != "dlp_uninspectable{decompression_limit}" {
			t.Errorf("%d bytes: status %d, details %q in %v", len(text), got.status, got.s.Info.Details, time.Since(start))
		}
	}
}

// TestWhatIsBeyondTheLimitsPassesIfConfigured is PASS: the body arrives, edited
// if it can be, and is counted.
func TestWhatIsBeyondTheLimitsPassesIfConfigured(t *testing.T) {
	long := "card " + card + " " + strings.Repeat("0", 3<<20)
	for _, tt := range []struct{ action, body, want, reason string }{
		{"REPORT", encode(t, "gzip", long), long, "decompression_limit"},
		{"BLOCK", encode(t, "gzip", strings.Replace(long, card, "none", 1)), strings.Replace(long, card, "none", 1), "decompression_limit"},
		{"MASK", encode(t, "gzip", long), strings.Replace(long, card, masked, 1), "decompression_limit"},
		{"MASK", "no gzip at all", "", "malformed_encoding"},
		{"BLOCK", "no gzip at all", "", "malformed_encoding"},
		{"REPORT", encode(t, "gzip", "abc") + "garbage", "", "malformed_encoding"},
	} {
		x := compile(t, strings.Replace(one(tt.action), "{", `{"onUninspectable":"PASS",`, 1), "")
		got := x.run(t, request{header: header("content-encoding", "gzip"), body: &pieces{p: split(tt.body, 5)}}, nil)
		if got.status != 200 || tt.want == "" && got.u.body != tt.body || tt.want != "" && decode(t, "gzip", got.u.body) != tt.want {
			t.Errorf("%s of %.20q: status %d, details %q, %d bytes arrived", tt.action, tt.body, got.status, got.s.Info.Details, len(got.u.body))
		}
		if !strings.Contains(x.log.String(), fmt.Sprintf(`"uninspectable":%q`, tt.reason)) {
			t.Errorf("%s of %.20q: log %s", tt.action, tt.body, x.log)
		}
	}
}

// noise is text that can't be compressed much.
func noise(n int) string {
	r := rand.New(rand.NewPCG(1, 2))
	b := make([]byte, n)
	for i := range b {
		b[i] = "abcdefghijklmnopqrstuvwxyz      "[r.IntN(32)]
	}
	return string(b)
}

// TestDigestsBehindABodyAreRemovedIfItMayHaveChanged: they come as trailers.
func TestDigestsBehindABodyAreRemovedIfItMayHaveChanged(t *testing.T) {
	long := strings.Repeat("clean text, ", 10000)
	for _, tt := range []struct {
		name, conf, body, coding string
		kept                     bool
	}{
		{"masked", one("MASK"), "x " + card, "", false},
		{"masked, long", one("MASK"), long + card, "", false},
		{"masked, long and clean", one("MASK"), long, "", false}, // the head said so already
		{"blocking, clean", one("BLOCK"), "x", "", true},
		{"blocking, long and clean", one("BLOCK"), long, "", true},
		{"blocking, encoded and clean", one("BLOCK"), encode(t, "gzip", "x"), "gzip", true},
		{"blocking, encoded, long and clean", one("BLOCK"), encode(t, "gzip", noise(400<<10)), "gzip", false},
		{"reporting", one("REPORT"), card, "", true},
		{"reporting, encoded", one("REPORT"), encode(t, "gzip", long), "gzip", true},
	} {
		tr := &message.Header{}
		tr.Add("content-digest", "sha-256=:x:")
		tr.Add("x-other", "y")
		p := &pieces{p: split(tt.body, 3), trailers: tr}
		var h [][2]string
		if tt.coding != "" {
			h = header("content-encoding", tt.coding)
		}
		got := compile(t, tt.conf, "").run(t, request{header: h, body: p}, nil)
		if got.status != 200 || tr.Has("content-digest") != tt.kept || !tr.Has("x-other") {
			t.Errorf("%s: status %d, content-digest %v, x-other %v", tt.name, got.status, tr.Has("content-digest"), tr.Has("x-other"))
		}
	}
}

// TestHeadsOfBodiesThatNobodySees are those of answers to HEAD.
func TestHeadsOfBodiesThatNobodySees(t *testing.T) {
	for _, tt := range []struct {
		action, coding string
		length, etag   bool
	}{
		{"REPORT", "", true, true}, {"BLOCK", "", true, true}, {"MASK", "", true, false}, {"REPLACE", "", false, false}, {"MASK", "gzip", false, false},
	} {
		h := append([][2]string{{"content-length", "30"}}, digests...)
		if tt.coding != "" {
			h = append(h, [2]string{"content-encoding", tt.coding})
		}
		got := compile(t, one(tt.action), "").run(t, request{method: "HEAD"}, &upstream{response: h})
		_, length := got.header["content-length"]
		_, etag := got.header["etag"]
		_, digest := got.header["content-digest"]
		if length != tt.length || etag != tt.etag || digest != tt.etag {
			t.Errorf("%s %s: %v", tt.action, tt.coding, got.header)
		}
	}
}

// TestLengthsThatAreWrittenElsewhereStayTrue: of ranges, and before values of
// binary formats.
func TestLengthsThatAreWrittenElsewhereStayTrue(t *testing.T) {
	pass := strings.Replace(one("REPLACE"), "{", `{"onUninspectable":"PASS",`, 1)
	u := &upstream{status: 206, response: header("content-range", "bytes 0-21/99"), answer: &pieces{p: []string{"card " + card + " "}}}
	if got := compile(t, pass, "").run(t, request{method: "GET"}, u); got.status != 206 || got.body != "card "+masked+" " {
		t.Errorf("status %d, %q", got.status, got.body)
	}
	got := compile(t, one("REPLACE"), "").run(t, request{path: "/?c=" + card, header: header("content-type", "application/CBOR; x=y"), body: &pieces{p: []string{"\x90" + card}}}, nil)
	if got.u.body != "\x90"+masked || got.u.header[message.Path] != "/?c=%5BCREDIT_CARD_NUMBER%5D" {
		t.Errorf("%q %v", got.u.body, got.u.header)
	}
}

// FuzzEncoded holds an encoded body to what is made of the same body without an
// encoding, however it is cut.
func FuzzEncoded(f *testing.F) {
	names := []string{"gzip", "deflate", "deflate ", "br", "zstd", "gzip, br"}
	for i := range names {
		f.Add("x "+card+" jane@example.com", uint8(i), uint8(3))
		f.Add(strings.Repeat("some text ", 900)+card, uint8(i), uint8(0))
	}
	mask, replace := compile(f, one("MASK"), ""), compile(f, one("REPLACE"), "")
	f.Fuzz(sweep.Around(f, func(t *testing.T, text string, coding, n uint8) {
		if disguised([]byte(text)) != "" || text == "" {
			return
		}
		name := names[int(coding)%len(names)]
		x := []*fixture{mask, replace}[int(n)%2]
		body := layered(t, encodings[name], text)
		plain := x.run(t, request{body: &pieces{p: []string{text}}}, nil)
		got := x.run(t, request{header: header("content-encoding", name), body: &pieces{p: split(body, int(n/2))}}, nil)
		if got.status != plain.status || got.status == 200 && unlayered(t, encodings[name], got.u.body) != plain.u.body {
			t.Fatalf("status %d, %q: without an encoding %d, %q", got.status, got.u.body, plain.status, plain.u.body)
		}
		x.log.Reset()
	}))
}

// TestTheEndOfABodyMayComeByteByByte is about decoders that take the last bytes
// for more than there is if they come alone, as one of brotli does.
func TestTheEndOfABodyMayComeByteByByte(t *testing.T) {
	x := compile(t, one("BLOCK"), "")
	n, sizes, step := 0, 120, 1
	if testing.Short() || raced { // there is one goroutine
		step = 8
	}
	for name, layers := range encodings {
		for size := 0; size < sizes; size += step {
			text := strings.Repeat("some text ", 5*size) + noise(1+size%17) + strings.Repeat(" some text", 6*size)
			body := layered(t, layers, text)
			for _, cut := range []int{0, len(body)/2 + 1, 3} {
				p := split(body, cut)
				got := x.run(t, request{header: header("content-encoding", name), body: &pieces{p: p}}, nil)
				if got.status != 200 || unlayered(t, layers, got.u.body) != text {
					t.Errorf("%s of %d bytes in %d pieces: status %d, details %q", name, len(text), len(p), got.status, got.s.Info.Details)
				}
				if got := x.run(t, request{header: header("content-encoding", name), body: &pieces{p: append(split(body, cut), "x")}}, nil); got.status != 415 {
					t.Errorf("%s of %d bytes in %d pieces, and one more: status %d", name, len(text), len(p), got.status)
				}
				n++
			}
		}
	}
	if want := len(encodings) * sizes / step * 3; n != want {
		t.Errorf("%d cases: want %d", n, want)
	}
}
