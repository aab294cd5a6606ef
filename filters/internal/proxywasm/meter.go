package proxywasm

import (
	"encoding/binary"
	"errors"
	"fmt"
)

// A guest can't be interrupted from outside, and while it computes the garbage
// collector waits for it. So the module is rewritten before it is compiled: at
// the head of every function and loop it counts down a global variable, and at
// zero calls the host, which looks at the clock and may end the guest. That is a
// load, a subtraction and a store; the runtime's own check (an exit to the host
// in every iteration) would make tight loops many times slower.
const (
	meterModule, meterName = "fairlead", "meter"
	// meterInterval is how many heads of functions and loops lie between two calls.
	meterInterval = 2000
)

// Identifiers of sections.
const (
	secCustom = iota
	secType
	secImport
	secFunction
	secTable
	secMemory
	secGlobal
	secExport
	secStart
	secElement
	secCode
	secData
	secDataCount
	secTag
)

var errModule = errors.New("not a well-formed WebAssembly module")

// meter rewrites a module. Its custom sections are dropped, but for the names of
// functions.
func meter(module []byte) (out []byte, err error) {
	defer func() {
		switch p := recover().(type) {
		case nil:
		case malformed:
			out, err = nil, fmt.Errorf("%w: %s", errModule, string(p))
		default:
			panic(p)
		}
	}()
	if len(module) < 8 || string(module[:8]) != "\x00asm\x01\x00\x00\x00" {
		return nil, fmt.Errorf("%w: no header", errModule)
	}
	m := metering{sections: map[byte][]byte{}}
	m.read(module[8:])
	m.check()
	return m.write(), nil
}

// malformed is what parsing panics with, inside meter.
type malformed string

// metering is a module that is being rewritten.
type metering struct {
	sections map[byte][]byte
	names    []byte // the custom section "name"
	imported uint64 // functions
	fuel     uint64 // index of the global
	helper   uint64 // index of the function that calls the host, as it will be
}

func (m *metering) read(b []byte) {
	r := &reader{b: b}
	for len(r.b) > 0 {
		id := r.byte()
		body := r.bytes(r.uint())
		if id == secCustom {
			c := &reader{b: body}
			if string(c.bytes(c.uint())) == "name" {
				m.names = c.b
			}
			continue
		}
		if _, twice := m.sections[id]; twice || id > secTag {
			panic(malformed(fmt.Sprintf("section %d is there twice, or unknown", id)))
		}
		m.sections[id] = body
	}
}

// order is that of sections in a module.
var order = []byte{
	secType, secImport, secFunction, secTable, secMemory, secTag, secGlobal, secExport, secStart, secElement, secDataCount, secCode, secData,
}

func (m *metering) write() []byte {
	types := m.count(secType)
	globals := m.imports()
	functions := m.count(secFunction)
	m.fuel = globals + m.count(secGlobal)
	m.helper = m.imported + 1 + functions
	rewritten := map[byte][]byte{
		secType:     m.extend(secType, []byte{0x60, 0, 0}),
		secImport:   m.extend(secImport, appendUint(append(appendName(appendName(nil, meterModule), meterName), 0), types)),
		secFunction: m.extend(secFunction, appendUint(nil, types)),
		secGlobal:   m.extend(secGlobal, append(appendInt([]byte{0x7f, 1, 0x41}, meterInterval), 0x0b)),
		secCode:     m.code(),
	}
	if e, ok := m.sections[secExport]; ok {
		rewritten[secExport] = m.exports(e)
	}
	if t, ok := m.sections[secTable]; ok {
		rewritten[secTable] = tables(t)
	}
	if s, ok := m.sections[secStart]; ok {
		rewritten[secStart] = appendUint(nil, m.shift((&reader{b: s}).uint()))
	}
	if e, ok := m.sections[secElement]; ok {
		rewritten[secElement] = m.elements(e)
	}
	if g, ok := m.sections[secGlobal]; ok {
		rewritten[secGlobal] = m.globals(g)
	}
	out := []byte("\x00asm\x01\x00\x00\x00")
	for _, id := range order {
		body, ok := rewritten[id]
		if !ok {
			body, ok = m.sections[id]
		}
		if ok {
			out = appendSection(out, id, body)
		}
	}
	if names := m.functionNames(); names != nil {
		out = appendSection(out, secCustom, append(appendName(nil, "name"), appendSection(nil, 1, names)...))
	}
	return out
}

