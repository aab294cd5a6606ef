// Package secret answers SDS names with certificates, trusted CAs and generic
// values: "default" and "ROOTCA" from this workload's identity, names that the
// control plane sent over ADS, files ("file-cert:", "file-root:") and inline
// material. What a handle returns is immutable and is swapped as a whole, so
// each handshake sees one consistent, current value.
package secret

import (
	"crypto/tls"
	"crypto/x509"
	"errors"
	"log/slog"

	"github.com/fairlead-mesh/fairlead/internal/identity"
	"github.com/fairlead-mesh/fairlead/xdsclient/xdsresource"
)

var errTODO = errors.New("secret: not built yet")

// Config is what a Store draws on.
type Config struct {
	// Identity answers "default" and "ROOTCA"; nil: those names are missing.
	Identity identity.Source
	Logger   *slog.Logger
}

// Store resolves SDS names. It is safe for concurrent use.
type Store struct{}

// NewStore returns a Store without ADS secrets.
func NewStore(c Config) *Store { return &Store{} }

// SetADS replaces all secrets that came over ADS, by resource name.
func (s *Store) SetADS(secrets map[string]*xdsresource.Secret) {}

// Close stops watching files. Handles keep their last values.
func (s *Store) Close() {}

// Certificate returns the handle of a certificate: inline, files, or an SDS
// name. It fails only if the inline material is broken.
func (s *Store) Certificate(c *xdsresource.Certificate) (*Certificate, error) { return nil, errTODO }

// Trust returns the handle of the CAs that v verifies peers with.
func (s *Store) Trust(v *xdsresource.Validation) (*Trust, error) { return nil, errTODO }

// Generic returns the generic secret called name; the error names it.
func (s *Store) Generic(name string) ([]byte, error) { return nil, errTODO }

// Certificate is the handle of one certificate.
type Certificate struct{}

// Get returns the current certificate with Leaf set. The error names the
// secret that is missing or broken. It does not allocate.
func (c *Certificate) Get() (*tls.Certificate, error) { return nil, errTODO }

// Trust is the handle of one set of trusted CAs.
type Trust struct{}

// Anchors is an immutable value of a Trust.
type Anchors struct {
	// Roots is nil only if every chain is accepted.
	Roots *x509.CertPool
	// CRLs by raw issuer; nil: revocation isn't checked.
	CRLs map[string]*x509.RevocationList
	// Validation is what the secret itself demands besides the CA (SAN
	// matchers, pins), nil if nothing.
	Validation *xdsresource.Validation
}

// Get returns the current anchors. The error names the secret that is missing
// or broken. It does not allocate.
func (t *Trust) Get() (*Anchors, error) { return nil, errTODO }
