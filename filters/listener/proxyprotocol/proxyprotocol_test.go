package proxyprotocol

import (
	"encoding/binary"
	"errors"
	"fmt"
	"net/netip"
	"strings"
	"testing"

	"github.com/fairlead-mesh/fairlead/filters"
	"github.com/fairlead-mesh/fairlead/filters/internal/conntest"
	"github.com/fairlead-mesh/fairlead/internal/streaminfo"
	"github.com/fairlead-mesh/fairlead/internal/sweep"
)

func v2(command, family byte, body string) string {
	return signature2 + string([]byte{0x20 | command, family, byte(len(body) >> 8), byte(len(body))}) + body
}

var v4Body = string([]byte{192, 0, 2, 1, 10, 0, 0, 1, 0x30, 0x39, 0, 80})

func tlv(kind byte, value string) string {
	return string(binary.BigEndian.AppendUint16([]byte{kind}, uint16(len(value)))) + value
}

func run(t *testing.T, cfg *Config, in string, chunk int) (*filters.Connection, error) {
	t.Helper()
	f, err := Factory{}.Compile(nil, cfg)
	if err != nil {
		t.Fatal(err)
	}
	self := netip.MustParseAddrPort("10.9.9.9:8443")
	c := &filters.Connection{Conn: &conntest.Conn{In: in, Chunk: chunk}, Info: &streaminfo.Info{Conn: &streaminfo.Conn{Local: self, Remote: netip.MustParseAddrPort("10.8.8.8:1"), DirectRemote: netip.MustParseAddrPort("10.8.8.8:1")}}}
	return c, f.OnAccept(c)
}

func TestHeaders(t *testing.T) {
	const self, peer = "10.9.9.9:8443", "10.8.8.8:1"
	long := v2(1, 0x11, v4Body+tlv(1, strings.Repeat("x", 60000)))
	for _, tc := range []struct{ name, in, remote, local string }{
		{"v1 over IPv4", "PROXY TCP4 192.0.2.1 10.0.0.1 12345 80\r\n", "192.0.2.1:12345", "10.0.0.1:80"},
		{"v1 over IPv6", "PROXY TCP6 2001:db8::1 ::1 12345 80\r\n", "[2001:db8::1]:12345", "[::1]:80"},
		{"v1 UNKNOWN", "PROXY UNKNOWN ff:: anything 1\r\n", peer, self},
		{"v2 over IPv4", v2(1, 0x11, v4Body), "192.0.2.1:12345", "10.0.0.1:80"},
		{"v2 over IPv6", v2(1, 0x21, strings.Repeat("\x00", 15)+"\x01"+strings.Repeat("\x00", 15)+"\x02\x00\x01\x00\x02"), "[::1]:1", "[::2]:2"},
		{"v2 LOCAL with an address", v2(0, 0x11, v4Body), peer, self},
		{"v2 AF_UNSPEC", v2(1, 0, "junk"), peer, self},
		{"v2 with a long TLV", long, "192.0.2.1:12345", "10.0.0.1:80"},
		{"v2 with two TLVs", v2(1, 0x11, v4Body+tlv(1, "h2")+tlv(0xea, "\x01vpce-\xff")), "192.0.2.1:12345", "10.0.0.1:80"},
	} {
		t.Run(tc.name, func(t *testing.T) {
			for _, chunk := range []int{0, 3} {
				c, err := run(t, &Config{Rules: []Rule{{Type: 0xea, Namespace: "aws", Key: "vpce"}}}, tc.in+"GET /", chunk)
				if err != nil {
					t.Fatal(err)
				}
				ci := c.Info.Conn
				if ci.Remote.String() != tc.remote || ci.Local.String() != tc.local || ci.DirectRemote.String() != peer {
					t.Errorf("remote %v, local %v, direct %v", ci.Remote, ci.Local, ci.DirectRemote)
				}
				rest := make([]byte, 5)
				for n := 0; n < 5; {
					m, err := c.Read(rest[n:])
					if err != nil {
						t.Fatal(err)
					}
					n += m
				}
				if string(rest) != "GET /" {
					t.Errorf("the stream begins with %q", rest)
				}
				if strings.Contains(tc.name, "two TLVs") {
					if v, _ := ci.Metadata.Lookup("aws", "vpce"); v != "\x01vpce-!" {
						t.Errorf("metadata %q", v)
					}
				}
			}
		})
	}
}

