package extauthz

import (
	"context"
	"errors"
	"strings"
	"testing"

	"github.com/fairlead-mesh/fairlead/filters"
	"github.com/fairlead-mesh/fairlead/filters/internal/decodetest"
	"github.com/fairlead-mesh/fairlead/internal/message"
	"github.com/fairlead-mesh/fairlead/internal/stats"
	"github.com/fairlead-mesh/fairlead/internal/streaminfo"
)

// config is what istiod sends for a CUSTOM policy on a TCP port.
const config = `{"filterEnabledMetadata":{"filter":"envoy.filters.network.rbac","path":[{"key":"istio_ext_authz_shadow_effective_policy_id"}],"value":{"stringMatch":{"prefix":"istio-ext-authz-authz-grpc"}}},"grpcService":{"envoyGrpc":{"authority":"a","clusterName":"c"},"timeout":"0.500s"},"statPrefix":"tcp.","transportApiVersion":"V3"}`

// service answers every question with the same message; nil is no answer.
type service struct {
	answer []byte
	asked  int
	got    *filters.Callout
}

// Answers as CheckResponse messages.
var (
	allows = []byte{}
	denies = []byte{0x0a, 2, 0x08, 7}              // status.code 7
	fails  = []byte{0x0a, 2, 0x08, 13, 0x2a, 0x00} // status.code 13, error_response
)

func (v *service) RoundTrip(_ context.Context, cluster string, c *filters.Callout, _ int64) (*filters.CalloutResponse, error) {
	v.asked++
	v.got = c
	if v.answer == nil || cluster != "c" {
		return nil, errors.New("no answer")
	}
	r := &filters.CalloutResponse{Status: 200, Body: append([]byte{0, 0, 0, 0, byte(len(v.answer))}, v.answer...)}
	r.Trailers.Add("grpc-status", "0")
	return r, nil
}

func run(t *testing.T, config, policy string, v filters.Upstreams) (*streaminfo.Info, *stats.Registry, error) {
	t.Helper()
	d := &filters.Decoding{}
	cfg, err := Factory{}.Decode(filters.Any{TypeURL: typeURL, JSON: true, Value: []byte(config)}, d)
	if err != nil {
		t.Fatal(err)
	}
	if len(d.Ignored()) != 0 {
		t.Errorf("ignored: %v", d.Ignored())
	}
	r := &stats.Registry{}
	f, err := Factory{}.Compile(&filters.Env{Upstreams: v, Stats: r.Scope("")}, cfg)
	if err != nil {
		t.Fatal(err)
	}
	c := &filters.Connection{Info: &streaminfo.Info{Conn: &streaminfo.Conn{RequestedServerName: "sni.test", TLS: &streaminfo.TLS{}}}}
	if policy != "" {
		c.Info.Metadata.Set("envoy.filters.network.rbac", "istio_ext_authz_shadow_effective_policy_id", policy)
	}
	x := f.(interface {
		Explain(c *filters.Connection) filters.Explanation
	}).Explain(c)
	if (x.Verdict == filters.VerdictUnknown) != strings.HasPrefix(policy, "istio-ext-authz-") {
		t.Errorf("policy %q is explained as %+v", policy, x)
	}
	if asked, ok := v.(*service); ok && asked.asked != 0 {
		t.Error("explaining asks")
	}
	return c.Info, r, f.(filters.NetworkFilter).OnNewConnection(c)
}

