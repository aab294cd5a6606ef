package rego

import (
	"archive/tar"
	"bytes"
	"compress/gzip"
	"crypto/ecdsa"
	"crypto/elliptic"
	crand "crypto/rand"
	"crypto/x509"
	"encoding/json"
	"encoding/pem"
	"errors"
	"fmt"
	"maps"
	"os"
	"path/filepath"
	"reflect"
	"slices"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/open-policy-agent/opa/v1/bundle"

	"github.com/fairlead-mesh/fairlead/filters"
)

// archive packs files, in the order of their names.
func archive(t testing.TB, files map[string]string) []byte {
	t.Helper()
	var b bytes.Buffer
	z := gzip.NewWriter(&b)
	w := tar.NewWriter(z)
	for _, name := range slices.Sorted(maps.Keys(files)) {
		if err := w.WriteHeader(&tar.Header{Name: name, Mode: 0o600, Size: int64(len(files[name])), Typeflag: tar.TypeReg}); err != nil {
			t.Fatal(err)
		}
		if _, err := w.Write([]byte(files[name])); err != nil {
			t.Fatal(err)
		}
	}
	if err := errors.Join(w.Close(), z.Close()); err != nil {
		t.Fatal(err)
	}
	return b.Bytes()
}

// policyBundle allows requests with one method.
func policyBundle(t testing.TB, method string) []byte {
	t.Helper()
	return archive(t, map[string]string{
		"/policy/authz.rego": v1allow + `allow if input.attributes.request.http.method in data.methods` + "\nother := allow",
		"/data.json":         fmt.Sprintf(`{"methods":[%q]}`, method),
		"/.manifest":         fmt.Sprintf(`{"revision":"only-%s"}`, method),
	})
}

