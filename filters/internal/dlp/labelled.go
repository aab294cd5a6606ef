package dlp

import "strings"

// labelledRule is something that is recognized only behind its name, because
// it has no shape that nothing else has.
type labelledRule struct {
	typ    string
	labels string // in lower case, divided by spaces
	shapes []string
	valid  func(s []byte) bool // nil: the shape is all
	l      Likelihood
}

var labelledRules = []labelledRule{
	{"VEHICLE_IDENTIFICATION_NUMBER", "vin vehicle chassis fahrgestell", []string{"[A-HJ-NPR-Z0-9]{17}"}, vin, VeryLikely},
	{"SWIFT_CODE", "swift bic", []string{"[A-Z]{6}[A-Z0-9]{5}", "[A-Z]{6}[A-Z0-9]{2}"}, bic, Likely},
	{"LEGAL_ENTITY_IDENTIFIER", "lei legal_entity", []string{"[A-Z0-9]{18}[0-9]{2}"}, func(s []byte) bool { return mod97(s) == 1 }, VeryLikely},
	{"ISIN_CODE", "isin", []string{"[A-Z]{2}[A-Z0-9]{9}[0-9]"}, isin, VeryLikely},
	{"IMSI_ID", "imsi", []string{"[0-9]{14,15}"}, nil, Likely},
	{"DATE_OF_BIRTH", "dob birth geburt naissance nacimiento", []string{
		"[0-9]{4}-[0-9]{2}-[0-9]{2}", "[0-9]{1,2}/[0-9]{1,2}/[0-9]{4}", "[0-9]{1,2}.[0-9]{1,2}.[0-9]{4}", "[0-9]{1,2}-[0-9]{1,2}-[0-9]{4}",
	}, birthday, Likely},
	{"MEDICAL_RECORD_NUMBER", "mrn medical_record medicalrecord patient_id patientid", []string{"[A-Z]{0,3}[0-9]{6,10}"}, nil, Likely},
	{"US_DRIVERS_LICENSE_NUMBER", "drivers_license driverslicense driver_license driverlicense driver's driver’s dl_number dlnumber", []string{
		"[A-Z][0-9]{3}-[0-9]{4}-[0-9]{4}", "[A-Z]{1,2}[0-9]{5,14}", "[0-9]{7,12}",
	}, nil, Likely},
	{"BANK_ACCOUNT_NUMBER", "account_number accountnumber account_no acct_no kontonummer account_num acctnum", []string{"[0-9]{7,17}"}, nil, Likely},
	{"HEALTH_INSURANCE_NUMBER", "insurance_id member_id subscriber_id policy_number krankenversicherten versichertennummer", []string{"[A-Z]{0,3}[0-9]{8,12}"}, nil, Likely},
	{"CVV_NUMBER", "cvv cvv2 cvc cvc2 card_verification security_code securitycode", []string{"[0-9]{3,4}"}, nil, Likely},
	{"ADVERTISING_ID", "idfa gaid aaid advertising_id advertisingid advertising_identifier", []string{uuidShape}, nil, Likely},
}

type labelledRec struct {
	typ    int
	rule   *labelledRule
	labels []string
	values []template
}

func newLabelled(types map[string]int) []recognizer {
	var out []recognizer
	for i := range labelledRules {
		r := &labelledRules[i]
		typ, ok := types[r.typ]
		if !ok {
			continue
		}
		rec := &labelledRec{typ: typ, rule: r, labels: strings.Fields(r.labels)}
		for _, s := range r.shapes {
			rec.values = append(rec.values, newTemplate(s))
		}
		out = append(out, rec)
	}
	return out
}

func labelledTypes() []string {
	out := make([]string, len(labelledRules))
	for i := range labelledRules {
		out[i] = labelledRules[i].typ
	}
	return out
}

func (r *labelledRec) patterns() [][]set { return foldedAll(r.labels) }

// fillers may stand between a label and its value.
var fillers = []string{"number", "code", "date", "of", "is", "no", "nr", "id", "license", "licence", "day"}

