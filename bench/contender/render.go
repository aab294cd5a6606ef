package contender

import (
	"crypto/tls"
	"crypto/x509"
	"embed"
	"encoding/pem"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"text/template"
)

//go:embed config
var configs embed.FS

// data is what configuration templates see.
type data struct {
	Ports Ports
	// Dir holds certificates; File is the base of the contender's own file
	// names, Log its access log.
	Dir, File, Log string
	Istio          bool
	Routes         []int
	// Expensive are the numbers of routes with regular expressions.
	Expensive []int
}

// expensiveRoutes are enough for a request to take some hundred microseconds.
const expensiveRoutes = 30

// With returns the fields of d and more, as pairs of name and value.
func (d *data) With(pairs ...any) map[string]any {
	m := map[string]any{"Ports": d.Ports, "Dir": d.Dir, "Log": d.Log, "Istio": d.Istio, "Routes": d.Routes, "Expensive": d.Expensive}
	for p := range slices.Chunk(pairs, 2) {
		if name, ok := p[0].(string); ok {
			m[name] = p[1]
		}
	}
	return m
}

// render fills the configuration called config. file is the base of the names
// of the contender's own files, in s.Dir.
func render(config, file string, s *Spec, istio bool) (string, error) {
	raw, err := configs.ReadFile("config/" + config)
	if err != nil {
		return "", err
	}
	t, err := template.New(config).Option("missingkey=error").Parse(string(raw))
	if err != nil {
		return "", err
	}
	d := &data{Ports: s.Ports, Dir: s.Dir, File: file, Log: filepath.Join(s.Dir, file+".access.log"), Istio: istio}
	for i := 1; i < s.Routes; i++ {
		d.Routes = append(d.Routes, i)
	}
	for i := 1; s.Expensive && i <= expensiveRoutes; i++ {
		d.Expensive = append(d.Expensive, i)
	}
	var b strings.Builder
	if err := t.Execute(&b, d); err != nil {
		return "", err
	}
	return b.String(), nil
}

// WriteCertificates stores the proxies' certificate, key and roots in dir.
func WriteCertificates(dir string, roots []byte, cert *tls.Certificate) error {
	der, err := x509.MarshalPKCS8PrivateKey(cert.PrivateKey)
	if err != nil {
		return err
	}
	key := pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: der})
	chain := pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: cert.Certificate[0]})
	for name, content := range map[string][]byte{"key.pem": key, "cert.pem": chain, "bundle.pem": slices.Concat(chain, key), "ca.pem": roots} {
		if err := os.WriteFile(filepath.Join(dir, name), content, 0o600); err != nil {
			return err
		}
	}
	return nil
}
