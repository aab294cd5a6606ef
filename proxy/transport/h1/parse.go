package h1

import (
	"bytes"
	"errors"
	"strings"

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
	errCLAndTE    = &parseError{400, "http1.content_length_and_chunked_not_allowed"}
	errBadURL     = &parseError{400, "http1.invalid_url"}
	errConnection = &parseError{400, "http1.connection_header_rejected"}
	errBodyDenied = &parseError{400, "http1.body_disallowed"}
	errHTTP10     = &parseError{426, "low_version"}
	errIncomplete = errors.New("http/1.1: head is incomplete")
)

// framing is how the end of a message is found.
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
	close     bool
	keepAlive bool
	expect    bool
	upgrade   bool
	connect   bool
	method    string
}

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

// headEnd finds the end of a head in b, scanning from from; 0 if it isn't there.
// Bare line feeds end the search, too: the parser refuses them.
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

// line cuts the next line off b, which ends with CRLF.
func line(b []byte) (l, rest []byte, ok bool) {
	i := bytes.IndexByte(b, '\n')
	if i < 1 || b[i-1] != '\r' {
		return nil, nil, false
	}
	return b[:i-1], b[i+1:], true
}

// parseFields adds the field lines of b, up to the empty line, to h.
func parseFields(b []byte, h *message.Header, limit int) error {
	n := 0
	for {
		l, rest, ok := line(b)
		if !ok {
			return errCodec
		}
		if len(l) == 0 {
			return nil
		}
		if n++; n > limit {
			return errTooMany
		}
		b = rest
		colon := bytes.IndexByte(l, ':')
		if colon < 1 {
			return errCodec
		}
		name, value := l[:colon], trimOWS(l[colon+1:])
		for _, c := range name {
			if !tokenChar[c] {
				return errCodec // also obs-fold and space before the colon
			}
		}
		for _, c := range value {
			if !valueChar[c] {
				return errCodec
			}
		}
		h.AddBytes(name, value)
	}
}

func trimOWS(b []byte) []byte {
	for len(b) > 0 && (b[0] == ' ' || b[0] == '\t') {
		b = b[1:]
	}
	for len(b) > 0 && (b[len(b)-1] == ' ' || b[len(b)-1] == '\t') {
		b = b[:len(b)-1]
	}
	return b
}

// parseRequest parses a whole request head (headEnd bytes) into h, pseudo-headers
// first, hop-by-hop fields removed.
func parseRequest(b []byte, h *message.Header, cfg *transport.ServerConfig) (hd head, err error) {
	l, rest, ok := line(b)
	if !ok {
		return hd, errCodec
	}
	method, target, ok := requestLine(l, &hd)
	if !ok {
		return hd, errCodec
	}
	if err := putTarget(method, target, h, cfg, &hd); err != nil {
		return hd, err
	}
	pseudo := h.Len()
	if err := parseFields(rest, h, headerLimit(cfg.MaxHeaders)); err != nil {
		return hd, err
	}
	if err := hostHeader(h, pseudo, &hd, cfg); err != nil {
		return hd, err
	}
	if err := connectionHeaders(h, &hd, true); err != nil {
		return hd, err
	}
	if err := requestFraming(h, &hd, cfg); err != nil {
		return hd, err
	}
	if v, ok := h.Lookup("expect"); ok && strings.EqualFold(v, "100-continue") && hd.version == message.HTTP11 {
		hd.expect = true
		if !cfg.Proxy100Continue {
			h.Del("expect")
		}
	}
	return hd, nil
}

func headerLimit(n int) int {
	if n <= 0 {
		return 100
	}
	return n
}

func requestLine(l []byte, hd *head) (method, target []byte, ok bool) {
	i := bytes.IndexByte(l, ' ')
	j := bytes.LastIndexByte(l, ' ')
	if i < 1 || j <= i+1 {
		return nil, nil, false
	}
	method, target = l[:i], l[i+1:j]
	for _, c := range method {
		if !tokenChar[c] {
			return nil, nil, false
		}
	}
	for _, c := range target {
		if c <= ' ' || c >= 0x7f {
			return nil, nil, false
		}
	}
	switch string(l[j+1:]) {
	case "HTTP/1.1":
		hd.version = message.HTTP11
	case "HTTP/1.0":
		hd.version = message.HTTP10
	default:
		return nil, nil, false
	}
	return method, target, true
}

