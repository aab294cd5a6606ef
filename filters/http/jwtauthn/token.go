package jwtauthn

import (
	"crypto"
	"crypto/ecdsa"
	"crypto/ed25519"
	"crypto/rsa"
	_ "crypto/sha256" // for crypto.SHA256
	_ "crypto/sha512" // for crypto.SHA384 and SHA512
	"encoding/base64"
	"math"
	"math/big"
	"strings"
	"time"
)

// token is a parsed JWS in compact form (RFC 7515, 7519), not verified yet.
type token struct {
	header, payload map[string]any
	// payload64 is the payload as it was encoded.
	payload64    string
	signed       string // header.payload
	signature    []byte
	alg          algorithm
	algName, kid string

	iss, sub       string
	aud            []string
	exp, nbf, iat  float64
	hasExp, hasNbf bool
	hasIat         bool
}

// maxToken bounds a token in bytes.
const maxToken = 64 << 10

type algorithm struct {
	kind algKind
	hash crypto.Hash
	// size is the size in bytes of an EC coordinate.
	size int
}

type algKind uint8

const (
	algRSA algKind = iota + 1
	algPSS
	algEC
	algEd
)

// algorithms that can be verified. "none" and the symmetric ones are not
// among them: a public key must never serve as a shared secret.
var algorithms = map[string]algorithm{
	"RS256": {algRSA, crypto.SHA256, 0}, "RS384": {algRSA, crypto.SHA384, 0}, "RS512": {algRSA, crypto.SHA512, 0},
	"PS256": {algPSS, crypto.SHA256, 0}, "PS384": {algPSS, crypto.SHA384, 0}, "PS512": {algPSS, crypto.SHA512, 0},
	"ES256": {algEC, crypto.SHA256, 32}, "ES384": {algEC, crypto.SHA384, 48}, "ES512": {algEC, crypto.SHA512, 66},
	"EdDSA": {algEd, 0, 0},
}

var strict64 = base64.RawURLEncoding.Strict()

// parseToken parses s with its claims.
func parseToken(s string) (*token, status) {
	t, payload, st := parseSignature(s)
	if st != ok {
		return nil, st
	}
	var err error
	if t.payload, err = parseObject(payload); err != nil {
		return nil, payloadBadJSON
	}
	return t, t.parsePayload()
}

// parseSignature parses the envelope of s, a JWS. Only RFC 7515's own form is
// accepted: no padding, no stray bits, no critical extensions.
func parseSignature(s string) (t *token, payload []byte, st status) {
	if len(s) > maxToken || strings.Count(s, ".") != 2 {
		return nil, nil, badFormat
	}
	if strings.ContainsAny(s, "\r\n") { // the decoder would skip them
		return nil, nil, badFormat
	}
	h64, rest, _ := strings.Cut(s, ".")
	p64, s64, _ := strings.Cut(rest, ".")
	t = &token{payload64: p64, signed: s[:len(h64)+1+len(p64)]}
	hb, err := strict64.DecodeString(h64)
	if err != nil {
		return nil, nil, headerBadBase64
	}
	if t.header, err = parseObject(hb); err != nil {
		return nil, nil, headerBadJSON
	}
	if st := t.parseHeader(); st != ok {
		return nil, nil, st
	}
	if payload, err = strict64.DecodeString(p64); err != nil {
		return nil, nil, payloadBadBase64
	}
	if t.signature, err = strict64.DecodeString(s64); err != nil || s64 == "" {
		return nil, nil, signatureBadBase64
	}
	return t, payload, ok
}

func (t *token) parseHeader() status {
	name, isString := t.header["alg"].(string)
	if !isString {
		return headerBadAlg
	}
	var known bool
	if t.alg, known = algorithms[name]; !known {
		return headerUnknownAlg
	}
	t.algName = name
	if kid, given := t.header["kid"]; given {
		if t.kid, isString = kid.(string); !isString {
			return headerBadKid
		}
	}
	if _, given := t.header["crit"]; given {
		return headerCritical
	}
	if _, given := t.header["b64"]; given {
		return headerCritical
	}
	return ok
}

