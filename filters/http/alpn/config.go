package alpn

import (
	"errors"

	alpnpb "istio.io/api/envoy/config/filter/http/alpn/v2alpha1"

	"github.com/fairlead-mesh/fairlead/filters"
	"github.com/fairlead-mesh/fairlead/filters/internal/decode"
)

const typeURL = "type.googleapis.com/istio.envoy.config.filter.http.alpn.v2alpha1.FilterConfig"

// Config is the filter's configuration: accepted, without effect.
type Config struct{}

// Decode implements filters.HTTPFactory.
func (Factory) Decode(a filters.Any, d *filters.Decoding) (filters.Config, error) {
	m := &alpnpb.FilterConfig{}
	if err := decode.Into(a, m, d); err != nil {
		return nil, err
	}
	if len(m.GetAlpnOverride()) > 0 {
		d.Ignore("alpn_override", "upstream TLS offers the ALPN of the cluster; sidecars are not offered Istio's own protocols")
	}
	return &Config{}, nil
}

// DecodeOverride implements filters.HTTPFactory.
func (Factory) DecodeOverride(filters.Any, *filters.Decoding) (filters.Config, error) {
	return nil, errors.New("istio.alpn has no per-route configuration")
}
