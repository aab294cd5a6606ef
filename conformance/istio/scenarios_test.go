package istio

import (
	"net/http"
	"strings"
	"sync/atomic"
	"testing"
	"time"
)

const web = "http://web.app.svc.cluster.local"

// saw fails unless an application saw n requests, and returns them.
func saw(t *testing.T, a *app, n int) []request {
	t.Helper()
	r := a.requests()
	if len(r) != n {
		t.Fatalf("%s saw %d requests, want %d: %+v", a.pod, len(r), n, r)
	}
	return r
}

func TestAWeightedSplit(t *testing.T) {
	s := begin(t, "split")
	const n = 400
	for range n {
		if a := s.shop.get(t, web+"/split"); a.Status != 200 {
			t.Fatalf("%+v", a)
		}
	}
	v1, v2 := len(s.web1.requests()), len(s.web2.requests())
	// 80 to 20; the bounds are five standard deviations away.
	if v1+v2 != n || v2 < n/10 || v2 > n*3/10 {
		t.Errorf("v1 saw %d, v2 %d of %d requests, want 80 to 20", v1, v2, n)
	}
}

func TestARouteByHeaders(t *testing.T) {
	s := begin(t, "headers")
	for _, c := range []struct {
		name, method, path, header string
		want                       *app
	}{
		{"no header", "GET", "/", "", s.web1},
		{"an exact header", "GET", "/", "x-version: v2", s.web2},
		{"names don't mind case", "GET", "/", "X-VERSION: v2", s.web2},
		{"another value", "GET", "/", "x-version: v22", s.web1},
		{"a regular expression over the whole value", "GET", "/", "cookie: a=b; user=beta; c=d", s.web2},
		{"one that doesn't match", "GET", "/", "cookie: user=alpha", s.web1},
		{"a query parameter", "GET", "/?a=1&version=v2", "", s.web2},
		{"a method and a path", "DELETE", "/items/1", "", s.web2},
		{"a path prefix is of whole elements", "DELETE", "/itemsx", "", s.web1},
	} {
		t.Run(c.name, func(t *testing.T) {
			s.web1.reset(nil)
			s.web2.reset(nil)
			var headers []string
			if c.header != "" {
				headers = []string{c.header}
			}
			a, err := s.shop.try(c.method, web+c.path, headers...)
			if err != nil || a.Status != 200 || a.Body != c.want.pod {
				t.Fatalf("%+v, %v", a, err)
			}
			r := saw(t, c.want, 1)[0]
			if r.Method != c.method || r.Target != c.path || r.Host != "web.app.svc.cluster.local" {
				t.Errorf("the application saw %+v", r)
			}
			if k, v, ok := strings.Cut(c.header, ": "); ok && r.Header.Get(k) != v {
				t.Errorf("the application saw %s: %q", k, r.Header.Get(k))
			}
		})
	}
}

func TestAPathRewrite(t *testing.T) {
	s := begin(t, "rewrite")
	a := s.shop.get(t, web+"/old/a%20b/c?x=1&y=%2F", "x-secret: s", "x-add: by-client", "x-set: by-client", "x-other: kept")
	if a.Status != 200 || a.Header.Get("x-answer") != "by-route" || a.Header.Get("x-pod") != "" {
		t.Errorf("the client got %+v", a)
	}
	r := saw(t, s.web1, 1)[0]
	if r.Target != "/new/a%20b/c?x=1&y=%2F" || r.Host != "elsewhere.example" {
		t.Errorf("the application saw %s of %s", r.Target, r.Host)
	}
	if r.Header.Get("x-set") != "by-route" || strings.Join(r.Header.Values("x-add"), ",") != "by-client,by-route" ||
		r.Header.Get("x-secret") != "" || r.Header.Get("x-other") != "kept" {
		t.Errorf("the application saw %v", r.Header)
	}
	for path, want := range map[string]string{"/old": "/new", "/old/": "/new/", "/exact?q=1": "/full?q=1"} {
		s.web1.reset(nil)
		if a := s.shop.get(t, web+path); a.Status != 200 {
			t.Fatalf("%s: %+v", path, a)
		}
		if r := saw(t, s.web1, 1)[0]; r.Target != want {
			t.Errorf("%s: the application saw %s, want %s", path, r.Target, want)
		}
	}
	if a := s.shop.get(t, web+"/older"); a.Status != 404 {
		t.Errorf("a path that no rule has: %+v", a)
	}
}

