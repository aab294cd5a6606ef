package matcher

import (
	"regexp"
	"strings"
)

// StringKind is how a String matches.
type StringKind uint8

// Kinds of string match, Envoy's StringMatcher.
const (
	Exact StringKind = iota
	Prefix
	Suffix
	Contains
	Regex
	// Any matches every string.
	Any
)

// String is a compiled StringMatcher. The zero String matches only "".
type String struct {
	kind       StringKind
	ignoreCase bool
	text       string
	re         *regexp.Regexp
}

// NewString compiles a matcher. Regex is RE2 and must match the whole string;
// its source is at most MaxRegexBytes. ignoreCase doesn't apply to Regex, as
// in Envoy.
func NewString(kind StringKind, text string, ignoreCase bool) (String, error) {
	m := String{kind: kind, ignoreCase: ignoreCase, text: text}
	if kind == Regex {
		re, err := CompileSafeRegex(text)
		if err != nil {
			return String{}, err
		}
		m.re = re
	} else if ignoreCase {
		m.text = strings.ToLower(text)
	}
	return m, nil
}

// Match reports whether s matches.
func (m *String) Match(s string) bool {
	if m.ignoreCase && m.kind != Regex {
		s = strings.ToLower(s)
	}
	switch m.kind {
	case Exact:
		return s == m.text
	case Prefix:
		return strings.HasPrefix(s, m.text)
	case Suffix:
		return strings.HasSuffix(s, m.text)
	case Contains:
		return strings.Contains(s, m.text)
	case Regex:
		return m.re.MatchString(s)
	case Any:
		return true
	}
	return false
}

// Kind returns how m matches.
func (m *String) Kind() StringKind { return m.kind }

// Text returns the text or regex source, lower-cased if case is ignored.
func (m *String) Text() string { return m.text }

// IgnoreCase reports whether case is ignored.
func (m *String) IgnoreCase() bool { return m.ignoreCase }