// count is the number of entries of a section.
func (m *metering) count(id byte) uint64 {
	b, ok := m.sections[id]
	if !ok {
		return 0
	}
	return (&reader{b: b}).count()
}

// extend appends an entry to a section.
func (m *metering) extend(id byte, entry []byte) []byte {
	b, ok := m.sections[id]
	if !ok {
		return append([]byte{1}, entry...)
	}
	r := &reader{b: b}
	out := appendUint(nil, r.uint()+1)
	return append(append(out, r.b...), entry...)
}

// imports counts imported functions, and returns how many globals are imported.
func (m *metering) imports() (globals uint64) {
	b, ok := m.sections[secImport]
	if !ok {
		return 0
	}
	r := &reader{b: b}
	for range r.count() {
		r.bytes(r.uint())
		r.bytes(r.uint())
		switch kind := r.byte(); kind {
		case 0:
			r.uint()
			m.imported++
		case 1:
			r.byte()
			r.limits()
		case 2:
			r.limits()
		case 3:
			r.byte()
			r.byte()
			globals++
		case 4:
			r.byte()
			r.uint()
		default:
			panic(malformed(fmt.Sprintf("import of kind %d", kind)))
		}
	}
	return globals
}

// shift is the new index of a function: the imported one stands before those
// that the module defines.
func (m *metering) shift(i uint64) uint64 {
	if i >= m.imported {
		return i + 1
	}
	return i
}

func (m *metering) exports(b []byte) []byte {
	r := &reader{b: b}
	n := r.count()
	out := appendUint(nil, n)
	for range n {
		out = appendName(out, string(r.bytes(r.uint())))
		kind := r.byte()
		i := r.uint()
		if kind == 0 {
			i = m.shift(i)
		}
		out = appendUint(append(out, kind), i)
	}
	return out
}

// globals rewrites the initial values, which may name functions.
func (m *metering) globals(b []byte) []byte {
	r := &reader{b: b}
	n := r.count()
	out := appendUint(nil, n+1)
	for range n {
		out = append(out, r.byte(), r.byte())
		out = m.expression(out, r)
	}
	return append(appendInt(append(out, 0x7f, 1, 0x41), meterInterval), 0x0b)
}

func (m *metering) elements(b []byte) []byte {
	r := &reader{b: b}
	n := r.count()
	out := appendUint(nil, n)
	for range n {
		flags := r.uint()
		if flags > 7 {
			panic(malformed("an element segment of an unknown kind"))
		}
		out = appendUint(out, flags)
		if flags&1 == 0 {
			if flags&2 != 0 {
				out = appendUint(out, r.uint())
			}
			out = m.expression(out, r)
		}
		if flags&3 != 0 {
			out = append(out, r.byte()) // kind, or type
		}
		items := r.count()
		out = appendUint(out, items)
		for range items {
			if flags&4 != 0 {
				out = m.expression(out, r)
			} else {
				out = appendUint(out, m.shift(r.uint()))
			}
		}
	}
	return out
}

