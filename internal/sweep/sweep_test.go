package sweep

import (
	"bytes"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"reflect"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"sync"
	"testing"
)

var allTypes = []reflect.Type{
	reflect.TypeFor[[]byte](), reflect.TypeFor[string](), reflect.TypeFor[bool](), reflect.TypeFor[byte](), reflect.TypeFor[rune](), reflect.TypeFor[int](),
	reflect.TypeFor[int8](), reflect.TypeFor[uint16](), reflect.TypeFor[uint64](), reflect.TypeFor[float32](), reflect.TypeFor[float64](),
}

// goWrote is a file as package testing writes it.
const goWrote = "go test fuzz v1\n[]byte(\"a\\x00\\n\\\"\")\nstring(\"\\xff%\")\nbool(true)\nbyte('\\'')\nint32(-7)\nint(-9223372036854775808)\nint8(-1)\nuint16(65535)\nuint64(18446744073709551615)\nmath.Float32frombits(0x7fc00001)\nmath.Float64frombits(0x1)\n"

func sample(t testing.TB) entry {
	t.Helper()
	e, err := decode([]byte(goWrote), allTypes)
	if err != nil {
		t.Fatal(err)
	}
	return e
}

func TestFilesOfPackageTestingAreReadAndWritten(t *testing.T) {
	e := sample(t)
	if got := string(encode(e, allTypes)); got != goWrote {
		t.Errorf("got %s", got)
	}
	if string(e[0].b) != "a\x00\n\"" || string(e[1].b) != "\xff%" || e[3].value(allTypes[3]).Uint() != '\'' || e[4].value(allTypes[4]).Int() != -7 {
		t.Errorf("%+v", e)
	}
	for _, bad := range []string{"", "go test fuzz v2\nint(1)\n", "go test fuzz v1\nint(1)\nint(2)\n", "go test fuzz v1\nint(1\n", "go test fuzz v1\nint(x)\n", "go test fuzz v1\nuint(1)\n", "go test fuzz v1\nint(99999999999999999999)\n", "go test fuzz v1\nint()\n"} {
		if _, err := decode([]byte(bad), []reflect.Type{reflect.TypeFor[int]()}); err == nil {
			t.Errorf("%q is read", bad)
		}
	}
}

// FuzzDecode: a file that is read is an input that is written and read as the
// same.
func FuzzDecode(f *testing.F) {
	f.Add([]byte(goWrote))
	f.Fuzz(Around(f, func(t *testing.T, b []byte) {
		e, err := decode(b, allTypes)
		if err != nil {
			return
		}
		Accepted()
		out := encode(e, allTypes)
		again, err := decode(out, allTypes)
		if err != nil || !bytes.Equal(encode(again, allTypes), out) {
			t.Fatalf("%q is written as %q: %v", b, out, err)
		}
	}))
}

func corpusOf(texts ...string) (es []entry) {
	for i, s := range texts {
		es = append(es, entry{{kind: reflect.Slice, b: []byte(s)}, {kind: reflect.Int, n: uint64(i)}})
	}
	return es
}

var bytesAndInt = []reflect.Type{reflect.TypeFor[[]byte](), reflect.TypeFor[int]()}

func TestAMutantDependsOnSeedAndNumberOnly(t *testing.T) {
	corpus := corpusOf("GET / HTTP/1.1\r\nHost: a\r\n\r\n", "", strings.Repeat("chunk ", 200))
	one, two, other := newMutator(7, corpus), newMutator(7, corpus), newMutator(8, corpus)
	var made [][]byte
	distinct := map[string]bool{}
	for i := range uint64(2000) {
		made = append(made, encode(one.mutant(i), bytesAndInt))
		distinct[string(made[i])] = true
	}
	same := 0
	for i, was := range slices.Backward(made) {
		if got := encode(two.mutant(uint64(i)), bytesAndInt); !bytes.Equal(got, was) {
			t.Fatalf("mutant %d is %s, was %s", i, got, was)
		}
		if bytes.Equal(encode(other.mutant(uint64(i)), bytesAndInt), was) {
			same++
		}
	}
	if len(distinct) < 1200 || same > 500 {
		t.Errorf("%d of 2000 mutants differ, %d are those of another seed", len(distinct), same)
	}
	if string(corpus[0][0].b) != "GET / HTTP/1.1\r\nHost: a\r\n\r\n" {
		t.Error("the corpus was changed")
	}
}

