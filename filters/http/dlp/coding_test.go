package dlp

import (
	"bytes"
	"compress/flate"
	"compress/gzip"
	"compress/zlib"
	"fmt"
	"io"
	"strings"
	"testing"
	"time"

	"github.com/andybalholm/brotli"
	"github.com/klauspost/compress/zstd"

	"github.com/fairlead-mesh/fairlead/filters"
	"github.com/fairlead-mesh/fairlead/internal/message"
)

func encode(t testing.TB, coding, text string) string {
	t.Helper()
	var b bytes.Buffer
	var w io.WriteCloser
	switch coding {
	case "gzip":
		w = gzip.NewWriter(&b)
	case "zlib":
		w = zlib.NewWriter(&b)
	case "flate":
		w, _ = flate.NewWriter(&b, 6)
	case "br":
		w = brotli.NewWriter(&b)
	case "zstd":
		w, _ = zstd.NewWriter(&b)
	default:
		return text
	}
	_, _ = io.WriteString(w, text)
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
	return b.String()
}

func TestContentCodings(t *testing.T) {
	clean := "nothing to see, " + strings.Repeat("really ", 20)
	dirty := clean + card + " end"
	gz := encode(t, "gzip", dirty)
	named := func() string {
		var b bytes.Buffer
		w := gzip.NewWriter(&b)
		w.Name, w.Comment, w.Extra = "n", "c", []byte("xx")
		_, _ = io.WriteString(w, dirty)
		_ = w.Close()
		return b.String()
	}()
	badCRC := []byte(gz)
	badCRC[len(badCRC)-6] ^= 1
	for _, tt := range []struct {
		name, header, body string
		refused            int // 0: found and blocked
	}{
		{"gzip", "gzip", gz, 0},
		{"x-gzip", "x-gzip", gz, 0},
		{"GZIP", "GZIP", gz, 0},
		{" gzip", " gzip ", gz, 0},
		{"deflate as zlib", "deflate", encode(t, "zlib", dirty), 0},
		{"deflate raw", "deflate", encode(t, "flate", dirty), 0},
		{"br", "br", encode(t, "br", dirty), 0},
		{"zstd", "zstd", encode(t, "zstd", dirty), 0},
		{"gzip twice", "gzip, gzip", encode(t, "gzip", gz), 0},
		{"gzip then br", "gzip,br", encode(t, "br", gz), 0},
		{"identity, gzip", "identity, gzip", gz, 0},
		{"two members", "gzip", encode(t, "gzip", clean) + gz, 0},
		{"name, comment, extra", "gzip", named, 0},
		{"identity", "identity", dirty, 0},
		{"trailing garbage", "gzip", encode(t, "gzip", clean) + "garbage", 415},
		{"trailing garbage behind zlib", "deflate", encode(t, "zlib", clean) + "garbage", 415},
		{"trailing garbage behind br", "br", encode(t, "br", clean) + "garbage", 415},
		{"wrong CRC", "gzip", string(badCRC), 415},
		{"truncated", "gzip", encode(t, "gzip", clean)[:40], 415},
		{"not gzip", "gzip", clean, 415},
		{"unknown", "compress", clean, 415},
		{"too many", "gzip,gzip,gzip,gzip", clean, 415},
		{"gzip that nobody declared", "", encode(t, "gzip", clean), 415},
		{"zstd that nobody declared", "", encode(t, "zstd", clean), 415},
		{"UTF-16", "", "\xff\xfe4\x001\x00", 415},
	} {
		t.Run(tt.name, func(t *testing.T) {
			var h [][2]string
			if tt.header != "" {
				h = append(h, [2]string{"content-encoding", tt.header})
			}
			for _, n := range []int{1, 7, 0} {
				r := request{header: h, body: &pieces{p: split(tt.body, n)}}
				got := compile(t, one("BLOCK"), "").run(t, r, nil)
				want := 403
				if tt.refused != 0 {
					want = tt.refused
				}
				// A wrong checksum may come after the card was found.
				if got.status != want && (tt.name != "wrong CRC" || got.status != 403) {
					t.Errorf("in %d pieces: status %d, details %q: want %d", n, got.status, got.s.Info.Details, want)
				}
				if strings.Contains(got.u.body, card) {
					t.Error("upstream has the card")
				}
			}
		})
	}
	t.Run("charset", func(t *testing.T) {
		r := request{header: [][2]string{{"content-type", "text/plain; charset=\"UTF-16LE\""}}, body: &pieces{p: []string{"x"}}}
		if got := compile(t, one("BLOCK"), "").run(t, r, nil); got.status != 415 {
			t.Errorf("status %d", got.status)
		}
	})
}

