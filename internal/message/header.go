// Package message is how an HTTP message looks inside Fairlead: an ordered
// header list with lower-case names and pseudo-headers, and a body that is
// pulled chunk by chunk. Codecs, filters, routing and telemetry all work on
// these types; no net/http type crosses the data path.
package message

import (
	"strings"
	"unsafe"
)

// Names of the HTTP/2 pseudo-headers (RFC 9113 section 8.3). HTTP/1 codecs
// produce and consume the same names, so nothing above a codec knows which
// version carried a message.
const (
	Method    = ":method"
	Scheme    = ":scheme"
	Authority = ":authority"
	Path      = ":path"
	Status    = ":status"
	// Protocol is the extended CONNECT pseudo-header of RFC 8441. An HTTP/1
	// upgrade request is represented as it is (GET with "upgrade"), not as
	// extended CONNECT.
	Protocol = ":protocol"
)

// Field is one header line. Name is lower case. Both strings may point into
// memory that the Header reuses: they are valid until the Header is reset.
type Field struct {
	Name, Value string
	// NeverIndex marks a value that HPACK must not index (RFC 7541 7.1.3).
	NeverIndex bool
}

// Header is an ordered list of header fields, pseudo-headers first. The zero
// Header is empty and ready. It is not safe for concurrent use.
//
// Values added with AddBytes are copied into an arena owned by the Header;
// strings read from a Header must be cloned (strings.Clone) if kept longer
// than the stream.
type Header struct {
	fields []Field
	arena  []byte
	kept   []string
}

// Reset empties h and keeps its memory for reuse. Every string that was read
// from h is invalid afterwards.
func (h *Header) Reset() {
	clear(h.fields)
	h.fields = h.fields[:0]
	clear(h.kept)
	h.kept = h.kept[:0]
	if cap(h.arena) > maxKeptArena {
		h.arena = nil
	}
	h.arena = h.arena[:0]
}

const maxKeptArena = 16 << 10

// Len returns the number of fields, pseudo-headers included.
func (h *Header) Len() int { return len(h.fields) }

// At returns the i-th field, 0 <= i < Len.
func (h *Header) At(i int) Field { return h.fields[i] }

// SetAt replaces the value of the i-th field.
func (h *Header) SetAt(i int, value string) { h.fields[i].Value = value }

// Bytes returns the size of h as RFC 9113 section 6.5.2 and Envoy's
// max_request_headers_kb count it: names and values plus 32 octets a field.
func (h *Header) Bytes() int {
	n := 0
	for i := range h.fields {
		n += len(h.fields[i].Name) + len(h.fields[i].Value) + 32
	}
	return n
}

// Get returns the first value of name, which must be lower case, and "" if
// there is none.
func (h *Header) Get(name string) string {
	for i := range h.fields {
		if h.fields[i].Name == name {
			return h.fields[i].Value
		}
	}
	return ""
}

// Lookup returns the first value of name and whether name is present.
func (h *Header) Lookup(name string) (string, bool) {
	for i := range h.fields {
		if h.fields[i].Name == name {
			return h.fields[i].Value, true
		}
	}
	return "", false
}

// Has reports whether name is present.
func (h *Header) Has(name string) bool { _, ok := h.Lookup(name); return ok }

// Count returns how many fields carry name.
func (h *Header) Count(name string) int {
	n := 0
	for i := range h.fields {
		if h.fields[i].Name == name {
			n++
		}
	}
	return n
}

// Joined returns all values of name joined by "," in order, as Envoy's header
// matchers see a repeated header, and whether name is present. It allocates
// only if name is repeated.
func (h *Header) Joined(name string) (string, bool) {
	first, ok := h.Lookup(name)
	if !ok || h.Count(name) == 1 {
		return first, ok
	}
	var b strings.Builder
	sep := ""
	for i := range h.fields {
		if h.fields[i].Name == name {
			b.WriteString(sep)
			b.WriteString(h.fields[i].Value)
			sep = ","
		}
	}
	return b.String(), true
}

// Add appends a field; name must be lower case. The strings are kept as they
// are: the caller guarantees that they outlive h's use. Pseudo-headers must be
// added before ordinary ones; use Set to be safe.
func (h *Header) Add(name, value string) {
	h.fields = append(h.fields, Field{Name: name, Value: value})
}

// AddField appends f as it is, like Add.
func (h *Header) AddField(f Field) { h.fields = append(h.fields, f) }

// AddBytes appends a field, copying name and value into h's arena. The name is
// lower-cased in the copy.
func (h *Header) AddBytes(name, value []byte) {
	n := h.intern(name)
	for i := range n {
		if c := n[i]; 'A' <= c && c <= 'Z' {
			n[i] = c + 'a' - 'A'
		}
	}
	v := h.intern(value)
	h.fields = append(h.fields, Field{Name: unsafe.String(unsafe.SliceData(n), len(n)), Value: unsafe.String(unsafe.SliceData(v), len(v))})
}

// Intern copies b into h's arena and returns it as a string, valid until h is
// reset. Use it to build values without an allocation of their own.
func (h *Header) Intern(b []byte) string {
	v := h.intern(b)
	return unsafe.String(unsafe.SliceData(v), len(v))
}

