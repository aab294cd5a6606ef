package jwtauthn

import (
	"crypto"
	"crypto/ecdsa"
	"crypto/ed25519"
	"crypto/elliptic"
	"crypto/hmac"
	"crypto/rand"
	"crypto/rsa"
	"crypto/sha256"
	"encoding/base64"
	"encoding/json"
	"fmt"
	"testing"
	"time"
)

// Keys of the tests, one of each kind, made once.
var (
	rsaPrivate = must(rsa.GenerateKey(rand.Reader, 2048))
	ecPrivate  = must(ecdsa.GenerateKey(elliptic.P256(), rand.Reader))
	edPrivate  = must2(ed25519.GenerateKey(rand.Reader))
)

func must[T any](v T, err error) T {
	if err != nil {
		panic(err)
	}
	return v
}

func must2[A, B any](_ A, b B, err error) B { return must(b, err) }

func b64(b []byte) string { return base64.RawURLEncoding.EncodeToString(b) }

func ecJWK(kid string) string {
	p := must(ecPrivate.PublicKey.Bytes())
	return fmt.Sprintf(`{"kty":"EC","crv":"P-256","kid":%q,"x":%q,"y":%q}`, kid, b64(p[1:33]), b64(p[33:]))
}

func rsaJWK(kid string) string {
	return fmt.Sprintf(`{"kty":"RSA","kid":%q,"n":%q,"e":"AQAB"}`, kid, b64(rsaPrivate.N.Bytes()))
}

func edJWK(kid string) string {
	return fmt.Sprintf(`{"kty":"OKP","crv":"Ed25519","kid":%q,"x":%q}`, kid, b64(edPrivate.Public().(ed25519.PublicKey)))
}

func jwks() string {
	return `{"keys":[` + rsaJWK("rsa") + `,` + ecJWK("ec") + `,` + edJWK("ed") + `]}`
}

// signRaw signs a header and payload given as JSON.
func signRaw(header, payload string, sign func(signed []byte) []byte) string {
	s := b64([]byte(header)) + "." + b64([]byte(payload))
	return s + "." + b64(sign([]byte(s)))
}

func signEC(signed []byte) []byte {
	h := sha256.Sum256(signed)
	r, s, err := ecdsa.Sign(rand.Reader, ecPrivate, h[:])
	if err != nil {
		panic(err)
	}
	return append(r.FillBytes(make([]byte, 32)), s.FillBytes(make([]byte, 32))...)
}

func signRSA(signed []byte) []byte {
	h := sha256.Sum256(signed)
	return must(rsa.SignPKCS1v15(rand.Reader, rsaPrivate, crypto.SHA256, h[:]))
}

func signPSS(signed []byte) []byte {
	h := sha256.Sum256(signed)
	return must(rsa.SignPSS(rand.Reader, rsaPrivate, crypto.SHA256, h[:], &rsa.PSSOptions{SaltLength: rsa.PSSSaltLengthEqualsHash}))
}

func signEd(signed []byte) []byte { return ed25519.Sign(edPrivate, signed) }

// signHMAC abuses the public RSA key as a shared secret.
func signHMAC(signed []byte) []byte {
	m := hmac.New(sha256.New, rsaPrivate.N.Bytes())
	m.Write(signed)
	return m.Sum(nil)
}

// claims are the usual claims with changes; a nil value removes one.
func claims(change map[string]any) string {
	m := map[string]any{"iss": "https://issuer.example.com", "sub": "alice", "aud": "aud1", "exp": time.Now().Add(time.Hour).Unix(), "scope": "read write", "groups": []string{"a", "b"}}
	for k, v := range change {
		if v == nil {
			delete(m, k)
		} else {
			m[k] = v
		}
	}
	return string(must(json.Marshal(m)))
}

func token1(change map[string]any) string {
	return signRaw(`{"alg":"ES256","kid":"ec","typ":"JWT"}`, claims(change), signEC)
}

func provider1(t *testing.T) *provider {
	t.Helper()
	set, skipped, err := parseKeys([]byte(jwks()))
	if err != nil || len(skipped) > 0 || len(set.keys) != 3 {
		t.Fatal(err, skipped)
	}
	return &provider{Provider: &Provider{Issuer: "https://issuer.example.com", Audiences: []string{"aud1"}, Skew: time.Minute, Keys: set}}
}
