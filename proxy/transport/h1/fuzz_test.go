package h1

import (
	"bufio"
	"bytes"
	"errors"
	"io"
	"net/http"
	"net/http/httputil"
	"strings"
	"testing"

	"github.com/fairlead-mesh/fairlead/internal/message"
	"github.com/fairlead-mesh/fairlead/internal/sweep"
	"github.com/fairlead-mesh/fairlead/proxy/transport"
)

// roomy allows for the fields that writing adds.
var roomy = &transport.ServerConfig{AllowAbsoluteURL: true, MaxHeaders: 1000}

// FuzzRequestHead: what is accepted is written in one form that parses to the
// same request, and net/http accepts it and agrees about it.
func FuzzRequestHead(f *testing.F) {
	for _, c := range append(append([]headCase(nil), goodRequests...), badRequests...) {
		f.Add([]byte(c.in + "\r\n"))
	}
	br := bufio.NewReader(nil)
	f.Fuzz(sweep.Around(f, func(t *testing.T, in []byte) {
		n := headEnd(in, 0)
		if n == 0 {
			return
		}
		var p parser
		var h, again message.Header
		hd, err := p.request(bytes.Clone(in[:n]), &h, edge)
		if err != nil || !h.Has(message.Authority) || strings.HasPrefix(h.Get(message.Path), "?") || strings.HasPrefix(h.Get(message.Path), "#") {
			return // the connection manager refuses what has no host or no path
		}
		sweep.Accepted()
		out, r, err := appendRequestHead(nil, &h, hd.framing == framingNone)
		if err != nil {
			t.Fatalf("%q is accepted and can't be written: %v", in[:n], err)
		}
		hd2, err := p.request(bytes.Clone(out), &again, roomy)
		if err != nil {
			t.Fatalf("%q became %q: %v", in[:n], out, err)
		}
		if hd.upgrade != hd2.upgrade || hd.framing != hd2.framing || hd.length != hd2.length || hd.framing != r.body.fr {
			t.Fatalf("%q became %q: %+v, %+v", in[:n], out, hd, hd2)
		}
		again.Del("content-length")
		h.Del("content-length")
		if a, b := sorted(&h), sorted(&again); a != b {
			t.Fatalf("%q became %q:\n%s\n%s", in[:n], out, a, b)
		}
		br.Reset(bytes.NewReader(out))
		q, err := http.ReadRequest(br)
		if err != nil {
			if strings.Contains(err.Error(), "invalid URL") || strings.Contains(err.Error(), "parse ") || strings.Contains(err.Error(), "malformed Host") {
				return // net/url has rules of its own
			}
			t.Fatalf("net/http refuses %q: %v", out, err)
		}
		chunked := len(q.TransferEncoding) == 1
		if q.Method != h.Get(message.Method) || !hd.connect && q.Host != h.Get(message.Authority) || chunked != (hd.framing == framingChunked) ||
			hd.framing == framingLength && q.ContentLength != int64(hd.length) {
			t.Fatalf("net/http takes %q for %+v", out, q)
		}
	}))
}

// sorted lists the fields, order among different names aside.
func sorted(h *message.Header) string {
	var pseudo, rest []string
	for i := range h.Len() {
		if f := h.At(i); f.Name[0] == ':' {
			if f.Name != message.Scheme {
				pseudo = append(pseudo, f.Name+"="+f.Value)
			}
		} else if f.Name != "connection" && f.Name != "upgrade" && f.Name != "te" {
			rest = append(rest, f.Name+"="+f.Value)
		}
	}
	return strings.Join(pseudo, "\n") + "\n" + strings.Join(rest, "\n") + "\n" + h.Get("upgrade") + h.Get("te")
}

