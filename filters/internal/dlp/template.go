package dlp

import (
	"strconv"
	"strings"
)

// template is the shape of a token in a small part of the usual notation:
// literals, "\" before a byte that means something, classes in brackets with
// an optional count, and one pair of parentheses around the secret itself. It
// is matched greedily, without going back.
type template struct {
	prefix string // the literal that it begins with
	atoms  []atom // what follows
	// secret is the atom that the secret begins with, -1 for the prefix: a
	// name before a value is not part of the secret.
	secret int
}

// atom is a literal, or a run of bytes of a class.
type atom struct {
	lit      string
	class    set
	min, max int
}

// newTemplate parses s, which is a constant: it panics if s is wrong.
func newTemplate(s string) template {
	t := template{secret: -1}
	var lit []byte
	flush := func() {
		if len(lit) > 0 {
			t.atoms = append(t.atoms, atom{lit: string(lit)})
			lit = lit[:0]
		}
	}
	for i := 0; i < len(s); i++ {
		switch s[i] {
		case '\\':
			i++
			lit = append(lit, s[i])
		case '(':
			flush()
			t.secret = len(t.atoms) - 1
		case ')':
		case '[':
			flush()
			end := i + strings.IndexByte(s[i:], ']')
			a := atom{class: tokenClass(s[i+1 : end]), min: 1, max: 1}
			i = end
			if i+1 < len(s) && s[i+1] == '{' {
				stop := i + strings.IndexByte(s[i:], '}')
				low, high, ranged := strings.Cut(s[i+2:stop], ",")
				if !ranged {
					high = low
				}
				a.min, a.max = number10(low), number10(high)
				i = stop
			}
			t.atoms = append(t.atoms, a)
		default:
			lit = append(lit, s[i])
		}
	}
	flush()
	if t.atoms[0].lit == "" { // of a value behind a name
		return t
	}
	t.prefix, t.atoms = t.atoms[0].lit, t.atoms[1:]
	return t
}

func number10(s string) int {
	n, err := strconv.Atoi(s)
	if err != nil {
		panic("dlp: a count of a template: " + err.Error())
	}
	return n
}

// tokenClass is classOf, with a last "-" that stands for itself.
func tokenClass(desc string) set {
	dash := desc[len(desc)-1] == '-'
	if dash {
		desc = desc[:len(desc)-1]
	}
	s := classOf(desc)
	if dash {
		s.add('-')
	}
	return s
}

// match matches what follows the prefix at i. It returns where the secret
// begins, and the end of the match, 0 if there is none.
func (t *template) match(v *view, i int) (start, end int) {
	start = i - len(t.prefix)
	for k := range t.atoms {
		a := &t.atoms[k]
		if k == t.secret {
			start = i
		}
		if a.lit != "" {
			if !v.literal(i, a.lit) {
				return 0, 0
			}
			i += len(a.lit)
			continue
		}
		limit := a.max
		if k == len(t.atoms)-1 {
			limit++
		}
		n := v.span(i, limit, &a.class) - i
		if n < a.min || n > a.max {
			return 0, 0
		}
		i += n
	}
	return start, i
}

// literal reports whether s is at i.
func (v *view) literal(i int, s string) bool {
	for k := range len(s) {
		if v.at(i+k) != s[k] {
			return false
		}
	}
	return true
}