// TestFailClosed is the matrix of bodies that can't be inspected.
func TestFailClosed(t *testing.T) {
	for _, tt := range []struct {
		action, deny      string
		request, response int
	}{
		{"REPORT", "AUTO", 200, 200},
		{"MASK", "AUTO", 415, 502},
		{"REPLACE", "AUTO", 415, 502},
		{"BLOCK", "AUTO", 415, 502},
		{"REPORT", "DENY", 415, 502},
		{"BLOCK", "DENY", 415, 502},
		{"BLOCK", "PASS", 200, 200},
		{"MASK", "PASS", 200, 200},
	} {
		for what, h := range map[string][2]string{"encoding": {"content-encoding", "compress"}, "charset": {"content-type", "text/plain;charset=utf-7"}} {
			t.Run(fmt.Sprintf("%s with %s and %s", what, tt.action, tt.deny), func(t *testing.T) {
				js := strings.Replace(one(tt.action), `{"rules"`, fmt.Sprintf(`{"onUninspectable":%q,"rules"`, tt.deny), 1)
				x := compile(t, js, "")
				got := x.run(t, request{header: [][2]string{h}, body: &pieces{p: []string{"opaque"}}}, nil)
				if got.status != tt.request || (tt.request == 200) != (got.u.body == "opaque") {
					t.Errorf("request: status %d, upstream %q", got.status, got.u.body)
				}
				got = x.run(t, request{method: "GET"}, &upstream{response: [][2]string{h}, answer: &pieces{p: []string{"opaque"}}})
				if got.status != tt.response || (tt.response == 200) != (got.body == "opaque") {
					t.Errorf("response: status %d, client %q", got.status, got.body)
				}
				if !strings.Contains(x.log.String(), "uninspectable") {
					t.Error("not reported")
				}
			})
		}
	}
}

func TestBombs(t *testing.T) {
	zeros := strings.Repeat("\x00", 32<<20)
	for _, coding := range []string{"gzip", "br", "zstd"} {
		bomb := encode(t, coding, zeros)
		for _, action := range []string{"BLOCK", "REPORT"} {
			js := strings.Replace(one(action), `{"rules"`, `{"onUninspectable":"DENY","rules"`, 1)
			start := time.Now()
			u := &upstream{}
			s := request{header: [][2]string{{"content-encoding", coding}}, body: &pieces{p: split(bomb, 3)}}.stream()
			s.SetChain([]filters.HTTPFilter{compile(t, js, "").f, u})
			r, err := filters.Start(s)
			if err != nil {
				t.Fatal(err)
			}
			if r.Status() != 413 {
				t.Errorf("%s: status %d, details %q", coding, r.Status(), s.Info.Details)
			}
			if len(u.body) > 2<<20 {
				t.Errorf("%s: %d bytes went on", coding, len(u.body))
			}
			if d := time.Since(start); d > time.Minute { // the machine may be busy
				t.Errorf("%s took %v", coding, d)
			}
		}
	}
}

type noTunnel struct {
	filters.Tunnel
	abandoned bool
}

func (n *noTunnel) Abandon() { n.abandoned = true }

func TestTunnels(t *testing.T) {
	up := request{method: "GET", header: [][2]string{{"upgrade", "websocket"}, {"connection", "upgrade"}}, body: &pieces{p: []string{card}}}
	tn := &noTunnel{}
	x := compile(t, one("BLOCK"), "")
	if got := x.run(t, up, &upstream{status: 101, tunnel: tn, early: true}); got.status != 101 || !strings.Contains(x.log.String(), `"uninspectable":"tunnel"`) {
		t.Errorf("status %d, log %s", got.status, x.log)
	}
	js := strings.Replace(one("BLOCK"), `{"rules"`, `{"onUninspectable":"DENY","rules"`, 1)
	if got := compile(t, js, "").run(t, up, &upstream{status: 101, tunnel: tn}); got.status != 415 || got.u.called {
		t.Errorf("status %d with DENY", got.status)
	}
	got := compile(t, js, "").run(t, request{method: "GET"}, &upstream{status: 101, tunnel: tn})
	if got.status != 502 || !tn.abandoned {
		t.Errorf("status %d, abandoned %v", got.status, tn.abandoned)
	}
}

func TestABodyThatBreaksIsNoVerdict(t *testing.T) {
	x := compile(t, one("BLOCK"), "")
	broken := &pieces{p: []string{"abc"}, err: io.ErrUnexpectedEOF}
	s := request{body: broken}.stream()
	s.SetChain([]filters.HTTPFilter{x.f, &upstream{}})
	if r, err := filters.Start(s); err == nil {
		t.Errorf("status %d", r.Status())
	}
	got := x.run(t, request{method: "GET"}, &upstream{answer: &pieces{p: []string{"abc"}, err: io.ErrUnexpectedEOF}})
	if got.status != 200 || got.bodyErr == nil {
		t.Errorf("status %d, error %v", got.status, got.bodyErr)
	}
	got = x.run(t, request{method: "GET"}, &upstream{answer: message.Bytes([]byte(encode(t, "gzip", "abc"))), response: [][2]string{{"content-encoding", "gzip"}}})
	if decode(t, "gzip", got.body) != "abc" || got.header["content-encoding"] != "gzip" {
		t.Errorf("%q %v", got.body, got.header)
	}
}
