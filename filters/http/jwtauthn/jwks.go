package jwtauthn

import (
	"crypto"
	"crypto/ecdsa"
	"crypto/ed25519"
	"crypto/elliptic"
	"crypto/rsa"
	"crypto/sha256"
	"encoding/base64"
	"encoding/hex"
	"errors"
	"fmt"
	"math/big"
)

// key is one public key of a JWKS (RFC 7517).
type key struct {
	id, alg string
	public  crypto.PublicKey // *rsa.PublicKey, *ecdsa.PublicKey, ed25519.PublicKey
}

// keySet is a parsed JWKS. It is immutable.
type keySet struct{ keys []key }

const (
	maxJWKS = 1 << 20
	maxKeys = 256
)

// parseKeys parses a JWKS. Keys that can't be used to verify signatures are
// left out; skipped tells why.
func parseKeys(b []byte) (set *keySet, skipped []error, err error) {
	if len(b) > maxJWKS {
		return nil, nil, fmt.Errorf("jwks of %d bytes exceeds the limit of %d", len(b), maxJWKS)
	}
	m, err := parseObject(b)
	if err != nil {
		return nil, nil, fmt.Errorf("jwks: %w", err)
	}
	list, isList := m["keys"].([]any)
	if !isList {
		return nil, nil, errors.New("jwks: keys is not a list")
	}
	if len(list) > maxKeys {
		return nil, nil, fmt.Errorf("jwks: %d keys exceed the limit of %d", len(list), maxKeys)
	}
	set = &keySet{}
	for i, e := range list {
		obj, _ := e.(map[string]any)
		k, err := parseKey(obj)
		if err != nil {
			skipped = append(skipped, fmt.Errorf("keys[%d]: %w", i, err))
			continue
		}
		set.keys = append(set.keys, k)
	}
	return set, skipped, nil
}

func parseKey(m map[string]any) (key, error) {
	str := func(name string) string { s, _ := m[name].(string); return s }
	k := key{id: str("kid"), alg: str("alg")}
	if use := str("use"); use != "" && use != "sig" {
		return k, fmt.Errorf("use %q is not sig", use)
	}
	if ops, given := m["key_ops"].([]any); given && !contains(ops, "verify") {
		return k, errors.New("key_ops do not include verify")
	}
	var err error
	switch kty := str("kty"); kty {
	case "RSA":
		k.public, err = rsaKey(str("n"), str("e"))
	case "EC":
		k.public, err = ecKey(str("crv"), str("x"), str("y"))
	case "OKP":
		k.public, err = edKey(str("crv"), str("x"))
	default:
		err = fmt.Errorf("kty %q is not supported", kty)
	}
	if err == nil && placeholder(k.public) {
		err = errors.New("istiod could not fetch the issuer's keys and sent a placeholder")
	}
	return k, err
}

func contains(l []any, want string) bool {
	for _, e := range l {
		if e == want {
			return true
		}
	}
	return false
}

func decode64(s string) ([]byte, error) { return base64.RawURLEncoding.DecodeString(s) }

func rsaKey(n, e string) (*rsa.PublicKey, error) {
	nb, err := decode64(n)
	if err != nil {
		return nil, fmt.Errorf("n: %w", err)
	}
	eb, err := decode64(e)
	if err != nil {
		return nil, fmt.Errorf("e: %w", err)
	}
	exp := new(big.Int).SetBytes(eb)
	pub := &rsa.PublicKey{N: new(big.Int).SetBytes(nb)}
	if bits := pub.N.BitLen(); bits < 1024 || bits > 16384 {
		return nil, fmt.Errorf("RSA key of %d bits", bits)
	}
	if exp.BitLen() > 31 || exp.Int64() < 3 || exp.Bit(0) == 0 {
		return nil, errors.New("unusable RSA exponent")
	}
	pub.E = int(exp.Int64())
	return pub, nil
}

func ecKey(crv, x, y string) (*ecdsa.PublicKey, error) {
	var c elliptic.Curve
	switch crv {
	case "P-256":
		c = elliptic.P256()
	case "P-384":
		c = elliptic.P384()
	case "P-521":
		c = elliptic.P521()
	default:
		return nil, fmt.Errorf("crv %q is not supported", crv)
	}
	size := (c.Params().BitSize + 7) / 8
	point := make([]byte, 1+2*size)
	point[0] = 4
	for i, s := range []string{x, y} {
		b, err := decode64(s)
		if err != nil || len(b) == 0 || len(b) > size {
			return nil, errors.New("malformed coordinate")
		}
		copy(point[1+(i+1)*size-len(b):], b)
	}
	return ecdsa.ParseUncompressedPublicKey(c, point)
}

func edKey(crv, x string) (ed25519.PublicKey, error) {
	b, err := decode64(x)
	if crv != "Ed25519" || err != nil || len(b) != ed25519.PublicKeySize {
		return nil, fmt.Errorf("crv %q or its x is not supported", crv)
	}
	return ed25519.PublicKey(b), nil
}

// placeholderModulus is the SHA-256 of the modulus of the key that istiod
// sends in place of keys that it could not fetch.
const placeholderModulus = "3c5f887477dbf6f8165020e29d91462cf706a7c7b978c1bbfa2ad7af5d0cf43b"

func placeholder(p crypto.PublicKey) bool {
	r, isRSA := p.(*rsa.PublicKey)
	if !isRSA {
		return false
	}
	sum := sha256.Sum256(r.N.Bytes())
	return hex.EncodeToString(sum[:]) == placeholderModulus
}
