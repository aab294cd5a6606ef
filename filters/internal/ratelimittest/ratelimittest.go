// Package ratelimittest is a route with rate limits and what is behind it, for
// tests of the filters that execute them.
package ratelimittest

import (
	"github.com/fairlead-mesh/fairlead/filters"
	"github.com/fairlead-mesh/fairlead/internal/format"
	"github.com/fairlead-mesh/fairlead/internal/message"
	"github.com/fairlead-mesh/fairlead/internal/ratelimit"
	"github.com/fairlead-mesh/fairlead/internal/streaminfo"
)

type route struct {
	policy *ratelimit.Policy
	chain  []filters.HTTPFilter
	md     streaminfo.Metadata
}

func (r *route) Name() string                   { return "r" }
func (r *route) ClusterName() string            { return "app" }
func (r *route) Metadata() *streaminfo.Metadata { return &r.md }
func (r *route) Chain() []filters.HTTPFilter    { return r.chain }
func (r *route) RateLimits() *ratelimit.Policy  { return r.policy }

// Upstream is the end of a chain, which answers 200 and keeps the head that it saw
// last.
type Upstream struct{ seen message.Header }

// Seen is the head of the last request, empty before the first.
func (u *Upstream) Seen() *message.Header { return &u.seen }

// Do implements filters.HTTPFilter.
func (u *Upstream) Do(s *filters.Stream, _ filters.Next) (*filters.Response, error) {
	u.seen.CopyFrom(&s.Request)
	r := s.NewResponse()
	r.Header.Add(message.Status, "200")
	return r, nil
}

// Select gives s a route called r, of the cluster app, with the limits p (nil:
// none), whose chain is f and what it returns.
func Select(s *filters.Stream, f filters.HTTPFilter, p *ratelimit.Policy) *Upstream {
	u := &Upstream{}
	s.SelectRoute(&route{policy: p, chain: []filters.HTTPFilter{f, u}})
	return u
}

// Fixed is a limit of one entry, of a stage.
func Fixed(key, value string, stage uint32) *ratelimit.Limit {
	v, err := format.Compile(value)
	if err != nil {
		panic(err)
	}
	return &ratelimit.Limit{Stage: stage, Actions: []ratelimit.Action{{Kind: ratelimit.Fixed, Key: key, Value: v}}}
}
