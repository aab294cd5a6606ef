package rbac

import (
	stdcmp "cmp"
	"encoding/json"
	"maps"
	"net/netip"
	"os"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/fairlead-mesh/fairlead/filters"
	"github.com/fairlead-mesh/fairlead/filters/internal/decodetest"
	"github.com/fairlead-mesh/fairlead/internal/message"
	"github.com/fairlead-mesh/fairlead/internal/stats"
	"github.com/fairlead-mesh/fairlead/internal/streaminfo"
)

const principal = "io.istio.peer_principal"

func jsonAny(s string) filters.Any {
	return filters.Any{TypeURL: typeURL, Value: []byte(s), JSON: true}
}

func compile(t *testing.T, config string, env *filters.Env) filters.HTTPFilter {
	t.Helper()
	c, err := Factory{}.Decode(jsonAny(config), nil)
	if err != nil {
		t.Fatal(err)
	}
	f, err := Factory{}.Compile(env, c, nil)
	if err != nil {
		t.Fatal(err)
	}
	return f
}

type upstream struct{ seen int }

func (u *upstream) Do(s *filters.Stream, _ filters.Next) (*filters.Response, error) {
	u.seen++
	r := s.NewResponse()
	r.Header.Add(message.Status, "200")
	return r, nil
}

func stream(method, path string, f ...filters.HTTPFilter) (*filters.Stream, *upstream) {
	s := &filters.Stream{}
	s.Reset()
	s.Info.Conn = &streaminfo.Conn{Local: netip.MustParseAddrPort("10.96.1.1:9080"), Remote: netip.MustParseAddrPort("10.0.0.7:1"), DirectRemote: netip.MustParseAddrPort("10.0.0.7:1")}
	s.Request.Add(message.Method, method)
	s.Request.Add(message.Scheme, "http")
	s.Request.Add(message.Authority, "reviews")
	s.Request.Add(message.Path, path)
	u := &upstream{}
	s.SetChain(append(f, u))
	return s, u
}

const denyAdmin = `{"rules":{"action":"DENY","policies":{"no admin":{"permissions":[{"urlPath":{"path":{"prefix":"/admin"}}}],"principals":[{"any":true}]}}}}`

func TestAnswersLikeEnvoy(t *testing.T) {
	for _, tc := range []struct {
		name, config, path string
		status             int
		details            string
	}{
		{"a matching DENY policy is named in the details", denyAdmin, "/admin/x", 403, "rbac_access_denied_matched_policy[no_admin]"},
		{"a DENY policy that does not match lets pass", denyAdmin, "/", 200, ""},
		{"ALLOW without policies refuses all", `{"rules":{}}`, "/", 403, "rbac_access_denied_matched_policy[none]"},
		{"LOG lets pass", strings.Replace(denyAdmin, "DENY", "LOG", 1), "/admin", 200, ""},
	} {
		t.Run(tc.name, func(t *testing.T) {
			s, u := stream("GET", tc.path, compile(t, tc.config, nil))
			r, err := filters.Start(s)
			if err != nil {
				t.Fatal(err)
			}
			if r.Status() != tc.status || s.Info.Details != tc.details || (u.seen == 1) != (tc.status == 200) {
				t.Errorf("status %d, details %q, upstream saw %d", r.Status(), s.Info.Details, u.seen)
			}
			if tc.status == 403 {
				b, _, _ := r.Body.Next()
				if string(b) != "RBAC: access denied" || s.Info.Flags != 0 {
					t.Errorf("body %q, flags %v", b, s.Info.Flags)
				}
			}
		})
	}
}

func TestGRPCRequestsGetAGRPCStatus(t *testing.T) {
	s, _ := stream("POST", "/admin", compile(t, denyAdmin, nil))
	s.Info.IsGRPC = true
	r, err := filters.Start(s)
	if err != nil {
		t.Fatal(err)
	}
	if r.Status() != 200 || r.Header.Get("grpc-status") != "7" || r.Header.Get("grpc-message") != "RBAC: access denied" {
		t.Errorf("%+v", r.Header)
	}
}

