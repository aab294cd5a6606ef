package dlp

import "slices"

// maskRule is an identifier of letters and digits. A mask is read byte by
// byte: l an upper-case letter, d a digit, a either, "?" an optional space or
// dash, anything else itself.
type maskRule struct {
	typ     string
	masks   []string
	valid   func(s []byte) bool // of what l, d, a, letters and digits matched
	l       Likelihood
	context []string
}

var maskRules = []maskRule{
	{"US_DEA_NUMBER", []string{"llddddddd"}, deaNumber, Unlikely, []string{"dea", "prescriber", "drug enforcement"}},
	{"US_MEDICARE_BENEFICIARY_ID_NUMBER", []string{"dlad?lad?lldd"}, beneficiary, Possible, []string{"mbi", "medicare", "beneficiary"}},
	{"US_PREPARER_TAXPAYER_IDENTIFICATION_NUMBER", []string{"Pdddddddd"}, nil, VeryUnlikely, []string{"ptin", "preparer"}},
	{"UK_NATIONAL_INSURANCE_NUMBER", []string{"ll?dd?dd?dd?l"}, insuranceUK, Possible, []string{"national insurance", "nino", "ni number", "insurance number"}},
	{"UK_DRIVERS_LICENSE_NUMBER", []string{"laaaaddddddlaaaa"}, licenceUK, Possible, []string{"licence", "license", "driv", "dvla"}},
	{"INDIA_PAN_INDIVIDUAL", []string{"lllllddddl"}, panIN, Possible, []string{"pan", "permanent account", "income tax"}},
	{"INDIA_GST_INDIVIDUAL", []string{"ddlllllddddlaZa"}, gstin, VeryLikely, []string{"gst", "gstin"}},
	{"ITALY_FISCAL_CODE", []string{"llllllaalaalaaal"}, fiscalIT, VeryLikely, []string{"codice fiscale"}},
	{"MEXICO_CURP_NUMBER", []string{"llllddddddllllllad"}, curp, VeryLikely, []string{"curp"}},
	{"MEXICO_RFC_NUMBER", []string{"llllddddddaaa"}, rfc, Possible, []string{"rfc", "contribuyente"}},
	{"SINGAPORE_NATIONAL_REGISTRATION_ID_NUMBER", []string{"ldddddddl"}, nricSG, Likely, []string{"nric", "fin"}},
	{"TAIWAN_ID_NUMBER", []string{"lddddddddd"}, idTW, Possible, []string{"taiwan", "身分證", "national id"}},
	{"HONG_KONG_ID_NUMBER", []string{"ldddddd(a)", "lldddddd(a)"}, idHK, Likely, []string{"hkid", "hong kong"}},
	{"SPAIN_DNI_NUMBER", []string{"dddddddd?l"}, dni, Possible, []string{"dni", "nif"}},
	{"SPAIN_NIE_NUMBER", []string{"X?ddddddd?l", "Y?ddddddd?l", "Z?ddddddd?l"}, nie, Likely, []string{"nie"}},
	{"SPAIN_CIF_NUMBER", []string{"l?ddddddda"}, cif, Unlikely, []string{"cif", "nif"}},
	{"IRELAND_PPSN", []string{"dddddddl", "dddddddll"}, ppsn, Unlikely, []string{"pps", "ppsn"}},
	{"FINLAND_NATIONAL_ID_NUMBER", []string{"dddddd-ddda", "dddddd+ddda", "ddddddAddda"}, hetu, Likely, []string{"hetu", "henkilötunnus"}},
	{"CHINA_RESIDENT_ID_NUMBER", []string{"dddddddddddddddddX"}, residentX, VeryLikely, nil},
	{"GERMANY_IDENTITY_CARD_NUMBER", []string{"laaaaaaaad"}, cardDE, Unlikely, []string{"ausweis", "personalausweis", "identity card"}},
	{"GERMANY_PASSPORT", []string{"Caaaaaaaad", "Faaaaaaaad", "Gaaaaaaaad", "Haaaaaaaad", "Jaaaaaaaad", "Kaaaaaaaad"}, cardDE, VeryUnlikely, []string{"reisepass", "passport", "passnummer"}},
	{"GERMANY_SOCIAL_SECURITY_NUMBER", []string{"dd?dddddd?l?ddd"}, rvnr, Likely, []string{"sozialversicherung", "rentenversicherung", "svnr"}},
	{"NEW_ZEALAND_NHI_NUMBER", []string{"llldddd"}, nhi, VeryUnlikely, []string{"nhi"}},
	{"CHILE_CDI_NUMBER", []string{"dd.ddd.ddd-a", "d.ddd.ddd-a", "dddddddd-a", "ddddddd-a"}, rut, Possible, []string{"rut", "run"}},
	{"KOREA_PASSPORT", []string{"Mdddddddd", "Sdddddddd", "Rdddddddd"}, nil, VeryUnlikely, []string{"korea", "여권"}},
	{"JAPAN_PASSPORT", []string{"llddddddd"}, nil, VeryUnlikely, []string{"japan", "旅券"}},
	{"CHINA_PASSPORT", []string{"Edddddddd", "Gdddddddd"}, nil, VeryUnlikely, []string{"china", "chinese", "护照"}},
	{"INDIA_PASSPORT", []string{"lddddddd"}, nil, VeryUnlikely, []string{"indian passport", "india passport"}},
	{"CANADA_PASSPORT", []string{"lldddddd"}, nil, VeryUnlikely, []string{"canad"}},
	{"FRANCE_PASSPORT", []string{"ddllddddd"}, nil, VeryUnlikely, []string{"passeport", "french passport"}},
	{"VAT_NUMBER", []string{
		"DE?ddddddddd", "FR?aaddddddddd", "IT?ddddddddddd", "NL?dddddddddBdd", "BE?dddddddddd", "ATUdddddddd", "PL?dddddddddd",
		"PT?ddddddddd", "SE?dddddddddddd", "DK?dddddddd", "FI?dddddddd", "LU?dddddddd", "GB?ddddddddd", "EL?ddddddddd", "SK?dddddddddd",
		"SI?dddddddd", "HR?ddddddddddd", "HU?dddddddd", "ES?lddddddda", "ES?ddddddddl",
	}, vat, Possible, []string{"vat", "ust", "tva", "iva", "btw", "mwst", "uid"}},
}

