package dlp

import (
	"bytes"
	"net/url"
	"strings"
	"testing"
	"time"

	"github.com/fairlead-mesh/fairlead/filters"
	"github.com/fairlead-mesh/fairlead/internal/message"
)

// TestMemoryOfAStream holds a stream to what the README says: window_bytes,
// 64 KiB by default, the part included that is awaited for a clean answer.
func TestMemoryOfAStream(t *testing.T) {
	n := 0
	for what, text := range map[string]string{
		"clean text":  strings.Repeat("clean text, ", 20000),
		"cards":       strings.Repeat(card+" ", 10000),
		"escapes":     strings.Repeat(`\u0061\n`, 30000),
		"an open key": "-----BEGIN PRIVATE KEY-----\n" + strings.Repeat("QUJDREVGR0g/\n", 20000),
	} {
		for _, action := range []string{"REPORT", "MASK", "REPLACE", "BLOCK"} {
			for _, window := range []int{0, 64 << 10, 256 << 10} {
				x := guard(t, action)
				f, ok := x.f.(*filter)
				if !ok {
					t.Fatal("no filter")
				}
				if window > 0 {
					f.cfg.window = window
				}
				in := f.inspect(f.cfg.request, "request")
				h := &message.Header{}
				b := f.wrap(h, &pieces{p: split(text, len(text)/16384+1)}, in, false, nil)
				f.hold(h, b)
				most := b.memory()
				for last := false; !last; {
					var err error
					if _, last, err = b.Next(); err != nil {
						break
					}
					most = max(most, b.memory())
				}
				b.Close()
				if most > f.cfg.window {
					t.Errorf("%s, %s: %d bytes of memory, want at most %d", what, action, most, f.cfg.window)
				}
				n++
			}
		}
	}
	if n != 48 {
		t.Errorf("%d cases: want 48", n)
	}
}

// TestSecretsAtTheLimitOfTheWindow is M2: around every limit, what goes on
// never holds the secret, and nothing passes for clean.
func TestSecretsAtTheLimitOfTheWindow(t *testing.T) {
	x := guard(t, "BLOCK")
	n := 0
	for _, limit := range []int{pieceBytes, defaultWindow, 1 << 20, 10 << 20} {
		pad := strings.Repeat("clean text. ", limit/12+1)
		for _, off := range []int{-17, -16, -8, -1, 0, 1} {
			if limit > 1<<20 && off != -8 {
				continue
			}
			secret := " " + card + " "
			body := pad[:limit+off] + secret
			got := x.run(t, request{body: &pieces{p: split(body, len(body)/4096+1)}}, nil)
			if got.status != 403 || strings.Contains(got.u.body, card) || got.u.called && got.u.bodyErr == nil {
				t.Errorf("%d bytes before: status %d, upstream's body ended with %v", limit+off, got.status, got.u.bodyErr)
			}
			n++
		}
	}
	if n != 19 {
		t.Errorf("%d cases: want 19", n)
	}
}

// TestSecretsAreCaughtAtEveryCut is M3: each of the forty secrets, cut at
// every offset, in three framings.
func TestSecretsAreCaughtAtEveryCut(t *testing.T) {
	x := guard(t, "BLOCK")
	n := 0
	eachHidden(func(_, secret string) {
		for at := range len(secret) + 1 {
			for framing, p := range [][]string{
				{`{"v":"` + secret[:at], secret[at:] + `"}`},
				append(append([]string{`{"v":"`}, split(secret[:at]+"", 0)...), secret[at:]+`"}`),
				{strings.Repeat("x ", 40) + secret[:at], "", secret[at:] + " " + strings.Repeat("y ", 40)},
			} {
				got := x.run(t, request{body: &pieces{p: p}}, nil)
				if got.status != 403 || got.u.called {
					t.Errorf("%q cut at %d in framing %d: status %d", secret, at, framing, got.status)
				}
				n++
			}
		}
	})
	if n < 3600 {
		t.Errorf("%d cases: want at least 3,600", n)
	}
	t.Logf("%d cases", n)
}

