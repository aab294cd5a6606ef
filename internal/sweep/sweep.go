// Package sweep gives fuzz targets a second, unguided way to run: mutants of
// the corpus go through the target's own function, in one process, without the
// instrumentation and the worker processes of Go's fuzzing engine.
//
// The engine learns which inputs reach new code, and pays for it with most of
// its time. A sweep learns nothing, but starts from what the engine has found,
// and executes ten to a hundred times as many inputs. The one doesn't replace
// the other: see docs/fuzzing.md.
//
// Without FUZZ_SWEEP in the environment nothing changes for a target.
//
//	FUZZ_SWEEP         mutants to execute
//	FUZZ_SWEEP_CORPUS  directory of more inputs, such as those that the engine keeps
//	FUZZ_SWEEP_SEED    seed of the mutants, 0 or none for a random one
//	FUZZ_SWEEP_FROM    first mutant, counted from 0
//	FUZZ_SWEEP_TRACE   if set, a mutant is written before it is executed, so that one that ends the process is found
package sweep

import (
	"fmt"
	"hash/fnv"
	"io"
	"math/rand/v2"
	"os"
	"path/filepath"
	"reflect"
	"runtime/debug"
	"strconv"
	"sync/atomic"
	"testing"
	"time"
)

// chunk is how many mutants share a testing.T: what it gathers (logs, cleanups,
// temporary directories) is dropped with it.
const chunk = 256

var accepted atomic.Int64

// Accepted is called by a target once for an input that got past its parser; a
// sweep prints the share, for that of inputs which are refused at once says
// little. It may be called by any goroutine, and does nothing else.
func Accepted() { accepted.Add(1) }

// Around returns fn, which is what f.Fuzz takes. In a sweep it returns a
// function that also collects the inputs that f.Fuzz runs it with, those of
// f.Add and of testdata/fuzz, and has fn executed with their mutants when
// f.Fuzz has returned. A mutant that fails is written to testdata/fuzz.
// Mutants that fn skips are not counted as executed.
func Around[F any](f *testing.F, fn F) F {
	f.Helper()
	if os.Getenv("FUZZ_SWEEP") == "" {
		return fn
	}
	s := &sweeper{name: f.Name(), dir: filepath.Join("testdata", "fuzz", f.Name()), out: os.Stdout}
	if err := s.configure(os.Getenv); err != nil {
		f.Fatal(err)
	}
	v := reflect.ValueOf(fn)
	for i := 1; i < v.Type().NumIn(); i++ {
		s.types = append(s.types, v.Type().In(i))
	}
	s.call = caller(fn)
	f.Cleanup(func() {
		if f.Failed() || f.Skipped() {
			return
		}
		if err := s.load(); err != nil {
			f.Error(err)
			return
		}
		// f can't be asked for another testing.T any more.
		all := func(string, string) (bool, error) { return true, nil }
		if !testing.RunTests(all, []testing.InternalTest{{Name: s.name, F: s.run}}) {
			f.Fail()
		}
	})
	collect, _ := reflect.TypeAssert[F](reflect.MakeFunc(v.Type(), func(args []reflect.Value) []reflect.Value {
		s.corpus = append(s.corpus, entryOf(args[1:]))
		return v.Call(args)
	}))
	return collect
}

// caller returns how to call fn, by reflection only if its arguments are not
// among the common ones.
func caller(fn any) func(*testing.T, entry) {
	switch fn := fn.(type) {
	case func(*testing.T, []byte):
		return func(t *testing.T, e entry) { fn(t, e[0].bytes()) }
	case func(*testing.T, string):
		return func(t *testing.T, e entry) { fn(t, string(e[0].b)) }
	case func(*testing.T, []byte, []byte):
		return func(t *testing.T, e entry) { fn(t, e[0].bytes(), e[1].bytes()) }
	case func(*testing.T, []byte, int):
		return func(t *testing.T, e entry) { fn(t, e[0].bytes(), int(e[1].n)) }
	case func(*testing.T, []byte, uint8):
		return func(t *testing.T, e entry) { fn(t, e[0].bytes(), uint8(e[1].n)) }
	}
	v := reflect.ValueOf(fn)
	return func(t *testing.T, e entry) {
		args := make([]reflect.Value, 1, len(e)+1)
		args[0] = reflect.ValueOf(t)
		for i := range e {
			args = append(args, e[i].value(v.Type().In(i+1)))
		}
		v.Call(args)
	}
}

// sweeper executes mutants of one target.
type sweeper struct {
	name   string
	dir    string // of failing inputs
	extra  string // directory of more inputs
	out    io.Writer
	types  []reflect.Type
	call   func(*testing.T, entry)
	corpus []entry

	count       int64 // mutants to execute
	seed, first uint64
	trace       bool

	m *mutator
	// next is the mutant to be made next; from first on, executed and skipped
	// have been.
	next              uint64
	executed, skipped int64
	mutant            entry
	running, failed   bool
	size              int // mutants in a chunk
	began, told       time.Time
}

func (s *sweeper) configure(env func(string) string) (err error) {
	if s.count, err = strconv.ParseInt(env("FUZZ_SWEEP"), 10, 64); err != nil || s.count <= 0 {
		return fmt.Errorf("FUZZ_SWEEP: %q is no number of mutants", env("FUZZ_SWEEP"))
	}
	for name, v := range map[string]*uint64{"FUZZ_SWEEP_SEED": &s.seed, "FUZZ_SWEEP_FROM": &s.first} {
		if env(name) == "" {
			continue
		}
		if *v, err = strconv.ParseUint(env(name), 10, 64); err != nil {
			return fmt.Errorf("%s: %w", name, err)
		}
	}
	for s.seed == 0 {
		s.seed = rand.Uint64()
	}
	s.trace = env("FUZZ_SWEEP_TRACE") != ""
	s.extra = env("FUZZ_SWEEP_CORPUS")
	return nil
}

