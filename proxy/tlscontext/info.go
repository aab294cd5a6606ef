package tlscontext

import (
	"crypto/sha256"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/asn1"
	"encoding/hex"
	"fmt"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/fairlead-mesh/fairlead/internal/identity"
	"github.com/fairlead-mesh/fairlead/internal/streaminfo"
	"github.com/fairlead-mesh/fairlead/proxy/secret"
)

// Info describes an established session for policy and telemetry, without the
// local certificate. The result is cached, shared and read-only.
func Info(cs *tls.ConnectionState) *streaminfo.TLS { return describe(cs, nil) }

// sessions caches descriptions: connections of the same peer share one.
var sessions infoCache

type infoKey struct {
	peer            [sha256.Size]byte
	local           *x509.Certificate
	version, cipher uint16
	alpn            string
}

// infoCache is safe for concurrent use. The zero value is empty.
type infoCache struct {
	mu sync.RWMutex
	// recent is filled from since on, until it is full or old enough, and then becomes
	// old, whose entries move back when they are used: peers and this side get new
	// certificates all the time, and nobody asks for the former ones again.
	recent, old map[infoKey]*streaminfo.TLS
	since       time.Time
	// own are descriptions of the certificates of this side, which all sessions
	// share.
	own map[*x509.Certificate]streaminfo.Certificate
}

// maxInfos bounds what is recent, and what is old, maxOwn what is known of this side;
// a description is about 2 KiB. What is not used is forgotten after one to two
// infoAges.
const (
	maxInfos, maxOwn = 1024, 64
	infoAge          = 10 * time.Minute
)

// get returns the description that k has, nil if it has none.
func (ic *infoCache) get(k infoKey) *streaminfo.TLS {
	ic.mu.RLock()
	t, old := ic.recent[k], ic.old[k]
	ic.mu.RUnlock()
	if t != nil || old == nil {
		return t
	}
	return ic.put(k, old)
}

// put keeps t, unless there is one already, which it returns.
func (ic *infoCache) put(k infoKey, t *streaminfo.TLS) *streaminfo.TLS {
	ic.mu.Lock()
	defer ic.mu.Unlock()
	if was := ic.recent[k]; was != nil {
		return was
	}
	if now := time.Now(); ic.recent == nil || len(ic.recent) >= maxInfos || now.Sub(ic.since) > infoAge {
		if ic.recent != nil {
			clear(ic.own)
		}
		ic.recent, ic.old, ic.since = map[infoKey]*streaminfo.TLS{}, ic.recent, now
	}
	ic.recent[k] = t
	return t
}

// local describes a certificate of this side.
func (ic *infoCache) local(c *x509.Certificate) streaminfo.Certificate {
	ic.mu.RLock()
	d, ok := ic.own[c]
	ic.mu.RUnlock()
	if ok {
		return d
	}
	d = Certificate(c)
	ic.mu.Lock()
	defer ic.mu.Unlock()
	if ic.own == nil {
		ic.own = map[*x509.Certificate]streaminfo.Certificate{}
	}
	if len(ic.own) >= maxOwn { // most are of former rotations
		clear(ic.own)
	}
	ic.own[c] = d
	return d
}

func describe(cs *tls.ConnectionState, certs []*secret.Certificate) *streaminfo.TLS {
	if cs == nil {
		return nil
	}
	k := infoKey{version: cs.Version, cipher: cs.CipherSuite, alpn: cs.NegotiatedProtocol}
	if len(cs.PeerCertificates) > 0 {
		k.peer = sha256.Sum256(cs.PeerCertificates[0].Raw)
	}
	if len(certs) > 0 {
		if c, err := certs[0].Get(); err == nil {
			k.local = c.Leaf
		}
	}
	if t := sessions.get(k); t != nil {
		return t
	}
	t := &streaminfo.TLS{Version: versionName(k.version), CipherSuite: cipherName(k.cipher), ALPN: strings.Clone(k.alpn)}
	k.alpn = t.ALPN
	if len(cs.PeerCertificates) > 0 {
		t.Peer = Certificate(cs.PeerCertificates[0])
	}
	if k.local != nil {
		t.LocalCert = sessions.local(k.local)
	}
	return sessions.put(k, t)
}

