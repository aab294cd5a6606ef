package wasmmodule

import (
	"bytes"
	"encoding/base64"
	"fmt"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"
	"time"

	ocispec "github.com/opencontainers/image-spec/specs-go/v1"

	"github.com/fairlead-mesh/fairlead/filters"
)

func TestAModuleIsFoundInEachKindOfImage(t *testing.T) {
	r := newRegistry(t)
	module := guest("image")
	tgz := layerTarGz(t, module)
	for _, c := range []struct {
		name, manifest string
		layers         []layer
	}{
		{"a Docker image with the module in its last layer", dockerManifest, []layer{{dockerLayer, gzipped(t, archive(t, "plugin.wasm", "an older one"))}, {dockerLayer, tgz}}},
		{"an OCI image made like a container's", ocispec.MediaTypeImageManifest, []layer{{ocispec.MediaTypeImageLayerGzip, tgz}}},
		{"one whose layer is not compressed", ocispec.MediaTypeImageManifest, []layer{{ocispec.MediaTypeImageLayer, archive(t, "./plugin.wasm", string(module))}}},
		{"an artifact of two layers", ocispec.MediaTypeImageManifest, []layer{{moduleLayers[0], module}, {"application/vnd.module.wasm.config.v1+json", []byte("{}")}}},
		{"an artifact with one layer", ocispec.MediaTypeImageManifest, []layer{{moduleLayers[1], module}}},
		{"an artifact of application/wasm", ocispec.MediaTypeImageManifest, []layer{{moduleLayers[2], module}}},
		{"an artifact whose module is compressed", ocispec.MediaTypeImageManifest, []layer{{moduleLayers[0], gzipped(t, module)}}},
	} {
		t.Run(c.name, func(t *testing.T) {
			digest := r.push("v1", c.manifest, c.layers...)
			for _, ref := range []filters.ModuleRef{refTo(r.url(":v1")), refTo(r.url(":v1@sha256:" + digest)), {URL: r.url(":v1"), SHA256: digest}, {URL: r.url(":v1"), SHA256: "nil"}} {
				s, _ := testStore(t, Options{})
				if b, err := settled(t, s, ref); err != nil || !bytes.Equal(b, module) {
					t.Errorf("%s, sha256 %q: %q, %v", ref.URL, ref.SHA256, b, err)
				}
			}
		})
	}
}

func TestTheRightImageOfAnIndexIsTaken(t *testing.T) {
	r := newRegistry(t)
	module := guest("wasi")
	image := r.pushModule("one", module)
	other := r.pushModule("other", guest("arm"))
	entry := func(digest, os, arch string) map[string]any {
		return map[string]any{"mediaType": ocispec.MediaTypeImageManifest, "digest": sha256Pre + digest, "size": len(r.manifests[sha256Pre+digest]), "platform": map[string]any{"os": os, "architecture": arch}}
	}
	var index string
	r.with(func() {
		index = r.putManifest("v1", ocispec.MediaTypeImageIndex, map[string]any{
			"schemaVersion": 2, "mediaType": ocispec.MediaTypeImageIndex, "manifests": []any{entry(other, "linux", "arm64"), entry(other, "linux", "amd64"), entry(image, "wasip1", "wasm")},
		})
	})
	for _, digest := range []string{"", index, image} {
		s, _ := testStore(t, Options{})
		if b, err := settled(t, s, filters.ModuleRef{URL: r.url(":v1"), SHA256: digest}); err != nil || !bytes.Equal(b, module) {
			t.Errorf("sha256 %q: %q, %v", digest, b, err)
		}
	}
}