// load completes the corpus and makes the mutator.
func (s *sweeper) load() error {
	if s.extra != "" {
		more, err := readCorpus(s.extra, s.types)
		if err != nil {
			return err
		}
		s.corpus = append(s.corpus, more...)
	}
	if len(s.corpus) == 0 {
		return fmt.Errorf("%s has no input to make mutants of", s.name)
	}
	s.m = newMutator(s.seed, s.corpus)
	return nil
}

// run executes the mutants.
func (s *sweeper) run(t *testing.T) {
	s.began, s.told, s.next, s.size = time.Now(), time.Now(), s.first, chunk
	for i := range s.corpus {
		before := accepted.Load()
		ok := t.Run("corpus", func(t *testing.T) { s.call(t, s.corpus[i]) })
		if !ok {
			name, err := write(s.dir, "", s.corpus[i], s.types)
			t.Fatalf("an input fails that was known before: written to %s %v", name, err)
		}
		if accepted.Load() > before {
			s.m.good = append(s.m.good, i)
		}
	}
	_, _ = fmt.Fprintf(s.out, "sweep: %s: seed %d, corpus of %d, %d accepted, hash %x\n", s.name, s.seed, len(s.corpus), len(s.m.good), s.hash())
	accepted.Store(0)
	for s.executed < s.count {
		next, executed, skipped := s.next, s.executed, s.skipped
		if !t.Run("mutants", s.chunk) && !s.failed {
			last := s.next
			s.next, s.executed, s.skipped = next, executed, skipped
			s.oneByOne(t, last)
		}
		if s.failed {
			break
		}
		if s.skipped > 1000+100*s.executed {
			t.Errorf("%d mutants are skipped, %d executed", s.skipped, s.executed)
			break
		}
		if time.Since(s.told) >= 5*time.Second {
			s.tell()
		}
	}
	s.tell()
}

// oneByOne executes the mutants before last again, after a cleanup or a
// goroutine of one of them failed when its mutant had returned.
func (s *sweeper) oneByOne(t *testing.T, last uint64) {
	t.Helper()
	first := s.next
	for s.size = 1; s.next < last && !s.failed; {
		if !t.Run("mutant", s.chunk) && !s.failed {
			s.report(t, s.next-1)
		}
	}
	if !s.failed {
		s.failed = true
		t.Errorf("one of the mutants %d to %d of seed %d fails, but none alone", first, last-1, s.seed)
	}
}

// tell prints how far the sweep has come, in a form that tools/fuzz reads.
func (s *sweeper) tell() {
	s.told = time.Now()
	rate := float64(s.executed) / time.Since(s.began).Seconds()
	_, _ = fmt.Fprintf(s.out, "sweep: %s: executed %d, skipped %d, accepted %d, next %d, %.0f/s\n", s.name, s.executed, s.skipped, accepted.Load(), s.next, rate)
}

// chunk executes mutants until one does not return or fails, or the chunk or
// the sweep is done.
func (s *sweeper) chunk(t *testing.T) {
	defer s.ended(t)
	for n := 0; n < s.size && s.executed < s.count; n++ {
		s.mutant = s.m.mutant(s.next)
		s.next++
		if s.trace {
			if _, err := write(s.dir, "traced-by-sweep", s.mutant, s.types); err != nil {
				t.Fatal(err)
			}
		}
		s.running = true
		s.call(t, s.mutant)
		s.running = false
		if s.trace {
			_ = os.Remove(filepath.Join(s.dir, "traced-by-sweep"))
		}
		s.executed++
		if t.Failed() {
			s.report(t, s.next-1)
			return
		}
	}
}

// ended is deferred, for a mutant that did not return.
func (s *sweeper) ended(t *testing.T) {
	if !s.running {
		return
	}
	s.running = false
	p := recover()
	if s.trace {
		_ = os.Remove(filepath.Join(s.dir, "traced-by-sweep"))
	}
	switch {
	case p != nil:
		t.Errorf("panic: %v\n%s", p, debug.Stack())
	case t.Skipped() && !t.Failed():
		s.skipped++
		return
	}
	s.executed++
	if !t.Failed() {
		t.Error("the target ended its goroutine")
	}
	s.report(t, s.next-1)
}

// report writes mutant i to the corpus of the target, where it fails go test
// from now on.
func (s *sweeper) report(t *testing.T, i uint64) {
	t.Helper()
	s.failed = true
	// Made again: the target may have changed what it was given.
	name, err := write(s.dir, "", s.m.mutant(i), s.types)
	if err != nil {
		t.Errorf("mutant %d of seed %d fails, and can't be written: %v", i, s.seed, err)
		return
	}
	t.Errorf("mutant %d of seed %d fails: written to %s", i, s.seed, name)
}

// hash tells corpora apart: the same seed makes the same mutants of the same
// corpus only.
func (s *sweeper) hash() uint64 {
	h := fnv.New64a()
	for _, e := range s.corpus {
		_, _ = h.Write(encode(e, s.types))
	}
	return h.Sum64()
}