// FuzzResponseHead: as FuzzRequestHead, for responses.
func FuzzResponseHead(f *testing.F) {
	for _, c := range responses {
		f.Add([]byte(c.in+"\r\n"), uint8(len(c.kind)))
	}
	br := bufio.NewReader(nil)
	f.Fuzz(sweep.Around(f, func(t *testing.T, in []byte, k uint8) {
		n := headEnd(in, 0)
		if n == 0 {
			return
		}
		kind := []string{"", "HEAD", "CONNECT"}[k%3]
		var p parser
		var h, again message.Header
		hd, err := p.response(bytes.Clone(in[:n]), &h, kind, k&64 != 0, 0)
		if err != nil {
			return
		}
		sweep.Accepted()
		r := responseHead{method: kind, end: hd.framing == framingNone}
		h.Del("host")
		out, err := appendResponseHead(nil, &h, &r)
		if err != nil {
			t.Fatalf("%q is accepted and can't be written: %v", in[:n], err)
		}
		hd2, err := p.response(bytes.Clone(out), &again, kind, k&64 != 0, 1000)
		if err != nil {
			t.Fatalf("%q became %q: %v", in[:n], out, err)
		}
		same := hd.framing == hd2.framing && hd.length == hd2.length || hd.framing == framingUntilClose && hd2.framing == framingChunked
		again.Del("content-length")
		h.Del("content-length")
		if a, b := sorted(&h), sorted(&again); !same || hd.status != hd2.status || a != b {
			t.Fatalf("%q became %q:\n%s\n%s", in[:n], out, a, b)
		}
		method := kind
		if method == "" {
			method = "GET"
		}
		br.Reset(bytes.NewReader(out))
		q, err := http.ReadResponse(br, &http.Request{Method: method})
		if err != nil {
			t.Fatalf("net/http refuses %q: %v", out, err)
		}
		_ = q.Body.Close()
		if q.StatusCode != hd.status || kind == "" && hd.status >= 200 && hd2.framing == framingLength && q.ContentLength != int64(hd.length) {
			t.Fatalf("net/http takes %q for %+v", out, q)
		}
	}))
}

// FuzzChunked: the result does not depend on how the bytes arrive, and what is
// accepted net/http decodes to the same.
func FuzzChunked(f *testing.F) {
	f.Add([]byte("3\r\nabc\r\n0\r\n\r\n"), 1)
	f.Add([]byte("a;x=y\r\n0123456789\r\n00\r\n\r\n"), 3)
	f.Add([]byte("1\r\na\r\n1;b=\"c\"\r\nb\r\nA\r\n0123456789\r\n0\r\nT: 1\r\n\r\n"), 2)
	f.Add([]byte("3 \r\nabc\r\n0\r\n\r\n"), 4)
	f.Add([]byte("0;"+strings.Repeat("x", 4100)+"\r\n\r\n"), 5)
	f.Fuzz(sweep.Around(f, func(t *testing.T, in []byte, cut int) {
		whole, wEnd, wErr := decodeChunks(bytes.Clone(in), len(in))
		parts, pEnd, pErr := decodeChunks(bytes.Clone(in), max(1, cut%7))
		if wEnd != pEnd || (wErr == nil) != (pErr == nil) || wErr == nil && whole != parts {
			t.Fatalf("%q: whole %q %t %v, in parts %q %t %v", in, whole, wEnd, wErr, parts, pEnd, pErr)
		}
		if !wEnd || wErr != nil {
			return
		}
		sweep.Accepted()
		got, err := io.ReadAll(httputil.NewChunkedReader(bytes.NewReader(in)))
		if errors.Is(err, http.ErrLineTooLong) || err != nil && strings.Contains(err.Error(), "too much non-data") {
			return // net/http has other bounds on extensions
		}
		if err != nil || string(got) != whole {
			t.Fatalf("%q: %q, net/http says %q, %v", in, whole, got, err)
		}
	}))
}

// decodeChunks decodes in with at most size bytes at a time; end: the last
// chunk was seen.
func decodeChunks(in []byte, size int) (out string, end bool, err error) {
	var c chunked
	var b strings.Builder
	for len(in) > 0 {
		p := in[:min(size, len(in))]
		in = in[len(p):]
		for len(p) > 0 {
			data, n, err := c.decode(p)
			if err != nil {
				return b.String(), false, err
			}
			b.Write(data)
			if c.state == chunkTrailer {
				return b.String(), true, nil
			}
			p = p[n:]
		}
	}
	return b.String(), false, nil
}
