package abuse

import (
	"bytes"
	"crypto/aes"
	"crypto/cipher"
	"crypto/hkdf"
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

// Content types of TLS records (RFC 8446 section 5.1).
const (
	recordChangeCipherSpec = 20
	recordHandshake        = 22
	recordApplication      = 23
)

// sealer writes the records of a client after its handshake, those that
// crypto/tls would never write.
type sealer struct {
	secret []byte
	aead   cipher.AEAD
	iv     []byte
	seq    uint64
}

// expand is HKDF-Expand-Label with an empty context (RFC 8446 section 7.1).
func expand(secret []byte, label string, n int) []byte {
	info := append([]byte{byte(n >> 8), byte(n), byte(len("tls13 ") + len(label))}, "tls13 "+label...)
	out, err := hkdf.Expand(sha256.New, secret, string(append(info, 0)), n)
	if err != nil {
		panic(err)
	}
	return out
}

func (s *sealer) rekey(secret []byte) {
	block, err := aes.NewCipher(expand(secret, "key", 16))
	if err != nil {
		panic(err)
	}
	if s.aead, err = cipher.NewGCM(block); err != nil {
		panic(err)
	}
	s.secret, s.iv, s.seq = secret, expand(secret, "iv", 12), 0
}

// seal appends a protected record.
func (s *sealer) seal(b []byte, typ byte, content ...byte) []byte {
	nonce := bytes.Clone(s.iv)
	for i := range 8 {
		nonce[4+i] ^= byte(s.seq >> (56 - 8*i))
	}
	s.seq++
	n := len(content) + 1 + s.aead.Overhead()
	head := binary.BigEndian.AppendUint16([]byte{recordApplication, 3, 3}, uint16(n)) //nolint:gosec // short
	return s.aead.Seal(append(b, head...), nonce, append(bytes.Clone(content), typ), head)
}

// update appends a KeyUpdate, in a record of its own, and takes the next key.
func (s *sealer) update(b []byte, wantsAnswer byte) []byte {
	b = s.seal(b, recordHandshake, 24, 0, 0, 1, wantsAnswer)
	s.rekey(expand(s.secret, "traffic upd", sha256.Size))
	return b
}

// begin does a handshake; what is written to the connection then is the sealer's.
func (v *tlsVictim) begin(t *testing.T) (net.Conn, *sealer) {
	t.Helper()
	c, err := net.Dial("tcp", running.Address(v.h2))
	if err != nil {
		t.Fatal(err)
	}
	_ = c.SetDeadline(time.Now().Add(20 * time.Second))
	var keys bytes.Buffer
	cfg := clientConfig(v.good)
	cfg.KeyLogWriter = &keys
	tc := tls.Client(c, cfg)
	if err := tc.Handshake(); err != nil {
		t.Fatal(err)
	}
	if tc.ConnectionState().CipherSuite != tls.TLS_AES_128_GCM_SHA256 {
		t.Skip("AES is not negotiated on this processor")
	}
	s := &sealer{}
	for line := range strings.Lines(keys.String()) {
		if f := strings.Fields(line); len(f) == 3 && f[0] == "CLIENT_TRAFFIC_SECRET_0" {
			secret, err := hex.DecodeString(f[2])
			if err != nil {
				t.Fatal(err)
			}
			s.rekey(secret)
			return c, s
		}
	}
	t.Fatal("no traffic secret")
	return nil, nil
}

// What crypto/tls would never write is cut, and costs next to nothing until then.
func TestFloodsOfTLSRecordsAreCut(t *testing.T) {
	v := newTLSVictim(t)
	plain := []byte{recordChangeCipherSpec, 3, 3, 0, 1, 1}
	attacks := []struct {
		name  string
		first string // sent before
		batch func(s *sealer, b []byte) []byte
		deaf  bool
		// work says that it is a request's head in small pieces, which ends at its
		// size or its time and costs what reading does.
		work bool
	}{
		{name: "key updates", batch: func(s *sealer, b []byte) []byte { return s.update(b, 0) }},
		{name: "key updates that want an answer", batch: func(s *sealer, b []byte) []byte { return s.update(b, 1) }},
		{name: "key updates whose answers nobody reads", deaf: true, batch: func(s *sealer, b []byte) []byte { return s.update(b, 1) }},
		{name: "two key updates in a record", batch: func(s *sealer, b []byte) []byte {
			return s.seal(b, recordHandshake, 24, 0, 0, 1, 1, 24, 0, 0, 1, 1)
		}},
		{name: "a key update in two records", batch: func(s *sealer, b []byte) []byte {
			return s.seal(s.seal(b, recordHandshake, 24, 0), recordApplication, 'G')
		}},
		{name: "empty records", batch: func(s *sealer, b []byte) []byte { return s.seal(b, recordApplication) }},
		{name: "change cipher spec", batch: func(_ *sealer, b []byte) []byte { return append(b, plain...) }},
		{name: "a head in records of one byte", first: "GET / HTTP/1.1\r\nx: ", work: true, batch: func(s *sealer, b []byte) []byte {
			return s.seal(b, recordApplication, 'x')
		}},
		{name: "a key update for each byte of a head", first: "GET / HTTP/1.1\r\nx: ", work: true, batch: func(s *sealer, b []byte) []byte {
			return s.seal(s.update(b, 0), recordApplication, 'x')
		}},
	}
	if len(attacks) != 9 {
		t.Errorf("%d attacks, want 9", len(attacks))
	}
	// The records are good ones: a request in three of them, with a new key for
	// each, is answered.
	t.Run("control", func(t *testing.T) {
		c, s := v.begin(t)
		defer c.Close()
		var b []byte
		for _, part := range []string{"GET / HT", "TP/1.1\r\n", "host: a\r\n\r\n"} {
			b = s.seal(s.update(b, 0), recordApplication, []byte(part)...)
		}
		if _, err := c.Write(b); err != nil {
			t.Fatal(err)
		}
		head := make([]byte, 5)
		if _, err := io.ReadFull(c, head); err != nil || head[0] != recordApplication {
			t.Fatalf("answered with record % x, %v", head, err)
		}
	})
	for _, a := range attacks {
		t.Run(a.name, func(t *testing.T) {
			idle := v.idleCPU(300 * time.Millisecond)
			bad := v.canaryBad.Load()
			c, s := v.begin(t)
			defer c.Close()
			cpu0, rss0 := v.usage()
			began := time.Now()
			gone := make(chan struct{})
			if a.deaf {
				_ = c.(*net.TCPConn).SetReadBuffer(4096)
			} else {
				go func() {
					_, _ = io.Copy(io.Discard, c)
					close(gone)
				}()
			}
			_ = c.SetDeadline(began.Add(mercy))
			var b []byte
			if a.first != "" {
				b = s.seal(b, recordApplication, []byte(a.first)...)
			}
			cut, sent := false, 0
			for !cut && time.Since(began) < mercy {
				for range perBatch {
					b = a.batch(s, b)
				}
				n, err := c.Write(b)
				sent += n
				b = b[:0]
				ne, ok := err.(net.Error) //nolint:errorlint // as it is
				cut = err != nil && (!ok || !ne.Timeout())
				select {
				case <-gone:
					cut = true
				default:
				}
			}
			took := time.Since(began)
			cpu1, rss1 := v.usage()
			cost := cpu1 - cpu0 - time.Duration(float64(idle)*float64(took)/float64(300*time.Millisecond))
			t.Logf("cut %t after %v, %d KiB sent, %v of processor time, memory %+.1f MiB", cut, took.Round(time.Millisecond), sent>>10, cost, float64(rss1-rss0)/(1<<20))
			if !cut {
				t.Errorf("not cut within %v", mercy)
			}
			if cost > maxCPU && !a.work {
				t.Errorf("%v of processor time, want at most %v", cost, maxCPU)
			}
			if rss1-rss0 > maxRSS {
				t.Errorf("memory grew by %d MiB", (rss1-rss0)>>20)
			}
			v.wellServed("afterwards")
			v.unharmed(bad)
		})
	}
}
