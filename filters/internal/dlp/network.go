package dlp

import (
	"net/netip"
	"strings"
)

// Names of the detectors for addresses.
const (
	emailAddress = "EMAIL_ADDRESS"
	ipAddress    = "IP_ADDRESS"
	macAddress   = "MAC_ADDRESS"
)

const (
	maxLocal  = 64
	maxDomain = 253
)

type emailRec struct{ typ int }

var (
	localClass  = tokenClass("a-zA-Z0-9._%+'-")
	domainClass = tokenClass("a-zA-Z0-9.-")
	atSign      = classOf("@")
	// notTLD are endings of file names that follow an "@" in practice:
	// logo@2x.png, rules@media.css.
	notTLD = map[string]bool{
		"png": true, "jpg": true, "jpeg": true, "gif": true, "svg": true, "webp": true, "css": true, "js": true, "json": true,
		"html": true, "xml": true, "ts": true, "tsx": true, "jsx": true, "yaml": true, "yml": true, "txt": true, "toml": true, "lock": true,
		"pdf": true, "scss": true, "less": true, "proto": true, "ico": true, "service": true, "target": true,
	}
	// wellKnownTLD make an address likely; two letters are countries.
	wellKnownTLD = map[string]bool{
		"com": true, "org": true, "net": true, "edu": true, "gov": true, "mil": true, "int": true, "info": true, "biz": true, "name": true,
		"pro": true, "mobi": true, "app": true, "dev": true, "cloud": true, "online": true, "tech": true, "store": true, "shop": true,
		"site": true, "xyz": true, "email": true, "live": true, "club": true, "agency": true, "example": true, "test": true, "company": true,
	}
)

func (r *emailRec) patterns() [][]set { return [][]set{{atSign}} }

func (r *emailRec) tail() tail { return tail{class: &localClass, max: maxLocal + 1} }

func (r *emailRec) recognize(v *view, at, _ int, emit *emitter) {
	start := at
	for start > 0 && at-start <= maxLocal && localClass.has(v.buf[start-1]) {
		start--
	}
	if at-start > maxLocal {
		return
	}
	for start < at && !isAlnum(v.buf[start]) {
		start++ // quotes and dots before an address are not of it
	}
	if start == at || v.buf[at-1] == '.' {
		return
	}
	v.from = start
	end := v.span(at+1, maxDomain+1, &domainClass)
	if end-at-1 > maxDomain {
		return
	}
	for end > at+1 && !isAlnum(v.buf[end-1]) {
		end-- // the full stop of a sentence
	}
	domain := v.buf[at+1 : end]
	if v.at(end) == '@' {
		return
	}
	tld, ok := domainTLD(domain)
	if !ok {
		return
	}
	l := Possible
	switch {
	case notTLD[tld]:
		l = VeryUnlikely
	case wellKnownTLD[tld]:
		l = VeryLikely
	case len(tld) == 2 && !countryTLD[tld], !oneCase(domain[len(domain)-len(tld):]), at-start == 1 && len(domain) == 1+1+len(tld):
		l = Unlikely
	case len(tld) == 2, strings.HasPrefix(tld, "xn--"):
		l = Likely
	}
	emit.add(r.typ, start, end, l)
}

// countryTLD are the country codes of the root zone.
var countryTLD = func() map[string]bool {
	m := map[string]bool{}
	for c := range strings.FieldsSeq(`ac ad ae af ag ai al am ao aq ar as at au aw ax az ba bb bd be bf bg bh bi bj bm bn bo br bs bt bw by bz ca
		cc cd cf cg ch ci ck cl cm cn co cr cu cv cw cx cy cz de dj dk dm do dz ec ee eg er es et eu fi fj fk fm fo fr ga gd ge gf gg gh gi gl
		gm gn gp gq gr gs gt gu gw gy hk hm hn hr ht hu id ie il im in io iq ir is it je jm jo jp ke kg kh ki km kn kp kr kw ky kz la lb lc li
		lk lr ls lt lu lv ly ma mc md me mg mh mk ml mm mn mo mp mq mr ms mt mu mv mw mx my mz na nc ne nf ng ni nl no np nr nu nz om pa pe pf
		pg ph pk pl pm pn pr ps pt pw py qa re ro rs ru rw sa sb sc sd se sg sh si sk sl sm sn so sr ss st su sv sx sy sz tc td tf tg th tj tk
		tl tm tn to tr tt tv tw tz ua ug uk us uy uz va vc ve vg vi vn vu wf ws ye yt za zm zw`) {
		m[c] = true
	}
	return m
}()

