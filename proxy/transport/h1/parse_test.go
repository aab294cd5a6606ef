package h1

import (
	"math/rand/v2"
	"strings"
	"testing"

	"github.com/fairlead-mesh/fairlead/internal/message"
	"github.com/fairlead-mesh/fairlead/proxy/transport"
)

// headCase is a request head, without the empty line, and what becomes of it:
// the fields, or "!" and the error's details.
type headCase struct{ name, in, want string }

// get returns a GET with further lines after Host.
func get(lines string) string { return "GET / HTTP/1.1\r\nHost: a\r\n" + lines }

// post returns a POST with further lines after Host.
func post(lines string) string { return "POST / HTTP/1.1\r\nHost: a\r\n" + lines }

const (
	gotGet  = ":method=GET :scheme=http :authority=a :path=/"
	gotPost = ":method=POST :scheme=http :authority=a :path=/"
)

var goodRequests = []headCase{
	{"a plain GET", get(""), gotGet},
	{"names are lower-cased, order and values kept", get("X-B: 2\r\nx-A: One Two\r\n"), gotGet + " x-b=2 x-a=One Two"},
	{"whitespace around a value is dropped", get("X: \t v \t \r\n"), gotGet + " x=v"},
	{"a value may be missing", get("X:\r\nY: \t\r\n"), gotGet + " x= y="},
	{"a tab inside a value is kept", get("X: a\tb\r\n"), gotGet + " x=a\tb"},
	{"obs-text in a value is kept", get("X: \xc3\xa9\xff\r\n"), gotGet + " x=\xc3\xa9\xff"},
	{"colons in a value are kept", get("X: a:b::c\r\n"), gotGet + " x=a:b::c"},
	{"every token character in a name", get("!#$%&'*+-.^_`|~09azAZ: v\r\n"), gotGet + " !#$%&'*+-.^_`|~09azaz=v"},
	{"a repeated field stays repeated", get("X: 1\r\nX: 2\r\n"), gotGet + " x=1 x=2"},
	{"host with a port", "GET / HTTP/1.1\r\nHost: a.b:8080\r\n", ":method=GET :scheme=http :authority=a.b:8080 :path=/"},
	{"host with an IPv6 literal", "GET / HTTP/1.1\r\nHost: [::1]:80\r\n", ":method=GET :scheme=http :authority=[::1]:80 :path=/"},
	{"host with an IPv6 literal without port", "GET / HTTP/1.1\r\nHost: [fe80::1.2.3.4]\r\n", ":method=GET :scheme=http :authority=[fe80::1.2.3.4] :path=/"},
	{"host of sub-delims and escapes", "GET / HTTP/1.1\r\nHost: a_b%20!~\r\n", ":method=GET :scheme=http :authority=a_b%20!~ :path=/"},
	{"host in upper case is kept", "GET / HTTP/1.1\r\nHOST: EXAMPLE.com\r\n", ":method=GET :scheme=http :authority=EXAMPLE.com :path=/"},
	{"no host: left to the manager", "GET / HTTP/1.1\r\n", ":method=GET :scheme=http :path=/"},
	{"an empty host: left to the manager", "GET / HTTP/1.1\r\nHost:\r\n", ":method=GET :scheme=http :path=/"},
	{"any visible target", "GET /a?b=%00&c=~!*'();:@&=+$,/?[] HTTP/1.1\r\nHost: a\r\n", ":method=GET :scheme=http :authority=a :path=/a?b=%00&c=~!*'();:@&=+$,/?[]"},
	{"a fragment: left to the manager", "GET /a#b HTTP/1.1\r\nHost: a\r\n", ":method=GET :scheme=http :authority=a :path=/a#b"},
	{"a path that looks absolute", "GET //b/c HTTP/1.1\r\nHost: a\r\n", ":method=GET :scheme=http :authority=a :path=//b/c"},
	{"absolute form replaces Host", "GET http://b:99/x HTTP/1.1\r\nHost: a\r\n", ":method=GET :scheme=http :authority=b:99 :path=/x"},
	{"absolute form with https", "GET HTTPS://b/ HTTP/1.1\r\nHost: a\r\n", ":method=GET :scheme=https :authority=b :path=/"},
	{"absolute form without a path", "GET http://b HTTP/1.1\r\nHost: a\r\n", ":method=GET :scheme=http :authority=b :path=/"},
	{"absolute form with a query only", "GET http://b?x HTTP/1.1\r\nHost: a\r\n", ":method=GET :scheme=http :authority=b :path=?x"},
	{"absolute form of OPTIONS", "OPTIONS http://b HTTP/1.1\r\nHost: a\r\n", ":method=OPTIONS :scheme=http :authority=b :path=/"},
	{"asterisk form", "OPTIONS * HTTP/1.1\r\nHost: a\r\n", ":method=OPTIONS :scheme=http :authority=a :path=*"},
	{"CONNECT", "CONNECT b:80 HTTP/1.1\r\nHost: a\r\n", ":method=CONNECT :authority=b:80"},
	{"CONNECT to an IPv6 literal", "CONNECT [::1]:80 HTTP/1.1\r\nHost: a\r\n", ":method=CONNECT :authority=[::1]:80"},
	{"CONNECT with length 0", "CONNECT b:80 HTTP/1.1\r\nHost: a\r\nContent-Length: 0\r\n", ":method=CONNECT :authority=b:80"},
	{"a method with a dash", "M-SEARCH / HTTP/1.1\r\nHost: a\r\n", ":method=M-SEARCH :scheme=http :authority=a :path=/"},
	{"QUERY", "QUERY / HTTP/1.1\r\nHost: a\r\n", ":method=QUERY :scheme=http :authority=a :path=/"},
	{"a length", post("Content-Length: 5\r\n"), gotPost + " content-length=5 body=5"},
	{"a length of 0", post("Content-Length: 0\r\n"), gotPost + " content-length=0"},
	{"a length with whitespace around", post("Content-Length: \t5 \r\n"), gotPost + " content-length=5 body=5"},
	{"the largest length", post("Content-Length: 999999999999999999\r\n"), gotPost + " content-length=999999999999999999 body=999999999999999999"},
	{"a length with GET", get("Content-Length: 5\r\n"), gotGet + " content-length=5 body=5"},
	{"chunked", post("Transfer-Encoding: chunked\r\n"), gotPost + " body=chunked"},
	{"chunked in any case", post("TRANSFER-ENCODING: Chunked\r\n"), gotPost + " body=chunked"},
	{"a look-alike of transfer-encoding is no framing", post("Transfer_Encoding: chunked\r\n"), gotPost + " transfer_encoding=chunked"},
	{"a look-alike of content-length is no framing", post("Content_Length: 5\r\n"), gotPost + " content_length=5"},
	{"content-encoding is no framing", post("Content-Encoding: chunked\r\n"), gotPost + " content-encoding=chunked"},
	{"connection: close", get("Connection: close\r\n"), gotGet + " close"},
	{"connection: keep-alive says nothing in 1.1", get("Connection: Keep-Alive\r\nKeep-Alive: timeout=5\r\nProxy-Connection: keep-alive\r\n"), gotGet},
	{"nominated fields are removed", get("X-A: 1\r\nConnection: close, x-a , X-B\r\nX-B: 2\r\nX-C: 3\r\n"), gotGet + " x-c=3 close"},
	{"nominated in several lines", get("Connection: x-a\r\nConnection: ,x-b,\r\nX-A: 1\r\nX-B: 2\r\n"), gotGet},
	{"nominated twice occurring", get("Connection: x-a\r\nX-A: 1\r\nX-A: 2\r\n"), gotGet},
	{"nominated without occurring", get("Connection: x-a\r\n"), gotGet},
	{"te: trailers stays", get("TE: trailers\r\nConnection: TE\r\n"), gotGet + " te=trailers"},
	{"te: trailers among others", get("TE: gzip;q=0.5, Trailers\r\n"), gotGet + " te=trailers"},
	{"te without trailers goes", get("TE: gzip\r\n"), gotGet},
	{"an upgrade stays", get("Connection: keep-alive, Upgrade\r\nUpgrade: websocket\r\n"), gotGet + " upgrade=websocket connection=keep-alive, Upgrade upgrades"},
	{"an upgrade whose Connection says more", get("Connection: close, Upgrade\r\nUpgrade: websocket\r\n"), gotGet + " upgrade=websocket connection=upgrade close upgrades"},
	{"an upgrade with a nominated field", get("Connection: x-a, Upgrade\r\nX-A: 1\r\nUpgrade: websocket\r\n"), gotGet + " upgrade=websocket connection=upgrade upgrades"},
	{"Proxy-Connection closes", get("Proxy-Connection: close\r\n"), gotGet + " close"},
	{"another expectation is passed on", post("Expect: foo\r\nContent-Length: 3\r\n"), gotPost + " expect=foo content-length=3 body=3"},
	{"two expectations", post("Expect: 100-continue\r\nExpect: foo\r\nContent-Length: 3\r\n"), gotPost + " expect=foo content-length=3 body=3 expects"},
	{"an upgrade without Connection goes", get("Upgrade: websocket\r\n"), gotGet},
	{"Connection: upgrade without Upgrade goes", get("Connection: upgrade\r\n"), gotGet},
	{"an h2c upgrade goes", get("Connection: Upgrade, HTTP2-Settings\r\nUpgrade: h2c\r\nHTTP2-Settings: x\r\n"), gotGet},
	{"an h2c upgrade among others goes", get("Connection: Upgrade\r\nUpgrade: websocket, h2c\r\n"), gotGet},
	{"HTTP2-Settings goes alone as well", get("HTTP2-Settings: x\r\n"), gotGet},
	{"an upgrade with a body", post("Connection: upgrade\r\nUpgrade: foo\r\nContent-Length: 3\r\n"), gotPost + " content-length=3 upgrade=foo connection=upgrade body=3 upgrades"},
	{"Expect is answered here", post("Expect: 100-Continue\r\nContent-Length: 3\r\n"), gotPost + " content-length=3 body=3 expects"},
	{"Expect without a body says nothing", get("Expect: 100-continue\r\n"), gotGet},
	{"trailer announcements are ordinary", post("Trailer: x\r\nTransfer-Encoding: chunked\r\n"), gotPost + " trailer=x body=chunked"},
	{"proxy-authorization is ordinary", get("Proxy-Authorization: x\r\n"), gotGet + " proxy-authorization=x"},
	{"a pseudo-header's name can't occur, a name with a dot can", get("x.y: 1\r\n"), gotGet + " x.y=1"},
}

