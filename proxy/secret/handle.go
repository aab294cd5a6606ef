package secret

import (
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"os"
	"sync/atomic"

	"github.com/fairlead-mesh/fairlead/internal/filewatch"
	"github.com/fairlead-mesh/fairlead/internal/identity"
	"github.com/fairlead-mesh/fairlead/xdsclient/xdsresource"
)

// Certificate is the handle of one certificate.
type Certificate struct {
	name   string
	slot   *slot           // nil: the workload's own
	source identity.Source // may be nil
}

var (
	errNoWorkloadCert = errors.New(`secret "default": this workload has no certificate yet (check the certificate authority's address and the token)`)
	errNoWorkloadRoot = errors.New(`secret "ROOTCA": this workload has no trusted roots yet (check the certificate authority's address and the token)`)
	errNotACert       = errors.New("the secret is not a certificate")
	errNotTrust       = errors.New("the secret is not a trusted CA")
)

// Own reports whether it is the workload's own certificate, which its identity
// may bring at any time.
func (c *Certificate) Own() bool { return c.slot == nil }

// Name is what the certificate is known by: an SDS name, a file, or "inline".
func (c *Certificate) Name() string { return c.name }

// Get returns the current certificate with Leaf set. The error names the
// secret that is missing or broken. It does not allocate.
func (c *Certificate) Get() (*tls.Certificate, error) {
	if c.slot == nil {
		if c.source != nil {
			if crt := c.source.Certificate(); crt != nil {
				return crt, nil
			}
		}
		return nil, errNoWorkloadCert
	}
	v := c.slot.v.Load()
	if v.err != nil {
		return nil, v.err
	}
	if v.cert == nil {
		return nil, errNotACert
	}
	return v.cert, nil
}

// Anchors is an immutable value of a Trust.
type Anchors struct {
	// Roots is nil if no CA is configured.
	Roots *x509.CertPool
	// CRLs, if not nil, must cover every issuer of a chain.
	CRLs CRLs
	// Validation is what the secret itself demands besides the CA (SAN
	// matchers, pins), nil if nothing.
	Validation *xdsresource.Validation
}

// Trust is the handle of one set of trusted CAs. A nil *Trust has no anchors.
type Trust struct {
	own      *Anchors // inline material
	slot     *slot
	crls     *slot // of a file, nil without one
	identity bool
	source   identity.Source // may be nil
	// merged caches own and the current material of the slots.
	merged atomic.Pointer[merged]
}

// merged is what was made of these.
type merged struct {
	pool        *x509.CertPool // of the identity
	value, crls *value
	anchors     *Anchors
}

// Own reports whether these are the workload's own roots, which its identity
// may bring at any time.
func (t *Trust) Own() bool { return t != nil && t.identity }

// Get returns the current anchors. The error names the secret that is missing
// or broken. It allocates only after a change.
func (t *Trust) Get() (*Anchors, error) {
	if t == nil {
		return &Anchors{}, nil
	}
	var now merged
	lists := t.crls
	switch {
	case t.identity:
		if t.source != nil {
			now.pool = t.source.Roots()
		}
		if now.pool == nil {
			return nil, errNoWorkloadRoot
		}
	case t.slot != nil:
		now.value = t.slot.v.Load()
		if now.value.err != nil {
			return nil, now.value.err
		}
		if now.value.anchors == nil {
			return nil, errNotTrust
		}
		if now.value.crls != nil || now.value.anchors.CRLs != nil {
			lists = now.value.crls
		}
	case lists == nil:
		return t.own, nil
	}
	if lists != nil {
		if now.crls = lists.v.Load(); now.crls.err != nil {
			return nil, now.crls.err
		}
	}
	if m := t.merged.Load(); m != nil && m.pool == now.pool && m.value == now.value && m.crls == now.crls {
		return m.anchors, nil
	}
	m := now // which alone is on the heap
	m.anchors = m.merge(t.own)
	t.merged.Store(&m)
	return m.anchors, nil
}

// merge returns what is configured in the context with what came from elsewhere.
func (m *merged) merge(own *Anchors) *Anchors {
	a := *own
	if m.pool != nil {
		a.Roots = m.pool
	}
	if m.value != nil {
		a = *m.value.anchors
		if a.Roots == nil {
			a.Roots = own.Roots
		}
		if a.CRLs == nil {
			a.CRLs = own.CRLs
		}
	}
	if m.crls != nil {
		a.CRLs = m.crls.anchors.CRLs
	}
	return &a
}

