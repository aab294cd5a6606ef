package rego

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/fairlead-mesh/fairlead/filters"
	"github.com/fairlead-mesh/fairlead/internal/message"
	"github.com/fairlead-mesh/fairlead/internal/stats"
)

// server is a bundle server behind a cluster.
type server struct {
	mu       sync.Mutex
	status   int
	body     []byte
	etag     string
	err      error
	requests []message.Header
	clusters []string
	timeouts []time.Duration
}

func (s *server) set(change func()) { s.mu.Lock(); change(); s.mu.Unlock() }

func (s *server) seen() int { s.mu.Lock(); defer s.mu.Unlock(); return len(s.requests) }

func (s *server) last() *message.Header {
	s.mu.Lock()
	defer s.mu.Unlock()
	return &s.requests[len(s.requests)-1]
}

func (s *server) RoundTrip(_ context.Context, cluster string, req *filters.Callout, limit int64) (*filters.CalloutResponse, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	var h message.Header
	h.CopyFrom(&req.Header)
	s.requests, s.clusters, s.timeouts = append(s.requests, h), append(s.clusters, cluster), append(s.timeouts, req.Timeout)
	if s.err != nil {
		return nil, s.err
	}
	a := &filters.CalloutResponse{Status: s.status, Body: slices.Clone(s.body)}
	if s.etag != "" {
		a.Header.Add("etag", s.etag)
		if h.Get("if-none-match") == s.etag && s.status == 200 {
			a.Status, a.Body = 304, nil
		}
	}
	if int64(len(a.Body)) > limit {
		return nil, errors.New("too large")
	}
	return a, nil
}

const httpBundleConf = `"policy":{"bundles":[{"name":"authz","http":{"cluster":"bundles","path":"/b.tar.gz?x=1","minDelay":"10s","maxDelay":"10s","timeout":"3s"}}]}`

// answer is the status that a request of a method gets from f.
func answer(t testing.TB, f filters.HTTPFilter, method string) (int, string) {
	t.Helper()
	s := request{method: method}.stream()
	_, r := run(t, f, s)
	return r.Status(), s.Info.Details
}

func compileOnly(t testing.TB, e *filters.Env, js string) filters.HTTPFilter {
	t.Helper()
	f, err := Factory{}.Compile(e, decode(t, js), nil)
	if err != nil {
		t.Fatal(err)
	}
	return f
}

func closeFilter(f filters.HTTPFilter) { _ = f.(interface{ Close() error }).Close() }