var badRequests = []headCase{
	{"an empty line", "\r\n", "!http1.codec_error"},
	{"no target", "GET HTTP/1.1\r\nHost: a\r\n", "!low_version"},
	{"an empty target", "GET  HTTP/1.1\r\nHost: a\r\n", "!http1.codec_error"},
	{"two spaces before the target", "GET  / HTTP/1.1\r\nHost: a\r\n", "!http1.codec_error"},
	{"two spaces before the version", "GET /  HTTP/1.1\r\nHost: a\r\n", "!http1.codec_error"},
	{"a tab before the target", "GET\t/ HTTP/1.1\r\nHost: a\r\n", "!http1.codec_error"},
	{"a space before the method", " GET / HTTP/1.1\r\nHost: a\r\n", "!http1.codec_error"},
	{"a space after the version", "GET / HTTP/1.1 \r\nHost: a\r\n", "!http1.codec_error"},
	{"a space in the target", "GET /a b HTTP/1.1\r\nHost: a\r\n", "!http1.codec_error"},
	{"a request line in the query", "GET /?x HTTP/1.1 HTTP/1.1\r\nHost: a\r\n", "!http1.codec_error"},
	{"a control character in the target", "GET /\x01 HTTP/1.1\r\nHost: a\r\n", "!http1.codec_error"},
	{"a NUL in the target", "GET /\x00 HTTP/1.1\r\nHost: a\r\n", "!http1.codec_error"},
	{"DEL in the target", "GET /\x7f HTTP/1.1\r\nHost: a\r\n", "!http1.codec_error"},
	{"UTF-8 in the target", "GET /\xc3\xa9 HTTP/1.1\r\nHost: a\r\n", "!http1.codec_error"},
	{"a carriage return in the target", "GET /\rX HTTP/1.1\r\nHost: a\r\n", "!http1.codec_error"},
	{"a relative target", "GET x HTTP/1.1\r\nHost: a\r\n", "!http1.codec_error"},
	{"a target of a host", "GET a:80 HTTP/1.1\r\nHost: a\r\n", "!http1.codec_error"},
	{"asterisk form with GET", "GET * HTTP/1.1\r\nHost: a\r\n", "!http1.invalid_url"},
	{"asterisk and more", "OPTIONS *x HTTP/1.1\r\nHost: a\r\n", "!http1.codec_error"},
	{"a query only", "GET ?x HTTP/1.1\r\nHost: a\r\n", "!http1.codec_error"},
	{"another scheme", "GET ftp://b/ HTTP/1.1\r\nHost: a\r\n", "!http1.invalid_scheme"},
	{"no scheme", "GET ://b/ HTTP/1.1\r\nHost: a\r\n", "!http1.invalid_scheme"},
	{"absolute form without host", "GET http:///x HTTP/1.1\r\nHost: a\r\n", "!http1.invalid_url"},
	{"absolute form with user information", "GET http://u@b/ HTTP/1.1\r\nHost: a\r\n", "!http.invalid_authority"},
	{"absolute form with a bad port", "GET http://b:x/ HTTP/1.1\r\nHost: a\r\n", "!http.invalid_authority"},
	{"absolute form without Host", "GET http://b/ HTTP/1.1\r\n", "!http1.codec_error"},
	{"absolute form with a bad Host", "GET http://b/ HTTP/1.1\r\nHost: a b\r\n", "!http.invalid_authority"},
	{"a lower-case method", "get / HTTP/1.1\r\nHost: a\r\n", "!http1.codec_error"},
	{"an unknown method", "FOO / HTTP/1.1\r\nHost: a\r\n", "!http1.codec_error"},
	{"a method with a bad character", "G(T / HTTP/1.1\r\nHost: a\r\n", "!http1.codec_error"},
	{"HTTP/1.0", "GET / HTTP/1.0\r\nHost: a\r\n", "!low_version"},
	{"HTTP/0.9", "GET /\r\n", "!low_version"},
	{"HTTP/1.2", "GET / HTTP/1.2\r\nHost: a\r\n", "!low_version"},
	{"HTTP/1.10", "GET / HTTP/1.10\r\nHost: a\r\n", "!http1.codec_error"},
	{"HTTP/2.0", "PRI * HTTP/2.0\r\n", "!http1.codec_error"},
	{"http/1.1", "GET / http/1.1\r\nHost: a\r\n", "!http1.codec_error"},
	{"HTTP/1,1", "GET / HTTP/1,1\r\nHost: a\r\n", "!http1.codec_error"},
	{"HTTP/01.1", "GET / HTTP/01.1\r\nHost: a\r\n", "!http1.codec_error"},
	{"two hosts", "GET / HTTP/1.1\r\nHost: a\r\nHost: b\r\n", "!http.invalid_authority"},
	{"two equal hosts", "GET / HTTP/1.1\r\nHost: a\r\nHost: a\r\n", "!http.invalid_authority"},
	{"a space in host", "GET / HTTP/1.1\r\nHost: a b\r\n", "!http.invalid_authority"},
	{"a list of hosts", "GET / HTTP/1.1\r\nHost: a, b\r\n", "!http.invalid_authority"},
	{"a list of hosts without a space", "GET / HTTP/1.1\r\nHost: a,b\r\n", "!http.invalid_authority"},
	{"user information in host", "GET / HTTP/1.1\r\nHost: u@b\r\n", "!http.invalid_authority"},
	{"two ports", "GET / HTTP/1.1\r\nHost: a:80:90\r\n", "!http.invalid_authority"},
	{"an open bracket", "GET / HTTP/1.1\r\nHost: [::1\r\n", "!http.invalid_authority"},
	{"an empty bracket", "GET / HTTP/1.1\r\nHost: []\r\n", "!http.invalid_authority"},
	{"text after a bracket", "GET / HTTP/1.1\r\nHost: [::1]x\r\n", "!http.invalid_authority"},
	{"letters in a port", "GET / HTTP/1.1\r\nHost: a:8o\r\n", "!http.invalid_authority"},
	{"a port too large", "GET / HTTP/1.1\r\nHost: a:65536\r\n", "!http.invalid_authority"},
	{"a port without host", "GET / HTTP/1.1\r\nHost: :80\r\n", "!http.invalid_authority"},
	{"an empty port", "GET / HTTP/1.1\r\nHost: a:\r\n", "!http.invalid_authority"},
	{"a path in host", "GET / HTTP/1.1\r\nHost: a/b\r\n", "!http.invalid_authority"},
	{"a query in host", "GET / HTTP/1.1\r\nHost: a?b\r\n", "!http.invalid_authority"},
	{"a backslash in host", "GET / HTTP/1.1\r\nHost: a\\b\r\n", "!http.invalid_authority"},
	{"UTF-8 in host", "GET / HTTP/1.1\r\nHost: \xc3\xa9\r\n", "!http.invalid_authority"},
	{"a NUL in host", "GET / HTTP/1.1\r\nHost: a\x00b\r\n", "!http1.invalid_characters"},
	{"CONNECT without a port", "CONNECT a HTTP/1.1\r\nHost: a\r\n", "!http1.invalid_url"},
	{"CONNECT to a path", "CONNECT / HTTP/1.1\r\nHost: a\r\n", "!http1.invalid_url"},
	{"CONNECT to a URL", "CONNECT http://a/ HTTP/1.1\r\nHost: a\r\n", "!http1.invalid_url"},
	{"CONNECT without Host", "CONNECT a:80 HTTP/1.1\r\n", "!http1.codec_error"},
	{"CONNECT with a body", "CONNECT a:80 HTTP/1.1\r\nHost: a\r\nContent-Length: 3\r\n", "!http1.body_disallowed"},
	{"CONNECT with chunks", "CONNECT a:80 HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n", "!http1.transfer_encoding_not_allowed"},
	{"a space before the colon", get("X : v\r\n"), "!http1.codec_error"},
	{"a tab before the colon", get("X\t: v\r\n"), "!http1.codec_error"},
	{"a space before the name", get(" X: v\r\n"), "!http1.codec_error"},
	{"a fold before the first field", "GET / HTTP/1.1\r\n\tHost: a\r\n", "!http1.codec_error"},
	{"obs-fold with a space", get("X: 1\r\n 2\r\n"), "!http1.codec_error"},
	{"obs-fold with a tab", get("X: 1\r\n\t2\r\n"), "!http1.codec_error"},
	{"a folded content-length", post("Content-Length:\r\n 5\r\n"), "!http1.codec_error"},
	{"an empty name", get(": v\r\n"), "!http1.codec_error"},
	{"no colon", get("nothing\r\n"), "!http1.codec_error"},
	{"a space in a name", get("X y: z\r\n"), "!http1.codec_error"},
	{"a NUL in a name", get("X\x00: z\r\n"), "!http1.codec_error"},
	{"a byte above 0x7f in a name", get("X\xe9: z\r\n"), "!http1.codec_error"},
	{"a carriage return in a name", get("Te\rst: x\r\n"), "!http1.codec_error"},
	{"a line end in a name", get("Te\r\nst: x\r\n"), "!http1.codec_error"},
	{"a quote in a name", get("\"X\": z\r\n"), "!http1.codec_error"},
	{"a parenthesis in a name", get("X(: z\r\n"), "!http1.codec_error"},
	{"a pseudo-header", get(":path: /admin\r\n"), "!http1.codec_error"},
	{"a NUL in a value", get("X: a\x00b\r\n"), "!http1.invalid_characters"},
	{"a bare carriage return in a value", get("X: a\rb\r\n"), "!http1.invalid_characters"},
	{"two carriage returns", get("X: a\r\r\n"), "!http1.invalid_characters"},
	{"a bare line feed in a value", get("X: a\nY: b\r\n"), "!http1.invalid_characters"},
	{"a control character in a value", get("X: a\x01b\r\n"), "!http1.invalid_characters"},
	{"a vertical tab in a value", get("X: a\x0bb\r\n"), "!http1.invalid_characters"},
	{"DEL in a value", get("X: a\x7fb\r\n"), "!http1.invalid_characters"},
	{"a vertical tab before chunked", post("Transfer-Encoding: \x0bchunked\r\n"), "!http1.invalid_characters"},
	{"a bare line feed after the request line", "GET / HTTP/1.1\nHost: a\r\n", "!http1.codec_error"},
	{"an empty length", post("Content-Length:\r\n"), "!http1.codec_error"},
	{"a signed length", post("Content-Length: +5\r\n"), "!http1.codec_error"},
	{"a negative length", post("Content-Length: -5\r\n"), "!http1.codec_error"},
	{"a hexadecimal length", post("Content-Length: 0x5\r\n"), "!http1.codec_error"},
	{"a leading zero", post("Content-Length: 05\r\n"), "!http1.codec_error"},
	{"two zeros", post("Content-Length: 00\r\n"), "!http1.codec_error"},
	{"a list of lengths", post("Content-Length: 5, 5\r\n"), "!http1.codec_error"},
	{"a list of lengths without a space", post("Content-Length: 5,5\r\n"), "!http1.codec_error"},
	{"a length with a parameter", post("Content-Length: 5;a\r\n"), "!http1.codec_error"},
	{"a length with an underscore", post("Content-Length: 1_0\r\n"), "!http1.codec_error"},
	{"a quoted empty length", post("Content-Length: \"\"\r\n"), "!http1.codec_error"},
	{"a length with a no-break space", post("Content-Length: \xa05\r\n"), "!http1.codec_error"},
	{"a length with text", post("Content-Length: 5 x\r\n"), "!http1.codec_error"},
	{"a length with a fraction", post("Content-Length: 5.0\r\n"), "!http1.codec_error"},
	{"a length of 19 digits", post("Content-Length: 1000000000000000000\r\n"), "!http1.codec_error"},
	{"a length above 2^64", post("Content-Length: 18446744073709551621\r\n"), "!http1.codec_error"},
	{"equal lengths twice", post("Content-Length: 5\r\nContent-Length: 5\r\n"), "!http1.codec_error"},
	{"different lengths", post("Content-Length: 5\r\nContent-Length: 6\r\n"), "!http1.codec_error"},
	{"a length named with a high byte", post("Content-Length\x85: 5\r\n"), "!http1.codec_error"},
	{"a length named with a space", post("Content Length: 5\r\n"), "!http1.codec_error"},
	{"a length without colon", post("Content-Length 5\r\n"), "!http1.codec_error"},
	{"length and chunked", post("Content-Length: 5\r\nTransfer-Encoding: chunked\r\n"), "!http1.content_length_and_chunked_not_allowed"},
	{"chunked and length", post("Transfer-Encoding: chunked\r\nContent-Length: 5\r\n"), "!http1.content_length_and_chunked_not_allowed"},
	{"length 0 and chunked", post("Transfer-Encoding: chunked\r\nContent-Length: 0\r\n"), "!http1.content_length_and_chunked_not_allowed"},
	{"another coding", post("Transfer-Encoding: gzip\r\n"), "!http1.invalid_transfer_encoding"},
	{"two codings", post("Transfer-Encoding: gzip, chunked\r\n"), "!http1.invalid_transfer_encoding"},
	{"identity", post("Transfer-Encoding: identity\r\n"), "!http1.invalid_transfer_encoding"},
	{"chunked twice", post("Transfer-Encoding: chunked\r\nTransfer-Encoding: chunked\r\n"), "!http1.invalid_transfer_encoding"},
	{"chunked twice in one line", post("Transfer-Encoding: chunked, chunked\r\n"), "!http1.invalid_transfer_encoding"},
	{"chunked and identity", post("Transfer-Encoding: chunked\r\nTransfer-Encoding: identity\r\n"), "!http1.invalid_transfer_encoding"},
	{"an empty coding", post("Transfer-Encoding:\r\n"), "!http1.invalid_transfer_encoding"},
	{"a look-alike of chunked", post("Transfer-Encoding: xchunked\r\n"), "!http1.invalid_transfer_encoding"},
	{"chunked with a parameter", post("Transfer-Encoding: chunked;q=1\r\n"), "!http1.invalid_transfer_encoding"},
	{"chunked quoted", post("Transfer-Encoding: \"chunked\"\r\n"), "!http1.invalid_transfer_encoding"},
	{"chunked with a comma", post("Transfer-Encoding: ,chunked\r\n"), "!http1.invalid_transfer_encoding"},
	{"chunked after a space before the colon", post("Transfer-Encoding : chunked\r\n"), "!http1.codec_error"},
	{"two upgrades", get("Connection: upgrade\r\nUpgrade: a\r\nUpgrade: b\r\n"), "!http1.codec_error"},
	{"an upgrade with a chunked body", post("Connection: upgrade\r\nUpgrade: foo\r\nTransfer-Encoding: chunked\r\n"), "!http1.transfer_encoding_not_allowed"},
	{"host nominated", get("Connection: host\r\n"), "!http1.connection_header_rejected"},
	{"content-length nominated", post("Connection: Content-Length\r\nContent-Length: 5\r\n"), "!http1.connection_header_rejected"},
	{"transfer-encoding nominated", post("Connection: transfer-encoding\r\nTransfer-Encoding: chunked\r\n"), "!http1.connection_header_rejected"},
	{"x-forwarded-for nominated", get("Connection: close, X-Forwarded-For\r\n"), "!http1.connection_header_rejected"},
	{"x-forwarded-client-cert nominated", get("Connection: x-forwarded-client-cert\r\n"), "!http1.connection_header_rejected"},
	{"a pseudo-header nominated", get("Connection: :path\r\n"), "!http1.connection_header_rejected"},
	{"no token nominated", get("Connection: a b\r\n"), "!http1.connection_header_rejected"},
	{"101 fields", "GET / HTTP/1.1\r\nHost: a\r\n" + strings.Repeat("x: y\r\n", 100), "!http1.too_many_headers"},
}

