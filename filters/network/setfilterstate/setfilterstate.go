// Package setfilterstate is the network set_filter_state filter: it makes
// filter-state objects of a connection, which its streams and, if shared, the
// next internal hop see.
package setfilterstate

import (
	"fmt"

	"github.com/fairlead-mesh/fairlead/filters"
	"github.com/fairlead-mesh/fairlead/filters/internal/filterobjects"
	"github.com/fairlead-mesh/fairlead/internal/format"
	"github.com/fairlead-mesh/fairlead/internal/streaminfo"
)

// Factory makes network set_filter_state filters.
type Factory struct{}

// TypeURLs implements filters.NetworkFactory.
func (Factory) TypeURLs() []string { return []string{typeURL} }

// Compile implements filters.NetworkFactory.
func (Factory) Compile(_ *filters.Env, cfg filters.Config) (any, error) {
	c, ok := cfg.(*Config)
	if !ok {
		return nil, fmt.Errorf("set_filter_state: configuration is a %T", cfg)
	}
	return &filter{c}, nil
}

type filter struct{ c *Config }

// OnNewConnection implements filters.NetworkFilter.
func (f *filter) OnNewConnection(c *filters.Connection) error {
	inherit(&c.Info.Metadata, &c.Info.Conn.Metadata)
	fc := format.Context{Info: c.Info}
	filterobjects.Apply(f.c.Values, &c.Info.Conn.FilterState, &fc)
	return nil
}

// Explain does what OnNewConnection does, and says what was set.
func (f *filter) Explain(c *filters.Connection) filters.Explanation {
	x := filters.Explanation{Verdict: filters.VerdictPass}
	if err := f.OnNewConnection(c); err != nil {
		return filters.Explanation{Verdict: filters.VerdictDeny, Text: []string{err.Error()}}
	}
	for i := range f.c.Values {
		key := f.c.Values[i].Key
		x.Text = append(x.Text, fmt.Sprintf("%s = %q", key, c.Info.Conn.FilterState.GetString(key)))
	}
	return x
}

// inherit makes metadata that crossed an internal hop with the connection
// visible as the stream's dynamic metadata.
func inherit(stream, conn *streaminfo.Metadata) {
	for ns, values := range conn.Namespaces() {
		if stream.Namespace(ns) != nil {
			continue
		}
		for k, v := range values {
			stream.Set(ns, k, v)
		}
	}
}

// Detached implements filters.Detached.
func (f *filter) Detached() {}
