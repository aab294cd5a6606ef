package websocket

import (
	"bytes"
	"compress/flate"
	"encoding/binary"
	"fmt"
	"strings"
)

// Opcodes and bits of RFC 6455 section 5.2.
const (
	opContinuation = 0x0
	opText         = 0x1
	opBinary       = 0x2
	opClose        = 0x8
	opPing         = 0x9
	opPong         = 0xa

	fin  = 0x80
	rsv1 = 0x40
)

// frame appends one frame; first is the first byte, all bits and the opcode. masked
// is what clients must do and servers must not.
func frame(b []byte, first byte, masked bool, payload []byte) []byte {
	m := byte(0)
	if masked {
		m = 0x80
	}
	b = append(b, first)
	switch n := len(payload); {
	case n < 126:
		b = append(b, m|byte(n))
	case n < 1<<16:
		b = binary.BigEndian.AppendUint16(append(b, m|126), uint16(n))
	default:
		b = binary.BigEndian.AppendUint64(append(b, m|127), uint64(n))
	}
	if !masked {
		return append(b, payload...)
	}
	key := [4]byte{0x37, 0xfa, 0x21, 0x3d}
	b = append(b, key[:]...)
	for i, x := range payload {
		b = append(b, x^key[i%4])
	}
	return b
}

// exchange is what both ends say, frames as they are.
type exchange struct {
	name string
	// make renders what one end says; masked says that it is the client.
	make func(masked bool) []byte
	// chop is how many bytes are written at once, 0 for all.
	chop int
	// extensions are negotiated.
	extensions string
}

// step is one frame of a sequence.
type step struct {
	first   byte
	payload string
}

func seq(steps ...step) func(bool) []byte {
	return func(masked bool) (b []byte) {
		for _, s := range steps {
			b = frame(b, s.first, masked, []byte(s.payload))
		}
		return b
	}
}

