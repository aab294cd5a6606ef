package ztunnel

import (
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/fairlead-mesh/fairlead/internal/identity"
	"github.com/fairlead-mesh/fairlead/proxy/hbone"
)

var errNoCertificate = errors.New("there is no certificate yet: check the identity's source")

// serverTLS takes the certificate and roots that are current at each handshake.
// A peer needs a certificate of the own trust domain.
func serverTLS(src identity.Source, own identity.ID) *tls.Config {
	return &tls.Config{
		MinVersion: tls.VersionTLS13, NextProtos: []string{"h2"}, ClientAuth: tls.RequireAnyClientCert, SessionTicketsDisabled: true,
		GetCertificate: func(*tls.ClientHelloInfo) (*tls.Certificate, error) {
			if c := src.Certificate(); c != nil {
				return c, nil
			}
			return nil, errNoCertificate
		},
		VerifyConnection: func(cs tls.ConnectionState) error {
			if cs.NegotiatedProtocol != "h2" {
				return errors.New("the peer does not offer ALPN h2")
			}
			id, err := verify(&cs, src.Roots(), x509.ExtKeyUsageClientAuth)
			if err == nil && id.TrustDomain != own.TrustDomain {
				err = fmt.Errorf("the peer's trust domain is %q, not %q", id.TrustDomain, own.TrustDomain)
			}
			return err
		},
	}
}

// clientTLS expects one of the identities joined in the target's key.
func clientTLS(src identity.Source) func(*hbone.Target) *tls.Config {
	return func(t *hbone.Target) *tls.Config {
		expect := strings.Split(t.Key.TLS, ",")
		return &tls.Config{
			MinVersion: tls.VersionTLS13, NextProtos: []string{"h2"}, SessionTicketsDisabled: true,
			GetClientCertificate: func(*tls.CertificateRequestInfo) (*tls.Certificate, error) {
				if c := src.Certificate(); c != nil {
					return c, nil
				}
				return nil, errNoCertificate
			},
			InsecureSkipVerify: true, //nolint:gosec // identities are no DNS names; VerifyConnection does it all
			VerifyConnection: func(cs tls.ConnectionState) error {
				if cs.NegotiatedProtocol != "h2" {
					return errors.New("the peer does not speak ALPN h2")
				}
				id, err := verify(&cs, src.Roots(), x509.ExtKeyUsageServerAuth)
				if err != nil {
					return err
				}
				if !slices.Contains(expect, id.String()) {
					return fmt.Errorf("the peer is %s, expected %s", id, strings.Join(expect, " or "))
				}
				return nil
			},
		}
	}
}

func verify(cs *tls.ConnectionState, roots *x509.CertPool, usage x509.ExtKeyUsage) (identity.ID, error) {
	if len(cs.PeerCertificates) == 0 {
		return identity.ID{}, errors.New("the peer sent no certificate")
	}
	if roots == nil {
		return identity.ID{}, errNoCertificate
	}
	leaf := cs.PeerCertificates[0]
	if err := identity.VerifyChain(cs.PeerCertificates, &identity.Verification{Roots: roots, Usage: usage, Now: time.Now()}); err != nil {
		return identity.ID{}, err
	}
	if err := identity.CheckSVID(leaf); err != nil {
		return identity.ID{}, err
	}
	return identity.IDOf(leaf)
}
