package hcm

import (
	"strings"

	"github.com/fairlead-mesh/fairlead/internal/message"
)

// canonicalPath normalizes the path part of target (everything before "?") as
// Envoy's normalize_path does with Chromium's canonicalizer (RFC 3986 section
// 6): dot segments are resolved (also percent-encoded ones), backslashes become
// slashes, escapes of unreserved characters are undone, other escapes keep
// their form, and bytes that may not stand in a path are escaped. ok is false
// if the path can't be normalized (it doesn't start with a slash, or holds a
// NUL); such a request is answered 400.
//
// It returns target itself if nothing changes.
func canonicalPath(target string) (out string, ok bool) {
	path, query, hasQuery := strings.Cut(target, "?")
	if path == "" || path[0] != '/' {
		return target, false
	}
	if isCanonical(path) {
		return target, true
	}
	b := make([]byte, 0, len(target)+16)
	b = append(b, '/')
	percent := -1 // in b, of the last malformed escape
	for i := 1; i < len(path); {
		c, n := pathByte(path[i:])
		if c == '.' && n > 0 && (len(b) == 0 || b[len(b)-1] == '/') {
			if used, up, is := dotSegment(path[i:]); is {
				if up {
					b = parent(b)
				}
				i += used
				percent = -1
				continue
			}
		}
		switch {
		case c == 0:
			return target, false
		case n == 1 && (c == '/' || c == '\\'):
			b = append(b, '/')
		case n == 1 && c == '%':
			// A malformed escape stays as it is,
			percent = len(b)
			b = append(b, '%')
		case n == 1 && mustEscape(c):
			b = append(b, '%', "0123456789ABCDEF"[c>>4], "0123456789ABCDEF"[c&15])
		case n == 3 && !unreserved(c):
			b = append(b, path[i:i+3]...)
		default:
			b = append(b, c)
		}
		if percent >= 0 && len(b) == percent+3 && message.Unhex(b[percent+1]) >= 0 && message.Unhex(b[percent+2]) >= 0 {
			// unless what was decoded completes it, as in "%%36%31": upstream
			// would decode a second time what no policy has seen.
			b = append(b[:percent+1], '2', '5', b[percent+1], b[percent+2])
			percent = -1
		}
		i += n
	}
	if hasQuery {
		b = append(append(b, '?'), query...)
	}
	return string(b), true
}

// isCanonical is the fast test that a path needs no work.
func isCanonical(path string) bool {
	for i := range len(path) {
		if c := path[i]; c == '%' || c == '\\' || c == '.' && path[i-1] == '/' || mustEscape(c) {
			return false
		}
	}
	return true
}

// pathByte decodes the next byte: its value and how many characters it takes.
func pathByte(s string) (c byte, n int) {
	if s[0] == '%' && len(s) >= 3 {
		h, l := message.Unhex(s[1]), message.Unhex(s[2])
		if h >= 0 && l >= 0 {
			return byte(h<<4 | l), 3
		}
	}
	return s[0], 1
}

// dotSegment recognises "." and ".." at the start of s, in plain or escaped
// form, up to a slash (consumed) or the end.
func dotSegment(s string) (used int, up, ok bool) {
	dots, i := 0, 0
	for i < len(s) && dots < 3 {
		c, n := pathByte(s[i:])
		if c != '.' {
			break
		}
		dots++
		i += n
	}
	switch {
	case dots > 2:
		return 0, false, false
	case i == len(s):
		return i, dots == 2, true
	case s[i] == '/' || s[i] == '\\':
		return i + 1, dots == 2, true
	}
	return 0, false, false
}

// parent removes the last segment of b, which ends with a slash.
func parent(b []byte) []byte {
	if len(b) <= 1 {
		return b
	}
	i := len(b) - 1
	for i > 0 && b[i-1] != '/' {
		i--
	}
	return b[:max(i, 1)]
}

func unreserved(c byte) bool {
	switch {
	case 'a' <= c && c <= 'z', 'A' <= c && c <= 'Z', '0' <= c && c <= '9', c == '-', c == '.', c == '_', c == '~':
		return true
	}
	return false
}

func mustEscape(c byte) bool {
	switch c {
	case '"', '<', '>', '`', '{', '}', '|', '^', ' ', '#':
		return true
	}
	return c < ' ' || c >= 0x7f
}

// mergeSlashes collapses runs of slashes in the path part of target.
func mergeSlashes(target string) string {
	path, query, hasQuery := strings.Cut(target, "?")
	if !strings.Contains(path, "//") {
		return target
	}
	b := make([]byte, 0, len(target))
	for i := range len(path) {
		if path[i] == '/' && i > 0 && path[i-1] == '/' {
			continue
		}
		b = append(b, path[i])
	}
	if hasQuery {
		b = append(append(b, '?'), query...)
	}
	return string(b)
}

// unescapeSlashes turns %2F, %5C (any case) of the path part into "/" and "\",
// and reports whether there was one.
func unescapeSlashes(target string) (string, bool) {
	path, query, hasQuery := strings.Cut(target, "?")
	if !strings.Contains(path, "%") {
		return target, false
	}
	var b []byte
	found := false
	for i := 0; i < len(path); i++ {
		if path[i] == '%' && i+2 < len(path) {
			c, n := pathByte(path[i:])
			if n == 3 && (c == '/' || c == '\\') {
				b = append(b, c)
				found = true
				i += 2
				continue
			}
		}
		b = append(b, path[i])
	}
	if !found {
		return target, false
	}
	if hasQuery {
		b = append(append(b, '?'), query...)
	}
	return string(b), true
}
