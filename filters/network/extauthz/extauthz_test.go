package extauthz

import (
	"errors"
	"testing"

	"github.com/fairlead-mesh/fairlead/filters"
	"github.com/fairlead-mesh/fairlead/internal/streaminfo"
)

// config is what istiod sends for a CUSTOM policy on a TCP port.
const config = `{"filterEnabledMetadata":{"filter":"envoy.filters.network.rbac","path":[{"key":"istio_ext_authz_shadow_effective_policy_id"}],"value":{"stringMatch":{"prefix":"istio-ext-authz-authz-grpc"}}},"grpcService":{"envoyGrpc":{"authority":"a","clusterName":"c"},"timeout":"0.500s"},"statPrefix":"tcp.","transportApiVersion":"V3"}`

func run(t *testing.T, config, policy string) error {
	t.Helper()
	d := &filters.Decoding{}
	cfg, err := Factory{}.Decode(filters.Any{TypeURL: typeURL, JSON: true, Value: []byte(config)}, d)
	if err != nil {
		t.Fatal(err)
	}
	if len(d.Ignored()) != 1 {
		t.Errorf("not reported: %v", d.Ignored())
	}
	f, err := Factory{}.Compile(nil, cfg)
	if err != nil {
		t.Fatal(err)
	}
	c := &filters.Connection{Info: &streaminfo.Info{Conn: &streaminfo.Conn{}}}
	if policy != "" {
		c.Info.Metadata.Set("envoy.filters.network.rbac", "istio_ext_authz_shadow_effective_policy_id", policy)
	}
	return f.(filters.NetworkFilter).OnNewConnection(c)
}

func TestConnectionsThatItConcernsAreRefused(t *testing.T) {
	for _, tc := range []struct {
		config, policy string
		refused        bool
	}{
		{config, "istio-ext-authz-authz-grpc-ns[a]-policy[b]-rule[0]", true},
		{config, "other", false},
		{config, "", false},
		{`{"statPrefix":"x","grpcService":{},"failureModeAllow":true}`, "", true},
	} {
		err := run(t, tc.config, tc.policy)
		var d *filters.Denied
		if errors.As(err, &d) != tc.refused || tc.refused && (d.Flag != streaminfo.UnauthorizedExternalService || d.Details != "ext_authz_error") {
			t.Errorf("policy %q: %v", tc.policy, err)
		}
	}
}

func FuzzDecode(f *testing.F) {
	f.Add([]byte(config), true)
	f.Fuzz(func(t *testing.T, b []byte, isJSON bool) {
		c, err := Factory{}.Decode(filters.Any{JSON: isJSON, Value: b}, nil)
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
