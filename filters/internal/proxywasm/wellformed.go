package proxywasm

// maxTable bounds the entries of a table, which are of 8 bytes, also when the
// guest makes it grow.
const maxTable = 1 << 20

// maxLocals bounds the local variables of a function, as browsers do.
const maxLocals = 50_000

// check goes through the parts that are taken over as they are: the runtime makes
// room for as many things, and as long ones, as a module says that it has.
func (m *metering) check() {
	for id, entry := range map[byte]func(r *reader){
		secType: func(r *reader) {
			if r.byte() != 0x60 {
				panic(malformed("a type that is no function's"))
			}
			r.bytes(r.uint())
			r.bytes(r.uint())
		},
		secFunction: func(r *reader) { r.uint() },
		secMemory:   func(r *reader) { r.limits() },
		secTag: func(r *reader) {
			r.byte()
			r.uint()
		},
		secData: func(r *reader) {
			switch r.uint() {
			case 0:
				m.expression(nil, r)
			case 1:
			case 2:
				r.uint()
				m.expression(nil, r)
			default:
				panic(malformed("a data segment of an unknown kind"))
			}
			r.bytes(r.uint())
		},
	} {
		b, ok := m.sections[id]
		if !ok {
			continue
		}
		r := &reader{b: b}
		for range r.count() {
			entry(r)
		}
		if len(r.b) > 0 {
			panic(malformed("a section has more than it says"))
		}
	}
}

// tables rewrites the tables with a bound.
func tables(b []byte) []byte {
	r := &reader{b: b}
	n := r.count()
	out := appendUint(nil, n)
	for range n {
		out = append(out, r.byte())
		least, most, bounded := r.limits()
		if least > maxTable {
			panic(malformed("a table is too large"))
		}
		if !bounded || most > maxTable {
			most = maxTable
		}
		out = appendUint(appendUint(append(out, 1), least), most)
	}
	if len(r.b) > 0 {
		panic(malformed("a section has more than it says"))
	}
	return out
}
