package matcher

import (
	"errors"
	"fmt"
	"strconv"

	"github.com/fairlead-mesh/fairlead/internal/message"
)

// Range is the half-open interval [Start, End) of a range_match.
type Range struct{ Start, End int64 }

// HeaderSpec configures a Header: envoy.config.route.v3.HeaderMatcher. At most
// one of String, Range and Present is set; none means "is present".
type HeaderSpec struct {
	// Name is lower-cased. ":authority", ":path" and ":method" are names, too.
	Name string
	// String is any of exact, safe_regex, prefix, suffix, contains and
	// string_match.
	String  *String
	Range   *Range
	Present *bool
	// Invert inverts the result of a header that is there. A header that is
	// missing never matches, inverted or not, unless TreatMissingAsEmpty.
	Invert, TreatMissingAsEmpty bool
}

type headerKind uint8

const (
	headerPresent headerKind = iota
	headerAbsent
	headerString
	headerRange
)

// Header matches one header (or cookie): Envoy's HeaderMatcher. The zero
// Header matches if a header called "" is present, that is never.
type Header struct {
	// Name is lower case.
	Name           string
	kind           headerKind
	invert, asText bool
	str            String
	rng            Range
}

// NewHeader compiles a header matcher.
func NewHeader(s HeaderSpec) (Header, error) {
	if s.Name == "" {
		return Header{}, errors.New("name: a header matcher needs a header name")
	}
	name := lowerASCII(s.Name)
	if name == "host" {
		name = message.Authority // what HTTP/1's Host is called here
	}
	m := Header{Name: name, invert: s.Invert, asText: s.TreatMissingAsEmpty}
	set := 0
	if s.String != nil {
		m.kind, m.str = headerString, *s.String
		set++
	}
	if s.Range != nil {
		m.kind, m.rng = headerRange, *s.Range
		set++
	}
	if s.Present != nil {
		if !*s.Present {
			m.kind = headerAbsent
		}
		set++
	}
	if set > 1 {
		return Header{}, fmt.Errorf("header %q: more than one way to match is set", s.Name)
	}
	return m, nil
}

// Match reports whether h matches. Of a repeated header one value must match
// (with Invert, none may), as in Envoy since 1.36; values are not joined.
func (m *Header) Match(h *message.Header) bool {
	found, ok := false, false
	for i := range h.Len() {
		if f := h.At(i); f.Name == m.Name {
			found = true
			if ok = m.matchOne(f.Value); ok {
				break
			}
		}
	}
	if !found {
		return m.MatchValue("", false)
	}
	return ok != m.invert
}

// MatchValue matches one value, present tells whether it is there.
func (m *Header) MatchValue(v string, present bool) bool {
	if !present && !m.asText {
		switch m.kind {
		case headerPresent:
			return m.invert
		case headerAbsent:
			return !m.invert
		case headerString, headerRange:
		}
		return false
	}
	return m.matchOne(v) != m.invert
}

// MatchCookie is MatchValue for cookies: a missing one doesn't match, and hence
// matches if inverted.
func (m *Header) MatchCookie(v string, present bool) bool {
	return (present && m.matchOne(v)) != m.invert
}

// matchOne matches a value that is there, without inversion.
func (m *Header) matchOne(v string) bool {
	switch m.kind {
	case headerPresent:
		return true
	case headerString:
		return m.str.Match(v)
	case headerRange:
		n, err := strconv.ParseInt(v, 10, 64)
		return err == nil && n >= m.rng.Start && n < m.rng.End
	case headerAbsent:
	}
	return false
}

// MatchHeaders reports whether every matcher of ms holds.
func MatchHeaders(ms []Header, h *message.Header) bool {
	for i := range ms {
		if !ms[i].Match(h) {
			return false
		}
	}
	return true
}
