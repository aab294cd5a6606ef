package dlp

import (
	"archive/zip"
	"encoding/base64"
	"encoding/hex"
	"fmt"
	"image"
	"image/jpeg"
	"image/png"
	"io/fs"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
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
	out["png"] = fill(func(b *strings.Builder) {
		img := image.NewNRGBA(image.Rect(0, 0, 64, 64))
		copy(img.Pix, random(64*64))
		_ = png.Encode(&writer{b}, img)
	})
	out["jpeg"] = fill(func(b *strings.Builder) {
		img := image.NewGray(image.Rect(0, 0, 128, 128))
		copy(img.Pix, random(128*128))
		_ = jpeg.Encode(&writer{b}, img, nil)
	})
	out["base64 images"] = fill(func(b *strings.Builder) {
		b.WriteString(`<img src="data:image/png;base64,` + base64.StdEncoding.EncodeToString(random(6000)) + `">` + "\n")
	})
	out["zip"] = fill(func(b *strings.Builder) {
		z := zip.NewWriter(&writer{b})
		w, _ := z.Create("prose.txt")
		_, _ = w.Write(cleanText(64 << 10))
		w, _ = z.Create("noise.bin")
		_, _ = w.Write(random(64 << 10))
		_ = z.Close()
	})
	out["javascript"] = fill(func(b *strings.Builder) {
		fmt.Fprintf(b, "function f%d(a,b){var c=%d;if(a.x%d>=%.3f){return b[%d]+'%x'}return{v:\"%d.%d.%d\",k:c<<%d}}!function(t,e){t.exports=e(%d)}(this,%d);\n",
			r.IntN(1e4), r.IntN(1e9), r.IntN(99), r.Float64()*100, r.IntN(1e3), r.Uint32(), r.IntN(20), r.IntN(20), r.IntN(200), r.IntN(31), r.IntN(1e4), r.IntN(1e4))
	})
	out["database ids"] = fill(func(b *strings.Builder) {
		fmt.Fprintf(b, `{"object":"%024x","snowflake":"%d","seq":%d,"parent":null,"etag":"\"%016x\"","rev":"%d-%x"}`+"\n",
			random(12), 1_500_000_000_000_000_000+r.Int64N(400_000_000_000_000_000), r.IntN(1e9), r.Uint64(), r.IntN(30), random(16))
	})
	out["go source"] = goSource(t, size)
	return out
}

// writer makes a byte-wise io.Writer of a builder.
type writer struct{ *strings.Builder }

// goSource reads about size bytes of the Go distribution. The tool is asked
// where that is: a binary built with -trimpath doesn't know.
func goSource(t *testing.T, size int) string {
	t.Helper()
	root, err := exec.Command("go", "env", "GOROOT").Output()
	if err != nil {
		t.Fatalf("go env GOROOT: %v", err)
	}
	var src strings.Builder
	err = filepath.WalkDir(filepath.Join(strings.TrimSpace(string(root)), "src"), func(p string, d fs.DirEntry, err error) error {
		switch {
		case err != nil:
			return err
		case src.Len() >= size:
			return fs.SkipAll
		case d.IsDir() && d.Name() == "testdata":
			return fs.SkipDir
		case strings.HasSuffix(p, ".go") && !strings.HasSuffix(p, "_test.go"):
			text, err := os.ReadFile(p)
			src.Write(text)
			return err
		}
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	return src.String()
}

// cleanKinds is how many kinds of clean data there are: none gets lost.
const cleanKinds = 18

// TestCleanDataHasFewFalsePositives holds every detector to at most one
// finding in 100 MiB of clean data at the default likelihood.
func TestCleanDataHasFewFalsePositives(t *testing.T) {
	size := 6 << 20
	if testing.Short() || raceEnabled {
		size = 256 << 10
	}
	e, err := New(Options{Types: Builtin()})
	if err != nil {
		t.Fatal(err)
	}
	corpus := cleanCorpus(t, size)
	if len(corpus) != cleanKinds {
		t.Errorf("%d kinds of clean data: want %d", len(corpus), cleanKinds)
	}
	total, false1 := 0, 0
	for kind, text := range corpus {
		if len(text) < size {
			t.Errorf("%d bytes of %s: want %d", len(text), kind, size)
		}
		total += len(text)
		// As bodies are scanned: with escapes seen through.
		s := e.NewStream(func(f Finding, m []byte) Edit {
			typ := e.Types()[f.Type]
			// Addresses in source code are what they seem.
			if f.Likelihood < Possible || kind == "go source" && (typ == ipAddress || typ == emailAddress || typ == basicAuth) {
				return Edit{}
			}
			false1++
			t.Logf("%s in %s: %.60q %v at %d", typ, kind, m, f.Likelihood, f.Start)
			return Edit{}
		}, false, nil)
		for rest := text; len(rest) > 0; {
			n := min(16<<10, len(rest))
			if _, err := s.Write([]byte(rest[:n]), n == len(rest)); err != nil {
				t.Fatalf("%s: %v", kind, err)
			}
			rest = rest[n:]
		}
		s.Free()
	}
	t.Logf("%d false positives in %.1f MiB, %d detectors", false1, float64(total)/(1<<20), len(e.Types()))
	if size == 6<<20 && total < 100<<20 {
		t.Errorf("%d bytes of clean data: want at least 100 MiB", total)
	}
	if false1 > 1 {
		t.Errorf("%d false positives in %d bytes: want at most 1", false1, total)
	}
}
