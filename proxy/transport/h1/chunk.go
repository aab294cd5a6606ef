package h1

import "github.com/fairlead-mesh/fairlead/internal/message"

// chunked is the state of a chunked body (RFC 9112 section 7.1). It is fed with
// whatever bytes have arrived and never needs to look back.
type chunked struct {
	state  uint8
	digits uint8
	left   uint64
	// ext counts bytes of chunk extensions, which are bounded.
	ext int
}

const (
	chunkSize uint8 = iota
	chunkExt
	chunkSizeLF
	chunkData
	chunkDataCR
	chunkDataLF
	chunkTrailer // after the last chunk's line
)

// maxChunkExt bounds the extensions of one body: they are dropped, and a body
// of extensions is an attack.
const maxChunkExt = 16 << 10

// decode takes framing and data from the start of p. The data of all chunks
// that have arrived is moved together: it is data, inside p. n is how much of p
// is done with; in state chunkTrailer p[n:] starts the trailer section.
//
//nolint:gocognit // one state machine
func (c *chunked) decode(p []byte) (data []byte, n int, err error) {
	from, to, i := 0, 0, 0
	for i < len(p) && c.state != chunkTrailer {
		b := p[i]
		switch c.state {
		case chunkSize:
			i++
			if err := c.size(b); err != nil {
				return nil, 0, err
			}
		case chunkExt:
			i++
			if c.ext++; c.ext > maxChunkExt {
				return nil, 0, errTooLarge
			}
			if b == '\r' {
				c.state = chunkSizeLF
			} else if !valueChar[b] {
				return nil, 0, errCodec
			}
		case chunkSizeLF:
			i++
			if b != '\n' {
				return nil, 0, errCodec
			}
			if c.digits = 0; c.left == 0 {
				c.state = chunkTrailer
			} else {
				c.state = chunkData
			}
		case chunkData:
			k := int(min(uint64(len(p)-i), c.left))
			switch from {
			case to:
				from, to = i, i+k
			default:
				to += copy(p[to:], p[i:i+k])
			}
			i += k
			if c.left -= uint64(k); c.left == 0 {
				c.state = chunkDataCR
			}
		case chunkDataCR:
			i++
			if b != '\r' {
				return nil, 0, errCodec
			}
			c.state = chunkDataLF
		case chunkDataLF:
			i++
			if b != '\n' {
				return nil, 0, errCodec
			}
			c.state = chunkSize
		}
	}
	return p[from:to], i, nil
}

// size takes a byte of a size line before any extension.
func (c *chunked) size(b byte) error {
	v := message.Unhex(b)
	switch {
	case v >= 0:
		if c.digits++; c.digits > 15 {
			return errCodec
		}
		c.left = c.left<<4 | uint64(v)
	case c.digits == 0:
		return errCodec
	case b == '\r':
		c.state = chunkSizeLF
	case b == ';':
		c.state = chunkExt
	default:
		return errCodec
	}
	return nil
}

// appendChunkSize appends the size line of a chunk.
func appendChunkSize(b []byte, n int) []byte {
	const hex = "0123456789abcdef"
	var t [16]byte
	i := len(t)
	for {
		i--
		t[i] = hex[n&15]
		if n >>= 4; n == 0 {
			return append(append(b, t[i:]...), '\r', '\n')
		}
	}
}