func (h *Header) intern(b []byte) []byte {
	n := len(h.arena)
	if n+len(b) > cap(h.arena) {
		// Older strings keep pointing into the old array, which stays alive
		// through them.
		h.arena = make([]byte, 0, max(2*cap(h.arena), n+len(b), 512))
		n = 0
	}
	h.arena = append(h.arena, b...)
	return h.arena[n:len(h.arena):len(h.arena)]
}

// Set replaces the first field called name and removes the others; if there is
// none it appends, a pseudo-header before the ordinary headers.
func (h *Header) Set(name, value string) {
	for i := range h.fields {
		if h.fields[i].Name != name {
			continue
		}
		h.fields[i].Value, h.fields[i].NeverIndex = value, false
		h.deleteFrom(i+1, name)
		return
	}
	if !strings.HasPrefix(name, ":") {
		h.Add(name, value)
		return
	}
	i := 0
	for i < len(h.fields) && strings.HasPrefix(h.fields[i].Name, ":") {
		i++
	}
	h.fields = append(h.fields, Field{})
	copy(h.fields[i+1:], h.fields[i:])
	h.fields[i] = Field{Name: name, Value: value}
}

// Del removes every field called name and reports whether there was one.
func (h *Header) Del(name string) bool { return h.deleteFrom(0, name) }

// DelFunc removes every field for which f returns true.
func (h *Header) DelFunc(f func(Field) bool) {
	j := 0
	for i := range h.fields {
		if !f(h.fields[i]) {
			h.fields[j] = h.fields[i]
			j++
		}
	}
	clear(h.fields[j:])
	h.fields = h.fields[:j]
}

// DelAliases removes the spellings of name that CGI and its heirs take for the
// same, with "_" in place of "-", but not name itself: who sets a header for an
// origin must not leave a client's value beside it.
func (h *Header) DelAliases(name string) {
	for i := range h.fields {
		if n := h.fields[i].Name; len(n) == len(name) && n != name && SameForCGI(n, name) {
			h.DelFunc(func(f Field) bool { return f.Name != name && SameForCGI(f.Name, name) })
			return
		}
	}
}

// SameForCGI reports whether two names differ in "-" and "_" only: CGI's
// variables are the same for both (RFC 3875 §4.1.18).
func SameForCGI(a, b string) bool {
	if len(a) != len(b) {
		return false
	}
	for i := range len(a) {
		if a[i] != b[i] && (a[i] != '_' || b[i] != '-') && (a[i] != '-' || b[i] != '_') {
			return false
		}
	}
	return true
}

func (h *Header) deleteFrom(from int, name string) bool {
	j := from
	for i := from; i < len(h.fields); i++ {
		if h.fields[i].Name != name {
			h.fields[j] = h.fields[i]
			j++
		}
	}
	if j == len(h.fields) {
		return false
	}
	clear(h.fields[j:])
	h.fields = h.fields[:j]
	return true
}

// CopyFrom makes h a deep copy of src, independent of src's memory.
func (h *Header) CopyFrom(src *Header) {
	h.Reset()
	for i := range src.fields {
		f := &src.fields[i]
		h.fields = append(h.fields, Field{Name: h.Intern(stringBytes(f.Name)), Value: h.Intern(stringBytes(f.Value)), NeverIndex: f.NeverIndex})
	}
	for _, k := range src.kept {
		h.kept = append(h.kept, h.Intern(stringBytes(k)))
	}
}

// Compact moves h to memory of just its size. Strings that were read from h stay
// valid: they keep the memory that they are in.
func (h *Header) Compact() {
	n := 0
	for i := range h.fields {
		n += len(h.fields[i].Value)
		if !isPseudo(h.fields[i].Name) {
			n += len(h.fields[i].Name)
		}
	}
	for _, k := range h.kept {
		n += len(k)
	}
	c := Header{fields: make([]Field, 0, len(h.fields)), arena: make([]byte, 0, n)}
	for _, f := range h.fields {
		if !isPseudo(f.Name) {
			f.Name = c.Intern(stringBytes(f.Name))
		}
		f.Value = c.Intern(stringBytes(f.Value))
		c.fields = append(c.fields, f)
	}
	for _, k := range h.kept {
		c.kept = append(c.kept, c.Intern(stringBytes(k)))
	}
	*h = c
}

// isPseudo reports whether name is a pseudo-header's, which codecs take from the
// constants above.
func isPseudo(name string) bool { return name != "" && name[0] == ':' }

// KeepName notes how the sender wrote a name, copying it. Of several ways the
// first counts. The list of fields does not change.
func (h *Header) KeepName(name []byte) {
	h.kept = append(h.kept, h.Intern(name))
}

// KeptName returns name as its sender wrote it, and whether that was kept. name
// must be lower case.
func (h *Header) KeptName(name string) (string, bool) {
	for _, k := range h.kept {
		if len(k) == len(name) && strings.EqualFold(k, name) {
			return k, true
		}
	}
	return name, false
}

// KeepsNames reports whether any name was kept.
func (h *Header) KeepsNames() bool { return len(h.kept) > 0 }

func stringBytes(s string) []byte { return unsafe.Slice(unsafe.StringData(s), len(s)) }
