package dlp

import (
	"encoding/base64"
	"encoding/hex"
	"fmt"
	"io/fs"
	"math/rand/v2"
	"os"
	"path/filepath"
	"runtime"
	"strings"
	"testing"
	"time"
)

// cleanCorpus is text without anything sensitive, by kind. It is generated, or
// read from the Go distribution.
func cleanCorpus(t *testing.T, size int) map[string]string {
	r := rand.New(rand.NewPCG(42, 1))
	fill := func(f func(b *strings.Builder)) string {
		var b strings.Builder
		for b.Len() < size {
			f(&b)
		}
		return b.String()
	}
	random := func(n int) []byte {
		p := make([]byte, n)
		for i := range p {
			p[i] = byte(r.Uint32())
		}
		return p
	}
	base := time.Date(2020, 1, 1, 0, 0, 0, 0, time.UTC)
	out := map[string]string{
		"binary": string(random(size)),
		"base64": fill(func(b *strings.Builder) { b.WriteString(base64.StdEncoding.EncodeToString(random(57)) + "\n") }),
		"base64url": fill(func(b *strings.Builder) {
			b.WriteString(`{"blob":"` + base64.RawURLEncoding.EncodeToString(random(90)) + `"}` + "\n")
		}),
		"hex": fill(func(b *strings.Builder) { b.WriteString(hex.EncodeToString(random(32)) + " ") }),
		"uuid": fill(func(b *strings.Builder) {
			fmt.Fprintf(b, "%x-%x-%x-%x-%x,", random(4), random(2), random(2), random(2), random(6))
		}),
		"timestamps": fill(func(b *strings.Builder) {
			at := base.Add(time.Duration(r.Int64N(int64(6 * 365 * 24 * time.Hour))))
			fmt.Fprintf(b, "%s %d %d %d %s\n", at.Format(time.RFC3339Nano), at.Unix(), at.UnixMilli(), at.UnixMicro(), at.Format("2006-01-02 15:04:05.000"))
		}),
		"json": string(cleanJSON(size)),
		"html": fill(func(b *strings.Builder) {
			fmt.Fprintf(b, `<div class="col-%d px-%d" id="n%d" style="width:%d.%dpx;color:#%06x"><a href="/a/b-%d/%d?page=%d&amp;sort=asc">item %d of %d</a></div>`+"\n",
				r.IntN(12), r.IntN(9), r.IntN(1e6), r.IntN(2000), r.IntN(100), r.IntN(1<<24), r.IntN(1e4), r.IntN(1e5), r.IntN(99), r.IntN(100), r.IntN(1000))
		}),
		"csv": fill(func(b *strings.Builder) {
			fmt.Fprintf(b, "%d,%.4f,%.6f,%d,%d\n", r.IntN(1e6), r.Float64()*1e3, r.Float64(), r.IntN(1e8), r.IntN(10))
		}),
		"logs": fill(func(b *strings.Builder) {
			fmt.Fprintf(b, "2026-04-%02dT10:%02d:%02d.%06dZ INFO worker-%d took %dms size=%d trace=%016x\n", 1+r.IntN(28), r.IntN(60), r.IntN(60), r.IntN(1e6), r.IntN(64), r.IntN(5000), r.IntN(1e7), r.Uint64())
		}),
		"prose": string(cleanText(size)),
	}
	var src strings.Builder
	root := filepath.Join(runtime.GOROOT(), "src", "net", "http") //nolint:staticcheck // the test runs where it was built
	_ = filepath.WalkDir(root, func(p string, d fs.DirEntry, err error) error {
		if err == nil && strings.HasSuffix(p, ".go") && !strings.HasSuffix(p, "_test.go") && src.Len() < 2*size {
			if text, err := os.ReadFile(p); err == nil {
				src.Write(text)
			}
		}
		return nil
	})
	if src.Len() > 0 {
		out["go source"] = src.String()
	}
	return out
}

func TestCleanDataHasFewFalsePositives(t *testing.T) {
	size := 1 << 20
	if testing.Short() {
		size = 64 << 10
	}
	e, err := New(Options{Types: Builtin()})
	if err != nil {
		t.Fatal(err)
	}
	for kind, text := range cleanCorpus(t, size) {
		count := map[string][2]int{}
		examples := map[string]string{}
		scan(e, text, nil, func(f Finding, m []byte) Edit {
			if typ := e.Types()[f.Type]; f.Likelihood >= Possible {
				n := count[typ]
				n[0]++
				if f.Likelihood >= Likely {
					n[1]++
				}
				count[typ] = n
				examples[typ] = fmt.Sprintf("%.60q %v", m, f.Likelihood)
			}
			return Edit{}
		})
		for typ, n := range count {
			// Addresses in source code are what they seem.
			if kind == "go source" && (typ == ipAddress || typ == emailAddress || typ == basicAuth) {
				continue
			}
			// Sixteen random digits are a card number with a chance of 2 %.
			likely := 0
			if kind == "logs" && typ == creditCard {
				likely = 1
			}
			if n[0] > 1 || n[1] > likely {
				t.Errorf("%s in %d bytes of %s: %d at POSSIBLE, %d of them LIKELY; for example %s", typ, len(text), kind, n[0], n[1], examples[typ])
			}
		}
	}
}