func TestMutantsAreOfTheirTypesAndBounded(t *testing.T) {
	big := sample(t)
	big[0].b = bytes.Repeat([]byte("x"), 3*largest)
	m := newMutator(1, []entry{sample(t), big})
	near, long := 0, 0
	for i := range uint64(5000) {
		e := m.mutant(i)
		if _, err := decode(encode(e, allTypes), allTypes); err != nil {
			t.Fatalf("mutant %d is %s", i, encode(e, allTypes))
		}
		if n := len(e[0].b); n > 3*largest {
			t.Fatalf("%d bytes", n)
		} else if n > largest {
			long++
		} else if n < 16 {
			near++
		}
		if e[2].n > 1 || e[3].n > 255 || e[7].n > 65535 {
			t.Fatalf("%+v", e)
		}
	}
	if near < 1000 || long < 500 {
		t.Errorf("%d are near the short input, %d near the long one", near, long)
	}
}

// probes are targets that the child process of run sweeps.
var probes = map[string]func(*testing.T, []byte, int){
	"passes": func(*testing.T, []byte, int) {},
	"fails": func(t *testing.T, b []byte, _ int) {
		if bytes.Contains(b, []byte("%2")) {
			clear(b) // what is reported is what it was given
			t.Error("an escape")
		}
	},
	"fails fatally": func(t *testing.T, b []byte, _ int) {
		if bytes.Contains(b, []byte("%2")) {
			t.Fatal("an escape")
		}
	},
	"panics": func(_ *testing.T, b []byte, _ int) {
		if bytes.Contains(b, []byte("%2")) {
			panic("an escape")
		}
	},
	"ends": func(_ *testing.T, b []byte, _ int) {
		if bytes.Contains(b, []byte("%2")) {
			os.Exit(3)
		}
	},
	"cleanup": func(t *testing.T, b []byte, _ int) {
		if bytes.Contains(b, []byte("%2")) {
			t.Cleanup(func() { t.Error("an escape") })
		}
	},
	"skips": func(t *testing.T, b []byte, n int) {
		t.Log(n, t.TempDir(), t.Context().Err())
		if len(b)%2 == 1 {
			t.SkipNow()
		}
		live.Lock()
		defer live.Unlock()
		live.n++
		if live.n > chunk {
			t.Errorf("%d cleanups are waiting", live.n)
		}
		t.Cleanup(func() {
			live.Lock()
			defer live.Unlock()
			live.n--
		})
	},
	"skips all": func(t *testing.T, _ []byte, _ int) { t.Skip() },
}

var live struct {
	sync.Mutex
	n int
}

// TestProbe is what the child process runs.
func TestProbe(t *testing.T) {
	name := os.Getenv("SWEEP_PROBE")
	if name == "" {
		t.Skip("run by others")
	}
	s := &sweeper{name: "Probe", dir: os.Getenv("SWEEP_DIR"), out: os.Stdout, types: bytesAndInt, call: caller(probes[name]), corpus: corpusOf("/a/b?c=d", "/%41", "x")}
	if err := s.configure(os.Getenv); err != nil {
		t.Fatal(err)
	}
	if err := s.load(); err != nil {
		t.Fatal(err)
	}
	s.run(t)
}

var told = regexp.MustCompile(`executed (\d+), skipped (\d+), accepted \d+, next (\d+),`)

// child sweeps a probe in a process of its own, and returns what it printed,
// the numbers in its last line, and the files that it left.
func child(t *testing.T, probe string, env ...string) (out string, executed, skipped, next int, files []string, err error) {
	t.Helper()
	dir := filepath.Join(t.TempDir(), "corpus")
	cmd := exec.CommandContext(t.Context(), os.Args[0], "-test.run=^TestProbe$")
	cmd.Env = append(append(os.Environ(), "SWEEP_PROBE="+probe, "SWEEP_DIR="+dir, "FUZZ_SWEEP_SEED=5"), env...)
	b, err := cmd.CombinedOutput()
	if ms := told.FindAllStringSubmatch(string(b), -1); ms != nil {
		m := ms[len(ms)-1]
		executed, _ = strconv.Atoi(m[1])
		skipped, _ = strconv.Atoi(m[2])
		next, _ = strconv.Atoi(m[3])
	}
	files, _ = filepath.Glob(filepath.Join(dir, "*"))
	return string(b), executed, skipped, next, files, err
}