func TestAnImageThatIsNotWhatItShouldBeIsRefused(t *testing.T) {
	r := newRegistry(t)
	oci := ocispec.MediaTypeImageManifest
	good := r.pushModule("good", guest("good"))
	r.push("empty", oci)
	r.push("noplugin", oci, layer{ocispec.MediaTypeImageLayerGzip, gzipped(t, archive(t, "other.wasm", "x"))})
	r.push("text", oci, layer{moduleLayers[0], []byte("hello")})
	r.push("component", oci, layer{moduleLayers[0], []byte("\x00asm\x0d\x00\x01\x00")})
	r.push("helm", oci, layer{"application/vnd.cncf.helm.chart.content.v1.tar+gzip", []byte("x")})
	r.push("zstd", oci, layer{ocispec.MediaTypeImageLayer, []byte{0x28, 0xb5, 0x2f, 0xfd, 0, 0, 0}})
	r.push("link", oci, layer{ocispec.MediaTypeImageLayerGzip, gzipped(t, archive(t, "plugin.wasm/", ""))})
	r.push("bomb", oci, layer{ocispec.MediaTypeImageLayerGzip, gzipped(t, archive(t, "zeros", strings.Repeat("\x00", 4<<20), "plugin.wasm", string(guest("x"))))})
	r.push("large", oci, layer{ocispec.MediaTypeImageLayerGzip, gzipped(t, archive(t, "plugin.wasm", string(guest("x"))+strings.Repeat("\x00", 1<<20)))})
	r.push("largelayer", oci, layer{moduleLayers[0], make([]byte, 2<<20)})
	r.push("box", oci, layer{moduleLayers[0], gzipped(t, gzipped(t, make([]byte, 3<<20)))})
	r.push("boxes", oci, layer{moduleLayers[0], gzipped(t, gzipped(t, gzipped(t, gzipped(t, gzipped(t, guest("x"))))))})
	r.push("cut", oci, layer{ocispec.MediaTypeImageLayerGzip, layerTarGz(t, guest("cut"))[:60]})
	r.push("altered", oci, layer{moduleLayers[0], guest("altered")})
	r.with(func() {
		r.blobs[sha256Pre+sumOf(guest("altered"))] = guest("ALTERED")
		r.manifests["json"], r.types["json"] = []byte("{"), oci
		r.manifests[sha256Pre+sumOf([]byte("pinned"))], r.types[sha256Pre+sumOf([]byte("pinned"))] = r.manifests["good"], oci
	})
	wrong := strings.Repeat("0", 64)
	for _, c := range []struct{ name, url, sha256, want string }{
		{"no such tag", r.url(":none"), "", "no such image"},
		{"no layer", r.url(":empty"), "", "no layer"},
		{"no plugin.wasm", r.url(":noplugin"), "", "no plugin.wasm is in the archive"},
		{"text", r.url(":text"), "", `begins with "hello"`},
		{"a component", r.url(":component"), "", "no components"},
		{"a chart", r.url(":helm"), "", "no layer is a WebAssembly module"},
		{"zstd", r.url(":zstd"), "", "zstd"},
		{"a directory called plugin.wasm", r.url(":link"), "", "no plugin.wasm"},
		{"much before the module", r.url(":bomb"), "", "larger than"},
		{"a large module in an archive", r.url(":large"), "", "larger than"},
		{"a large layer", r.url(":largelayer"), "", "larger than"},
		{"a small box with much in it", r.url(":box"), "", "larger than"},
		{"too many boxes", r.url(":boxes"), "", "packed more than"},
		{"a layer that ends early", r.url(":cut"), "", "EOF"},
		{"a layer that was altered", r.url(":altered"), "", "layer: "},
		{"no manifest", r.url(":json"), "", "manifest: "},
		{"another digest than demanded", r.url(":good"), wrong, "the digest of the image is sha256:" + good},
		{"two digests", r.url(":good@sha256:" + good), wrong, "the URL names the digest"},
		{"a registry that doesn't keep to the digest", r.url("@sha256:" + sumOf([]byte("pinned"))), "", "igest"},
		{"a digest that is none", r.url("@sha256:123"), "", "is no digest"},
		{"another algorithm", r.url("@sha512:" + wrong + wrong), "", "is no digest"},
		{"a sha256 that is none", r.url(":good"), "abc", "want 64 hexadecimal digits"},
		{"no repository", "oci://" + r.host, "", "repository"},
		{"no tag", r.url(":"), "", "tag"},
		{"a repository that can't be", "oci://" + r.host + "/UPPER:v1", "", "invalid"},
		{"another scheme", "ftp://" + r.host + "/x", "", "want http, https or oci"},
		{"no host", "oci:///x", "", "malformed"},
	} {
		t.Run(c.name, func(t *testing.T) {
			s, log := testStore(t, Options{MaxModule: 1 << 20, LaterPause: time.Hour})
			b, err := settled(t, s, filters.ModuleRef{URL: c.url, SHA256: c.sha256, Retries: 3}) // not repeated at once
			if err == nil || !strings.Contains(err.Error(), c.want) {
				t.Errorf("%q, %v, want an error with %q", b, err, c.want)
			}
			if !strings.Contains(log.String(), "can't be fetched") {
				t.Errorf("the log says %q", log)
			}
		})
	}
}

