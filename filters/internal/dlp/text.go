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
// start. Words of up to three letters must stand alone.
func (v *view) near(start int, words []string) bool {
	lo := max(0, start-contextBytes)
	if len(words) == 0 || start <= lo {
		return false
	}
	var buf [contextBytes]byte
	b := buf[:start-lo]
	for i := range b {
		b[i] = lower(v.buf[lo+i])
	}
	for _, w := range words {
		for from := 0; ; {
			i := bytes.Index(b[from:], []byte(w))
			if i < 0 {
				break
			}
			i += from
			end := i + len(w)
			if len(w) > 3 || (i == 0 || !isAlnum(b[i-1])) && (end == len(b) || !isAlnum(b[end])) {
				return true
			}
			from = i + 1
		}
	}
	return false
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

// span returns the end of the run of class bytes at i, at most limit bytes.
func (v *view) span(i, limit int, class *set) int {
	end := i + limit
	for i < end && v.has(i) && class.has(v.buf[i]) {
		i++
	}
	return i
}
