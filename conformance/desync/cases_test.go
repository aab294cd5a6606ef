package desync

import (
	"fmt"
	"strings"
)

// rawCase is what one client connection sends.
type rawCase struct {
	name  string
	bytes string
	// valid says that the request is one that must be forwarded.
	valid bool
}

// lengths and encodings are ways to write the fields that frame a body.
var lengths = []string{
	"", "Content-Length: 5", "content-length:5", "Content-Length: 5\r\nContent-Length: 5", "Content-Length: 5\r\nContent-Length: 6",
	"Content-Length: 5, 5", "Content-Length: 5,6", "Content-Length: +5", "Content-Length: -5", "Content-Length: 0x5", "Content-Length: 05",
	"Content-Length: 5 ", "Content-Length: \t5", "Content-Length : 5", "Content-Length\t: 5", " Content-Length: 5", "Content-Length: 5\r\n x",
	"Content_Length: 5", "Content-Length: ", "Content-Length: 5;", "Content-Length: 5.0", "Content-Length: 99999999999999999999", "Content-Length: 1e1",
	"Content-Length\x00: 5", "Content-Length: 5\x00", "Content-Length: \x0b5", "X: y\nContent-Length: 5", "X: y\rContent-Length: 5", "Content-Length: ５",
}

var encodings = []string{
	"", "Transfer-Encoding: chunked", "transfer-encoding:chunked", "Transfer-Encoding: Chunked", "Transfer-Encoding: chunked, chunked",
	"Transfer-Encoding: identity", "Transfer-Encoding: gzip, chunked", "Transfer-Encoding: chunked, gzip", "Transfer-Encoding: xchunked",
	"Transfer-Encoding: chunked;q=1", "Transfer-Encoding: \"chunked\"", "Transfer-Encoding: chunked ", "Transfer-Encoding:\tchunked", "Transfer-Encoding : chunked",
	"Transfer-Encoding\t: chunked", " Transfer-Encoding: chunked", "Transfer_Encoding: chunked", "Transfer-Encoding:\r\n chunked", "Transfer-Encoding: \x0bchunked",
	"Transfer-Encoding: chunked\x00", "Transfer-Encoding: chunked\r\nTransfer-Encoding: identity", "Transfer-Encoding: identity\r\nTransfer-Encoding: chunked",
	"X: y\nTransfer-Encoding: chunked", "X: y\rTransfer-Encoding: chunked", "Transfer-Encoding: chunked,", "Transfer-Encoding: ,chunked", "Transfer-Encoding: ",
	"Transfer-Encoding: chun\u212aed", "tRANSFER-eNCODING: cHUNKED",
}

var bodies = []struct{ name, bytes string }{
	{"length", "abcde"},
	{"chunked", "5\r\nabcde\r\n0\r\n\r\n"},
	{"none", ""},
}

const smuggled = "GET /smuggled HTTP/1.1\r\nHost: evil.example\r\n\r\n"

// framing crosses lengths, encodings and bodies.
func framing() []rawCase {
	var out []rawCase
	for i, l := range lengths {
		for j, e := range encodings {
			for _, b := range bodies {
				head := "POST /framing HTTP/1.1\r\nHost: h.example\r\n"
				for _, f := range []string{l, e} {
					if f != "" {
						head += f + "\r\n"
					}
				}
				out = append(out, rawCase{
					name: fmt.Sprintf("framing length %d encoding %d body %s", i, j, b.name), bytes: head + "\r\n" + b.bytes + smuggled,
					valid: j == 0 && (i == 1 || i == 2) && b.name == "length" || i == 0 && (j == 1 || j == 2) && b.name == "chunked",
				})
			}
		}
	}
	return out
}

// gadgets hide a transfer encoding from one parser of two: one byte, or two, in each
// place of the field, before a length and behind one.
func gadgets() []rawCase {
	var out []rawCase
	for b := 1; b < 256; b++ {
		if b > 0x20 && b < 0x7f {
			continue
		}
		x := string([]byte{byte(b)})
		for i, f := range []string{
			x + "Transfer-Encoding: chunked", "Transfer" + x + "Encoding: chunked", "Transfer-" + x + "Encoding: chunked", "Transfer-Encoding" + x + ": chunked", "Transfer-Encoding:" + x + "chunked",
			"Transfer-Encoding: chun" + x + "ked", "Transfer-Encoding: chunked" + x, x + x + "Transfer-Encoding: chunked", "Transfer-Encoding: " + x + x + "chunked", "X: X" + x + "Transfer-Encoding: chunked",
			"X: X\r" + x + "Transfer-Encoding: chunked",
		} {
			for j, head := range []string{f + "\r\nContent-Length: 5", "Content-Length: 5\r\n" + f} {
				body := "abcde"
				if j == 1 {
					body = "5\r\nabcde\r\n0\r\n\r\n"
				}
				out = append(out, rawCase{name: fmt.Sprintf("gadget %d of byte %#02x, %d", i, b, j), bytes: "POST /gadget HTTP/1.1\r\nHost: h.example\r\n" + head + "\r\n\r\n" + body + smuggled})
			}
		}
	}
	return out
}