func TestShadowRulesOnlyRecord(t *testing.T) {
	reg := &stats.Registry{}
	env := &filters.Env{Stats: reg.Scope("")}
	config := strings.Replace(denyAdmin, `"rules"`, `"shadowRulesStatPrefix":"istio_dry_run_deny_","shadowRules"`, 1)
	s, u := stream("GET", "/admin", compile(t, config, env))
	if _, err := filters.Start(s); err != nil || u.seen != 1 {
		t.Fatalf("shadow rules must not refuse: %v", err)
	}
	want := map[string]any{"istio_dry_run_deny_shadow_effective_policy_id": "no admin", "istio_dry_run_deny_shadow_engine_result": "denied"}
	if d := cmp.Diff(want, s.Info.Metadata.Namespace(Namespace)); d != "" {
		t.Error(d)
	}
	s, _ = stream("GET", "/", compile(t, config, env))
	if _, err := filters.Start(s); err != nil {
		t.Fatal(err)
	}
	if d := cmp.Diff(map[string]any{"istio_dry_run_deny_shadow_engine_result": "allowed"}, s.Info.Metadata.Namespace(Namespace)); d != "" {
		t.Error(d)
	}
}

func TestLogLeavesAHint(t *testing.T) {
	reg := &stats.Registry{}
	f := compile(t, strings.Replace(denyAdmin, "DENY", "LOG", 1), &filters.Env{HTTPStats: reg.Scope("")})
	for path, want := range map[string]bool{"/admin": true, "/": false} {
		s, u := stream("GET", path, f)
		if _, err := filters.Start(s); err != nil || u.seen != 1 {
			t.Fatalf("%s: LOG refuses: %v", path, err)
		}
		if v, _ := s.Info.Metadata.Lookup("envoy.common", "access_log_hint"); v != want {
			t.Errorf("%s: access_log_hint = %v", path, v)
		}
	}
	if n := reg.Scope("").Counter("envoy_http_rbac_allowed").Value(); n != 2 {
		t.Errorf("%d counted as allowed", n)
	}
	shadow := compile(t, strings.NewReplacer("DENY", "LOG", `"rules"`, `"shadowRules"`).Replace(denyAdmin), nil)
	s, _ := stream("GET", "/admin", shadow)
	if _, err := filters.Start(s); err != nil {
		t.Fatal(err)
	}
	if v, ok := s.Info.Metadata.Lookup("envoy.common", "access_log_hint"); ok {
		t.Errorf("shadow rules set access_log_hint to %v", v)
	}
}

func TestPerRoute(t *testing.T) {
	base, err := Factory{}.Decode(jsonAny(`{"rules":{}}`), nil)
	if err != nil {
		t.Fatal(err)
	}
	off, err := Factory{}.DecodeOverride(jsonAny(`{}`), nil)
	if err != nil {
		t.Fatal(err)
	}
	if f, err := (Factory{}).Compile(nil, base, off); f != nil || err != nil {
		t.Errorf("an empty RBACPerRoute switches the filter off, got %v, %v", f, err)
	}
	other, err := Factory{}.DecodeOverride(jsonAny(`{"rbac":`+denyAdmin+`}`), nil)
	if err != nil {
		t.Fatal(err)
	}
	f, err := Factory{}.Compile(nil, base, other)
	if err != nil {
		t.Fatal(err)
	}
	s, u := stream("GET", "/", f)
	if _, err := filters.Start(s); err != nil || u.seen != 1 {
		t.Errorf("the route's rules replace the filter's: %v", err)
	}
	if s, u = stream("GET", "/admin", f); true {
		if r, err := filters.Start(s); err != nil || u.seen != 0 || r.Status() != 403 || s.Info.Details != "rbac_access_denied_matched_policy[no_admin]" {
			t.Errorf("the route's rules are not enforced: %v", err)
		}
	}
	shadow, err := Factory{}.DecodeOverride(jsonAny(`{"rbac":{"shadowRulesStatPrefix":"istio_ext_authz_","shadowRules":{"action":"DENY","policies":{"p":{"permissions":[{"any":true}],"principals":[{"any":true}]}}}}}`), nil)
	if err != nil {
		t.Fatal(err)
	}
	if f, err = (Factory{}).Compile(nil, base, shadow); err != nil {
		t.Fatal(err)
	}
	s, u = stream("GET", "/", f)
	if _, err := filters.Start(s); err != nil || u.seen != 1 {
		t.Fatalf("shadow rules of the route refuse: %v", err)
	}
	if v, _ := s.Info.Metadata.Lookup(Namespace, "istio_ext_authz_shadow_effective_policy_id"); v != "p" {
		t.Errorf("shadow rules of the route record %v", s.Info.Metadata.Namespaces())
	}
}