func (r *labelledRec) recognize(v *view, at, id int, emit *emitter) {
	label := r.labels[id]
	end := at + len(label)
	if len(label) <= 4 && !v.labelAlone(at, end) {
		return
	}
	i := v.past(end)
	if i < 0 || isWord(v.at(i-1)) {
		return
	}
	for k := range r.values {
		start, stop := r.values[k].match(v, i)
		if stop == 0 || isWord(v.at(stop)) || (v.at(stop) == '-' || v.at(stop) == '.') && isAlnum(v.at(stop+1)) {
			continue
		}
		if r.rule.valid == nil && !allSame(v.buf[start:stop]) || r.rule.valid != nil && r.rule.valid(v.buf[start:stop]) {
			emit.add(r.typ, start, stop, r.rule.l)
			return
		}
	}
}

// labelAlone reports whether the bytes from i to end are a word or one hump of
// a camelCase name.
func (v *view) labelAlone(i, end int) bool {
	if prev := v.at(i - 1); isAlnum(prev) && (!isUpper(v.buf[i]) || isUpper(prev)) {
		return false
	}
	next := v.at(end)
	return !isAlnum(next) || isUpper(next) && !isUpper(v.buf[end-1]) || isDigit(next)
}

// past returns where the value behind a label may begin, -1 if nothing like
// that follows: a word or two of a name, punctuation and quotes are skipped.
func (v *view) past(i int) int {
	for limit := i + 40; i < limit; {
		c := v.at(i)
		switch {
		case c == ' ' || c == ':' || c == '=' || c == '"' || c == '\'' || c == '_' || c == '#' || c == '-' || c == '.' || c == '>' || c == '\t' || c == '`' || c == '\\':
			i++
			continue
		case isDigit(c) || c == 0:
			return i
		}
		n := 0
		for _, f := range fillers {
			if v.foldedAt(i, f) && !isDigit(v.at(i+len(f))) {
				n = max(n, len(f))
			}
		}
		if n == 0 {
			return i
		}
		i += n
	}
	return -1
}

// foldedAt reports whether the lower-case word w is at i in any case.
func (v *view) foldedAt(i int, w string) bool {
	for k := range len(w) {
		if lower(v.at(i+k)) != w[k] {
			return false
		}
	}
	return true
}

func allSame(b []byte) bool {
	for _, c := range b {
		if c != b[0] {
			return false
		}
	}
	return true
}

// vin checks the digit that North America and China require.
func vin(s []byte) bool {
	values := [...]int{1, 2, 3, 4, 5, 6, 7, 8, 0, 1, 2, 3, 4, 5, 0, 7, 0, 9, 2, 3, 4, 5, 6, 7, 8, 9}
	sum := 0
	for i, w := range [17]int{8, 7, 6, 5, 4, 3, 2, 10, 0, 9, 8, 7, 6, 5, 4, 3, 2} {
		x := base36(s[i])
		if isUpper(s[i]) {
			x = values[s[i]-'A']
		}
		sum += w * x
	}
	return "0123456789X"[sum%11] == s[8]
}

// bic has a country in its middle.
func bic(s []byte) bool {
	return countryTLD[strings.ToLower(string(s[4:6]))]
}

func isin(s []byte) bool {
	var d []byte
	for _, c := range s {
		if x := base36(c); x >= 10 {
			d = append(d, byte(x/10), byte(x%10))
		} else {
			d = append(d, byte(x))
		}
	}
	return luhn(d)
}

// birthday is a date of the last 130 years.
func birthday(s []byte) bool {
	var parts [3]int
	k := 0
	for _, c := range s {
		if !isDigit(c) {
			k++
			continue
		}
		parts[k] = parts[k]*10 + int(c-'0')
	}
	year, a, b := parts[2], parts[0], parts[1]
	if parts[0] > 31 {
		year, a, b = parts[0], parts[1], parts[2]
	}
	return year >= 1900 && year < 2100 && a >= 1 && b >= 1 && min(a, b) <= 12 && max(a, b) <= 31
}
