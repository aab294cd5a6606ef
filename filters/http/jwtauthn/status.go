package jwtauthn

import "strings"

// status is the outcome of a verification, with Envoy's texts.
type status uint8

const (
	ok status = iota
	missing
	notYetValid
	expired
	badFormat
	headerBadBase64
	headerBadJSON
	headerBadAlg
	headerUnknownAlg
	headerBadKid
	headerCritical
	payloadBadBase64
	payloadBadJSON
	issNotString
	subNotString
	audNotString
	expNotNumber
	nbfNotNumber
	iatNotNumber
	signatureBadBase64
	unknownIssuer
	audienceNotAllowed
	subjectNotAllowed
	lifetimeNotAllowed
	noValidKeys
	kidAlgMismatch
	verificationFails
	fetchFails
	unfetched // only when explaining
	statuses
)

var statusTexts = [statuses]string{
	ok:                 "OK",
	missing:            "Jwt is missing",
	notYetValid:        "Jwt not yet valid",
	expired:            "Jwt is expired",
	badFormat:          "Jwt is not in the form of Header.Payload.Signature with two dots and 3 sections",
	headerBadBase64:    "Jwt header is an invalid Base64url encoded",
	headerBadJSON:      "Jwt header is an invalid JSON",
	headerBadAlg:       "Jwt header [alg] field is required and must be a string",
	headerUnknownAlg:   "Jwt header [alg] is not supported",
	headerBadKid:       "Jwt header [kid] field is not a string",
	headerCritical:     "Jwt header [crit] is not supported",
	payloadBadBase64:   "Jwt payload is an invalid Base64url encoded",
	payloadBadJSON:     "Jwt payload is an invalid JSON",
	issNotString:       "Jwt payload [iss] field is not a string",
	subNotString:       "Jwt payload [sub] field is not a string",
	audNotString:       "Jwt payload [aud] field is not a string or string list",
	expNotNumber:       "Jwt payload [exp] field is not an integer",
	nbfNotNumber:       "Jwt payload [nbf] field is not an integer",
	iatNotNumber:       "Jwt payload [iat] field is not an integer",
	signatureBadBase64: "Jwt signature is an invalid Base64url encoded",
	unknownIssuer:      "Jwt issuer is not configured",
	audienceNotAllowed: "Audiences in Jwt are not allowed",
	subjectNotAllowed:  "Subject in Jwt is not allowed",
	lifetimeNotAllowed: "Jwt lifetime is not allowed",
	noValidKeys:        "Jwks doesn't have any valid public key",
	kidAlgMismatch:     "Jwks doesn't have key to match kid or alg from Jwt",
	verificationFails:  "Jwt verification fails",
	fetchFails:         "Jwks remote fetch is failed",
	unfetched:          "Jwks would be fetched",
}

var statusDetails = func() (d [statuses]string) {
	for i, t := range statusTexts {
		d[i] = "jwt_authn_access_denied{" + strings.ReplaceAll(t, " ", "_") + "}"
	}
	return d
}()

// code is the HTTP status of a refusal.
func (s status) code() int {
	if s == audienceNotAllowed {
		return 403
	}
	return 401
}

// reason is the text as a metric label.
func (s status) reason() string {
	return strings.ToLower(strings.Map(func(r rune) rune {
		if r == ' ' {
			return '_'
		}
		return r
	}, statusTexts[s]))
}

func (s status) String() string { return statusTexts[s] }

// details is the response code detail.
func (s status) details() string { return statusDetails[s] }

// worse chooses what to tell of two failures: that a token is bad is worth
// more than that it is somebody else's, or absent.
func worse(a, b status) status {
	if a == ok || a == missing || a == unknownIssuer && b != missing {
		return b
	}
	return a
}