func TestRefusesWhatItCannotExecute(t *testing.T) {
	pol := func(permission, principal, more string) string {
		return `{"rules":{"policies":{"p":{"permissions":[` + permission + `],"principals":[` + principal + `]` + more + `}}}}`
	}
	for name, config := range map[string]string{
		"matcher form":         `{"matcher":{}}`,
		"shadow matcher":       `{"shadowMatcher":{}}`,
		"CEL condition":        pol(`{"any":true}`, `{"any":true}`, `,"condition":{}`),
		"no permission":        pol(``, `{"any":true}`, ``),
		"no principal":         pol(`{"any":true}`, ``, ``),
		"empty rule":           pol(`{}`, `{"any":true}`, ``),
		"not of nothing":       pol(`{"notRule":{}}`, `{"any":true}`, ``),
		"any false":            pol(`{"any":false}`, `{"any":true}`, ``),
		"extension matcher":    pol(`{"matcher":{"name":"x"}}`, `{"any":true}`, ``),
		"custom principal":     pol(`{"any":true}`, `{"custom":{"name":"x"}}`, ``),
		"bad regex":            pol(`{"urlPath":{"path":{"safeRegex":{"regex":"("}}}}`, `{"any":true}`, ``),
		"bad address":          pol(`{"destinationIp":{"addressPrefix":"10.0.0"}}`, `{"any":true}`, ``),
		"bad prefix length":    pol(`{"destinationIp":{"addressPrefix":"10.0.0.0","prefixLen":33}}`, `{"any":true}`, ``),
		"empty port range":     pol(`{"destinationPortRange":{"start":5,"end":5}}`, `{"any":true}`, ``),
		"unknown field (JSON)": `{"rulez":{}}`,
	} {
		t.Run(name, func(t *testing.T) {
			if _, err := (Factory{}).Decode(jsonAny(config), nil); err == nil {
				t.Error("accepted")
			} else {
				t.Log(err)
			}
		})
	}
	if _, err := (Factory{}).Decode(filters.Any{TypeURL: typeURL, Value: []byte{0xf8, 0x07, 1}}, nil); err == nil {
		t.Error("an unknown proto field was accepted")
	}
}

// TestExecutesWhatIstiodSends decodes every RBAC configuration that istiod
// made of a rich set of policies.
func TestExecutesWhatIstiodSends(t *testing.T) {
	b, err := os.ReadFile("testdata/istiod.json")
	if err != nil {
		t.Fatal(err)
	}
	var configs []json.RawMessage
	if err := json.Unmarshal(b, &configs); err != nil {
		t.Fatal(err)
	}
	if len(configs) != 12 {
		t.Fatalf("%d configurations, want 12", len(configs))
	}
	allowed := 0
	for i, c := range configs {
		d := &filters.Decoding{}
		cfg, err := Factory{}.Decode(jsonAny(string(c)), d)
		if err != nil {
			t.Errorf("%d: %v", i, err)
			continue
		}
		if len(d.Ignored()) > 0 {
			t.Errorf("%d: ignored %v", i, d.Ignored())
		}
		f, err := Factory{}.Compile(nil, cfg, nil)
		if err != nil {
			t.Fatal(err)
		}
		s, _ := stream("GET", "/get", f)
		s.Info.Conn.FilterState.Set(principal, streaminfo.String("spiffe://cluster.local/ns/app/sa/client"), streaminfo.SharingNone)
		s.Info.FilterState.Reset(&s.Info.Conn.FilterState)
		if r, err := filters.Start(s); err == nil && r.Status() == 200 {
			allowed++
		}
	}
	if allowed != 8 {
		t.Errorf("%d configurations let the probe pass, want 8", allowed)
	}
}

