// Package secret answers SDS names with certificates, trusted CAs and generic
// values: "default" and "ROOTCA" from this workload's identity, names that the
// control plane sent over ADS, files ("file-cert:", "file-root:") and inline
// material. What a handle returns is immutable and is swapped as a whole, so
// each handshake sees one consistent, current value.
package secret

import (
	"cmp"
	"context"
	"crypto/tls"
	"crypto/x509"
	"fmt"
	"log/slog"
	"maps"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"time"
	"weak"

	"github.com/fairlead-mesh/fairlead/internal/identity"
	"github.com/fairlead-mesh/fairlead/xdsclient/xdsresource"
)

// Names that istiod gives to what its node agent serves.
const (
	workloadCert = "default"
	workloadRoot = "ROOTCA"
	fileCert     = "file-cert:" // file-cert:<chain>~<key>
	fileRoot     = "file-root:" // file-root:<path>, file-root:system
)

// inline is what a certificate within the configuration is known by.
const inline = "inline"

// Config is what a Store draws on.
type Config struct {
	// Identity answers "default" and "ROOTCA"; nil: those names are missing.
	Identity identity.Source
	// Served tells whether a cluster is an SDS server that is asked, nil for none.
	// Of pilot-agent's only what Identity doesn't answer comes from it.
	Served func(cluster string) bool
	// Revoked, if not nil, is told that revocation lists may have changed: of a
	// secret, or of a file. It must not block, and not call the Store.
	Revoked func()
	Logger  *slog.Logger
}

// Store resolves SDS names. It is safe for concurrent use.
type Store struct {
	identity identity.Source
	served   func(cluster string) bool
	revoked  func()
	log      *slog.Logger
	ctx      context.Context //nolint:containedctx // ends the watches at Close
	cancel   context.CancelFunc
	wg       sync.WaitGroup

	mu     sync.Mutex
	ads    map[string]*xdsresource.Secret
	static map[string]*xdsresource.Secret
	// slots of names that a handle refers to; files live until Close.
	slots map[string]weak.Pointer[slot]
	files map[[2]string]*slot
	// inline are the slots of inline certificates that a handle refers to.
	inline []weak.Pointer[slot]
}

// slot is where the current value of one named secret is.
type slot struct {
	v atomic.Pointer[value]
}

// value is one immutable state of a secret.
type value struct {
	digest  xdsresource.Digest
	cert    *tls.Certificate
	anchors *Anchors
	crls    *slot // the file with the anchors' revocation lists, nil without one
	err     error // why cert and anchors can't be used
	// refused is why a newer content was not taken over.
	refused error
}

// NewStore returns a Store without ADS secrets.
func NewStore(c Config) *Store {
	if c.Logger == nil {
		c.Logger = slog.New(slog.DiscardHandler)
	}
	if c.Served == nil {
		c.Served = func(string) bool { return false }
	}
	if c.Revoked == nil {
		c.Revoked = func() {}
	}
	s := &Store{identity: c.Identity, served: c.Served, revoked: c.Revoked, log: c.Logger, slots: map[string]weak.Pointer[slot]{}, files: map[[2]string]*slot{}}
	s.ctx, s.cancel = context.WithCancel(context.Background())
	return s
}

// Close stops watching files. Handles keep their last values.
func (s *Store) Close() {
	s.cancel()
	s.wg.Wait()
}

// SetADS replaces all secrets that came over ADS, by resource name.
func (s *Store) SetADS(secrets map[string]*xdsresource.Secret) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.ads = maps.Clone(secrets)
	s.refreshLocked()
}

// SetStatic replaces the secrets of a static configuration. A name that is
// also set over ADS is the latter's.
func (s *Store) SetStatic(secrets map[string]*xdsresource.Secret) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.static = maps.Clone(secrets)
	s.refreshLocked()
}

func (s *Store) refreshLocked() {
	for name, w := range s.slots {
		sl := w.Value()
		if sl == nil {
			delete(s.slots, name) // nobody holds a handle any more
			continue
		}
		s.fillLocked(name, sl)
	}
}

func (s *Store) lookupLocked(name string) *xdsresource.Secret {
	if sec := s.ads[name]; sec != nil {
		return sec
	}
	return s.static[name]
}

