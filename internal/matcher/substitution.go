package matcher

import (
	"fmt"
	"regexp"
	"strings"
)

// Substitution replaces every match of a regular expression: Envoy's
// RegexMatchAndSubstitute with RE2's rewrite syntax (\0 to \9, \\).
type Substitution struct {
	re    *regexp.Regexp
	parts []substPart
}

type substPart struct {
	lit   string
	group int // -1: lit
}

// NewSubstitution compiles pattern, which may match anywhere, and rewrite.
func NewSubstitution(pattern, rewrite string) (*Substitution, error) {
	re, err := compilePartial(pattern)
	if err != nil {
		return nil, err
	}
	s := &Substitution{re: re}
	var lit strings.Builder
	flush := func() {
		if lit.Len() > 0 {
			s.parts = append(s.parts, substPart{lit: lit.String(), group: -1})
			lit.Reset()
		}
	}
	for i := 0; i < len(rewrite); i++ {
		if rewrite[i] != '\\' {
			lit.WriteByte(rewrite[i])
			continue
		}
		i++
		switch {
		case i == len(rewrite):
			return nil, fmt.Errorf("substitution %q: ends in a lone backslash", rewrite)
		case rewrite[i] == '\\':
			lit.WriteByte('\\')
		case rewrite[i] >= '0' && rewrite[i] <= '9':
			g := int(rewrite[i] - '0')
			if g > re.NumSubexp() {
				return nil, fmt.Errorf("substitution %q: \\%d, but the pattern has %d groups", rewrite, g, re.NumSubexp())
			}
			flush()
			s.parts = append(s.parts, substPart{group: g})
		default:
			return nil, fmt.Errorf("substitution %q: \\%c is neither a group nor a backslash", rewrite, rewrite[i])
		}
	}
	flush()
	return s, nil
}

// Replace returns src with every match replaced; changed tells whether there
// was one. Without a match it doesn't allocate a result.
func (s *Substitution) Replace(src string) (out string, changed bool) {
	ms := s.re.FindAllStringSubmatchIndex(src, -1)
	if len(ms) == 0 {
		return src, false
	}
	b := make([]byte, 0, len(src)+32)
	at := 0
	for _, m := range ms {
		b = append(b, src[at:m[0]]...)
		for _, p := range s.parts {
			if p.group < 0 {
				b = append(b, p.lit...)
			} else if m[2*p.group] >= 0 {
				b = append(b, src[m[2*p.group]:m[2*p.group+1]]...)
			}
		}
		at = m[1]
	}
	return string(append(b, src[at:]...)), true
}

// Pattern returns the source of the regular expression.
func (s *Substitution) Pattern() string { return s.re.String() }