// istiodsKinds are all permissions and principals in nine scenarios of a real
// istiod, and how their texts match.
var istiodsKinds = []string{
	"action ALLOW", "action DENY", "action LOG",
	"permission andRules", "permission any", "permission destinationIp", "permission destinationPort", "permission header", "permission metadata", "permission notRule",
	"permission orRules", "permission requestedServerName", "permission uriTemplate", "permission urlPath",
	"principal andIds", "principal any", "principal authenticated", "principal directRemoteIp", "principal filterState", "principal header", "principal metadata",
	"principal notId", "principal orIds", "principal remoteIp",
	"text exact", "text exact ignoreCase", "text prefix", "text safeRegex", "text suffix", "text suffix ignoreCase",
	"value listMatch", "value orMatch", "value stringMatch",
}

func TestTheConfigurationsOfIstiodHaveEveryKindOfRule(t *testing.T) {
	seen := map[string]bool{}
	var rule func(of string, m map[string]any)
	var walk func(v any)
	walk = func(v any) {
		switch v := v.(type) {
		case []any:
			for _, e := range v {
				walk(e)
			}
		case map[string]any:
			for k, e := range v {
				list, _ := e.([]any)
				switch k {
				case "permissions", "principals":
					for _, p := range list {
						rule(strings.TrimSuffix(k, "s"), p.(map[string]any))
					}
				case "policies":
					action, _ := v["action"].(string)
					seen["action "+stdcmp.Or(action, "ALLOW")] = true
				case "exact", "prefix", "suffix", "safeRegex":
					if v["ignoreCase"] == true {
						k += " ignoreCase"
					}
					seen["text "+k] = true
				case "listMatch", "orMatch", "stringMatch":
					seen["value "+k] = true
				}
				walk(e)
			}
		}
	}
	rule = func(of string, m map[string]any) {
		for k, v := range m {
			seen[of+" "+k] = true
			inner, _ := v.(map[string]any)
			switch k {
			case "notRule", "notId":
				rule(of, inner)
			case "andRules", "orRules", "andIds", "orIds":
				for _, list := range inner {
					for _, e := range list.([]any) {
						rule(of, e.(map[string]any))
					}
				}
			}
		}
	}
	for _, file := range []string{"testdata/istiod.json", "../../network/rbac/testdata/istiod.json"} {
		b, err := os.ReadFile(file)
		if err != nil {
			t.Fatal(err)
		}
		var v any
		if err := json.Unmarshal(b, &v); err != nil {
			t.Fatal(err)
		}
		walk(v)
	}
	if d := cmp.Diff(istiodsKinds, slices.Sorted(maps.Keys(seen))); d != "" {
		t.Error(d)
	}
}

func TestPassingDoesNotAllocate(t *testing.T) {
	s, _ := stream("GET", "/", compile(t, denyAdmin, nil))
	if a := testing.AllocsPerRun(100, func() {
		if _, err := filters.Start(s); err != nil {
			t.Fatal(err)
		}
	}); a != 0 {
		t.Errorf("%v allocations", a)
	}
}

// FuzzDecode: both forms of a configuration and of an override give the same,
// what is no message is refused, and what is accepted compiles and decides.
func FuzzDecode(f *testing.F) {
	f.Add([]byte(denyAdmin), true)
	f.Add([]byte{10, 2, 8, 1}, false)
	f.Fuzz(func(t *testing.T, b []byte, isJSON bool) {
		a := filters.Any{TypeURL: typeURL, Value: b, JSON: isJSON}
		_, _ = decodetest.Forms(t, filters.Any{TypeURL: typeURLPerRoute, Value: b, JSON: isJSON}, Factory{}.DecodeOverride)
		c, err := decodetest.Forms(t, a, Factory{}.Decode)
		if err != nil {
			return
		}
		fl, err := Factory{}.Compile(nil, c, nil)
		if err != nil {
			t.Fatalf("decoded configuration does not compile: %v", err)
		}
		if fl == nil {
			return
		}
		s, _ := stream("GET", "/x", fl)
		if _, err := filters.Start(s); err != nil {
			t.Fatal(err)
		}
	})
}
