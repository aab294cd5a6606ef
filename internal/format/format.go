// Package format compiles Envoy's substitution strings
// ("%REQ(:AUTHORITY)% …") once and renders them without allocation. Header
// edits, filter state, access logs and tunnel host names use them.
package format

import (
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
}

// String is a compiled format string: immutable, safe for concurrent use.
type String struct {
	src string
	ops []op
}

type op func(dst []byte, c *Context) []byte

// Source returns the text that s was compiled from.
func (s *String) Source() string { return s.src }
