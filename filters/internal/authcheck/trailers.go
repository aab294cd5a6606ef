package authcheck

import (
	"slices"

	"github.com/fairlead-mesh/fairlead/filters"
	"github.com/fairlead-mesh/fairlead/internal/message"
)

// CleanTrailers returns the request body without trailers that a names, in all
// spellings: some origins take trailers for headers, and what the service sets
// or removes must not be undone there. a and body must not be changed meanwhile.
func (a *Answer) CleanTrailers(body message.Body) message.Body {
	if len(a.Headers)+len(a.Remove) == 0 {
		return body
	}
	return filters.WithoutTrailers(body, a.names)
}

// names reports whether a sets, adds, appends to or removes a request header
// that is called name in some spelling.
func (a *Answer) names(name string) bool {
	return slices.ContainsFunc(a.Headers, func(h Header) bool { return message.SameForCGI(h.Name, name) }) ||
		slices.ContainsFunc(a.Remove, func(n string) bool { return message.SameForCGI(n, name) })
}
