package h1

// chunked is the state of a chunked body (RFC 9112 section 7.1). It is fed with
// whatever bytes have arrived and never needs to look back.
type chunked struct {
	state  uint8
	left   uint64
	digits uint8
	// ext counts bytes of chunk extensions and trailers, which are bounded.
	ext int
}

const (
	chunkSize uint8 = iota
	chunkExt
	chunkSizeLF
	chunkData
	chunkDataCR
	chunkDataLF
	chunkTrailer // at the first byte after the last chunk's line
)

// maxChunkExt bounds the extensions of one body: they are dropped, and a body
// of extensions is an attack.
const maxChunkExt = 16 << 10

// next looks at p and returns the data it starts with after framing: p[from:to]
// is data (may be empty), n is how much of p is done with, end reports that the
// last chunk was seen: p[n:] starts the trailer section.
func (c *chunked) next(p []byte) (from, to, n int, end bool, err error) {
	i := 0
	for i < len(p) {
		b := p[i]
		switch c.state {
		case chunkSize:
			v := unhex(b)
			switch {
			case v >= 0:
				if c.digits++; c.digits > 15 {
					return 0, 0, 0, false, errCodec
				}
				c.left = c.left<<4 | uint64(v)
			case c.digits == 0:
				return 0, 0, 0, false, errCodec
			case b == '\r':
				c.state = chunkSizeLF
			case b == ';' || b == ' ' || b == '\t':
				c.state = chunkExt
			default:
				return 0, 0, 0, false, errCodec
			}
			i++
		case chunkExt:
			if c.ext++; c.ext > maxChunkExt {
				return 0, 0, 0, false, errTooLarge
			}
			switch {
			case b == '\r':
				c.state = chunkSizeLF
			case !valueChar[b]:
				return 0, 0, 0, false, errCodec
			}
			i++
		case chunkSizeLF:
			if b != '\n' {
				return 0, 0, 0, false, errCodec
			}
			i++
			c.digits = 0
			if c.left == 0 {
				c.state = chunkTrailer
				return i, i, i, true, nil
			}
			c.state = chunkData
		case chunkData:
			k := min(uint64(len(p)-i), c.left)
			c.left -= k
			if c.left == 0 {
				c.state = chunkDataCR
			}
			return i, i + int(k), i + int(k), false, nil
		case chunkDataCR:
			if b != '\r' {
				return 0, 0, 0, false, errCodec
			}
			c.state = chunkDataLF
			i++
		case chunkDataLF:
			if b != '\n' {
				return 0, 0, 0, false, errCodec
			}
			c.state = chunkSize
			i++
		}
	}
	return i, i, i, false, nil
}

func unhex(c byte) int {
	switch {
	case '0' <= c && c <= '9':
		return int(c - '0')
	case 'a' <= c && c <= 'f':
		return int(c-'a') + 10
	case 'A' <= c && c <= 'F':
		return int(c-'A') + 10
	}
	return -1
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
