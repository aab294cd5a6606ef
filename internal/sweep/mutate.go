package sweep

import (
	"bytes"
	"encoding/binary"
	"math/rand/v2"
	"reflect"
)

const (
	// largest bounds mutants of inputs that are not larger themselves.
	largest = 4 << 10
	// most tokens are taken from a corpus.
	mostTokens = 4096
)

// mutator makes mutants. It is not for concurrent use: a mutant lives until the
// next is made.
type mutator struct {
	seed   uint64
	corpus []entry
	good   []int // inputs of the corpus that the target accepted, if it tells
	tokens [][]byte
	pcg    rand.PCG
	r      *rand.Rand
	out    entry
	spare  []byte
}

func newMutator(seed uint64, corpus []entry) *mutator {
	m := &mutator{seed: seed, corpus: corpus, out: make(entry, len(corpus[0]))}
	m.r = rand.New(&m.pcg)
	m.tokens = dictionary(corpus)
	return m
}

// mutant makes mutant i, which depends on the seed and the corpus only.
func (m *mutator) mutant(i uint64) entry {
	m.pcg.Seed(m.seed, i*0x9e3779b97f4a7c15)
	base := m.pick()
	changed := m.r.IntN(len(base)) // at least this one
	for k := range base {
		from := &base[k]
		if len(base) > 1 && m.one(8) {
			from = &m.corpus[m.r.IntN(len(m.corpus))][k]
		}
		a := &m.out[k]
		a.kind, a.n, a.b = from.kind, from.n, append(a.b[:0], from.b...)
		if k != changed && m.one(2) {
			continue
		}
		if a.kind == reflect.Slice || a.kind == reflect.String {
			bound := max(largest, len(a.b))
			for range m.strength() {
				a.b = m.change(a.b, k, bound)
			}
			a.b = a.b[:min(len(a.b), bound)]
		} else {
			a.n = m.number(a, k)
		}
	}
	return m.out
}

// pick takes an input: mostly one that was accepted, rather a short one.
func (m *mutator) pick() entry {
	draw := func() entry {
		if len(m.good) > 0 && !m.one(4) {
			return m.corpus[m.good[m.r.IntN(len(m.good))]]
		}
		return m.corpus[m.r.IntN(len(m.corpus))]
	}
	a, b := draw(), draw()
	if m.one(2) && size(b) < size(a) {
		return b
	}
	return a
}

func size(e entry) (n int) {
	for i := range e {
		n += len(e[i].b)
	}
	return n
}

// one is true once in n times.
func (m *mutator) one(n int) bool { return m.r.IntN(n) == 0 }

// strength is how many changes are made to an argument: mostly one or two, so
// that most mutants differ little from what the target takes.
func (m *mutator) strength() int {
	switch n := m.r.IntN(16); {
	case n < 8:
		return 1
	case n < 12:
		return 2
	case n < 14:
		return 3
	default:
		return 4 + m.r.IntN(6)
	}
}

// block is a random range of n bytes, mostly short, empty only if n is 0.
func (m *mutator) block(n int) (from, to int) {
	if n == 0 {
		return 0, 0
	}
	most := min(n, 1<<m.r.IntN(5))
	if m.one(8) {
		most = n
	}
	size := 1 + m.r.IntN(most)
	from = m.r.IntN(n - size + 1)
	return from, from + size
}

// some is a piece of an input of the corpus, or of b, or a token.
func (m *mutator) some(b []byte, k int) []byte {
	switch n := m.r.IntN(8); {
	case n < 3 && len(m.tokens) > 0:
		return m.tokens[m.r.IntN(len(m.tokens))]
	case n < 5:
		b = m.corpus[m.r.IntN(len(m.corpus))][k].b
	}
	from, to := m.block(len(b))
	return b[from:to]
}

// insert puts piece, which may be a part of b, at position at; what is behind
// the bound is not kept.
func (m *mutator) insert(b []byte, at int, piece []byte, bound int) []byte {
	if len(b)+len(piece) > bound {
		return b
	}
	m.spare = append(append(m.spare[:0], piece...), b[at:]...)
	return append(b[:at], m.spare...)
}

