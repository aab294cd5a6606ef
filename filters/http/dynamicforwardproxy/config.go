package dynamicforwardproxy

import (
	"errors"

	dynamic_forward_proxyv3pb "github.com/envoyproxy/go-control-plane/envoy/extensions/filters/http/dynamic_forward_proxy/v3"

	"github.com/fairlead-mesh/fairlead/filters"
	"github.com/fairlead-mesh/fairlead/filters/internal/decode"
)

const (
	typeURL         = "type.googleapis.com/envoy.extensions.filters.http.dynamic_forward_proxy.v3.FilterConfig"
	perRouteTypeURL = "type.googleapis.com/envoy.extensions.filters.http.dynamic_forward_proxy.v3.PerRouteConfig"
)

// Config is the filter's configuration: names are resolved by the cluster.
type Config struct{}

// PerRoute is the configuration for a route. At most one field is set.
type PerRoute struct {
	// Literal becomes the request's :authority.
	Literal string
	// Header is the request header whose value does.
	Header string
}

// Decode implements filters.HTTPFactory.
func (Factory) Decode(a filters.Any, d *filters.Decoding) (filters.Config, error) {
	m := &dynamic_forward_proxyv3pb.FilterConfig{}
	if a.TypeURL != "" && a.TypeURL != typeURL {
		return nil, errors.New("dynamic_forward_proxy: want a FilterConfig")
	}
	if err := decode.Into(a, m, d); err != nil {
		return nil, err
	}
	if m.GetSubClusterConfig() != nil {
		return nil, errors.New("sub_cluster_config: is not supported, use dns_cache_config")
	}
	if m.GetDnsCacheConfig().GetName() == "" {
		return nil, errors.New("dns_cache_config.name: must not be empty")
	}
	if m.GetAllowDynamicHostFromFilterState() {
		return nil, errors.New("allow_dynamic_host_from_filter_state: is not supported: requests would go elsewhere")
	}
	if m.GetSaveUpstreamAddress() {
		d.Ignore("save_upstream_address", "the address is kept as that of the upstream host only")
	}
	return &Config{}, nil
}

// DecodeOverride implements filters.HTTPFactory.
func (Factory) DecodeOverride(a filters.Any, d *filters.Decoding) (filters.Config, error) {
	m := &dynamic_forward_proxyv3pb.PerRouteConfig{}
	if a.TypeURL != "" && a.TypeURL != perRouteTypeURL {
		return nil, errors.New("dynamic_forward_proxy: want a PerRouteConfig")
	}
	if err := decode.Into(a, m, d); err != nil {
		return nil, err
	}
	return &PerRoute{Literal: m.GetHostRewriteLiteral(), Header: m.GetHostRewriteHeader()}, nil
}