// fillLocked brings a slot up to date.
func (s *Store) fillLocked(name string, sl *slot) {
	sec, old := s.lookupLocked(name), sl.v.Load()
	if sec == nil {
		if old != nil && old.err == nil {
			s.log.Warn("secret is gone", "name", name)
		}
		sl.v.Store(&value{err: fmt.Errorf("secret %q has not arrived from the control plane (does it exist, and may this proxy read it?)", name)})
		return
	}
	if old != nil && old.digest == sec.Digest && sec.Digest != (xdsresource.Digest{}) {
		return
	}
	v := &value{digest: sec.Digest}
	switch {
	case sec.Certificate != nil:
		v.cert, v.err = loadCertificate(sec.Certificate)
	case sec.Validation != nil:
		v.anchors, v.err = loadAnchors(sec.Validation)
		if v.err == nil {
			v.anchors.Validation = sec.Validation
			if f := sec.Validation.CRLFile; f != "" {
				v.crls = s.fileCRLs(f)
			}
		}
	}
	if v.err != nil {
		v.err = fmt.Errorf("secret %q: %w", name, v.err)
	}
	s.replace(name, sl, v)
}

// replace stores v in sl, unless what is there is good and v is not: what is
// broken, or has expired already, takes nothing away.
func (s *Store) replace(name string, sl *slot, v *value) {
	old := sl.v.Load()
	refused := v.err
	if refused == nil {
		refused = expired(name, v.cert)
	}
	if refused == nil || old == nil || old.err != nil || expired(name, old.cert) != nil {
		if refused != nil {
			s.log.Error("a secret can't be used; handshakes that need it fail", "error", refused)
		}
		sl.v.Store(v)
		if v.anchors != nil && v.anchors.CRLs != nil {
			s.revoked()
		}
		return
	}
	s.log.Error("the new content of a secret can't be used; keeping the former one", "error", refused)
	kept := *old
	kept.digest, kept.refused = v.digest, refused
	sl.v.Store(&kept)
}

// expired says at once what handshakes would tell only later: a certificate that
// has expired is not presented.
func expired(name string, crt *tls.Certificate) error {
	if crt == nil || crt.Leaf == nil || !time.Now().After(crt.Leaf.NotAfter) {
		return nil
	}
	return fmt.Errorf("secret %q: the certificate expired at %s", name, crt.Leaf.NotAfter.Format(time.RFC3339))
}

func (s *Store) named(name string) *slot {
	s.mu.Lock()
	defer s.mu.Unlock()
	if sl := s.slots[name].Value(); sl != nil {
		return sl
	}
	sl := new(slot)
	s.fillLocked(name, sl)
	s.slots[name] = weak.Make(sl)
	return sl
}

// Generic returns the generic secret called name; the error names it.
func (s *Store) Generic(name string) ([]byte, error) {
	s.mu.Lock()
	sec := s.lookupLocked(name)
	s.mu.Unlock()
	if sec == nil {
		return nil, fmt.Errorf("secret %q has not arrived from the control plane", name)
	}
	if sec.Generic == nil {
		return nil, fmt.Errorf("secret %q is not a generic secret", name)
	}
	return sec.Generic, nil
}

// Certificate returns the handle of a certificate: inline, files, or an SDS
// name. It fails only if the inline material is broken or the name can't be
// resolved in principle.
func (s *Store) Certificate(c *xdsresource.Certificate) (*Certificate, error) {
	name := c.SDSName
	if name == "" {
		if c.ChainFile != "" || c.KeyFile != "" {
			return &Certificate{name: c.ChainFile, slot: s.fileCertificate(c)}, nil
		}
		crt, err := loadCertificate(c)
		if err != nil {
			return nil, fmt.Errorf("inline certificate: %w", err)
		}
		if err := expired(inline, crt); err != nil {
			s.log.Error("a secret can't be used; handshakes that need it fail", "error", err)
		}
		return &Certificate{name: inline, slot: s.addInline(crt)}, nil
	}
	if err := s.resolvable(name, &c.SDSSource); err != nil {
		return nil, err
	}
	if s.Own(name, &c.SDSSource) {
		if name == workloadCert {
			return &Certificate{name: name, source: s.identity}, nil
		}
		if pair, ok := strings.CutPrefix(name, fileCert); ok {
			chain, key, ok := strings.Cut(pair, "~")
			if !ok || chain == "" || key == "" {
				return nil, fmt.Errorf("secret %q: want file-cert:<chain>~<key>", name)
			}
			return &Certificate{name: chain, slot: s.fileCertificate(&xdsresource.Certificate{ChainFile: chain, KeyFile: key})}, nil
		}
	}
	if err := s.fromControlPlane(name, &c.SDSSource); err != nil {
		return nil, err
	}
	return &Certificate{name: name, slot: s.named(name)}, nil
}

