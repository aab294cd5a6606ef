package dlp

// idRule is an identifier of digits only: how many, a check of them, how they
// are grouped, and what stands before them.
type idRule struct {
	typ    string
	digits int
	valid  func(d []byte) bool
	forms  []form
	// bare is the likelihood without separators, 0 if that is no form.
	bare    Likelihood
	context []string
}

// form is a way of grouping digits.
type form struct {
	seps       string // one of these, the same throughout
	each       bool   // or one after the other
	sizes      []int
	likelihood Likelihood
}

func in(seps string, l Likelihood, sizes ...int) form {
	return form{seps: seps, sizes: sizes, likelihood: l}
}

func mixed(seps string, l Likelihood, sizes ...int) form {
	return form{seps: seps, each: true, sizes: sizes, likelihood: l}
}

func (f *form) fits(n *number) bool {
	switch {
	case n.groups != len(f.sizes):
		return false
	case !f.each:
		return n.shape(f.seps, f.sizes...)
	}
	for g, size := range f.sizes {
		if n.size[g] != size || g > 0 && n.sep[g] != f.seps[g-1] {
			return false
		}
	}
	return true
}

// weighted returns the sum of d[i]*w[i].
func weighted(d []byte, w ...int) int {
	sum := 0
	for i, x := range w {
		sum += x * int(d[i])
	}
	return sum
}

// decimal is the value of d, which has at most 18 digits.
func decimal(d []byte) int {
	x := 0
	for _, c := range d {
		x = 10*x + int(c)
	}
	return x
}

// dated reports whether month and day are those of a date.
func dated(month, day []byte) bool {
	m, d := decimal(month), decimal(day)
	return m >= 1 && m <= 12 && d >= 1 && d <= 31
}

// mod11x10 is ISO 7064 MOD 11,10, whose check digit is the last of d.
func mod11x10(d []byte) bool {
	p := 10
	for _, c := range d[:len(d)-1] {
		s := (int(c) + p) % 10
		if s == 0 {
			s = 10
		}
		p = s * 2 % 11
	}
	return (11-p)%10 == int(d[len(d)-1])
}

func elevenProof(d []byte) bool { return weighted(d, 9, 8, 7, 6, 5, 4, 3, 2, -1)%11 == 0 }

// ean is the check digit of article numbers.
func ean(d []byte) bool {
	sum := 0
	for i := range d {
		sum += int(d[len(d)-1-i]) * (1 + 2*(i%2))
	}
	return sum%10 == 0
}

func abn(d []byte) bool {
	sum := weighted(d, 10, 1, 3, 5, 7, 9, 11, 13, 15, 17, 19) - 10
	return d[0] > 0 && sum%89 == 0
}

func medicareAU(d []byte) bool {
	return d[0] >= 2 && d[0] <= 6 && weighted(d, 1, 3, 7, 9, 1, 3, 7, 9)%10 == int(d[8]) && d[9] > 0
}

func svnrAT(d []byte) bool {
	return d[0] > 0 && weighted(d, 3, 7, 9, 0, 5, 8, 4, 2, 1, 6)%11 == int(d[3]) && dated(d[6:8], d[4:6])
}

func nationalBE(d []byte) bool {
	n, check := decimal(d[:9]), decimal(d[9:])
	month := decimal(d[2:4]) % 20
	return month <= 12 && decimal(d[4:6]) <= 31 && (97-n%97 == check || 97-(n+2_000_000_000)%97 == check)
}

func cnpj(d []byte) bool {
	a := weighted(d, 5, 4, 3, 2, 9, 8, 7, 6, 5, 4, 3, 2) * 10 % 11 % 10
	b := weighted(d, 6, 5, 4, 3, 2, 9, 8, 7, 6, 5, 4, 3, 2) * 10 % 11 % 10
	return a == int(d[12]) && b == int(d[13])
}

