// Package tlscontext turns decoded TLS contexts into crypto/tls
// configurations. A configuration is built once; certificates and trust are
// fetched for each handshake, so rotation reaches new connections and leaves
// open ones alone. What can't be verified fails the handshake.
package tlscontext

import (
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"net/url"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/fairlead-mesh/fairlead/internal/streaminfo"
	"github.com/fairlead-mesh/fairlead/proxy/secret"
	"github.com/fairlead-mesh/fairlead/xdsclient/xdsresource"
)

// Server is the TLS side of one filter chain. It is immutable and safe for
// concurrent use.
type Server struct {
	cfg    *tls.Config
	noALPN *tls.Config
	certs  []*secret.Certificate
	// clients verifies client certificates, nil if none are looked at.
	clients *verifier
}

// NewServer compiles spec. An error means that the context can't be executed;
// the chain must then refuse its connections.
//
// Sessions are resumed by tickets unless the context disables that or asks for
// client certificates: mutual TLS is always a full handshake, so that the peer
// proves its current identity.
func NewServer(spec *xdsresource.DownstreamTLS, store *secret.Store) (*Server, error) {
	if spec.Unknown != "" {
		return nil, errors.New(spec.Unknown)
	}
	s := &Server{cfg: base(&spec.CommonTLS)}
	if len(spec.Certificates) == 0 {
		return nil, errors.New("a TLS server needs a certificate")
	}
	var err error
	if s.certs, err = certificates(&spec.CommonTLS, store); err != nil {
		return nil, err
	}
	if v := spec.Validation; v != nil {
		ver, err := newVerifier(v, store, true)
		if err != nil {
			return nil, err
		}
		if !ver.authenticates() && spec.RequireClientCert && !v.AcceptUntrusted {
			return nil, errUnverified
		}
		s.cfg.ClientAuth = tls.RequestClientCert
		s.cfg.VerifyConnection = ver.server
		s.clients = ver
	}
	if spec.RequireClientCert {
		if spec.Validation == nil {
			return nil, errUnverified
		}
		s.cfg.ClientAuth = tls.RequireAnyClientCert
	}
	s.cfg.SessionTicketsDisabled = spec.DisableStatelessResumption || s.cfg.ClientAuth != tls.NoClientCert
	s.cfg.GetCertificate = s.certificate
	if spec.RequireSNI || len(s.cfg.NextProtos) > 0 {
		s.noALPN = s.cfg.Clone()
		s.noALPN.NextProtos = nil
		s.cfg.GetConfigForClient = s.hello(spec.RequireSNI, s.cfg.NextProtos)
	}
	return s, nil
}

var errUnverified = errors.New("client certificates are required, but there is no trusted CA (or pin) to verify them with")

// Admits says what a handshake would object to in the name of a client: id is
// the URI in its certificate, "" if it presents none. Signatures and dates are
// left out.
func (s *Server) Admits(id string) error {
	if id == "" {
		if s.cfg.ClientAuth == tls.RequireAnyClientCert {
			return errors.New("a client certificate is required")
		}
		return nil
	}
	if s.clients == nil {
		return nil
	}
	u, err := url.Parse(id)
	if err != nil {
		return fmt.Errorf("%q is no URI: %w", id, err)
	}
	var extra *xdsresource.Validation
	if a, err := s.clients.trust.Get(); err == nil {
		extra = a.Validation
	}
	if !s.clients.named(&x509.Certificate{URIs: []*url.URL{u}}, extra) {
		return fmt.Errorf("%s matches none of the names that clients may have (match_typed_subject_alt_names)", id)
	}
	return nil
}

// Revoked says which certificate of the client of an established session is
// revoked by now, nil if none is.
func (s *Server) Revoked(cs *tls.ConnectionState) error { return s.clients.revoked(cs) }

// Config is the configuration for every connection of the chain; it must not
// be modified.
func (s *Server) Config() *tls.Config { return s.cfg }