// signed signs a bundle as "opa sign" does.
func signed(t testing.TB, b []byte, key, alg, keyID, scope string) []byte {
	t.Helper()
	r, err := bundle.NewReader(bytes.NewReader(b)).WithSkipBundleVerification(true).Read()
	if err != nil {
		t.Fatal(err)
	}
	c := bundle.NewSigningConfig(key, alg, "")
	if scope != "" {
		c.ClaimsPath = filepath.Join(t.TempDir(), "claims.json")
		if err := os.WriteFile(c.ClaimsPath, fmt.Appendf(nil, `{"scope":%q}`, scope), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	if err := r.GenerateSignature(c, keyID, false); err != nil {
		t.Fatal(err)
	}
	var out bytes.Buffer
	if err := bundle.NewWriter(&out).DisableFormat(true).Write(r); err != nil {
		t.Fatal(err)
	}
	return out.Bytes()
}

// ecKey makes a key for ES256: private and public part as PEM.
func ecKey(t testing.TB) (private, public string) {
	t.Helper()
	k, err := ecdsa.GenerateKey(elliptic.P256(), crand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	priv, err := x509.MarshalPKCS8PrivateKey(k)
	if err != nil {
		t.Fatal(err)
	}
	pub, err := x509.MarshalPKIXPublicKey(&k.PublicKey)
	if err != nil {
		t.Fatal(err)
	}
	return string(pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: priv})), string(pem.EncodeToMemory(&pem.Block{Type: "PUBLIC KEY", Bytes: pub}))
}

func readWith(t testing.TB, b []byte, bundleJSON string) error {
	t.Helper()
	c := decode(t, `{"policy":{"bundles":[{"filename":"b.tar.gz"`+bundleJSON+`}]}}`).(*config)
	_, err := readBundle(b, c.policy.bundles[0])
	return err
}

func TestSignaturesOfBundles(t *testing.T) {
	priv, pub := ecKey(t)
	_, otherPub := ecKey(t)
	q := func(s string) string { b, _ := json.Marshal(s); return string(b) }
	plain := policyBundle(t, "GET")
	es := signed(t, plain, priv, "ES256", "k1", "")
	scoped := signed(t, plain, priv, "ES256", "k1", "write")
	hs := signed(t, plain, "mysecret", "HS256", "h1", "")
	verify := func(keys, more string) string { return `,"verification":{"keys":[` + keys + `]` + more + `}` }
	k1 := `{"id":"k1","algorithm":"ES256","pem":` + q(pub) + `}`
	keyFile := filepath.Join(t.TempDir(), "key.pem")
	empty := filepath.Join(t.TempDir(), "empty")
	if err := errors.Join(os.WriteFile(keyFile, []byte(pub), 0o600), os.WriteFile(empty, nil, 0o600)); err != nil {
		t.Fatal(err)
	}
	repack := func(b []byte, change func(map[string]string)) []byte {
		files := unpack(t, b)
		change(files)
		return archive(t, files)
	}
	for _, tt := range []struct {
		name, conf string
		archive    []byte
		ok         bool
	}{
		{"unsigned, and none is asked for", "", plain, true},
		{"unsigned, but a signature is required", verify(k1, ""), plain, false},
		{"signed, but there is no key", "", es, false},
		{"signed by the key", verify(k1, ""), es, true},
		{"signed by the key of a file", verify(`{"id":"k1","algorithm":"ES256","filename":`+q(keyFile)+`}`, ""), es, true},
		{"the file is missing", verify(`{"id":"k1","algorithm":"ES256","filename":"/nonexistent"}`, ""), es, false},
		{"the file is empty", verify(`{"id":"k1","algorithm":"ES256","filename":`+q(empty)+`}`, ""), es, false},
		{"an empty secret is no secret", verify(`{"id":"h1","algorithm":"HS256","filename":`+q(empty)+`}`, ""), hs, false},
		{"signed by another key of the same name", verify(`{"id":"k1","algorithm":"ES256","pem":`+q(otherPub)+`}`, ""), es, false},
		{"signed by an unknown key", verify(`{"id":"k2","algorithm":"ES256","pem":`+q(pub)+`}`, ""), es, false},
		{"key_id overrides what the signature names", verify(`{"id":"k2","algorithm":"ES256","pem":`+q(pub)+`}`, `,"keyId":"k2"`), es, true},
		{"key_id names another key", verify(k1+`,{"id":"k2","algorithm":"ES256","pem":`+q(otherPub)+`}`, `,"keyId":"k2"`), es, false},
		{"signed by a shared secret", verify(`{"id":"h1","algorithm":"HS256","secret":"mysecret"}`, ""), hs, true},
		{"signed by another secret", verify(`{"id":"h1","algorithm":"HS256","secret":"other"}`, ""), hs, false},
		{"the public key taken for a secret", verify(k1, ""), signed(t, plain, pub, "HS256", "k1", ""), false},
		{"the scope is right", verify(k1, `,"scope":"write"`), scoped, true},
		{"the scope is the key's", verify(`{"id":"k1","algorithm":"ES256","scope":"write","pem":`+q(pub)+`}`, ""), scoped, true},
		{"the scope is wrong", verify(k1, `,"scope":"read"`), scoped, false},
		{"the scope is missing", verify(k1, `,"scope":"write"`), es, false},
		{"a scope that nobody asked for", verify(k1, ""), scoped, false},
		{"a file was changed", verify(k1, ""), repack(es, func(f map[string]string) { f["/data.json"] = `{"methods":["POST"]}` }), false},
		{"a file was added", verify(k1, ""), repack(es, func(f map[string]string) { f["/x.rego"] = "package envoy.authz\nallow if true" }), false},
		{"a file was removed", verify(k1, ""), repack(es, func(f map[string]string) { delete(f, "/data.json") }), false},
		{"the manifest was changed", verify(k1, ""), repack(es, func(f map[string]string) { f["/.manifest"] = `{"revision":"x","roots":[""]}` }), false},
		{"the signature was removed", verify(k1, ""), repack(es, func(f map[string]string) { delete(f, "/.signatures.json") }), false},
		{"the signature is empty", verify(k1, ""), repack(es, func(f map[string]string) { f["/.signatures.json"] = `{}` }), false},
		{"the signature is another bundle's", verify(k1, ""), repack(policyBundle(t, "POST"), func(f map[string]string) { f["/.signatures.json"] = unpack(t, es)["/.signatures.json"] }), false},
		{"an excluded file was added", verify(k1, `,"excludeFiles":["extra/*.json"]`), repack(es, func(f map[string]string) { f["/extra/data.json"] = `{"a":1}` }), true},
		{"another file than the excluded was added", verify(k1, `,"excludeFiles":["extra/*.json"]`), repack(es, func(f map[string]string) { f["/other/data.json"] = `{"a":1}` }), false},
		{"a delta bundle", verify(k1, ""), archive(t, map[string]string{"/patch.json": `{"data":[]}`}), false},
	} {
		t.Run(tt.name, func(t *testing.T) {
			if err := readWith(t, tt.archive, tt.conf); (err == nil) != tt.ok {
				t.Errorf("error %v", err)
			}
		})
	}
}

// unpack is the inverse of archive.
func unpack(t testing.TB, b []byte) map[string]string {
	t.Helper()
	z, err := gzip.NewReader(bytes.NewReader(b))
	if err != nil {
		t.Fatal(err)
	}
	out := map[string]string{}
	r := tar.NewReader(z)
	for {
		h, err := r.Next()
		if err != nil {
			return out
		}
		var c bytes.Buffer
		if _, err := c.ReadFrom(r); err != nil {
			t.Fatal(err)
		}
		out["/"+strings.TrimPrefix(h.Name, "/")] = c.String()
	}
}

func TestBundlesThatAreRefused(t *testing.T) {
	ok := policyBundle(t, "GET")
	zeros := archive(t, map[string]string{"/data.json": `{"a":"` + strings.Repeat("0", 4<<20) + `"}`, "/a.rego": v1allow})
	many := map[string]string{"/a.rego": v1allow}
	for i := range 3000 {
		many[fmt.Sprintf("/f%d.txt", i)] = ""
	}
	for _, tt := range []struct {
		name, conf string
		archive    []byte
		want       string // part of the error, "" if it is accepted
	}{
		{"nothing is wrong", "", ok, ""},
		{"an empty body", "", nil, "not a gzipped archive"},
		{"a page of a login form", "", []byte("<html>"), "not a gzipped archive"},
		{"a truncated archive", "", ok[:len(ok)/2], "unexpected EOF"},
		{"a bomb", `,"maxUnpackedBytes":1048576`, zeros, "more than max_unpacked_bytes"},
		{"the same within the limit", `,"maxUnpackedBytes":5242880`, zeros, ""},
		{"thousands of empty files", `,"maxUnpackedBytes":1048576`, archive(t, many), "more than max_unpacked_bytes"},
		{"a sparse file that claims gigabytes", "", sparse(t, 1<<40), "more than max_unpacked_bytes"},
		{"a size that overflows", "", sparse(t, 1<<62), "more than max_unpacked_bytes"},
		{"a policy that does not parse", "", archive(t, map[string]string{"/a.rego": "package a\nallow if {"}), "rego_parse_error"},
		{"data that does not parse", "", archive(t, map[string]string{"/data.json": "{"}), "data.json"},
		{"a policy outside of the roots", "", archive(t, map[string]string{"/a.rego": v1allow, "/.manifest": `{"roots":["other"]}`}), "do not permit"},
		{"data outside of the roots", "", archive(t, map[string]string{"/data.json": `{"a":1}`, "/.manifest": `{"roots":["other"]}`}), "do not permit"},
		{"a delta bundle", "", archive(t, map[string]string{"/patch.json": `{"data":[{"op":"upsert","path":"a","value":1}]}`}), "delta"},
		{"a policy in WebAssembly", "", archive(t, map[string]string{"/policy.wasm": "\x00asm", "/.manifest": `{"wasm":[{"entrypoint":"envoy/authz/allow","module":"/policy.wasm"}]}`}), "WebAssembly"},
		{"a v0 policy", "", archive(t, map[string]string{"/a.rego": "package envoy.authz\ndefault allow = false\nallow { true }"}), ""},
		{"a v0 policy as the manifest says", "", archive(t, map[string]string{"/a.rego": "package envoy.authz\nallow { true }", "/.manifest": `{"rego_version":0}`}), ""},
	} {
		t.Run(tt.name, func(t *testing.T) {
			err := readWith(t, tt.archive, tt.conf)
			if (err == nil) != (tt.want == "") || err != nil && !strings.Contains(err.Error(), tt.want) {
				t.Errorf("error %v: want %q", err, tt.want)
			}
		})
	}
}

// sparse is an archive that ends after the header of its only file, which
// claims to be large, as those of sparse files do.
func sparse(t testing.TB, size int64) []byte {
	t.Helper()
	var b bytes.Buffer
	z := gzip.NewWriter(&b)
	w := tar.NewWriter(z)
	if err := w.WriteHeader(&tar.Header{Name: "data.json", Mode: 0o600, Typeflag: tar.TypeReg, Size: size, Format: tar.FormatPAX}); err != nil {
		t.Fatal(err)
	}
	if err := z.Close(); err != nil {
		t.Fatal(err)
	}
	return b.Bytes()
}

func TestBundlesAndSourcesTogether(t *testing.T) {
	rooted := func(root, file, text string) []byte {
		return archive(t, map[string]string{file: text, "/.manifest": fmt.Sprintf(`{"roots":[%q],"revision":"r-%s"}`, root, root)})
	}
	policy := rooted("envoy", "/envoy/authz/a.rego", v1allow+"allow if data.users[input.attributes.request.http.headers.user].role == data.local.role")
	users := rooted("users", "/users/data.json", `{"ann":{"role":"admin"}}`)
	whole := policyBundle(t, "GET")
	for _, tt := range []struct {
		name    string
		bundles [][]byte
		more    string // fields of policy
		want    string // part of the error
	}{
		{"two bundles and data", [][]byte{policy, users}, `"data":{"local":{"role":"admin"}}`, ""},
		{"two bundles, one claims all", [][]byte{whole, users}, "", "both claim"},
		{"a source below a root", [][]byte{policy}, `"sources":[{"inlineString":"package envoy.authz\nallow if true"}]`, "overlaps root"},
		{"a source above a root", [][]byte{policy}, `"sources":[{"inlineString":"package envoy\nx := 1"}]`, "overlaps root"},
		{"a source beside the roots", [][]byte{policy}, `"sources":[{"inlineString":"package system.log\nmask contains \"/input\""}]`, ""},
		{"data below a root", [][]byte{policy, users}, `"data":{"users":{"eve":{"role":"admin"}}}`, "below root"},
		{"data in the way of a root", [][]byte{rooted("a/b", "/a/b/x.rego", "package a.b\nx := 1"), policy}, `"data":{"a":7}`, "below root"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			var list []string
			for i, b := range tt.bundles {
				name := filepath.Join(t.TempDir(), fmt.Sprintf("b%d.tar.gz", i))
				if err := os.WriteFile(name, b, 0o600); err != nil {
					t.Fatal(err)
				}
				list = append(list, fmt.Sprintf(`{"filename":%q}`, name))
			}
			js := `{"policy":{"bundles":[` + strings.Join(list, ",") + `]`
			if tt.more != "" {
				js += "," + tt.more
			}
			f, err := Factory{}.Compile(env(), decode(t, js+`}}`), nil)
			if (err != nil) != (tt.want != "") || err != nil && !strings.Contains(err.Error(), tt.want) {
				t.Fatalf("error %v: want %q", err, tt.want)
			}
			if err != nil {
				return
			}
			defer closeFilter(f)
			u, _ := run(t, f, request{header: [][2]string{{"user", "ann"}}}.stream())
			if want := strings.Contains(tt.more, "local"); u.called != want {
				t.Errorf("passed %v: want %v", u.called, want)
			}
		})
	}
}

