package h2

import (
	"errors"

	"golang.org/x/net/http2/hpack"
)

// Errors of a header block; each is a connection error COMPRESSION_ERROR,
// because the peers' tables no longer agree.
var (
	errHpackTruncated = errors.New("hpack: truncated header block")
	errHpackInteger   = errors.New("hpack: integer overflow")
	errHpackIndex     = errors.New("hpack: index beyond the tables")
	errHpackUpdate    = errors.New("hpack: misplaced or too large table size update")
	errHpackHuffman   = errors.New("hpack: invalid Huffman code")
)

// decoder is the receiving half of HPACK for one connection. It copies strings
// into the header list's own arena or into slabs, and allocates nothing in the
// steady state. Not safe for concurrent use: the connection's reader owns it.
type decoder struct {
	tab dynTable
	// limit is the table size that was advertised.
	limit   uint32
	scratch huffmanBuffer
}

// huffmanBuffer collects decoded strings of one field.
type huffmanBuffer struct{ b []byte }

func (w *huffmanBuffer) Write(p []byte) (int, error) {
	w.b = append(w.b, p...)
	return len(p), nil
}

// decode reads a complete header block into b. All of it is read even if b has
// found the message malformed or too large, to keep the table in step.
func (d *decoder) decode(p []byte, b *head) error {
	first, updates := true, 0
	for len(p) > 0 {
		var err error
		switch c := p[0]; {
		case c&0x80 != 0:
			p, err = d.indexed(p, b)
		case c&0xc0 == 0x40:
			p, err = d.literal(p, 6, b)
		case c&0xe0 == 0x20:
			// At most two (RFC 7541 section 4.2): the smallest size since the
			// last block, and the final one.
			if updates++; !first || updates > 2 {
				return errHpackUpdate
			}
			p, err = d.sizeUpdate(p)
			if err != nil {
				return err
			}
			continue
		default:
			p, err = d.literal(p, 4, b)
		}
		if err != nil {
			return err
		}
		first = false
	}
	return nil
}

func (d *decoder) sizeUpdate(p []byte) ([]byte, error) {
	n, p, err := readInteger(p, 5)
	if err != nil {
		return nil, err
	}
	if n > uint64(d.limit) {
		return nil, errHpackUpdate
	}
	d.tab.setMax(uint32(n))
	return p, nil
}

func (d *decoder) lookup(i uint64) (*tableEntry, error) {
	switch {
	case i == 0:
		return nil, errHpackIndex
	case i <= staticLen:
		return &staticTable[i], nil
	case i-staticLen <= uint64(d.tab.n):
		return d.tab.at(uint32(i - staticLen - 1)), nil
	}
	return nil, errHpackIndex
}

func (d *decoder) indexed(p []byte, b *head) ([]byte, error) {
	i, p, err := readInteger(p, 7)
	if err != nil {
		return nil, err
	}
	e, err := d.lookup(i)
	if err != nil {
		return nil, err
	}
	b.add(e.name, e.value, e.kind, e.bad, false)
	return p, nil
}

// literal reads the three literal forms; bits is the prefix of the name index,
// 6 for the one that is added to the table.
func (d *decoder) literal(p []byte, bits uint8, b *head) ([]byte, error) {
	index, never := bits == 6, bits == 4 && p[0]&0x10 != 0
	i, p, err := readInteger(p, bits)
	if err != nil {
		return nil, err
	}
	d.scratch.b = d.scratch.b[:0]
	var e tableEntry
	var rawName []byte
	if i > 0 {
		src, err := d.lookup(i)
		if err != nil {
			return nil, err
		}
		e.name, e.kind = src.name, src.kind
		if src.bad != "" {
			e.bad = badName(src.name) // it may be the value that was bad
		}
	} else {
		if rawName, p, err = d.readString(p); err != nil {
			return nil, err
		}
		if k, ok := known[unsafeString(rawName)]; ok {
			e.name, e.kind, rawName = k.name, k.kind, nil
		} else {
			e.kind = classify(unsafeString(rawName))
			e.bad = badName(unsafeString(rawName))
		}
	}
	raw, p, err := d.readString(p)
	if err != nil {
		return nil, err
	}
	e.size = uint32(len(e.name)+len(rawName)+len(raw)) + entryOverhead
	value := trimSpace(raw)
	if e.bad == "" {
		e.bad = badValue(e.kind, unsafeString(value))
	}
	if !index {
		if b.fits(len(rawName) + len(value)) {
			if rawName != nil {
				e.name = b.h.Intern(rawName)
			}
			e.value = b.h.Intern(value)
		}
		b.add(e.name, e.value, e.kind, e.bad, never)
		return p, nil
	}
	if rawName != nil {
		e.name = d.tab.keep(rawName)
	}
	e.value = d.tab.keep(value)
	d.tab.add(e)
	b.add(e.name, e.value, e.kind, e.bad, false)
	return p, nil
}

// readString returns the next string, in p or in the scratch buffer.
func (d *decoder) readString(p []byte) (s, rest []byte, err error) {
	if len(p) == 0 {
		return nil, nil, errHpackTruncated
	}
	huffman := p[0]&0x80 != 0
	n, p, err := readInteger(p, 7)
	if err != nil {
		return nil, nil, err
	}
	if n > uint64(len(p)) {
		return nil, nil, errHpackTruncated
	}
	s, rest = p[:n:n], p[n:]
	if huffman {
		start := len(d.scratch.b)
		if _, err := hpack.HuffmanDecode(&d.scratch, s); err != nil {
			return nil, nil, errHpackHuffman
		}
		s = d.scratch.b[start:len(d.scratch.b):len(d.scratch.b)]
	}
	return s, rest, nil
}

// readInteger reads an integer with an n-bit prefix (RFC 7541 section 5.1).
// Values of 2^32 and more are refused.
func readInteger(p []byte, n uint8) (v uint64, rest []byte, err error) {
	if len(p) == 0 {
		return 0, nil, errHpackTruncated
	}
	mask := uint64(1)<<n - 1
	v, p = uint64(p[0])&mask, p[1:]
	if v < mask {
		return v, p, nil
	}
	for shift := 0; ; shift += 7 {
		if len(p) == 0 {
			return 0, nil, errHpackTruncated
		}
		if shift > 28 {
			return 0, nil, errHpackInteger
		}
		c := p[0]
		p = p[1:]
		v += uint64(c&0x7f) << shift
		if c&0x80 == 0 {
			break
		}
	}
	if v >= 1<<32 {
		return 0, nil, errHpackInteger
	}
	return v, p, nil
}
