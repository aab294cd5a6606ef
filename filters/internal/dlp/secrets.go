package dlp

import (
	"bytes"
	"encoding/base64"
	"encoding/json"
	"hash/crc32"
)

// Names of the detectors of credentials with structure.
const (
	awsCredentials = "AWS_CREDENTIALS"
	privateKey     = "PRIVATE_KEY"
	jsonWebToken   = "JSON_WEB_TOKEN"
	githubToken    = "GITHUB_TOKEN"
	genericSecret  = "GENERIC_SECRET"
	basicAuth      = "BASIC_AUTH_HEADER"
	urlCredentials = "URL_CREDENTIALS"
	telegramToken  = "TELEGRAM_BOT_TOKEN"
)

// awsSecretRec finds a secret access key: forty characters behind its name.
type awsSecretRec struct{ typ int }

var base64Class = classOf("A-Za-z0-9/+")

var awsSecretNames = []string{"secret_access_key", "secretaccesskey", "secret-access-key", "aws_secret_key", "awssecretkey", "aws_secret"}

func (r *awsSecretRec) patterns() [][]set { return foldedAll(awsSecretNames) }

func foldedAll(words []string) [][]set {
	out := make([][]set, len(words))
	for i, w := range words {
		out[i] = folded(w)
	}
	return out
}

func (r *awsSecretRec) recognize(v *view, at, id int, emit *emitter) {
	name := at + len(awsSecretNames[id])
	i := name
	for i < name+24 && v.has(i) && !base64Class.has(v.buf[i]) {
		i++
	}
	if i == name+24 || i == name {
		return
	}
	stop := v.span(i, 41, &base64Class)
	if stop-i != 40 || v.at(stop) == '=' || entropy(v.buf[i:stop]) < 3.5 {
		return
	}
	emit.add(r.typ, i, stop, VeryLikely)
}

// pemRec finds private keys in PEM form, also inside JSON strings, where line
// breaks are written \n.
type pemRec struct{ typ int }

var pemClass = tokenClass("A-Za-z0-9/+=\n\r\t \\:,.*-")

func (r *pemRec) patterns() [][]set { return [][]set{exactly("-----BEGIN ")} }

const maxPEM = MaxMatch

//nolint:gocognit // one grammar, read from top to bottom
func (r *pemRec) recognize(v *view, at, _ int, emit *emitter) {
	i := at + len("-----BEGIN ")
	label := i
	for i < label+40 && (isUpper(v.at(i)) || v.at(i) == ' ' || isDigit(v.at(i))) {
		i++
	}
	for k := range 5 {
		if v.at(i+k) != '-' {
			return
		}
	}
	if !bytes.Contains(v.buf[label:i], []byte("PRIVATE KEY")) {
		return
	}
	i += 5
	body, material := i, 0
	for i < at+maxPEM && v.has(i) && pemClass.has(v.buf[i]) {
		if c := v.buf[i]; c == '-' && v.at(i+1) == '-' {
			break
		}
		if base64Class.has(v.buf[i]) {
			material++
		}
		i++
	}
	l := Likely
	const footer = "-----END "
	if v.at(i) == '-' && v.at(i+1) == '-' {
		for k := range len(footer) {
			if v.at(i+k) != footer[k] {
				goto done
			}
		}
		j := i + len(footer)
		for j < i+60 && (isUpper(v.at(j)) || v.at(j) == ' ' || isDigit(v.at(j))) {
			j++
		}
		for k := range 5 {
			if v.at(j+k) != '-' {
				goto done
			}
		}
		i, l = j+5, VeryLikely
	}
done:
	if material < 40 || i <= body {
		return
	}
	if l == Likely { // don't swallow the text behind a torn key
		for i > body && !base64Class.has(v.buf[i-1]) && v.buf[i-1] != '=' {
			i--
		}
	}
	emit.add(r.typ, at, i, l)
}

// jwtRec finds JSON Web Tokens: three parts, the first of them a JOSE header.
type jwtRec struct{ typ int }

var base64URLClass = tokenClass("A-Za-z0-9_-")

const (
	maxJOSE = 1 << 10
	maxJWT  = 6 << 10 // of the payload
)

func (r *jwtRec) patterns() [][]set { return [][]set{exactly("eyJ")} }

func (r *jwtRec) recognize(v *view, at, _ int, emit *emitter) {
	if prev := v.at(at - 1); isWord(prev) || prev == '-' {
		return
	}
	h := v.span(at, maxJOSE+1, &base64URLClass)
	if h-at > maxJOSE || v.at(h) != '.' || !isJOSE(v.buf[at:h]) {
		return
	}
	p := v.span(h+1, maxJWT, &base64URLClass)
	if p == h+1+maxJWT { // padded beyond measure: what fits is masked
		emit.add(r.typ, at, p, Likely)
		return
	}
	if p == h+1 || v.at(p) != '.' {
		return
	}
	s := v.span(p+1, 1<<10, &base64URLClass)
	emit.add(r.typ, at, s, VeryLikely)
}

func isJOSE(b []byte) bool {
	var buf [maxJOSE]byte
	n, err := base64.RawURLEncoding.Decode(buf[:], b)
	if err != nil {
		return false
	}
	h := buf[:n]
	return json.Valid(h) && (bytes.Contains(h, []byte(`"alg"`)) || bytes.Contains(h, []byte(`"enc"`)))
}

// basicRec finds user:password behind the word Basic.
type basicRec struct{ typ int }

func (r *basicRec) patterns() [][]set { return [][]set{folded("basic ")} }

