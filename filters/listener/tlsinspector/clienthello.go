package tlsinspector

import (
	"errors"
	"slices"
	"strings"
)

// hello is what a ClientHello says that a filter chain may be chosen by.
type hello struct {
	serverName string // lower case
	alpn       []string
}

var (
	errNotTLS    = errors.New("tls_inspector: not a TLS ClientHello")
	errMalformed = errors.New("tls_inspector: malformed ClientHello")
	errTooLarge  = errors.New("tls_inspector: ClientHello too large")
)

const (
	recordHeader    = 5
	handshakeHeader = 4
	maxRecord       = 16384
)

// parse looks at the bytes of a connection so far. need > len(b) asks for more
// bytes; otherwise h or err is the answer.
func parse(b []byte, limit int) (h *hello, need int, err error) {
	// Reject as early as possible: a peer of another protocol may wait.
	switch {
	case len(b) == 0:
		return nil, 1, nil
	case b[0] != 22: // handshake
		return nil, 0, errNotTLS
	case len(b) >= 2 && b[1] != 3:
		return nil, 0, errNotTLS
	case len(b) < 3:
		return nil, len(b) + 1, nil
	}
	msg, need, err := handshakeMessage(b, limit)
	if err != nil || need > 0 {
		return nil, need, err
	}
	h, err = parseHello(msg)
	return h, 0, err
}

// handshakeMessage joins the first handshake message from its records (RFC
// 8446 section 5.1).
func handshakeMessage(b []byte, limit int) (msg []byte, need int, err error) {
	var joined []byte
	want := handshakeHeader
	for off := 0; ; {
		if len(b) < off+recordHeader {
			return nil, off + recordHeader, nil
		}
		n := int(b[off+3])<<8 | int(b[off+4])
		if b[off] != 22 || b[off+1] != 3 || n == 0 || n > maxRecord {
			return nil, 0, errMalformed
		}
		body := b[off+recordHeader : min(len(b), off+recordHeader+n)]
		have := len(joined) + len(body)
		joined = join(joined, body)
		if len(joined) > 0 && joined[0] != 1 { // client_hello
			return nil, 0, errMalformed
		}
		if have >= handshakeHeader {
			want = handshakeHeader + (int(joined[1])<<16 | int(joined[2])<<8 | int(joined[3]))
			if want > limit+handshakeHeader {
				return nil, 0, errTooLarge
			}
		}
		if have >= want {
			return joined[handshakeHeader:want], 0, nil
		}
		if len(body) < n {
			return nil, len(b) + min(n-len(body), want-have), nil
		}
		off += recordHeader + n
	}
}

// join appends without copying a first part.
func join(a, b []byte) []byte {
	if a == nil {
		return slices.Clip(b)
	}
	return append(a, b...)
}

// cursor reads the length-prefixed structures of TLS; bad stays set once a
// read went too far.
type cursor struct {
	b   []byte
	bad bool
}

func (c *cursor) take(n int) []byte {
	if n > len(c.b) {
		c.bad, c.b = true, nil
		return nil
	}
	v := c.b[:n]
	c.b = c.b[n:]
	return v
}

func (c *cursor) number(bytes int) int {
	n := 0
	for _, x := range c.take(bytes) {
		n = n<<8 | int(x)
	}
	return n
}

func (c *cursor) vector(lengthBytes int) cursor { return cursor{b: c.take(c.number(lengthBytes))} }

// parseHello parses a ClientHello body (RFC 8446 section 4.1.2).
func parseHello(b []byte) (*hello, error) {
	c := cursor{b: b}
	c.take(2 + 32) // legacy_version, random
	c.vector(1)    // legacy_session_id
	suites := c.vector(2)
	compressions := c.vector(1)
	if c.bad || len(suites.b) == 0 || len(suites.b)%2 != 0 || len(compressions.b) == 0 {
		return nil, errMalformed
	}
	h := &hello{}
	if len(c.b) == 0 {
		return h, nil // no extensions
	}
	exts := c.vector(2)
	if c.bad || len(c.b) > 0 {
		return nil, errMalformed
	}
	var seenName, seenALPN bool
	for len(exts.b) > 0 {
		kind := exts.number(2)
		ext := exts.vector(2)
		if exts.bad {
			return nil, errMalformed
		}
		ok := true
		switch kind {
		case 0:
			ok = !seenName && h.parseServerName(ext)
			seenName = true
		case 16:
			ok = !seenALPN && h.parseALPN(ext)
			seenALPN = true
		}
		if !ok {
			return nil, errMalformed
		}
	}
	return h, nil
}

// parseServerName parses server_name (RFC 6066 section 3).
func (h *hello) parseServerName(ext cursor) bool {
	list := ext.vector(2)
	if ext.bad || len(ext.b) > 0 || len(list.b) == 0 {
		return false
	}
	for len(list.b) > 0 {
		kind := list.number(1)
		name := list.vector(2)
		if list.bad {
			return false
		}
		if kind != 0 {
			continue
		}
		if h.serverName != "" || len(name.b) == 0 || len(name.b) > 255 {
			return false
		}
		for _, x := range name.b {
			if x <= ' ' || x >= 0x7f {
				return false
			}
		}
		h.serverName = strings.ToLower(string(name.b))
	}
	return true
}

// parseALPN parses application_layer_protocol_negotiation (RFC 7301 3.1).
func (h *hello) parseALPN(ext cursor) bool {
	list := ext.vector(2)
	if ext.bad || len(ext.b) > 0 || len(list.b) == 0 {
		return false
	}
	for len(list.b) > 0 {
		name := list.vector(1)
		if list.bad || len(name.b) == 0 {
			return false
		}
		h.alpn = append(h.alpn, string(name.b))
	}
	return true
}
