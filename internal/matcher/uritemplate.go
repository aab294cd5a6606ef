package matcher

import (
	"errors"
	"fmt"
	"slices"
	"strings"
)

// Limits of Envoy's URI templates.
const (
	maxTemplateVariables = 5
	maxVariableName      = 16
)

// URITemplate is a compiled envoy.extensions.path.match.uri_template template:
// "*" is one segment, "**" any number of characters, "{name}" and
// "{name=pattern}" capture. No operator may follow "**".
type URITemplate struct {
	src  string
	toks []templateToken
	vars []string
}

type templateToken struct {
	kind tokenKind
	lit  string // tokenLiteral
	v    int    // tokenOpen, tokenClose: index of the variable
	// tail, of an operator, is the length of what follows if that is literal
	// only, else -1.
	tail int
}

type tokenKind uint8

const (
	tokenLiteral tokenKind = iota
	tokenGlob              // "*": one or more characters but "/"
	tokenText              // "**": any characters
	tokenOpen
	tokenClose
)

// NewURITemplate parses src.
func NewURITemplate(src string) (*URITemplate, error) {
	p := templateParser{t: &URITemplate{src: src}, rest: src}
	if err := p.parse(); err != nil {
		return nil, fmt.Errorf("uri template %q: %w", src, err)
	}
	tail := 0
	for i := len(p.t.toks) - 1; i >= 0; i-- {
		switch t := &p.t.toks[i]; {
		case t.kind == tokenGlob || t.kind == tokenText:
			t.tail, tail = tail, -1
		case tail >= 0:
			tail += len(t.lit)
		}
	}
	return p.t, nil
}

// String returns the source.
func (t *URITemplate) String() string { return t.src }

// Match reports whether path (without query) matches.
func (t *URITemplate) Match(path string) bool {
	_, ok := t.capture(path)
	return ok
}

type captures [maxTemplateVariables][2]int

// capture matches without backtracking: "*" stops at "/" or at the literal
// that ends the template, "**" is followed by literals only.
func (t *URITemplate) capture(path string) (captures, bool) {
	var caps captures
	i := 0
	for k, tok := range t.toks {
		switch tok.kind {
		case tokenLiteral:
			if !strings.HasPrefix(path[i:], tok.lit) {
				return caps, false
			}
			i += len(tok.lit)
		case tokenOpen:
			caps[tok.v][0] = i
		case tokenClose:
			caps[tok.v][1] = i
		case tokenGlob, tokenText:
			end, ok := t.globEnd(path, i, k)
			if !ok {
				return caps, false
			}
			i = end
		}
	}
	return caps, i == len(path)
}

// globEnd returns where the operator t.toks[k], starting at path[i], ends.
func (t *URITemplate) globEnd(path string, i, k int) (int, bool) {
	text := t.toks[k].kind == tokenText
	end := i
	for end < len(path) && (isTemplateChar(path[end]) || text && path[end] == '/') {
		end++
	}
	if tail := t.toks[k].tail; tail >= 0 {
		// The rest has a fixed length, so the operator's end is known.
		want := len(path) - tail
		if want > end || want < i {
			return 0, false
		}
		end = want
	}
	return end, text || end > i
}

// isTemplateChar reports whether c may be matched by "*": RFC 3986 pchar
// without "*" and "=", and "%".
func isTemplateChar(c byte) bool {
	switch {
	case 'a' <= c && c <= 'z', 'A' <= c && c <= 'Z', '0' <= c && c <= '9':
		return true
	}
	return strings.IndexByte("-._~%!$&'()+,;:@", c) >= 0
}

type templateParser struct {
	t    *URITemplate
	rest string
	text bool // "**" was seen
}

func (p *templateParser) parse() error {
	if len(p.rest) > MaxRegexBytes {
		return fmt.Errorf("%d bytes exceed the limit of %d", len(p.rest), MaxRegexBytes)
	}
	for i := range len(p.rest) {
		if c := p.rest[i]; c <= ' ' || c >= 0x7f {
			return errors.New("invalid pattern: not printable")
		}
	}
	if !strings.HasPrefix(p.rest, "/") {
		return errors.New("invalid pattern: must start with /")
	}
	p.emitLiteral("/")
	p.rest = p.rest[1:]
	for p.rest != "" {
		if err := p.segment(); err != nil {
			return err
		}
		switch {
		case p.rest == "":
		case p.rest[0] == '/':
			p.emitLiteral("/")
			p.rest = p.rest[1:]
		default: // a suffix, which ends the template
			if err := p.literal(); err != nil {
				return err
			}
			if p.rest != "" {
				return errors.New("prefix match not supported")
			}
		}
	}
	return nil
}

func (p *templateParser) segment() error {
	switch p.rest[0] {
	case '*':
		return p.operator()
	case '{':
		return p.variable()
	}
	return p.literal()
}

func (p *templateParser) operator() error {
	if p.text {
		return errors.New("glob after text glob")
	}
	if strings.HasPrefix(p.rest, "**") {
		p.text, p.rest = true, p.rest[2:]
		p.t.toks = append(p.t.toks, templateToken{kind: tokenText})
		return nil
	}
	p.rest = p.rest[1:]
	p.t.toks = append(p.t.toks, templateToken{kind: tokenGlob})
	return nil
}