func TestABundleOnDiskIsSwapped(t *testing.T) {
	name := filepath.Join(t.TempDir(), "b.tar.gz")
	put := func(b []byte) {
		t.Helper()
		if err := os.WriteFile(name, b, 0o600); err != nil {
			t.Fatal(err)
		}
	}
	get, post := policyBundle(t, "GET"), policyBundle(t, "POST")
	put(get)
	synctest.Test(t, func(t *testing.T) {
		f := compileOnly(t, env(), fmt.Sprintf(`{"policy":{"bundles":[{"filename":%q}],"pollInterval":"1s"}}`, name))
		defer closeFilter(f)
		want := func(what, method string) {
			t.Helper()
			time.Sleep(1001 * time.Millisecond)
			synctest.Wait()
			if st, details := answer(t, f, method); st != 200 {
				t.Errorf("%s: %d, %s", what, st, details)
			}
		}
		want("at first", "GET")
		put(post)
		want("after a change", "POST")
		put([]byte("broken"))
		want("after it was broken", "POST")
		if err := os.Remove(name); err != nil {
			t.Fatal(err)
		}
		want("after it was removed", "POST")
		put(get)
		want("after it came back", "GET")
	})
}

func TestBundleConfigurationsThatAreRefused(t *testing.T) {
	h := func(s string) string { return `{"policy":{"bundles":[{"http":{` + s + `}}]}}` }
	v := func(s string) string {
		return `{"policy":{"bundles":[{"filename":"x","verification":{` + s + `}}]}}`
	}
	for name, js := range map[string]string{
		"no origin":                      `{"policy":{"bundles":[{}]}}`,
		"no cluster":                     h(`"path":"/x"`),
		"no path":                        h(`"cluster":"c"`),
		"a path without a slash":         h(`"cluster":"c","path":"x"`),
		"a path with a line break":       h(`"cluster":"c","path":"/x\r\ny: z"`),
		"an authority with a space":      h(`"cluster":"c","path":"/x","authority":"a b"`),
		"too short a delay":              h(`"cluster":"c","path":"/x","minDelay":"0.001s"`),
		"a least delay beyond the most":  h(`"cluster":"c","path":"/x","minDelay":"20s","maxDelay":"10s"`),
		"credentials without a token":    h(`"cluster":"c","path":"/x","credentials":{}`),
		"a token with a line break":      h(`"cluster":"c","path":"/x","credentials":{"token":"a\nb"}`),
		"a scheme with a space":          h(`"cluster":"c","path":"/x","credentials":{"scheme":"a b","token":"t"}`),
		"too large a bundle":             `{"policy":{"bundles":[{"filename":"x","maxBytes":"1073741824"}]}}`,
		"too much unpacked":              `{"policy":{"bundles":[{"filename":"x","maxUnpackedBytes":"10737418240"}]}}`,
		"two bundles of one name":        `{"policy":{"bundles":[{"filename":"x"},{"filename":"x"}]}}`,
		"verification without keys":      v(``),
		"a key without a name":           v(`"keys":[{"secret":"s","algorithm":"HS256"}]`),
		"a key twice":                    v(`"keys":[{"id":"a","secret":"s","algorithm":"HS256"},{"id":"a","secret":"s","algorithm":"HS256"}]`),
		"a key without a key":            v(`"keys":[{"id":"a"}]`),
		"a secret for RS256":             v(`"keys":[{"id":"a","secret":"s"}]`),
		"the algorithm none":             v(`"keys":[{"id":"a","secret":"s","algorithm":"none"}]`),
		"a PEM that is none":             v(`"keys":[{"id":"a","pem":"xx"}]`),
		"a private key":                  v(`"keys":[{"id":"a","pem":"-----BEGIN PRIVATE KEY-----\nAAAA\n-----END PRIVATE KEY-----\n"}]`),
		"a key_id that is none of them":  v(`"keyId":"b","keys":[{"id":"a","secret":"s","algorithm":"HS256"}]`),
		"a pattern that is none":         v(`"excludeFiles":["["],"keys":[{"id":"a","secret":"s","algorithm":"HS256"}]`),
		"an inline source with an error": `{"policy":{"bundles":[{"filename":"x"}],"sources":[{"inlineString":"package a\nx if {"}]}}`,
	} {
		t.Run(name, func(t *testing.T) {
			if c, err := (Factory{}).Decode(filters.Any{TypeURL: TypeURL, Value: []byte(js), JSON: true}, nil); err == nil {
				t.Errorf("accepted: %+v", c)
			}
		})
	}
	t.Run("a bundle by HTTP needs clusters", func(t *testing.T) {
		if _, err := (Factory{}).Compile(env(), decode(t, h(`"cluster":"c","path":"/x"`)), nil); err == nil {
			t.Error("compiled")
		}
	})
}

