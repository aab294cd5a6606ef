package extauthz

import (
	"strings"
	"testing"

	"github.com/fairlead-mesh/fairlead/filters"
	"github.com/fairlead-mesh/fairlead/filters/internal/explaintest"
	"github.com/fairlead-mesh/fairlead/internal/message"
	"github.com/fairlead-mesh/fairlead/internal/streaminfo"
)

func TestACallIsAnnouncedAndNotMade(t *testing.T) {
	for name, c := range map[string]struct {
		config, policy string
		verdict        filters.Verdict
		text           string
	}{
		"gRPC":           {grpcSvc, "istio-ext-authz-p-1", filters.VerdictUnknown, "the service behind cluster authz would be asked"},
		"HTTP":           {httpSvc, "istio-ext-authz-p-1", filters.VerdictUnknown, "the service behind cluster authz would be asked"},
		"another policy": {grpcSvc, "other", filters.VerdictPass, "the service is not asked"},
	} {
		t.Run(name, func(t *testing.T) {
			v := &service{status: 200}
			f := compile(t, c.config, "", v)
			s := &filters.Stream{}
			s.Reset()
			s.Info.Conn = &streaminfo.Conn{}
			s.Info.Metadata.Set("envoy.filters.http.rbac", "istio_ext_authz_shadow_effective_policy_id", c.policy)
			s.Request.Add(message.Method, "GET")
			x := explaintest.Ask(t, f, s).Explanation()
			if x.Verdict != c.verdict || !strings.Contains(strings.Join(x.Text, "\n"), c.text) || v.got != nil {
				t.Errorf("%+v, asked %v", x, v.got)
			}
		})
	}
}
