package demo

import (
	"bytes"
	"context"
	"os/exec"
	"strings"
	"sync"
	"testing"
	"time"

	"go.uber.org/goleak"
)

func TestMain(m *testing.M) {
	// OPA starts this one when it is linked.
	goleak.VerifyTestMain(m, goleak.IgnoreTopFunction("go.opencensus.io/stats/view.(*worker).start"))
}

const numberOfRows = 11

// output is a writer that others may wait for.
type output struct {
	mu sync.Mutex
	b  bytes.Buffer
}

func (o *output) Write(p []byte) (int, error) {
	o.mu.Lock()
	defer o.mu.Unlock()
	return o.b.Write(p)
}

func (o *output) String() string {
	o.mu.Lock()
	defer o.mu.Unlock()
	return o.b.String()
}

func TestAllRowsAreAsExpectedAndTheMeshStaysUpIfAskedTo(t *testing.T) {
	t.Parallel()
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	var out output
	type result struct {
		rows []Row
		err  error
	}
	done := make(chan result, 1)
	go func() {
		rows, err := run(ctx, Options{Out: &out, Keep: true})
		done <- result{rows, err}
	}()
	for end := time.Now().Add(2 * time.Minute); !strings.Contains(out.String(), "/stats/prometheus"); time.Sleep(10 * time.Millisecond) {
		select {
		case r := <-done:
			t.Fatalf("ended: %v\n%s", r.err, out.String())
		default:
		}
		if time.Now().After(end) {
			t.Fatalf("no commands to try:\n%s", out.String())
		}
	}
	tried := 0
	for line := range strings.Lines(out.String()) {
		command, prints, ok := strings.Cut(strings.TrimSpace(line), "   # ")
		if !ok || !strings.HasPrefix(command, "curl ") {
			continue
		}
		tried++
		if _, err := exec.LookPath("curl"); err != nil {
			continue
		}
		got, err := exec.CommandContext(ctx, "sh", "-c", command).CombinedOutput()
		// The first one may be answered by either version.
		if g := strings.TrimSpace(string(got)); err != nil || g != prints && (prints != "reviews v1" || g != "reviews v2") {
			t.Errorf("%s: %v %q", command, err, got)
		}
	}
	if tried != 6 {
		t.Errorf("%d commands to try", tried)
	}
	cancel()
	r := <-done
	if r.err != nil {
		t.Errorf("%v\n%s", r.err, out.String())
	}
	if len(r.rows) != numberOfRows || len(checks) != numberOfRows {
		t.Errorf("%d rows of %d checks", len(r.rows), len(checks))
	}
	for _, row := range r.rows {
		if !row.OK || !strings.Contains(out.String(), row.Seen) {
			t.Errorf("%+v", row)
		}
	}
}

// breaks has one change of the configuration for each row, which must make that
// row fail.
var breaks = []struct{ row, file, old, new string }{
	{"mutual TLS", "waypoint.yaml", "require_client_certificate: true", "require_client_certificate: false"},
	{"around the waypoint", "ztunnel.yaml", "!Exact cluster.local/ns/app/sa/waypoint", "!Prefix cluster.local/"},
	{"weighted route", "waypoint.yaml", "weight: 90", "weight: 10"},
	{"route by header", "waypoint.yaml", "string_match: {exact: v2}", "string_match: {exact: v3}"},
	{"retry", "waypoint.yaml", "retry_on: 5xx", "retry_on: connect-failure"},
	{"timeout", "waypoint.yaml", "timeout: 0.25s", "timeout: 0.01s"},
	{"circuit breaker", "waypoint.yaml", "max_requests: 3", "max_requests: 4"},
	{"identity refused", "waypoint.yaml", `exact: "spiffe://cluster.local/ns/app/sa/client"`, `prefix: "spiffe://cluster.local/"`},
	{"Rego policy", "waypoint.yaml", "in [1, 2, 3, 4, 5]", "in [1, 2, 3, 4, 11]"},
	{"card number on its way out", "egress.yaml", "action: MASK", "action: REPORT"},
	{"live push under load", "waypoint.yaml", `cluster: "${LIVE}"`, `cluster: "reviews-v1"`},
}

func TestEveryRowFailsIfItsPartIsBroken(t *testing.T) {
	t.Parallel()
	if len(breaks) != numberOfRows {
		t.Fatalf("%d ways to break, %d rows", len(breaks), numberOfRows)
	}
	var out output
	used := map[string]bool{}
	rows, err := run(t.Context(), Options{Out: &out, edit: func(file, text string) string {
		for _, b := range breaks {
			if b.file == file && strings.Contains(text, b.old) {
				text = strings.ReplaceAll(text, b.old, b.new)
				used[b.row] = true
			}
		}
		return text
	}})
	if err == nil || len(rows) != numberOfRows {
		t.Fatalf("%d rows, error %v\n%s", len(rows), err, out.String())
	}
	for i, r := range rows {
		if r.Name != breaks[i].row || !used[r.Name] {
			t.Errorf("row %d is %q, broken by %+v: %t", i, r.Name, breaks[i], used[r.Name])
		}
		if r.OK || !strings.Contains(err.Error(), r.Name) {
			t.Errorf("passes although broken: %+v", r)
		}
	}
	if n := strings.Count(out.String(), " FAIL "); n != numberOfRows {
		t.Errorf("%d FAILs\n%s", n, out.String())
	}
}

func TestAnErrorOfTheStartSaysWhatAndWhere(t *testing.T) {
	t.Parallel()
	for _, c := range []struct{ name, file, old, new, want string }{
		{"a resource that can't be read", "egress.yaml", "stat_prefix: external", "stat_prefiks: external", "control plane: demo/config/egress.yaml: "},
		{"a resource that the proxy refuses", "waypoint.yaml", "prefix: /slow", `safe_regex: {regex: "("}`, "waypoint: refused type.googleapis.com/envoy.config.route.v3.RouteConfiguration of the control plane: "},
		{"a ztunnel's file", "ztunnel.yaml", "protocol: HBONE", "protocol: CARRIER_PIGEON", "ztunnel of reviews-v1: "},
		{"a bootstrap", "bootstrap.yaml", "dynamic_resources:", "dynamik_resources:", "waypoint: "},
	} {
		t.Run(c.name, func(t *testing.T) {
			var out output
			err := Run(t.Context(), Options{Out: &out, edit: func(file, text string) string {
				if file == c.file {
					return strings.ReplaceAll(text, c.old, c.new)
				}
				return text
			}})
			if err == nil || !strings.HasPrefix(err.Error(), "demo: "+c.want) || out.String() != "" {
				t.Errorf("%v\n%s", err, out.String())
			}
		})
	}
}

func TestAnInterruptEndsTheDemo(t *testing.T) {
	t.Parallel()
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	var out output
	begin := time.Now()
	if err := Run(ctx, Options{Out: &out}); err == nil || !strings.Contains(err.Error(), "interrupted") || time.Since(begin) > 20*time.Second {
		t.Errorf("%v after %s\n%s", err, time.Since(begin), out.String())
	}
}