func (t *token) parsePayload() status {
	var good bool
	if t.iss, good = stringClaim(t.payload, "iss"); !good {
		return issNotString
	}
	if t.sub, good = stringClaim(t.payload, "sub"); !good {
		return subNotString
	}
	if t.iat, t.hasIat, good = timeClaim(t.payload, "iat"); !good {
		return iatNotNumber
	}
	if t.nbf, t.hasNbf, good = timeClaim(t.payload, "nbf"); !good {
		return nbfNotNumber
	}
	if t.exp, t.hasExp, good = timeClaim(t.payload, "exp"); !good {
		return expNotNumber
	}
	switch aud := t.payload["aud"].(type) {
	case nil:
		if _, given := t.payload["aud"]; given {
			return audNotString
		}
	case string:
		t.aud = []string{aud}
	case []any:
		for _, a := range aud {
			s, isString := a.(string)
			if !isString {
				return audNotString
			}
			t.aud = append(t.aud, s)
		}
	default:
		return audNotString
	}
	return ok
}

func stringClaim(m map[string]any, name string) (string, bool) {
	v, given := m[name]
	if !given {
		return "", true
	}
	s, isString := v.(string)
	return s, isString
}

// timeClaim returns a NumericDate in seconds.
func timeClaim(m map[string]any, name string) (v float64, given, good bool) {
	x, given := m[name]
	if !given {
		return 0, false, true
	}
	v, isNumber := x.(float64)
	return v, true, isNumber && v >= 0 && v < math.MaxInt64
}

// checkTime applies exp and nbf with the provider's clock skew.
func (t *token) checkTime(now time.Time, skew time.Duration) status {
	n, s := float64(now.Unix()), skew.Seconds()
	if t.hasNbf && n+s < t.nbf {
		return notYetValid
	}
	if t.hasExp && n > t.exp+s {
		return expired
	}
	return ok
}

// verify checks the signature with the keys of set that may have made it.
func (t *token) verify(set *keySet) status {
	if set == nil || len(set.keys) == 0 {
		return noValidKeys
	}
	candidate := false
	for i := range set.keys {
		k := &set.keys[i]
		if t.kid != "" && k.id != "" && t.kid != k.id || k.alg != "" && k.alg != t.algName || !t.alg.fits(k.public) {
			continue
		}
		candidate = true
		if t.alg.verify(k.public, t.signed, t.signature) {
			return ok
		}
	}
	if candidate {
		return verificationFails
	}
	return kidAlgMismatch
}

// fits reports whether the key is of the algorithm's type.
func (a algorithm) fits(p crypto.PublicKey) bool {
	switch p := p.(type) {
	case *rsa.PublicKey:
		return a.kind == algRSA || a.kind == algPSS
	case *ecdsa.PublicKey:
		return a.kind == algEC && (p.Curve.Params().BitSize+7)/8 == a.size
	case ed25519.PublicKey:
		return a.kind == algEd
	}
	return false
}

func (a algorithm) verify(p crypto.PublicKey, signed string, sig []byte) bool {
	if a.kind == algEd {
		k, isEd := p.(ed25519.PublicKey)
		return isEd && len(sig) == ed25519.SignatureSize && ed25519.Verify(k, []byte(signed), sig)
	}
	h := a.hash.New()
	h.Write([]byte(signed))
	sum := h.Sum(nil)
	switch k := p.(type) {
	case *rsa.PublicKey:
		if a.kind == algPSS {
			return rsa.VerifyPSS(k, a.hash, sum, sig, &rsa.PSSOptions{SaltLength: rsa.PSSSaltLengthEqualsHash}) == nil
		}
		return rsa.VerifyPKCS1v15(k, a.hash, sum, sig) == nil
	case *ecdsa.PublicKey:
		if len(sig) != 2*a.size {
			return false
		}
		r, s := new(big.Int).SetBytes(sig[:a.size]), new(big.Int).SetBytes(sig[a.size:])
		return ecdsa.Verify(k, sum, r, s)
	}
	return false
}
