package jwtauthn

import (
	"maps"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/fairlead-mesh/fairlead/filters"
	"github.com/fairlead-mesh/fairlead/internal/stats"
)

// provider is a Provider at work: its keys and the tokens they verified.
type provider struct {
	*Provider
	// At most one of these is set; without, the keys are inline.
	environment *keySet
	file        *fileKeys
	remote      *remote

	mu    sync.RWMutex
	cache map[string]*verified
}

// verified is a token with a good signature. It is immutable.
type verified struct {
	*token
	keys *keySet // that verified it
	// metadata is the payload as RBAC sees it.
	metadata map[string]any
}

const maxCached = 1024

// keySet returns the keys to verify t with. Unless ask, they are not fetched.
func (p *provider) keySet(s *filters.Stream, t *token, ask bool) (*keySet, status) {
	switch {
	case p.remote != nil && !ask:
		keys, fetch := p.remote.peek(t)
		switch {
		case fetch:
			return nil, unfetched
		case keys == nil:
			return nil, fetchFails
		}
		return keys, ok
	case p.remote != nil:
		return p.remote.get(s, t)
	case p.file != nil:
		return p.file.keys.Load(), ok
	case p.environment != nil:
		return p.environment, ok
	}
	return p.Keys, ok
}

// check verifies one token completely. audiences, if not nil, replace the
// provider's.
func (p *provider) check(s *filters.Stream, text string, audiences []string, now time.Time, hit, miss *stats.Counter, ask bool) (*verified, status) {
	p.mu.RLock()
	v := p.cache[text]
	p.mu.RUnlock()
	var t *token
	if v != nil {
		hit.Inc()
		t = v.token
	} else {
		miss.Inc()
		var st status
		if t, st = parseToken(text); st != ok {
			return nil, st
		}
	}
	if p.Issuer != "" && t.iss != p.Issuer {
		return nil, unknownIssuer
	}
	if st := p.checkClaims(t, audiences, now); st != ok {
		return nil, st
	}
	keys, st := p.keySet(s, t, ask)
	if st != ok {
		return nil, st
	}
	if v != nil && v.keys == keys {
		return v, ok
	}
	if st := t.verify(keys); st != ok {
		return nil, st
	}
	v = &verified{token: t, keys: keys, metadata: normalize(t.payload, p.SpaceDelimited)}
	p.keep(strings.Clone(text), v)
	return v, ok
}

func (p *provider) keep(text string, v *verified) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.cache == nil || len(p.cache) >= maxCached {
		p.cache = map[string]*verified{}
	}
	p.cache[text] = v
}

func (p *provider) checkClaims(t *token, audiences []string, now time.Time) status {
	if st := t.checkTime(now, p.Skew); st != ok {
		return st
	}
	if !t.hasExp && (p.RequireExpiration || p.MaxLifetime > 0) {
		return lifetimeNotAllowed
	}
	if p.MaxLifetime > 0 {
		from := float64(now.Unix())
		if t.hasNbf {
			from = t.nbf
		} else if t.hasIat {
			from = t.iat
		}
		if t.exp-from > p.MaxLifetime.Seconds() {
			return lifetimeNotAllowed
		}
	}
	if p.Subjects != nil && !p.Subjects.Match(t.sub) {
		return subjectNotAllowed
	}
	if audiences == nil {
		audiences = p.Audiences
	}
	if len(audiences) > 0 && !slices.ContainsFunc(t.aud, func(a string) bool { return slices.Contains(audiences, plainAudience(a)) }) {
		return audienceNotAllowed
	}
	return ok
}

// normalize splits space-delimited claims into lists, in a copy.
func normalize(payload map[string]any, claims []string) map[string]any {
	if len(claims) == 0 {
		return payload
	}
	out := make(map[string]any, len(payload))
	maps.Copy(out, payload)
	for _, c := range claims {
		s, isString := out[c].(string)
		if !isString {
			continue
		}
		list := []any{}
		for f := range strings.SplitSeq(s, " ") {
			if f != "" {
				list = append(list, f)
			}
		}
		out[c] = list
	}
	return out
}