// Info describes an established session; see the function Info. The local
// certificate is the one that is current now.
func (s *Server) Info(cs *tls.ConnectionState) *streaminfo.TLS { return describe(cs, s.certs) }

// hello makes the decisions that depend on the ClientHello. As in Envoy a
// client that offers only unknown ALPN names gets no ALPN rather than an
// alert.
func (s *Server) hello(requireSNI bool, protos []string) func(*tls.ClientHelloInfo) (*tls.Config, error) {
	return func(h *tls.ClientHelloInfo) (*tls.Config, error) {
		if requireSNI && h.ServerName == "" {
			return nil, errors.New("the client sent no server name (SNI), which this listener requires")
		}
		for _, p := range h.SupportedProtos {
			if slices.Contains(protos, p) {
				return nil, nil
			}
		}
		return s.noALPN, nil
	}
}

// certificate picks the first certificate that the client can use, else the
// first.
func (s *Server) certificate(h *tls.ClientHelloInfo) (*tls.Certificate, error) {
	return pick(s.certs, func(c *tls.Certificate) error { return h.SupportsCertificate(c) })
}

func pick(certs []*secret.Certificate, supported func(*tls.Certificate) error) (*tls.Certificate, error) {
	var first *tls.Certificate
	var firstErr error
	for _, h := range certs {
		c, err := h.Get()
		if err == nil {
			err = valid(h.Name(), c)
		}
		if err != nil {
			if firstErr == nil {
				firstErr = err
			}
			continue
		}
		if len(certs) == 1 || supported(c) == nil {
			return c, nil
		}
		if first == nil {
			first = c
		}
	}
	if first == nil {
		return nil, firstErr
	}
	return first, nil
}

// valid refuses to present a certificate that every peer would refuse, with an
// error that says so.
func valid(name string, c *tls.Certificate) error {
	if now := time.Now(); now.After(c.Leaf.NotAfter) {
		return fmt.Errorf("our own certificate expired at %s (secret %s; is the certificate authority reachable, and the clock right?)", c.Leaf.NotAfter.Format(time.RFC3339), name)
	}
	return nil
}

// Client is the TLS side of one transport socket of a cluster. It is safe for
// concurrent use.
type Client struct {
	base   *tls.Config
	certs  []*secret.Certificate
	verify *verifier // nil: the server isn't verified
	// autoVerify is auto_sni_san_validation.
	autoVerify bool

	mu    sync.RWMutex
	cache map[cacheKey]*tls.Config
}

type cacheKey struct{ sni, verify, alpn string }

// maxCached bounds the configurations of one client, for clusters whose SNI
// follows the request.
const maxCached = 1024

// NewClient compiles spec; see NewServer. Sessions are resumed if the context
// keeps session keys and presents no certificate.
func NewClient(spec *xdsresource.UpstreamTLS, store *secret.Store) (*Client, error) {
	c := &Client{base: base(&spec.CommonTLS), cache: map[cacheKey]*tls.Config{}, autoVerify: spec.AutoSNISANValidation}
	var err error
	if c.certs, err = certificates(&spec.CommonTLS, store); err != nil {
		return nil, err
	}
	if spec.Validation != nil {
		if c.verify, err = newVerifier(spec.Validation, store, false); err != nil {
			return nil, err
		}
	}
	if c.autoVerify && (c.verify == nil || !c.verify.chains()) {
		return nil, errors.New("auto_sni_san_validation needs a trusted CA")
	}
	c.base.ServerName = spec.SNI
	c.base.InsecureSkipVerify = true // VerifyConnection does it, without a DNS name
	if spec.AllowRenegotiation {
		c.base.Renegotiation = tls.RenegotiateFreelyAsClient
	}
	if len(c.certs) > 0 {
		c.base.GetClientCertificate = func(h *tls.CertificateRequestInfo) (*tls.Certificate, error) {
			return pick(c.certs, h.SupportsCertificate)
		}
	} else if n := spec.MaxSessionKeys; n > 0 {
		c.base.ClientSessionCache = tls.NewLRUClientSessionCache(int(min(n, maxCached)))
	}
	return c, nil
}

