// Package accesslog writes one line for each stream that ended: a compiled
// format, a compiled filter, and a sink shared by path.
package accesslog

import (
	"errors"
	"fmt"

	"github.com/fairlead-mesh/fairlead/internal/format"
)

// DefaultFormat is Envoy's default text format.
const DefaultFormat = `[%START_TIME%] "%REQ(:METHOD)% %REQ(X-ENVOY-ORIGINAL-PATH?:PATH)% %PROTOCOL%" ` +
	`%RESPONSE_CODE% %RESPONSE_FLAGS% %BYTES_RECEIVED% %BYTES_SENT% %DURATION% ` +
	`%RESP(X-ENVOY-UPSTREAM-SERVICE-TIME)% "%REQ(X-FORWARDED-FOR)%" "%REQ(USER-AGENT)%" ` +
	`"%REQ(X-REQUEST-ID)%" "%REQ(:AUTHORITY)%" "%UPSTREAM_HOST%"` + "\n"

// File is a file access logger: Text or JSON is set. Text holds its own
// newline; one is added after JSON.
type File struct {
	Path string
	Text *format.String
	JSON *JSONFormat
}

// NewText returns a File that writes a text format; "" is DefaultFormat.
func NewText(path, src string) (*File, error) {
	if path == "" {
		return nil, errors.New("path: an access log needs a path")
	}
	if src == "" {
		src = DefaultFormat
	}
	s, err := format.Compile(src)
	if err != nil {
		return nil, err
	}
	return &File{Path: path, Text: s}, nil
}

// NewJSON returns a File that writes one JSON object a line.
func NewJSON(path string, j *JSONFormat) (*File, error) {
	if path == "" {
		return nil, errors.New("path: an access log needs a path")
	}
	return &File{Path: path, JSON: j}, nil
}

// JSONFormat is a compiled json_format.
type JSONFormat struct {
	render func(dst []byte, c *format.Context) []byte
}

// CompileJSON compiles a json_format; see format.CompileJSON.
func CompileJSON(spec map[string]any, omitEmpty bool) (*JSONFormat, error) {
	j, err := format.CompileJSON(spec, omitEmpty)
	if err != nil {
		return nil, err
	}
	return &JSONFormat{render: j.Append}, nil
}

// Append renders the object, without a newline.
func (j *JSONFormat) Append(dst []byte, c *format.Context) []byte { return j.render(dst, c) }

// Append renders the line of f, newline included.
func (f *File) Append(dst []byte, c *format.Context) []byte {
	if f.JSON != nil {
		return append(f.JSON.Append(dst, c), '\n')
	}
	return f.Text.Append(dst, c)
}

// Logger writes the lines of one access logger. Safe for concurrent use.
type Logger struct {
	file   *File
	filter *Filter
	sink   *sink
	// write, if not nil, takes the place of file and sink.
	write func(c *format.Context)
}

// NewLogger returns a logger that calls write for streams that match filter; nil
// logs all. write must not block, and keeps nothing of its argument.
func NewLogger(filter *Filter, write func(c *format.Context)) *Logger {
	return &Logger{filter: filter, write: write}
}

// Logger returns the logger for f, opening its sink. A nil filter logs all.
func (s *Sinks) Logger(f *File, filter *Filter) (*Logger, error) {
	if f.Text == nil && f.JSON == nil {
		return nil, fmt.Errorf("access log %s: neither text nor JSON format is set", f.Path)
	}
	k, err := s.open(f.Path)
	if err != nil {
		return nil, err
	}
	return &Logger{file: f, filter: filter, sink: k}, nil
}

// Log writes the line for c if the filter matches. It never blocks: if the
// sink can't keep up, the line is dropped and counted.
func (l *Logger) Log(c *format.Context) {
	if !l.filter.Match(c) {
		return
	}
	if l.write != nil {
		l.write(c)
		return
	}
	if l.sink.render(l.file, c) {
		return
	}
	b := lines.Get()
	b.p = l.file.Append(b.p[:0], c)
	l.sink.write(b.p)
	lines.Put(b)
}