func egn(d []byte) bool {
	m := decimal(d[2:4])
	return m%20 >= 1 && m%20 <= 12 && m < 53 && decimal(d[4:6]) <= 31 && d[4]+d[5] > 0 && weighted(d, 2, 4, 8, 5, 10, 9, 7, 3, 6)%11%10 == int(d[9])
}

func residentCN(d []byte) bool {
	y := decimal(d[6:10])
	return d[0] > 0 && d[0] < 9 && y >= 1900 && y < 2100 && dated(d[10:12], d[12:14]) &&
		weighted(d, 7, 9, 10, 5, 8, 4, 2, 1, 6, 3, 7, 9, 10, 5, 8, 4, 2, 1)%11 == 1
}

func rodneCislo(d []byte) bool {
	m := decimal(d[2:4]) % 50
	return (m >= 1 && m <= 12 || m >= 21 && m <= 32) && decimal(d[4:6]) >= 1 && decimal(d[4:6]) <= 31 && decimal(d[:9])%11%10 == int(d[9])
}

func cpr(d []byte) bool { return dated(d[2:4], d[:2]) }

// isikukood is the personal code of Estonia and Lithuania.
func isikukood(d []byte) bool {
	if d[0] < 1 || d[0] > 8 || !dated(d[3:5], d[5:7]) {
		return false
	}
	c := weighted(d, 1, 2, 3, 4, 5, 6, 7, 8, 9, 1) % 11
	if c == 10 {
		c = weighted(d, 3, 4, 5, 6, 7, 8, 9, 1, 2, 3) % 11 % 10
	}
	return c == int(d[10])
}

func amka(d []byte) bool { return dated(d[2:4], d[:2]) && luhn(d) }

func vatIT(d []byte) bool { return decimal(d[:7]) > 0 && luhn(d) }

func myNumber(d []byte) bool {
	c := 11 - weighted(d, 6, 5, 4, 3, 2, 7, 6, 5, 4, 3, 2)%11
	if c >= 10 {
		c = 0
	}
	return c == int(d[11])
}

func rrn(d []byte) bool {
	return dated(d[2:4], d[4:6]) && d[6] >= 1 && d[6] <= 8 && (11-weighted(d, 2, 3, 4, 5, 6, 7, 8, 9, 2, 3, 4, 5)%11)%10 == int(d[12])
}

func fodselsnummer(d []byte) bool {
	day := decimal(d[:2])
	return (day >= 1 && day <= 31 || day >= 41 && day <= 71) && decimal(d[2:4]) >= 1 && decimal(d[2:4]) <= 12 &&
		weighted(d, 3, 7, 6, 1, 8, 9, 4, 5, 2, 1)%11 == 0 && weighted(d, 5, 4, 3, 2, 7, 6, 5, 4, 3, 2, 1)%11 == 0
}

func ird(d []byte) bool {
	n := decimal(d)
	if n < 10_000_000 || n > 150_000_000 {
		return false
	}
	c := -weighted(d, 3, 2, 7, 6, 5, 4, 3, 2) % 11
	if c < 0 {
		c += 11
	}
	if c == 10 {
		if c = -weighted(d, 7, 4, 3, 2, 5, 2, 7, 6) % 11; c < 0 {
			c += 11
		}
	}
	return c == int(d[8])
}

func pesel(d []byte) bool {
	m := decimal(d[2:4]) % 20
	return m >= 1 && m <= 12 && decimal(d[4:6]) >= 1 && decimal(d[4:6]) <= 31 && weighted(d, 1, 3, 7, 9, 1, 3, 7, 9, 1, 3, 1)%10 == 0
}

func nip(d []byte) bool {
	return d[0] > 0 && weighted(d, 6, 5, 7, 2, 3, 4, 5, 6, 7)%11 == int(d[9])
}

func regon(d []byte) bool { return weighted(d, 8, 9, 2, 3, 4, 5, 6, 7)%11%10 == int(d[8]) }

