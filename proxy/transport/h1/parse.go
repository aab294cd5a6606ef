package h1

import (
	"bytes"

	"github.com/fairlead-mesh/fairlead/internal/message"
	"github.com/fairlead-mesh/fairlead/proxy/transport"
)

// parseError is a message that breaks RFC 9112. details is Envoy's response
// code detail; status what a server answers.
type parseError struct {
	status  int
	details string
}

func (e *parseError) Error() string { return "http/1.1: " + e.details }

var (
	errCodec      = &parseError{400, "http1.codec_error"}
	errTooLarge   = &parseError{431, "http1.headers_too_large"}
	errTooMany    = &parseError{431, "http1.too_many_headers"}
	errTE         = &parseError{501, "http1.invalid_transfer_encoding"}
	errTEDenied   = &parseError{400, "http1.transfer_encoding_not_allowed"}
	errBodyDenied = &parseError{400, "http1.body_disallowed"}
	errCLAndTE    = &parseError{400, "http1.content_length_and_chunked_not_allowed"}
	errBadURL     = &parseError{400, "http1.invalid_url"}
	errScheme     = &parseError{400, "http1.invalid_scheme"}
	errAuthority  = &parseError{400, "http.invalid_authority"}
	errCharacters = &parseError{400, "http1.invalid_characters"}
	errConnection = &parseError{400, "http1.connection_header_rejected"}
	errVersion    = &parseError{426, "low_version"}
	errTimedOut   = &parseError{408, "request_header_timeout"}
	// errCutOff: an origin's response has no end. That breaks HTTP, as in Envoy.
	errCutOff = &transport.ResetError{Reason: transport.ProtocolError, Detail: "the peer closed before the message was complete"}
)

// framing is how the end of a message is found (RFC 9112 section 6.3).
type framing uint8

const (
	framingNone framing = iota
	framingLength
	framingChunked
	framingUntilClose
)

// head is what a codec must know of a message besides its fields.
type head struct {
	version   message.Version
	status    int
	framing   framing
	length    uint64
	close     bool // the connection ends after this message
	keepAlive bool // an HTTP/1.0 peer asked to go on
	expect    bool // waits for 100
	upgrade   bool
	connect   bool
	method    string // a constant, or in the memory of the Header
}

// parser parses message heads. It keeps scratch memory between messages.
type parser struct {
	keepCase bool // note how names are written
	f        fieldSection
	names    [][]byte // nominated by Connection
}

// fieldSection is what the codec itself reads from a field section. The slices
// point into the input.
type fieldSection struct {
	host                      []byte
	hosts, lengths, codings   int
	length                    uint64
	chunked                   bool
	close, keepAlive, upgrade bool // in Connection
	connection                []byte
	connections               int // Connection lines
	protocol                  []byte
	protocols                 int // Upgrade lines
	trailers                  bool
	expect                    bool // 100-continue
}

// section says which field section is parsed.
type section uint8

const (
	inRequest section = iota
	inResponse
	inTrailers
)

// headEnd finds the end of a head in b, whose first from bytes hold none; 0 if
// it isn't there. Bare line feeds end the search, too: the parser refuses them.
func headEnd(b []byte, from int) int {
	from = max(from-3, 0)
	for {
		i := bytes.IndexByte(b[from:], '\n')
		if i < 0 {
			return 0
		}
		p := from + i + 1
		switch {
		case p < len(b) && b[p] == '\n':
			return p + 1
		case p+1 < len(b) && b[p] == '\r' && b[p+1] == '\n':
			return p + 2
		}
		from = p
	}
}

// startLine cuts the first line off b, which must end with CRLF.
func startLine(b []byte) (l, rest []byte, ok bool) {
	i := bytes.IndexByte(b, '\n')
	if i < 1 || b[i-1] != '\r' {
		return nil, nil, false
	}
	return b[:i-1], b[i+1:], true
}

