package wasmmodule

import (
	"bytes"
	"context"
	"encoding/base64"
	"errors"
	"fmt"
	"log/slog"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"go.uber.org/goleak"

	"github.com/fairlead-mesh/fairlead/filters"
	"github.com/fairlead-mesh/fairlead/internal/message"
	"github.com/fairlead-mesh/fairlead/internal/stats"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// logged is a log that may be written to and read at once.
type logged struct {
	mu sync.Mutex
	b  bytes.Buffer
}

func (l *logged) Write(p []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.b.Write(p)
}

func (l *logged) String() string {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.b.String()
}

// testStore is a Store with short pauses and one attempt.
func testStore(t *testing.T, o Options) (*Store, *logged) {
	t.Helper()
	l := &logged{}
	o.Logger = slog.New(slog.NewTextHandler(l, nil))
	if o.Attempts == 0 {
		o.Attempts = 1
	}
	if o.LaterPause == 0 {
		o.LaterPause = time.Millisecond
	}
	s := New(o)
	t.Cleanup(s.Close)
	return s, l
}

func refTo(url string) filters.ModuleRef { return filters.ModuleRef{URL: url, Retries: -1} }

// eventually waits until f is true.
func eventually(t *testing.T, what string, f func() bool) {
	t.Helper()
	for end := time.Now().Add(10 * time.Second); !f(); time.Sleep(time.Millisecond) {
		if time.Now().After(end) {
			t.Fatal("in vain: " + what)
		}
	}
}

// settled asks for a module until it is here or has failed.
func settled(t *testing.T, s *Store, ref filters.ModuleRef) ([]byte, error) {
	t.Helper()
	eventually(t, "the module is settled", func() bool { _, ok, _ := s.Look(ref); return ok })
	return s.Module(ref)
}

func dockerConfig(host, user, password string) string {
	return fmt.Sprintf(`{"auths": {%q: {"auth": %q}}}`, host, base64.StdEncoding.EncodeToString([]byte(user+":"+password)))
}

// clusters answers for every cluster but "none".
type clusters struct {
	body   []byte
	status int
	asked  atomic.Pointer[string]
}

func (c *clusters) RoundTrip(_ context.Context, cluster string, req *filters.Callout, limit int64) (*filters.CalloutResponse, error) {
	if cluster == "none" {
		return nil, errors.New("cluster none: no such cluster")
	}
	what := cluster + " " + req.Header.Get(message.Authority) + req.Header.Get(message.Path)
	c.asked.Store(&what)
	return &filters.CalloutResponse{Status: c.status, Body: c.body}, nil
}

func TestAModuleOfAClusterIsFetchedByIt(t *testing.T) {
	c := &clusters{body: guest("cluster"), status: 200}
	s, _ := testStore(t, Options{Upstreams: c, LaterPause: time.Hour})
	ref := filters.ModuleRef{URL: "https://modules.example/a/b?c", Cluster: "modules"}
	if b, err := settled(t, s, ref); err != nil || !bytes.Equal(b, c.body) {
		t.Errorf("%q, %v", b, err)
	}
	if got := *c.asked.Load(); got != "modules modules.example/a/b?c" {
		t.Errorf("asked for %q", got)
	}
	c.status = 503
	ref.URL = "https://modules.example/other"
	if _, err := settled(t, s, ref); err == nil || !strings.Contains(err.Error(), "cluster modules: the server answers 503") {
		t.Error(err)
	}
	ref.Cluster = "none"
	if _, err := settled(t, s, ref); err == nil || !strings.Contains(err.Error(), "no such cluster") {
		t.Error(err)
	}
	without, _ := testStore(t, Options{LaterPause: time.Hour})
	if _, err := settled(t, without, ref); err == nil {
		t.Error("without clusters")
	}
}

func TestAModuleOfAServerThatComesBackIsTakenUp(t *testing.T) {
	r := newRegistry(t)
	var down atomic.Bool
	down.Store(true)
	r.hook = func(w http.ResponseWriter, _ *http.Request) bool {
		if down.Load() {
			w.WriteHeader(http.StatusBadGateway)
		}
		return down.Load()
	}
	r.pushModule("v1", guest("late"))
	var changes atomic.Int64
	reg := &stats.Registry{}
	s, log := testStore(t, Options{OnChange: func() { changes.Add(1) }, Stats: reg.Scope("fairlead_wasm_"), Attempts: 2})
	ref := filters.ModuleRef{URL: r.url(":v1"), Retries: -1, Base: time.Millisecond}
	if _, err := s.Module(ref); !errors.Is(err, filters.ErrModulePending) {
		t.Errorf("at first: %v", err)
	}
	if _, err := settled(t, s, ref); err == nil || !strings.Contains(err.Error(), "502") {
		t.Errorf("while the server is down: %v", err)
	}
	eventually(t, "the failure is told", func() bool { return changes.Load() == 1 })
	eventually(t, "it is tried again", func() bool { return r.count("manifests") > 4 })
	if n := strings.Count(log.String(), "can't be fetched"); n > 2 {
		t.Errorf("%d lines for one failure:\n%s", n, log)
	}
	down.Store(false)
	eventually(t, "the module arrives", func() bool { b, err := s.Module(ref); return err == nil && bytes.Equal(b, guest("late")) })
	eventually(t, "the arrival is told", func() bool { return changes.Load() == 2 })
	var out bytes.Buffer
	if err := reg.WritePrometheus(&out); err != nil {
		t.Fatal(err)
	}
	for _, want := range []string{`fairlead_wasm_module_fetches_total{result="success"} 1`, `fairlead_wasm_module_fetches_total{result="manifest_failure"}`, `fairlead_wasm_module_cache_entries 1`, `fairlead_wasm_modules_missing 0`} {
		if !strings.Contains(out.String(), want) {
			t.Errorf("no %s in\n%s", want, out.String())
		}
	}
}

func TestASlowServerIsNotWaitedFor(t *testing.T) {
	r := newRegistry(t)
	end := make(chan struct{})
	t.Cleanup(func() { close(end) })
	r.hook = func(_ http.ResponseWriter, req *http.Request) bool {
		select {
		case <-end:
		case <-req.Context().Done():
		}
		return true
	}
	t.Run("longer than an attempt may take", func(t *testing.T) {
		s, _ := testStore(t, Options{Timeout: 20 * time.Millisecond, LaterPause: time.Hour})
		if _, err := settled(t, s, refTo(r.url(":v1"))); err == nil || !strings.Contains(err.Error(), "no answer within 20ms") {
			t.Error(err)
		}
	})
	t.Run("longer than a configuration waits", func(t *testing.T) {
		var changes atomic.Int64
		s, log := testStore(t, Options{Wait: 20 * time.Millisecond, OnChange: func() { changes.Add(1) }})
		if _, err := settled(t, s, refTo(r.url(":v1"))); !errors.Is(err, filters.ErrModulePending) {
			t.Error(err)
		}
		eventually(t, "it is told", func() bool { return changes.Load() == 1 })
		if !strings.Contains(log.String(), "not here in time") {
			t.Error(log)
		}
	})
	t.Run("longer than it is wanted", func(t *testing.T) {
		s, _ := testStore(t, Options{})
		n := r.count("manifests")
		s.Want([]filters.ModuleRef{refTo(r.url(":v1"))})
		eventually(t, "the request", func() bool { return r.count("manifests") == n+1 })
		s.Want(nil)
		if n := s.missing(); n != 0 {
			t.Errorf("%d modules are missed", n)
		}
	})
}

func TestAConfigurationSaysHowOftenItIsTriedAtOnce(t *testing.T) {
	r := newRegistry(t)
	r.hook = func(w http.ResponseWriter, _ *http.Request) bool {
		w.WriteHeader(http.StatusServiceUnavailable)
		return true
	}
	for retries, want := range map[int]int{-1: 4, 0: 1, 2: 3} {
		n := r.count("manifests")
		s, _ := testStore(t, Options{Attempts: 4, LaterPause: time.Hour})
		if _, err := settled(t, s, filters.ModuleRef{URL: r.url(":v1"), Retries: retries, Base: time.Millisecond, Max: 2 * time.Millisecond}); err == nil {
			t.Error("it is here")
		}
		if got := r.count("manifests") - n; got != want {
			t.Errorf("%d retries: %d attempts, want %d", retries, got, want)
		}
	}
}

func TestAStoreThatIsClosedFetchesNothing(t *testing.T) {
	r := newRegistry(t)
	r.pushModule("v1", guest("x"))
	s, _ := testStore(t, Options{})
	s.Close()
	if b, err := s.Module(refTo(r.url(":v1"))); err == nil || errors.Is(err, filters.ErrModulePending) {
		t.Errorf("%q, %v", b, err)
	}
	if n := r.count("v2"); n != 0 {
		t.Errorf("%d requests", n)
	}
}

func TestTheIndexOfTheCacheIsBounded(t *testing.T) {
	c := newCache(t.TempDir(), 1<<20, time.Hour, slog.Default())
	c.known("")
	sum, err := c.put(guest("x"))
	if err != nil {
		t.Fatal(err)
	}
	for i := range maxNames {
		c.names[fmt.Sprint(i)] = sum
	}
	c.remember("last", sum)
	if len(c.names) != maxNames || c.known("last") != sum {
		t.Errorf("%d names", len(c.names))
	}
}

func TestRequestsForOneModuleAreOne(t *testing.T) {
	r := newRegistry(t)
	r.pushModule("v1", guest("one"))
	s, _ := testStore(t, Options{})
	var wg sync.WaitGroup
	for range 50 {
		wg.Go(func() {
			for range 20 {
				_, _ = s.Module(refTo(r.url(":v1")))
			}
		})
	}
	wg.Wait()
	if _, err := settled(t, s, refTo(r.url(":v1"))); err != nil {
		t.Fatal(err)
	}
	if n := r.count("manifests"); n != 1 {
		t.Errorf("%d requests for the manifest", n)
	}
}

func TestFewModulesAreFetchedAtATime(t *testing.T) {
	r := newRegistry(t)
	var now, most atomic.Int64
	r.hook = func(http.ResponseWriter, *http.Request) bool {
		if n := now.Add(1); n > most.Load() {
			most.Store(n)
		}
		time.Sleep(2 * time.Millisecond)
		now.Add(-1)
		return false
	}
	s, _ := testStore(t, Options{LaterPause: time.Hour})
	var refs []filters.ModuleRef
	for i := range 20 {
		tag := fmt.Sprintf("v%d", i)
		r.pushModule(tag, guest(tag))
		refs = append(refs, refTo(r.url(":"+tag)))
	}
	s.Want(refs)
	for _, ref := range refs {
		if _, err := settled(t, s, ref); err != nil {
			t.Error(err)
		}
	}
	if n := most.Load(); n > concurrency {
		t.Errorf("%d requests at a time", n)
	}
}

func TestWhenAnImageIsPulledAgain(t *testing.T) {
	for _, c := range []struct {
		policy, tag string
		again       bool
	}{
		{"", ":v1", false},
		{"", ":latest", true},
		{"IfNotPresent", ":latest", false},
		{"Always", ":v1", true},
		{"Always", ":latest", true},
	} {
		t.Run(c.policy+c.tag, func(t *testing.T) {
			r := newRegistry(t)
			r.pushModule(c.tag[1:], guest("old"))
			s, _ := testStore(t, Options{})
			ref := filters.ModuleRef{URL: r.url(c.tag), PullPolicy: c.policy, ResourceVersion: "1", Retries: -1}
			if _, err := settled(t, s, ref); err != nil {
				t.Fatal(err)
			}
			r.pushModule(c.tag[1:], guest("new"))
			if b, err := settled(t, s, ref); err != nil || !bytes.Equal(b, guest("old")) {
				t.Errorf("the same version: %q, %v", b, err)
			}
			ref.ResourceVersion = "2"
			want := guest("old")
			if c.again {
				want = guest("new")
			}
			if b, err := settled(t, s, ref); err != nil || !bytes.Equal(b, want) {
				t.Errorf("the next version: %q, %v", b, err)
			}
			// Nothing is new in the image: its layers are not fetched again.
			n := r.count("blobs")
			ref.ResourceVersion = "3"
			if b, err := settled(t, s, ref); err != nil || !bytes.Equal(b, want) {
				t.Errorf("the third version: %q, %v", b, err)
			}
			if r.count("blobs") != n {
				t.Error("the layers were fetched again")
			}
		})
	}
}

func TestARestartedProxyHasItsModules(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "modules")
	r := newRegistry(t)
	r.pushModule("v1", guest("kept"))
	ref := refTo(r.url(":v1"))
	ref.PullSecret = dockerConfig("elsewhere.example", "robot", "s3cr3t-word")
	s, _ := testStore(t, Options{Dir: dir})
	if _, err := settled(t, s, ref); err != nil {
		t.Fatal(err)
	}
	s.Close()
	r.Close()
	s, _ = testStore(t, Options{Dir: dir})
	if b, err := s.Module(ref); err != nil || !bytes.Equal(b, guest("kept")) {
		t.Errorf("after a restart: %q, %v", b, err)
	}
	files, _ := filepath.Glob(filepath.Join(dir, "*"))
	if len(files) != 2 {
		t.Errorf("files: %v", files)
	}
	for _, f := range files {
		b, _ := os.ReadFile(f)
		if bytes.Contains(b, []byte("s3cr3t")) || bytes.Contains(b, []byte(r.host)) {
			t.Errorf("%s tells where it is from, or the secret", f)
		}
	}
}