func nifPT(d []byte) bool {
	return d[0] > 0 && (11-weighted(d, 9, 8, 7, 6, 5, 4, 3, 2)%11)%11%10 == int(d[8])
}

func cnp(d []byte) bool {
	c := weighted(d, 2, 7, 9, 1, 4, 6, 3, 5, 8, 2, 7, 9) % 11
	if c == 10 {
		c = 1
	}
	return d[0] > 0 && dated(d[3:5], d[5:7]) && c == int(d[12])
}

func idZA(d []byte) bool { return dated(d[2:4], d[4:6]) && d[10] < 2 && luhn(d) }

func personnummer(d []byte) bool {
	d = d[len(d)-10:]
	day := decimal(d[4:6])
	if day > 60 {
		day -= 60 // coordination number
	}
	return decimal(d[2:4]) >= 1 && decimal(d[2:4]) <= 12 && day >= 1 && day <= 31 && luhn(d)
}

func personnummer12(d []byte) bool {
	return (d[0] == 1 && d[1] == 9 || d[0] == 2 && d[1] == 0) && personnummer(d)
}

func ahv(d []byte) bool { return d[0] == 7 && d[1] == 5 && d[2] == 6 && ean(d) }

func idTH(d []byte) bool {
	return d[0] > 0 && (11-weighted(d, 13, 12, 11, 10, 9, 8, 7, 6, 5, 4, 3, 2)%11)%10 == int(d[12])
}

func tckn(d []byte) bool {
	odd, even := int(d[0]+d[2]+d[4]+d[6]+d[8]), int(d[1]+d[3]+d[5]+d[7])
	return d[0] > 0 && ((7*odd-even)%10+10)%10 == int(d[9]) && (odd+even+int(d[9]))%10 == int(d[10])
}

func utr(d []byte) bool {
	return int("21987654321"[weighted(d[1:], 6, 7, 8, 9, 10, 5, 4, 3, 2)%11]-'0') == int(d[0])
}

func aba(d []byte) bool {
	p := decimal(d[:2])
	return (p <= 12 || p >= 21 && p <= 32 || p >= 61 && p <= 72 || p == 80) && p > 0 && weighted(d, 3, 7, 1, 3, 7, 1, 3, 7, 1)%10 == 0
}

func npi(d []byte) bool {
	return (d[0] == 1 || d[0] == 2) && luhn(append([]byte{8, 0, 8, 4, 0}, d...))
}

func ein(d []byte) bool {
	switch decimal(d[:2]) {
	case 0, 7, 8, 9, 17, 18, 19, 28, 29, 49, 69, 70, 78, 79, 89, 96, 97:
		return false
	}
	return true
}

func atin(d []byte) bool { return d[0] == 9 && d[3] == 9 && d[4] == 3 }

func cuit(d []byte) bool {
	switch decimal(d[:2]) {
	case 20, 23, 24, 27, 30, 33, 34, 50, 51, 55:
		return (11-weighted(d, 5, 4, 3, 2, 7, 6, 5, 4, 3, 2)%11)%11 == int(d[10])
	}
	return false
}

func cedulaEC(d []byte) bool {
	p := decimal(d[:2])
	return (p >= 1 && p <= 24 || p == 30) && d[2] < 6 && luhn(d)
}

func iin(d []byte) bool {
	c := weighted(d, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11) % 11
	if c == 10 {
		c = weighted(d, 3, 4, 5, 6, 7, 8, 9, 10, 11, 1, 2) % 11
	}
	return dated(d[2:4], d[4:6]) && d[6] <= 6 && c == int(d[11])
}

func inn(d []byte) bool {
	return weighted(d, 7, 2, 4, 10, 3, 5, 9, 4, 6, 8)%11%10 == int(d[10]) && weighted(d, 3, 7, 2, 4, 10, 3, 5, 9, 4, 6, 8)%11%10 == int(d[11])
}

