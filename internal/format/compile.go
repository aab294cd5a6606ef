package format

import (
	"errors"
	"fmt"
	"strconv"
	"strings"
)

// maxFormatBytes bounds a format string from configuration.
const maxFormatBytes = 64 << 10

// Compile compiles src. "%%" is a percent sign. The error names the operator
// that is unknown, not supported here, or malformed, and its column (from 1).
func Compile(src string) (*String, error) {
	if len(src) > maxFormatBytes {
		return nil, fmt.Errorf("format of %d bytes exceeds the limit of %d", len(src), maxFormatBytes)
	}
	s := &String{src: src, isConst: true}
	var lit strings.Builder
	flush := func() {
		if lit.Len() > 0 {
			s.ops = append(s.ops, op{lit: lit.String()})
			lit.Reset()
		}
	}
	for i := 0; i < len(src); {
		switch {
		case src[i] != '%':
			j := strings.IndexByte(src[i:], '%')
			if j < 0 {
				j = len(src) - i
			}
			lit.WriteString(src[i : i+j])
			i += j
		case strings.HasPrefix(src[i:], "%%"):
			lit.WriteByte('%')
			i += 2
		default:
			cmd, n, err := parseCommand(src[i:])
			if err != nil {
				return nil, fmt.Errorf("format: column %d: %w", i+1, err)
			}
			o, err := cmd.compile()
			if err != nil {
				return nil, fmt.Errorf("format: column %d: %%%s%%: %w", i+1, cmd.name, err)
			}
			if o.text == nil { // known at compile time
				lit.WriteString(o.lit)
			} else {
				flush()
				s.ops, s.isConst = append(s.ops, o), false
			}
			i += n
		}
	}
	if s.isConst {
		s.constant = lit.String()
	}
	flush()
	return s, nil
}

// command is one "%NAME(sub):max%".
type command struct {
	name, sub string
	hasSub    bool
	max       int // -1: none
}

// parseCommand parses the command at the start of s, which begins with "%",
// and returns its length. As in Envoy, the argument ends at the first ")" that
// is followed by "%" or ":digits%".
func parseCommand(s string) (command, int, error) {
	c := command{max: -1}
	i := 1
	for i < len(s) && (s[i] >= 'A' && s[i] <= 'Z' || s[i] >= '0' && s[i] <= '9' || s[i] == '_') {
		i++
	}
	c.name = s[1:i]
	if c.name == "" {
		return c, 0, errors.New("no operator after %%: write %%%% for a percent sign")
	}
	if i < len(s) && s[i] == '(' {
		c.hasSub = true
		start := i + 1
		for i = start; ; i++ {
			j := strings.IndexByte(s[i:], ')')
			if j < 0 {
				return c, 0, fmt.Errorf("%%%s(: the argument has no end", c.name)
			}
			i += j
			if n, end, ok := parseLength(s[i+1:]); ok {
				c.sub, c.max = s[start:i], n
				return c, i + 1 + end, nil
			}
		}
	}
	n, end, ok := parseLength(s[i:])
	if !ok {
		return c, 0, fmt.Errorf("%%%s: malformed operator: want %%NAME%%, %%NAME(argument)%% or %%NAME(argument):length%%", c.name)
	}
	c.max = n
	return c, i + end, nil
}

// parseLength parses "%" or ":digits%".
func parseLength(s string) (length, end int, ok bool) {
	if strings.HasPrefix(s, "%") {
		return -1, 1, true
	}
	if !strings.HasPrefix(s, ":") {
		return 0, 0, false
	}
	i := 1
	for i < len(s) && s[i] >= '0' && s[i] <= '9' {
		i++
	}
	n, err := strconv.Atoi(s[1:i])
	if err != nil || i == len(s) || s[i] != '%' {
		return 0, 0, false
	}
	return n, i + 1, true
}

// truncate cuts what was appended after from to c.max bytes.
func (c command) truncate(dst []byte, from int) []byte {
	if c.max >= 0 && len(dst)-from > c.max {
		return dst[:from+c.max]
	}
	return dst
}

// noArgument fails if the operator was given an argument or a length.
func (c command) noArgument() error {
	switch {
	case c.hasSub:
		return fmt.Errorf("takes no argument, has %q", c.sub)
	case c.max >= 0:
		return fmt.Errorf("takes no length, has %d", c.max)
	}
	return nil
}

// truncated wraps a text function if a length is configured.
func (c command) truncated(f func([]byte, *Context) ([]byte, bool)) op {
	if c.max < 0 {
		return op{text: f}
	}
	return op{text: func(dst []byte, x *Context) ([]byte, bool) {
		n := len(dst)
		dst, ok := f(dst, x)
		return c.truncate(dst, n), ok
	}}
}
