package metadataexchange

import (
	"errors"

	metadata_exchangepb "istio.io/api/envoy/config/filter/network/metadata_exchange"

	"github.com/fairlead-mesh/fairlead/filters"
	"github.com/fairlead-mesh/fairlead/filters/internal/decode"
)

// Both names of the type: Envoy's, which istiod sends as a TypedStruct, and
// that of Istio's API.
const typeURL = "type.googleapis.com/envoy.tcp.metadataexchange.config.MetadataExchange"

// Config is the filter's configuration.
type Config struct {
	// Discovery asks the table of workloads.
	Discovery bool
}

// Decode implements filters.NetworkFactory.
func (Factory) Decode(a filters.Any, d *filters.Decoding) (filters.Config, error) {
	m := &metadata_exchangepb.MetadataExchange{}
	if err := decode.Into(a, m, d); err != nil {
		return nil, err
	}
	if m.GetProtocol() == "" {
		return nil, errors.New("protocol: must not be empty")
	}
	d.Ignore("protocol", "metadata is not exchanged over the connection; peers are found in the table of workloads")
	return &Config{Discovery: m.GetEnableDiscovery()}, nil
}
