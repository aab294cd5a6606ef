package matcher

import (
	"errors"
	"strings"
)

// QueryParameter matches one query parameter: Envoy's QueryParameterMatcher.
type QueryParameter struct {
	Name   string
	str    *String
	absent bool
}

// NewQueryParameter compiles a matcher: value if not nil must match the first
// value of the parameter, undecoded as in Envoy; else present tells whether
// the parameter must be there or must not.
func NewQueryParameter(name string, value *String, present bool) (QueryParameter, error) {
	if name == "" {
		return QueryParameter{}, errors.New("name: a query parameter matcher needs a name")
	}
	return QueryParameter{Name: name, str: value, absent: value == nil && !present}, nil
}

// Match reports whether the query (what follows "?", without it) matches.
func (m *QueryParameter) Match(query string) bool {
	v, ok := QueryValue(query, m.Name)
	switch {
	case m.absent:
		return !ok
	case !ok:
		return false
	}
	return m.str == nil || m.str.Match(v)
}

// QueryValue returns the first value of a parameter in query, undecoded, and
// whether the parameter is there. A parameter without "=" is there with "".
func QueryValue(query, name string) (string, bool) {
	for query != "" {
		var kv string
		kv, query, _ = strings.Cut(query, "&")
		if k, v, _ := strings.Cut(kv, "="); k == name {
			return v, true
		}
	}
	return "", false
}

// SplitPath splits a request target at the first "?".
func SplitPath(target string) (path, query string) {
	path, query, _ = strings.Cut(target, "?")
	return path, query
}