// oneCase reports whether the letters of b are all upper or all lower case.
func oneCase(b []byte) bool {
	up := 0
	for _, c := range b {
		up += btoi(isUpper(c))
	}
	return up == 0 || up == len(b)
}

func btoi(b bool) int {
	if b {
		return 1
	}
	return 0
}

// domainTLD checks the labels of d and returns the last one in lower case.
func domainTLD(d []byte) (string, bool) {
	label, labels, last := 0, 1, 0
	for i, c := range d {
		switch {
		case c == '.':
			if label == 0 || d[i-1] == '-' {
				return "", false
			}
			label, last = 0, i+1
			labels++
			continue
		case c == '-' && label == 0:
			return "", false
		}
		if label++; label > 63 {
			return "", false
		}
	}
	tld := strings.ToLower(string(d[last:]))
	if labels < 2 || len(tld) < 2 {
		return "", false
	}
	if strings.HasPrefix(tld, "xn--") {
		return tld, true
	}
	for i := range len(tld) {
		if !isAlpha(tld[i]) {
			return "", false
		}
	}
	return tld, len(tld) <= 24
}

// ipRec finds IPv4 and IPv6 addresses.
type ipRec struct{ typ int }

var (
	hexClass = classOf("0-9a-fA-F")
	ipClass  = classOf("0-9a-fA-F.:")
)

func (r *ipRec) patterns() [][]set {
	d, dot, colon := classOf("0-9"), classOf("."), classOf(":")
	return [][]set{{d, dot, d}, {hexClass, colon, hexClass}, {colon, colon}}
}

func (r *ipRec) tail() tail { return tail{class: &ipClass, max: 8} }

var contextIP = []string{"ip", "ipv4", "ipv6", "addr", "client", "remote", "host", "forwarded", "peer"}

func (r *ipRec) recognize(v *view, at, id int, emit *emitter) {
	start := at
	for start > 0 && at-start < 4 && hexClass.has(v.buf[start-1]) {
		start--
	}
	v.from = start
	if prev := v.at(start - 1); isWord(prev) || prev == ':' || prev == '.' || prev == '-' {
		return
	}
	end := v.span(start, 46, &ipClass)
	if end-start > 45 {
		return
	}
	for end > start && (v.buf[end-1] == '.' || v.buf[end-1] == ':' && (end-start < 2 || v.buf[end-2] != ':')) {
		end-- // punctuation, or the colon before a port
	}
	if id == 0 {
		r.v4(v, start, end, emit)
		return
	}
	if isWord(v.at(end)) || end-start < 6 {
		return
	}
	a, err := netip.ParseAddr(string(v.buf[start:end]))
	if err != nil || !a.Is6() || a.IsUnspecified() || a.IsLoopback() {
		return
	}
	colons, digits := 0, false
	for _, c := range v.buf[start:end] {
		if c == ':' {
			colons++
		}
		digits = digits || isDigit(c)
	}
	l := Likely
	if colons < 3 || !digits { // dead::beef may be code
		l = Unlikely
	}
	emit.add(r.typ, start, end, v.boost(l, start, contextIP))
}

// v4 takes the dotted quad at start; a port may follow.
func (r *ipRec) v4(v *view, start, end int, emit *emitter) {
	i, octets := start, 0
	var first int
	for octets < 4 {
		x, k := 0, i
		for k < end && k < i+3 && isDigit(v.buf[k]) {
			x = 10*x + int(v.buf[k]-'0')
			k++
		}
		if k == i || x > 255 || k-i > 1 && v.buf[i] == '0' {
			return
		}
		if octets == 0 {
			first = x
		}
		octets++
		i = k
		if octets < 4 {
			if i >= end || v.buf[i] != '.' {
				return
			}
			i++
		}
	}
	if next := v.at(i); isWord(next) || next == '-' || next == '.' && isDigit(v.at(i+1)) {
		return
	}
	l := Possible
	if first == 0 || first == 127 || first >= 224 {
		l = VeryUnlikely
	}
	if v.near(start, []string{"version", "release", "ver", "v"}) {
		l = VeryUnlikely
	}
	emit.add(r.typ, start, i, v.boost(l, start, contextIP))
}

