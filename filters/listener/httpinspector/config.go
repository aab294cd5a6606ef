package httpinspector

import (
	http_inspectorv3pb "github.com/envoyproxy/go-control-plane/envoy/extensions/filters/listener/http_inspector/v3"

	"github.com/fairlead-mesh/fairlead/filters"
	"github.com/fairlead-mesh/fairlead/filters/internal/decode"
)

const typeURL = "type.googleapis.com/envoy.extensions.filters.listener.http_inspector.v3.HttpInspector"

// Config is the filter's configuration: there is nothing to configure.
type Config struct{}

// Decode implements filters.ListenerFactory.
func (Factory) Decode(a filters.Any, d *filters.Decoding) (filters.Config, error) {
	if err := decode.Into(a, &http_inspectorv3pb.HttpInspector{}, d); err != nil {
		return nil, err
	}
	return &Config{}, nil
}
