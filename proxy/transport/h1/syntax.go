package h1

import "encoding/binary"

// tokenChar is RFC 9110 tchar.
var tokenChar = func() (t [256]bool) {
	for _, c := range "!#$%&'*+-.^_`|~0123456789abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ" {
		t[c] = true
	}
	return t
}()

// valueChar is what a field value may hold: no control characters but HTAB.
var valueChar = func() (t [256]bool) {
	for i := range t {
		t[i] = i == '\t' || i >= ' ' && i != 0x7f
	}
	return t
}()

// lowerChar is tchar without capital letters.
var lowerChar = func() (t [256]bool) {
	for i := range t {
		t[i] = tokenChar[i] && (i < 'A' || i > 'Z')
	}
	return t
}()

// valueEnd returns the position of the first byte of b from i on that is no
// valueChar, len(b) if there is none. It looks at eight bytes at once.
func valueEnd(b []byte, i int) int {
	const ones, high = 0x0101010101010101, 0x8080808080808080
	for i+8 <= len(b) {
		x := binary.LittleEndian.Uint64(b[i:])
		del := x ^ 0x7f*ones
		if ((x-0x20*ones)&^x|(del-ones)&^del)&high != 0 { // a control character, perhaps HTAB, or DEL
			break
		}
		i += 8
	}
	for i < len(b) && valueChar[b[i]] {
		i++
	}
	return i
}

// fold compares b with s, which is lower case, ignoring case.
func fold[T []byte | string](b T, s string) bool {
	if len(b) != len(s) {
		return false
	}
	for i := range len(b) {
		c := b[i]
		if 'A' <= c && c <= 'Z' {
			c += 'a' - 'A'
		}
		if c != s[i] {
			return false
		}
	}
	return true
}

func isToken[T []byte | string](b T) bool {
	for i := range len(b) {
		if !tokenChar[b[i]] {
			return false
		}
	}
	return len(b) > 0
}

// nextToken cuts the first element off a comma-separated list.
func nextToken(list []byte) (tok, rest []byte) {
	i := 0
	for i < len(list) && list[i] != ',' {
		i++
	}
	tok = list[:i]
	if i < len(list) {
		i++
	}
	for len(tok) > 0 && (tok[0] == ' ' || tok[0] == '\t') {
		tok = tok[1:]
	}
	for len(tok) > 0 && (tok[len(tok)-1] == ' ' || tok[len(tok)-1] == '\t') {
		tok = tok[:len(tok)-1]
	}
	return tok, list[i:]
}

func hasToken(list []byte, want string) bool {
	for len(list) > 0 {
		var tok []byte
		if tok, list = nextToken(list); fold(tok, want) {
			return true
		}
	}
	return false
}

// parseLength parses a Content-Length: digits, no sign, no leading zero.
func parseLength[T []byte | string](b T) (uint64, bool) {
	if len(b) == 0 || len(b) > 18 || b[0] == '0' && len(b) > 1 {
		return 0, false
	}
	var n uint64
	for i := range len(b) {
		if b[i] < '0' || b[i] > '9' {
			return 0, false
		}
		n = 10*n + uint64(b[i]-'0')
	}
	return n, true
}
