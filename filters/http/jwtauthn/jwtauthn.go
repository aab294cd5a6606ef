// Package jwtauthn is the jwt_authn HTTP filter: it verifies JSON Web Tokens
// and makes their claims available to authorization.
package jwtauthn

import (
	"errors"
	"fmt"
	"io"
	"math"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/fairlead-mesh/fairlead/filters"
	"github.com/fairlead-mesh/fairlead/internal/message"
	"github.com/fairlead-mesh/fairlead/internal/stats"
	"github.com/fairlead-mesh/fairlead/internal/streaminfo"
)

// Namespace is the dynamic metadata namespace of the filter.
const Namespace = "envoy.filters.http.jwt_authn"

// Factory makes jwt_authn filters.
type Factory struct{}

// TypeURLs implements filters.HTTPFactory.
func (Factory) TypeURLs() []string { return []string{typeURL, typeURLPerRoute} }

// Compile implements filters.HTTPFactory.
func (Factory) Compile(env *filters.Env, base, override filters.Config) (filters.HTTPFilter, error) {
	c, isConfig := base.(*Config)
	if !isConfig {
		return nil, fmt.Errorf("jwt_authn: configuration is a %T", base)
	}
	f := &filter{c: c}
	f.drop = f.writes
	if env == nil {
		env = &filters.Env{}
	}
	if override != nil {
		o, isOverride := override.(*Override)
		if !isOverride {
			return nil, fmt.Errorf("jwt_authn: per-route configuration is a %T", override)
		}
		if o.Disabled {
			return nil, nil //nolint:nilnil // nothing to do on this route
		}
		if f.fixed = c.Named[o.Name]; f.fixed == nil {
			return nil, fmt.Errorf("jwt_authn: requirement_name %q is not in requirement_map", o.Name)
		}
	}
	count := func(name string) *stats.Counter { return env.HTTPStats.Counter("envoy_http_jwt_authn_" + name) }
	f.allowed, f.denied, f.bypassed = count("allowed"), count("denied"), count("cors_preflight_bypassed")
	f.hit, f.miss = count("jwt_cache_hit"), count("jwt_cache_miss")
	fetches, failures := count("jwks_fetch_success"), count("jwks_fetch_failed")
	for i := range c.Providers {
		if err := f.addProvider(env, &c.Providers[i], fetches, failures); err != nil {
			_ = f.Close()
			return nil, err
		}
	}
	return f, nil
}

func (f *filter) addProvider(env *filters.Env, c *Provider, fetches, failures *stats.Counter) error {
	p := &provider{Provider: c}
	switch {
	case c.Remote != nil:
		if env.Upstreams == nil {
			return errors.New("jwt_authn: remote_jwks needs upstream clusters")
		}
		r, release, err := share(env.Shared, c.Remote.key(), func() *remote {
			return newRemote(c.Remote, env.Upstreams, env.Logger, fetches, failures)
		})
		if err != nil {
			return fmt.Errorf("jwt_authn: remote_jwks: %w", err)
		}
		p.remote, f.release = r, append(f.release, release)
	case c.File != "":
		k, release, err := share(env.Shared, fileKey{c.File}, func() *fileKeys { return openKeys(c.File, env.Logger) })
		if err != nil {
			return fmt.Errorf("jwt_authn: local_jwks: %w", err)
		}
		p.file, f.release = k, append(f.release, release)
	case c.Environment != "":
		set, err := environmentKeys(c.Environment)
		if err != nil {
			return fmt.Errorf("jwt_authn: local_jwks: %w", err)
		}
		p.environment = set
	}
	if c.PayloadHeader != "" {
		f.sanitize = append(f.sanitize, c.PayloadHeader)
	}
	for _, ch := range c.Claims {
		f.sanitize = append(f.sanitize, ch.Header)
	}
	f.providers = append(f.providers, p)
	return nil
}

// share returns what create makes: keys outlive a change of configuration.
func share[T io.Closer](s *filters.Shared, key any, create func() T) (v T, release func(), err error) {
	if s == nil {
		v = create()
		return v, func() { _ = v.Close() }, nil
	}
	shared, release, err := s.Acquire(key, func() (any, error) { return create(), nil })
	if err != nil {
		return v, nil, err
	}
	v, isT := shared.(T)
	if !isT {
		release()
		return v, nil, fmt.Errorf("%T is shared as %T", v, shared)
	}
	return v, release, nil
}

