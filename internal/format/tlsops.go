package format

import (
	"net/url"
	"strings"
	"time"

	"github.com/fairlead-mesh/fairlead/internal/streaminfo"
)

type tlsFunc func(dst []byte, t *streaminfo.TLS) []byte

// certificate resolves DOWNSTREAM_… and UPSTREAM_… operators that read the TLS
// session; ok tells whether c is one. No value is absent.
func (c command) certificate() (o op, ok bool, err error) {
	side, what, _ := strings.Cut(c.name, "_")
	var of func(*Context) *streaminfo.TLS
	switch side {
	case "DOWNSTREAM":
		of = func(x *Context) *streaminfo.TLS {
			if x.Info == nil || x.Info.Conn == nil {
				return nil
			}
			return x.Info.Conn.TLS
		}
	case "UPSTREAM":
		of = func(x *Context) *streaminfo.TLS {
			if x.Info == nil {
				return nil
			}
			return x.Info.Upstream.TLS
		}
	default:
		return op{}, false, nil
	}
	f, isTime, err := c.tlsFunc(what)
	if f == nil {
		return op{}, err != nil, err
	}
	if !isTime && c.hasSub {
		return op{}, true, c.noArgument()
	}
	return c.truncated(func(dst []byte, x *Context) ([]byte, bool) {
		t := of(x)
		if t == nil {
			return dst, false
		}
		n := len(dst)
		dst = f(dst, t)
		return dst, len(dst) > n
	}), true, nil
}

func (c command) tlsFunc(what string) (f tlsFunc, isTime bool, err error) {
	switch what {
	case "TLS_VERSION":
		return func(dst []byte, t *streaminfo.TLS) []byte { return append(dst, t.Version...) }, false, nil
	case "TLS_CIPHER":
		return func(dst []byte, t *streaminfo.TLS) []byte { return append(dst, t.CipherSuite...) }, false, nil
	case "TLS_ALPN", "ALPN":
		return func(dst []byte, t *streaminfo.TLS) []byte { return append(dst, t.ALPN...) }, false, nil
	}
	cert := func(t *streaminfo.TLS) *streaminfo.Certificate { return &t.Peer }
	field, ok := strings.CutPrefix(what, "PEER_")
	if !ok {
		if field, ok = strings.CutPrefix(what, "LOCAL_"); !ok {
			return nil, false, nil
		}
		cert = func(t *streaminfo.TLS) *streaminfo.Certificate { return &t.LocalCert }
	}
	if at, ok := certTimes[field]; ok {
		layout, err := compileTime(c.sub)
		if err != nil {
			return nil, true, err
		}
		return func(dst []byte, t *streaminfo.TLS) []byte {
			if v := at(cert(t)); !v.IsZero() {
				return layout(dst, v)
			}
			return dst
		}, true, nil
	}
	get, ok := certFields[field]
	if !ok {
		return nil, false, nil
	}
	return func(dst []byte, t *streaminfo.TLS) []byte { return get(dst, cert(t)) }, false, nil
}

var certTimes = map[string]func(*streaminfo.Certificate) time.Time{
	"CERT_V_START": func(c *streaminfo.Certificate) time.Time { return c.NotBefore },
	"CERT_V_END":   func(c *streaminfo.Certificate) time.Time { return c.NotAfter },
}

var certFields = map[string]func([]byte, *streaminfo.Certificate) []byte{
	"URI_SAN":         func(dst []byte, c *streaminfo.Certificate) []byte { return appendJoined(dst, c.URISANs) },
	"DNS_SAN":         func(dst []byte, c *streaminfo.Certificate) []byte { return appendJoined(dst, c.DNSSANs) },
	"SUBJECT":         func(dst []byte, c *streaminfo.Certificate) []byte { return append(dst, c.Subject...) },
	"ISSUER":          func(dst []byte, c *streaminfo.Certificate) []byte { return append(dst, c.Issuer...) },
	"SERIAL":          func(dst []byte, c *streaminfo.Certificate) []byte { return append(dst, c.Serial...) },
	"FINGERPRINT_256": func(dst []byte, c *streaminfo.Certificate) []byte { return append(dst, c.Digest...) },
	"CERT": func(dst []byte, c *streaminfo.Certificate) []byte {
		return append(dst, strings.ReplaceAll(url.QueryEscape(c.PEM), "+", "%20")...)
	},
}

func appendJoined(dst []byte, names []string) []byte {
	for i, n := range names {
		if i > 0 {
			dst = append(dst, ',')
		}
		dst = append(dst, n...)
	}
	return dst
}