func loadCertificate(c *xdsresource.Certificate) (*tls.Certificate, error) {
	chain, key := c.Chain, c.Key
	var err error
	if c.ChainFile != "" {
		if chain, err = os.ReadFile(c.ChainFile); err != nil {
			return nil, err
		}
	}
	if c.KeyFile != "" {
		if key, err = os.ReadFile(c.KeyFile); err != nil {
			return nil, err
		}
	}
	switch {
	case c.Password != "":
		return nil, errors.New("private keys with a password are not supported")
	case len(chain) == 0:
		return nil, errors.New("there is no certificate chain")
	case len(key) == 0:
		return nil, errors.New("there is no private key")
	}
	crt, err := identity.ParseCertificate(chain, key)
	if err != nil {
		return nil, err
	}
	crt.OCSPStaple = c.OCSP
	return crt, nil
}

// loadAnchors reads the material that v itself carries; files are read once.
func loadAnchors(v *xdsresource.Validation) (*Anchors, error) {
	a := &Anchors{}
	var err error
	switch {
	case v.SystemRoots:
		if a.Roots, err = x509.SystemCertPool(); err != nil {
			return nil, fmt.Errorf("system roots: %w", err)
		}
	case len(v.TrustedCA) > 0:
		if a.Roots, err = identity.ParseRoots(v.TrustedCA); err != nil {
			return nil, fmt.Errorf("trusted CA: %w", err)
		}
	}
	if len(v.CRL) > 0 {
		if a.CRLs, err = parseCRLs(v.CRL); err != nil {
			return nil, fmt.Errorf("CRL: %w", err)
		}
	}
	return a, nil
}

func (s *Store) fileCertificate(c *xdsresource.Certificate) *slot {
	c = &xdsresource.Certificate{Chain: c.Chain, Key: c.Key, ChainFile: c.ChainFile, KeyFile: c.KeyFile, Password: c.Password, OCSP: c.OCSP}
	return s.file([2]string{c.ChainFile, c.KeyFile}, func() *value {
		crt, err := loadCertificate(c)
		if err != nil {
			err = fmt.Errorf("certificate of %s and %s: %w", c.ChainFile, c.KeyFile, err)
		}
		return &value{cert: crt, err: err}
	})
}

func (s *Store) fileRoots(path string) *slot {
	return s.file([2]string{path}, func() *value {
		b, err := os.ReadFile(path)
		if err != nil {
			return &value{err: fmt.Errorf("trusted CA: %w", err)}
		}
		pool, err := identity.ParseRoots(b)
		if err != nil {
			return &value{err: fmt.Errorf("trusted CA of %s: %w", path, err)}
		}
		return &value{anchors: &Anchors{Roots: pool}}
	})
}

// crlKey stands in the place of a second file.
const crlKey = "\x00crl"

// fileCRLs returns the slot of a file with revocation lists; s.mu is held.
func (s *Store) fileCRLs(path string) *slot {
	return s.fileLocked([2]string{path, crlKey}, []string{path}, func() *value {
		b, err := os.ReadFile(path)
		if err != nil {
			return &value{err: fmt.Errorf("CRL: %w", err)}
		}
		crls, err := parseCRLs(b)
		if err != nil {
			return &value{err: fmt.Errorf("CRL of %s: %w", path, err)}
		}
		return &value{anchors: &Anchors{CRLs: crls}}
	})
}

// file returns the slot of a set of files, which is filled by load now and
// after each change. What was good stays when a change is broken.
func (s *Store) file(key [2]string, load func() *value) *slot {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.fileLocked(key, key[:], load)
}

func (s *Store) fileLocked(key [2]string, paths []string, load func() *value) *slot {
	if sl := s.files[key]; sl != nil {
		return sl
	}
	w := filewatch.Watcher{}
	for _, p := range paths {
		if p != "" {
			w.Paths = append(w.Paths, p)
		}
	}
	w.Prime()
	sl := new(slot)
	s.replace(key[0], sl, load())
	s.files[key] = sl
	s.wg.Go(func() {
		_ = w.Run(s.ctx, func() { s.replace(key[0], sl, load()) })
	})
	return sl
}
