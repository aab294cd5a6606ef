package h2wire

import "encoding/binary"

// Message frames a gRPC message.
func Message(body []byte) []byte {
	b := make([]byte, 5, 5+len(body))
	binary.BigEndian.PutUint32(b[1:], uint32(len(body)))
	return append(b, body...)
}

// Messages counts the gRPC messages of one direction of a stream.
type Messages struct {
	prefix [5]byte
	have   int
	left   uint32
}

// Feed takes the next bytes and calls each with the length of every message
// that ends in them.
func (m *Messages) Feed(p []byte, each func(length int)) {
	for {
		if m.have < len(m.prefix) {
			n := copy(m.prefix[m.have:], p)
			m.have += n
			p = p[n:]
			if m.have < len(m.prefix) {
				return
			}
			m.left = binary.BigEndian.Uint32(m.prefix[1:])
		}
		n := min(m.left, uint32(len(p)))
		m.left -= n
		p = p[n:]
		if m.left > 0 {
			return
		}
		m.have = 0
		each(int(binary.BigEndian.Uint32(m.prefix[1:])))
	}
}
