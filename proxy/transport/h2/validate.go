package h2

import (
	"strings"
	"unsafe"

	"github.com/fairlead-mesh/fairlead/proxy/transport"
)

// fieldKind tells fields with rules of their own from the others.
type fieldKind uint8

const (
	kindPlain fieldKind = iota
	kindMethod
	kindScheme
	kindAuthority
	kindPath
	kindStatus
	kindProtocol
	kindUnknownPseudo
	kindHost
	kindCookie
	kindTE
	kindContentLength
	// kindConnection are the connection-specific fields of RFC 9113 section 8.2.2.
	kindConnection
)

func classify(name string) fieldKind {
	if name != "" && name[0] == ':' {
		switch name {
		case ":method":
			return kindMethod
		case ":scheme":
			return kindScheme
		case ":authority":
			return kindAuthority
		case ":path":
			return kindPath
		case ":status":
			return kindStatus
		case ":protocol":
			return kindProtocol
		}
		return kindUnknownPseudo
	}
	switch len(name) {
	case 2:
		if name == "te" {
			return kindTE
		}
	case 4:
		if name == "host" {
			return kindHost
		}
	case 6:
		if name == "cookie" {
			return kindCookie
		}
	case 7:
		if name == "upgrade" {
			return kindConnection
		}
	case 10:
		if name == "connection" || name == "keep-alive" {
			return kindConnection
		}
	case 14:
		if name == "content-length" {
			return kindContentLength
		}
	case 16:
		if name == "proxy-connection" {
			return kindConnection
		}
	case 17:
		if name == "transfer-encoding" {
			return kindConnection
		}
	}
	return kindPlain
}

const (
	charName  = 1 << iota // field-name: token without upper case
	charToken             // token
	charValue             // field-value: no control but HTAB
	charPath              // printable ASCII without space
	charScheme
)

var charClass = func() (t [256]uint8) {
	for c := range 256 {
		lower := 'a' <= c && c <= 'z'
		upper := 'A' <= c && c <= 'Z'
		digit := '0' <= c && c <= '9'
		sym := c > 0 && c < 128 && strings.IndexByte("!#$%&'*+-.^_`|~", byte(c)) >= 0
		if lower || digit || sym {
			t[c] |= charName
		}
		if lower || upper || digit || sym {
			t[c] |= charToken
		}
		if c >= 0x20 && c != 0x7f || c == '\t' {
			t[c] |= charValue
		}
		if c > 0x20 && c < 0x7f {
			t[c] |= charPath
		}
		if lower || upper || digit || c == '+' || c == '-' || c == '.' {
			t[c] |= charScheme
		}
	}
	return t
}()

func allOf(s string, class uint8) bool {
	for i := range len(s) {
		if charClass[s[i]]&class == 0 {
			return false
		}
	}
	return true
}

// validName accepts lower-case tokens and pseudo-header names.
func validName(name string) bool {
	if name != "" && name[0] == ':' {
		name = name[1:]
	}
	return name != "" && allOf(name, charName)
}

func badName(name string) string {
	if !validName(name) {
		return "invalid field name"
	}
	return ""
}

// badValue says what is wrong with a field's value, "" if nothing is.
func badValue(k fieldKind, v string) string {
	switch k {
	case kindPath:
		if v == "" || !allOf(v, charPath) {
			return "invalid :path"
		}
	case kindAuthority, kindHost:
		if v != "" && !transport.ValidAuthority(v, false) {
			return "invalid authority"
		}
	case kindMethod, kindProtocol:
		if v == "" || !allOf(v, charToken) {
			return "invalid :method or :protocol"
		}
	case kindScheme:
		if v == "" || !allOf(v, charScheme) {
			return "invalid :scheme"
		}
	default:
		if !validValue(v) {
			return "invalid field value"
		}
	}
	return ""
}

// validValue is allOf(v, charValue), eight octets at a time.
func validValue(v string) bool {
	const ones, highs = 0x0101010101010101, 0x8080808080808080
	i := 0
	for ; i+8 <= len(v); i += 8 {
		w := uint64(v[i]) | uint64(v[i+1])<<8 | uint64(v[i+2])<<16 | uint64(v[i+3])<<24 |
			uint64(v[i+4])<<32 | uint64(v[i+5])<<40 | uint64(v[i+6])<<48 | uint64(v[i+7])<<56
		low := (w - 0x20*ones) & ^w & highs // some octet < 0x20
		del := w ^ 0x7f*ones                // a zero octet where w has DEL
		if low|((del-ones)&^del&highs) != 0 && !allOf(v[i:i+8], charValue) {
			return false
		}
	}
	return allOf(v[i:], charValue)
}

// trimSpace cuts SP and HTAB off both ends: RFC 9113 section 8.2.1 forbids
// them there, Envoy lets them pass; cutting makes both agree.
func trimSpace(b []byte) []byte {
	for len(b) > 0 && (b[0] == ' ' || b[0] == '\t') {
		b = b[1:]
	}
	for len(b) > 0 && (b[len(b)-1] == ' ' || b[len(b)-1] == '\t') {
		b = b[:len(b)-1]
	}
	return b
}

// parseLength parses a Content-Length: digits only, at most 18 of them.
func parseLength(v string) (int64, bool) {
	if v == "" || len(v) > 18 {
		return 0, false
	}
	var n int64
	for i := range len(v) {
		c := v[i] - '0'
		if c > 9 {
			return 0, false
		}
		n = n*10 + int64(c)
	}
	return n, true
}

func unsafeString(b []byte) string { return unsafe.String(unsafe.SliceData(b), len(b)) }

func stringBytes(s string) []byte { return unsafe.Slice(unsafe.StringData(s), len(s)) }