func TestABundleIsDownloadedAndSwapped(t *testing.T) {
	get, post := policyBundle(t, "GET"), policyBundle(t, "POST")
	synctest.Test(t, func(t *testing.T) {
		srv := &server{status: 503}
		reg := &stats.Registry{}
		e := &filters.Env{Name: "rego", Stats: reg.Scope(""), Logger: slog.New(slog.DiscardHandler), Shared: &filters.Shared{}, Upstreams: srv}
		f := compileOnly(t, e, `{`+httpBundleConf+`,"failureModeAllow":true}`)
		defer closeFilter(f)
		step := func(d time.Duration) { time.Sleep(d); synctest.Wait() }
		want := func(what, method string, status int) {
			t.Helper()
			if got, details := answer(t, f, method); got != status {
				t.Errorf("%s: %s answered %d (%s): want %d", what, method, got, details, status)
			}
		}
		step(0)
		if st, details := answer(t, f, "GET"); st != 403 || details != "rego_denied{no_policy}" {
			t.Errorf("without a bundle: %d, %s", st, details)
		}
		step(3 * time.Second)
		if n := srv.seen(); n < 4 || n > 10 {
			t.Errorf("%d downloads within 3 s of failures: want some, and ever fewer", n)
		}
		srv.set(func() { srv.status, srv.body, srv.etag = 200, get, `"v1"` })
		step(10 * time.Second)
		want("the first bundle", "GET", 200)
		want("the first bundle", "POST", 403)
		first := f.(*filter).program.current.Load()

		h := srv.last()
		for k, v := range map[string]string{message.Method: "GET", message.Path: "/b.tar.gz?x=1", message.Authority: "bundles", message.Scheme: "http", "prefer": "modes=snapshot"} {
			if h.Get(k) != v {
				t.Errorf("request has %s %q: want %q", k, h.Get(k), v)
			}
		}
		n := srv.seen()
		step(30 * time.Second)
		if got := srv.seen() - n; got != 3 {
			t.Errorf("%d downloads within 30 s: want one each 10 s", got)
		}
		if got := srv.last().Get("if-none-match"); got != `"v1"` {
			t.Errorf("if-none-match %q", got)
		}
		if f.(*filter).program.current.Load() != first {
			t.Error("compiled again without a change")
		}
		srv.set(func() { srv.body, srv.etag = post, `"v2"` })
		step(10 * time.Second)
		want("the second bundle", "GET", 403)
		want("the second bundle", "POST", 200)

		for what, change := range map[string]func(){
			"an outage":                  func() { srv.err = errors.New("reset") },
			"a 404":                      func() { srv.status, srv.err = 404, nil },
			"a redirect":                 func() { srv.status = 302 },
			"garbage":                    func() { srv.status, srv.body, srv.etag = 200, []byte("garbage"), `"bad"` },
			"a bundle that is too large": func() { srv.body, srv.etag = make([]byte, 17<<20), `"big"` },
			"a bundle that does not compile": func() {
				srv.body, srv.etag = archive(t, map[string]string{"/a.rego": v1allow + "allow if nope(1)"}), `"nc"`
			},
			"a bundle without the rule": func() {
				srv.body, srv.etag = archive(t, map[string]string{"/a.rego": "package other\nx := 1"}), `"other"`
			},
		} {
			srv.set(func() { srv.status, srv.err = 200, nil; change() })
			step(25 * time.Second)
			want(what, "POST", 200)
			want(what, "GET", 403)
		}
		srv.set(func() { srv.body, srv.etag, srv.status, srv.err = get, "", 200, nil })
		step(25 * time.Second)
		want("a server without etags", "GET", 200)
		n = srv.seen()
		second := f.(*filter).program.current.Load()
		step(20 * time.Second)
		if srv.seen() == n || f.(*filter).program.current.Load() != second {
			t.Error("the same content was compiled again")
		}
		var b strings.Builder
		if err := reg.WritePrometheus(&b); err != nil {
			t.Fatal(err)
		}
		for _, want := range []string{
			`fairlead_policy_bundle_downloads_total{bundle="authz",result="loaded"} `,
			`fairlead_policy_bundle_downloads_total{bundle="authz",result="failed"} `,
			`fairlead_policy_bundle_last_success_timestamp_seconds{bundle="authz"} 9`,
			`fairlead_policy_decisions_total{policy="rego",result="no_policy",dry_run="false"} 1`,
		} {
			if !strings.Contains(b.String(), want) {
				t.Errorf("no %s in\n%s", want, b.String())
			}
		}
	})
}

// TestAChangedConfigurationKeepsItsBundle: nothing is denied while the new
// configuration waits for a download.
func TestAChangedConfigurationKeepsItsBundle(t *testing.T) {
	get := policyBundle(t, "GET")
	synctest.Test(t, func(t *testing.T) {
		srv := &server{status: 200, body: get, etag: "v"}
		e := env()
		e.Upstreams = srv
		f := compileOnly(t, e, `{`+httpBundleConf+`}`)
		synctest.Wait()
		srv.set(func() { srv.err = errors.New("down") })
		for _, js := range []string{
			`{` + httpBundleConf + `,"query":"envoy/authz/other"}`,
			`{` + strings.ReplaceAll(httpBundleConf, `"10s"`, `"20s"`) + `}`,
			`{` + httpBundleConf + `,"dryRun":true,"allowBuiltins":["http.send"]}`,
		} {
			g := compileOnly(t, e, js)
			closeFilter(f)
			f = g
			if st, details := answer(t, f, "GET"); st != 200 {
				t.Errorf("%s: %d, %s", js, st, details)
			}
		}
		closeFilter(f)
		n := srv.seen()
		time.Sleep(time.Hour)
		if srv.seen() != n {
			t.Error("downloads go on after the last user has gone")
		}
	})
}