// methods that need no copy.
func internMethod(b []byte, h *message.Header) string {
	switch string(b) {
	case "GET":
		return "GET"
	case "POST":
		return "POST"
	case "PUT":
		return "PUT"
	case "HEAD":
		return "HEAD"
	case "DELETE":
		return "DELETE"
	case "OPTIONS":
		return "OPTIONS"
	case "PATCH":
		return "PATCH"
	case "CONNECT":
		return "CONNECT"
	}
	return h.Intern(b)
}

// putTarget turns the request target into pseudo-headers (RFC 9112 section 3.2).
func putTarget(method, target []byte, h *message.Header, cfg *transport.ServerConfig, hd *head) error {
	hd.method = internMethod(method, h)
	h.Add(message.Method, hd.method)
	if hd.method == "CONNECT" {
		hd.connect = true
		if !validAuthority(target) || bytes.IndexByte(target, ':') < 0 {
			return errBadURL
		}
		h.Add(message.Authority, h.Intern(target))
		return nil
	}
	scheme := cfg.Scheme
	if scheme == "" {
		scheme = "http"
	}
	switch {
	case target[0] == '/':
		h.Add(message.Scheme, scheme)
		h.Add(message.Authority, "")
		h.Add(message.Path, h.Intern(target))
		return nil
	case len(target) == 1 && target[0] == '*' && hd.method == "OPTIONS":
		h.Add(message.Scheme, scheme)
		h.Add(message.Authority, "")
		h.Add(message.Path, "*")
		return nil
	case !cfg.AllowAbsoluteURL:
		return errBadURL
	}
	i := bytes.Index(target, []byte("://"))
	if i < 0 {
		return errBadURL
	}
	switch s := target[:i]; {
	case bytes.EqualFold(s, []byte("http")):
		scheme = "http"
	case bytes.EqualFold(s, []byte("https")):
		scheme = "https"
	default:
		return errBadURL
	}
	rest := target[i+3:]
	k := bytes.IndexAny(rest, "/?")
	authority, path := rest, []byte(nil)
	if k >= 0 {
		authority, path = rest[:k], rest[k:]
	}
	if len(authority) == 0 || !validAuthority(authority) {
		return errBadURL
	}
	h.Add(message.Scheme, scheme)
	h.Add(message.Authority, h.Intern(authority))
	switch {
	case len(path) == 0:
		h.Add(message.Path, "/")
	case path[0] == '?':
		h.Add(message.Path, "/"+string(path))
	default:
		h.Add(message.Path, h.Intern(path))
	}
	return nil
}

// validAuthority allows the characters of host, port and IPv6 literals.
func validAuthority(b []byte) bool {
	for _, c := range b {
		switch {
		case c <= ' ' || c >= 0x7f, strings.IndexByte("\"#/<>?@\\^`{|}", c) >= 0:
			return false
		}
	}
	return true
}

// hostHeader moves Host into :authority.
func hostHeader(h *message.Header, pseudo int, hd *head, cfg *transport.ServerConfig) error {
	host, n := "", 0
	for i := pseudo; i < h.Len(); i++ {
		if f := h.At(i); f.Name == "host" {
			host = f.Value
			n++
		}
	}
	if n > 1 || n == 1 && !validAuthority([]byte(host)) {
		return errCodec
	}
	h.Del("host")
	if hd.connect || h.Get(message.Authority) != "" {
		return nil // authority-form and absolute-form override Host
	}
	switch {
	case n == 1 && host != "":
		h.Set(message.Authority, host)
	case hd.version == message.HTTP10 && cfg.DefaultHostHTTP10 != "":
		h.Set(message.Authority, cfg.DefaultHostHTTP10)
	default:
		h.Del(message.Authority) // the connection manager answers 400
	}
	return nil
}

// protected can't be removed by naming them in Connection: later hops and
// policies rely on them.
func protected(name string) bool {
	switch name {
	case "host", "content-length", "transfer-encoding", "cookie", "authorization", "set-cookie", "date", "trailer", "te", "upgrade", "connection":
		return true
	}
	return strings.HasPrefix(name, ":") || strings.HasPrefix(name, "x-forwarded-") || strings.HasPrefix(name, "x-envoy-") || strings.HasPrefix(name, "x-request-id")
}