func TestConnectionsThatItConcernsAreAskedAbout(t *testing.T) {
	const marked = "istio-ext-authz-authz-grpc-ns[a]-policy[b]-rule[0]"
	open := strings.Replace(config, `"statPrefix"`, `"failureModeAllow":true,"statPrefix"`, 1)
	for _, tc := range []struct {
		name, config, policy string
		answer               []byte
		details              string // of the refusal; "" passes
		counted              string
	}{
		{"allowed", config, marked, allows, "", "ok"},
		{"denied", config, marked, denies, "ext_authz_denied", "denied"},
		{"denied, whatever happens on errors", open, marked, denies, "ext_authz_denied", "denied"},
		{"an error", config, marked, fails, "ext_authz_error", "error"},
		{"no answer", config, marked, nil, "ext_authz_error", "error"},
		{"no answer, errors pass", open, marked, nil, "", "failure_mode_allowed"},
		{"an answer that is none", config, marked, []byte{0x0a}, "ext_authz_error", "error"},
		{"another policy", config, "other", denies, "", "disabled"},
		{"no policy", config, "", denies, "", "disabled"},
	} {
		t.Run(tc.name, func(t *testing.T) {
			v := &service{answer: tc.answer}
			info, r, err := run(t, tc.config, tc.policy, v)
			var d *filters.Denied
			if errors.As(err, &d) != (tc.details != "") || d != nil && (d.Flag != streaminfo.UnauthorizedExternalService || d.Details != tc.details || info.Details != tc.details) {
				t.Errorf("%v", err)
			}
			if asked := tc.counted != "disabled"; (v.asked == 1) != asked {
				t.Errorf("asked %d times", v.asked)
			}
			if n := r.Scope("").Counter("envoy_ext_authz_tcp__" + tc.counted).Value(); n != 1 {
				t.Errorf("%s is %d", tc.counted, n)
			}
			if _, ok := info.Metadata.Lookup("envoy.filters.network.ext_authz", "ext_authz_duration"); ok != (tc.counted == "ok") {
				t.Errorf("metadata %v", info.Metadata.Namespaces())
			}
		})
	}
	if _, _, err := run(t, config, marked, nil); err == nil {
		t.Error("without clusters it passed")
	}
}

func TestTheQuestionIsAGRPCMessageForTheService(t *testing.T) {
	v := &service{answer: allows}
	run(t, strings.Replace(config, `"statPrefix"`, `"includeTlsSession":true,"statPrefix"`, 1), "istio-ext-authz-authz-grpc", v)
	h, b := &v.got.Header, string(v.got.Body)
	if h.Get(message.Path) != "/envoy.service.auth.v3.Authorization/Check" || h.Get(message.Authority) != "a" || h.Get("grpc-timeout") != "500m" || !v.got.HTTP2 {
		t.Errorf("%+v", v.got)
	}
	if int(b[4]) != len(b)-5 || !strings.Contains(b, "sni.test") {
		t.Errorf("%q", b)
	}
}

func TestWhatIsNotExecutedIsRejected(t *testing.T) {
	for _, bad := range []string{
		`{"statPrefix":"x"}`, strings.Replace(config, `"V3"`, `"V2"`, 1), strings.Replace(config, `"statPrefix"`, `"shadowMode":true,"statPrefix"`, 1),
		`{"grpcService":{"googleGrpc":{"targetUri":"x","statPrefix":"x"}},"transportApiVersion":"V3"}`,
	} {
		if _, err := (Factory{}).Decode(filters.Any{JSON: true, Value: []byte(bad)}, nil); err == nil {
			t.Errorf("accepted: %s", bad)
		}
	}
}

// FuzzDecode: both forms of a configuration give the same, what is no message is
// refused, and what is accepted compiles and takes a connection.
func FuzzDecode(f *testing.F) {
	f.Add([]byte(config), true)
	f.Fuzz(func(t *testing.T, b []byte, isJSON bool) {
		c, err := decodetest.Forms(t, filters.Any{TypeURL: typeURL, JSON: isJSON, Value: b}, Factory{}.Decode)
		if err != nil {
			return
		}
		fl, err := Factory{}.Compile(nil, c)
		if err != nil {
			t.Fatal(err)
		}
		_ = fl.(filters.NetworkFilter).OnNewConnection(&filters.Connection{Info: &streaminfo.Info{Conn: &streaminfo.Conn{}}})
	})
}
