package xdsresource

import (
	"errors"
	"fmt"
	"strconv"
	"strings"

	"google.golang.org/protobuf/proto"

	"github.com/fairlead-mesh/fairlead/filters"
)

// maxErrors bounds how many problems of one resource are listed.
const maxErrors = 20

// scope is the decoding of one resource: where it is, and what was found. Two
// kinds of findings exist. errs reject the resource. closed are valid but
// can't be executed, and make the nearest part that can fail closed (a route,
// filter chain, cluster, TLS context) do so: it calls takeClosed.
type scope struct {
	d       *Decoder
	path    []string
	errs    []error
	closed  []string
	ignored filters.Decoding
	seen    map[string]bool

	// maxDirectBody is max_direct_response_body_size_bytes of the route
	// configuration that is decoded.
	maxDirectBody uint32

	// logs and plugins hold what was decoded, by content: a waypoint has the
	// same access logs and filters in each of its filter chains.
	logs    map[Digest]*AccessLog
	plugins map[pluginKey]*plugged
}

func (s *scope) push(field string)         { s.path = append(s.path, field) }
func (s *scope) pushIndex(f string, i int) { s.push(f + "[" + strconv.Itoa(i) + "]") }
func (s *scope) pushKey(f, key string)     { s.push(f + "[" + strconv.Quote(key) + "]") }
func (s *scope) pop()                      { s.path = s.path[:len(s.path)-1] }

// at returns the path of field, "" for the current place.
func (s *scope) at(field string) string {
	p := strings.Join(s.path, ".")
	switch {
	case field == "":
		return p
	case p == "" || field[0] == '[':
		return p + field
	}
	return p + "." + field
}

// errorf rejects the resource.
func (s *scope) errorf(field, format string, args ...any) {
	s.reject(field, fmt.Errorf(format, args...))
}

// reject rejects the resource because of err, if not nil.
func (s *scope) reject(field string, err error) {
	if err == nil || len(s.errs) > maxErrors {
		return
	}
	if len(s.errs) == maxErrors {
		err, field = errors.New("… and more"), ""
	}
	field, err = inner(field, err)
	s.errs = append(s.errs, &FieldError{s.at(field), err})
}

// inner moves the path of an error of package matcher into field.
func inner(field string, err error) (string, error) {
	fe, ok := err.(interface {
		FieldPath() string
		Unwrap() error
	})
	if !ok {
		return field, err
	}
	p := fe.FieldPath()
	if field != "" && !strings.HasPrefix(p, "[") {
		p = "." + p
	}
	return field + p, fe.Unwrap()
}

// FieldError is what is wrong with one field.
type FieldError struct {
	// Path is "" for the resource as a whole.
	Path string
	Err  error
}

// Error returns "path: reason".
func (e *FieldError) Error() string {
	if e.Path == "" {
		return e.Err.Error()
	}
	return e.Path + ": " + e.Err.Error()
}

// Unwrap returns the reason.
func (e *FieldError) Unwrap() error { return e.Err }

// unsupported closes the nearest part that can fail closed.
func (s *scope) unsupported(field, format string, args ...any) {
	s.closed = append(s.closed, s.at(field)+": "+fmt.Sprintf(format, args...))
}

// unsupportedErr is unsupported for err, if not nil.
func (s *scope) unsupportedErr(field string, err error) {
	if err != nil {
		field, err = inner(field, err)
		s.unsupported(field, "%v", err)
	}
}

// matcherErr rejects the resource for a broken matcher, and closes the nearest
// part for one that is valid but not supported.
func (s *scope) matcherErr(field string, err error) {
	if errors.Is(err, errors.ErrUnsupported) {
		s.unsupportedErr(field, err)
		return
	}
	s.reject(field, err)
}

// takeClosed returns, joined, what was unsupported since mark, and forgets it.
func (s *scope) takeClosed(mark int) string {
	if len(s.closed) == mark {
		return ""
	}
	reason := strings.Join(s.closed[mark:], "; ")
	s.closed = s.closed[:mark]
	return reason
}

// close runs f and returns what was unsupported in it, with paths relative to
// the current place.
func (s *scope) close(f func()) string {
	closed := len(s.closed)
	f()
	for i, c := range s.closed[closed:] {
		s.closed[closed+i] = strings.TrimLeft(strings.TrimPrefix(c, s.at("")), ".: ")
	}
	return s.takeClosed(closed)
}

// ignore reports a field that is accepted without effect. Of places that
// differ only in list indices the first is reported.
func (s *scope) ignore(field, reason string) {
	p := s.at(field)
	key := withoutIndices(p + "\x00" + reason)
	if s.seen[key] {
		return
	}
	if s.seen == nil {
		s.seen = map[string]bool{}
	}
	s.seen[key] = true
	s.ignored.Ignore(p, reason)
}

func withoutIndices(p string) string {
	var b strings.Builder
	for {
		i := strings.IndexByte(p, '[')
		if i < 0 {
			break
		}
		j := strings.IndexByte(p[i:], ']')
		if j < 0 {
			break
		}
		b.WriteString(p[:i+1])
		p = p[i+j:]
	}
	b.WriteString(p)
	return b.String()
}

// validated is what protoc-gen-validate gives messages.
type validated interface{ ValidateAll() error }

// validate applies the constraints of the API definition, as Envoy does.
func (s *scope) validate(m proto.Message) {
	v, ok := m.(validated)
	if !ok {
		return
	}
	if err := v.ValidateAll(); err != nil {
		s.constraints("", err)
	}
}

// constraint is one violation.
type constraint interface {
	Field() string
	Reason() string
	Cause() error
	Key() bool
}

// constraints flattens err into errors with paths in proto names.
func (s *scope) constraints(path string, err error) {
	if m, ok := err.(interface{ AllErrors() []error }); ok {
		for _, e := range m.AllErrors() {
			s.constraints(path, e)
		}
		return
	}
	c, ok := err.(constraint)
	if !ok {
		s.reject(path, err)
		return
	}
	p := snake(c.Field())
	if path != "" {
		p = path + "." + p
	}
	if c.Cause() != nil {
		s.constraints(p, c.Cause())
		return
	}
	s.errorf(p, "%s", c.Reason())
}

// snake turns the Go name of a field into its proto name.
func snake(f string) string {
	b := make([]byte, 0, len(f)+4)
	inIndex := false
	for i := range len(f) {
		c := f[i]
		switch {
		case inIndex:
			inIndex = c != ']'
		case c == '[':
			inIndex = true
		case c >= 'A' && c <= 'Z':
			if i > 0 && f[i-1] != '_' {
				b = append(b, '_')
			}
			c += 'a' - 'A'
		}
		b = append(b, c)
	}
	return string(b)
}