// Certificate describes c.
func Certificate(c *x509.Certificate) streaminfo.Certificate {
	d := sha256.Sum256(c.Raw)
	out := streaminfo.Certificate{
		DNSSANs: c.DNSNames, Subject: distinguishedName(c.RawSubject, c.Subject), Issuer: distinguishedName(c.RawIssuer, c.Issuer),
		Serial: hex.EncodeToString(c.SerialNumber.Bytes()), Digest: hex.EncodeToString(d[:]),
		PEM: string(identity.EncodeCertificates(c.Raw)), NotBefore: c.NotBefore, NotAfter: c.NotAfter,
	}
	out.URISANs = identity.URIs(c)
	return out
}

// versionName is %DOWNSTREAM_TLS_VERSION%.
func versionName(v uint16) string {
	switch v {
	case tls.VersionTLS10:
		return "TLSv1"
	case tls.VersionTLS11:
		return "TLSv1.1"
	case tls.VersionTLS12:
		return "TLSv1.2"
	case tls.VersionTLS13:
		return "TLSv1.3"
	}
	return fmt.Sprintf("0x%04X", v)
}

// cipherName is %DOWNSTREAM_TLS_CIPHER%, OpenSSL's name.
func cipherName(id uint16) string {
	n := tls.CipherSuiteName(id)
	kx, cipher, ok := strings.Cut(strings.TrimPrefix(n, "TLS_"), "_WITH_")
	if !ok {
		return n // TLS 1.3 suites have the same name everywhere
	}
	cipher = strings.TrimSuffix(strings.Replace(cipher, "CHACHA20_POLY1305_SHA256", "CHACHA20_POLY1305", 1), "_CBC_SHA")
	if cipher != strings.TrimSuffix(cipher, "_CBC_SHA256") {
		cipher = strings.TrimSuffix(cipher, "_CBC_SHA256") + "_SHA256"
	} else if strings.HasSuffix(n, "_CBC_SHA") {
		cipher += "_SHA"
	}
	cipher = strings.NewReplacer("AES_128", "AES128", "AES_256", "AES256", "_", "-").Replace(cipher)
	if kx == "RSA" {
		return cipher
	}
	return strings.ReplaceAll(kx, "_", "-") + "-" + cipher
}

// attributes are the names that OpenSSL prints besides those of RFC 2253.
var attributes = map[string]string{
	"2.5.4.3": "CN", "2.5.4.4": "SN", "2.5.4.5": "serialNumber", "2.5.4.6": "C", "2.5.4.7": "L", "2.5.4.8": "ST",
	"2.5.4.9": "street", "2.5.4.10": "O", "2.5.4.11": "OU", "2.5.4.12": "title", "2.5.4.13": "description", "2.5.4.17": "postalCode",
	"2.5.4.42": "GN", "0.9.2342.19200300.100.1.1": "UID", "0.9.2342.19200300.100.1.25": "DC",
	"1.2.840.113549.1.9.1": "emailAddress",
}

// distinguishedName prints a name in RFC 2253 form: last attribute first.
func distinguishedName(raw []byte, parsed pkix.Name) string {
	var rdns pkix.RDNSequence
	if rest, err := asn1.Unmarshal(raw, &rdns); err != nil || len(rest) > 0 {
		return parsed.String()
	}
	var b strings.Builder
	for _, rdn := range slices.Backward(rdns) {
		if b.Len() > 0 {
			b.WriteByte(',')
		}
		for j, a := range rdn {
			if j > 0 {
				b.WriteByte('+')
			}
			oid := a.Type.String()
			name, known := attributes[oid]
			text, isText := a.Value.(string)
			if !known || !isText { // as "#" and its DER form
				der, err := asn1.Marshal(a.Value)
				if err != nil {
					return parsed.String()
				}
				if !known {
					name = oid
				}
				b.WriteString(name + "=#" + strings.ToUpper(hex.EncodeToString(der)))
				continue
			}
			b.WriteString(name + "=")
			escapeDN(&b, text)
		}
	}
	return b.String()
}

// escapeDN escapes by RFC 2253, section 2.4, and what is not printable ASCII, as
// OpenSSL's XN_FLAG_RFC2253 does: the result may stand in a header field.
func escapeDN(b *strings.Builder, s string) {
	for i := range len(s) {
		switch c := s[i]; {
		case strings.IndexByte(`,+"\<>;`, c) >= 0, c == '#' && i == 0, c == ' ' && (i == 0 || i == len(s)-1):
			b.WriteByte('\\')
			b.WriteByte(c)
		case c < 0x20 || c >= 0x7f:
			fmt.Fprintf(b, `\%02X`, c)
		default:
			b.WriteByte(c)
		}
	}
}
