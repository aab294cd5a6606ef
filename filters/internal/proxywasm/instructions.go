package proxywasm

import "fmt"

// expression copies instructions up to their end.
func (m *metering) expression(out []byte, r *reader) []byte {
	for depth := 0; ; {
		var op byte
		switch out, op = m.instruction(out, r); op {
		case 0x02, 0x03, 0x04, 0x06, 0x1f:
			depth++
		case 0x0b:
			if depth == 0 {
				return out
			}
			depth--
		}
	}
}

// instruction copies one instruction with its immediates, with functions by
// their new indexes, and returns its opcode.
// https://webassembly.github.io/spec/core/binary/instructions.html
func (m *metering) instruction(out []byte, r *reader) ([]byte, byte) {
	op := r.byte()
	out = append(out, op)
	switch {
	case op == 0x10, op == 0x12, op == 0xd2: // call, return_call, ref.func
		return appendUint(out, m.shift(r.uint())), op
	case op == 0x02, op == 0x03, op == 0x04: // block, loop, if
		return append(out, r.leb()...), op
	case op == 0x0c, op == 0x0d, op >= 0x20 && op <= 0x26: // br, br_if, variables, tables
		return appendUint(out, r.uint()), op
	case op == 0x0e: // br_table
		n := r.count()
		out = appendUint(out, n)
		for range n + 1 {
			out = appendUint(out, r.uint())
		}
		return out, op
	case op == 0x11, op == 0x13: // call_indirect, return_call_indirect
		return append(append(out, r.leb()...), r.leb()...), op
	case op == 0x1c: // select with types
		n := r.count()
		return append(appendUint(out, n), r.bytes(n)...), op
	case op >= 0x28 && op <= 0x3e: // memory
		return r.memarg(out), op
	case op == 0x3f, op == 0x40, op == 0xd0: // memory.size, memory.grow, ref.null
		return append(out, r.byte()), op
	case op == 0x41, op == 0x42: // i32.const, i64.const
		return append(out, r.leb()...), op
	case op == 0x43:
		return append(out, r.bytes(4)...), op
	case op == 0x44:
		return append(out, r.bytes(8)...), op
	case op == 0xfc:
		return r.miscellaneous(out), op
	case op == 0xfd:
		return r.vector(out), op
	case op <= 0x01, op == 0x05, op == 0x0b, op == 0x0f, op == 0x1a, op == 0x1b, op >= 0x45 && op <= 0xc4, op == 0xd1:
		return out, op
	}
	panic(malformed(fmt.Sprintf("instruction %#x", op)))
}

// memarg copies alignment and offset.
func (r *reader) memarg(out []byte) []byte {
	out = append(out, r.leb()...)
	return append(out, r.leb()...)
}

// miscellaneous copies what stands behind 0xfc: conversions, bulk memory, tables.
func (r *reader) miscellaneous(out []byte) []byte {
	op := r.uint()
	out = appendUint(out, op)
	immediates := 0
	switch {
	case op <= 7:
	case op == 8, op == 10, op == 12, op == 14: // memory.init, memory.copy, table.init, table.copy
		immediates = 2
	case op == 9, op == 11, op == 13, op >= 15 && op <= 17:
		immediates = 1
	default:
		panic(malformed(fmt.Sprintf("instruction 0xfc %d", op)))
	}
	for range immediates {
		out = append(out, r.leb()...)
	}
	return out
}

// vector copies what stands behind 0xfd.
func (r *reader) vector(out []byte) []byte {
	op := r.uint()
	out = appendUint(out, op)
	switch {
	case op <= 11, op == 92, op == 93: // loads and stores
		return r.memarg(out)
	case op == 12, op == 13: // v128.const, i8x16.shuffle
		return append(out, r.bytes(16)...)
	case op >= 21 && op <= 34: // lanes
		return append(out, r.byte())
	case op >= 84 && op <= 91: // loads and stores of lanes
		return append(r.memarg(out), r.byte())
	case op > 255:
		panic(malformed(fmt.Sprintf("instruction 0xfd %d", op)))
	}
	return out
}
