package desync

import (
	"bytes"
	"errors"
	"fmt"
	"strconv"
	"strings"
)

// message is a request as the strict parser read it.
type message struct {
	method, target string
	fields         [][2]string // names in lower case
	body           []byte
	trailers       [][2]string
}

func (m *message) all(name string) []string {
	var out []string
	for _, f := range m.fields {
		if f[0] == name {
			out = append(out, f[1])
		}
	}
	return out
}

const tchars = "!#$%&'*+-.^_`|~0123456789abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ"

func token(s string) bool { return s != "" && strings.Trim(s, tchars) == "" }

// fieldValue is RFC 9110's field-value without obs-text: what a careful sender
// writes.
func fieldValue(s string) bool {
	for i := range len(s) {
		if c := s[i]; c != '\t' && (c < ' ' || c == 0x7f) {
			return false
		}
	}
	return s == strings.Trim(s, " \t")
}

// target is origin-form, asterisk-form, authority-form for CONNECT.
func target(method, s string) bool {
	switch {
	case method == "CONNECT":
		return !strings.ContainsAny(s, "/?#@ ") && strings.Contains(s, ":")
	case s == "*":
		return method == "OPTIONS"
	case !strings.HasPrefix(s, "/"):
		return false
	}
	for i := range len(s) {
		// RFC 3986 has no "<>\^`{|} either; browsers send them, and every proxy
		// passes them on.
		if c := s[i]; c <= ' ' || c >= 0x7f || c == '#' {
			return false
		}
	}
	return true
}

var errMore = errors.New("incomplete")

// line cuts one line that ends with CRLF and holds neither alone.
func line(b []byte) (l string, rest []byte, err error) {
	i := bytes.IndexByte(b, '\n')
	if i < 0 {
		return "", nil, errMore
	}
	if i == 0 || b[i-1] != '\r' {
		return "", nil, errors.New("bare LF")
	}
	if bytes.IndexByte(b[:i-1], '\r') >= 0 {
		return "", nil, errors.New("bare CR")
	}
	return string(b[:i-1]), b[i+1:], nil
}

// section reads fields up to the empty line.
func section(b []byte) (fs [][2]string, rest []byte, err error) {
	for {
		var l string
		if l, b, err = line(b); err != nil {
			return nil, nil, err
		}
		if l == "" {
			return fs, b, nil
		}
		name, value, ok := strings.Cut(l, ":")
		if !ok || !token(name) {
			return nil, nil, fmt.Errorf("field name %q", name)
		}
		value = strings.TrimPrefix(value, " ")
		if !fieldValue(value) {
			return nil, nil, fmt.Errorf("value of %s: %q", name, value)
		}
		fs = append(fs, [2]string{strings.ToLower(name), value})
	}
}

// parse reads one request from b. errMore means that b ends inside it.
func parse(b []byte) (m *message, rest []byte, err error) {
	l, b, err := line(b)
	if err != nil {
		return nil, nil, err
	}
	parts := strings.Split(l, " ")
	if len(parts) != 3 || !token(parts[0]) || !target(parts[0], parts[1]) || parts[2] != "HTTP/1.1" {
		return nil, nil, fmt.Errorf("request line %q", l)
	}
	m = &message{method: parts[0], target: parts[1]}
	if m.fields, b, err = section(b); err != nil {
		return nil, nil, err
	}
	if n := len(m.all("host")); n != 1 {
		return nil, nil, fmt.Errorf("%d host fields", n)
	}
	if h := m.all("host")[0]; strings.ContainsAny(h, " \t@/?#") {
		return nil, nil, fmt.Errorf("host %q", h)
	}
	// Look-alikes that lenient origins take for framing.
	for _, f := range m.fields {
		switch strings.NewReplacer("_", "-").Replace(f[0]) {
		case "content-length", "transfer-encoding":
			if strings.Contains(f[0], "_") {
				return nil, nil, fmt.Errorf("look-alike %s", f[0])
			}
		}
	}
	cl, te := m.all("content-length"), m.all("transfer-encoding")
	switch {
	case len(cl)+len(te) > 1:
		return nil, nil, fmt.Errorf("framing fields %q %q", cl, te)
	case len(te) == 1:
		if te[0] != "chunked" {
			return nil, nil, fmt.Errorf("transfer-encoding %q", te[0])
		}
		b, err = m.chunks(b)
		return m, b, err
	case len(cl) == 1:
		n, err := strconv.ParseUint(cl[0], 10, 63)
		if err != nil || strconv.FormatUint(n, 10) != cl[0] {
			return nil, nil, fmt.Errorf("content-length %q", cl[0])
		}
		if uint64(len(b)) < n {
			return nil, nil, errMore
		}
		m.body = b[:n]
		return m, b[n:], nil
	}
	return m, b, nil
}

func (m *message) chunks(b []byte) ([]byte, error) {
	for {
		l, rest, err := line(b)
		if err != nil {
			return nil, err
		}
		n, err := strconv.ParseUint(l, 16, 31)
		if err != nil || l == "" || strings.Trim(l, "0123456789abcdefABCDEF") != "" {
			return nil, fmt.Errorf("chunk size %q", l)
		}
		b = rest
		if n == 0 {
			m.trailers, b, err = section(b)
			return b, err
		}
		if uint64(len(b)) < n+2 {
			return nil, errMore
		}
		if string(b[n:n+2]) != "\r\n" {
			return nil, errors.New("no CRLF behind a chunk")
		}
		m.body = append(m.body, b[:n]...)
		b = b[n+2:]
	}
}

// requests parses everything that came over one connection. A request that was
// broken off at its end is no violation if what there is of it is valid.
func requests(b []byte) (ms []*message, err error) {
	for len(b) > 0 {
		m, rest, err := parse(b)
		if errors.Is(err, errMore) {
			return ms, nil
		}
		if err != nil {
			return ms, err
		}
		ms = append(ms, m)
		b = rest
	}
	return ms, nil
}
