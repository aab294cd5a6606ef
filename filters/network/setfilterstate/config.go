package setfilterstate

import (
	"errors"

	set_filter_statev3pb "github.com/envoyproxy/go-control-plane/envoy/extensions/filters/network/set_filter_state/v3"

	"github.com/fairlead-mesh/fairlead/filters"
	"github.com/fairlead-mesh/fairlead/filters/internal/decode"
	"github.com/fairlead-mesh/fairlead/filters/internal/filterobjects"
)

const typeURL = "type.googleapis.com/envoy.extensions.filters.network.set_filter_state.v3.Config"

// Config is the filter's configuration.
type Config struct{ Values []filterobjects.Value }

// Decode implements filters.NetworkFactory.
func (Factory) Decode(a filters.Any, _ *filters.Decoding) (filters.Config, error) {
	m := &set_filter_statev3pb.Config{}
	if err := decode.Strict(a, m); err != nil {
		return nil, err
	}
	if len(m.GetOnDownstreamData()) > 0 {
		return nil, errors.New("on_downstream_data: not supported, values are set when the connection arrives")
	}
	vs, err := filterobjects.Decode(m.GetOnNewConnection(), "on_new_connection")
	if err != nil {
		return nil, err
	}
	// The TLS handshake is complete before network filters run.
	tls, err := filterobjects.Decode(m.GetOnDownstreamTlsHandshake(), "on_downstream_tls_handshake")
	if err != nil {
		return nil, err
	}
	return &Config{append(vs, tls...)}, nil
}
