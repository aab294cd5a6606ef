package identity

import (
	"bytes"
	"context"
	"crypto"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/rsa"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/asn1"
	"encoding/pem"
	"errors"
	"fmt"
	"os"
	"slices"
	"strings"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/types/known/structpb"
	securityv1alpha1pb "istio.io/api/security/v1alpha1"
)

// CAConfig is how certificates are asked from istiod.
type CAConfig struct {
	// Conn reaches the certificate authority; it brings token and cluster ID
	// with each call. The owner closes it.
	Conn grpc.ClientConnInterface
	// TTL asked for, 24 h by default.
	TTL time.Duration
	// ID is put into the request; istiod ignores it and uses the caller's
	// identity. The zero ID leaves it out.
	ID ID
	// Impersonate asks for a certificate of ID instead of the caller's, as a
	// ztunnel does for the pods of its node.
	Impersonate bool
	// RootsFile, if set, holds the trusted roots instead of the answer's.
	RootsFile string
	// CertSigner names a Kubernetes signer, "" for istiod's own.
	CertSigner string
	// RSABits makes an RSA key of that size instead of ECDSA P-256.
	RSABits int
}

// CA gets certificates from istiod's IstioCertificateService.
type CA struct{ cfg CAConfig }

// NewCA returns a CA; use Fetch in a RotatorConfig.
func NewCA(c CAConfig) *CA {
	if c.TTL <= 0 {
		c.TTL = 24 * time.Hour
	}
	return &CA{c}
}

// Fetch makes a new key, has it certified, and checks the answer.
func (ca *CA) Fetch(ctx context.Context) (Material, error) {
	key, err := ca.newKey()
	if err != nil {
		return Material{}, err
	}
	csr, err := newCSR(key, ca.cfg.ID)
	if err != nil {
		return Material{}, err
	}
	md := map[string]any{}
	if ca.cfg.Impersonate {
		md["ImpersonatedIdentity"] = ca.cfg.ID.String()
	}
	if ca.cfg.CertSigner != "" {
		md["CertSigner"] = ca.cfg.CertSigner
	}
	req := &securityv1alpha1pb.IstioCertificateRequest{Csr: string(csr), ValidityDuration: int64(ca.cfg.TTL / time.Second)}
	if req.Metadata, err = structpb.NewStruct(md); err != nil {
		return Material{}, err
	}
	resp, err := securityv1alpha1pb.NewIstioCertificateServiceClient(ca.cfg.Conn).CreateCertificate(ctx, req)
	if err != nil {
		return Material{}, fmt.Errorf("certificate request: %w%s", err, hint(err))
	}
	return ca.accept(resp.GetCertChain(), key)
}

// hint says what an operator should check.
func hint(err error) string {
	switch status.Code(err) {
	case codes.Unauthenticated:
		return " (check the service account token: audience istio-ca, not expired, trust domain of the control plane)"
	case codes.PermissionDenied:
		return " (check that the control plane trusts this node account: CA_TRUSTED_NODE_ACCOUNTS)"
	case codes.Unavailable, codes.DeadlineExceeded:
		return " (check that CA_ADDR is reachable and its certificate is signed by the configured root)"
	default:
		return ""
	}
}

func (ca *CA) newKey() (crypto.Signer, error) {
	if ca.cfg.RSABits > 0 {
		return rsa.GenerateKey(rand.Reader, ca.cfg.RSABits)
	}
	return ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
}

// accept checks and takes over an answer: leaf, intermediates…, roots.
func (ca *CA) accept(chain []string, key crypto.Signer) (Material, error) {
	if len(chain) < 2 {
		return Material{}, fmt.Errorf("the certificate authority answered %d chain elements, want at least leaf and root", len(chain))
	}
	certs, err := ParseCertificates([]byte(strings.Join(chain[:len(chain)-1], "\n")))
	if err != nil {
		return Material{}, fmt.Errorf("certificate chain of the answer: %w", err)
	}
	roots := []byte(chain[len(chain)-1])
	if ca.cfg.RootsFile != "" {
		if roots, err = os.ReadFile(ca.cfg.RootsFile); err != nil {
			return Material{}, fmt.Errorf("trusted roots: %w", err)
		}
	}
	pool, err := ParseRoots(roots)
	if err != nil {
		return Material{}, fmt.Errorf("trusted roots: %w", err)
	}
	leaf := certs[0]
	if err := ca.check(leaf, certs[1:], pool, key); err != nil {
		return Material{}, fmt.Errorf("certificate of the answer: %w", err)
	}
	c := &tls.Certificate{PrivateKey: key, Leaf: leaf}
	for _, x := range certs {
		c.Certificate = append(c.Certificate, x.Raw)
	}
	return Material{Certificate: c, Roots: pool, RootsPEM: roots}, nil
}

func (ca *CA) check(leaf *x509.Certificate, inter []*x509.Certificate, roots *x509.CertPool, key crypto.Signer) error {
	want, err := x509.MarshalPKIXPublicKey(key.Public())
	if err != nil {
		return err
	}
	if !bytes.Equal(want, leaf.RawSubjectPublicKeyInfo) {
		return errors.New("it is not for our key")
	}
	if ca.cfg.Impersonate && !slices.Equal(URIs(leaf), []string{ca.cfg.ID.String()}) {
		return fmt.Errorf("it is for %q, asked for %s", URIs(leaf), ca.cfg.ID)
	}
	ip := x509.NewCertPool()
	for _, c := range inter {
		ip.AddCert(c)
	}
	if _, err := leaf.Verify(x509.VerifyOptions{Roots: roots, Intermediates: ip, KeyUsages: []x509.ExtKeyUsage{x509.ExtKeyUsageAny}}); err != nil {
		return fmt.Errorf("it does not chain to the trusted roots: %w", err)
	}
	return nil
}

var oidSAN = asn1.ObjectIdentifier{2, 5, 29, 17}

// newCSR makes a PEM request with an empty subject and, if id is not zero, a
// critical URI SAN.
func newCSR(key crypto.Signer, id ID) ([]byte, error) {
	t := &x509.CertificateRequest{}
	if id != (ID{}) {
		v, err := asn1.Marshal([]asn1.RawValue{{Class: asn1.ClassContextSpecific, Tag: 6, Bytes: []byte(id.String())}})
		if err != nil {
			return nil, err
		}
		t.ExtraExtensions = []pkix.Extension{{Id: oidSAN, Critical: true, Value: v}}
	}
	der, err := x509.CreateCertificateRequest(rand.Reader, t, key)
	if err != nil {
		return nil, err
	}
	return pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE REQUEST", Bytes: der}), nil
}