// otherRequests need a configuration of their own.
var otherRequests = []struct {
	headCase
	cfg transport.ServerConfig
}{
	{headCase{"HTTP/1.0 where allowed closes", "GET / HTTP/1.0\r\nHost: a\r\n", gotGet + " close"}, transport.ServerConfig{Scheme: "http", AcceptHTTP10: true}},
	{headCase{"HTTP/1.0 that wants to go on", "GET / HTTP/1.0\r\nHost: a\r\nConnection: keep-alive\r\n", gotGet}, transport.ServerConfig{Scheme: "http", AcceptHTTP10: true}},
	{headCase{"HTTP/1.0 gets a default host", "GET / HTTP/1.0\r\n", ":method=GET :scheme=http :authority=d :path=/ close"}, transport.ServerConfig{Scheme: "http", AcceptHTTP10: true, DefaultHostHTTP10: "d"}},
	{headCase{"HTTP/1.0 without host", "GET / HTTP/1.0\r\n", ":method=GET :scheme=http :path=/ close"}, transport.ServerConfig{Scheme: "http", AcceptHTTP10: true}},
	{headCase{"HTTP/1.0 knows no chunks", "POST / HTTP/1.0\r\nHost: a\r\nTransfer-Encoding: chunked\r\n", "!http1.transfer_encoding_not_allowed"}, transport.ServerConfig{Scheme: "http", AcceptHTTP10: true}},
	{headCase{"HTTP/1.0 knows no upgrade", "GET / HTTP/1.0\r\nHost: a\r\nConnection: upgrade\r\nUpgrade: x\r\n", gotGet + " close"}, transport.ServerConfig{Scheme: "http", AcceptHTTP10: true}},
	{headCase{"HTTP/1.0 knows no Expect", "POST / HTTP/1.0\r\nHost: a\r\nExpect: 100-continue\r\nContent-Length: 1\r\n", gotPost + " content-length=1 body=1 close"}, transport.ServerConfig{Scheme: "http", AcceptHTTP10: true}},
	{headCase{"absolute form where refused", "GET http://b/ HTTP/1.1\r\nHost: a\r\n", "!http1.invalid_url"}, transport.ServerConfig{}},
	{headCase{"length and chunked where allowed", post("Content-Length: 5\r\nTransfer-Encoding: chunked\r\n"), gotPost + " body=chunked close"}, transport.ServerConfig{Scheme: "http", AllowChunkedLength: true}},
	{headCase{"Expect is passed on", post("Expect: 100-continue\r\nContent-Length: 1\r\n"), gotPost + " content-length=1 expect=100-continue body=1 expects"}, transport.ServerConfig{Scheme: "http", Proxy100Continue: true}},
	{headCase{"the scheme of the transport", get(""), strings.Replace(gotGet, "=http ", "=https ", 1)}, transport.ServerConfig{Scheme: "https"}},
	{headCase{"fewer fields allowed", get("x: 1\r\ny: 2\r\n"), "!http1.too_many_headers"}, transport.ServerConfig{MaxHeaders: 2}},
	{headCase{"the scheme is left to the handler", get(""), strings.Replace(gotGet, "=http ", "= ", 1)}, transport.ServerConfig{}},
}

