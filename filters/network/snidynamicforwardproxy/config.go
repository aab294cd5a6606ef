package snidynamicforwardproxy

import (
	"errors"

	sni_dynamic_forward_proxyv3pb "github.com/envoyproxy/go-control-plane/envoy/extensions/filters/network/sni_dynamic_forward_proxy/v3"

	"github.com/fairlead-mesh/fairlead/filters"
	"github.com/fairlead-mesh/fairlead/filters/internal/decode"
)

const typeURL = "type.googleapis.com/envoy.extensions.filters.network.sni_dynamic_forward_proxy.v3.FilterConfig"

const defaultPort = 443

// Config is the filter's configuration.
type Config struct {
	// Port is what the named host is connected to.
	Port uint16
}

// Decode implements filters.NetworkFactory.
func (Factory) Decode(a filters.Any, d *filters.Decoding) (filters.Config, error) {
	m := &sni_dynamic_forward_proxyv3pb.FilterConfig{}
	if err := decode.Into(a, m, d); err != nil {
		return nil, err
	}
	if m.GetDnsCacheConfig().GetName() == "" {
		return nil, errors.New("dns_cache_config.name: must not be empty")
	}
	if m.GetPortValue() > 65535 {
		return nil, errors.New("port_value: must be at most 65535")
	}
	if m.GetSaveUpstreamAddress() {
		d.Ignore("save_upstream_address", "the address is kept as that of the upstream host only")
	}
	c := &Config{Port: uint16(m.GetPortValue())}
	if c.Port == 0 {
		c.Port = defaultPort
	}
	return c, nil
}
