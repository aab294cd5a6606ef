package h2

import (
	"hash/maphash"
	"math/bits"

	"golang.org/x/net/http2/hpack"
)

// encoder is the sending half of HPACK for one connection, guarded by the
// connection's lock. What repeats is put into the dynamic table, Huffman-coded
// once; what is sent once goes out as a plain literal. Lookups are direct
// mapped: a collision costs bytes, never correctness, because the entry that is
// found is compared.
type encoder struct {
	tab dynTable
	// index is nil before the first field.
	index *encoderIndex
	// minUpdate is the smallest table size set since the last block; a pending
	// update is announced at the start of the next one.
	update    bool
	minUpdate uint32
}

// encoderIndex maps a hash to the sequence number (1 + dynTable.added at
// insertion) of the latest entry with that field or name.
type encoderIndex struct {
	fields [128]uint32
	names  [64]nameSlot
}

type nameSlot struct {
	seq uint32
	// misses counts values of this name that were not in the table since one
	// was: a name whose values never repeat is soon no longer indexed.
	misses uint8
}

const (
	missLimit = 4
	// maxIndexed bounds what a single field may take of the table.
	maxIndexed = 1 << 10
)

var hashSeed = maphash.MakeSeed()

// staticByName holds the first static index for each name, open addressing.
var staticByName = func() (t [256]uint8) {
	for i := 1; i < len(staticTable); i++ {
		if i > 1 && staticTable[i].name == staticTable[i-1].name {
			continue
		}
		h := uint8(maphash.String(hashSeed, staticTable[i].name))
		for t[h] != 0 {
			h++
		}
		t[h] = uint8(i)
	}
	return t
}()

func staticIndex(nameHash uint64, name string) uint8 {
	for h := uint8(nameHash); staticByName[h] != 0; h++ {
		if i := staticByName[h]; staticTable[i].name == name {
			return i
		}
	}
	return 0
}

// setPeerLimit applies the peer's SETTINGS_HEADER_TABLE_SIZE. The encoder never
// uses more than the default size.
func (e *encoder) setPeerLimit(n uint32) {
	n = min(n, defaultTableSize)
	if n == e.tab.max && !e.update {
		return
	}
	if !e.update || n < e.minUpdate {
		e.minUpdate = n
	}
	e.update = true
	e.tab.setMax(n)
}

// restart empties the tables of both sides, after a block was given up whose
// fields the peer will not see.
func (e *encoder) restart() {
	n := e.tab.max
	e.tab.setMax(0)
	e.tab.setMax(n)
	e.update, e.minUpdate = true, 0
}

// begin starts a header block: it announces a changed table size.
func (e *encoder) begin(dst []byte) []byte {
	if !e.update {
		return dst
	}
	e.update = false
	if e.minUpdate < e.tab.max {
		dst = appendInteger(dst, 0x20, 5, uint64(e.minUpdate))
	}
	return appendInteger(dst, 0x20, 5, uint64(e.tab.max))
}

// field appends one field. ok is false if name or value may not be sent.
//
//nolint:gocognit // the cases of RFC 7541 section 6
func (e *encoder) field(dst []byte, name, value string, never bool) (_ []byte, ok bool) {
	nh := maphash.String(hashSeed, name)
	si := staticIndex(nh, name)
	if si != 0 && !never {
		for i := int(si); i < len(staticTable) && staticTable[i].name == name; i++ {
			if staticTable[i].value == value && value != "" {
				return append(dst, 0x80|byte(i)), true
			}
		}
	}
	if e.index == nil {
		e.index = new(encoderIndex)
	}
	slot := &e.index.names[nh>>8&63]
	fh := nh ^ bits.RotateLeft64(maphash.String(hashSeed, value), 17)
	if !never {
		if i, ok := e.find(e.index.fields[fh&127], name); ok && e.tab.at(i).value == value {
			slot.misses = 0
			return appendInteger(dst, 0x80, 7, uint64(i)+staticLen+1), true
		}
	}
	if !validName(name) || badValue(classify(name), value) != "" {
		return dst, false
	}
	idx := uint64(si)
	if idx == 0 {
		if i, ok := e.find(slot.seq, name); ok {
			idx = uint64(i) + staticLen + 1
		}
	}
	mode := indexing(name, value, never)
	if mode == indexAdd {
		if slot.misses < 255 {
			slot.misses++
		}
		// A name that left the table is put back now and then.
		if slot.misses > missLimit && (idx != 0 || slot.misses&31 != 0) {
			mode = indexNot
		}
	}
	if mode != indexAdd {
		first, huffman := byte(0), false
		if mode == indexNever {
			first = 0x10
		}
		dst = appendInteger(dst, first, 4, idx)
		if idx == 0 {
			dst = appendString(dst, name, huffman)
		}
		return appendString(dst, value, huffman), true
	}
	dst = appendInteger(dst, 0x40, 6, idx)
	if idx == 0 {
		dst = appendString(dst, name, true)
	}
	dst = appendString(dst, value, true)
	ent := tableEntry{value: e.tab.keep(stringBytes(value)), size: uint32(len(name)+len(value)) + entryOverhead}
	if si != 0 {
		ent.name = staticTable[si].name
	} else {
		ent.name = e.tab.keep(stringBytes(name))
	}
	if e.tab.add(ent) {
		e.index.fields[fh&127] = e.tab.added
		slot.seq = e.tab.added
	}
	return dst, true
}

// find returns the position of the entry with sequence number seq if it is
// still in the table and is called name.
func (e *encoder) find(seq uint32, name string) (uint32, bool) {
	i := e.tab.added - seq
	if seq == 0 || i >= e.tab.n || e.tab.at(i).name != name {
		return 0, false
	}
	return i, true
}

type indexMode uint8

const (
	indexAdd indexMode = iota
	indexNot
	indexNever
)

// indexing decides how a field is represented. Credentials are never put into
// a table that requests of several clients share (RFC 7541 section 7.1).
func indexing(name, value string, never bool) indexMode {
	if never {
		return indexNever
	}
	switch len(name) {
	case 6:
		if name == "cookie" {
			return indexNot
		}
	case 10:
		if name == "set-cookie" {
			return indexNot
		}
	case 13:
		if name == "authorization" {
			return indexNever
		}
	case 14:
		if name == "content-length" {
			return indexNot
		}
	case 19:
		if name == "proxy-authorization" {
			return indexNever
		}
	}
	if len(name)+len(value) > maxIndexed {
		return indexNot
	}
	return indexAdd
}

func appendInteger(dst []byte, first byte, n uint8, v uint64) []byte {
	mask := uint64(1)<<n - 1
	if v < mask {
		return append(dst, first|byte(v))
	}
	dst = append(dst, first|byte(mask))
	for v -= mask; v >= 0x80; v >>= 7 {
		dst = append(dst, byte(v)|0x80)
	}
	return append(dst, byte(v))
}

func appendString(dst []byte, s string, huffman bool) []byte {
	if huffman {
		if n := hpack.HuffmanEncodeLength(s); n < uint64(len(s)) {
			return hpack.AppendHuffmanString(appendInteger(dst, 0x80, 7, n), s)
		}
	}
	return append(appendInteger(dst, 0, 7, uint64(len(s))), s...)
}