// FuzzReadBundle: no archive panics OPA's reader, and with a key no other
// bundle is loaded than the one that was signed.
func FuzzReadBundle(f *testing.F) {
	f.Add(policyBundle(f, "GET"))
	good := signed(f, policyBundle(f, "GET"), "mysecret", "HS256", "h1", "")
	f.Add(good)
	f.Add(archive(f, map[string]string{"/patch.json": `{}`, "/.manifest": `{"roots":["a","a/b"]}`}))
	plain := decode(f, `{"policy":{"bundles":[{"filename":"b","maxUnpackedBytes":"100000"}]}}`).(*config).policy.bundles[0]
	keyed := decode(f, `{"policy":{"bundles":[{"filename":"b","maxUnpackedBytes":"100000","verification":{"keys":[{"id":"h1","algorithm":"HS256","secret":"mysecret"}]}}]}}`).(*config).policy.bundles[0]
	want, err := readBundle(good, keyed)
	if err != nil {
		f.Fatal(err)
	}
	f.Fuzz(func(t *testing.T, b []byte) {
		if _, err := readBundle(b, plain); err != nil {
			if _, ok := errors.AsType[*panicError](err); ok {
				t.Fatal(err)
			}
		}
		l, err := readBundle(b, keyed)
		if err != nil {
			return
		}
		if len(l.modules) != len(want.modules) || !reflect.DeepEqual(l.data, want.data) || l.revision != want.revision {
			t.Fatalf("loaded %+v, signed was %+v", l, want)
		}
		for name, m := range l.modules {
			if w := want.modules[name]; w == nil || m.String() != w.String() {
				t.Fatalf("loaded %s: %v, signed was %v", name, m, w)
			}
		}
	})
}
