package jwtauthn

import (
	"encoding/base64"
	"encoding/json"
	"strings"

	"github.com/fairlead-mesh/fairlead/filters/internal/authz"
	"github.com/fairlead-mesh/fairlead/internal/matcher"
	"github.com/fairlead-mesh/fairlead/internal/message"
)

// matches reports whether a rule is about the request h.
func (m *Match) matches(h *message.Header) bool {
	target := h.Get(message.Path)
	path := authz.PathOnly(target)
	_, query, _ := strings.Cut(target, "?")
	if !m.matchesPath(h, path) || !matcher.MatchHeaders(m.Headers, h) {
		return false
	}
	for i := range m.Query {
		if !m.Query[i].Match(query) {
			return false
		}
	}
	return true
}

func (m *Match) matchesPath(h *message.Header, path string) bool {
	switch m.Kind {
	case MatchConnect:
		return h.Get(message.Method) == "CONNECT"
	case MatchRegex:
		return m.Regex.Match(path)
	case MatchTemplate:
		return m.Template.Match(path)
	case MatchPath:
		return path == m.Text || m.NoCase && strings.EqualFold(path, m.Text)
	case MatchPrefix:
		return m.hasPrefix(path)
	case MatchSeparatedPrefix:
		return m.hasPrefix(path) && (len(path) == len(m.Text) || path[len(m.Text)] == '/')
	}
	return false
}

func (m *Match) hasPrefix(path string) bool {
	if len(path) < len(m.Text) {
		return false
	}
	p := path[:len(m.Text)]
	return p == m.Text || m.NoCase && strings.EqualFold(p, m.Text)
}

// encodeClaim renders a list or object.
func encodeClaim(v any) (string, bool) {
	b, err := json.Marshal(v)
	if err != nil || len(b) > 8<<10 {
		return "", false
	}
	return base64.StdEncoding.EncodeToString(b), true
}
