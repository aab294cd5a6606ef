package h1

import (
	"testing"

	"github.com/fairlead-mesh/fairlead/internal/message"
	"github.com/fairlead-mesh/fairlead/proxy/transport"
)

func TestNamesAreWrittenInTheCaseAskedFor(t *testing.T) {
	head := func(in string, c transport.HeaderCase) *message.Header {
		p := parser{keepCase: c == transport.KeepCase}
		h := new(message.Header)
		if _, err := p.request([]byte(in), h, edge); err != nil {
			t.Fatal(err)
		}
		h.Add("x-added", "A:b\tc")
		return h
	}
	const in = "PUT / HTTP/1.1\r\nHOST: a\r\nX-aBc_d.e1f: Vv: w\r\nx-ABC_d.e1f: 2\r\ncontent-Length: 0\r\n\r\n"
	for _, c := range []struct {
		name         string
		received, by transport.HeaderCase
		want         string
	}{
		{"lower", transport.LowerCase, transport.LowerCase, "PUT / HTTP/1.1\r\nhost: a\r\nx-abc_d.e1f: Vv: w\r\nx-abc_d.e1f: 2\r\nx-added: A:b\tc\r\ncontent-length: 0\r\n\r\n"},
		{"proper", transport.LowerCase, transport.ProperCase, "PUT / HTTP/1.1\r\nHost: a\r\nX-Abc_D.E1f: Vv: w\r\nX-Abc_D.E1f: 2\r\nX-Added: A:b\tc\r\nContent-Length: 0\r\n\r\n"},
		{"kept, the first counts", transport.KeepCase, transport.LowerCase, "PUT / HTTP/1.1\r\nHOST: a\r\nX-aBc_d.e1f: Vv: w\r\nX-aBc_d.e1f: 2\r\nx-added: A:b\tc\r\ncontent-Length: 0\r\n\r\n"},
		{"kept and proper", transport.KeepCase, transport.ProperCase, "PUT / HTTP/1.1\r\nHOST: a\r\nX-aBc_d.e1f: Vv: w\r\nX-aBc_d.e1f: 2\r\nX-Added: A:b\tc\r\ncontent-Length: 0\r\n\r\n"},
	} {
		t.Run(c.name, func(t *testing.T) {
			h := head(in, c.received)
			var copied message.Header
			copied.CopyFrom(h)
			for _, h := range []*message.Header{h, &copied} {
				b, _, err := appendRequestHead(nil, h, true)
				if err != nil {
					t.Fatal(err)
				}
				if writeNames(b, h, c.by); string(b) != c.want {
					t.Errorf("\n got %q\nwant %q", b, c.want)
				}
			}
		})
	}
	h := head(in, transport.KeepCase)
	if h.Reset(); h.KeepsNames() {
		t.Error("names are kept beyond the message")
	}
	b := []byte("0\r\ngrpc-status: 0\r\n\r\n")
	if writeNames(b, nil, transport.ProperCase); string(b) != "0\r\nGrpc-Status: 0\r\n\r\n" {
		t.Errorf("trailers: got %q", b)
	}
}
