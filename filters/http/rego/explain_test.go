package rego

import (
	"strings"
	"testing"

	"github.com/fairlead-mesh/fairlead/filters"
)

func TestADecisionIsExplained(t *testing.T) {
	for name, c := range map[string]struct {
		policy  string
		more    []string
		verdict filters.Verdict
		status  int
		text    string
	}{
		"headers":               {v1allow + `allow := {"allowed": true, "headers": {"x-who": "me"}}`, nil, filters.VerdictAllow, 0, "sets header x-who"},
		"denied with a body":    {v1allow + `allow := {"allowed": false, "http_status": 451, "body": "no"}`, nil, filters.VerdictDeny, 451, `answers "no"`},
		"undefined":             {"package envoy.authz\nallow if input.nothing", nil, filters.VerdictDeny, 403, "answers: undefined"},
		"dry run":               {v1allow, []string{`"dryRun":true`}, filters.VerdictPass, 0, "dry run: the request passes; enforced, it would pass: false"},
		"may leave the process": {v1allow + `allow if http.send({"method": "GET", "url": "http://127.0.0.1:1"}).status_code == 200`, []string{`"allowBuiltins":["http.send"]`}, filters.VerdictUnknown, 0, "it was not asked"},
	} {
		t.Run(name, func(t *testing.T) {
			e := env()
			f := compileJSON(t, e, conf(c.policy, c.more...), "")
			s := request{}.stream()
			x := f.(interface {
				Explain(s *filters.Stream) filters.Explanation
			}).Explain(s)
			if x.Verdict != c.verdict || x.Status != c.status || !strings.Contains(strings.Join(x.Text, "\n"), c.text) {
				t.Errorf("%+v", x)
			}
			if name == "headers" && s.Request.Get("x-who") != "me" {
				t.Error("later filters don't see the header")
			}
		})
	}
}
