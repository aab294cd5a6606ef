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
	kind, run  StringKind // as configured; as executed
	ignoreCase bool
	text, want string // as configured; as executed
	re         *regexp.Regexp
}

// NewString compiles a matcher. Regex is RE2 and must match the whole string;
// its source is at most MaxRegexBytes. ignoreCase (ASCII) doesn't apply to
// Regex, as in Envoy.
func NewString(kind StringKind, text string, ignoreCase bool) (String, error) {
	m := String{kind: kind, run: kind, ignoreCase: ignoreCase && kind != Regex && kind != Any, text: text, want: text}
	switch {
	case kind == Regex:
		re, err := CompileSafeRegex(text)
		if err != nil {
			return String{}, err
		}
		m.re = re
		if kind, want, ok := simplify(text); ok {
			m.run, m.want = kind, want
		}
	case m.ignoreCase:
		m.text = lowerASCII(text)
		m.want = m.text
	}
	return m, nil
}

// Match reports whether s matches.
func (m *String) Match(s string) bool {
	if m.ignoreCase {
		return m.matchFold(s)
	}
	switch m.run {
	case Exact:
		return s == m.want
	case Prefix:
		return strings.HasPrefix(s, m.want)
	case Suffix:
		return strings.HasSuffix(s, m.want)
	case Contains:
		return strings.Contains(s, m.want)
	case Regex:
		return m.re.MatchString(s)
	case Any:
		return true
	}
	return false
}

func (m *String) matchFold(s string) bool {
	n := len(m.want)
	if len(s) < n {
		return false
	}
	switch m.run {
	case Exact:
		return len(s) == n && foldEqual(s, m.want)
	case Prefix:
		return foldEqual(s[:n], m.want)
	case Suffix:
		return foldEqual(s[len(s)-n:], m.want)
	case Contains:
		for i := 0; i+n <= len(s); i++ {
			if foldEqual(s[i:i+n], m.want) {
				return true
			}
		}
		return false
	case Regex, Any: // never fold
	}
	return false
}

// foldEqual reports whether s equals lower, which is lower case, ignoring
// ASCII case. Both have the same length.
func foldEqual(s, lower string) bool {
	for i := range len(s) {
		c := s[i]
		if 'A' <= c && c <= 'Z' {
			c += 'a' - 'A'
		}
		if c != lower[i] {
			return false
		}
	}
	return true
}

func lowerASCII(s string) string {
	return strings.Map(func(r rune) rune {
		if 'A' <= r && r <= 'Z' {
			r += 'a' - 'A'
		}
		return r
	}, s)
}

// Kind returns how m matches.
func (m *String) Kind() StringKind { return m.kind }

// Text returns the text or regex source, lower-cased if case is ignored.
func (m *String) Text() string { return m.text }

// IgnoreCase reports whether case is ignored.
func (m *String) IgnoreCase() bool { return m.ignoreCase }
