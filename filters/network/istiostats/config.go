package istiostats

import (
	"github.com/fairlead-mesh/fairlead/filters"
	"github.com/fairlead-mesh/fairlead/filters/internal/istio/istiometrics"
)

// Decode implements filters.NetworkFactory.
func (Factory) Decode(a filters.Any, d *filters.Decoding) (filters.Config, error) {
	return istiometrics.Decode(a, d)
}