func TestAFileIsFetchedFromAWebServer(t *testing.T) {
	module := guest("web")
	files := map[string][]byte{
		"/plain": module, "/gz": gzipped(t, module), "/tar": archive(t, "any.wasm", string(module)), "/tgz": gzipped(t, archive(t, "any.wasm", string(module))),
		"/text": []byte("hello"), "/none": {}, "/large": append(guest("x"), make([]byte, 2<<20)...), "/bomb": gzipped(t, append(guest("x"), make([]byte, 4<<20)...)),
		"/short": []byte("\x00asm"), "/broken": {0x1f, 0x8b, 1},
	}
	h := http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		switch b, ok := files[r.URL.Path]; {
		case ok && r.URL.Query().Has("chunked"):
			w.(http.Flusher).Flush()
			_, _ = w.Write(b)
		case ok:
			_, _ = w.Write(b)
		case r.URL.Path == "/moved":
			http.Redirect(w, r, "/plain", http.StatusFound)
		case r.URL.Path == "/loop":
			http.Redirect(w, r, "/loop", http.StatusFound)
		case r.URL.Path == "/metadata":
			http.Redirect(w, r, "http://169.254.169.254/latest", http.StatusFound)
		case r.URL.Path == "/file":
			http.Redirect(w, r, "file:///etc/passwd", http.StatusFound)
		case r.URL.Path == "/down":
			http.Redirect(w, r, "http://127.0.0.1:1/", http.StatusFound)
		default:
			http.NotFound(w, r)
		}
	})
	plain, tls := httptest.NewServer(h), httptest.NewTLSServer(h)
	defer plain.Close()
	defer tls.Close()
	insecure := []string{strings.TrimPrefix(tls.URL, "https://")}
	for _, c := range []struct {
		name, url, sha256 string
		insecure          []string
		want              string
	}{
		{"a module", plain.URL + "/plain", "", nil, ""},
		{"chunked", plain.URL + "/plain?chunked", "", nil, ""},
		{"compressed", plain.URL + "/gz", "", nil, ""},
		{"in an archive", plain.URL + "/tar", "", nil, ""},
		{"in a compressed archive", plain.URL + "/tgz", "", nil, ""},
		{"with the digest of the file", plain.URL + "/tgz", sumOf(files["/tgz"]), nil, ""},
		{"with the digest of the module in it", plain.URL + "/tgz", sumOf(module), nil, ""},
		{"with another digest", plain.URL + "/plain", sumOf(nil), nil, "its sha256 is"},
		{"redirected", plain.URL + "/moved", "", nil, ""},
		{"in circles", plain.URL + "/loop", "", nil, "redirects"},
		{"to the metadata of a cloud", plain.URL + "/metadata", "", nil, "not fetched from 169.254.169.254"},
		{"to a file", plain.URL + "/file", "", nil, "which is not https"},
		{"from this machine by its name", strings.Replace(plain.URL, "127.0.0.1", "localhost", 1) + "/plain", "", nil, ""},
		{"text", plain.URL + "/text", "", nil, "no WebAssembly module"},
		{"nothing", plain.URL + "/none", "", nil, "empty"},
		{"a few bytes", plain.URL + "/short", "", nil, "no WebAssembly module"},
		{"broken compression", plain.URL + "/broken", "", nil, "gzip"},
		{"too much", plain.URL + "/large", "", nil, "larger than"},
		{"too much, of unknown length", plain.URL + "/large?chunked", "", nil, "larger than"},
		{"too much after unpacking", plain.URL + "/bomb", "", nil, "larger than"},
		{"not there", plain.URL + "/else", "", nil, "404"},
		{"a certificate of nobody", tls.URL + "/plain", "", nil, "certificate"},
		{"a certificate of nobody, allowed", tls.URL + "/plain", "", insecure, ""},
		{"any certificate allowed", tls.URL + "/plain", "", []string{"*"}, ""},
		{"from TLS to none", tls.URL + "/down", "", insecure, "which is not https"},
	} {
		t.Run(c.name, func(t *testing.T) {
			s, _ := testStore(t, Options{MaxModule: 1 << 20, Insecure: c.insecure, LaterPause: time.Hour})
			b, err := settled(t, s, filters.ModuleRef{URL: c.url, SHA256: c.sha256})
			switch {
			case c.want == "" && (err != nil || !bytes.Equal(b, module)):
				t.Errorf("%q, %v", b, err)
			case c.want != "" && (err == nil || !strings.Contains(err.Error(), c.want)):
				t.Errorf("%q, %v, want an error with %q", b, err, c.want)
			}
		})
	}
}

