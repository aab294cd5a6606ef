package soak

import (
	"bytes"
	"crypto/tls"
	"crypto/x509"
	"encoding/pem"
	"slices"
	"sync/atomic"

	corev3pb "github.com/envoyproxy/go-control-plane/envoy/config/core/v3"
	tlsv3pb "github.com/envoyproxy/go-control-plane/envoy/extensions/transport_sockets/tls/v3"
	"github.com/fairlead-mesh/fairlead/internal/identity"
)

// pki holds the certificates of the moment.
type pki struct {
	cas []*identity.DevCA // trusted; the last one issues
	now atomic.Pointer[credentials]
}

// credentials are what clients and origins use; the proxy's come by SDS.
type credentials struct {
	roots            *x509.CertPool
	rootsPEM         []byte
	client, stranger *tls.Certificate
	origin, workload *tls.Certificate
}

func newPKI() (*pki, error) {
	p := &pki{}
	if err := p.trust(); err != nil {
		return nil, err
	}
	return p, p.renew()
}

// trust adds a root, by which renew will issue.
func (p *pki) trust() error {
	ca, err := identity.NewDevCA("cluster.local")
	if err != nil {
		return err
	}
	p.cas = append(p.cas, ca)
	return nil
}

// renew makes new leaves by the last root.
func (p *pki) renew() error {
	c := &credentials{}
	for _, l := range []struct {
		to      **tls.Certificate
		account string
	}{{&c.client, "client"}, {&c.stranger, "stranger"}, {&c.origin, "origin"}, {&c.workload, "waypoint"}} {
		crt, err := p.cas[len(p.cas)-1].Issue(identity.Leaf{URIs: []string{"spiffe://cluster.local/ns/app/sa/" + l.account}})
		if err != nil {
			return err
		}
		*l.to = crt
	}
	p.publish(c)
	return nil
}

// publish puts c in force, with the roots that are trusted now.
func (p *pki) publish(c *credentials) {
	c.roots, c.rootsPEM = x509.NewCertPool(), nil
	for _, ca := range p.cas {
		c.rootsPEM = append(c.rootsPEM, ca.RootsPEM()...)
	}
	c.roots.AppendCertsFromPEM(c.rootsPEM)
	p.now.Store(c)
}

// retrust is publish with the leaves that there are.
func (p *pki) retrust() {
	c := *p.now.Load()
	p.publish(&c)
}

// distrust forgets all roots but the last.
func (p *pki) distrust() { p.cas = slices.Clone(p.cas[len(p.cas)-1:]) }

// clientConfig is for a handshake with the proxy.
func clientConfig(c *credentials, own *tls.Certificate) *tls.Config {
	cfg := &tls.Config{
		MinVersion: tls.VersionTLS13, NextProtos: []string{"h2"}, InsecureSkipVerify: true, // names are SPIFFE IDs
		VerifyConnection: func(cs tls.ConnectionState) error {
			o := x509.VerifyOptions{Roots: c.roots, Intermediates: x509.NewCertPool()}
			for _, i := range cs.PeerCertificates[1:] {
				o.Intermediates.AddCert(i)
			}
			_, err := cs.PeerCertificates[0].Verify(o)
			return err
		},
	}
	if own != nil {
		cfg.Certificates = []tls.Certificate{*own}
	}
	return cfg
}

// originConfig is the origin's: it takes the proxy's certificate only.
func (p *pki) originConfig() *tls.Config {
	return &tls.Config{MinVersion: tls.VersionTLS12, GetConfigForClient: func(*tls.ClientHelloInfo) (*tls.Config, error) {
		c := p.now.Load()
		return &tls.Config{
			MinVersion: tls.VersionTLS12, Certificates: []tls.Certificate{*c.origin}, ClientCAs: c.roots, ClientAuth: tls.RequireAndVerifyClientCert,
		}, nil
	}}
}

// secrets are what SDS serves.
func (c *credentials) secrets() ([]*tlsv3pb.Secret, error) {
	var chain bytes.Buffer
	for _, der := range c.workload.Certificate {
		if err := pem.Encode(&chain, &pem.Block{Type: "CERTIFICATE", Bytes: der}); err != nil {
			return nil, err
		}
	}
	key, err := x509.MarshalPKCS8PrivateKey(c.workload.PrivateKey)
	if err != nil {
		return nil, err
	}
	return []*tlsv3pb.Secret{
		{Name: "workload", Type: &tlsv3pb.Secret_TlsCertificate{TlsCertificate: &tlsv3pb.TlsCertificate{
			CertificateChain: inline(chain.Bytes()), PrivateKey: inline(pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: key})),
		}}},
		{Name: "roots", Type: &tlsv3pb.Secret_ValidationContext{ValidationContext: &tlsv3pb.CertificateValidationContext{TrustedCa: inline(c.rootsPEM)}}},
	}, nil
}

func inline(b []byte) *corev3pb.DataSource {
	return &corev3pb.DataSource{Specifier: &corev3pb.DataSource_InlineBytes{InlineBytes: b}}
}
