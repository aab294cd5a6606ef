package matcher

import (
	"fmt"
	"regexp"
	"regexp/syntax"
	"strings"
)

// MaxRegexBytes bounds the source of a regular expression from configuration.
const MaxRegexBytes = 8 << 10

// MaxRegexProgram bounds the instructions of a compiled expression: it is the
// re2.max_program_size.error_level that Istio's bootstrap gives to Envoy. Counted
// repetition makes programs of millions of instructions from a few KiB.
const MaxRegexProgram = 32768

// CompileSafeRegex compiles an RE2 expression that must match the whole
// string, as Envoy's safe_regex does.
func CompileSafeRegex(src string) (*regexp.Regexp, error) {
	if err := checkRegex(src); err != nil {
		return nil, err
	}
	re, err := regexp.Compile(`^(?s:` + src + `)$`)
	if err != nil {
		return nil, fmt.Errorf("regex %q: %w", src, err)
	}
	return re, nil
}

// compilePartial compiles an RE2 expression that may match anywhere, for
// substitutions.
func compilePartial(src string) (*regexp.Regexp, error) {
	if err := checkRegex(src); err != nil {
		return nil, err
	}
	re, err := regexp.Compile(src)
	if err != nil {
		return nil, fmt.Errorf("regex %q: %w", src, err)
	}
	return re, nil
}

// checkRegex parses src by itself, so that an expression like "a)(b" is not
// accepted because of what is put around it.
func checkRegex(src string) error {
	if len(src) > MaxRegexBytes {
		return fmt.Errorf("regex of %d bytes exceeds the limit of %d", len(src), MaxRegexBytes)
	}
	re, err := syntax.Parse(src, syntax.Perl)
	if err != nil {
		return fmt.Errorf("regex %q: %w", src, err)
	}
	if !strings.ContainsRune(src, '{') {
		return nil // about as many instructions as bytes
	}
	prog, err := syntax.Compile(re.Simplify())
	if err != nil {
		return fmt.Errorf("regex %q: %w", src, err)
	}
	if n := len(prog.Inst); n > MaxRegexProgram {
		return fmt.Errorf("regex %.100q: a program of %d instructions exceeds the limit of %d: repeat less by {n,m}", src, n, MaxRegexProgram)
	}
	return nil
}

// simplify finds a plain match equivalent to a full match of src: "abc" is
// exact, "abc.*" a prefix, ".*abc" a suffix, ".*abc.*" contains, ".*" any. A
// plain match costs a tenth of the automaton.
func simplify(src string) (kind StringKind, text string, ok bool) {
	re, err := syntax.Parse(src, syntax.Perl|syntax.DotNL)
	if err != nil {
		return 0, "", false
	}
	parts := []*syntax.Regexp{re}
	if re.Op == syntax.OpConcat {
		parts = re.Sub
	}
	anything := func(r *syntax.Regexp) bool {
		return r.Op == syntax.OpStar && r.Sub[0].Op == syntax.OpAnyChar
	}
	var head, tail bool
	if len(parts) > 0 && anything(parts[0]) {
		head, parts = true, parts[1:]
	}
	if n := len(parts); n > 0 && anything(parts[n-1]) {
		tail, parts = true, parts[:n-1]
	}
	switch {
	case len(parts) == 0 && head:
		return Any, "", true
	case len(parts) != 1 || parts[0].Op != syntax.OpLiteral || parts[0].Flags&syntax.FoldCase != 0:
		return 0, "", false
	}
	text = string(parts[0].Rune)
	switch {
	case head && tail:
		return Contains, text, true
	case head:
		return Suffix, text, true
	case tail:
		return Prefix, text, true
	}
	return Exact, text, true
}