// TestDeepAndLongDocumentsTakeNoMemory is M14: nothing is parsed as a tree.
func TestDeepAndLongDocumentsTakeNoMemory(t *testing.T) {
	x := guard(t, "MASK")
	n := 0
	for name, body := range map[string]string{
		"nested 1,001":   strings.Repeat("[", 1001) + strings.Repeat("]", 1001),
		"nested 100,000": strings.Repeat(`{"a":`, 100000) + "1" + strings.Repeat("}", 100000),
		"a long string":  `"` + strings.Repeat("a", 16<<20) + `"`,
		"a long number":  strings.Repeat("4", 4<<20),
	} {
		start := time.Now()
		got := x.run(t, request{header: header("content-type", "application/json"), body: &pieces{p: split(body, len(body)/8192+1)}}, nil)
		if got.status != 200 || len(got.u.body) != len(body) {
			t.Errorf("%s: status %d, %d of %d bytes", name, got.status, len(got.u.body), len(body))
		}
		if d := time.Since(start); d > time.Minute {
			t.Errorf("%s took %v", name, d)
		}
		n++
	}
	if n != 4 {
		t.Errorf("%d documents: want 4", n)
	}
}

// TestNoOutputHoldsASecret is M17: logs, metrics and details after all forty
// secrets were found everywhere.
func TestNoOutputHoldsASecret(t *testing.T) {
	n := 0
	for _, action := range []string{"REPORT", "MASK", "REPLACE", "BLOCK"} {
		x := guard(t, action)
		eachHidden(func(_, secret string) {
			one := strings.ReplaceAll(secret, "\n", " ")
			r := request{
				path: "/?q=" + url.QueryEscape(secret), header: header("x-v", one),
				body: &pieces{p: []string{secret}},
			}
			got := x.run(t, r, &upstream{response: header("x-r", one), answer: &pieces{p: []string{secret}}})
			var out bytes.Buffer
			out.Write(x.log.Bytes())
			x.log.Reset()
			if err := x.reg.WritePrometheus(&out); err != nil {
				t.Fatal(err)
			}
			out.WriteString(got.s.Info.Details)
			if got := out.String(); strings.Contains(got, secret) || strings.Contains(got, one) || strings.Contains(got, one[4:]) {
				t.Errorf("%s: %q is in the outputs", action, secret)
			}
			n++
		})
	}
	if n != 4*hiddenInstances {
		t.Errorf("%d cases: want %d", n, 4*hiddenInstances)
	}
}

// TestALateHitEndsALongUpload is M18: the client may have its answer while the
// request is still inspected; the upload breaks off where the secret begins.
func TestALateHitEndsALongUpload(t *testing.T) {
	before := 100 << 20
	if testing.Short() {
		before = 10 << 20
	}
	x := guard(t, "BLOCK")
	line := strings.Repeat("clean text, nothing else. ", 315)
	src := &repeated{p: line, n: before / len(line), tail: " " + card + " more"}
	u := &upstream{early: true}
	s := request{body: src}.stream()
	s.SetChain([]filters.HTTPFilter{x.f, u})
	if r, err := filters.Start(s); err != nil || r.Status() != 200 {
		t.Fatal(r, err)
	}
	sent := 0
	for {
		p, last, err := u.request.Next()
		sent += len(p)
		if bytes.Contains(p, []byte(card[:12])) {
			t.Fatal("the card passed")
		}
		if err != nil {
			break
		}
		if last {
			t.Fatal("the upload came to its end")
		}
	}
	if s.Cause() == nil || sent < before-1<<20 {
		t.Errorf("the stream's cause is %v after %d bytes", s.Cause(), sent)
	}
}

// repeated is a body of n times p, and tail.
type repeated struct {
	p, tail string
	n       int
}

func (b *repeated) Next() ([]byte, bool, error) {
	if b.n--; b.n >= 0 {
		return []byte(b.p), false, nil
	}
	return []byte(b.tail), true, nil
}
func (b *repeated) Ready() (int, bool)        { return 0, false }
func (b *repeated) Trailers() *message.Header { return nil }
func (b *repeated) Close()                    {}
