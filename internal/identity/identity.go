// Package identity gives this workload its X.509 certificate: from watched
// files, from a development CA inside the process, or from istiod's
// certificate service. A certificate is replaced while it is still valid, and
// replacing it concerns new handshakes only.
package identity

import (
	"crypto/tls"
	"crypto/x509"
	"sync"
	"sync/atomic"
)

// Source is a workload identity that changes over time. It is safe for
// concurrent use; what it returns must not be modified.
type Source interface {
	// Certificate is the current chain and key with Leaf set, nil until there
	// is one. A source keeps its last certificate when it can't get a new one,
	// also after it expired: the handshake then says so.
	Certificate() *tls.Certificate
	// Roots are the CAs that peers are verified with, nil until known.
	Roots() *x509.CertPool
	// Changed returns a channel that is closed at the next change of either.
	// To miss none, take the channel before reading the values.
	Changed() <-chan struct{}
}

// Material is one consistent pair of certificate and roots.
type Material struct {
	Certificate *tls.Certificate
	Roots       *x509.CertPool
	// RootsPEM is Roots as PEM, for those who hand them on.
	RootsPEM []byte
}

// Static is a Source whose material is set by its owner. The zero Static is
// empty. Set may be called at any time.
type Static struct {
	cur atomic.Pointer[Material]

	mu      sync.Mutex
	changed chan struct{}
}

// NewStatic returns a Source that holds m.
func NewStatic(m Material) *Static {
	s := new(Static)
	s.Set(m)
	return s
}

// Set replaces the material and wakes those who wait for a change.
func (s *Static) Set(m Material) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.cur.Store(&m)
	if s.changed != nil {
		close(s.changed)
		s.changed = nil
	}
}

// Material returns certificate and roots that belong together.
func (s *Static) Material() Material {
	if m := s.cur.Load(); m != nil {
		return *m
	}
	return Material{}
}

// Certificate implements Source.
func (s *Static) Certificate() *tls.Certificate { return s.Material().Certificate }

// Roots implements Source.
func (s *Static) Roots() *x509.CertPool { return s.Material().Roots }

// Changed implements Source.
func (s *Static) Changed() <-chan struct{} {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.changed == nil {
		s.changed = make(chan struct{})
	}
	return s.changed
}

var _ Source = (*Static)(nil)