type filter struct {
	c         *Config
	fixed     *Requirement // of the route, nil if rules decide
	providers []*provider
	sanitize  []string
	drop      func(name string) bool // writes
	release   []func()

	allowed, denied, bypassed, hit, miss *stats.Counter
}

// Close implements io.Closer.
func (f *filter) Close() error {
	for _, r := range f.release {
		r()
	}
	return nil
}

// Do implements filters.HTTPFilter.
func (f *filter) Do(s *filters.Stream, next filters.Next) (*filters.Response, error) {
	f.clean(s)
	if f.c.BypassCORSPreflight && preflight(&s.Request) {
		f.bypassed.Inc()
		return next.Do(s)
	}
	r := f.requirement(s)
	if r == nil {
		f.allowed.Inc()
		return next.Do(s)
	}
	v := verification{f: f, s: s, now: time.Now(), ask: true}
	st := v.run(r)
	if st != ok {
		f.denied.Inc()
		return f.deny(s, st, r), nil
	}
	f.allowed.Inc()
	v.apply()
	return next.Do(s)
}

// clean removes what the filter writes for a verified token: no client may write
// it.
func (f *filter) clean(s *filters.Stream) {
	if len(f.sanitize) == 0 {
		return
	}
	for _, name := range f.sanitize {
		s.Request.Del(name)
		s.Request.DelAliases(name)
	}
	s.Body = filters.WithoutTrailers(s.Body, f.drop)
}

// writes tells whether the filter writes a header that origins could take name
// for.
func (f *filter) writes(name string) bool {
	return slices.ContainsFunc(f.sanitize, func(n string) bool { return message.SameForCGI(n, name) })
}

func preflight(h *message.Header) bool {
	return h.Get(message.Method) == "OPTIONS" && h.Get("origin") != "" && h.Get("access-control-request-method") != ""
}

// requirement finds what is required of s, nil for nothing.
func (f *filter) requirement(s *filters.Stream) *Requirement {
	if f.fixed != nil {
		return f.fixed
	}
	for i := range f.c.Rules {
		if f.c.Rules[i].Match.matches(&s.Request) {
			return f.c.Rules[i].Requires
		}
	}
	if f.c.StateKey != "" {
		if o := s.Info.FilterState.Get(f.c.StateKey); o != nil {
			return f.c.ByState[o.Serialize()]
		}
	}
	return nil
}

func (f *filter) deny(s *filters.Stream, st status, want *Requirement) *filters.Response {
	code := st.code()
	body := st.String()
	if f.c.StripFailure {
		body = ""
	}
	realm := realm(&s.Request)
	r := s.Deny(code, body, st.details(), 0, streaminfo.Decision{Filter: "jwt_authn", Policy: f.names(want), Reason: st.reason()})
	if !f.c.StripFailure {
		v := `Bearer realm="` + realm + `"`
		if st != missing {
			v += `, error="invalid_token"`
		}
		r.Header.Add("www-authenticate", v)
	}
	return r
}

