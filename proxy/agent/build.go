package agent

import (
	"context"
	"crypto/tls"
	"fmt"
	"log/slog"

	"github.com/fairlead-mesh/fairlead/internal/identity"
	"github.com/fairlead-mesh/fairlead/internal/workload"
	"github.com/fairlead-mesh/fairlead/xdsclient"
)

// Transport is how e is reached. The client certificate's files are read for
// each handshake.
func (e *Endpoint) Transport() xdsclient.Transport {
	t := xdsclient.Transport{TokenFile: e.TokenFile, Metadata: e.Headers, UserAgent: userAgent}
	if e.Plaintext {
		return t
	}
	t.TLS = &xdsclient.TLS{RootsFile: e.Roots, ServerName: e.ServerName}
	if e.ClientChain != "" {
		chain, key := e.ClientChain, e.ClientKey
		t.TLS.ClientCertificate = func() *tls.Certificate {
			f, err := identity.NewFiles(chain, key, "", nil)
			if err != nil {
				return nil // the server decides whether the token is enough
			}
			return f.Certificate()
		}
	}
	return t
}

// XDSConfig is the configuration of the xDS client but for types and
// callbacks.
func (c *Config) XDSConfig() xdsclient.Config {
	return xdsclient.Config{Target: c.XDS.Address, Transport: c.XDS.Transport(), Node: c.Node}
}

// IdentitySource is a Source that its owner must Run.
type IdentitySource interface {
	identity.Source
	// Run keeps the source up to date until ctx ends, and returns ctx's error.
	Run(ctx context.Context) error
}

// NewIdentity returns the source of this workload's certificate: files if the
// pod has them, else istiod. release must be called when Run has returned. A
// nil logger discards.
func (c *Config) NewIdentity(log *slog.Logger, report func(identity.Material, error)) (src IdentitySource, release func(), err error) {
	s := c.Secrets
	if s.Chain != "" {
		f, err := identity.NewFiles(s.Chain, s.Key, s.Roots, log)
		if err != nil {
			return nil, nil, fmt.Errorf("workload certificate: %w", err)
		}
		return f, func() {}, nil
	}
	conn, err := xdsclient.Dial(c.CA.Address, c.CA.Transport())
	if err != nil {
		return nil, nil, fmt.Errorf("certificate authority: %w", err)
	}
	ca := identity.NewCA(identity.CAConfig{Conn: conn, TTL: s.TTL, ID: c.ID, RSABits: s.RSABits, CertSigner: s.CertSigner})
	r := identity.NewRotator(identity.RotatorConfig{
		Fetch: ca.Fetch, Fraction: s.Fraction, Jitter: s.Jitter, Logger: log, Report: report,
	})
	return r, func() { _ = conn.Close() }, nil
}

// WorkloadType is the resource type that fills t: all workloads of the mesh.
func WorkloadType(t *workload.Table) xdsclient.ResourceType {
	return xdsclient.ResourceType{
		TypeURL: workload.WorkloadType, Wildcard: true, Omit: true,
		Decode: func(_ string, b []byte) (any, []xdsclient.Key, error) {
			r, err := workload.DecodeRecord(b)
			return r, nil, err
		},
		OnChange: func(cs []xdsclient.Change) {
			out := make([]workload.Change, 0, len(cs))
			for i := range cs {
				r, _ := cs[i].Value.(*workload.Record)
				out = append(out, workload.Change{Name: cs[i].Name, Record: r})
			}
			t.Update(out)
		},
	}
}
