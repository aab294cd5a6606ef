// Package istiostats is the HTTP side of istio.stats: Istio's standard metrics
// for requests.
package istiostats

import (
	"fmt"

	"github.com/fairlead-mesh/fairlead/filters"
	"github.com/fairlead-mesh/fairlead/filters/internal/istio/istiometrics"
	"github.com/fairlead-mesh/fairlead/internal/streaminfo"
)

// Factory makes istio.stats filters.
type Factory struct{}

// TypeURLs implements filters.HTTPFactory.
func (Factory) TypeURLs() []string { return []string{istiometrics.TypeURL} }

// Compile implements filters.HTTPFactory.
func (Factory) Compile(env *filters.Env, base, override filters.Config) (filters.HTTPFilter, error) {
	c, ok := base.(*istiometrics.Config)
	if !ok || override != nil {
		return nil, fmt.Errorf("istio.stats: configuration is a %T, override a %T", base, override)
	}
	f := &filter{m: istiometrics.New(env, c), key: "istio.stats messages"}
	if env != nil {
		f.key += " " + env.Name
	}
	return f, nil
}

type filter struct {
	m   *istiometrics.Metrics
	key string
}

// Do implements filters.HTTPFilter.
func (f *filter) Do(s *filters.Stream, next filters.Next) (*filters.Response, error) {
	r, err := next.Do(s)
	if !s.Info.IsGRPC || r == nil || err != nil {
		return r, err
	}
	if _, last := r.Body.Ready(); last {
		return r, nil // too short to watch
	}
	if m := f.m.WatchMessages(s); m != nil {
		s.Info.FilterState.SetStatic(f.key, m, streaminfo.SharingNone)
	}
	return r, nil
}

// OnStreamEnd implements filters.StreamEnder.
func (f *filter) OnStreamEnd(s *filters.Stream, r *filters.Response) {
	var m *istiometrics.Messages
	if s.Info.IsGRPC {
		m, _ = s.Info.FilterState.Get(f.key).(*istiometrics.Messages)
	}
	f.m.Request(s, r, m)
}

// Explain says nothing about a request: it only counts.
func (f *filter) Explain(*filters.Stream) filters.Explanation {
	return filters.Explanation{Verdict: filters.VerdictPass}
}