// change makes one change to argument k.
func (m *mutator) change(b []byte, k, bound int) []byte {
	if len(b) == 0 {
		return m.insert(b, 0, m.some(b, k), bound)
	}
	at := m.r.IntN(len(b))
	switch m.r.IntN(18) {
	case 0, 1:
		b[at] ^= 1 << m.r.IntN(8)
	case 2:
		b[at] = byte(m.r.Uint32())
	case 3:
		b[at] += byte(m.r.IntN(71) - 35)
	case 4:
		b[at] = special[m.r.IntN(len(special))]
	case 5:
		m.word(b, at)
	case 6, 7:
		from, to := m.block(len(b))
		b = append(b[:from], b[to:]...)
	case 8: // a piece of it is doubled, once or often
		from, to := m.block(len(b))
		for range 1 + m.r.IntN(1+m.r.IntN(8)) {
			b = m.insert(b, to, b[from:to], bound)
		}
	case 9, 10:
		b = m.insert(b, at, m.some(b, k), bound)
	case 11, 12:
		copy(b[at:], m.some(b, k))
	case 13: // a piece is replaced by another of any length
		from, to := m.block(len(b))
		b = m.insert(append(b[:from], b[to:]...), from, m.some(b, k), bound)
	case 14: // the tail of another input
		other := m.corpus[m.r.IntN(len(m.corpus))][k].b
		b = append(b[:at], other[m.r.IntN(len(other)+1):]...)
	case 15: // the same place of another input
		if other := m.corpus[m.r.IntN(len(m.corpus))][k].b; at < len(other) {
			from, to := m.block(len(other) - at)
			copy(b[min(len(b), at+from):], other[at+from:at+to])
		}
	case 16:
		from, _ := m.block(len(b))
		b[at], b[from] = b[from], b[at]
	case 17:
		b = m.text(b, at)
	}
	return b
}

// word changes a number of 2 or 4 bytes, in either order.
func (m *mutator) word(b []byte, at int) {
	var order binary.ByteOrder = binary.BigEndian
	if m.one(2) {
		order = binary.LittleEndian
	}
	delta := m.r.Uint32N(65) - 32
	switch w := b[at:]; {
	case len(w) >= 4 && m.one(2):
		v := order.Uint32(w) + delta
		if m.one(2) {
			v = uint32(interesting[m.r.IntN(len(interesting))])
		}
		order.PutUint32(w, v)
	case len(w) >= 2:
		v := order.Uint16(w) + uint16(delta)
		if m.one(2) {
			v = uint16(interesting[m.r.IntN(len(interesting))])
		}
		order.PutUint16(w, v)
	default:
		w[0] = byte(interesting[m.r.IntN(len(interesting))])
	}
}

// text changes what is written at a place: case, digits, a byte as an escape,
// or the end.
func (m *mutator) text(b []byte, at int) []byte {
	const hex = "0123456789abcdefABCDEF"
	c := b[at]
	switch {
	case c >= '0' && c <= '9':
		b[at] = '0' + byte(m.r.IntN(10))
	case c|0x20 >= 'a' && c|0x20 <= 'z' && m.one(2):
		b[at] ^= 0x20
	case m.one(4):
		return b[:at]
	default:
		b = append(b, 0, 0)
		copy(b[at+3:], b[at+1:])
		b[at], b[at+1], b[at+2] = '%', hex[c>>4], hex[c&15]
	}
	return b
}

// special are bytes with a meaning in protocols.
const special = "\x00\t\n\r \"#%&'()*,-./0:;<=>?@A[\\]^_`az{|}~\x7f\x80\xff"

// interesting are numbers at the borders of types and of fields of protocols.
var interesting = [...]uint64{
	0, 1, 2, 3, 7, 8, 9, 15, 16, 31, 32, 63, 64, 100, 127, 128, 255, 256, 512, 1000, 1024, 4095, 4096, 16383, 16384, 32767, 32768, 65535, 65536, 1<<24 - 1,
	1 << 24, 1<<31 - 1, 1 << 31, 1<<32 - 1, 1 << 32, 1<<63 - 1, 1 << 63, 1<<64 - 1,
}

// number changes argument k, which is a.
func (m *mutator) number(a *arg, k int) uint64 {
	n := a.n
	switch m.r.IntN(6) {
	case 0:
		n = m.r.Uint64()
	case 1:
		n = interesting[m.r.IntN(len(interesting))]
	case 2:
		n = m.corpus[m.r.IntN(len(m.corpus))][k].n
	case 3:
		n += m.r.Uint64N(65) - 32
	case 4:
		n ^= 1 << m.r.IntN(64)
	default:
		n = m.r.Uint64N(256)
	}
	switch a.kind {
	case reflect.Bool:
		return n & 1
	case reflect.Int8:
		return uint64(int8(n))
	case reflect.Int16:
		return uint64(int16(n))
	case reflect.Int32:
		return uint64(int32(n))
	case reflect.Uint8:
		return n & 0xff
	case reflect.Uint16:
		return n & 0xffff
	case reflect.Uint32, reflect.Float32:
		return n & 0xffffffff
	default:
		return n
	}
}