type macRec struct{ typ int }

func (r *macRec) patterns() [][]set {
	sep := classOf(":")
	sep.add('-')
	return [][]set{{hexClass, hexClass, sep, hexClass, hexClass, sep}}
}

func (r *macRec) recognize(v *view, at, _ int, emit *emitter) {
	if prev := v.at(at - 1); isWord(prev) || prev == ':' || prev == '-' {
		return
	}
	sep := v.buf[at+2]
	for k := range 6 {
		i := at + 3*k
		if !isHex(v.at(i)) || !isHex(v.at(i+1)) || k < 5 && v.at(i+2) != sep {
			return
		}
	}
	end := at + 17
	if next := v.at(end); isWord(next) || next == sep {
		return
	}
	same := true
	for i := at; i < end; i++ {
		if (i-at)%3 != 2 && v.buf[i] != v.buf[at] {
			same = false
		}
	}
	if !same {
		emit.add(r.typ, at, end, Likely)
	}
}

// iban is an International Bank Account Number, ISO 13616.
const ibanCode = "IBAN_CODE"

type ibanRec struct{ typ int }

func (r *ibanRec) patterns() [][]set {
	l, d := classOf("A-Za-z"), classOf("0-9")
	return [][]set{{l, l, d, d}}
}

// ibanLength maps countries to lengths (SWIFT IBAN registry).
var ibanLength = func() map[[2]byte]int {
	m := map[[2]byte]int{}
	for e := range strings.FieldsSeq(`AD24 AE23 AL28 AT20 AZ28 BA20 BE16 BG22 BH22 BI27 BR29 BY28 CH21 CR22 CY28 CZ24 DE22 DJ27 DK18 DO28
		EE20 EG29 ES24 FI18 FK18 FO18 FR27 GB22 GE22 GI23 GL18 GR27 GT28 HN28 HR21 HU28 IE22 IL23 IQ23 IS26 IT27 JO30 KW30 KZ20 LB28 LC32
		LI21 LT20 LU20 LV21 LY25 MC27 MD24 ME22 MK19 MN20 MR27 MT31 MU30 NI28 NL18 NO15 OM23 PK24 PL28 PS29 PT25 QA29 RO24 RS22 RU33 SA24
		SC31 SD18 SE24 SI19 SK24 SM27 SO23 ST25 SV28 TL23 TN24 TR26 UA29 VA22 VG24 XK20 YE30`) {
		m[[2]byte{e[0], e[1]}] = int(e[2]-'0')*10 + int(e[3]-'0')
	}
	return m
}()

func (r *ibanRec) recognize(v *view, at, _ int, emit *emitter) {
	if isAlnum(v.at(at - 1)) {
		return
	}
	up := func(c byte) byte {
		if 'a' <= c && c <= 'z' {
			return c - 'a' + 'A'
		}
		return c
	}
	want, ok := ibanLength[[2]byte{up(v.at(at)), up(v.at(at + 1))}]
	if !ok {
		return
	}
	var code [34]byte
	n, i, upper := 0, at, true
	for n < want {
		c := v.at(i)
		if (c == ' ' || c == '-') && n >= 4 && n%4 == 0 && isAlnum(v.at(i+1)) && v.buf[i-1] != c {
			i++
			continue
		}
		if !isAlnum(c) {
			return
		}
		upper = upper && (isDigit(c) || isUpper(c))
		code[n] = up(c)
		n++
		i++
	}
	if isAlnum(v.at(i)) {
		return
	}
	if mod97(code[4:n], code[:4]) != 1 {
		return
	}
	l := VeryLikely
	if !upper {
		l = Unlikely
	}
	emit.add(r.typ, at, i, v.boost(l, at, []string{"iban", "konto", "account", "bank"}))
}

func mod97(parts ...[]byte) int {
	rem := 0
	for _, p := range parts {
		for _, c := range p {
			if isDigit(c) {
				rem = (rem*10 + int(c-'0')) % 97
			} else {
				rem = (rem*100 + int(c-'A') + 10) % 97
			}
		}
	}
	return rem
}
