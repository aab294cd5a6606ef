package extauthz

import (
	"errors"
	"fmt"

	ext_authzv3pb "github.com/envoyproxy/go-control-plane/envoy/extensions/filters/network/ext_authz/v3"

	"github.com/fairlead-mesh/fairlead/filters"
	"github.com/fairlead-mesh/fairlead/filters/internal/authz"
	"github.com/fairlead-mesh/fairlead/filters/internal/decode"
)

const typeURL = "type.googleapis.com/envoy.extensions.filters.network.ext_authz.v3.ExtAuthz"

// Config is the filter's configuration.
type Config struct {
	StatPrefix string
	// Enabled, if not nil, is the metadata that switches the check on.
	Enabled *authz.Metadata
}

// Decode implements filters.NetworkFactory.
func (Factory) Decode(a filters.Any, d *filters.Decoding) (filters.Config, error) {
	m := &ext_authzv3pb.ExtAuthz{}
	if err := decode.Strict(a, m); err != nil {
		return nil, err
	}
	if m.GetShadowMode() {
		return nil, errors.New("shadow_mode: not supported")
	}
	c := &Config{StatPrefix: m.GetStatPrefix()}
	if m.GetFilterEnabledMetadata() != nil {
		md, err := authz.DecodeMetadata(m.GetFilterEnabledMetadata())
		if err != nil {
			return nil, fmt.Errorf("filter_enabled_metadata.%w", err)
		}
		c.Enabled = &md
	}
	d.Ignore("grpc_service", "gRPC authorization services are not called yet: connections that they concern are refused")
	return c, nil
}
