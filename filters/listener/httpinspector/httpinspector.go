// Package httpinspector is the http_inspector listener filter: it tells HTTP/1
// and HTTP/2 with prior knowledge from other protocols by the first bytes of a
// plaintext connection.
package httpinspector

import (
	"strings"

	"github.com/fairlead-mesh/fairlead/filters"
	"github.com/fairlead-mesh/fairlead/filters/internal/peek"
	"github.com/fairlead-mesh/fairlead/internal/stats"
)

// Factory makes http_inspector filters.
type Factory struct{}

// TypeURLs implements filters.ListenerFactory.
func (Factory) TypeURLs() []string { return []string{typeURL} }

// Compile implements filters.ListenerFactory.
func (Factory) Compile(env *filters.Env, _ filters.Config) (filters.ListenerFilter, error) {
	f := &filter{}
	if env != nil {
		f.found[http10] = env.Stats.Counter("envoy_http_inspector_http10_found")
		f.found[http11] = env.Stats.Counter("envoy_http_inspector_http11_found")
		f.found[http2] = env.Stats.Counter("envoy_http_inspector_http2_found")
		f.found[notHTTP] = env.Stats.Counter("envoy_http_inspector_http_not_found")
		f.readError = env.Stats.Counter("envoy_http_inspector_read_error")
	}
	return f, nil
}

type filter struct {
	found     [results]*stats.Counter
	readError *stats.Counter
}

type result uint8

const (
	undecided result = iota
	notHTTP
	http10
	http11
	http2
	results
)

var protocols = [results][]string{http10: {"http/1.0"}, http11: {"http/1.1"}, http2: {"h2c"}}

const (
	preface = "PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"
	// maxInspect bounds the request line; Envoy's limit is 8 KiB as well.
	maxInspect = 8 << 10
	maxMethod  = 32
)

// OnAccept implements filters.ListenerFilter.
func (f *filter) OnAccept(c *filters.Connection) error {
	ci := c.Info.Conn
	if ci.TransportProtocol != "" && ci.TransportProtocol != "raw_buffer" {
		return nil // encrypted: nothing to see
	}
	p := peek.Of(c)
	for n := 1; ; n++ {
		b, err := p.Peek(n)
		r := inspect(b)
		if r == undecided && err == nil && n < maxInspect {
			continue
		}
		if r == undecided {
			r = notHTTP
			if err != nil {
				f.readError.Inc()
				return err
			}
		}
		f.found[r].Inc()
		if ps := protocols[r]; ps != nil {
			ci.ApplicationProtocols = ps
		}
		return nil
	}
}

// inspect decides on the bytes so far.
func inspect(b []byte) result {
	if len(b) >= len(preface) {
		if string(b[:len(preface)]) == preface {
			return http2
		}
	} else if strings.HasPrefix(preface, string(b)) {
		return undecided
	}
	i := 0
	for i < len(b) && (b[i] >= 'A' && b[i] <= 'Z' || b[i] == '-' && i > 0) {
		i++
	}
	switch {
	case i > maxMethod:
		return notHTTP
	case i == len(b):
		return undecided
	case i == 0 || b[i] != ' ':
		return notHTTP
	}
	target := b[i+1:]
	j := 0
	for j < len(target) && target[j] > ' ' && target[j] != 0x7f {
		j++
	}
	switch {
	case j == len(target):
		return undecided
	case j == 0 || target[j] != ' ':
		return notHTTP
	}
	return version(target[j+1:])
}

func version(b []byte) result {
	const http1 = "HTTP/1."
	if len(b) <= len(http1) {
		if strings.HasPrefix(http1, string(b)) {
			return undecided
		}
		return notHTTP
	}
	if string(b[:len(http1)]) != http1 {
		return notHTTP
	}
	r := http11
	switch b[len(http1)] {
	case '0':
		r = http10
	case '1':
	default:
		return notHTTP
	}
	switch end := b[len(http1)+1:]; {
	case len(end) == 0, len(end) == 1 && end[0] == '\r':
		return undecided
	case end[0] == '\n', end[0] == '\r' && end[1] == '\n':
		return r
	}
	return notHTTP
}