// failing answers 503 to the first n requests.
func failing(n int64) http.HandlerFunc {
	var seen atomic.Int64
	return func(w http.ResponseWriter, _ *http.Request) {
		if seen.Add(1) <= n {
			w.WriteHeader(http.StatusServiceUnavailable)
		}
	}
}

func TestRetries(t *testing.T) {
	s := begin(t, "retry")
	for _, c := range []struct {
		name, path             string
		fail, status, attempts int
	}{
		{"two failures are hidden", "/", 2, 200, 3},
		{"attempts are bounded", "/", 100, 503, 4},
		{"no retries are no retries", "/once", 100, 503, 1},
	} {
		t.Run(c.name, func(t *testing.T) {
			s.web1.reset(failing(int64(c.fail)))
			req, err := http.NewRequestWithContext(t.Context(), http.MethodPost, web+c.path, strings.NewReader("the same body"))
			if err != nil {
				t.Fatal(err)
			}
			resp, err := s.shop.http.Do(req)
			if err != nil {
				t.Fatal(err)
			}
			_ = resp.Body.Close()
			if resp.StatusCode != c.status {
				t.Errorf("the client got %d", resp.StatusCode)
			}
			for _, r := range saw(t, s.web1, c.attempts) {
				if r.Body != "the same body" || r.Target != c.path {
					t.Errorf("the application saw %+v", r)
				}
			}
		})
	}
}

func TestATimeout(t *testing.T) {
	s := begin(t, "timeout")
	ended := make(chan struct{}, 1)
	s.web1.reset(func(_ http.ResponseWriter, r *http.Request) {
		if !strings.HasPrefix(r.URL.Path, "/slow") {
			time.Sleep(500 * time.Millisecond)
			return
		}
		select {
		case <-r.Context().Done():
			ended <- struct{}{}
		case <-time.After(30 * time.Second):
		}
	})
	began := time.Now()
	a := s.shop.get(t, web+"/slow")
	if d := time.Since(began); a.Status != 504 || d < 250*time.Millisecond || d > 15*time.Second {
		t.Errorf("the client got %+v after %v, want 504 after 300 ms", a, d)
	}
	saw(t, s.web1, 1)
	select {
	case <-ended:
	case <-time.After(20 * time.Second):
		t.Error("the application was not told that nobody waits any more")
	}
	if a := s.shop.get(t, web+"/patient"); a.Status != 200 {
		t.Errorf("a route without a timeout: %+v", a)
	}
}

func TestARedirectIsAnsweredByTheWaypoint(t *testing.T) {
	s := begin(t, "redirect")
	a := s.shop.get(t, web+"/moved/x?q=1")
	if a.Status != 301 || a.Header.Get("location") != "https://new.example/here/x?q=1" {
		t.Errorf("%+v", a)
	}
	saw(t, s.web1, 0)
	saw(t, s.web2, 0)
	if a := s.shop.get(t, web+"/stays"); a.Status != 200 {
		t.Errorf("%+v", a)
	}
	saw(t, s.web1, 1)
}

func TestAMirrorSeesWhatTheApplicationSees(t *testing.T) {
	s := begin(t, "mirror")
	s.web2.reset(func(w http.ResponseWriter, _ *http.Request) { w.WriteHeader(http.StatusInternalServerError) })
	resp, err := s.shop.http.Post(web+"/orders?x=1", "text/plain", strings.NewReader("an order"))
	if err != nil {
		t.Fatal(err)
	}
	_ = resp.Body.Close()
	if resp.StatusCode != 200 || resp.Header.Get("x-pod") != "web-1" {
		t.Errorf("the client got %d of %q", resp.StatusCode, resp.Header.Get("x-pod"))
	}
	for end := time.Now().Add(20 * time.Second); len(s.web2.requests()) == 0 && time.Now().Before(end); {
		time.Sleep(5 * time.Millisecond)
	}
	for _, r := range append(saw(t, s.web1, 1), saw(t, s.web2, 1)...) {
		if r.Method != "POST" || r.Target != "/orders?x=1" || r.Body != "an order" {
			t.Errorf("%s saw %+v", r.Pod, r)
		}
	}
	t.Log("the mirror's host:", s.web2.requests()[0].Host)
}

