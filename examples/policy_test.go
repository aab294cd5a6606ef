package examples

import (
	"encoding/json"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"sync/atomic"
	"testing"
	"time"
)

// TestThePolicyExample: a signed bundle arrives through a cluster, decides, is
// replaced, and is not replaced by what is wrong.
func TestThePolicyExample(t *testing.T) {
	w := newWorld(t)
	folder := filepath.Join(w.dir, "bundle")
	if err := os.CopyFS(folder, os.DirFS("policy/bundle")); err != nil {
		t.Fatal(err)
	}
	var secret atomic.Value
	secret.Store("wrong")
	l, err := net.Listen("tcp", w.ip(31)+":8181")
	if err != nil {
		t.Fatal(err)
	}
	s := &http.Server{ReadHeaderTimeout: time.Minute, Handler: http.HandlerFunc(func(rw http.ResponseWriter, r *http.Request) {
		Bundles(folder, secret.Load().(string)).ServeHTTP(rw, r)
	})}
	done := make(chan struct{})
	go func() { defer close(done); _ = s.Serve(l) }()
	t.Cleanup(func() { _ = s.Close(); <-done })
	w.proxy("policy/policy.yaml")
	c := w.client(&http.Transport{})
	orders := "http://" + w.ip(8) + ":8080/orders"
	ask := func(user, method, body string) (int, string) {
		t.Helper()
		return send(t, c, method, orders, strings.NewReader(body), "x-user", user, "content-type", "application/json")
	}

	time.Sleep(300 * time.Millisecond) // some downloads
	if status, _ := ask("alice", "GET", ""); status != 403 {
		t.Errorf("without a policy that is signed by the right key: %d", status)
	}
	secret.Store("change me")
	w.eventually("the bundle arrives", func() bool { status, _ := ask("alice", "GET", ""); return status == 200 })
	for _, tt := range []struct {
		user, method, body string
		status             int
		reply              string
	}{
		{"alice", "GET", "", 200, "shop\n"},
		{"", "GET", "", 403, "not allowed\n"},
		{"alice", "POST", "{}", 403, "not allowed\n"},
		{"bob", "POST", `{"items": 3, "card": "4111 1111 1111 1111"}`, 200, "shop\n"},
		{"bob", "POST", `{"items": 300}`, 422, "orders have at most 100 items\n"},
		{"bob", "POST", `{"items": 300`, 400, ""},
	} {
		if status, body := ask(tt.user, tt.method, tt.body); status != tt.status || body != tt.reply {
			t.Errorf("%s %s %s: %d %q, want %d %q", tt.user, tt.method, tt.body, status, body, tt.status, tt.reply)
		}
	}

	change := func(file, from, to string) {
		t.Helper()
		name := filepath.Join(folder, file)
		b, err := os.ReadFile(name)
		if err != nil || !strings.Contains(string(b), from) {
			t.Fatalf("%v: no %q in %s", err, from, file)
		}
		if err := os.WriteFile(name, []byte(strings.Replace(string(b), from, to, 1)), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	change("shop/data.json", `"alice": ["clerk"]`, `"alice": ["manager"]`)
	w.eventually("alice may write", func() bool { status, _ := ask("alice", "POST", "{}"); return status == 200 })
	change("authz.rego", "granted if {", "granted if {\n\tnope(1)")
	time.Sleep(2500 * time.Millisecond) // at least one download
	if status, _ := ask("alice", "POST", "{}"); status != 200 {
		t.Errorf("after the policy was broken: %d", status)
	}

	var all string
	w.eventually("decisions are logged", func() bool {
		b, _ := os.ReadFile(filepath.Join(w.dir, "access.log"))
		all = string(b)
		return strings.Contains(all, "parsed_body/card") && strings.Contains(all, `"policy":"shop-next"`)
	})
	if strings.Contains(all, "4111 1111") || strings.Contains(all, "alice") || strings.Contains(all, "bob") {
		t.Errorf("what was to be masked is in the log:\n%s", all)
	}
	for line := range strings.Lines(all) {
		var e map[string]any
		if err := json.Unmarshal([]byte(line), &e); err != nil || e["decision_id"] == nil || e["policy"] == "shop-next" && (e["dry_run"] != true || e["passed"] != true) {
			t.Errorf("%v: %s", err, line)
		}
	}
}
