package h1

import (
	"bytes"

	"github.com/fairlead-mesh/fairlead/internal/message"
	"github.com/fairlead-mesh/fairlead/proxy/transport"
)

// request parses a whole request head (headEnd bytes) into h, pseudo-headers
// first, hop-by-hop fields removed. A missing Host leaves ":authority" out: the
// connection manager answers that.
func (p *parser) request(b []byte, h *message.Header, cfg *transport.ServerConfig) (hd head, err error) {
	l, rest, ok := startLine(b)
	if !ok {
		return hd, errCodec
	}
	i, j := bytes.IndexByte(l, ' '), bytes.LastIndexByte(l, ' ')
	switch {
	case i > 0 && i == j && i+1 < len(l) && knownMethod(l[:i]) != "":
		return hd, errVersion // HTTP/0.9
	case i < 1 || j <= i+1:
		return hd, errCodec
	}
	target := l[i+1 : j]
	for _, c := range target {
		if c <= ' ' || c >= 0x7f { // a third space, too
			return hd, errCodec
		}
	}
	if hd.method = knownMethod(l[:i]); hd.method == "" {
		return hd, errCodec
	}
	switch string(l[j+1:]) {
	case "HTTP/1.1":
		hd.version = message.HTTP11
	case "HTTP/1.0":
		if hd.version = message.HTTP10; !cfg.AcceptHTTP10 {
			return hd, errVersion
		}
	default:
		if isVersion(l[j+1:]) {
			return hd, errVersion
		}
		return hd, errCodec
	}
	h.Add(message.Method, hd.method)
	authority, err := putTarget(target, h, cfg, &hd)
	if err != nil {
		return hd, err
	}
	if err := p.fields(rest, h, fieldLimit(cfg.MaxHeaders), inRequest); err != nil {
		return hd, err
	}
	if err := p.host(authority, h, &hd, cfg); err != nil {
		return hd, err
	}
	p.dropNominated(h)
	f := &p.f
	hd.keepAlive = f.keepAlive
	hd.close = hd.close || f.close || hd.version == message.HTTP10 && !f.keepAlive
	if err := p.requestFraming(h, &hd, cfg); err != nil {
		return hd, err
	}
	return hd, p.requestExtras(h, &hd, cfg)
}

// requestExtras evaluates TE, Upgrade and Expect.
func (p *parser) requestExtras(h *message.Header, hd *head, cfg *transport.ServerConfig) error {
	f := &p.f
	if f.trailers {
		h.Add("te", "trailers")
	}
	// h2c is not an upgrade that anybody behind this hop may see.
	if f.protocols > 0 && f.upgrade && hd.version == message.HTTP11 && !hd.connect && len(f.protocol) > 0 && !hasToken(f.protocol, "h2c") {
		if f.protocols > 1 {
			return errCodec
		}
		if hd.framing == framingChunked {
			return errTEDenied // upstream, there is no place for chunks before the answer
		}
		hd.upgrade = true
		h.Add("upgrade", h.Intern(f.protocol))
		connection := "upgrade"
		if f.connections == 1 && !f.close && len(p.names) == 0 {
			connection = h.Intern(f.connection) // as it came: some origins compare it
		}
		h.Add("connection", connection)
	}
	hd.expect = f.expect && hd.version == message.HTTP11 && hd.framing != framingNone
	if hd.expect && cfg.Proxy100Continue {
		h.Add("expect", "100-continue")
	}
	return nil
}

// isVersion tells an HTTP version that is not spoken here.
func isVersion(b []byte) bool {
	return len(b) == 8 && string(b[:5]) == "HTTP/" && b[6] == '.' && '0' <= b[5] && b[5] <= '9' && '0' <= b[7] && b[7] <= '9'
}