func TestPortsOfAServiceHaveRoutesOfTheirOwn(t *testing.T) {
	s := begin(t, "ports")
	for range 8 {
		if a := s.shop.get(t, web+":81/"); a.Status != 200 {
			t.Fatalf("%+v", a)
		}
	}
	for _, r := range saw(t, s.web2, 8) {
		if r.Port != "8081" || r.Header.Get("x-route") != "81" || r.Host != "web.app.svc.cluster.local:81" {
			t.Errorf("the application saw %+v", r)
		}
	}
	saw(t, s.web1, 0)
	s.web2.reset(nil)
	for range 20 {
		if a := s.shop.get(t, web+"/"); a.Status != 200 {
			t.Fatalf("%+v", a)
		}
	}
	all := append(s.web1.requests(), s.web2.requests()...)
	if len(all) != 20 || len(s.web1.requests()) == 0 || len(s.web2.requests()) == 0 {
		t.Errorf("the pods saw %d and %d requests of 20", len(s.web1.requests()), len(s.web2.requests()))
	}
	for _, r := range all {
		if r.Port != "8080" || r.Header.Get("x-route") != "" {
			t.Errorf("the application saw %+v", r)
		}
	}
}

func TestInjectedFaultsAndCORS(t *testing.T) {
	s := begin(t, "fault")
	if a := s.shop.get(t, web+"/", "x-fault: abort"); a.Status != 418 {
		t.Errorf("%+v", a)
	}
	if n := len(s.web1.requests()) + len(s.web2.requests()); n != 0 {
		t.Errorf("the applications saw %d requests", n)
	}
	began := time.Now()
	a := s.shop.get(t, web+"/", "x-fault: delay")
	if d := time.Since(began); a.Status != 200 || d < 200*time.Millisecond || d > 15*time.Second {
		t.Errorf("%+v after %v, want 200 after 250 ms", a, d)
	}
	a, err := s.shop.try(http.MethodOptions, web+"/", "origin: https://shop.example", "access-control-request-method: PUT")
	if err != nil || a.Status != 200 || a.Header.Get("access-control-allow-origin") != "https://shop.example" ||
		!strings.Contains(a.Header.Get("access-control-allow-methods"), "PUT") || a.Header.Get("access-control-max-age") != "600" {
		t.Errorf("preflight: %+v, %v", a, err)
	}
	if n := len(s.web1.requests()) + len(s.web2.requests()); n != 1 {
		t.Errorf("the applications saw %d requests, want the delayed one", n)
	}
}

func TestSubsetsAndConsistentHashing(t *testing.T) {
	s := begin(t, "subset")
	for path, want := range map[string]string{"/v2/17": "web-2", "/v2/x": "web-1", "/v2/17/x": "web-1", "/": "web-1"} {
		for range 5 {
			if a := s.shop.get(t, web+path); a.Status != 200 || a.Body != want {
				t.Errorf("%s: %+v, want %s", path, a, want)
			}
		}
	}
	pods := map[string]bool{}
	for _, user := range strings.Split("abcdefghijklmnop", "") {
		first := s.shop.get(t, web+"/hash", "x-user: "+user).Body
		pods[first] = true
		for range 3 {
			if again := s.shop.get(t, web+"/hash", "x-user: "+user).Body; again != first {
				t.Errorf("user %s went to %s and %s", user, first, again)
			}
		}
	}
	if len(pods) != 2 {
		t.Errorf("sixteen users all went to %v", pods)
	}
}