func snils(d []byte) bool {
	return d[0]+d[1]+d[2] > 0 && weighted(d, 9, 8, 7, 6, 5, 4, 3, 2, 1)%101%100 == decimal(d[9:])
}

func rnokpp(d []byte) bool {
	c := weighted(d, -1, 5, 7, 9, 4, 6, 10, 5, 7) % 11
	return ((c+11)%11)%10 == int(d[9])
}

func nricMY(d []byte) bool { return dated(d[2:4], d[4:6]) }

func nik(d []byte) bool {
	day := decimal(d[6:8])
	return d[0] > 0 && (day >= 1 && day <= 31 || day >= 41 && day <= 71) && decimal(d[8:10]) >= 1 && decimal(d[8:10]) <= 12 && decimal(d[12:]) > 0
}

func imei(d []byte) bool { return decimal(d[:2]) > 0 && luhn(d) }

func iccid(d []byte) bool { return d[0] == 8 && d[1] == 9 && luhn(d) }

func acn(d []byte) bool {
	return (10-weighted(d, 8, 7, 6, 5, 4, 3, 2, 1)%10)%10 == int(d[8])
}

func tfn(d []byte) bool { return d[0] > 0 && weighted(d, 1, 4, 3, 7, 5, 8, 6, 9, 10)%11 == 0 }

