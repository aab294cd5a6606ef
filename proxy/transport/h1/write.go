package h1

import (
	"net/http"
	"strconv"
	"strings"

	"github.com/fairlead-mesh/fairlead/internal/message"
	"github.com/fairlead-mesh/fairlead/proxy/transport"
)

// badField is the error for a field that can't be written without changing the
// meaning of the message.
func badField(name string) error {
	return &transport.ResetError{Reason: transport.ProtocolError, Detail: "header " + strconv.Quote(name) + " can't be written as HTTP/1.1"}
}

// appendFields appends the ordinary fields of h. Hop-by-hop fields are the
// codec's own business and are left out.
func appendFields(b []byte, h *message.Header, upgrade bool) ([]byte, error) {
	for i := range h.Len() {
		f := h.At(i)
		if f.Name == "" {
			return b, badField(f.Name)
		}
		switch f.Name[0] {
		case ':':
			continue
		case 'c':
			if f.Name == "connection" {
				continue
			}
		case 't':
			if f.Name == "transfer-encoding" {
				continue
			}
		case 'k':
			if f.Name == "keep-alive" {
				continue
			}
		case 'p':
			if f.Name == "proxy-connection" {
				continue
			}
		case 'u':
			if f.Name == "upgrade" && !upgrade {
				continue
			}
		}
		if !cleanName(f.Name) || !cleanValue(f.Value) {
			return b, badField(f.Name)
		}
		b = append(b, f.Name...)
		b = append(b, ": "...)
		b = append(b, f.Value...)
		b = append(b, "\r\n"...)
	}
	return b, nil
}

func cleanName(s string) bool {
	for i := range len(s) {
		if !tokenChar[s[i]] {
			return false
		}
	}
	return s != ""
}

func cleanValue(s string) bool {
	for i := range len(s) {
		if !valueChar[s[i]] {
			return false
		}
	}
	return true
}

// cleanTarget checks method and path of a request line.
func cleanTarget(s string) bool {
	for i := range len(s) {
		if s[i] <= ' ' || s[i] >= 0x7f {
			return false
		}
	}
	return s != ""
}

// declaredLength reads content-length of an outgoing message.
func declaredLength(h *message.Header) (uint64, bool) {
	v, ok := h.Lookup("content-length")
	if !ok || h.Count("content-length") > 1 {
		return 0, false
	}
	n, err := strconv.ParseUint(v, 10, 63)
	return n, err == nil && (len(v) == 1 || v[0] != '0')
}

// appendRequestHead appends request line and fields, in canonical form; end
// says that no body follows. It returns the framing chosen.
func appendRequestHead(b []byte, h *message.Header, end bool) ([]byte, framing, uint64, error) {
	method, path, host := h.Get(message.Method), h.Get(message.Path), h.Get(message.Authority)
	connect := method == "CONNECT"
	upgrade := !connect && h.Has("upgrade")
	target := path
	if connect {
		target = host
	}
	if !cleanName(method) || !cleanTarget(target) || !cleanValue(host) {
		return b, 0, 0, badField("request line")
	}
	b = append(append(append(append(b, method...), ' '), target...), " HTTP/1.1\r\nhost: "...)
	b = append(append(b, host...), "\r\n"...)
	n, hasCL := declaredLength(h)
	if !hasCL {
		h.Del("content-length")
	}
	fr := framingNone
	b, err := appendFields(b, h, upgrade)
	if err != nil {
		return b, 0, 0, err
	}
	switch {
	case upgrade:
		b = append(b, "connection: upgrade\r\n"...)
	case connect:
	case hasCL && n > 0 && end:
		return b, 0, 0, badField("content-length")
	case hasCL && n > 0:
		fr = framingLength
	case hasCL:
	case !end:
		fr = framingChunked
		b = append(b, "transfer-encoding: chunked\r\n"...)
	case method == "POST" || method == "PUT" || method == "PATCH":
		b = append(b, "content-length: 0\r\n"...)
	}
	return append(b, "\r\n"...), fr, n, nil
}

// responseHead is what appendResponseHead needs besides the fields.
type responseHead struct {
	method           string
	version          message.Version
	end, close, keep bool
}

// appendResponseHead appends status line and fields and returns the framing.
func appendResponseHead(b []byte, h *message.Header, r *responseHead) ([]byte, framing, uint64, error) {
	code := h.Get(message.Status)
	status, err := strconv.Atoi(code)
	if err != nil || len(code) != 3 {
		return b, 0, 0, badField(message.Status)
	}
	if r.version == message.HTTP10 {
		b = append(b, "HTTP/1.0 "...)
	} else {
		b = append(b, "HTTP/1.1 "...)
	}
	b = append(append(b, code...), ' ')
	b = append(append(b, http.StatusText(status)...), "\r\n"...)
	bodiless := status < 200 || status == 204 || status == 304 || r.method == "HEAD" || r.method == "CONNECT" && status < 300
	n, hasCL := declaredLength(h)
	if !hasCL || status < 200 || status == 204 || r.method == "CONNECT" && status < 300 {
		h.Del("content-length")
	}
	if b, err = appendFields(b, h, status == 101); err != nil {
		return b, 0, 0, err
	}
	fr := framingNone
	switch {
	case status == 101:
		b = append(b, "connection: upgrade\r\n"...)
	case bodiless:
	case hasCL && n > 0:
		fr = framingLength
	case hasCL:
	case r.end:
		b = append(b, "content-length: 0\r\n"...)
	case r.version == message.HTTP10:
		fr, r.close = framingUntilClose, true
	default:
		fr = framingChunked
		b = append(b, "transfer-encoding: chunked\r\n"...)
	}
	switch {
	case status < 200:
	case r.close:
		b = append(b, "connection: close\r\n"...)
	case r.keep && r.version == message.HTTP10:
		b = append(b, "connection: keep-alive\r\n"...)
	}
	return append(b, "\r\n"...), fr, n, nil
}

// appendTrailers appends the end of a chunked body with a trailer section.
func appendTrailers(b []byte, h *message.Header, enabled bool) ([]byte, error) {
	b = append(b, "0\r\n"...)
	if enabled && h != nil {
		mark := len(b)
		var err error
		if b, err = appendFields(b, h, false); err != nil {
			return b[:mark], err
		}
	}
	return append(b, "\r\n"...), nil
}

func equalFold(a, b string) bool { return strings.EqualFold(a, b) }
