package abuse

import (
	"bytes"
	"crypto/aes"
	"crypto/cipher"
	"crypto/hmac"
	"crypto/sha256"
	"crypto/tls"
	"encoding/binary"
	"encoding/hex"
	"io"
	"net"
	"strings"
	"testing"
	"time"

	"github.com/fairlead-mesh/fairlead/conformance/running"
)

// overheard keeps what is read from a connection.
type overheard struct {
	net.Conn
	got bytes.Buffer
}

func (o *overheard) Read(p []byte) (int, error) {
	n, err := o.Conn.Read(p)
	o.got.Write(p[:n])
	return n, err
}

// prf is that of TLS 1.2 (RFC 5246 section 5).
func prf(secret []byte, label string, seed []byte, n int) (out []byte) {
	mac := func(parts ...[]byte) []byte {
		h := hmac.New(sha256.New, secret)
		for _, p := range parts {
			_, _ = h.Write(p)
		}
		return h.Sum(nil)
	}
	ls := append([]byte(label), seed...)
	for a := mac(ls); len(out) < n; a = mac(a) {
		out = append(out, mac(a, ls)...)
	}
	return out[:n]
}

// sealer12 is a sealer of TLS 1.2 with AES-128-GCM (RFC 5288).
type sealer12 struct {
	aead cipher.AEAD
	salt []byte
	seq  uint64
}

func (s *sealer12) seal(b []byte, typ byte, content ...byte) []byte {
	seq := binary.BigEndian.AppendUint64(nil, s.seq)
	s.seq++
	head := []byte{typ, 3, 3}
	aad := binary.BigEndian.AppendUint16(append(bytes.Clone(seq), head...), uint16(len(content)))
	n := len(seq) + len(content) + s.aead.Overhead()
	b = append(binary.BigEndian.AppendUint16(append(b, head...), uint16(n)), seq...)
	return s.aead.Seal(b, append(bytes.Clone(s.salt), seq...), content, aad)
}

// begin12 is begin for TLS 1.2.
func (v *tlsVictim) begin12(t *testing.T) (net.Conn, *sealer12) {
	t.Helper()
	c, err := net.Dial("tcp", running.Address(v.h2))
	if err != nil {
		t.Fatal(err)
	}
	_ = c.SetDeadline(time.Now().Add(20 * time.Second))
	var keys bytes.Buffer
	cfg := clientConfig(v.good)
	cfg.KeyLogWriter, cfg.MinVersion, cfg.MaxVersion = &keys, tls.VersionTLS12, tls.VersionTLS12
	cfg.CipherSuites = []uint16{tls.TLS_ECDHE_ECDSA_WITH_AES_128_GCM_SHA256}
	o := &overheard{Conn: c}
	if err := tls.Client(o, cfg).Handshake(); err != nil {
		t.Fatal(err)
	}
	f := strings.Fields(keys.String()) // CLIENT_RANDOM, that, the master secret
	if len(f) != 3 {
		t.Fatalf("key log %q", keys.String())
	}
	client, err1 := hex.DecodeString(f[1])
	master, err2 := hex.DecodeString(f[2])
	if err1 != nil || err2 != nil {
		t.Fatal(err1, err2)
	}
	server := o.got.Bytes()[5+4+2:][:32] // of the first record, ServerHello
	block := prf(master, "key expansion", append(bytes.Clone(server), client...), 40)
	a, err := aes.NewCipher(block[:16])
	if err != nil {
		t.Fatal(err)
	}
	s := &sealer12{salt: block[32:36], seq: 1} // Finished was 0
	if s.aead, err = cipher.NewGCM(a); err != nil {
		t.Fatal(err)
	}
	return c, s
}

// Nobody renegotiates: the first try ends the connection, however many follow.
func TestRenegotiationEndsTheConnection(t *testing.T) {
	v := newTLSVictim(t)
	t.Run("control", func(t *testing.T) {
		c, s := v.begin12(t)
		defer c.Close()
		if _, err := c.Write(s.seal(s.seal(nil, recordApplication, []byte("GET / HTTP/1.1\r\n")...), recordApplication, []byte("host: a\r\n\r\n")...)); err != nil {
			t.Fatal(err)
		}
		head := make([]byte, 5)
		if _, err := io.ReadFull(c, head); err != nil || head[0] != recordApplication {
			t.Fatalf("answered with record % x, %v", head, err)
		}
	})
	hello := clientHello(t)[5:]
	for name, content := range map[string][]byte{
		"a second ClientHello": hello, "a HelloRequest": {0, 0, 0, 0}, "half a ClientHello": hello[:20], "a Finished": append([]byte{20, 0, 0, 12}, make([]byte, 12)...),
	} {
		t.Run(name, func(t *testing.T) {
			bad := v.canaryBad.Load()
			c, s := v.begin12(t)
			defer c.Close()
			cpu0, rss0 := v.usage()
			began := time.Now()
			var b []byte
			for range 1000 {
				b = s.seal(b, recordHandshake, content...)
			}
			_, _ = c.Write(b)
			_ = c.SetReadDeadline(began.Add(mercy))
			_, err := io.Copy(io.Discard, c)
			ne, ok := err.(net.Error) //nolint:errorlint // as it is
			cpu1, rss1 := v.usage()
			t.Logf("ended after %v, %v of processor time, %+.1f MiB", time.Since(began).Round(time.Millisecond), cpu1-cpu0, float64(rss1-rss0)/(1<<20))
			if ok && ne.Timeout() {
				t.Errorf("not cut within %v", mercy)
			}
			if cpu1-cpu0 > maxCPU || rss1-rss0 > maxRSS {
				t.Errorf("%v of processor time, %d MiB", cpu1-cpu0, (rss1-rss0)>>20)
			}
			v.wellServed("afterwards")
			v.unharmed(bad)
		})
	}
}
