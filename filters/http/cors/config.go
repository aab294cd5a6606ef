package cors

import (
	"fmt"

	corsv3pb "github.com/envoyproxy/go-control-plane/envoy/extensions/filters/http/cors/v3"

	"github.com/fairlead-mesh/fairlead/filters"
	"github.com/fairlead-mesh/fairlead/filters/internal/decode"
	"github.com/fairlead-mesh/fairlead/internal/matcher"
)

const (
	typeURL       = "type.googleapis.com/envoy.extensions.filters.http.cors.v3.Cors"
	typeURLPolicy = "type.googleapis.com/envoy.extensions.filters.http.cors.v3.CorsPolicy"
)

// Config is the filter's own configuration: nothing.
type Config struct{}

// Policy is CorsPolicy, which routes carry.
type Policy struct {
	Origins                                           []matcher.String
	AllowMethods, AllowHeaders, ExposeHeaders, MaxAge string
	AllowCredentials, AllowPrivateNetwork             bool
	ForwardNotMatchingPreflights                      bool
	// EnabledPPM and ShadowPPM are parts of a million; shadow only counts.
	EnabledPPM, ShadowPPM uint32
}

// Decode implements filters.HTTPFactory.
func (Factory) Decode(a filters.Any, d *filters.Decoding) (filters.Config, error) {
	if err := decode.Into(a, &corsv3pb.Cors{}, d); err != nil {
		return nil, err
	}
	return &Config{}, nil
}

// DecodeOverride implements filters.HTTPFactory.
func (Factory) DecodeOverride(a filters.Any, d *filters.Decoding) (filters.Config, error) {
	m := &corsv3pb.CorsPolicy{}
	if err := decode.Into(a, m, d); err != nil {
		return nil, err
	}
	p := &Policy{
		AllowMethods: m.GetAllowMethods(), AllowHeaders: m.GetAllowHeaders(), ExposeHeaders: m.GetExposeHeaders(), MaxAge: m.GetMaxAge(),
		AllowCredentials: m.GetAllowCredentials().GetValue(), AllowPrivateNetwork: m.GetAllowPrivateNetworkAccess().GetValue(),
		ForwardNotMatchingPreflights: m.GetForwardNotMatchingPreflights() == nil || m.GetForwardNotMatchingPreflights().GetValue(),
	}
	var err error
	if p.Origins, err = matcher.StringsFromProto(m.GetAllowOriginStringMatch()); err != nil {
		return nil, fmt.Errorf("allow_origin_string_match%w", err)
	}
	if p.EnabledPPM, err = decode.RuntimePartsPerMillion(m.GetFilterEnabled(), 1_000_000, "filter_enabled", d); err != nil {
		return nil, fmt.Errorf("filter_enabled.default_value: %w", err)
	}
	if p.ShadowPPM, err = decode.RuntimePartsPerMillion(m.GetShadowEnabled(), 0, "shadow_enabled", d); err != nil {
		return nil, fmt.Errorf("shadow_enabled.default_value: %w", err)
	}
	return p, nil
}