func TestTheCountIsExactAndSkippedMutantsAreNotInIt(t *testing.T) {
	out, executed, skipped, next, files, err := child(t, "passes", "FUZZ_SWEEP=1001")
	if err != nil || executed != 1001 || skipped != 0 || next != 1001 || len(files) != 0 {
		t.Errorf("%v: %d executed, %d skipped, %d in all, %q\n%s", err, executed, skipped, next, files, out)
	}
	out, executed, skipped, next, files, err = child(t, "skips", "FUZZ_SWEEP=700")
	if err != nil || executed != 700 || skipped < 100 || next != executed+skipped || len(files) != 0 {
		t.Errorf("%v: %d executed, %d skipped, %d in all, %q\n%s", err, executed, skipped, next, files, out)
	}
	if out, _, _, _, _, err = child(t, "skips all", "FUZZ_SWEEP=10"); err == nil || !strings.Contains(out, "are skipped") {
		t.Errorf("%v\n%s", err, out)
	}
}

func TestAMutantThatFailsIsWrittenAndMadeAgain(t *testing.T) {
	for _, probe := range []string{"fails", "fails fatally", "panics", "cleanup"} {
		out, executed, _, _, files, err := child(t, probe, "FUZZ_SWEEP=100000")
		m := regexp.MustCompile(`mutant (\d+) of seed 5 fails: written to (\S+)`).FindStringSubmatch(out)
		if err == nil || m == nil || len(files) != 1 || m[2] != files[0] || executed == 0 || executed == 100000 {
			t.Errorf("%s: %v, %q\n%s", probe, err, files, out)
			continue
		}
		b, err := os.ReadFile(files[0])
		if err != nil {
			t.Fatal(err)
		}
		if e, err := decode(b, bytesAndInt); err != nil || !bytes.Contains(e[0].b, []byte("%2")) {
			t.Errorf("%s: wrote %s, %v", probe, b, err)
		}
		_, executed, _, _, again, err := child(t, probe, "FUZZ_SWEEP=1", "FUZZ_SWEEP_FROM="+m[1])
		if err == nil || executed != 1 || len(again) != 1 || filepath.Base(again[0]) != filepath.Base(files[0]) {
			t.Errorf("%s: mutant %s once more: %v, %q", probe, m[1], err, again)
		}
	}
}

func TestATraceFindsTheMutantThatEndsTheProcess(t *testing.T) {
	out, _, _, _, files, err := child(t, "ends", "FUZZ_SWEEP=100000", "FUZZ_SWEEP_TRACE=1")
	if err == nil || len(files) != 1 {
		t.Fatalf("%v, %q\n%s", err, files, out)
	}
	b, err := os.ReadFile(files[0])
	if err != nil {
		t.Fatal(err)
	}
	if e, err := decode(b, bytesAndInt); err != nil || !bytes.Contains(e[0].b, []byte("%2")) {
		t.Errorf("wrote %s, %v", b, err)
	}
}

func TestATargetIsSweptWithAllThatIsKnown(t *testing.T) {
	extra := t.TempDir()
	for i := range 3 {
		name := filepath.Join(extra, fmt.Sprint(i))
		if err := os.WriteFile(name, []byte("go test fuzz v1\n[]byte("+strconv.Quote(fmt.Sprint("x", i))+")\n"), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	if err := os.WriteFile(filepath.Join(extra, "z"), []byte("go test fuzz v1\nint(1)\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	committed, _ := filepath.Glob("testdata/fuzz/FuzzDecode/*")
	cmd := exec.CommandContext(t.Context(), os.Args[0], "-test.run=^FuzzDecode$")
	cmd.Env = append(os.Environ(), "FUZZ_SWEEP=600", "FUZZ_SWEEP_CORPUS="+extra)
	b, err := cmd.CombinedOutput()
	if want := fmt.Sprintf("corpus of %d,", 1+len(committed)+3); err != nil || !bytes.Contains(b, []byte("executed 600, skipped 0,")) || !bytes.Contains(b, []byte(want)) {
		t.Errorf("%v, want a %s\n%s", err, want, b)
	}
	cmd = exec.CommandContext(t.Context(), os.Args[0], "-test.run=^FuzzDecode$")
	cmd.Env = append(os.Environ(), "FUZZ_SWEEP=many")
	if b, err := cmd.CombinedOutput(); err == nil || !bytes.Contains(b, []byte("no number of mutants")) {
		t.Errorf("%v\n%s", err, b)
	}
}

func TestNothingChangesWithoutASweep(t *testing.T) {
	called := false
	t.Run("f", func(t *testing.T) {
		fn := Around(&testing.F{}, func(*testing.T, string) { called = true })
		fn(t, "x")
	})
	if !called {
		t.Error("not called")
	}
}

func BenchmarkMutant(b *testing.B) {
	m := newMutator(1, corpusOf("GET /a/b?c=d HTTP/1.1\r\nHost: a\r\nContent-Length: 5\r\n\r\n", "POST / HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\n"))
	b.ReportAllocs()
	for i := uint64(0); b.Loop(); i++ {
		m.mutant(i)
	}
}
