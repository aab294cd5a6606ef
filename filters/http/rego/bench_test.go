package rego

import (
	"encoding/json"
	"fmt"
	"slices"
	"testing"
	"time"

	"github.com/fairlead-mesh/fairlead/filters"
)

const rbacPolicy = `package envoy.authz
import input.attributes.request.http as req
default allow := false

roles := {
  "spiffe://td/ns/a/sa/client": ["reader", "writer"],
  "spiffe://td/ns/a/sa/other": ["reader"],
}
grants := {
  "reader": [{"method": "GET", "prefix": "api"}],
  "writer": [{"method": "POST", "prefix": "api"}, {"method": "PUT", "prefix": "api"}],
}

allow if {
  some role in roles[input.attributes.source.principal]
  some grant in grants[role]
  grant.method == req.method
  grant.prefix == input.parsed_path[0]
}

allow if {
  req.method == "GET"
  req.path == "/healthz"
}
`

// BenchmarkRBACPolicy is a small policy with roles and grants; its median must
// stay below 50 µs.
func BenchmarkRBACPolicy(b *testing.B) {
	f := compileJSON(b, env(), conf(rbacPolicy), "").(*filter)
	s := request{method: "POST", path: "/api/v1/things?x=1", header: [][2]string{{"authorization", "Bearer abc"}, {"user-agent", "bench"}, {"accept", "*/*"}}}.stream()
	s.SetChain([]filters.HTTPFilter{f, terminal(func(s *filters.Stream) (*filters.Response, error) { return s.NewResponse(), nil })})
	b.ReportAllocs()
	took := make([]time.Duration, 0, 1<<20)
	for b.Loop() {
		start := time.Now()
		if r, err := filters.Start(s); err != nil || r.Local {
			b.Fatal("denied", err)
		}
		if len(took) < cap(took) {
			took = append(took, time.Since(start))
		}
	}
	slices.Sort(took)
	b.ReportMetric(float64(took[len(took)/2].Nanoseconds())/1e3, "p50-µs")
	b.ReportMetric(float64(took[len(took)*99/100].Nanoseconds())/1e3, "p99-µs")
}

func BenchmarkMethodAndHeaderPolicy(b *testing.B) {
	f := compileJSON(b, env(), conf(v1allow+`allow if { input.attributes.request.http.method == "POST"; input.attributes.request.http.headers["x-role"] == "admin" }`), "").(*filter)
	s := request{method: "POST", header: [][2]string{{"x-role", "admin"}}}.stream()
	s.SetChain([]filters.HTTPFilter{f, terminal(func(s *filters.Stream) (*filters.Response, error) { return s.NewResponse(), nil })})
	b.ReportAllocs()
	for b.Loop() {
		if r, err := filters.Start(s); err != nil || r.Local {
			b.Fatal("denied", err)
		}
	}
}

// BenchmarkDecisionLog is what a logged decision costs a request, with its
// input, the default masks and a rule of the policy.
func BenchmarkDecisionLog(b *testing.B) {
	policy, _ := json.Marshal(rbacPolicy)
	rules, _ := json.Marshal("package system.log\nmask contains \"/input/attributes/source\"")
	for name, sources := range map[string]string{
		"configured": fmt.Sprintf(`{"inlineString":%s}`, policy),
		"rule":       fmt.Sprintf(`{"inlineString":%s},{"inlineString":%s}`, policy, rules),
	} {
		b.Run(name, func(b *testing.B) {
			e := env()
			e.Logs = discard{}
			f := compileJSON(b, e, fmt.Sprintf(`{"policy":{"sources":[%s]},"decisionLog":{"includeInput":true}}`, sources), "")
			s := request{method: "POST", path: "/api/v1/things?x=1"}.stream()
			s.SetChain([]filters.HTTPFilter{f, terminal(func(s *filters.Stream) (*filters.Response, error) { return s.NewResponse(), nil })})
			b.ReportAllocs()
			for b.Loop() {
				if r, err := filters.Start(s); err != nil || r.Local {
					b.Fatal("denied", err)
				}
			}
		})
	}
}

type discard struct{}

func (discard) Lines(string) (func([]byte) bool, error) {
	return func([]byte) bool { return true }, nil
}