// describe writes a parsed request as the tables do.
func describe(h *message.Header, hd *head, err error) string {
	if err != nil {
		return "!" + strings.TrimPrefix(err.Error(), "http/1.1: ")
	}
	var b strings.Builder
	for i := range h.Len() {
		f := h.At(i)
		b.WriteString(" " + f.Name + "=" + f.Value)
	}
	switch hd.framing {
	case framingChunked:
		b.WriteString(" body=chunked")
	case framingLength:
		b.WriteString(" body=" + string(appendLength(nil, hd.length)[16:]))
	}
	for word, on := range map[string]bool{" close": hd.close && h.Has(message.Authority) || hd.close && hd.version == message.HTTP10} {
		if on {
			b.WriteString(word)
		}
	}
	if hd.expect {
		b.WriteString(" expects")
	}
	if hd.upgrade {
		b.WriteString(" upgrades")
	}
	return strings.ReplaceAll(b.String()[1:], "\r\n", "")
}

var edge = &transport.ServerConfig{AllowAbsoluteURL: true, Scheme: "http"}

func parseOne(in string, cfg *transport.ServerConfig) string {
	var p parser
	var h message.Header
	hd, err := p.request([]byte(in+"\r\n"), &h, cfg)
	return describe(&h, &hd, err)
}