func TestAFileThatWasAlteredIsFetchedAgain(t *testing.T) {
	dir := t.TempDir()
	r := newRegistry(t)
	r.pushModule("v1", guest("kept"))
	s, log := testStore(t, Options{Dir: dir})
	if _, err := settled(t, s, refTo(r.url(":v1"))); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(dir, sumOf(guest("kept"))+fileSuffix), guest("evil"), 0o600); err != nil {
		t.Fatal(err)
	}
	if b, err := s.Module(refTo(r.url(":v1"))); !errors.Is(err, filters.ErrModulePending) {
		t.Errorf("%q, %v", b, err)
	}
	eventually(t, "it is fetched again", func() bool {
		b, err := s.Module(refTo(r.url(":v1")))
		return err == nil && bytes.Equal(b, guest("kept"))
	})
	if !strings.Contains(log.String(), "not what it was") {
		t.Error(log)
	}
}

func TestADirectoryThatCanNotBeUsedIsDoneWithout(t *testing.T) {
	file := filepath.Join(t.TempDir(), "file")
	if err := os.WriteFile(file, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	r := newRegistry(t)
	r.pushModule("v1", guest("mem"))
	s, log := testStore(t, Options{Dir: filepath.Join(file, "x")})
	if b, err := settled(t, s, refTo(r.url(":v1"))); err != nil || !bytes.Equal(b, guest("mem")) {
		t.Errorf("%q, %v", b, err)
	}
	if !strings.Contains(log.String(), "can't be used") {
		t.Error(log)
	}
}

func TestTheCacheKeepsWhatIsInUse(t *testing.T) {
	for _, where := range []string{"memory", "disk"} {
		t.Run(where, func(t *testing.T) {
			o := Options{MaxModule: 1000, MaxCache: 2000, LaterPause: time.Hour, PurgeInterval: 5 * time.Millisecond, Expiry: time.Hour}
			if where == "disk" {
				o.Dir = t.TempDir()
			}
			r := newRegistry(t)
			ref := map[string]filters.ModuleRef{}
			for _, n := range []string{"a", "b", "c"} {
				r.pushModule(n, append(guest(n), make([]byte, 800)...))
				ref[n] = refTo(r.url(":" + n))
			}
			s, _ := testStore(t, o)
			s.Want([]filters.ModuleRef{ref["a"], ref["b"]})
			for _, n := range []string{"a", "b"} {
				if _, err := settled(t, s, ref[n]); err != nil {
					t.Fatal(err)
				}
			}
			s.Want([]filters.ModuleRef{ref["a"], ref["b"], ref["c"]})
			if _, err := settled(t, s, ref["c"]); err == nil || !strings.Contains(err.Error(), "no room") {
				t.Errorf("a third one: %v", err)
			}
			s.Want([]filters.ModuleRef{ref["b"]})
			s.Want([]filters.ModuleRef{ref["b"], ref["c"]})
			if _, err := settled(t, s, ref["c"]); err != nil {
				t.Errorf("instead of another: %v", err)
			}
			if n, size := s.cache.size(); n != 2 || size > 2000 {
				t.Errorf("%d modules, %d bytes", n, size)
			}
			s.cache.purge(time.Now().Add(2 * time.Hour))
			if n, _ := s.cache.size(); n != 2 {
				t.Errorf("%d modules: those in use were removed", n)
			}
			s.Want(nil)
			s.cache.purge(time.Now().Add(2 * time.Hour))
			if n, size := s.cache.size(); n != 0 || size != 0 {
				t.Errorf("%d modules, %d bytes are left", n, size)
			}
			if o.Dir != "" {
				if files, _ := filepath.Glob(filepath.Join(o.Dir, "*"+fileSuffix)); len(files) > 0 {
					t.Errorf("files are left: %v", files)
				}
			}
		})
	}
}