// realm is the URI of the request, its path bounded as in Envoy.
func realm(h *message.Header) string {
	path, given := h.Lookup("x-envoy-original-path")
	if !given {
		path = h.Get(message.Path)
	}
	const maxPath = 256
	uri := h.Get(message.Scheme) + "://" + h.Get(message.Authority) + path[:min(len(path), maxPath)]
	return strings.NewReplacer(`"`, "%22", `\`, "%5C").Replace(uri)
}

// found is a verified token and where it was.
type found struct {
	p *provider
	v *verified
	l location
}

// verification is the work on one request.
type verification struct {
	f     *filter
	s     *filters.Stream
	now   time.Time
	ask   bool // keys may be fetched
	found []found
	room  [4]found
}

// run evaluates a requirement. Tokens found by alternatives that failed are
// forgotten.
func (v *verification) run(r *Requirement) status {
	if v.found == nil {
		v.found = v.room[:0]
	}
	mark := len(v.found)
	st := v.evaluate(r)
	if st != ok {
		v.found = v.found[:mark]
	}
	return st
}

func (v *verification) evaluate(r *Requirement) status {
	switch r.Kind {
	case RequireNothing:
		return ok
	case RequireProvider:
		p := v.f.providers[r.Providers[0]]
		var room [4]location
		tokens := p.extract(room[:0], &v.s.Request, r.Providers[0])
		if len(tokens) == 0 {
			return v.failed(p, missing)
		}
		for i := range tokens {
			if st := v.token(&tokens[i], r.Audiences); st != ok {
				return v.failed(p, st)
			}
		}
		return ok
	case RequireAny:
		st := missing
		for _, c := range r.Children {
			got := v.run(c)
			if got == ok {
				return ok
			}
			st = worse(st, got)
		}
		return st
	case RequireAll:
		for _, c := range r.Children {
			if st := v.run(c); st != ok {
				return st
			}
		}
		return ok
	case AllowMissing, AllowMissingOrFailed:
		return v.optional(r)
	}
	return verificationFails
}

// token verifies the token at l by its provider.
func (v *verification) token(l *location, audiences []string) status {
	p := v.f.providers[l.provider]
	t, st := p.check(v.s, l.text, audiences, v.now, v.f.hit, v.f.miss, v.ask)
	if st == ok {
		v.found = append(v.found, found{p, t, *l})
	}
	return st
}

// optional verifies all tokens at the places of the requirement's providers.
// A token is good if it is good for one of the providers that look there.
func (v *verification) optional(r *Requirement) status {
	var room [8]location
	tokens := room[:0]
	for _, i := range r.Providers {
		tokens = v.f.providers[i].extract(tokens, &v.s.Request, i)
	}
	for i := range tokens {
		if seenBefore(tokens, i) {
			continue
		}
		st := missing
		for k := i; k < len(tokens); k++ {
			if tokens[k].text != tokens[i].text {
				continue
			}
			got := v.token(&tokens[k], nil)
			st = worse(st, got)
			if got == ok {
				st = ok
				break
			}
		}
		if st != ok && r.Kind == AllowMissing {
			return st
		}
	}
	return ok
}

func seenBefore(tokens []location, i int) bool {
	for k := range i {
		if tokens[k].text == tokens[i].text {
			return true
		}
	}
	return false
}

// failed records why, if the provider wants it in metadata.
func (v *verification) failed(p *provider, st status) status {
	if p.FailedStatusKey != "" {
		v.s.Info.Metadata.Set(Namespace, p.FailedStatusKey, map[string]any{"code": strconv.Itoa(int(st)), "message": st.String()})
	}
	return st
}

// apply does what providers do with verified tokens.
func (v *verification) apply() {
	h, md := &v.s.Request, &v.s.Info.Metadata
	reselect := false
	for i := range v.found {
		p, t := v.found[i].p, v.found[i].v
		if p.PayloadHeader != "" {
			payload := t.payload64
			if p.PadPayloadHeader {
				payload += strings.Repeat("=", (4-len(payload)%4)%4)
			}
			h.Add(p.PayloadHeader, payload)
		}
		for _, c := range p.Claims {
			if text, given := claimText(t.payload, c.Path); given {
				h.Add(c.Header, text)
			}
		}
		if p.PayloadKey != "" {
			md.Set(Namespace, p.PayloadKey, t.metadata)
		}
		if p.HeaderKey != "" {
			md.Set(Namespace, p.HeaderKey, t.header)
		}
		reselect = reselect || p.ClearRouteCache && (p.PayloadKey != "" || p.PayloadHeader != "" || len(p.Claims) > 0)
	}
	for i := range v.found {
		if !v.found[i].p.Forward {
			v.found[i].l.remove(h)
		}
	}
	if reselect {
		v.s.ClearRouteCache()
	}
}

// claimText renders a claim for a header: text that is safe there, numbers,
// booleans; lists and objects as base64 of their JSON, as Envoy does.
func claimText(payload map[string]any, path []string) (string, bool) {
	var v any = payload
	for _, k := range path {
		m, isObject := v.(map[string]any)
		if !isObject {
			return "", false
		}
		if v, isObject = m[k]; !isObject {
			return "", false
		}
	}
	switch x := v.(type) {
	case string:
		return x, x != "" && len(x) <= 8<<10 && !strings.ContainsFunc(x, func(r rune) bool { return r < ' ' || r == 0x7f })
	case bool:
		return strconv.FormatBool(x), true
	case float64:
		if x >= 0 && x < math.MaxUint64 && x == math.Trunc(x) {
			return strconv.FormatUint(uint64(x), 10), true
		}
		return strconv.FormatFloat(x, 'f', 6, 64), true
	case []any, map[string]any:
		return encodeClaim(x)
	}
	return "", false
}