func TestRefused(t *testing.T) {
	for name, in := range map[string]string{
		"no header":                    "GET / HTTP/1.1\r\n\r\n",
		"v1 of 108 bytes":              "PROXY TCP4 " + strings.Repeat("1", 95) + "\r\n",
		"v1 with a bare line feed":     "PROXY TCP4 192.0.2.1 10.0.0.1 1 2\n",
		"v1 with too few fields":       "PROXY TCP4 192.0.2.1 10.0.0.1 1\r\n",
		"v1 with a wrong family":       "PROXY TCP4 ::1 ::1 1 2\r\n",
		"v1 with a zone":               "PROXY TCP6 fe80::1%eth0 ::1 1 2\r\n",
		"v1 with a huge port":          "PROXY TCP4 192.0.2.1 10.0.0.1 65536 2\r\n",
		"v1 with a signed port":        "PROXY TCP4 192.0.2.1 10.0.0.1 +1 2\r\n",
		"v1 of unknown family":         "PROXY UDP4 192.0.2.1 10.0.0.1 1 2\r\n",
		"v2 of version 3":              signature2 + "\x31\x11\x00\x0c" + v4Body,
		"v2 with an unknown command":   v2(2, 0x11, v4Body),
		"v2 too short for its family":  v2(1, 0x21, v4Body),
		"v2 over a Unix socket":        v2(1, 0x31, strings.Repeat("x", 216)),
		"v2 with an overflowing TLV":   v2(1, 0x11, v4Body+"\x01\x00\x05abc"),
		"v2 with half a TLV":           v2(1, 0x11, v4Body+"\x01"),
		"v2 with an impossible length": signature2 + "\x21\x11\xff\xff" + strings.Repeat("x", 65535),
	} {
		if _, err := run(t, &Config{}, in, 0); err == nil || errors.Is(err, conntest.ErrWait) {
			t.Errorf("%s: %v", name, err)
		}
	}
	if _, err := run(t, &Config{NoV1: true}, "PROXY UNKNOWN\r\n", 0); err == nil {
		t.Error("a disallowed version was accepted")
	}
}

func TestOptionalHeader(t *testing.T) {
	c, err := run(t, &Config{Optional: true}, "GET / HTTP/1.1\r\n", 0)
	if err != nil || c.Info.Conn.Remote.String() != "10.8.8.8:1" {
		t.Errorf("%v %v", err, c.Info.Conn.Remote)
	}
	if _, err := run(t, &Config{Optional: true}, "PROXY nonsense\r\n", 0); err == nil {
		t.Error("a broken header was taken for none")
	}
}

// write writes h in the form of its version.
func write(h *header) []byte {
	v4 := h.src.Addr().Is4()
	if h.version == 1 {
		if h.local {
			return []byte("PROXY UNKNOWN\r\n")
		}
		family := map[bool]string{true: "TCP4", false: "TCP6"}[v4]
		return fmt.Appendf(nil, "PROXY %s %s %s %d %d\r\n", family, h.src.Addr(), h.dst.Addr(), h.src.Port(), h.dst.Port())
	}
	b := []byte("\r\n\r\n\x00\r\nQUIT\n\x20\x00")
	if h.local {
		return append(b, 0, 0)
	}
	b[12] = 0x21
	body := append(h.src.Addr().AsSlice(), h.dst.Addr().AsSlice()...)
	body = binary.BigEndian.AppendUint16(binary.BigEndian.AppendUint16(body, h.src.Port()), h.dst.Port())
	body = append(body, h.tlvs...)
	b[13] = map[bool]byte{true: 0x11, false: 0x21}[v4]
	return append(binary.BigEndian.AppendUint16(b, uint16(len(body))), body...)
}

// FuzzParse: more bytes never change an answer, nor are ever more asked for than
// a header may have; and what was read, written by the specification, is read as
// the same.
func FuzzParse(f *testing.F) {
	f.Add([]byte("PROXY TCP4 192.0.2.1 10.0.0.1 12345 80\r\n"))
	f.Add([]byte(v2(1, 0x11, v4Body+tlv(1, "h2"))))
	f.Add([]byte("GET / HTTP/1.1\r\n"))
	f.Fuzz(sweep.Around(f, func(t *testing.T, b []byte) {
		h, need, err := parse(b)
		switch {
		case err != nil:
		case h == nil && (need <= len(b) || need > 64<<10):
			t.Fatalf("asks for %d of %d bytes", need, len(b))
		case h != nil && h.size > len(b):
			t.Fatalf("header of %d bytes in %d", h.size, len(b))
		}
		if h != nil && (h.local || h.src.Addr().Is4() == h.dst.Addr().Is4()) {
			sweep.Accepted()
			out := write(h)
			h2, _, err := parse(out)
			if err != nil || h2 == nil || h2.size != len(out) || h2.local != h.local || h2.src != h.src || h2.dst != h.dst || !h.local && string(h2.tlvs) != string(h.tlvs) {
				t.Fatalf("%q: %+v, written as %q: %+v, %v", b, h, out, h2, err)
			}
		}
		for n := range min(len(b), 200) {
			h2, _, err2 := parse(b[:n])
			if h2 != nil && (h == nil || h.size != h2.size) || err2 != nil && err == nil {
				t.Fatalf("answer changed after %d bytes", n)
			}
		}
	}))
}