// protocol are tokens that need not be in a corpus.
var protocol = []string{
	"\r\n", "\r\n\r\n", "\n\n", "\r", "\n ", ": ", ":", "//", "/../", "/./", "/..", "%2e", "%2F", "%2f", "%5c", "%00", "%0d%0a", "%25", "..;", "?", "#", ";",
	"GET ", "POST ", "CONNECT ", "HEAD ", "OPTIONS * ", "PRI * HTTP/2.0", " HTTP/1.1\r\n", " HTTP/1.0\r\n", "HTTP/1.1 200 OK\r\n", "HTTP/1.1 101 \r\n", "100 ", "204 ", "304 ",
	"\r\nHost: a", "\r\nContent-Length: 0", "\r\nContent-Length: 5", "\r\nContent-Length: +5", "\r\nTransfer-Encoding: chunked", "chunked, chunked", "identity",
	"\r\nConnection: close", "\r\nConnection: upgrade\r\nUpgrade: websocket", "\r\nTE: trailers", "\r\nTrailer: x", "\r\nExpect: 100-continue", "http://", "https://a:443/", "@", "[::1]", ":80", ":65536",
	"0\r\n\r\n", "0\r\n", "1\r\na\r\n", ";a=b", "ffffffffffffffff", "80000000", "0x1", "+1", "-1", " ", "\t", "\x00", "\x7f", "\xc0\xaf", "\xef\xbf\xbd", "\xff",
	"\x00\x00\x00\x04\x00\x00\x00\x00\x00", "\x00\x00\x00\x04\x01\x00\x00\x00\x00", "\x00\x00\x04\x08\x00\x00\x00\x00\x00\x00\x00\x00\x01", "\x00\x00\x04\x03\x00\x00\x00\x00\x01\x00\x00\x00\x08",
	"\x00\x00\x01\x00\x01\x00\x00\x00\x01a", "\x00\x00\x00\x00\x01\x00\x00\x00\x01", "\x00\x00\x00\x09\x04\x00\x00\x00\x01", "\x00\x00\x05\x02\x00\x00\x00\x00\x01\x00\x00\x00\x00\x10",
	"\x00\x00\x08\x07\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00", "\x00\x00\x08\x06\x00\x00\x00\x00\x00abcdefgh", "\x82\x86\x84\x87", "\x41\x01a", "\x40\x01a\x01b", "\x3f\xe1\x1f", "\x20", "\xbe",
	"spiffe://", "/ns/", "/sa/", "cluster.local", "By=", ";Hash=", ";URI=", ";Subject=\"", "k8s.namespace.name=", "PROXY TCP4 1.2.3.4 5.6.7.8 1 2\r\n", "\r\n\r\n\x00\r\nQUIT\n", "grpc-", "1S", "99999999H",
	"true", "false", "null", "{}", "[]", "{\"", "\":", "\",\"", "\\u0000", "\\", "%REQ(", "%RESPONSE_CODE%", ")%", "&&", "--", "\r\n--", "<", ">", "\"", "'",
}

// dictionary lists tokens of protocols and those of the corpus: words, and what
// stands between them, without doubles.
func dictionary(corpus []entry) [][]byte {
	seen := map[string]bool{}
	var tokens [][]byte
	add := func(s []byte) {
		if len(s) > 0 && len(s) <= 48 && !seen[string(s)] {
			seen[string(s)] = true
			tokens = append(tokens, bytes.Clone(s))
		}
	}
	for _, s := range protocol {
		add([]byte(s))
	}
	for _, e := range corpus {
		for _, a := range e {
			for rest := a.b; len(rest) > 0 && len(tokens) < mostTokens; {
				n := 1
				for n < len(rest) && isWord(rest[n]) == isWord(rest[0]) {
					n++
				}
				if n > 1 {
					add(rest[:n])
				}
				rest = rest[n:]
			}
			for line := range bytes.SplitSeq(a.b, []byte("\n")) {
				if len(tokens) < mostTokens {
					add(line)
				}
			}
		}
	}
	return tokens
}

func isWord(c byte) bool {
	return c|0x20 >= 'a' && c|0x20 <= 'z' || c >= '0' && c <= '9' || c == '-' || c == '_'
}