// TestASwapLosesNoRequest: each request is answered by the one or the other
// policy.
func TestASwapLosesNoRequest(t *testing.T) {
	bundles := [][]byte{
		archive(t, map[string]string{"/a.rego": "package envoy.authz\nallow if input.attributes.request.http.method == \"GET\""}),
		archive(t, map[string]string{"/a.rego": "package envoy.authz\nimport input.attributes.request.http as h\nallow if h.method == \"GET\""}),
	}
	srv := &server{status: 200, body: bundles[0]}
	e := env()
	e.Upstreams = srv
	const js = `{"policy":{"bundles":[{"http":{"cluster":"bundles","path":"/b","minDelay":"0.1s","maxDelay":"0.1s"}}]},"timeout":"10s"`
	f := compileOnly(t, e, js+`}`)
	defer closeFilter(f)
	p := f.(*filter).program
	// Others compile the same bundle at the same time.
	for _, b := range []string{"http.send", "opa.runtime", "net.lookup_ip_addr"} {
		g := compileOnly(t, e, js+`,"allowBuiltins":["`+b+`"]}`)
		defer closeFilter(g)
		if g.(*filter).program == p {
			t.Fatal("not a program of its own")
		}
	}
	for i := 0; p.current.Load() == nil; i++ {
		if i > 2000 {
			t.Fatal("no bundle")
		}
		time.Sleep(10 * time.Millisecond)
	}
	var lost, asked atomic.Int64
	stop := make(chan struct{})
	var wg sync.WaitGroup
	for range 4 {
		wg.Go(func() {
			for {
				select {
				case <-stop:
					return
				default:
				}
				asked.Add(1)
				s := request{}.stream()
				s.SetChain([]filters.HTTPFilter{f, terminal(func(s *filters.Stream) (*filters.Response, error) { return s.NewResponse(), nil })})
				if r, err := filters.Start(s); err != nil || r.Local {
					t.Errorf("lost: %v, %s", err, s.Info.Details)
					lost.Add(1)
				}
			}
		})
	}
	swaps := 0
	for i := 1; i < 6; i++ {
		now := p.current.Load()
		srv.set(func() { srv.body = bundles[i%2] })
		for range 2000 {
			if p.current.Load() != now {
				swaps++
				break
			}
			time.Sleep(10 * time.Millisecond)
		}
	}
	close(stop)
	wg.Wait()
	if lost.Load() > 0 || swaps != 5 {
		t.Errorf("%d of %d requests lost at %d swaps: want none at 5", lost.Load(), asked.Load(), swaps)
	}
}

func TestCredentialsOfDownloads(t *testing.T) {
	get := policyBundle(t, "GET")
	file := filepath.Join(t.TempDir(), "token")
	if err := os.WriteFile(file, []byte("first\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	synctest.Test(t, func(t *testing.T) {
		srv := &server{status: 200, body: get}
		e := env()
		e.Upstreams = srv
		f := compileOnly(t, e, fmt.Sprintf(`{"policy":{"bundles":[{"http":{"cluster":"c","path":"/b","authority":"host","https":true,"minDelay":"10s","maxDelay":"10s","credentials":{"tokenPath":%q}}}]}}`, file))
		defer closeFilter(f)
		synctest.Wait()
		if got := srv.last().Get("authorization"); got != "Bearer first" {
			t.Errorf("authorization %q", got)
		}
		if got := srv.last().Get(message.Scheme) + "://" + srv.last().Get(message.Authority); got != "https://host" {
			t.Errorf("asked %s", got)
		}
		if err := os.WriteFile(file, []byte("second"), 0o600); err != nil {
			t.Fatal(err)
		}
		time.Sleep(10 * time.Second)
		synctest.Wait()
		if got := srv.last().Get("authorization"); got != "Bearer second" {
			t.Errorf("authorization %q after the file was changed", got)
		}
		n := srv.seen()
		for _, bad := range []string{"", "a\r\nx: y"} {
			if err := os.WriteFile(file, []byte(bad), 0o600); err != nil {
				t.Fatal(err)
			}
			time.Sleep(20 * time.Second)
		}
		if srv.seen() > n {
			t.Error("asked without a token")
		}
	})
	synctest.Test(t, func(t *testing.T) {
		srv := &server{status: 200, body: get}
		e := env()
		e.Upstreams = srv
		f := compileOnly(t, e, `{"policy":{"bundles":[{"http":{"cluster":"c","path":"/b","credentials":{"scheme":"Basic","token":"dTpw"}}}]}}`)
		synctest.Wait()
		closeFilter(f)
		if got := srv.last().Get("authorization"); got != "Basic dTpw" {
			t.Errorf("authorization %q", got)
		}
	})
}
