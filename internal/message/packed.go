package message

import (
	"encoding/binary"
	"slices"
)

// Packed is a Header that nobody looks at for long, in one piece of memory. The
// zero Packed is the empty Header.
type Packed struct{ b string }

// packedNames are those that take a byte. Their order is that of no format: a
// Packed does not leave the process.
var packedNames = [...]string{
	Method, Scheme, Authority, Path, Status, Protocol,
	"baggage", "content-length", "content-type", "date", "forwarded", "host", "server", "traceparent", "tracestate", "user-agent",
	"x-envoy-external-address", "x-envoy-upstream-service-time", "x-forwarded-client-cert", "x-forwarded-for", "x-forwarded-proto", "x-request-id",
}

const (
	packedNever = 0x80 // NeverIndex
	packedOther = 0x7e // a name of its own follows
	packedKept  = 0x7f // no field, but KeepName
)

// Len is how many bytes p holds.
func (p Packed) Len() int { return len(p.b) }

// Pack returns a copy of h.
func (h *Header) Pack() Packed { return h.PackWithout("") }

// PackWithout returns a copy of h without the fields called name.
func (h *Header) PackWithout(name string) Packed {
	if len(h.fields) == 0 && len(h.kept) == 0 {
		return Packed{}
	}
	var stack [512]byte
	b := stack[:0]
	for i := range h.fields {
		f := &h.fields[i]
		if f.Name == name {
			continue
		}
		k := slices.Index(packedNames[:], f.Name)
		code := byte(k)
		if k < 0 {
			code = packedOther
		}
		if f.NeverIndex {
			code |= packedNever
		}
		b = append(b, code)
		if k < 0 {
			b = appendPacked(b, f.Name)
		}
		b = appendPacked(b, f.Value)
	}
	for _, k := range h.kept {
		b = appendPacked(append(b, packedKept), k)
	}
	return Packed{string(b)}
}

func appendPacked(b []byte, s string) []byte {
	return append(binary.AppendUvarint(b, uint64(len(s))), s...)
}

// Unpack makes h, which is emptied, the Header that was packed.
func (h *Header) Unpack(p Packed) {
	h.Reset()
	for b := p.b; b != ""; {
		code := b[0]
		b = b[1:]
		if code == packedKept {
			var k string
			k, b = cutPacked(b)
			h.kept = append(h.kept, k)
			continue
		}
		f := Field{NeverIndex: code&packedNever != 0}
		if code &^= packedNever; code == packedOther {
			f.Name, b = cutPacked(b)
		} else {
			f.Name = packedNames[code]
		}
		f.Value, b = cutPacked(b)
		h.fields = append(h.fields, f)
	}
}

func cutPacked(b string) (s, rest string) {
	n, k := binary.Uvarint([]byte(b[:min(len(b), binary.MaxVarintLen64)]))
	return b[k : k+int(n)], b[k+int(n):]
}
