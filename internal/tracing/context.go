// Package tracing makes the spans of a request as Envoy's HTTP connection
// manager and its OpenTelemetry tracer do: one for the request, one for each
// upstream attempt, with W3C trace context between hops.
package tracing

import (
	"encoding/binary"
	"encoding/hex"
	"math/rand/v2"

	"github.com/fairlead-mesh/fairlead/internal/message"
)

const (
	traceparent = "traceparent"
	tracestate  = "tracestate"
	// parentSize is the length of a traceparent of version 00.
	parentSize = 55
)

// spanContext is what crosses from hop to hop.
type spanContext struct {
	trace   [16]byte
	span    [8]byte
	sampled bool
	// state is tracestate, "" if there is none.
	state string
}

// extract reads the trace context of h. present is false if there is none, ok
// if it is one that Envoy takes (SpanContextExtractor): any version, but of the
// size and form of version 00, and neither ID zero.
func extract(h *message.Header) (c spanContext, present, ok bool) {
	v, present := h.Lookup(traceparent)
	if !present {
		return c, false, false
	}
	if len(v) != parentSize || v[2] != '-' || v[35] != '-' || v[52] != '-' {
		return c, true, false
	}
	var version, flags [1]byte
	for _, f := range [...]struct {
		dst []byte
		src string
	}{{version[:], v[:2]}, {c.trace[:], v[3:35]}, {c.span[:], v[36:52]}, {flags[:], v[53:]}} {
		if !unhex(f.dst, f.src) {
			return c, true, false
		}
	}
	if c.trace == [16]byte{} || c.span == [8]byte{} {
		return c, true, false
	}
	c.sampled = flags[0]&1 != 0
	c.state, _ = h.Joined(tracestate)
	return c, true, true
}

// unhex decodes src, which is twice as long as dst.
func unhex(dst []byte, src string) bool {
	for i := range dst {
		hi, lo := message.Unhex(src[2*i]), message.Unhex(src[2*i+1])
		if hi < 0 || lo < 0 {
			return false
		}
		dst[i] = byte(hi<<4 | lo)
	}
	return true
}

// inject writes c into h, whose memory it uses.
func (c *spanContext) inject(h *message.Header) {
	var b [parentSize]byte
	copy(b[:], "00-")
	hex.Encode(b[3:], c.trace[:])
	b[35], b[52] = '-', '-'
	hex.Encode(b[36:], c.span[:])
	b[53], b[54] = '0', '0'
	if c.sampled {
		b[54] = '1'
	}
	h.Set(traceparent, h.Intern(b[:]))
	switch {
	case c.state != "":
		h.Set(tracestate, c.state)
	case h.Has(tracestate): // of no parent: Envoy empties it
		h.Del(tracestate)
	}
}

func newTraceID() (id [16]byte) {
	for id == [16]byte{} {
		binary.BigEndian.PutUint64(id[:], rand.Uint64())
		binary.BigEndian.PutUint64(id[8:], rand.Uint64())
	}
	return id
}

func newSpanID() (id [8]byte) {
	for id == [8]byte{} {
		binary.BigEndian.PutUint64(id[:], rand.Uint64())
	}
	return id
}