func (p *parser) requestFraming(h *message.Header, hd *head, cfg *transport.ServerConfig) error {
	f := &p.f
	switch {
	case f.lengths > 1:
		return errCodec
	case f.codings > 0 && f.lengths > 0 && !cfg.AllowChunkedLength:
		return errCLAndTE
	case f.codings > 1 || f.codings == 1 && !f.chunked:
		return errTE
	case f.chunked && (hd.version == message.HTTP10 || hd.connect):
		return errTEDenied
	case hd.connect && f.length > 0:
		return errBodyDenied
	case hd.connect:
		h.Del("content-length")
	case f.chunked:
		if h.Del("content-length") {
			hd.close = true // RFC 9112 section 6.3: whoever sent that may be confused
		}
		hd.framing = framingChunked
	case f.length > 0:
		hd.framing, hd.length = framingLength, f.length
	}
	return nil
}

// Methods that Envoy's parser knows; it refuses others.
var methods = [...]string{
	"GET", "POST", "HEAD", "PUT", "DELETE", "PATCH", "OPTIONS", "CONNECT", "QUERY", "ACL", "BIND", "CHECKOUT", "COPY",
	"LINK", "LOCK", "MERGE", "MKACTIVITY", "MKCALENDAR", "MKCOL", "MOVE", "M-SEARCH", "NOTIFY", "PROPFIND",
	"PROPPATCH", "PURGE", "REBIND", "REPORT", "SEARCH", "SOURCE", "SUBSCRIBE", "TRACE", "UNBIND", "UNLINK",
	"UNLOCK", "UNSUBSCRIBE",
}

// knownMethod returns b as a constant, "" if it is no method.
func knownMethod(b []byte) string {
	for _, m := range methods {
		if string(b) == m {
			return m
		}
	}
	return ""
}

// putTarget turns the request target into pseudo-headers (RFC 9112 section
// 3.2), ":authority" being the index returned if Host is to fill it, or -1.
func putTarget(target []byte, h *message.Header, cfg *transport.ServerConfig, hd *head) (authority int, err error) {
	if hd.method == "CONNECT" {
		hd.connect = true
		if !transport.ValidAuthority(target, true) {
			return 0, errBadURL
		}
		h.Add(message.Authority, h.Intern(target))
		return -1, nil
	}
	scheme := cfg.Scheme
	path := target
	if star := len(target) == 1 && target[0] == '*'; target[0] == '/' || star {
		if star && hd.method != "OPTIONS" {
			return 0, errBadURL
		}
		h.Add(message.Scheme, scheme)
		h.Add(message.Authority, "")
		h.Add(message.Path, h.Intern(path))
		return 2, nil
	}
	before, after, ok := bytes.Cut(target, []byte("://"))
	switch {
	case !ok:
		return 0, errCodec
	case !cfg.AllowAbsoluteURL:
		return 0, errBadURL
	case fold(before, "http"):
		scheme = "http"
	case fold(before, "https"):
		scheme = "https"
	default:
		return 0, errScheme
	}
	rest := after
	path = nil
	if k := bytes.IndexAny(rest, "/?#"); k >= 0 {
		rest, path = rest[:k], rest[k:]
	}
	switch {
	case len(rest) == 0:
		return 0, errBadURL
	case !transport.ValidAuthority(rest, false):
		return 0, errAuthority
	}
	h.Add(message.Scheme, scheme)
	h.Add(message.Authority, h.Intern(rest))
	if len(path) == 0 {
		h.Add(message.Path, "/")
	} else {
		h.Add(message.Path, h.Intern(path)) // "?q" has no path: the connection manager refuses it
	}
	return -1, nil
}

// host checks Host and puts it into :authority, which is field number at.
func (p *parser) host(at int, h *message.Header, hd *head, cfg *transport.ServerConfig) error {
	host := p.f.host
	if p.f.hosts > 1 || len(host) > 0 && !transport.ValidAuthority(host, false) {
		return errAuthority
	}
	switch {
	case at < 0 && p.f.hosts == 0 && hd.version == message.HTTP11:
		return errCodec // authority-form and absolute-form need it as well
	case at < 0:
		return nil
	case len(host) > 0:
		h.SetAt(at, h.Intern(host))
	case p.f.hosts == 0 && hd.version == message.HTTP10 && cfg.DefaultHostHTTP10 != "":
		h.SetAt(at, cfg.DefaultHostHTTP10)
	default:
		h.Del(message.Authority)
		hd.close = true
	}
	return nil
}
