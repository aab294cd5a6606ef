package rbac

import (
	"fmt"

	rbacconfigv3pb "github.com/envoyproxy/go-control-plane/envoy/config/rbac/v3"
	rbacv3pb "github.com/envoyproxy/go-control-plane/envoy/extensions/filters/http/rbac/v3"

	"github.com/fairlead-mesh/fairlead/filters"
	"github.com/fairlead-mesh/fairlead/filters/internal/authz"
	"github.com/fairlead-mesh/fairlead/filters/internal/decode"
)

const (
	typeURL         = "type.googleapis.com/envoy.extensions.filters.http.rbac.v3.RBAC"
	typeURLPerRoute = "type.googleapis.com/envoy.extensions.filters.http.rbac.v3.RBACPerRoute"
)

// Config is the RBAC filter's configuration.
type Config struct {
	// Rules are enforced, Shadow only recorded; nil means none of the kind.
	Rules, Shadow                 *authz.Rules
	RulesStatPrefix, ShadowPrefix string
	TrackPerRuleStats             bool
}

// Override is RBACPerRoute. A nil Config switches the filter off on the route.
type Override struct{ Config *Config }

// Decode implements filters.HTTPFactory.
func (Factory) Decode(a filters.Any, d *filters.Decoding) (filters.Config, error) {
	m := &rbacv3pb.RBAC{}
	if err := decode.Strict(a, m); err != nil {
		return nil, err
	}
	return convert(m, "", d)
}

// DecodeOverride implements filters.HTTPFactory.
func (Factory) DecodeOverride(a filters.Any, d *filters.Decoding) (filters.Config, error) {
	m := &rbacv3pb.RBACPerRoute{}
	if err := decode.Strict(a, m); err != nil {
		return nil, err
	}
	if m.GetRbac() == nil {
		return &Override{}, nil
	}
	c, err := convert(m.GetRbac(), "rbac.", d)
	if err != nil {
		return nil, err
	}
	return &Override{c}, nil
}

func convert(m *rbacv3pb.RBAC, path string, d *filters.Decoding) (*Config, error) {
	if m.GetMatcher() != nil || m.GetShadowMatcher() != nil {
		return nil, fmt.Errorf("%smatcher: the matcher form of RBAC is not supported, use rules", path)
	}
	c := &Config{RulesStatPrefix: m.GetRulesStatPrefix(), ShadowPrefix: m.GetShadowRulesStatPrefix(), TrackPerRuleStats: m.GetTrackPerRuleStats()}
	for _, x := range []struct {
		name string
		in   *rbacconfigv3pb.RBAC
		out  **authz.Rules
	}{{"rules", m.GetRules(), &c.Rules}, {"shadow_rules", m.GetShadowRules(), &c.Shadow}} {
		r, err := authz.DecodeRules(x.in, path+x.name, d)
		if err != nil {
			return nil, err
		}
		*x.out = r
	}
	return c, nil
}
