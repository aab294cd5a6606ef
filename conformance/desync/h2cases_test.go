package desync

import (
	"bytes"
	"encoding/binary"
	"fmt"

	"golang.org/x/net/http2/hpack"
)

// h2Case is one stream on a connection of its own.
type h2Case struct {
	name     string
	fields   [][2]string
	body     []string // DATA frames
	trailers [][2]string
	valid    bool
}

func h2Cases() []h2Case {
	base := func(kv ...string) [][2]string {
		out := [][2]string{{":method", "POST"}, {":scheme", "http"}, {":authority", "h.example"}, {":path", "/h2"}}
		for i := 0; i+1 < len(kv); i += 2 {
			out = append(out, [2]string{kv[i], kv[i+1]})
		}
		return out
	}
	with := func(name, value string) [][2]string {
		out := base()
		for i := range out {
			if out[i][0] == name {
				out[i][1] = value
			}
		}
		return out
	}
	inject := "x\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\nGET /smuggled HTTP/1.1\r\nHost: evil"
	var out []h2Case
	add := func(name string, fs [][2]string, body ...string) {
		out = append(out, h2Case{name: name, fields: fs, body: body})
	}
	out = append(out, h2Case{name: "plain", fields: base(), body: []string{"abc"}, valid: true}, h2Case{name: "with length", fields: base("content-length", "3"), body: []string{"abc"}, valid: true})
	for i := range 256 {
		c := string([]byte{byte(i)})
		for _, p := range []string{":method", ":scheme", ":authority", ":path"} {
			add(fmt.Sprintf("byte %d in %s", i, p), with(p, map[string]string{":method": "PO", ":scheme": "ht", ":authority": "h", ":path": "/p"}[p]+c+"x"), "abc")
		}
		add(fmt.Sprintf("byte %d in a name", i), base("x"+c+"y", "z"), "abc")
		add(fmt.Sprintf("byte %d in a value", i), base("x", "y"+c+"z"), "abc")
		add(fmt.Sprintf("byte %d before chunked", i), base("transfer-encoding", c+"chunked"), "0\r\n\r\n")
		add(fmt.Sprintf("byte %d in a length", i), base("content-length", "3"+c), "abc")
	}
	for _, p := range []string{":method", ":scheme", ":authority", ":path", "x", "cookie", "host", "te", "expect"} {
		if p[0] == ':' {
			add("injection into "+p, with(p, inject), "abc")
		} else {
			add("injection into "+p, base(p, inject), "abc")
		}
	}
	for _, kv := range [][2]string{
		{"transfer-encoding", "chunked"}, {"connection", "close"}, {"connection", "x"}, {"keep-alive", "1"}, {"proxy-connection", "close"}, {"upgrade", "h2c"}, {"te", "gzip"},
		{"te", "trailers"}, {"host", "other.example"}, {"host", "h.example"}, {"Content-Length", "3"}, {"content_length", "5"}, {"transfer_encoding", "chunked"},
		{"content-length", "2"}, {"content-length", "4"}, {"content-length", "-3"}, {"content-length", "+3"}, {"content-length", "03"}, {"content-length", "3, 3"}, {"content-length", ""},
		{"", "x"}, {":path", "/second"}, {":unknown", "x"}, {":status", "200"}, {"x:y", "z"}, {"x y", "z"}, {"http2-settings", "AAMAAABk"},
	} {
		add(fmt.Sprintf("field %q: %q", kv[0], kv[1]), base(kv[0], kv[1]), "abc")
		out = append(out, h2Case{name: fmt.Sprintf("trailer %q: %q", kv[0], kv[1]), fields: base(), body: []string{"abc"}, trailers: [][2]string{kv}})
	}
	add("lengths that differ", base("content-length", "3", "content-length", "4"), "abc")
	add("pseudo-header behind a field", append(base("x", "y"), [2]string{":path", "/b"}), "abc")
	add("no path", base()[:3])
	add("no authority", append(base()[:2:2], base()[3]), "abc")
	for _, p := range []string{"", "*", "a", "http://h.example/", "//evil.example/", "/a b", "/a HTTP/1.1\r\nx: y", "/a?b c", "/%0d%0a", "/\\", "/#f"} {
		add(fmt.Sprintf("path %q", p), with(":path", p), "abc")
	}
	for _, m := range []string{"", "GET /x HTTP/1.1\r\nX:", "CONNECT", "get", "PRI"} {
		add(fmt.Sprintf("method %q", m), with(":method", m), "abc")
	}
	return out
}

// encode renders the case as the bytes of a connection.
func (c *h2Case) encode() []byte {
	var out bytes.Buffer
	frame := func(typ, flags byte, stream uint32, p []byte) {
		var h [9]byte
		binary.BigEndian.PutUint32(h[:], uint32(len(p))<<8)
		h[3], h[4] = typ, flags
		binary.BigEndian.PutUint32(h[5:], stream)
		out.Write(h[:])
		out.Write(p)
	}
	head := func(fs [][2]string) []byte {
		var b bytes.Buffer
		e := hpack.NewEncoder(&b)
		e.SetMaxDynamicTableSizeLimit(0)
		for _, f := range fs {
			_ = e.WriteField(hpack.HeaderField{Name: f[0], Value: f[1]})
		}
		return b.Bytes()
	}
	out.WriteString("PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n")
	frame(4, 0, 0, nil)
	const endStream, endHeaders = 1, 4
	flags := byte(endHeaders)
	if len(c.body) == 0 && c.trailers == nil {
		flags |= endStream
	}
	frame(1, flags, 1, head(c.fields))
	for i, d := range c.body {
		f := byte(0)
		if i == len(c.body)-1 && c.trailers == nil {
			f = endStream
		}
		frame(0, f, 1, []byte(d))
	}
	if c.trailers != nil {
		frame(1, endHeaders|endStream, 1, head(c.trailers))
	}
	return out.Bytes()
}