// maskRec recognizes identifiers by masks. One recognizer does for all rules:
// each of them in the automaton would multiply its states.
type maskRec struct {
	letters bool // those that begin with letters; otherwise those with digits
	entries []maskEntry
}

type maskEntry struct {
	typ  int
	rule *maskRule
	mask string
}

// lettersBefore is how many upper-case letters may come before the one that a
// digit follows.
const lettersBefore = 6

func newMasks(types map[string]int) []recognizer {
	letters, digits := &maskRec{letters: true}, &maskRec{}
	for i := range maskRules {
		r := &maskRules[i]
		typ, ok := types[r.typ]
		if !ok {
			continue
		}
		for _, m := range r.masks {
			rec := letters
			if m[0] == 'd' {
				rec = digits
			}
			rec.entries = append(rec.entries, maskEntry{typ, r, m})
		}
	}
	var out []recognizer
	if len(letters.entries) > 0 {
		out = append(out, &letterMasks{letters})
	}
	if len(digits.entries) > 0 {
		out = append(out, digits)
	}
	return out
}

func maskTypes() []string {
	out := make([]string, len(maskRules))
	for i := range maskRules {
		out[i] = maskRules[i].typ
	}
	return out
}

var (
	maskLetters = classOf("A-Z")
	maskDigits  = classOf("0-9")
)

// letterMasks is a maskRec whose matches begin before the pattern.
type letterMasks struct{ *maskRec }

func (r *letterMasks) tail() tail { return tail{class: &maskLetters, max: lettersBefore, before: true} }

func (r *maskRec) patterns() [][]set {
	sep, sign := classOf(" "), classOf("+A")
	sep.add('-')
	sign.add('-')
	l, d, dot := maskLetters, maskDigits, classOf(".")
	if r.letters {
		return [][]set{{l, d, d}, {l, sep, d, d}}
	}
	return [][]set{
		{boundary, d, d, d, d, d, d, d},
		{boundary, d, d, d, d, d, d, sign, d},
		{boundary, d, d, sep, d, d, d, d, d, d},
		{boundary, d, d, l, l},
		{boundary, d, l, alnumUpper, d},
		{noDigit, d, dot, d, d, d, dot},
		{noDigit, d, d, dot, d, d, d, dot},
	}
}

var alnumUpper = classOf("A-Z0-9")

func (r *maskRec) recognize(v *view, at, _ int, emit *emitter) {
	if r.letters {
		for i := at; at > 0 && i-at < lettersBefore && isUpper(v.buf[at-1]); {
			at--
		}
		v.from = at
	}
	if prev := v.at(at - 1); isWord(prev) || (prev == '-' || prev == '.' || prev == ':') && isDigit(v.at(at-2)) {
		return
	}
	for i := range r.entries {
		e := &r.entries[i]
		end, ok := e.match(v, at)
		if ok {
			emit.add(e.typ, at, end, v.graded(e.rule.l, at, end, e.rule.context))
		}
	}
}

// match matches e's mask at i and checks what it is.
func (e *maskEntry) match(v *view, i int) (int, bool) {
	b := v.scratch[:0]
	for k := range len(e.mask) {
		var ok bool
		c := v.at(i)
		switch m := e.mask[k]; m {
		case '?':
			if c == ' ' || c == '-' {
				i++
			}
			continue
		case 'l':
			ok = isUpper(c)
		case 'd':
			ok = isDigit(c)
		case 'a':
			ok = isUpper(c) || isDigit(c)
		default:
			if ok = c == m; ok && !isAlnum(m) {
				i++
				continue
			}
		}
		if !ok {
			return 0, false
		}
		b = append(b, c)
		i++
	}
	if next := v.at(i); isWord(next) || next == '-' && isAlnum(v.at(i+1)) {
		return 0, false
	}
	return i, e.rule.valid == nil || e.rule.valid(b)
}

// digitsOf makes values of digit characters.
func digitsOf(s []byte) []byte {
	out := make([]byte, 0, 24)
	for _, c := range s {
		out = append(out, c-'0')
	}
	return out
}

func onlyDigits(s []byte) bool {
	return !slices.ContainsFunc(s, func(c byte) bool { return !isDigit(c) })
}

// base36 is the value of a digit or an upper-case letter.
func base36(c byte) int {
	if isDigit(c) {
		return int(c - '0')
	}
	return int(c-'A') + 10
}
