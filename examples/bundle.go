package examples

import (
	"bytes"
	"crypto/sha256"
	"encoding/hex"
	"net/http"

	"github.com/open-policy-agent/opa/v1/bundle"
)

// Bundles serves folder as an OPA bundle that is packed for each request and
// signed with secret (HS256, key ID "example"). The ETag tells its content.
func Bundles(folder, secret string) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		b, err := packBundle(folder, secret)
		if err != nil {
			http.Error(w, err.Error(), http.StatusInternalServerError)
			return
		}
		sum := sha256.Sum256(b)
		etag := `"` + hex.EncodeToString(sum[:]) + `"`
		w.Header().Set("ETag", etag)
		if r.Header.Get("If-None-Match") == etag {
			w.WriteHeader(http.StatusNotModified)
			return
		}
		w.Header().Set("Content-Type", "application/gzip")
		_, _ = w.Write(b)
	})
}

func packBundle(folder, secret string) ([]byte, error) {
	b, err := bundle.NewCustomReader(bundle.NewDirectoryLoader(folder)).Read()
	if err != nil {
		return nil, err
	}
	if err := b.GenerateSignature(bundle.NewSigningConfig(secret, "HS256", ""), "example", false); err != nil {
		return nil, err
	}
	var out bytes.Buffer
	if err := bundle.NewWriter(&out).DisableFormat(true).Write(b); err != nil {
		return nil, err
	}
	return out.Bytes(), nil
}
