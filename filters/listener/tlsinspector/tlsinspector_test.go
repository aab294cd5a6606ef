package tlsinspector

import (
	"bytes"
	"crypto/tls"
	"errors"
	"io"
	"net"
	"slices"
	"strings"
	"testing"

	"github.com/fairlead-mesh/fairlead/filters"
	"github.com/fairlead-mesh/fairlead/filters/internal/conntest"
	"github.com/fairlead-mesh/fairlead/internal/streaminfo"
)

// clientHello returns what a real client sends first.
func clientHello(t testing.TB, cfg *tls.Config) []byte {
	t.Helper()
	client, server := net.Pipe()
	go func() { _ = tls.Client(client, cfg).Handshake() }()
	defer client.Close()
	defer server.Close()
	head := make([]byte, 5)
	if _, err := io.ReadFull(server, head); err != nil {
		t.Fatal(err)
	}
	body := make([]byte, int(head[3])<<8|int(head[4]))
	if _, err := io.ReadFull(server, body); err != nil {
		t.Fatal(err)
	}
	return append(head, body...)
}

func run(t *testing.T, in []byte, cfg *Config, chunk int) (*streaminfo.Conn, *conntest.Conn, error) {
	t.Helper()
	f, err := Factory{}.Compile(nil, cfg)
	if err != nil {
		t.Fatal(err)
	}
	raw := &conntest.Conn{In: string(in), Chunk: chunk}
	c := &filters.Connection{Conn: raw, Info: &streaminfo.Info{Conn: &streaminfo.Conn{}}}
	err = f.OnAccept(c)
	if err == nil {
		got := make([]byte, len(in))
		for n := 0; n < len(in); {
			m, rerr := c.Read(got[n:])
			if rerr != nil {
				t.Fatal(rerr)
			}
			n += m
		}
		if !bytes.Equal(got, in) {
			t.Error("the inspected bytes are not read again")
		}
	}
	return c.Info.Conn, raw, err
}

var defaults = &Config{MaxClientHello: 16 << 10}

func TestReadsTheClientHelloOfGo(t *testing.T) {
	in := clientHello(t, &tls.Config{ServerName: "WWW.Example.com", NextProtos: []string{"h2", "http/1.1"}, MinVersion: tls.VersionTLS12})
	for _, chunk := range []int{0, 1, 7} {
		ci, _, err := run(t, in, defaults, chunk)
		if err != nil {
			t.Fatal(err)
		}
		if ci.TransportProtocol != "tls" || ci.RequestedServerName != "www.example.com" || !slices.Equal(ci.ApplicationProtocols, []string{"h2", "http/1.1"}) {
			t.Errorf("%+v", ci)
		}
	}
}

// split cuts the handshake message of one record into several records.
func split(in []byte, size int) []byte {
	var out []byte
	for body := in[5:]; len(body) > 0; {
		n := min(size, len(body))
		out = append(out, in[0], in[1], in[2], byte(n>>8), byte(n))
		out = append(out, body[:n]...)
		body = body[n:]
	}
	return out
}

func TestAClientHelloMaySpanRecords(t *testing.T) {
	in := clientHello(t, &tls.Config{ServerName: "a.example"})
	for _, size := range []int{1, 3, 100} {
		ci, _, err := run(t, split(in, size), defaults, 11)
		if err != nil || ci.RequestedServerName != "a.example" {
			t.Errorf("records of %d bytes: %q, %v", size, ci.RequestedServerName, err)
		}
	}
}

func TestPlaintextIsDecidedOnItsFirstByte(t *testing.T) {
	for _, in := range []string{"G", "\x16\x02", "\x17"} {
		ci, _, err := run(t, []byte(in), defaults, 0)
		if err != nil || ci.TransportProtocol != "" {
			t.Errorf("%q: %v, %+v", in, err, ci)
		}
	}
}

func TestLimitsAndErrors(t *testing.T) {
	in := clientHello(t, &tls.Config{ServerName: "a.example", NextProtos: []string{strings.Repeat("x", 200)}})
	if _, _, err := run(t, in, &Config{MaxClientHello: 256}, 0); !errors.Is(err, errTooLarge) {
		t.Errorf("an oversized ClientHello: %v", err)
	}
	huge := []byte{22, 3, 1, 0x40, 0, 1, 0xff, 0xff, 0xff}
	if _, raw, err := run(t, append(huge, make([]byte, 100)...), defaults, 1); !errors.Is(err, errTooLarge) || len(raw.In) < 100 {
		t.Errorf("a huge length is refused before its bytes are read: %v, %d left", err, len(raw.In))
	}
	bad := append([]byte{}, in...)
	bad[5+4+2+32] = 0xff // session id length
	if ci, _, err := run(t, bad, defaults, 0); err != nil || ci.TransportProtocol != "" {
		t.Errorf("malformed: %v, %q", err, ci.TransportProtocol)
	}
	if _, _, err := run(t, bad, &Config{MaxClientHello: 16 << 10, CloseOnError: true}, 0); !errors.Is(err, errMalformed) {
		t.Errorf("malformed, to be closed: %v", err)
	}
	if _, _, err := run(t, in[:50], defaults, 0); !errors.Is(err, conntest.ErrWait) {
		t.Errorf("half a ClientHello: %v", err)
	}
}

func TestServerNamesWithControlCharactersAreMalformed(t *testing.T) {
	in := clientHello(t, &tls.Config{ServerName: "a.example"})
	i := bytes.Index(in, []byte("a.example"))
	in[i+1] = 0
	if ci, _, err := run(t, in, defaults, 0); err != nil || ci.RequestedServerName != "" || ci.TransportProtocol != "" {
		t.Errorf("%v %+v", err, ci)
	}
}

// seed is a small ClientHello: one cipher suite, SNI "a.example", ALPN "h2".
var seed = slices.Concat(
	[]byte{22, 3, 1, 0, 74, 1, 0, 0, 70, 3, 3}, make([]byte, 32), []byte{0, 0, 2, 0x13, 1, 1, 0, 0, 27},
	[]byte{0, 0, 0, 14, 0, 12, 0, 0, 9}, []byte("a.example"), []byte{0, 16, 0, 5, 0, 3, 2, 'h', '2'},
)

func TestSeedIsAClientHello(t *testing.T) {
	h, _, err := parse(seed, 16<<10)
	if err != nil || h == nil || h.serverName != "a.example" || !slices.Equal(h.alpn, []string{"h2"}) {
		t.Errorf("%+v, %v", h, err)
	}
}

// FuzzParse: more bytes do not change an answer, no more is asked for than a
// ClientHello may have, and there is progress.
func FuzzParse(f *testing.F) {
	in := seed
	f.Add(in)
	f.Add(split(in, 64))
	f.Fuzz(func(t *testing.T, b []byte) {
		h, need, err := parse(b, 16<<10)
		if h == nil && err == nil && need <= len(b) {
			t.Fatalf("no progress: %d of %d", need, len(b))
		}
		if h == nil && err == nil && need > 4*(16<<10)+recordHeader && need > len(b)+maxRecord {
			t.Fatalf("asks for %d bytes", need)
		}
		// An answer does not change with more bytes, and is not given earlier
		// differently.
		for _, n := range []int{len(b) / 2, len(b) - 1} {
			if n < 0 {
				continue
			}
			h2, need2, err2 := parse(b[:n], 16<<10)
			if err2 != nil && !errors.Is(err, err2) || h2 != nil && h == nil || h2 == nil && err2 == nil && need2 <= n {
				t.Fatalf("prefix %d: %v %v, whole: %v %v", n, h2, err2, h, err)
			}
		}
	})
}
