package dlp

import (
	"bytes"
	"math"
)

func isDigit(c byte) bool { return '0' <= c && c <= '9' }
func isUpper(c byte) bool { return 'A' <= c && c <= 'Z' }
func isAlpha(c byte) bool { return 'A' <= c && c <= 'Z' || 'a' <= c && c <= 'z' }
func isAlnum(c byte) bool { return isDigit(c) || isAlpha(c) }
func isWord(c byte) bool  { return isAlnum(c) || c == '_' }
func isHex(c byte) bool {
	return isDigit(c) || 'a' <= c && c <= 'f' || 'A' <= c && c <= 'F'
}

// boundary are the bytes that are no part of a word, noDigit those that are no
// digits.
var boundary, noDigit = func() (b, n set) {
	for c := range 256 {
		if !isWord(byte(c)) {
			b.add(byte(c))
		}
		if !isDigit(byte(c)) {
			n.add(byte(c))
		}
	}
	return b, n
}()

func lower(c byte) byte {
	if isUpper(c) {
		return c + 'a' - 'A'
	}
	return c
}

// entropy returns the Shannon entropy of b in bits for each byte.
func entropy(b []byte) float64 {
	var n [256]int
	for _, c := range b {
		n[c]++
	}
	h, total := 0.0, float64(len(b))
	for _, k := range n {
		if k > 0 {
			p := float64(k) / total
			h -= p * math.Log2(p)
		}
	}
	return h
}

// near reports whether one of words, in lower case, occurs in the bytes before
// start. Words of up to four letters must stand alone: "cc" is not in
// "account", and "call" not in "syscall", but in "callNumber".
func (v *view) near(start int, words []string) bool { return v.within(start, contextBytes, words) }

func (v *view) within(start, reach int, words []string) bool {
	lo := max(0, start-reach)
	if len(words) == 0 || start <= lo {
		return false
	}
	var buf [contextBytes]byte
	text := v.buf[lo:start]
	b := buf[:len(text)]
	for i := range b {
		b[i] = lower(text[i])
	}
	for _, w := range words {
		for from := 0; ; {
			i := bytes.Index(b[from:], []byte(w))
			if i < 0 {
				break
			}
			i += from
			if len(w) > 4 || standsAlone(text, i, i+len(w)) {
				return true
			}
			from = i + 1
		}
	}
	return false
}

// standsAlone reports whether b[i:end] is a word of its own, or one hump of a
// camelCase name.
func standsAlone(b []byte, i, end int) bool {
	if i > 0 && isAlnum(b[i-1]) && (!isUpper(b[i]) || isUpper(b[i-1])) {
		return false
	}
	if end == len(b) || !isAlnum(b[end]) {
		return true
	}
	return isUpper(b[end]) && !isUpper(b[end-1]) || isDigit(b[end]) || b[end] == 's' && (end+1 == len(b) || !isAlnum(b[end+1]))
}

// boost raises l if a context word is near.
func (v *view) boost(l Likelihood, start int, words []string) Likelihood {
	if v.near(start, words) {
		l++
		if l < Likely {
			l = Likely
		}
	}
	return min(l, VeryLikely)
}

// contextHex are names of values that are hexadecimal, of which some happen
// to have no letter.
var contextHex = []string{"trace", "span", "sha", "sha1", "sha256", "md5", "digest", "etag", "checksum", "commit", "hash", "uuid", "guid", "nonce", "hex", "crc", "revision"}

// graded is boost, but nothing within a UUID or in hexadecimal company is
// likely, and what follows the name of a hash needs context.
func (v *view) graded(l Likelihood, start, end int, words []string) Likelihood {
	if v.inHex(start, end) {
		return VeryUnlikely
	}
	if up := v.boost(l, start, words); up > l || l <= Unlikely {
		return up
	}
	if v.within(start, 16, contextHex) {
		return Unlikely
	}
	return l
}

// maxHexRun is how far inHex looks to each side: a UUID has 36 characters.
const maxHexRun = 36

// inHex reports whether the bytes from start to end are part of a UUID, or of
// hexadecimal groups that are joined by dashes.
func (v *view) inHex(start, end int) bool {
	lo := start
	for lo > 0 && start-lo < maxHexRun && (isHex(v.buf[lo-1]) || v.buf[lo-1] == '-') {
		lo--
	}
	hi := end
	if c := v.at(end); c == '-' {
		for hi-end < maxHexRun && (isHex(v.at(hi)) || v.at(hi) == '-') {
			hi++
		}
	}
	if hi == end && lo == start {
		return false
	}
	if lo > 0 && isAlnum(v.buf[lo-1]) || isAlnum(v.at(hi)) {
		return false // not hexadecimal after all
	}
	run := v.buf[lo:hi]
	if len(run) == 36 && run[8] == '-' && run[13] == '-' && run[18] == '-' && run[23] == '-' {
		return true
	}
	for group := range bytes.SplitSeq(run, []byte("-")) {
		letter, digit := false, false
		for _, c := range group {
			letter, digit = letter || isAlpha(c), digit || isDigit(c)
		}
		if len(group) >= 4 && letter && digit {
			return true
		}
	}
	return false
}

// span returns the end of the run of class bytes at i, at most limit bytes.
func (v *view) span(i, limit int, class *set) int {
	end := i + limit
	for i < end && v.has(i) && class.has(v.buf[i]) {
		i++
	}
	return i
}