// Options are what a client handshake depends on besides the context.
type Options struct {
	// SNI overrides the context's; "" keeps it. VerifyName, if not empty, is a
	// DNS name or IP address that the certificate must be valid for
	// (auto_san_validation); it is demanded besides the context's matchers.
	SNI, VerifyName string
	// ALPN overrides the context's; nil keeps it.
	ALPN []string
}

// Config returns the configuration for a connection with o; it is cached and
// must not be modified.
func (c *Client) Config(o Options) *tls.Config {
	if o.SNI == "" {
		o.SNI = c.base.ServerName
	}
	if o.VerifyName == "" && c.autoVerify {
		o.VerifyName = o.SNI
	}
	k := cacheKey{sni: o.SNI, verify: o.VerifyName}
	if o.ALPN != nil {
		k.alpn = "\x00" + strings.Join(o.ALPN, "\x00")
	}
	c.mu.RLock()
	cfg := c.cache[k]
	c.mu.RUnlock()
	if cfg != nil {
		return cfg
	}
	cfg = c.base.Clone()
	cfg.ServerName = o.SNI
	if o.ALPN != nil {
		cfg.NextProtos = slices.Clone(o.ALPN)
	}
	switch {
	case c.autoVerify && o.VerifyName == "":
		cfg.VerifyConnection = func(tls.ConnectionState) error {
			return errors.New("there is no server name (SNI) to verify the certificate with")
		}
	case c.verify != nil:
		cfg.VerifyConnection = c.verify.client(o.VerifyName)
	case o.VerifyName != "":
		cfg.VerifyConnection = func(tls.ConnectionState) error {
			return fmt.Errorf("the certificate was to be verified for %q, but no trusted CA is configured", o.VerifyName)
		}
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	if old := c.cache[k]; old != nil {
		return old
	}
	if len(c.cache) >= maxCached {
		clear(c.cache)
	}
	c.cache[k] = cfg
	return cfg
}

// Revoked says which certificate of the server of an established session is
// revoked by now, nil if none is.
func (c *Client) Revoked(cs *tls.ConnectionState) error { return c.verify.revoked(cs) }

// Info describes an established session; see the function Info. The local
// certificate is the one that is current now, if the context has any.
func (c *Client) Info(cs *tls.ConnectionState) *streaminfo.TLS { return describe(cs, c.certs) }

// defaultCurves are those that Envoy 1.40 offers and takes, as server and as
// client, unless ecdh_curves says otherwise. The first one withstands quantum
// computers, too: where both ends have it, it is taken, and costs a tenth of the
// handshake.
var defaultCurves = []tls.CurveID{tls.X25519MLKEM768, tls.X25519, tls.CurveP256}

func base(t *xdsresource.CommonTLS) *tls.Config {
	cfg := &tls.Config{
		MinVersion: t.Params.MinVersion, MaxVersion: t.Params.MaxVersion,
		CipherSuites: t.Params.CipherSuites, NextProtos: t.ALPN, CurvePreferences: t.Params.Curves,
	}
	if len(cfg.CurvePreferences) == 0 {
		cfg.CurvePreferences = defaultCurves
	}
	if cfg.MinVersion == 0 {
		cfg.MinVersion = tls.VersionTLS12
	}
	if cfg.MaxVersion == 0 {
		cfg.MaxVersion = tls.VersionTLS13
	}
	return cfg
}

func certificates(t *xdsresource.CommonTLS, store *secret.Store) ([]*secret.Certificate, error) {
	var out []*secret.Certificate
	for i := range t.Certificates {
		h, err := store.Certificate(&t.Certificates[i])
		if err != nil {
			return nil, err
		}
		out = append(out, h)
	}
	return out, nil
}
