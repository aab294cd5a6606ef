package rbac

import (
	"errors"
	"fmt"
	"time"

	rbacv3pb "github.com/envoyproxy/go-control-plane/envoy/extensions/filters/network/rbac/v3"

	"github.com/fairlead-mesh/fairlead/filters"
	"github.com/fairlead-mesh/fairlead/filters/internal/authz"
	"github.com/fairlead-mesh/fairlead/filters/internal/decode"
)

const typeURL = "type.googleapis.com/envoy.extensions.filters.network.rbac.v3.RBAC"

// Config is the network RBAC filter's configuration.
type Config struct {
	// Rules are enforced, Shadow only recorded; nil means none of the kind.
	Rules, Shadow            *authz.Rules
	StatPrefix, ShadowPrefix string
	// DelayDeny holds a refused connection for that long before it is closed.
	DelayDeny time.Duration
}

// Decode implements filters.NetworkFactory.
func (Factory) Decode(a filters.Any, d *filters.Decoding) (filters.Config, error) {
	m := &rbacv3pb.RBAC{}
	if err := decode.Strict(a, m); err != nil {
		return nil, err
	}
	if m.GetMatcher() != nil || m.GetShadowMatcher() != nil {
		return nil, errors.New("matcher: the matcher form of RBAC is not supported, use rules")
	}
	switch m.GetEnforcementType() {
	case rbacv3pb.RBAC_ONE_TIME_ON_FIRST_BYTE:
	case rbacv3pb.RBAC_CONTINUOUS:
		return nil, errors.New("enforcement_type: CONTINUOUS is not supported; a connection is decided on once")
	default:
		return nil, fmt.Errorf("enforcement_type: %d is not supported", m.GetEnforcementType())
	}
	c := &Config{StatPrefix: m.GetStatPrefix(), ShadowPrefix: m.GetShadowRulesStatPrefix()}
	var err error
	if c.DelayDeny, err = decode.Duration(m.GetDelayDeny(), 0); err != nil {
		return nil, fmt.Errorf("delay_deny: %w", err)
	}
	if c.Rules, err = authz.DecodeRules(m.GetRules(), "rules", d); err != nil {
		return nil, err
	}
	if c.Shadow, err = authz.DecodeRules(m.GetShadowRules(), "shadow_rules", d); err != nil {
		return nil, err
	}
	return c, nil
}