// code rewrites the functions and appends the one that calls the host.
func (m *metering) code() []byte {
	b, ok := m.sections[secCode]
	if !ok {
		b = []byte{0}
	}
	r := &reader{b: b}
	n := r.count()
	out := make([]byte, 0, len(b)+len(b)/4)
	out = appendUint(out, n+1)
	var body []byte
	for range n {
		f := &reader{b: r.bytes(r.uint())}
		body = body[:0]
		groups := f.count()
		body = appendUint(body, groups)
		locals := uint64(0)
		for range groups {
			k := f.uint()
			if locals += k; locals > maxLocals {
				panic(malformed("a function has too many locals"))
			}
			body = append(appendUint(body, k), f.byte())
		}
		body = m.countDown(body)
		for len(f.b) > 0 {
			var op byte
			body, op = m.instruction(body, f)
			if op == 0x03 {
				body = m.countDown(body)
			}
		}
		out = append(appendUint(out, uint64(len(body))), body...)
	}
	helper := appendUint([]byte{0, 0x10}, m.imported)
	helper = appendUint(append(appendInt(append(helper, 0x41), meterInterval), 0x24), m.fuel)
	helper = append(helper, 0x0b)
	return append(appendUint(out, uint64(len(helper))), helper...)
}

// countDown appends
//
//	global.get fuel; i32.eqz; if; call helper; end
//	global.get fuel; i32.const 1; i32.sub; global.set fuel
func (m *metering) countDown(b []byte) []byte {
	b = appendUint(append(b, 0x23), m.fuel)
	b = append(appendUint(append(b, 0x45, 0x04, 0x40, 0x10), m.helper), 0x0b)
	b = appendUint(append(b, 0x23), m.fuel)
	return appendUint(append(b, 0x41, 1, 0x6b, 0x24), m.fuel)
}

// functionNames is the content of the names' function part.
func (m *metering) functionNames() []byte {
	r := &reader{b: m.names}
	for len(r.b) > 0 {
		id := r.byte()
		part := &reader{b: r.bytes(r.uint())}
		if id != 1 {
			continue
		}
		n := part.count()
		out := appendUint(nil, n)
		for range n {
			out = appendUint(out, m.shift(part.uint()))
			out = appendName(out, string(part.bytes(part.uint())))
		}
		return out
	}
	return nil
}

// reader takes a module apart.
type reader struct{ b []byte }

func (r *reader) byte() byte {
	if len(r.b) == 0 {
		panic(malformed("it ends early"))
	}
	c := r.b[0]
	r.b = r.b[1:]
	return c
}

func (r *reader) bytes(n uint64) []byte {
	if n > uint64(len(r.b)) {
		panic(malformed("it ends early"))
	}
	p := r.b[:n:n]
	r.b = r.b[n:]
	return p
}

// uint reads an index or a size.
func (r *reader) uint() uint64 {
	v, n := binary.Uvarint(r.b)
	if n <= 0 || n > 5 || v > 1<<32-1 {
		panic(malformed("a number is out of bounds"))
	}
	r.b = r.b[n:]
	return v
}

// count reads the number of things that follow, each of a byte at least: who
// makes room for them must not be lied to.
func (r *reader) count() uint64 {
	n := r.uint()
	if n > uint64(len(r.b)) {
		panic(malformed("it ends early"))
	}
	return n
}

// leb returns the bytes of a number of up to 64 bits.
func (r *reader) leb() []byte {
	for i, c := range r.b {
		if i > 9 {
			break
		}
		if c < 0x80 {
			return r.bytes(uint64(i + 1))
		}
	}
	panic(malformed("a number is out of bounds"))
}

func (r *reader) limits() (least, most uint64, bounded bool) {
	bounded = r.byte()&1 != 0
	least = r.uint()
	if bounded {
		most = r.uint()
	}
	return least, most, bounded
}

func appendUint(b []byte, v uint64) []byte { return binary.AppendUvarint(b, v) }

// appendInt appends a signed number.
func appendInt(b []byte, v int64) []byte {
	for {
		c := byte(v & 0x7f)
		v >>= 7
		if v == 0 && c&0x40 == 0 || v == -1 && c&0x40 != 0 {
			return append(b, c)
		}
		b = append(b, c|0x80)
	}
}

func appendName(b []byte, s string) []byte { return append(appendUint(b, uint64(len(s))), s...) }

func appendSection(b []byte, id byte, body []byte) []byte {
	return append(appendUint(append(b, id), uint64(len(body))), body...)
}