// chunking are bodies that are said to be chunked.
func chunking() []rawCase {
	sizes := []string{
		"5", "05", "0000005", "5;", "5;a", "5;a=b", "5 ;a=b", "5; a=\"x;y\"", "5\t", " 5", "5 ", "+5", "-5", "0x5", "5h", "5\x00", "", "g",
		"FFFFFFFFFFFFFFFF5", "100000000000000005", "5;\n", "5\r", "5;a=\"\r\n\"", strings.Repeat("0", 100) + "5", "5;" + strings.Repeat("e", 20000),
	}
	ends := []string{"\r\n", "\n", "\r", "", "\r\r\n", "\r\n\r\n", "x\r\n"}
	tails := []string{
		"0\r\n\r\n", "0\n\n", "0\r\n\n", "00\r\n\r\n", "0\r\nX: y\r\n\r\n", "0\r\nContent-Length: 50\r\n\r\n", "0\r\nTransfer-Encoding: chunked\r\n\r\n",
		"0\r\nHost: evil\r\n\r\n", "0\r\n X: y\r\n\r\n", "0\r\nX : y\r\n\r\n", "0;a=b\r\n\r\n", "0\r\nX: y\r\n", "-0\r\n\r\n",
	}
	var out []rawCase
	add := func(name, body string) {
		out = append(out, rawCase{name: name, bytes: "POST /chunking HTTP/1.1\r\nHost: h.example\r\nTransfer-Encoding: chunked\r\n\r\n" + body + smuggled})
	}
	for i, s := range sizes {
		for j, e := range ends {
			add(fmt.Sprintf("chunk size %d end of line %d", i, j), s+e+"abcde\r\n0\r\n\r\n")
			add(fmt.Sprintf("chunk size %d end of data %d", i, j), s+"\r\nabcde"+e+"0\r\n\r\n")
		}
	}
	for i, t := range tails {
		add(fmt.Sprintf("last chunk %d", i), "5\r\nabcde\r\n"+t)
	}
	return out
}

// heads are request lines and fields that are wrong or odd.
func heads() []rawCase {
	var out []rawCase
	add := func(kind string, i int, b string) {
		out = append(out, rawCase{name: fmt.Sprintf("%s %d", kind, i), bytes: b + smuggled})
	}
	for i := range 256 {
		add("byte in the path", i, "GET /p"+string([]byte{byte(i)})+"q HTTP/1.1\r\nHost: h.example\r\n\r\n")
		add("byte in a name", i, "GET /names HTTP/1.1\r\nHost: h.example\r\nX"+string([]byte{byte(i)})+"Y: z\r\n\r\n")
		add("byte in a value", i, "GET /values HTTP/1.1\r\nHost: h.example\r\nX: y"+string([]byte{byte(i)})+"z\r\n\r\n")
		add("byte in the host", i, "GET /hosts HTTP/1.1\r\nHost: h"+string([]byte{byte(i)})+"x.example\r\n\r\n")
		add("byte in the method", i, "GE"+string([]byte{byte(i)})+"T /methods HTTP/1.1\r\nHost: h.example\r\n\r\n")
		add("byte before the colon", i, "POST /colon HTTP/1.1\r\nHost: h.example\r\nTransfer-Encoding"+string([]byte{byte(i)})+": chunked\r\n\r\n0\r\n\r\n")
		add("byte before the value", i, "POST /before HTTP/1.1\r\nHost: h.example\r\nTransfer-Encoding:"+string([]byte{byte(i)})+"chunked\r\n\r\n0\r\n\r\n")
		add("byte behind the value", i, "POST /behind HTTP/1.1\r\nHost: h.example\r\nContent-Length: 5"+string([]byte{byte(i)})+"\r\n\r\nabcde")
	}
	lines := []string{
		"GET /a HTTP/1.0", "GET /a HTTP/1.2", "GET /a HTTP/2.0", "GET /a HTTP/0.9", "GET /a", "GET  /a HTTP/1.1", "GET /a  HTTP/1.1", "GET\t/a\tHTTP/1.1", " GET /a HTTP/1.1",
		"GET /a HTTP/1.1 ", "GET /a http/1.1", "GET /a HTTP/1.1x", "GET /a b HTTP/1.1", "GET a HTTP/1.1", "GET * HTTP/1.1", "OPTIONS * HTTP/1.1", "GET ? HTTP/1.1",
		"GET http://other.example/a HTTP/1.1", "GET http://user@h.example/a HTTP/1.1", "GET http:///a HTTP/1.1", "GET //evil.example/a HTTP/1.1", "GET /a#b HTTP/1.1",
		"GET /%00 HTTP/1.1", "GET /%0d%0aX:y HTTP/1.1", "GET /\\..\\a HTTP/1.1", "CONNECT h.example:443 HTTP/1.1", "CONNECT /a HTTP/1.1", "get /a HTTP/1.1", "\r\nGET /a HTTP/1.1",
		"\nGET /a HTTP/1.1", "GET /a HTTP/1.1\r\nHost: two.example", "GET /a HTTP/1.1\r\n: empty", "GET /a HTTP/1.1\r\nnocolon", "GET /a HTTP/1.1\r\nX:\r\n y",
		"GET /a HTTP/1.1\r\nConnection: Host", "GET /a HTTP/1.1\r\nConnection: Content-Length\r\nContent-Length: 5", "GET /a HTTP/1.1\r\nConnection: Transfer-Encoding\r\nTransfer-Encoding: chunked",
		"GET /a HTTP/1.1\r\nUpgrade: h2c\r\nConnection: Upgrade, HTTP2-Settings\r\nHTTP2-Settings: AAMAAABk", "GET /a HTTP/1.1\r\nExpect: 100-continue\r\nContent-Length: 5", "PRI * HTTP/2.0",
	}
	for i, l := range lines {
		add("request line", i, l+"\r\nHost: h.example\r\n\r\n")
	}
	return out
}

func h1Cases() []rawCase {
	out := []rawCase{
		{name: "plain GET", bytes: "GET /valid HTTP/1.1\r\nHost: h.example\r\n\r\n", valid: true},
		{name: "plain POST", bytes: "POST /valid HTTP/1.1\r\nHost: h.example\r\nContent-Length: 3\r\n\r\nabc", valid: true},
	}
	out = append(out, framing()...)
	out = append(out, chunking()...)
	out = append(out, heads()...)
	return append(out, gadgets()...)
}
