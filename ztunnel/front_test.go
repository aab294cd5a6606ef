package ztunnel

import (
	"bytes"
	"errors"
	"net/http"
	"net/netip"
	"strings"
	"testing"

	"github.com/fairlead-mesh/fairlead/internal/netio"
)

// client returns the far end of a connection on which in has been sent, and what
// the near end was answered.
func client(in []byte) (c netio.Conn, answer func() []byte) {
	a, b := netio.Pipe(netip.MustParseAddrPort("127.0.0.1:1"), netip.MustParseAddrPort("127.0.0.1:2"))
	_, _ = a.Write(in)
	_ = a.CloseWrite()
	return b, func() []byte {
		_ = b.Close()
		var all []byte
		buf := make([]byte, 256)
		for {
			n, err := a.Read(buf)
			all = append(all, buf[:n]...)
			if err != nil {
				_ = a.Close()
				return all
			}
		}
	}
}

func TestSOCKSRequests(t *testing.T) {
	greeting := "\x05\x01\x00"
	for _, tc := range []struct {
		name, in, host string
		port           uint16
		reply          int // of a *socksError, -1: another error
		answer         string
	}{
		{"IPv4", greeting + "\x05\x01\x00\x01\x0a\x00\x00\x01\x00\x50", "10.0.0.1", 80, 0, "\x05\x00"},
		{"IPv6", greeting + "\x05\x01\x00\x04" + strings.Repeat("\x00", 15) + "\x01\x00\x50", "::1", 80, 0, "\x05\x00"},
		{"mapped IPv4", greeting + "\x05\x01\x00\x04" + strings.Repeat("\x00", 10) + "\xff\xff\x0a\x00\x00\x01\x00\x50", "10.0.0.1", 80, 0, "\x05\x00"},
		{"a name", greeting + "\x05\x01\x00\x03\x04A.b.\x01\x00", "a.b", 256, 0, "\x05\x00"},
		{"no method is given", "\x05\x00", "", 0, -1, "\x05\xff"},
		{"authentication only", "\x05\x01\x02", "", 0, -1, "\x05\xff"},
		{"SOCKS4", "\x04\x01", "", 0, -1, ""},
		{"BIND", greeting + "\x05\x02\x00\x01\x0a\x00\x00\x01\x00\x50", "", 0, socksCommand, "\x05\x00"},
		{"UDP ASSOCIATE", greeting + "\x05\x03\x00\x01\x0a\x00\x00\x01\x00\x50", "", 0, socksCommand, "\x05\x00"},
		{"an unknown address type", greeting + "\x05\x01\x00\x02", "", 0, socksAddressType, "\x05\x00"},
		{"port zero", greeting + "\x05\x01\x00\x01\x0a\x00\x00\x01\x00\x00", "", 0, socksFailure, "\x05\x00"},
		{"an empty name", greeting + "\x05\x01\x00\x03\x00\x00\x50", "", 0, socksFailure, "\x05\x00"},
		{"a name with a line feed in it", greeting + "\x05\x01\x00\x03\x03a\nb\x00\x50", "", 0, socksFailure, "\x05\x00"},
		{"a short request", greeting + "\x05\x01", "", 0, -1, "\x05\x00"},
	} {
		c, answer := client([]byte(tc.in))
		host, port, err := socksGreet(c)
		got := 0
		var se *socksError
		switch {
		case errors.As(err, &se):
			got = int(se.reply)
		case err != nil:
			got = -1
		}
		if host != tc.host || port != tc.port || got != tc.reply {
			t.Errorf("%s: %q %d %v", tc.name, host, port, err)
		}
		if a := answer(); string(a) != tc.answer {
			t.Errorf("%s: answered %q", tc.name, a)
		}
	}
}

func TestTheHeadOfAConnectRequest(t *testing.T) {
	c, done := client([]byte("CONNECT a:1 HTTP/1.1\r\nhost: a:1\r\n\r\nearly"))
	r, rest, err := readHead(c)
	if err != nil || r.Method != http.MethodConnect || r.RequestURI != "a:1" || string(rest) != "early" {
		t.Errorf("%v %q %v", r, rest, err)
	}
	done()
	for _, in := range []string{"", "CONNECT a:1 HTTP/1.1\r\n", "\r\n\r\n", "CONNECT a:1 HTTP/1.1\r\nx: " + strings.Repeat("y", maxHead)} {
		c, done := client([]byte(in))
		if _, _, err := readHead(c); err == nil {
			t.Errorf("%.40q was taken", in)
		}
		done()
	}
}

// FuzzFronts: a destination that SOCKS names is an authority, and what follows
// a CONNECT head is the end of the input.
func FuzzFronts(f *testing.F) {
	f.Add([]byte("\x05\x01\x00\x05\x01\x00\x03\x01a\x00\x50"))
	f.Add([]byte("CONNECT a:1 HTTP/1.1\r\n\r\n"))
	f.Fuzz(func(t *testing.T, in []byte) {
		if len(in) > 32<<10 {
			return
		}
		c, done := client(in)
		host, port, err := socksGreet(c)
		done()
		if err == nil {
			if _, _, err := splitAuthority(joinHost(host, port)); err != nil {
				t.Fatalf("%q: %v", host, err)
			}
		}
		c, done = client(in)
		_, rest, err := readHead(c)
		if err == nil && !bytes.HasSuffix(in, rest) {
			t.Fatal("bytes made up")
		}
		done()
	})
}
