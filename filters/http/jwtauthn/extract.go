package jwtauthn

import (
	"net/url"
	"strings"

	"github.com/fairlead-mesh/fairlead/internal/message"
)

// location is where a token was found.
type location struct {
	text string
	// header or param names what to remove; a cookie stays.
	header, param string
	// provider is the index of the provider that looks there.
	provider int
}

// extract appends all tokens at the places where provider i looks. A place
// that holds several holds them all: whoever reads another one than was
// verified must not find it.
func (p *Provider) extract(dst []location, h *message.Header, i int) []location {
	for _, l := range p.Headers {
		for k := range h.Len() {
			f := h.At(k)
			if f.Name != l.Name {
				continue
			}
			v, found := afterPrefix(f.Value, l.Prefix)
			if found {
				dst = append(dst, location{text: v, header: l.Name, provider: i})
			}
		}
	}
	if len(p.Params) > 0 {
		dst = p.fromQuery(dst, h.Get(message.Path), i)
	}
	if len(p.Cookies) > 0 {
		for k := range h.Len() {
			if f := h.At(k); f.Name == "cookie" {
				dst = p.fromCookies(dst, f.Value, i)
			}
		}
	}
	return dst
}

// afterPrefix returns what follows prefix, wherever it stands, from the first
// character that a token can begin with, as Envoy does.
func afterPrefix(v, prefix string) (string, bool) {
	if prefix == "" {
		return v, true
	}
	_, after, ok := strings.Cut(v, prefix)
	if !ok {
		return "", false
	}
	rest := after
	for k := range len(rest) {
		if c := rest[k]; c == '-' || c == '_' || c == '.' || c >= '0' && c <= '9' || c >= 'A' && c <= 'Z' || c >= 'a' && c <= 'z' {
			return rest[k:], true
		}
	}
	return v, true
}

func (p *Provider) fromQuery(dst []location, path string, i int) []location {
	_, query, found := strings.Cut(path, "?")
	if !found {
		return dst
	}
	query, _, _ = strings.Cut(query, "#")
	for pair := range strings.SplitSeq(query, "&") {
		k, v, _ := strings.Cut(pair, "=")
		for _, name := range p.Params {
			if unescape(k) == name {
				dst = append(dst, location{text: unescape(v), param: name, provider: i})
			}
		}
	}
	return dst
}

func unescape(s string) string {
	if !strings.ContainsAny(s, "%+") {
		return s
	}
	if u, err := url.QueryUnescape(s); err == nil {
		return u
	}
	return s
}

func (p *Provider) fromCookies(dst []location, header string, i int) []location {
	for pair := range strings.SplitSeq(header, ";") {
		k, v, found := strings.Cut(strings.Trim(pair, " \t"), "=")
		if !found {
			continue
		}
		for _, name := range p.Cookies {
			if k == name {
				if len(v) >= 2 && v[0] == '"' && v[len(v)-1] == '"' {
					v = v[1 : len(v)-1]
				}
				dst = append(dst, location{text: v, provider: i})
			}
		}
	}
	return dst
}

// remove takes the token out of the request. A token in a cookie stays, as in
// Envoy.
func (l *location) remove(h *message.Header) {
	switch {
	case l.header != "":
		h.Del(l.header)
	case l.param != "":
		h.Set(message.Path, withoutParam(h.Get(message.Path), l.param))
	}
}

// withoutParam removes a parameter from the query and leaves all others as
// they are.
func withoutParam(path, name string) string {
	base, query, found := strings.Cut(path, "?")
	if !found {
		return path
	}
	query, fragment, hasFragment := strings.Cut(query, "#")
	kept := make([]string, 0, 4)
	for pair := range strings.SplitSeq(query, "&") {
		if k, _, _ := strings.Cut(pair, "="); unescape(k) != name {
			kept = append(kept, pair)
		}
	}
	out := base
	if len(kept) > 0 {
		out += "?" + strings.Join(kept, "&")
	}
	if hasFragment {
		out += "#" + fragment
	}
	return out
}