func TestWhereNoModuleComesFrom(t *testing.T) {
	for _, c := range []struct {
		host, address string
		ok            bool
	}{
		{"web.example:80", "10.1.2.3:80", true},
		{"web.example", "[2001:db8::1]:443", true},
		{"web.example", "127.0.0.1:443", false},
		{"web.example", "[::1]:443", false},
		{"web.example", "[::ffff:127.0.0.1]:443", false},
		{"web.example", "169.254.169.254:80", false},
		{"web.example", "[fe80::1]:80", false},
		{"web.example", "0.0.0.0:15000", false},
		{"127.0.0.1:15000", "127.0.0.1:15000", true},
		{"localhost", "127.0.0.1:80", true},
		{"169.254.169.254", "169.254.169.254:80", false},
	} {
		if err := newWeb(nil).trust(c.host, true).control("tcp", c.address, nil); (err == nil) != c.ok {
			t.Errorf("%s at %s: %v", c.host, c.address, err)
		}
	}
}

func TestAPullSecretOpensItsRegistry(t *testing.T) {
	const user, password = "robot", "s3cr3t-word"
	r := newRegistry(t)
	r.pushModule("v1", guest("private"))
	for _, c := range []struct {
		name, auth, secret string
		want               string
	}{
		{"a password", "basic", dockerConfig(r.host, user, password), ""},
		{"a password for a token", "bearer", dockerConfig(r.host, user, password), ""},
		{"user and password by themselves", "bearer", fmt.Sprintf(`{"auths": {%q: {"username": %q, "password": %q}}}`, "https://"+r.host+"/v2/", user, password), ""},
		{"the older form", "basic", fmt.Sprintf(`{%q: {"username": %q, "password": %q}}`, r.host, user, password), ""},
		{"one for the repository", "basic", fmt.Sprintf(`{"auths": {%q: {"auth": "eDp5"}, %q: {"username": %q, "password": %q}}}`, r.host, r.host+"/team", user, password), ""},
		{"a token", "bearer", fmt.Sprintf(`{"auths": {%q: {"registrytoken": %q}}}`, r.host, bearerToken), ""},
		{"nothing", "basic", "", "imagePullSecret"},
		{"nothing, for a token", "bearer", "", "401"},
		{"another password", "basic", dockerConfig(r.host, user, "other"), "401"},
		{"another registry", "basic", dockerConfig("ghcr.io", user, password), "imagePullSecret"},
		{"something else", "basic", "s3cr3t-word", "no docker configuration"},
		{"null", "basic", "null", "imagePullSecret"},
		{"an auth that is none", "basic", fmt.Sprintf(`{"auths": {%q: {"auth": "s3cr3t-word"}}}`, r.host), "no docker configuration"},
	} {
		t.Run(c.name, func(t *testing.T) {
			r.with(func() { r.auth, r.user, r.password = c.auth, user, password })
			s, log := testStore(t, Options{LaterPause: time.Hour})
			ref := refTo(r.url(":v1"))
			ref.PullSecret = c.secret
			b, err := settled(t, s, ref)
			switch {
			case c.want == "" && (err != nil || !bytes.Equal(b, guest("private"))):
				t.Errorf("%q, %v", b, err)
			case c.want != "" && (err == nil || !strings.Contains(err.Error(), c.want)):
				t.Errorf("%q, %v, want an error with %q", b, err, c.want)
			}
			for _, text := range []string{log.String(), fmt.Sprint(err)} {
				if strings.Contains(text, password) || strings.Contains(text, bearerToken) || strings.Contains(text, base64.StdEncoding.EncodeToString([]byte(user+":"+password))) {
					t.Errorf("it tells the secret: %s", text)
				}
			}
		})
	}
	t.Run("anybody gets a token of a public one", func(t *testing.T) {
		r.with(func() { r.auth, r.user, r.password = "bearer", "", "" })
		s, _ := testStore(t, Options{})
		if _, err := settled(t, s, refTo(r.url(":v1"))); err != nil {
			t.Error(err)
		}
	})
}