// addInline returns a slot that holds crt.
func (s *Store) addInline(crt *tls.Certificate) *slot {
	sl := new(slot)
	sl.v.Store(&value{cert: crt})
	s.mu.Lock()
	defer s.mu.Unlock()
	if len(s.inline) == cap(s.inline) {
		s.inline = slices.DeleteFunc(s.inline, func(w weak.Pointer[slot]) bool { return w.Value() == nil })
	}
	s.inline = append(s.inline, weak.Make(sl))
	return sl
}

// agentServer is the cluster that istiod's configuration names for the secrets
// which pilot-agent serves. The ones below are made in this process instead.
const agentServer = "sds-grpc"

// Own tells whether a secret is made here: one without a source, or of an agent
// that there is none of, or whose identity this process has.
func (s *Store) Own(name string, src *xdsresource.ConfigSource) bool {
	if src.ADS || src.Path != "" {
		return false
	}
	return !s.served(src.Cluster) || src.Cluster == agentServer && s.identity != nil && (name == workloadCert || name == workloadRoot)
}

func (s *Store) resolvable(name string, src *xdsresource.ConfigSource) error {
	switch {
	case strings.HasPrefix(name, "sds://") && src.Cluster == "":
		return fmt.Errorf("secret %q: the SDS server must be named by api_config_source", name)
	case src.Cluster != "" && src.Cluster != agentServer && !s.served(src.Cluster):
		return fmt.Errorf("secret %q is to come from %q, which is no static cluster of the bootstrap", name, src.Cluster)
	}
	return nil
}

// fromControlPlane refuses a secret that nobody would bring: one that an agent
// would have to serve under another name than those it has.
func (s *Store) fromControlPlane(name string, src *xdsresource.ConfigSource) error {
	if src.Cluster != "" && !s.served(src.Cluster) {
		return fmt.Errorf("secret %q: the cluster %s, an agent's SDS server, has no such secret: name it with ads", name, src.Cluster)
	}
	return nil
}

// Trust returns the handle of the CAs that v verifies peers with, nil if v
// names none.
func (s *Store) Trust(v *xdsresource.Validation) (*Trust, error) {
	own, err := loadAnchors(v)
	if err != nil {
		return nil, err
	}
	t := &Trust{own: own}
	if v.CRLFile != "" {
		s.mu.Lock()
		t.crls = s.fileCRLs(v.CRLFile)
		s.mu.Unlock()
	}
	if v.SDSName != "" {
		if err := s.resolvable(v.SDSName, &v.SDSSource); err != nil {
			return nil, err
		}
	}
	agent := s.Own(v.SDSName, &v.SDSSource)
	switch name := v.SDSName; {
	case name == "" && v.TrustedCAFile != "":
		t.slot = s.fileRoots(v.TrustedCAFile)
	case name == "":
		if own.Roots == nil && own.CRLs == nil {
			return nil, nil
		}
	case agent && name == workloadRoot:
		t.identity, t.source = true, s.identity
	case agent && name == fileRoot+"system":
		if own.Roots, err = x509.SystemCertPool(); err != nil {
			return nil, fmt.Errorf("system roots: %w", err)
		}
	case agent && strings.HasPrefix(name, fileRoot):
		t.slot = s.fileRoots(strings.TrimPrefix(name, fileRoot))
	default:
		if err := s.fromControlPlane(name, &v.SDSSource); err != nil {
			return nil, err
		}
		t.slot = s.named(name)
	}
	return t, nil
}

// State is the condition of one secret, for operators.
type State struct {
	Name string
	// Leaf is nil if the secret is no certificate or can't be used. With both,
	// Leaf is in use and Err says why a newer content is not.
	Leaf *x509.Certificate
	Err  error
}

// States lists the workload's certificate and all secrets that handles refer
// to, by name; inline certificates have the same one.
func (s *Store) States() []State {
	var out []State
	if s.identity != nil {
		c, err := (&Certificate{source: s.identity}).Get()
		st := State{Name: workloadCert, Err: err}
		if err == nil {
			st.Leaf = c.Leaf
		}
		out = append(out, st)
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	add := func(name string, sl *slot) {
		if sl == nil {
			return
		}
		v := sl.v.Load()
		st := State{Name: name, Err: cmp.Or(v.err, v.refused)}
		if v.cert != nil {
			st.Leaf = v.cert.Leaf
		}
		out = append(out, st)
	}
	for n, w := range s.slots {
		add(n, w.Value())
	}
	for _, w := range s.inline {
		add(inline, w.Value())
	}
	for k, sl := range s.files {
		add(strings.TrimSuffix(k[0]+"~"+strings.TrimPrefix(k[1], crlKey), "~"), sl)
	}
	slices.SortFunc(out, func(a, b State) int { return strings.Compare(a.Name, b.Name) })
	return out
}