func (r *basicRec) recognize(v *view, at, _ int, emit *emitter) {
	if isWord(v.at(at - 1)) {
		return
	}
	start := at + len("basic ")
	end := v.span(start, 513, &base64Class)
	if end-start < 4 || end-start > 512 {
		return
	}
	var buf [512]byte
	n, err := base64.RawStdEncoding.Decode(buf[:], v.buf[start:end])
	for end < start+514 && v.at(end) == '=' {
		end++
	}
	colon := bytes.IndexByte(buf[:n], ':')
	if err != nil || colon < 1 {
		return
	}
	for _, c := range buf[:n] {
		if c < ' ' || c == 0x7f {
			return
		}
	}
	emit.add(r.typ, start, end, v.boost(Likely, start, []string{"authorization"}))
}

// urlRec finds the password in a URL: scheme://user:password@host.
type urlRec struct{ typ int }

var (
	userClass     = tokenClass("A-Za-z0-9._~%+!$&*-")
	passwordClass = tokenClass("A-Za-z0-9._~%+!$&*=,;^#?-")
)

func (r *urlRec) patterns() [][]set { return [][]set{exactly("://")} }

func (r *urlRec) recognize(v *view, at, _ int, emit *emitter) {
	if !isAlnum(v.at(at - 1)) {
		return
	}
	user := at + len("://")
	colon := v.span(user, 65, &userClass)
	if colon-user > 64 || v.at(colon) != ':' {
		return
	}
	start := colon + 1
	end := v.span(start, 129, &passwordClass)
	if end-start < 3 || end-start > 128 || v.at(end) != '@' || !isAlnum(v.at(end+1)) && v.at(end+1) != '[' {
		return
	}
	p := v.buf[start:end]
	switch {
	case p[0] == '$' || p[0] == '%' && (len(p) < 3 || !isHex(p[1])): // ${PASSWORD}, %s
		return
	case bytes.EqualFold(p, []byte("password")) || bytes.EqualFold(p, []byte("pass")) || bytes.ContainsAny(p, "*"):
		emit.add(r.typ, start, end, Unlikely)
		return
	}
	emit.add(r.typ, start, end, Likely)
}

// githubRec finds GitHub's tokens, whose last six characters are a checksum.
type githubRec struct{ typ int }

func (r *githubRec) patterns() [][]set {
	kind := []set{{}, {}, {}, {}}
	copy(kind, exactly("gh__"))
	kind[2] = classOf("pousr")
	return [][]set{kind, exactly("github_pat_")}
}

var (
	alnumClass = classOf("A-Za-z0-9")
	wordClass  = classOf("A-Za-z0-9_")
)

func (r *githubRec) recognize(v *view, at, id int, emit *emitter) {
	if isWord(v.at(at - 1)) {
		return
	}
	if id == 1 {
		start := at + len("github_pat_")
		if end := v.span(start, 83, &wordClass); end-start == 82 {
			emit.add(r.typ, at, end, VeryLikely)
		}
		return
	}
	start := at + 4
	end := v.span(start, 256, &alnumClass)
	if end-start < 36 || end-start > 255 || v.at(end) == '_' {
		return
	}
	l := Likely
	if end-start == 36 && base62(crc32.ChecksumIEEE(v.buf[start:end-6])) == string(v.buf[end-6:end]) {
		l = VeryLikely
	}
	emit.add(r.typ, at, end, l)
}

// base62 writes x with six digits, as GitHub's tokens do.
func base62(x uint32) string {
	const digits = "0123456789ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz"
	var b [6]byte
	for i := 5; i >= 0; i-- {
		b[i] = digits[x%62]
		x /= 62
	}
	return string(b[:])
}

// genericRec finds a random value behind a word such as password or api_key.
type genericRec struct{ typ int }

var genericWords = []string{
	"password", "passwd", "secret", "api_key", "apikey", "api-key", "access_key", "accesskey", "access-key", "auth_token", "auth-token",
	"authtoken", "access_token", "access-token", "accesstoken", "private_token", "client_token", "pwd", "credential", "bearer ", "encryption_key", "signing_key",
}

func (r *genericRec) patterns() [][]set { return foldedAll(genericWords) }

var valueClass = tokenClass("A-Za-z0-9_.=/+~!@#$%^&*-")

func (r *genericRec) recognize(v *view, at, id int, emit *emitter) {
	i := at + len(genericWords[id])
	limit := i + 20
	assigned := genericWords[id] == "bearer "
	for i < limit && isWord(v.at(i)) && !assigned { // secretKey, password_prod
		i++
	}
	for i < limit+8 {
		c := v.at(i)
		if c == ':' || c == '=' {
			assigned = true
		} else if c != ' ' && c != '"' && c != '\'' && c != '>' && c != '\t' && c != '\\' && c != '`' {
			break
		}
		i++
	}
	if !assigned {
		return
	}
	end := v.span(i, 161, &valueClass)
	if n := end - i; n < 12 || n > 160 {
		return
	}
	b := v.buf[i:end]
	digits, upper, lowers := 0, 0, 0
	for _, c := range b {
		switch {
		case isDigit(c):
			digits++
		case isUpper(c):
			upper++
		case isAlpha(c):
			lowers++
		}
	}
	if digits == 0 || upper+lowers == 0 || bytes.HasPrefix(b, []byte("$")) || bytes.HasPrefix(b, []byte("http")) || bytes.Contains(b, []byte("./")) {
		return
	}
	h := entropy(b)
	l := Unlikely
	switch {
	case h >= 4 && digits >= 2 && upper > 0 && lowers > 0:
		l = VeryLikely
	case h >= 3.5 && digits >= 2:
		l = Likely
	case h >= 3 && digits >= 2:
		l = Possible
	}
	emit.add(r.typ, i, end, l)
}
