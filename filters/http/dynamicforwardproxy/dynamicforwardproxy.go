// Package dynamicforwardproxy is Envoy's dynamic_forward_proxy HTTP filter.
// The cluster of that name resolves the request's authority when it picks a
// host; what is left for the filter is to change that authority.
package dynamicforwardproxy

import (
	"fmt"

	"github.com/fairlead-mesh/fairlead/filters"
	"github.com/fairlead-mesh/fairlead/internal/message"
)

// Factory makes dynamic_forward_proxy filters.
type Factory struct{}

// TypeURLs implements filters.HTTPFactory.
func (Factory) TypeURLs() []string { return []string{typeURL, perRouteTypeURL} }

// Compile implements filters.HTTPFactory: without a rewrite there is nothing
// to do.
func (Factory) Compile(_ *filters.Env, base, override filters.Config) (filters.HTTPFilter, error) {
	if _, ok := base.(*Config); !ok {
		return nil, fmt.Errorf("dynamic_forward_proxy: configuration is a %T", base)
	}
	if override == nil {
		return nil, nil //nolint:nilnil // the documented "nothing to do"
	}
	r, ok := override.(*PerRoute)
	if !ok {
		return nil, fmt.Errorf("dynamic_forward_proxy: per-route configuration is a %T", override)
	}
	if *r == (PerRoute{}) {
		return nil, nil //nolint:nilnil // the documented "nothing to do"
	}
	return &filter{r}, nil
}

type filter struct{ r *PerRoute }

// Do implements filters.HTTPFilter.
func (f *filter) Do(s *filters.Stream, next filters.Next) (*filters.Response, error) {
	f.rewrite(s)
	return next.Do(s)
}

func (f *filter) rewrite(s *filters.Stream) (changed bool) {
	host := f.r.Literal
	if f.r.Header != "" {
		host = s.Request.Get(f.r.Header)
	}
	if host == "" {
		return false
	}
	s.Request.Set(message.Authority, host)
	return true
}

// Explain changes the authority as Do does, and says so.
func (f *filter) Explain(s *filters.Stream) filters.Explanation {
	x := filters.Explanation{Verdict: filters.VerdictPass}
	if f.rewrite(s) {
		x.Text = []string{"the authority becomes " + s.Request.Get(message.Authority)}
	}
	return x
}