func TestGoodAndBadRequestHeads(t *testing.T) {
	if n := len(goodRequests) + len(badRequests) + len(otherRequests) + len(responses); n != 261 {
		t.Errorf("%d cases, want 261", n)
	}
	for _, c := range append(append([]headCase(nil), goodRequests...), badRequests...) {
		t.Run(c.name, func(t *testing.T) {
			if got := parseOne(c.in, edge); got != c.want {
				t.Errorf("%q\n got %q\nwant %q", c.in, got, c.want)
			}
		})
	}
	for _, c := range otherRequests {
		t.Run(c.name, func(t *testing.T) {
			if got := parseOne(c.in, &c.cfg); got != c.want {
				t.Errorf("%q\n got %q\nwant %q", c.in, got, c.want)
			}
		})
	}
}

// responses: heads without the empty line; kind is the request's.
var responses = []struct{ name, kind, in, want string }{
	{"length", "", "HTTP/1.1 200 OK\r\nContent-Length: 5\r\n", ":status=200 content-length=5 body=5"},
	{"chunked", "", "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n", ":status=200 body=chunked"},
	{"until close", "", "HTTP/1.1 200 OK\r\n", ":status=200 body=rest close"},
	{"length 0", "", "HTTP/1.1 200 OK\r\nContent-Length: 0\r\n", ":status=200 content-length=0"},
	{"no reason", "", "HTTP/1.1 200 \r\nContent-Length: 0\r\n", ":status=200 content-length=0"},
	{"no reason and no space", "", "HTTP/1.1 200\r\nContent-Length: 0\r\n", ":status=200 content-length=0"},
	{"a reason in UTF-8", "", "HTTP/1.1 404 \xc3\xa9 x\r\nContent-Length: 0\r\n", ":status=404 content-length=0"},
	{"an unknown status", "", "HTTP/1.1 599 x\r\nContent-Length: 0\r\n", ":status=599 content-length=0"},
	{"204 has no body", "", "HTTP/1.1 204 No Content\r\nContent-Length: 5\r\n", ":status=204"},
	{"304 has a length and no body", "", "HTTP/1.1 304 Not Modified\r\nContent-Length: 5\r\n", ":status=304 content-length=5"},
	{"HEAD has a length and no body", "HEAD", "HTTP/1.1 200 OK\r\nContent-Length: 5\r\n", ":status=200 content-length=5"},
	{"HEAD with chunked has no body", "HEAD", "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n", ":status=200"},
	{"HEAD without framing has no body", "HEAD", "HTTP/1.1 200 OK\r\n", ":status=200"},
	{"100 has no body", "", "HTTP/1.1 100 Continue\r\n", ":status=100"},
	{"103 keeps its fields", "", "HTTP/1.1 103 Early Hints\r\nLink: x\r\n", ":status=103 link=x"},
	{"2xx to CONNECT has no body", "CONNECT", "HTTP/1.1 200 OK\r\nContent-Length: 5\r\n", ":status=200"},
	{"4xx to CONNECT has one", "CONNECT", "HTTP/1.1 407 No\r\nContent-Length: 5\r\n", ":status=407 content-length=5 body=5"},
	{"close", "", "HTTP/1.1 200 OK\r\nConnection: close\r\nContent-Length: 5\r\n", ":status=200 content-length=5 body=5 close"},
	{"HTTP/1.0 closes", "", "HTTP/1.0 200 OK\r\nContent-Length: 5\r\n", ":status=200 content-length=5 body=5 close"},
	{"HTTP/1.0 goes on if it says so", "", "HTTP/1.0 200 OK\r\nConnection: keep-alive\r\nContent-Length: 5\r\n", ":status=200 content-length=5 body=5"},
	{"hop-by-hop fields", "", "HTTP/1.1 200 OK\r\nConnection: x-a, keep-alive\r\nKeep-Alive: 5\r\nX-A: 1\r\nProxy-Connection: x\r\nUpgrade: h2\r\nContent-Length: 0\r\n", ":status=200 content-length=0"},
	{"101 that was asked for", "upgrade", "HTTP/1.1 101 S\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n", ":status=101 upgrade=websocket connection=upgrade upgrades"},
	{"101 unasked", "", "HTTP/1.1 101 S\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n", "!http1.codec_error"},
	{"101 without Upgrade", "upgrade", "HTTP/1.1 101 S\r\n", "!http1.codec_error"},
	{"length and chunked", "", "HTTP/1.1 200 OK\r\nContent-Length: 5\r\nTransfer-Encoding: chunked\r\n", "!http1.content_length_and_chunked_not_allowed"},
	{"length and chunked with HEAD", "HEAD", "HTTP/1.1 200 OK\r\nContent-Length: 5\r\nTransfer-Encoding: chunked\r\n", "!http1.content_length_and_chunked_not_allowed"},
	{"two lengths", "", "HTTP/1.1 200 OK\r\nContent-Length: 5\r\nContent-Length: 5\r\n", "!http1.codec_error"},
	{"a bad length", "", "HTTP/1.1 200 OK\r\nContent-Length: 5a\r\n", "!http1.codec_error"},
	{"another coding", "", "HTTP/1.1 200 OK\r\nTransfer-Encoding: gzip, chunked\r\n", "!http1.invalid_transfer_encoding"},
	{"chunked in HTTP/1.0", "", "HTTP/1.0 200 OK\r\nTransfer-Encoding: chunked\r\n", "!http1.transfer_encoding_not_allowed"},
	{"obs-fold", "", "HTTP/1.1 200 OK\r\nX: 1\r\n 2\r\n", "!http1.codec_error"},
	{"a bare line feed", "", "HTTP/1.1 200 OK\r\nX: a\nY: b\r\n", "!http1.invalid_characters"},
	{"a space before the colon", "", "HTTP/1.1 200 OK\r\nX : a\r\n", "!http1.codec_error"},
	{"a NUL in a value", "", "HTTP/1.1 200 OK\r\nX: \x00\r\n", "!http1.invalid_characters"},
	{"a control character in the reason", "", "HTTP/1.1 200 O\x01K\r\n", "!http1.codec_error"},
	{"two digits", "", "HTTP/1.1 20 OK\r\n", "!http1.codec_error"},
	{"four digits", "", "HTTP/1.1 2000 OK\r\n", "!http1.codec_error"},
	{"status 099", "", "HTTP/1.1 099 OK\r\n", "!http1.codec_error"},
	{"status 600", "", "HTTP/1.1 600 OK\r\n", "!http1.codec_error"},
	{"a signed status", "", "HTTP/1.1 +20 OK\r\n", "!http1.codec_error"},
	{"another version", "", "HTTP/2.0 200 OK\r\n", "!http1.codec_error"},
	{"another protocol", "", "ICY 200 OK\r\n", "!http1.codec_error"},
	{"two spaces", "", "HTTP/1.1  200 OK\r\n", "!http1.codec_error"},
	{"no line", "", "\r\n", "!http1.codec_error"},
	{"a request", "", "GET / HTTP/1.1\r\n", "!http1.codec_error"},
	{"host is ordinary", "", "HTTP/1.1 200 OK\r\nHost: x\r\nTE: y\r\nContent-Length: 0\r\n", ":status=200 host=x te=y content-length=0"},
	{"too many fields", "", "HTTP/1.1 200 OK\r\n" + strings.Repeat("x: y\r\n", 101), "!http1.too_many_headers"},
}

