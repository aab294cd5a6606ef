package h2

import (
	"strings"

	"github.com/fairlead-mesh/fairlead/internal/message"
)

// section says which rules a header block follows.
type section uint8

const (
	sectionRequest section = iota
	sectionResponse
	sectionTrailers
	// sectionAny has no rules: the block is read to keep the tables in step.
	sectionAny
)

// head turns the fields of one header block into a message.Header and applies
// RFC 9113 section 8 to them. It is reused for each block of a connection.
type head struct {
	h       *message.Header
	section section
	// maxBytes and maxFields bound the list; beyond them nothing is stored.
	maxBytes, maxFields int

	size, count int
	over        bool
	// fault is why the message is malformed, "" if it is not.
	fault string

	regular  bool   // an ordinary field was seen
	pseudo   uint16 // bit per fieldKind of pseudo-headers (and host) seen
	length   int64  // Content-Length, -1 if there is none
	status   int
	connect  bool   // method is CONNECT
	headReq  bool   // method is HEAD
	protocol string // extended CONNECT
	path     string
	host     string
	auth     string
	cookieAt int // index in h of the first cookie field
	crumbs   []string
	joined   []byte
}

func (b *head) reset(h *message.Header, s section, maxBytes, maxFields int) {
	*b = head{h: h, section: s, maxBytes: maxBytes, maxFields: maxFields, length: -1, crumbs: b.crumbs[:0], joined: b.joined[:0]}
	h.Reset()
}

// fits reports whether a field of n octets would still be stored.
func (b *head) fits(n int) bool {
	return !b.over && b.fault == "" && b.size+n+entryOverhead <= b.maxBytes && b.count < b.maxFields
}

func (b *head) fail(why string) {
	if b.fault == "" {
		b.fault = why
	}
}

// add takes one field; the strings must stay valid as long as b.h is used.
func (b *head) add(name, value string, k fieldKind, bad string, never bool) {
	b.size += len(name) + len(value) + entryOverhead
	b.count++
	if b.over || b.size > b.maxBytes || b.count > b.maxFields {
		b.over = true
		return
	}
	if bad != "" && b.section != sectionAny {
		b.fail(bad)
	}
	if b.fault != "" {
		return
	}
	switch {
	case b.section == sectionAny:
	case k == kindPlain:
		b.regular = true
	case k <= kindUnknownPseudo:
		b.addPseudo(value, k)
		if k == kindProtocol || b.fault != "" {
			return
		}
	default:
		b.regular = true
		if !b.addSpecial(value, k) {
			return
		}
	}
	b.h.AddField(message.Field{Name: name, Value: value, NeverIndex: never})
}

func (b *head) addPseudo(v string, k fieldKind) {
	switch {
	case b.section == sectionTrailers:
		b.fail("pseudo-header in trailers")
	case b.regular:
		b.fail("pseudo-header after an ordinary field")
	case k == kindUnknownPseudo, (k == kindStatus) != (b.section == sectionResponse):
		b.fail("unexpected pseudo-header")
	case b.pseudo&(1<<k) != 0:
		b.fail("repeated pseudo-header")
	}
	b.pseudo |= 1 << k
	switch k {
	case kindMethod:
		b.connect, b.headReq = v == "CONNECT", v == "HEAD"
	case kindPath:
		b.path = v
	case kindAuthority:
		b.auth = v
	case kindProtocol:
		b.protocol = v
	case kindStatus:
		if n, ok := parseLength(v); ok && len(v) == 3 && n >= 100 {
			b.status = int(n)
		} else {
			b.fail("invalid :status")
		}
	default: // nothing is kept of the others
	}
}

// addSpecial reports whether the field is stored.
func (b *head) addSpecial(v string, k fieldKind) bool {
	switch k {
	case kindConnection:
		b.fail("connection-specific field")
	case kindTE:
		if !strings.EqualFold(v, "trailers") {
			b.fail("te other than trailers")
		}
		return b.section != sectionTrailers
	case kindHost:
		if b.section != sectionRequest {
			return b.section == sectionResponse
		}
		if b.pseudo&(1<<kindHost) != 0 && b.host != v {
			b.fail("repeated host")
		}
		b.pseudo |= 1 << kindHost
		b.host = v
		return false
	case kindContentLength:
		if b.section == sectionTrailers {
			return false
		}
		n, ok := parseLength(v)
		if !ok || b.length >= 0 && b.length != n {
			b.fail("invalid content-length")
		}
		first := b.length < 0
		b.length = n
		return first
	case kindCookie:
		if b.section != sectionRequest {
			return b.section == sectionResponse
		}
		if len(b.crumbs) == 0 {
			b.cookieAt = b.h.Len()
		}
		b.crumbs = append(b.crumbs, v)
		return len(b.crumbs) == 1
	default:
	}
	return b.fault == ""
}

func (b *head) has(k fieldKind) bool { return b.pseudo&(1<<k) != 0 }

// finishRequest applies the rules that need the whole head and brings it into
// the form that transport.ServerStream promises. allowConnect admits extended
// CONNECT.
func (b *head) finishRequest(allowConnect bool) {
	switch {
	case b.fault != "" || b.over:
		return
	case !b.has(kindMethod):
		b.fail("no :method")
	case b.connect && !b.has(kindProtocol):
		if b.has(kindScheme) || b.has(kindPath) {
			b.fail("CONNECT with :scheme or :path")
		} else if b.auth == "" {
			b.fail("CONNECT without :authority")
		}
	case b.has(kindProtocol) && (!b.connect || !allowConnect):
		b.fail("unexpected :protocol")
	case !b.has(kindScheme):
		b.fail("no :scheme")
	case b.path == "":
		b.fail("no :path")
	case b.path[0] != '/' && (b.path != "*" || b.h.Get(message.Method) != "OPTIONS"):
		b.fail("invalid :path")
	case b.connect && b.auth == "":
		b.fail("extended CONNECT without :authority")
	case b.host != "" && b.auth != "" && !strings.EqualFold(b.host, b.auth):
		b.fail("host differs from :authority")
	}
	if b.fault != "" {
		return
	}
	b.joinCookies()
	if b.auth == "" && b.host != "" {
		b.h.Set(message.Authority, b.host)
	}
	if b.protocol != "" {
		// Envoy's transformUpgradeRequestFromH2toH1.
		b.h.Set(message.Method, "GET")
		b.h.Add("upgrade", b.protocol)
		b.h.Add("connection", "upgrade")
		b.h.Del("content-length")
		b.length = -1
	}
}

func (b *head) finishResponse() {
	switch {
	case b.fault != "" || b.over:
	case !b.has(kindStatus):
		b.fail("no :status")
	case b.status == 101:
		b.fail(":status 101")
	}
}

// joinCookies joins crumbs with "; " (RFC 9113 section 8.2.3).
func (b *head) joinCookies() {
	if len(b.crumbs) < 2 {
		return
	}
	for i, c := range b.crumbs {
		if i > 0 {
			b.joined = append(b.joined, "; "...)
		}
		b.joined = append(b.joined, c...)
	}
	b.h.SetAt(b.cookieAt, b.h.Intern(b.joined))
}