var idRules = []idRule{
	{"AUSTRALIA_TAX_FILE_NUMBER", 9, tfn, []form{in(" -", Unlikely, 3, 3, 3)}, VeryUnlikely, []string{"tfn", "tax file", "tax_file", "taxfile"}},
	{"AUSTRALIA_MEDICARE_NUMBER", 10, medicareAU, []form{in(" ", Possible, 4, 5, 1)}, VeryUnlikely, []string{"medicare"}},
	{"AUSTRALIA_BUSINESS_NUMBER", 11, abn, []form{in(" ", Likely, 2, 3, 3, 3)}, Unlikely, []string{"abn", "business number"}},
	{"AUSTRALIA_COMPANY_NUMBER", 9, acn, []form{in(" ", Unlikely, 3, 3, 3)}, VeryUnlikely, []string{"acn", "company number"}},
	{"AUSTRIA_SOCIAL_SECURITY_NUMBER", 10, svnrAT, []form{in(" -", Likely, 4, 6)}, Unlikely, []string{"svnr", "sozialversicherung", "sv-nr"}},
	{"BELGIUM_NATIONAL_ID_CARD_NUMBER", 11, nationalBE, []form{mixed("..-.", VeryLikely, 2, 2, 2, 3, 2)}, Unlikely, []string{"rijksregister", "registre national", "national number", "nrn", "niss", "insz"}},
	{"BRAZIL_CNPJ_NUMBER", 14, cnpj, []form{mixed("../-", VeryLikely, 2, 3, 3, 4, 2)}, Unlikely, []string{"cnpj"}},
	{"BULGARIA_PERSONAL_ID_NUMBER", 10, egn, nil, VeryUnlikely, []string{"egn", "егн", "ЕГН"}},
	{"CHINA_RESIDENT_ID_NUMBER", 18, residentCN, nil, VeryLikely, []string{"resident", "身份证"}},
	{"CROATIA_PERSONAL_ID_NUMBER", 11, mod11x10, nil, VeryUnlikely, []string{"oib"}},
	{"CZECHIA_PERSONAL_ID_NUMBER", 10, rodneCislo, []form{in("/", Likely, 6, 4)}, VeryUnlikely, []string{"rodn", "birth number"}},
	{"DENMARK_CPR_NUMBER", 10, cpr, []form{in("-", Possible, 6, 4)}, VeryUnlikely, []string{"cpr", "personnummer"}},
	{"ESTONIA_PERSONAL_ID_NUMBER", 11, isikukood, nil, Unlikely, []string{"isikukood", "asmens kodas", "personal code"}},
	{"FRANCE_SIREN_NUMBER", 9, luhn, []form{in(" ", Unlikely, 3, 3, 3)}, VeryUnlikely, []string{"siren", "rcs"}},
	{"FRANCE_SIRET_NUMBER", 14, luhn, []form{in(" ", Likely, 3, 3, 3, 5)}, VeryUnlikely, []string{"siret"}},
	{"GREECE_AMKA_NUMBER", 11, amka, nil, VeryUnlikely, []string{"amka", "αμκα"}},
	{"ISRAEL_IDENTITY_CARD_NUMBER", 9, luhn, nil, VeryUnlikely, []string{"teudat", "israel", "תעודת"}},
	{"ITALY_VAT_NUMBER", 11, vatIT, nil, VeryUnlikely, []string{"partita iva", "p.iva", "p. iva", "piva", "partita_iva"}},
	{"JAPAN_INDIVIDUAL_NUMBER", 12, myNumber, []form{in(" -", Unlikely, 4, 4, 4)}, VeryUnlikely, []string{"my number", "mynumber", "my_number", "マイナンバー"}},
	{"KOREA_RRN", 13, rrn, []form{in("-", Likely, 6, 7)}, Unlikely, []string{"rrn", "resident registration", "주민"}},
	{"NETHERLANDS_BSN_NUMBER", 9, elevenProof, []form{in(" .", Unlikely, 4, 2, 3)}, VeryUnlikely, []string{"bsn", "burgerservice", "sofinummer"}},
	{"NORWAY_NI_NUMBER", 11, fodselsnummer, []form{in(" ", Likely, 6, 5)}, Possible, []string{"fødsel", "fodsel", "personnummer", "fnr"}},
	{"NEW_ZEALAND_IRD_NUMBER", 9, ird, []form{in("-", Possible, 3, 3, 3)}, VeryUnlikely, []string{"ird", "inland revenue"}},
	{"POLAND_PESEL_NUMBER", 11, pesel, nil, Unlikely, []string{"pesel"}},
	{"POLAND_NIP_NUMBER", 10, nip, []form{in("-", Possible, 3, 3, 2, 2), in("-", Possible, 3, 2, 2, 3)}, VeryUnlikely, []string{"nip"}},
	{"POLAND_REGON_NUMBER", 9, regon, nil, VeryUnlikely, []string{"regon"}},
	{"PORTUGAL_NIF_NUMBER", 9, nifPT, []form{in(" ", Unlikely, 3, 3, 3)}, VeryUnlikely, []string{"nif", "contribuinte"}},
	{"ROMANIA_CNP_NUMBER", 13, cnp, nil, Unlikely, []string{"cnp", "cod numeric"}},
	{"SOUTH_AFRICA_ID_NUMBER", 13, idZA, []form{in(" ", Likely, 6, 4, 3), in(" ", Likely, 6, 4, 2, 1)}, Unlikely, []string{"id number", "identity number", "south africa", "rsa id", "id_number"}},
	{"SWEDEN_NATIONAL_ID_NUMBER", 10, personnummer, []form{in("-", Likely, 6, 4)}, VeryUnlikely, []string{"personnummer", "samordningsnummer"}},
	{"SWEDEN_NATIONAL_ID_NUMBER", 12, personnummer12, []form{in("-", Likely, 8, 4)}, Unlikely, []string{"personnummer", "samordningsnummer"}},
	{"SWITZERLAND_SOCIAL_SECURITY_NUMBER", 13, ahv, []form{in(".", VeryLikely, 3, 4, 4, 2)}, Possible, []string{"ahv", "avs", "sozialversicherung"}},
	{"THAILAND_NATIONAL_ID_NUMBER", 13, idTH, []form{in(" -", Likely, 1, 4, 5, 2, 1)}, VeryUnlikely, []string{"thai", "บัตรประชาชน"}},
	{"TURKEY_ID_NUMBER", 11, tckn, nil, Unlikely, []string{"tckn", "t.c.", "kimlik"}},
	{"UK_TAXPAYER_REFERENCE", 10, utr, []form{in(" ", Unlikely, 5, 5)}, VeryUnlikely, []string{"utr", "taxpayer reference"}},
	{"US_BANK_ROUTING_MICR", 9, aba, nil, VeryUnlikely, []string{"routing", "aba number", "aba_number", "rtn"}},
	{"US_HEALTHCARE_NPI", 10, npi, nil, VeryUnlikely, []string{"npi", "national provider"}},
	{"US_EMPLOYER_IDENTIFICATION_NUMBER", 9, ein, []form{in("-", Unlikely, 2, 7)}, VeryUnlikely, []string{"ein", "employer id", "employer_id", "tax id", "fein"}},
	{"US_ADOPTION_TAXPAYER_IDENTIFICATION_NUMBER", 9, atin, []form{in("-", Likely, 3, 2, 4)}, VeryUnlikely, []string{"atin", "adoption"}},
	{"ARGENTINA_CUIT_NUMBER", 11, cuit, []form{in("-", Likely, 2, 8, 1)}, Unlikely, []string{"cuit", "cuil"}},
	{"ECUADOR_CEDULA_NUMBER", 10, cedulaEC, nil, VeryUnlikely, []string{"cédula", "cedula"}},
	{"KAZAKHSTAN_IIN_NUMBER", 12, iin, nil, Unlikely, []string{"iin", "иин", "жсн", "ИИН", "ЖСН"}},
	{"RUSSIA_INN_NUMBER", 12, inn, nil, Unlikely, []string{"inn", "инн", "ИНН"}},
	{"RUSSIA_SNILS_NUMBER", 11, snils, []form{mixed("-- ", Likely, 3, 3, 3, 2), mixed("---", Likely, 3, 3, 3, 2)}, VeryUnlikely, []string{"snils", "снилс", "СНИЛС"}},
	{"UKRAINE_TAXPAYER_NUMBER", 10, rnokpp, nil, VeryUnlikely, []string{"rnokpp", "рнокпп", "іпн", "РНОКПП", "ІПН"}},
	{"MALAYSIA_NRIC_NUMBER", 12, nricMY, []form{in("-", Possible, 6, 2, 4)}, VeryUnlikely, []string{"nric", "mykad", "kad pengenalan"}},
	{"INDONESIA_NIK_NUMBER", 16, nik, nil, VeryUnlikely, []string{"nik", "ktp"}},
	{"IMEI_HARDWARE_ID", 15, imei, []form{in("- ", Unlikely, 2, 6, 6, 1)}, Unlikely, []string{"imei"}},
	{"ICCID_NUMBER", 19, iccid, nil, Possible, []string{"iccid", "sim"}},
	{"ICCID_NUMBER", 20, iccid, nil, Possible, []string{"iccid", "sim"}},
}

// idRec tries the rules for a number of digits.
type idRec struct {
	types []int
	rules []*idRule
}

// newIDs returns the wanted rules by number of digits.
func newIDs(types map[string]int) (out [maxNumber + 1]idRec, any bool) {
	for i := range idRules {
		r := &idRules[i]
		if typ, ok := types[r.typ]; ok {
			out[r.digits].types = append(out[r.digits].types, typ)
			out[r.digits].rules = append(out[r.digits].rules, r)
			any = true
		}
	}
	return out, any
}

func idTypes() []string {
	out := make([]string, len(idRules))
	for i := range idRules {
		out[i] = idRules[i].typ
	}
	return out
}

func (r *idRec) try(v *view, n *number, emit *emitter) {
	end := n.ends[n.groups-1]
	for i, rule := range r.rules {
		l := rule.bare
		if n.groups > 1 {
			l = 0
			for _, f := range rule.forms {
				if f.fits(n) {
					l = f.likelihood
				}
			}
		}
		if l > 0 && rule.valid(n.d[:n.n]) {
			emit.add(r.types[i], n.start, end, v.graded(l, n.start, end, rule.context))
		}
	}
}
