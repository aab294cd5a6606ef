// Package headermutation is the header_mutation HTTP filter: it changes
// request and response headers. istiod uses it to tell backends the client's
// identity (x-forwarded-client-cert).
package headermutation

import (
	"fmt"
	"slices"

	"github.com/fairlead-mesh/fairlead/filters"
	"github.com/fairlead-mesh/fairlead/filters/internal/headeredit"
	"github.com/fairlead-mesh/fairlead/internal/format"
)

// Factory makes header_mutation filters.
type Factory struct{}

// TypeURLs implements filters.HTTPFactory.
func (Factory) TypeURLs() []string { return []string{typeURL, typeURLPerRoute} }

// Compile implements filters.HTTPFactory. The route's edits follow the
// filter's own.
func (Factory) Compile(_ *filters.Env, base, override filters.Config) (filters.HTTPFilter, error) {
	c, ok := base.(*Config)
	if !ok {
		return nil, fmt.Errorf("header_mutation: configuration is a %T", base)
	}
	f := &filter{request: c.Request, response: c.Response}
	if override != nil {
		o, ok := override.(*Config)
		if !ok {
			return nil, fmt.Errorf("header_mutation: per-route configuration is a %T", override)
		}
		f.request, f.response = slices.Concat(c.Request, o.Request), slices.Concat(c.Response, o.Response)
	}
	if len(f.request) == 0 && len(f.response) == 0 {
		return nil, nil //nolint:nilnil // nothing to do on this route
	}
	return f, nil
}

type filter struct{ request, response []headeredit.Edit }

// Do implements filters.HTTPFilter.
func (f *filter) Do(s *filters.Stream, next filters.Next) (*filters.Response, error) {
	c := format.Context{Info: &s.Info, Request: &s.Request}
	headeredit.Apply(f.request, &s.Request, &c)
	r, err := next.Do(s)
	if err != nil || r == nil || len(f.response) == 0 {
		return r, err
	}
	c.Response = &r.Header
	headeredit.Apply(f.response, &r.Header, &c)
	return r, nil
}

// Explain changes the request as Do does.
func (f *filter) Explain(s *filters.Stream) filters.Explanation {
	headeredit.Apply(f.request, &s.Request, &format.Context{Info: &s.Info, Request: &s.Request})
	return filters.Explanation{
		Verdict: filters.VerdictPass,
		Text:    []string{fmt.Sprintf("edits %d request headers and %d response headers", len(f.request), len(f.response))},
	}
}