// fields parses the field lines of b up to and including the empty line, which
// must be its end. What concerns one hop only stays in p; the rest goes to h.
//
//nolint:gocognit // one grammar
func (p *parser) fields(b []byte, h *message.Header, limit int, in section) error {
	p.f, p.names = fieldSection{}, p.names[:0]
	i, end := 0, len(b)-2
	if end < 0 || b[end] != '\r' || b[end+1] != '\n' {
		return errCodec
	}
	for n := 0; i < end; n++ {
		if n == limit {
			return errTooMany
		}
		start := i
		for tokenChar[b[i]] {
			i++
		}
		// Also obs-fold, whitespace before the colon, and an empty name.
		if i == start || b[i] != ':' {
			return errCodec
		}
		name := b[start:i]
		if p.keepCase && h != nil {
			h.KeepName(name)
		}
		i++
		for b[i] == ' ' || b[i] == '\t' {
			i++
		}
		start = i
		i = valueEnd(b, i)
		if b[i] != '\r' || b[i+1] != '\n' {
			return errCharacters
		}
		value := b[start:i]
		i += 2
		for len(value) > 0 && (value[len(value)-1] == ' ' || value[len(value)-1] == '\t') {
			value = value[:len(value)-1]
		}
		if in == inTrailers {
			if h != nil {
				addTrailer(h, name, value)
			}
			continue
		}
		own, err := p.own(name, value, in)
		if err != nil {
			return err
		}
		if !own {
			h.AddBytes(name, value)
		}
	}
	if i != end {
		return errCodec
	}
	return nil
}

// own evaluates a field that the codec reads itself, and reports whether it is
// kept from the Header.
func (p *parser) own(name, value []byte, in section) (bool, error) {
	f := &p.f
	switch len(name) {
	case 2:
		if in == inRequest && fold(name, "te") {
			f.trailers = f.trailers || hasToken(value, "trailers")
			return true, nil
		}
	case 4:
		if in == inRequest && fold(name, "host") {
			f.host = value
			f.hosts++
			return true, nil
		}
	case 6:
		if in == inRequest && fold(name, "expect") {
			// Others are for the origin to judge.
			is := fold(value, "100-continue")
			f.expect = f.expect || is
			return is, nil
		}
	case 7:
		if fold(name, "upgrade") {
			f.protocol = value
			f.protocols++
			return true, nil
		}
	case 10:
		switch {
		case fold(name, "connection"):
			f.connection = value
			f.connections++
			return true, p.connection(value)
		case fold(name, "keep-alive"):
			return true, nil
		}
	case 14:
		if fold(name, "content-length") {
			f.lengths++
			n, ok := parseLength(value)
			if !ok {
				return true, errCodec
			}
			f.length = n
			return false, nil
		}
		// http2-settings belongs to the h2c upgrade, which is never taken up.
		return in == inRequest && fold(name, "http2-settings"), nil
	case 16:
		if fold(name, "proxy-connection") { // no standard, but clients and Envoy know it
			f.close = f.close || hasToken(value, "close")
			return true, nil
		}
	case 17:
		if fold(name, "transfer-encoding") {
			f.codings++
			f.chunked = fold(value, "chunked")
			return true, nil
		}
	}
	return false, nil
}

// connection evaluates a Connection field (RFC 9110 section 7.6.1).
func (p *parser) connection(value []byte) error {
	for len(value) > 0 {
		var tok []byte
		tok, value = nextToken(value)
		switch {
		case len(tok) == 0:
		case fold(tok, "close"):
			p.f.close = true
		case fold(tok, "keep-alive"):
			p.f.keepAlive = true
		case fold(tok, "upgrade"):
			p.f.upgrade = true
		case !isToken(tok) || protected(tok):
			return errConnection
		default:
			p.names = append(p.names, tok)
		}
	}
	return nil
}

