package originaldst

import (
	original_dstv3pb "github.com/envoyproxy/go-control-plane/envoy/extensions/filters/listener/original_dst/v3"

	"github.com/fairlead-mesh/fairlead/filters"
	"github.com/fairlead-mesh/fairlead/filters/internal/decode"
)

const typeURL = "type.googleapis.com/envoy.extensions.filters.listener.original_dst.v3.OriginalDst"

// Config is the filter's configuration: there is nothing to configure.
type Config struct{}

// Decode implements filters.ListenerFactory.
func (Factory) Decode(a filters.Any, d *filters.Decoding) (filters.Config, error) {
	if err := decode.Into(a, &original_dstv3pb.OriginalDst{}, d); err != nil {
		return nil, err
	}
	return &Config{}, nil
}
