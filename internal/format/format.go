// Package format compiles Envoy's substitution strings
// ("%REQ(:AUTHORITY)% …") once and renders them without allocation. Header
// edits, filter state, access logs and tunnel host names use them; CEL
// expressions over the same attributes are compiled here, too.
package format

import (
	"sync"

	"github.com/fairlead-mesh/fairlead/internal/message"
	"github.com/fairlead-mesh/fairlead/internal/streaminfo"
)

// Context is what a format string may refer to. Nil members render as absent
// ("-" in logs, "" in headers).
type Context struct {
	Info                        *streaminfo.Info
	Request, Response, Trailers *message.Header
	// LocalReplyBody is %LOCAL_REPLY_BODY%.
	LocalReplyBody string
	// LogType is %ACCESS_LOG_TYPE%, "" for "NotSet": one of Log….
	LogType string
}

// Values of Context.LogType.
const (
	LogDownstreamEnd        = "DownstreamEnd"
	LogUpstreamEnd          = "UpstreamEnd"
	LogTCPUpstreamConnected = "TcpUpstreamConnected"
	LogTCPPeriodic          = "TcpPeriodic"
	LogTCPConnectionEnd     = "TcpConnectionEnd"
)

// String is a compiled format string: immutable, safe for concurrent use. The
// zero String renders nothing.
type String struct {
	src       string
	ops       []op
	constant  string
	isConst   bool
	omitEmpty bool
}

// op is one operator or literal.
type op struct {
	// lit is used if text is nil.
	lit string
	// text appends the value; false means absent, and nothing was appended.
	text func(dst []byte, c *Context) ([]byte, bool)
	// json appends the typed value where that differs from the quoted text;
	// nil otherwise.
	json func(dst []byte, c *Context) ([]byte, bool)
}

// Literal returns the String that renders s, in which "%" has no meaning.
func Literal(s string) *String {
	return &String{src: s, constant: s, isConst: true, ops: []op{{lit: s}}}
}

// Source returns the text that s was compiled from.
func (s *String) Source() string { return s.src }

// Constant returns the text of s and true if it refers to nothing.
func (s *String) Constant() (string, bool) { return s.constant, s.isConst }

// OmitEmpty returns a copy of s whose Append writes "" for absent values:
// Envoy's omit_empty_values.
func (s *String) OmitEmpty() *String {
	c := *s
	c.omitEmpty = true
	return &c
}

// Append appends the rendered line to dst; absent values are "-".
func (s *String) Append(dst []byte, c *Context) []byte {
	if s.omitEmpty {
		return s.AppendHeader(dst, c)
	}
	for i := range s.ops {
		o := &s.ops[i]
		switch {
		case o.text != nil:
			var ok bool
			if dst, ok = o.text(dst, c); !ok {
				dst = append(dst, '-')
			}
		case len(o.lit) == 1: // most are a blank: no call to copy it
			dst = append(dst, o.lit[0])
		default:
			dst = append(dst, o.lit...)
		}
	}
	return dst
}

// AppendHeader appends the rendered value to dst; absent values are "", as in
// header edits.
func (s *String) AppendHeader(dst []byte, c *Context) []byte {
	for i := range s.ops {
		o := &s.ops[i]
		if o.text == nil {
			dst = append(dst, o.lit...)
		} else {
			dst, _ = o.text(dst, c)
		}
	}
	return dst
}

// Render returns the value as header edits and filter state see it: absent
// values are "". It allocates unless s is a constant.
func (s *String) Render(c *Context) string {
	if s.isConst {
		return s.constant
	}
	return string(s.AppendHeader(nil, c))
}

// Intern renders like Render into memory owned by h: the string is valid until
// h is reset, and nothing else is allocated.
func (s *String) Intern(h *message.Header, c *Context) string {
	if s.isConst {
		return s.constant
	}
	b, ok := scratch.Get().(*[]byte)
	if !ok {
		b = new([]byte)
	}
	*b = s.AppendHeader((*b)[:0], c)
	v := h.Intern(*b)
	if cap(*b) <= maxScratch {
		scratch.Put(b)
	}
	return v
}

// scratch holds buffers of Intern: operators are called through functions, so
// a buffer on the stack would escape.
var scratch sync.Pool

const maxScratch = 4 << 10
