package wasmmodule

import (
	"archive/tar"
	"bytes"
	"compress/gzip"
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"strings"
	"sync"
	"testing"

	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
)

// guest is a valid module that nothing distinguishes but a note in it.
func guest(note string) []byte {
	section := append([]byte{4}, "note"+note...)
	return append([]byte("\x00asm\x01\x00\x00\x00\x00"), append([]byte{byte(len(section))}, section...)...)
}

func gzipped(t testing.TB, b []byte) []byte {
	t.Helper()
	var out bytes.Buffer
	z := gzip.NewWriter(&out)
	_, err := z.Write(b)
	if err == nil {
		err = z.Close()
	}
	if err != nil {
		t.Fatal(err)
	}
	return out.Bytes()
}

// archive is a tar archive of files, given as name, content, name, content.
func archive(t testing.TB, files ...string) []byte {
	t.Helper()
	var out bytes.Buffer
	w := tar.NewWriter(&out)
	for i := 0; i < len(files); i += 2 {
		h := &tar.Header{Name: files[i], Mode: 0o644, Size: int64(len(files[i+1]))}
		if strings.HasSuffix(files[i], "/") {
			h.Typeflag = tar.TypeDir
		}
		if err := w.WriteHeader(h); err != nil {
			t.Fatal(err)
		}
		if _, err := io.WriteString(w, files[i+1]); err != nil {
			t.Fatal(err)
		}
	}
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
	return out.Bytes()
}

// layerTarGz is a layer of a container's image with a module.
func layerTarGz(t testing.TB, module []byte) []byte {
	t.Helper()
	return gzipped(t, archive(t, "etc/", "", "etc/os-release", "none", "plugin.wasm", string(module)))
}

// testRegistry is an image registry.
type testRegistry struct {
	*httptest.Server
	host string

	mu        sync.Mutex
	blobs     map[string][]byte
	manifests map[string][]byte // by tag and digest
	types     map[string]string
	// auth is "", "basic" or "bearer"; user and password are what it wants.
	auth, user, password string
	// hook may answer a request; it returns true if it did.
	hook     func(w http.ResponseWriter, r *http.Request) bool
	requests []string
}

func newRegistry(t *testing.T) *testRegistry {
	t.Helper()
	r := &testRegistry{blobs: map[string][]byte{}, manifests: map[string][]byte{}, types: map[string]string{}}
	r.Server = httptest.NewServer(r)
	r.host = strings.TrimPrefix(r.URL, "http://")
	t.Cleanup(r.Close)
	return r
}

func (r *testRegistry) with(f func()) {
	r.mu.Lock()
	defer r.mu.Unlock()
	f()
}

// count is how many requests had a path with part in it.
func (r *testRegistry) count(part string) int {
	r.mu.Lock()
	defer r.mu.Unlock()
	n := 0
	for _, p := range r.requests {
		if strings.Contains(p, part) {
			n++
		}
	}
	return n
}

func (r *testRegistry) blob(b []byte) string {
	d := sha256Pre + sumOf(b)
	r.blobs[d] = b
	return d
}

func (r *testRegistry) putManifest(tag, mediaType string, m any) string {
	b, err := json.Marshal(m)
	if err != nil {
		panic(err)
	}
	d := sha256Pre + sumOf(b)
	for _, ref := range []string{tag, d} {
		r.manifests[ref], r.types[ref] = b, mediaType
	}
	return strings.TrimPrefix(d, sha256Pre)
}

type layer struct {
	mediaType string
	data      []byte
}

// push stores an image and returns the digest of its manifest, in hex.
func (r *testRegistry) push(tag, mediaType string, layers ...layer) string {
	r.mu.Lock()
	defer r.mu.Unlock()
	m := map[string]any{"schemaVersion": 2, "config": map[string]any{"mediaType": "application/vnd.oci.image.config.v1+json", "digest": r.blob([]byte("{}")), "size": 2}}
	if mediaType == dockerManifest {
		m["mediaType"] = mediaType
	}
	ls := []map[string]any{}
	for _, l := range layers {
		ls = append(ls, map[string]any{"mediaType": l.mediaType, "digest": r.blob(l.data), "size": len(l.data)})
	}
	m["layers"] = ls
	return r.putManifest(tag, mediaType, m)
}

// pushModule stores an artifact whose layer is a module.
func (r *testRegistry) pushModule(tag string, module []byte) string {
	return r.push(tag, ocispec.MediaTypeImageManifest, layer{moduleLayers[0], module})
}

func (r *testRegistry) url(ref string) string { return "oci://" + r.host + "/team/filter" + ref }

func (r *testRegistry) ServeHTTP(w http.ResponseWriter, req *http.Request) {
	r.mu.Lock()
	r.requests = append(r.requests, req.Method+" "+req.URL.Path)
	hook := r.hook
	r.mu.Unlock()
	if hook != nil && hook(w, req) {
		return
	}
	if req.URL.Path == "/token" {
		r.token(w, req)
		return
	}
	if !r.authorized(w, req) {
		return
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	rest, ok := strings.CutPrefix(req.URL.Path, "/v2/team/filter/")
	kind, ref, _ := strings.Cut(rest, "/")
	var b []byte
	switch {
	case !ok:
	case kind == "manifests":
		b = r.manifests[ref]
		w.Header().Set("Content-Type", r.types[ref])
	case kind == "blobs":
		b = r.blobs[ref]
		w.Header().Set("Content-Type", "application/octet-stream")
	}
	if b == nil {
		http.Error(w, `{"errors": [{"code": "MANIFEST_UNKNOWN"}]}`, http.StatusNotFound)
		return
	}
	w.Header().Set("Content-Length", fmt.Sprint(len(b)))
	_, _ = w.Write(b)
}

const bearerToken = "a-token-of-this-registry"

func (r *testRegistry) authorized(w http.ResponseWriter, req *http.Request) bool {
	user, password, basic := req.BasicAuth()
	switch r.auth {
	case "basic":
		if basic && user == r.user && password == r.password {
			return true
		}
		w.Header().Set("WWW-Authenticate", `Basic realm="registry"`)
	case "bearer":
		if req.Header.Get("Authorization") == "Bearer "+bearerToken {
			return true
		}
		w.Header().Set("WWW-Authenticate", fmt.Sprintf(`Bearer realm="%s/token",service="registry",scope="repository:team/filter:pull"`, r.URL))
	default:
		return true
	}
	w.WriteHeader(http.StatusUnauthorized)
	_, _ = io.WriteString(w, `{"errors": [{"code": "UNAUTHORIZED", "message": "say `+r.password+`"}]}`)
	return false
}

// token gives one to whom knows the password, and to anybody if there is none.
func (r *testRegistry) token(w http.ResponseWriter, req *http.Request) {
	user, password, _ := req.BasicAuth()
	if user != r.user || password != r.password {
		w.WriteHeader(http.StatusUnauthorized)
		return
	}
	_, _ = io.WriteString(w, `{"token": "`+bearerToken+`"}`)
}