// Who may not pull an image gets it no more because somebody else has.
func TestAModuleIsNotSharedWithWhomHasNoSecret(t *testing.T) {
	r := newRegistry(t)
	r.pushModule("v1", guest("private"))
	r.auth, r.user, r.password = "basic", "robot", "word"
	s, _ := testStore(t, Options{LaterPause: time.Hour})
	ref := refTo(r.url(":v1"))
	ref.PullSecret = dockerConfig(r.host, "robot", "word")
	if _, err := settled(t, s, ref); err != nil {
		t.Fatal(err)
	}
	if b, err := settled(t, s, refTo(r.url(":v1"))); err == nil {
		t.Errorf("without the secret: %q", b)
	}
}

func TestWhereARegistryNamesTokensIsLimited(t *testing.T) {
	r := newRegistry(t)
	r.pushModule("v1", guest("x"))
	for _, realm := range []string{"http://169.254.169.254/token", "file:///etc/passwd", "gopher://x/"} {
		s, _ := testStore(t, Options{LaterPause: time.Hour})
		r.with(func() {
			r.hook = func(w http.ResponseWriter, req *http.Request) bool {
				w.Header().Set("WWW-Authenticate", fmt.Sprintf(`Bearer realm=%q,service="x"`, realm))
				w.WriteHeader(http.StatusUnauthorized)
				return true
			}
		})
		if b, err := settled(t, s, refTo(r.url(":v1"))); err == nil {
			t.Errorf("%s: %q", realm, b)
		} else {
			t.Log(err)
		}
	}
}

func TestWhatIsShownOfAURL(t *testing.T) {
	for in, want := range map[string]string{
		"https://a.example/x.wasm":                      "https://a.example/x.wasm",
		"https://user:word@a.example/x.wasm?sig=1#part": "https://…@a.example/x.wasm?…",
		"oci://ghcr.io/a/b:v1":                          "oci://ghcr.io/a/b:v1",
		"http://%zz":                                    "(a malformed URL)",
	} {
		if got := shown(in); got != want {
			t.Errorf("%s: %q, want %q", in, got, want)
		}
	}
	secret := "https://127.0.0.1:1/x?sig=s3cr3t-word"
	s, log := testStore(t, Options{LaterPause: time.Hour})
	_, err := settled(t, s, refTo(secret))
	if text := fmt.Sprint(err, log); err == nil || strings.Contains(text, "s3cr3t") {
		t.Error(text)
	}
}

func TestImageReferencesAreReadAsDockerReadsThem(t *testing.T) {
	d := sha256Pre + strings.Repeat("a", 64)
	for in, want := range map[string]image{
		"ghcr.io/a/b:v1":         {"ghcr.io", "a/b", "v1", ""},
		"ghcr.io/a/b":            {"ghcr.io", "a/b", "latest", ""},
		"ghcr.io/a/b@" + d:       {"ghcr.io", "a/b", "", d},
		"ghcr.io/a/b:v1@" + d:    {"ghcr.io", "a/b", "", d},
		"registry:5000/b:v1":     {"registry:5000", "b", "v1", ""},
		"localhost/b:v1":         {"localhost", "b", "v1", ""},
		"team/filter:v1":         {"docker.io", "team/filter", "v1", ""},
		"index.docker.io/filter": {"docker.io", "library/filter", "latest", ""},
		"registry":               {"registry", "", "", ""},
	} {
		if want.repository == "" {
			if got, err := parseImage(in); err == nil {
				t.Errorf("%s: %+v", in, got)
			}
			continue
		}
		if got, err := parseImage(in); err != nil || *got != want {
			t.Errorf("%s: %+v, %v, want %+v", in, got, err, want)
		}
	}
}
