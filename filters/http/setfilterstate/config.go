package setfilterstate

import (
	"errors"

	set_filter_statev3pb "github.com/envoyproxy/go-control-plane/envoy/extensions/filters/http/set_filter_state/v3"

	"github.com/fairlead-mesh/fairlead/filters"
	"github.com/fairlead-mesh/fairlead/filters/internal/decode"
	"github.com/fairlead-mesh/fairlead/filters/internal/filterobjects"
)

const typeURL = "type.googleapis.com/envoy.extensions.filters.http.set_filter_state.v3.Config"

// Config is the filter's configuration.
type Config struct {
	Values          []filterobjects.Value
	ClearRouteCache bool
}

// Decode implements filters.HTTPFactory.
func (Factory) Decode(a filters.Any, _ *filters.Decoding) (filters.Config, error) {
	m := &set_filter_statev3pb.Config{}
	if err := decode.Strict(a, m); err != nil {
		return nil, err
	}
	vs, err := filterobjects.Decode(m.GetOnRequestHeaders(), "on_request_headers")
	if err != nil {
		return nil, err
	}
	if len(vs) == 0 {
		return nil, errors.New("on_request_headers: at least one value is required")
	}
	return &Config{Values: vs, ClearRouteCache: m.GetClearRouteCache()}, nil
}

// DecodeOverride implements filters.HTTPFactory: the same message, which
// replaces the filter's configuration.
func (f Factory) DecodeOverride(a filters.Any, d *filters.Decoding) (filters.Config, error) {
	return f.Decode(a, d)
}