func TestGoodAndBadResponseHeads(t *testing.T) {
	for _, c := range responses {
		t.Run(c.name, func(t *testing.T) {
			var p parser
			var h message.Header
			hd, err := p.response([]byte(c.in+"\r\n"), &h, c.kind, c.kind == "upgrade", 0)
			got := describe(&h, &hd, err)
			if err == nil {
				got = strings.TrimSuffix(got, " close")
				if hd.framing == framingUntilClose {
					got += " body=rest"
				}
				if hd.close {
					got += " close"
				}
			}
			if got != c.want {
				t.Errorf("%q\n got %q\nwant %q", c.in, got, c.want)
			}
		})
	}
}

func TestHeadEndIsFoundWhereverTheBytesAreSplit(t *testing.T) {
	const in = "GET / HTTP/1.1\r\nHost: a\r\nX: b\r\n\r\nrest\r\n\r\n"
	want := strings.Index(in, "rest")
	for from := range want {
		if got := headEnd([]byte(in[:from]), 0); got != 0 {
			t.Fatalf("found %d in %d bytes", got, from)
		}
		if got := headEnd([]byte(in), from); got != want {
			t.Fatalf("from %d: got %d, want %d", from, got, want)
		}
	}
}

func TestParsingDoesNotAllocate(t *testing.T) {
	if raced {
		t.Skip("the race detector allocates")
	}
	in := []byte(post("User-Agent: x\r\nAccept: */*\r\nX-Request-Id: 0123456789\r\nConnection: keep-alive\r\nContent-Length: 5\r\n") + "\r\n")
	var p parser
	var h message.Header
	if n := testing.AllocsPerRun(100, func() {
		h.Reset()
		if _, err := p.request(in, &h, edge); err != nil {
			t.Fatal(err)
		}
	}); n != 0 {
		t.Errorf("%v allocations", n)
	}
}

func TestEightBytesAtOnceFindWhatOneByOneDoes(t *testing.T) {
	r := rand.New(rand.NewPCG(1, 2))
	for range 20000 {
		b := make([]byte, r.IntN(40))
		for i := range b {
			b[i] = byte(' ' + r.IntN(90))
			if r.IntN(20) == 0 {
				b[i] = byte(r.IntN(256))
			}
		}
		from := r.IntN(len(b) + 1)
		want := from
		for want < len(b) && valueChar[b[want]] {
			want++
		}
		if got := valueEnd(b, from); got != want {
			t.Fatalf("%q from %d: %d, want %d", b, from, got, want)
		}
	}
}
