package httpinspector

import (
	"errors"
	"io"
	"slices"
	"strings"
	"testing"

	"github.com/fairlead-mesh/fairlead/filters"
	"github.com/fairlead-mesh/fairlead/filters/internal/conntest"
	"github.com/fairlead-mesh/fairlead/internal/streaminfo"
)

func run(t *testing.T, sent string, end bool) (*filters.Connection, error) {
	t.Helper()
	b := &conntest.Conn{In: sent, Ended: end, Chunk: 5}
	c := &filters.Connection{Conn: b, Info: &streaminfo.Info{Conn: &streaminfo.Conn{}}}
	f, err := Factory{}.Compile(nil, &Config{})
	if err != nil {
		t.Fatal(err)
	}
	return c, f.OnAccept(c)
}

func TestDetects(t *testing.T) {
	for _, tc := range []struct{ name, sent, want string }{
		{"HTTP/1.1", "GET / HTTP/1.1\r\nHost: a\r\n\r\n", "http/1.1"},
		{"HTTP/1.0", "POST /a?b HTTP/1.0\r\n", "http/1.0"},
		{"a bare line feed", "GET / HTTP/1.1\n", "http/1.1"},
		{"HTTP/2 with prior knowledge", preface, "h2c"},
		{"a method that begins like the preface", "PRIX /a HTTP/1.1\r\n", "http/1.1"},
		{"an extension method", "M-SEARCH * HTTP/1.1\r\n", "http/1.1"},
		{"HTTP/0.9", "GET /\r\n", ""},
		{"HTTP/3.0", "GET / HTTP/3.0\r\n", ""},
		{"HTTP/1.2", "GET / HTTP/1.2\r\n", ""},
		{"a lower-case method", "get / HTTP/1.1\r\n", ""},
		{"redis", "*1\r\n$4\r\nPING\r\n", ""},
		{"TLS", "\x16\x03\x01\x02\x00", ""},
		{"one byte that is not HTTP is enough", "\x00", ""},
		{"ssh", "SSH-2.0-OpenSSH\r\n", ""},
		{"a request line that never ends", "GET /" + strings.Repeat("a", maxInspect), ""},
	} {
		t.Run(tc.name, func(t *testing.T) {
			c, err := run(t, tc.sent, false)
			if err != nil {
				t.Fatal(err)
			}
			if got := strings.Join(c.Info.Conn.ApplicationProtocols, ","); got != tc.want {
				t.Errorf("got %q, want %q", got, tc.want)
			}
			buf := make([]byte, len(tc.sent))
			n := 0
			for n < len(buf) {
				m, err := c.Read(buf[n:])
				if err != nil {
					t.Fatal(err)
				}
				n += m
			}
			if string(buf) != tc.sent {
				t.Error("the inspected bytes are not read again")
			}
		})
	}
}

func TestAnEarlyEndIsAnError(t *testing.T) {
	if _, err := run(t, "GET", true); !errors.Is(err, io.EOF) {
		t.Errorf("got %v", err)
	}
}

func TestEncryptedConnectionsAreLeftAlone(t *testing.T) {
	c := &filters.Connection{Info: &streaminfo.Info{Conn: &streaminfo.Conn{TransportProtocol: "tls", ApplicationProtocols: []string{"h2"}}}}
	f, _ := Factory{}.Compile(nil, &Config{})
	if err := f.OnAccept(c); err != nil || !slices.Equal(c.Info.Conn.ApplicationProtocols, []string{"h2"}) {
		t.Errorf("%v %v", err, c.Info.Conn.ApplicationProtocols)
	}
}

// FuzzInspect: once the protocol is decided, more bytes do not change it.
func FuzzInspect(f *testing.F) {
	f.Add([]byte("GET / HTTP/1.1\r\n"))
	f.Add([]byte(preface))
	f.Fuzz(func(t *testing.T, b []byte) {
		// Once decided, more bytes don't change the answer.
		r := undecided
		for n := range len(b) + 1 {
			got := inspect(b[:n])
			if r != undecided && got != r {
				t.Fatalf("%q: %d after %d", b[:n], got, r)
			}
			r = got
		}
	})
}
