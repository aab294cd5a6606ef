package examples

import (
	"crypto/tls"
	"crypto/x509"
	"encoding/pem"
	"fmt"
	"os"
	"path/filepath"
	"time"

	"github.com/fairlead-mesh/fairlead/internal/identity"
)

// Files that WriteCertificates makes beside <name>.pem (certificate) and
// <name>-key.pem.
const (
	MeshCA   = "mesh-ca.pem"
	ServerCA = "server-ca.pem"
)

// workloads have a SPIFFE ID under MeshCA; the key is the file's name.
var workloads = map[string]string{
	"waypoint":       "spiffe://cluster.local/ns/app/sa/waypoint",
	"client":         "spiffe://cluster.local/ns/app/sa/client",
	"stranger":       "spiffe://cluster.local/ns/other/sa/stranger",
	"reviews":        "spiffe://cluster.local/ns/app/sa/reviews",
	"egress-gateway": "spiffe://cluster.local/ns/egress/sa/egress-gateway",
	"payments":       "spiffe://cluster.local/ns/payments/sa/payments",
	"reports":        "spiffe://cluster.local/ns/reports/sa/reports",
	"sandbox":        "spiffe://cluster.local/ns/sandbox/sa/sandbox",
}

// servers have a DNS name under ServerCA; the key is the file's name. The
// certificate "impostor" stands on a server that claims to be another.
var servers = map[string]string{
	"shop":     "shop.example.com",
	"admin":    "admin.example.com",
	"bank":     "api.bank.example",
	"stats":    "api.stats.example",
	"impostor": "somebody-else.example",
}

// WriteCertificates fills dir with what the examples need: two certificate
// authorities whose keys are thrown away, and certificates for 30 days.
func WriteCertificates(dir string) error {
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return err
	}
	w := writer{dir: dir}
	mesh, err := identity.NewDevCA("cluster.local")
	if err != nil {
		return err
	}
	public, err := identity.NewDevCA("example.com")
	if err != nil {
		return err
	}
	end := time.Now().AddDate(0, 0, 30)
	for name, id := range workloads {
		w.pair(name, mesh, identity.Leaf{URIs: []string{id}, NotAfter: end})
	}
	for name, host := range servers {
		w.pair(name, public, identity.Leaf{DNSNames: []string{host}, CommonName: host, NotAfter: end})
	}
	w.file(MeshCA, mesh.RootsPEM())
	w.file(ServerCA, public.RootsPEM())
	return w.err
}

// writer writes files until the first error.
type writer struct {
	dir string
	err error
}

func (w *writer) file(name string, b []byte) {
	if w.err == nil {
		w.err = os.WriteFile(filepath.Join(w.dir, name), b, 0o600)
	}
}

func (w *writer) pair(name string, ca *identity.DevCA, l identity.Leaf) {
	crt, err := ca.Issue(l)
	if err != nil {
		w.err = fmt.Errorf("%s: %w", name, err)
		return
	}
	key, err := keyPEM(crt)
	if err != nil {
		w.err = fmt.Errorf("%s: %w", name, err)
		return
	}
	w.file(name+".pem", identity.EncodeCertificates(crt.Certificate...))
	w.file(name+"-key.pem", key)
}

func keyPEM(crt *tls.Certificate) ([]byte, error) {
	der, err := x509.MarshalPKCS8PrivateKey(crt.PrivateKey)
	if err != nil {
		return nil, err
	}
	return pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: der}), nil
}