func (p *templateParser) literal() error {
	end := strings.IndexByte(p.rest, '/')
	if end < 0 {
		end = len(p.rest)
	}
	lit := p.rest[:end]
	if lit == "" {
		return errors.New("invalid literal")
	}
	for i := range len(lit) {
		if !isTemplateChar(lit[i]) {
			return errors.New("invalid literal")
		}
	}
	p.emitLiteral(lit)
	p.rest = p.rest[end:]
	return nil
}

// emitLiteral appends lit, joined with a literal before it.
func (p *templateParser) emitLiteral(lit string) {
	if n := len(p.t.toks); n > 0 && p.t.toks[n-1].kind == tokenLiteral {
		p.t.toks[n-1].lit += lit
		return
	}
	p.t.toks = append(p.t.toks, templateToken{kind: tokenLiteral, lit: lit})
}

func (p *templateParser) variable() error {
	body, rest, ok := strings.Cut(p.rest[1:], "}")
	if !ok {
		return errors.New("unmatched variable bracket")
	}
	name, pattern, hasPattern := strings.Cut(body, "=")
	if !validVariableName(name) {
		return errors.New("invalid variable name")
	}
	if len(name) > maxVariableName {
		return errors.New("invalid variable length")
	}
	if slices.Contains(p.t.vars, name) {
		return errors.New("repeated variable name")
	}
	if len(p.t.vars) == maxTemplateVariables {
		return errors.New("exceeded variable count limit")
	}
	if hasPattern && pattern == "" {
		return errors.New("empty variable match")
	}
	if !hasPattern {
		pattern = "*"
	}
	v := len(p.t.vars)
	p.t.vars = append(p.t.vars, name)
	p.t.toks = append(p.t.toks, templateToken{kind: tokenOpen, v: v})
	sub := templateParser{t: p.t, rest: pattern, text: p.text}
	if err := sub.variablePattern(); err != nil {
		return err
	}
	p.t.toks = append(p.t.toks, templateToken{kind: tokenClose, v: v})
	p.text, p.rest = sub.text, rest
	return nil
}

func (p *templateParser) variablePattern() error {
	for p.rest != "" {
		var err error
		if p.rest[0] == '*' {
			err = p.operator()
		} else {
			err = p.literal()
		}
		if err != nil {
			return err
		}
		if p.rest != "" {
			if p.rest[0] != '/' || len(p.rest) == 1 {
				return errors.New("invalid variable match")
			}
			p.emitLiteral("/")
			p.rest = p.rest[1:]
		}
	}
	return nil
}

func validVariableName(s string) bool {
	for i := range len(s) {
		c := s[i]
		alpha := 'a' <= c && c <= 'z' || 'A' <= c && c <= 'Z'
		if !alpha && (i == 0 || c != '_' && (c < '0' || c > '9')) {
			return false
		}
	}
	return s != ""
}

// URITemplateRewrite builds a path from the variables of a URITemplate.
type URITemplateRewrite struct {
	from  *URITemplate
	parts []rewritePart
}

type rewritePart struct {
	lit string
	v   int // -1: lit
}

// NewURITemplateRewrite compiles rewrite, whose "{name}" refer to variables of
// from.
func NewURITemplateRewrite(rewrite string, from *URITemplate) (*URITemplateRewrite, error) {
	bad := func(why string) (*URITemplateRewrite, error) {
		return nil, fmt.Errorf("path template rewrite %q: %s", rewrite, why)
	}
	if !strings.HasPrefix(rewrite, "/") || strings.Contains(rewrite, "//") {
		return bad("must start with / and not contain //")
	}
	r := &URITemplateRewrite{from: from}
	for rest := rewrite; rest != ""; {
		lit, after, found := strings.Cut(rest, "{")
		for i := range len(lit) {
			if lit[i] != '/' && !isTemplateChar(lit[i]) {
				return bad("invalid rewrite literal")
			}
		}
		if lit != "" {
			r.parts = append(r.parts, rewritePart{lit: lit, v: -1})
		}
		if !found {
			break
		}
		name, tail, ok := strings.Cut(after, "}")
		if !ok {
			return bad("unmatched variable bracket")
		}
		v := -1
		for i, n := range from.vars {
			if n == name {
				v = i
			}
		}
		if v < 0 {
			return bad("variable " + name + " is not in " + from.src)
		}
		r.parts = append(r.parts, rewritePart{v: v})
		rest = tail
	}
	return r, nil
}

// Rewrite returns the new path for path (without query), and false if path
// doesn't match the template.
func (r *URITemplateRewrite) Rewrite(path string) (string, bool) {
	caps, ok := r.from.capture(path)
	if !ok {
		return "", false
	}
	var b []byte
	for _, p := range r.parts {
		if p.v < 0 {
			b = append(b, p.lit...)
		} else {
			b = append(b, path[caps[p.v][0]:caps[p.v][1]]...)
		}
	}
	return string(b), true
}