// connectionHeaders evaluates and removes hop-by-hop fields (RFC 9110 section
// 7.6.1).
func connectionHeaders(h *message.Header, hd *head, request bool) error {
	wantsUpgrade := false
	if c, ok := h.Joined("connection"); ok {
		for tok := range strings.SplitSeq(c, ",") {
			switch tok = strings.ToLower(strings.Trim(tok, " \t")); tok {
			case "":
			case "close":
				hd.close = true
			case "keep-alive":
				hd.keepAlive = true
			case "upgrade":
				wantsUpgrade = true
			default:
				if !protected(tok) {
					h.Del(tok)
				}
			}
		}
	}
	h.Del("connection")
	h.Del("keep-alive")
	h.Del("proxy-connection")
	if request {
		teHeader(h)
	}
	up, ok := h.Lookup("upgrade")
	switch {
	case !ok:
	case wantsUpgrade && hd.version == message.HTTP11 && !strings.EqualFold(up, "h2c") && up != "":
		hd.upgrade = true
	default:
		h.Del("upgrade")
		h.Del("http2-settings")
	}
	if hd.version == message.HTTP10 && !hd.keepAlive {
		hd.close = true
	}
	return nil
}

// teHeader keeps "te: trailers" only.
func teHeader(h *message.Header) {
	te, ok := h.Joined("te")
	if !ok {
		return
	}
	keep := false
	for tok := range strings.SplitSeq(te, ",") {
		if strings.EqualFold(strings.Trim(tok, " \t"), "trailers") {
			keep = true
		}
	}
	h.Del("te")
	if keep {
		h.Add("te", "trailers")
	}
}

// contentLength reads the one Content-Length; any doubt is an error.
func contentLength(h *message.Header) (n uint64, ok bool, err error) {
	v, has := h.Lookup("content-length")
	if !has {
		return 0, false, nil
	}
	if h.Count("content-length") > 1 || v == "" || len(v) > 18 {
		return 0, false, errCodec
	}
	for i := range len(v) {
		if v[i] < '0' || v[i] > '9' {
			return 0, false, errCodec
		}
		n = 10*n + uint64(v[i]-'0')
	}
	return n, true, nil
}

// transferEncoding reports a chunked message; every other coding is an error.
func transferEncoding(h *message.Header) (chunked bool, err error) {
	v, has := h.Lookup("transfer-encoding")
	if !has {
		return false, nil
	}
	if h.Count("transfer-encoding") > 1 || !strings.EqualFold(v, "chunked") {
		return false, errTE
	}
	h.Del("transfer-encoding")
	return true, nil
}

func requestFraming(h *message.Header, hd *head, cfg *transport.ServerConfig) error {
	n, hasCL, err := contentLength(h)
	if err != nil {
		return err
	}
	chunked, err := transferEncoding(h)
	switch {
	case err != nil:
		return err
	case chunked && hd.version == message.HTTP10:
		return errTEDenied
	case chunked && hasCL && !cfg.AllowChunkedLength:
		return errCLAndTE
	case chunked && (hd.connect || hd.upgrade), hd.connect && n > 0:
		return errBodyDenied
	case chunked:
		h.Del("content-length")
		hd.framing = framingChunked
	case hd.connect:
		h.Del("content-length")
	case n > 0:
		hd.framing, hd.length = framingLength, n
	}
	return nil
}

// parseResponse parses a whole response head into h; method is the request's.
func parseResponse(b []byte, h *message.Header, method string, limit int) (hd head, err error) {
	l, rest, ok := line(b)
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
	if hd.status < 100 || len(l) > 12 && l[12] != ' ' {
		return hd, errCodec
	}
	for _, c := range l[12:] {
		if !valueChar[c] {
			return hd, errCodec
		}
	}
	h.Add(message.Status, h.Intern(l[9:12]))
	if err := parseFields(rest, h, headerLimit(limit)); err != nil {
		return hd, err
	}
	if err := connectionHeaders(h, &hd, false); err != nil {
		return hd, err
	}
	return hd, responseFraming(h, &hd, method)
}

func responseFraming(h *message.Header, hd *head, method string) error {
	n, hasCL, err := contentLength(h)
	if err != nil {
		return err
	}
	chunked, err := transferEncoding(h)
	if err != nil {
		return err
	}
	switch {
	case hd.status < 200 || hd.status == 204 || hd.status == 304 || method == "HEAD" || method == "CONNECT" && hd.status < 300:
		if hd.status < 200 || hd.status == 204 {
			h.Del("content-length")
		}
	case chunked && hasCL:
		return errCLAndTE
	case chunked && hd.version == message.HTTP10:
		return errTEDenied
	case chunked:
		hd.framing = framingChunked
	case hasCL && n > 0:
		hd.framing, hd.length = framingLength, n
	case hasCL:
	default:
		hd.framing, hd.close = framingUntilClose, true
	}
	return nil
}
