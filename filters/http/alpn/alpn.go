// Package alpn accepts Istio's alpn filter. It tells sidecars by ALPN that the
// peer is in the mesh; in ambient mode the tunnel says so, and the filter has
// nothing to do.
package alpn

import "github.com/fairlead-mesh/fairlead/filters"

// Factory accepts the configuration and makes no filter.
type Factory struct{}

// TypeURLs implements filters.HTTPFactory.
func (Factory) TypeURLs() []string { return []string{typeURL} }

// Compile implements filters.HTTPFactory: there is nothing to do on any route.
func (Factory) Compile(*filters.Env, filters.Config, filters.Config) (filters.HTTPFilter, error) {
	return nil, nil //nolint:nilnil // the documented "nothing to do"
}
