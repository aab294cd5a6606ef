// Package snidynamicforwardproxy is Envoy's sni_dynamic_forward_proxy network
// filter. A cluster of type dynamic_forward_proxy behind tcp_proxy connects to
// the host that the client's SNI names; the filter says to which port.
package snidynamicforwardproxy

import (
	"errors"
	"fmt"
	"strconv"

	"github.com/fairlead-mesh/fairlead/filters"
	"github.com/fairlead-mesh/fairlead/internal/streaminfo"
)

// portKey is the filter-state object that the cluster reads, as in Envoy.
const portKey = "envoy.upstream.dynamic_port"

// Factory makes sni_dynamic_forward_proxy filters.
type Factory struct{}

// TypeURLs implements filters.NetworkFactory.
func (Factory) TypeURLs() []string { return []string{typeURL} }

// Compile implements filters.NetworkFactory.
func (Factory) Compile(_ *filters.Env, cfg filters.Config) (any, error) {
	c, ok := cfg.(*Config)
	if !ok {
		return nil, fmt.Errorf("sni_dynamic_forward_proxy: configuration is a %T", cfg)
	}
	return &filter{streaminfo.String(strconv.Itoa(int(c.Port)))}, nil
}

type filter struct{ port streaminfo.String }

var errNoName = errors.New("no server name: the client's TLS has no SNI, or tls_inspector is missing")

// OnNewConnection implements filters.NetworkFilter.
func (f *filter) OnNewConnection(c *filters.Connection) error {
	ci := c.Info.Conn
	if ci.RequestedServerName == "" {
		return errNoName
	}
	if ci.FilterState.Get(portKey) == nil {
		ci.FilterState.SetStatic(portKey, f.port, streaminfo.SharingNone)
	}
	return nil
}

// Explain does what OnNewConnection does, and says where the connection would
// go.
func (f *filter) Explain(c *filters.Connection) filters.Explanation {
	if err := f.OnNewConnection(c); err != nil {
		return filters.Explanation{Verdict: filters.VerdictDeny, Text: []string{err.Error()}}
	}
	ci := c.Info.Conn
	return filters.Explanation{Verdict: filters.VerdictPass, Text: []string{"goes to " + ci.RequestedServerName + ":" + ci.FilterState.GetString(portKey)}}
}
