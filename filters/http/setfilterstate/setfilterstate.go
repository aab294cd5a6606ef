// Package setfilterstate is the HTTP set_filter_state filter: it makes
// filter-state objects of a request. istiod uses it on the tunnel's CONNECT to
// carry destination, source and identities to the inner listener.
package setfilterstate

import (
	"fmt"

	"github.com/fairlead-mesh/fairlead/filters"
	"github.com/fairlead-mesh/fairlead/filters/internal/filterobjects"
	"github.com/fairlead-mesh/fairlead/internal/format"
)

// Factory makes set_filter_state filters.
type Factory struct{}

// TypeURLs implements filters.HTTPFactory.
func (Factory) TypeURLs() []string { return []string{typeURL} }

// Compile implements filters.HTTPFactory.
func (Factory) Compile(_ *filters.Env, base, override filters.Config) (filters.HTTPFilter, error) {
	if override != nil {
		base = override
	}
	c, ok := base.(*Config)
	if !ok {
		return nil, fmt.Errorf("set_filter_state: configuration is a %T", base)
	}
	return &filter{c}, nil
}

type filter struct{ c *Config }

// Do implements filters.HTTPFilter.
func (f *filter) Do(s *filters.Stream, next filters.Next) (*filters.Response, error) {
	f.apply(s)
	return next.Do(s)
}

// Explain does what Do does before it passes the request on, and says what was
// set.
func (f *filter) Explain(s *filters.Stream) filters.Explanation {
	f.apply(s)
	x := filters.Explanation{Verdict: filters.VerdictPass}
	for i := range f.c.Values {
		key := f.c.Values[i].Key
		x.Text = append(x.Text, fmt.Sprintf("%s = %q", key, s.Info.FilterState.GetString(key)))
	}
	return x
}

func (f *filter) apply(s *filters.Stream) {
	c := format.Context{Info: &s.Info, Request: &s.Request}
	filterobjects.Apply(f.c.Values, &s.Info.FilterState, &c)
	if f.c.ClearRouteCache {
		s.ClearRouteCache()
	}
}
