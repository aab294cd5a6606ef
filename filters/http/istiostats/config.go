package istiostats

import (
	"errors"

	"github.com/fairlead-mesh/fairlead/filters"
	"github.com/fairlead-mesh/fairlead/filters/internal/istio/istiometrics"
)

// Decode implements filters.HTTPFactory.
func (Factory) Decode(a filters.Any, d *filters.Decoding) (filters.Config, error) {
	return istiometrics.Decode(a, d)
}

// DecodeOverride implements filters.HTTPFactory.
func (Factory) DecodeOverride(filters.Any, *filters.Decoding) (filters.Config, error) {
	return nil, errors.New("istio.stats has no per-route configuration")
}
