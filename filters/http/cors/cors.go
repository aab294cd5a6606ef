// Package cors is the cors HTTP filter: it answers preflight requests and
// tells browsers which other origins may read a response.
package cors

import (
	"fmt"

	"github.com/fairlead-mesh/fairlead/filters"
	"github.com/fairlead-mesh/fairlead/internal/message"
	"github.com/fairlead-mesh/fairlead/internal/stats"
)

// Factory makes cors filters.
type Factory struct{}

// TypeURLs implements filters.HTTPFactory.
func (Factory) TypeURLs() []string { return []string{typeURL, typeURLPolicy} }

// Compile implements filters.HTTPFactory. Without a policy there is nothing to
// do.
func (Factory) Compile(env *filters.Env, base, override filters.Config) (filters.HTTPFilter, error) {
	if _, ok := base.(*Config); !ok {
		return nil, fmt.Errorf("cors: configuration is a %T", base)
	}
	if override == nil {
		return nil, nil //nolint:nilnil // nothing to do on this route
	}
	p, ok := override.(*Policy)
	if !ok {
		return nil, fmt.Errorf("cors: per-route configuration is a %T", override)
	}
	if p.EnabledPPM == 0 && p.ShadowPPM == 0 {
		return nil, nil //nolint:nilnil // nothing to do on this route
	}
	f := &filter{p: p}
	if env != nil {
		f.valid, f.invalid = env.HTTPStats.Counter("envoy_http_cors_origin_valid"), env.HTTPStats.Counter("envoy_http_cors_origin_invalid")
	}
	return f, nil
}

type filter struct {
	p              *Policy
	valid, invalid *stats.Counter
}

// Do implements filters.HTTPFilter.
func (f *filter) Do(s *filters.Stream, next filters.Next) (*filters.Response, error) {
	origin := s.Request.Get("origin")
	if origin == "" {
		return next.Do(s)
	}
	enabled := filters.Drawn(f.p.EnabledPPM)
	if !enabled && !filters.Drawn(f.p.ShadowPPM) {
		return next.Do(s)
	}
	preflight := preflight(&s.Request)
	if !f.allowed(origin) {
		f.invalid.Inc()
		if enabled && preflight && !f.p.ForwardNotMatchingPreflights {
			return reply(s), nil
		}
		return next.Do(s)
	}
	f.valid.Inc()
	if !enabled {
		return next.Do(s)
	}
	if preflight {
		return f.preflight(s, origin), nil
	}
	r, err := next.Do(s)
	if err != nil || r == nil {
		return r, err
	}
	f.allow(&r.Header, origin)
	if f.p.ExposeHeaders != "" {
		r.Header.Set("access-control-expose-headers", f.p.ExposeHeaders)
	}
	return r, nil
}

func preflight(h *message.Header) bool {
	return h.Get(message.Method) == "OPTIONS" && h.Get("access-control-request-method") != ""
}

// allowed matches origin; a matcher of "*" allows any.
func (f *filter) allowed(origin string) bool {
	for i := range f.p.Origins {
		if m := &f.p.Origins[i]; m.Match("*") || m.Match(origin) {
			return true
		}
	}
	return false
}

func (f *filter) allow(h *message.Header, origin string) {
	h.Set("access-control-allow-origin", origin)
	if f.p.AllowCredentials {
		h.Set("access-control-allow-credentials", "true")
	}
}

func reply(s *filters.Stream) *filters.Response {
	r := s.NewResponse()
	r.Local = true
	r.Header.Add(message.Status, "200")
	s.Info.ResponseCode, s.Info.Details = 200, "cors_response"
	return r
}

func (f *filter) preflight(s *filters.Stream, origin string) *filters.Response {
	r := reply(s)
	f.allow(&r.Header, origin)
	for _, h := range [...]struct{ name, value string }{
		{"access-control-allow-methods", f.p.AllowMethods}, {"access-control-allow-headers", f.p.AllowHeaders}, {"access-control-max-age", f.p.MaxAge},
	} {
		if h.value != "" {
			r.Header.Add(h.name, h.value)
		}
	}
	if f.p.AllowPrivateNetwork && s.Request.Get("access-control-request-private-network") == "true" {
		r.Header.Add("access-control-allow-private-network", "true")
	}
	return r
}

// Explain says whether the filter answers s, a preflight, by itself.
func (f *filter) Explain(s *filters.Stream) filters.Explanation {
	origin := s.Request.Get("origin")
	if origin == "" {
		return filters.Explanation{Verdict: filters.VerdictPass, Text: []string{"the request has no origin"}}
	}
	answered := filters.Explanation{Verdict: filters.VerdictDeny, Status: 200, Details: "cors_response"}
	allowed, pre := f.allowed(origin), preflight(&s.Request)
	switch {
	case f.p.EnabledPPM < 1_000_000:
		return filters.Explanation{Verdict: filters.VerdictUnknown, Text: []string{"the policy is enforced for a share of the requests only"}}
	case allowed && pre:
		answered.Text = []string{"a preflight of an allowed origin is answered"}
		return answered
	case pre && !f.p.ForwardNotMatchingPreflights:
		answered.Text = []string{"a preflight of an origin that is not allowed is answered without allowing it"}
		return answered
	case !allowed:
		return filters.Explanation{Verdict: filters.VerdictPass, Text: []string{"the origin is not allowed: a browser will not show the response"}}
	}
	return filters.Explanation{Verdict: filters.VerdictAllow, Text: []string{"the origin is allowed"}}
}
