package alpn

import (
	"errors"
	"fmt"
	"strings"

	alpnpb "istio.io/api/envoy/config/filter/http/alpn/v2alpha1"

	"github.com/fairlead-mesh/fairlead/filters"
	"github.com/fairlead-mesh/fairlead/filters/internal/decode"
)

const typeURL = "type.googleapis.com/istio.envoy.config.filter.http.alpn.v2alpha1.FilterConfig"

// Config is the filter's configuration: what is offered, separated by commas, by
// the version that upstream is spoken to. "" leaves it to the cluster. Nothing is
// sent upstream as HTTP/1.0, so what stands for that is only validated.
type Config struct{ HTTP1, HTTP2 string }

// Decode implements filters.HTTPFactory.
func (Factory) Decode(a filters.Any, d *filters.Decoding) (filters.Config, error) {
	m := &alpnpb.FilterConfig{}
	if err := decode.Into(a, m, d); err != nil {
		return nil, err
	}
	c := &Config{}
	seen := map[alpnpb.FilterConfig_Protocol]bool{}
	for i, o := range m.GetAlpnOverride() {
		list, err := join(o.GetAlpnOverride())
		if err != nil {
			return nil, fmt.Errorf("alpn_override[%d].%w", i, err)
		}
		p := o.GetUpstreamProtocol()
		if seen[p] {
			continue // Envoy keeps the first, too
		}
		seen[p] = true
		switch p {
		case alpnpb.FilterConfig_HTTP10:
		case alpnpb.FilterConfig_HTTP11:
			c.HTTP1 = list
		case alpnpb.FilterConfig_HTTP2:
			c.HTTP2 = list
		default:
			return nil, fmt.Errorf("alpn_override[%d].upstream_protocol: unknown value %d", i, p)
		}
	}
	return c, nil
}

// join checks that names are protocol names of ALPN (RFC 7301 §3.1) that can be
// told apart when joined.
func join(names []string) (string, error) {
	total := 0
	for i, n := range names {
		if n == "" || len(n) > 255 || strings.Contains(n, ",") {
			return "", fmt.Errorf("alpn_override[%d]: a protocol name has 1 to 255 bytes and no comma", i)
		}
		if total += 1 + len(n); total > 1<<16-1 {
			return "", errors.New("alpn_override: the names don't fit into a ClientHello")
		}
	}
	return strings.Join(names, ","), nil
}

// DecodeOverride implements filters.HTTPFactory.
func (Factory) DecodeOverride(filters.Any, *filters.Decoding) (filters.Config, error) {
	return nil, errors.New("istio.alpn has no per-route configuration")
}
