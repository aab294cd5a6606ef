// Package accesslog writes one line for each stream that ended: a compiled
// format, a compiled filter, and a sink shared by path.
package accesslog

import "github.com/fairlead-mesh/fairlead/internal/format"

// File is a file access logger: Text or JSON is set.
type File struct {
	Path string
	Text *format.String
	JSON *JSONFormat
}

// JSONFormat is a compiled json_format.
type JSONFormat struct {
	render func(dst []byte, c *format.Context) []byte
}

// Append renders the object, without a newline.
func (j *JSONFormat) Append(dst []byte, c *format.Context) []byte { return j.render(dst, c) }

// Filter is a compiled access-log filter.
type Filter struct{ match func(c *format.Context) bool }

// Match reports whether the stream is to be logged. A nil Filter logs all.
func (f *Filter) Match(c *format.Context) bool { return f == nil || f.match(c) }