// exchanges are the sections of Autobahn's fuzzing server, as RFC 6455 has them: 1
// framing, 2 pings, 3 reserved bits, 4 opcodes, 5 fragments, 6 UTF-8, 7 closing, 9
// limits, 10 fragments that are chosen by who writes, 12 and 13 compression.
func exchanges() (out []exchange) {
	add := func(name string, f func(bool) []byte, chop ...int) {
		e := exchange{name: name, make: f}
		if len(chop) > 0 {
			e.chop = chop[0]
		}
		out = append(out, e)
	}
	text := func(n int) string { return strings.Repeat("*", n) }
	for _, op := range []byte{opText, opBinary} {
		for _, n := range []int{0, 1, 125, 126, 127, 128, 65535, 65536} {
			add(fmt.Sprintf("1: opcode %d, %d bytes", op, n), seq(step{fin | op, text(n)}))
		}
		add(fmt.Sprintf("1: opcode %d, 65,536 bytes in pieces of 997", op), seq(step{fin | op, text(65536)}), 997)
	}
	add("2: ping without payload", seq(step{fin | opPing, ""}))
	add("2: ping of 125 bytes", seq(step{fin | opPing, text(125)}))
	add("2: ping of 126 bytes, which is too long", seq(step{fin | opPing, text(126)}))
	add("2: ping with bytes of all kinds", seq(step{fin | opPing, "\x00\xff\xfe\xfd\xfc\xfb\x00\xff"}))
	add("2: ping byte by byte", seq(step{fin | opPing, text(125)}), 1)
	add("2: a pong that nobody asked for", seq(step{fin | opPong, "pong"}))
	add("2: ten pings", func(m bool) (b []byte) {
		for i := range 10 {
			b = frame(b, fin|opPing, m, fmt.Appendf(nil, "payload-%d", i))
		}
		return b
	})
	for bits := byte(1); bits < 8; bits++ {
		add(fmt.Sprintf("3: reserved bits %03b", bits), seq(step{fin | opText, "a"}, step{fin | bits<<4 | opText, "b"}, step{fin | opPing, ""}))
	}
	for _, op := range []byte{3, 4, 5, 6, 7, 11, 12, 13, 14, 15} {
		add(fmt.Sprintf("4: opcode %d, which is reserved", op), seq(step{fin | opText, "a"}, step{fin | op, "b"}, step{fin | opPing, ""}))
	}
	add("5: a ping in two fragments", seq(step{opPing, "frag"}, step{fin | opContinuation, "ment"}))
	add("5: two fragments", seq(step{opText, "frag"}, step{fin | opContinuation, "ment"}))
	add("5: two fragments, byte by byte", seq(step{opText, "frag"}, step{fin | opContinuation, "ment"}), 1)
	add("5: a ping between fragments", seq(step{opText, "frag"}, step{fin | opPing, "ping"}, step{fin | opContinuation, "ment"}))
	add("5: a pong and a close between fragments", seq(step{opText, "frag"}, step{fin | opPong, ""}, step{fin | opClose, "\x03\xe8"}))
	add("5: a continuation of nothing", seq(step{fin | opContinuation, "non"}, step{fin | opText, "hello"}))
	add("5: a continuation of nothing that goes on", seq(step{opContinuation, "non"}, step{fin | opText, "hello"}))
	add("5: a message within a message", seq(step{opText, "frag"}, step{fin | opText, "hello"}, step{fin | opContinuation, "ment"}))
	add("5: a hundred empty fragments", func(m bool) []byte {
		b := frame(nil, opBinary, m, nil)
		for range 100 {
			b = frame(b, opContinuation, m, nil)
		}
		return frame(b, fin|opContinuation, m, []byte("x"))
	})
	add("5: fragments and pings by turns", func(m bool) []byte {
		b := frame(nil, opText, m, []byte("a"))
		for range 50 {
			b = frame(frame(b, fin|opPing, m, []byte("p")), opContinuation, m, []byte("b"))
		}
		return frame(b, fin|opContinuation, m, []byte("c"))
	})
	for i, s := range []string{
		"Hello-µ@ßöäüàá-UTF-8!!", "κόσμε", "\xce", "\xce\xba\xe1", "\x80", "\xbf", "\xc0\x80", "\xe0\x80\x80", "\xf0\x80\x80\x80", "\xed\xa0\x80", "\xed\xbf\xbf", "\xf4\x90\x80\x80",
		"\xfe", "\xff", "\xf8\x88\x80\x80\x80", "\xef\xbf\xbe", "\xef\xbb\xbf", "\xf4\x8f\xbf\xbf", "\x00", strings.Repeat("\xed\xa0\x80", 100),
	} {
		add(fmt.Sprintf("6: text %d", i), seq(step{fin | opText, s}))
		add(fmt.Sprintf("6: text %d in fragments within characters", i), func(m bool) []byte {
			h := len(s) / 2
			return frame(frame(nil, opText, m, []byte(s[:h])), fin|opContinuation, m, []byte(s[h:]))
		}, 1)
	}
	for _, code := range []uint16{0, 999, 1000, 1001, 1002, 1003, 1004, 1005, 1006, 1007, 1008, 1009, 1010, 1011, 1012, 1013, 1014, 1015, 1016, 1100, 2000, 2999, 3000, 3999, 4000, 4999, 5000, 65535} {
		add(fmt.Sprintf("7: close with %d", code), seq(step{fin | opClose, string(binary.BigEndian.AppendUint16(nil, code)) + "reason"}))
	}
	add("7: close without a code", seq(step{fin | opClose, ""}))
	add("7: close with half a code", seq(step{fin | opClose, "\x03"}))
	add("7: close with 123 bytes of reason", seq(step{fin | opClose, "\x03\xe8" + text(123)}))
	add("7: close with 124 bytes of reason, which is too long", seq(step{fin | opClose, "\x03\xe8" + text(124)}))
	add("7: close with a reason that is no text", seq(step{fin | opClose, "\x03\xe8\xce\xba\xe1\xbd"}))
	add("7: a message and a ping behind close", seq(step{fin | opClose, "\x03\xe8"}, step{fin | opText, "late"}, step{fin | opPing, ""}))
	add("7: two closes", seq(step{fin | opClose, "\x03\xe8"}, step{fin | opClose, "\x03\xe9"}))
	add("masks: of the other end", func(m bool) []byte { return frame(nil, fin|opText, !m, []byte("hello")) })
	add("masks: now and then", func(m bool) []byte { return frame(frame(nil, fin|opText, m, []byte("a")), fin|opText, !m, []byte("b")) })
	add("masks: a key of zero", func(bool) []byte { return append([]byte{fin | opText, 0x80 | 5, 0, 0, 0, 0}, "hello"...) })
	add("lengths: not in the shortest form", func(bool) []byte { return append([]byte{fin | opText, 126, 0, 5}, "hello"...) })
	add("lengths: 64 bits with the first one set", func(bool) []byte { return append([]byte{fin | opBinary, 127, 0x80, 0, 0, 0, 0, 0, 0, 0}, "hello"...) })
	add("no frame: a request", func(bool) []byte { return []byte("GET / HTTP/1.1\r\nHost: a\r\n\r\n") })
	add("no frame: HTTP/2's preface", func(bool) []byte {
		return []byte("PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\x00\x00\x00\x04\x00\x00\x00\x00\x00")
	})
	add("no frame: half a head", func(bool) []byte { return []byte{fin | opText} })
	for _, n := range []int{1 << 10, 64 << 10, 1 << 20} {
		add(fmt.Sprintf("9: %d bytes in a frame", n), seq(step{fin | opBinary, text(n)}))
		add(fmt.Sprintf("10: %d bytes in fragments of 1,300", n), func(m bool) (b []byte) {
			op := byte(opBinary)
			for left := n; left > 0; op = opContinuation {
				k := min(left, 1300)
				if left -= k; left == 0 {
					op |= fin
				}
				b = frame(b, op, m, bytes.Repeat([]byte{'*'}, k))
			}
			return b
		})
	}
	for _, ext := range []string{"permessage-deflate", "permessage-deflate; client_no_context_takeover; server_no_context_takeover", "permessage-deflate; server_max_window_bits=9, permessage-deflate", "x-unknown; a=\"b\""} {
		for _, n := range []int{16, 4096, 128 << 10} {
			out = append(out, exchange{name: fmt.Sprintf("12: %d bytes by %s", n, ext), extensions: ext, make: func(m bool) []byte {
				var z bytes.Buffer
				w, _ := flate.NewWriter(&z, 9)
				_, _ = w.Write(bytes.Repeat([]byte(`{"a":1},`), n/8))
				_ = w.Flush()
				return frame(nil, fin|rsv1|opText, m, bytes.TrimSuffix(z.Bytes(), []byte{0, 0, 0xff, 0xff}))
			}})
		}
	}
	return out
}