// protected tells fields that a message can't have removed by naming them in
// Connection: framing, and what earlier hops and policies rely on. Envoy
// refuses the forwarding ones, too.
func protected(name []byte) bool {
	switch len(name) {
	case 4:
		return fold(name, "host")
	case 9:
		return fold(name, "forwarded")
	case 14:
		return fold(name, "content-length")
	case 15:
		return fold(name, "x-forwarded-for")
	case 16:
		return fold(name, "x-forwarded-host")
	case 17:
		return fold(name, "x-forwarded-proto") || fold(name, "transfer-encoding")
	case 23:
		return fold(name, "x-forwarded-client-cert")
	}
	return false
}

// dropNominated removes the fields that Connection named.
func (p *parser) dropNominated(h *message.Header) {
	if len(p.names) == 0 {
		return
	}
	h.DelFunc(func(f message.Field) bool {
		for _, n := range p.names {
			if fold(n, f.Name) {
				return true
			}
		}
		return false
	})
}

func fieldLimit(n int) int {
	if n <= 0 {
		return 100
	}
	return n
}

// response parses a whole response head (headEnd bytes) into h. method is the
// request's, upgrade whether the request asked for one.
func (p *parser) response(b []byte, h *message.Header, method string, upgrade bool, limit int) (hd head, err error) {
	l, rest, ok := startLine(b)
	if !ok || len(l) < 12 {
		return hd, errCodec
	}
	switch string(l[:9]) {
	case "HTTP/1.1 ":
		hd.version = message.HTTP11
	case "HTTP/1.0 ":
		hd.version = message.HTTP10
	default:
		return hd, errCodec
	}
	for _, c := range l[9:12] {
		if c < '0' || c > '9' {
			return hd, errCodec
		}
		hd.status = 10*hd.status + int(c-'0')
	}
	if hd.status < 100 || hd.status > 599 || len(l) > 12 && l[12] != ' ' {
		return hd, errCodec
	}
	for _, c := range l[12:] {
		if !valueChar[c] {
			return hd, errCodec
		}
	}
	if code := statusCode(hd.status); code != "" {
		h.Add(message.Status, code)
	} else {
		h.Add(message.Status, h.Intern(l[9:12]))
	}
	if err := p.fields(rest, h, fieldLimit(limit), inResponse); err != nil {
		return hd, err
	}
	p.dropNominated(h)
	f := &p.f
	hd.close = f.close || hd.version == message.HTTP10 && !f.keepAlive
	if hd.status == 101 {
		if !upgrade || !f.upgrade || f.protocols == 0 {
			return hd, errCodec // nobody asked for it
		}
		hd.upgrade = true
		h.Add("upgrade", h.Intern(f.protocol))
		h.Add("connection", "upgrade")
	}
	return hd, p.responseFraming(h, &hd, method)
}

func (p *parser) responseFraming(h *message.Header, hd *head, method string) error {
	f := &p.f
	switch {
	case f.lengths > 1:
		return errCodec
	case f.codings > 1 || f.codings == 1 && !f.chunked:
		return errTE
	case f.codings > 0 && f.lengths > 0:
		return errCLAndTE
	case f.codings > 0 && hd.version == message.HTTP10:
		return errTEDenied
	case hd.status < 200 || hd.status == 204 || method == "CONNECT" && hd.status < 300:
		h.Del("content-length")
	case hd.status == 304 || method == "HEAD":
	case f.chunked:
		hd.framing = framingChunked
	case f.lengths > 0 && f.length > 0:
		hd.framing, hd.length = framingLength, f.length
	case f.lengths > 0:
	default:
		hd.framing, hd.close = framingUntilClose, true
	}
	return nil
}

// addTrailer adds a field of a trailer section to h unless it is forbidden there.
func addTrailer(h *message.Header, name, value []byte) {
	h.AddBytes(name, value)
	n := h.Len() - 1
	if message.ForbiddenTrailer(h.At(n).Name) {
		h.DelFunc(func(f message.Field) bool { return message.ForbiddenTrailer(f.Name) })
	}
}

func hasPrefix(s, p string) bool { return len(s) >= len(p) && s[:len(p)] == p }
