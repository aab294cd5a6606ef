package wasmmodule

import (
	"bytes"
	"strings"
	"testing"

	"github.com/fairlead-mesh/fairlead/internal/sweep"
)

// FuzzUnpack: what is taken for a module begins like one and keeps to the bound,
// however it was packed; a module that was packed comes out as it was.
func FuzzUnpack(f *testing.F) {
	module := guest("fuzz")
	f.Add(module)
	f.Add(gzipped(f, module))
	f.Add(layerTarGz(f, module))
	f.Add(archive(f, "a/", "", "a/plugin.wasm", string(module)))
	f.Add(gzipped(f, gzipped(f, archive(f, "plugin.wasm", string(gzipped(f, module))))))
	f.Add(gzipped(f, archive(f, "zeros", strings.Repeat("\x00", 1<<16), "plugin.wasm", "")))
	f.Add([]byte{0x28, 0xb5, 0x2f, 0xfd})
	f.Fuzz(sweep.Around(f, func(t *testing.T, b []byte) {
		const limit = 1 << 12
		for what, unpack := range map[string]func() ([]byte, error){
			"file":  func() ([]byte, error) { return unbox(b, limit) },
			"layer": func() ([]byte, error) { return fromLayer(bytes.NewReader(b), limit) },
		} {
			got, err := unpack()
			if err == nil && (!bytes.HasPrefix(got, moduleMagic) || len(got) > max(len(b), limit+tarOverhead)) {
				t.Errorf("%s: %d bytes, %q", what, len(got), got[:min(len(got), 16)])
			}
		}
		if bytes.HasPrefix(b, moduleMagic) && len(b) < limit {
			for what, packed := range map[string][]byte{"file": b, "gzip": gzipped(t, b), "archive": archive(t, "plugin.wasm", string(b))} {
				if got, err := unbox(packed, limit); err != nil || !bytes.Equal(got, b) {
					t.Errorf("%s: %v", what, err)
				}
			}
		}
	}))
}

// FuzzPullSecret: whatever a secret and a reference are, an error tells nothing
// of the secret, and a registry is only told what stands under its own name.
func FuzzPullSecret(f *testing.F) {
	f.Add(`{"auths": {"ghcr.io": {"auth": "cm9ib3Q6d29yZA=="}}}`, "ghcr.io/a/b:v1")
	f.Add(`{"https://index.docker.io/v1/": {"username": "u", "password": "p"}}`, "a/b")
	f.Add(`{"auths": {"ghcr.io/a": {"identitytoken": "t"}, "ghcr.io": {"registrytoken": "r"}}}`, "ghcr.io/a/b@sha256:"+strings.Repeat("0", 64))
	f.Add(`null`, "localhost/x")
	f.Add(`{"auths": 7, "quay.io": "secret"}`, "quay.io/x:")
	f.Fuzz(func(t *testing.T, secret, name string) {
		img, err := parseImage(name)
		if err != nil {
			return
		}
		if img.registry == "" || img.repository == "" || img.reference() == "" {
			if (img.registry == "" || img.repository == "") && !strings.HasPrefix(name, "/") {
				t.Errorf("%q is %+v", name, img)
			}
			return
		}
		c, err := credentialFor(secret, img.registry, img.repository)
		if err != nil && err.Error() != errSecret.Error() {
			t.Errorf("the error is %q", err)
		}
		if c != (credential{}) && img.registry != dockerHub && !strings.Contains(secret, "\\") && !strings.Contains(secret, img.registry) {
			t.Errorf("%s is told %+v of %q", img.registry, c, secret)
		}
	})
}
