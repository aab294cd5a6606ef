package dlp

import "bytes"

// Names of the detectors that look at numbers.
const (
	creditCard   = "CREDIT_CARD_NUMBER"
	usSSN        = "US_SOCIAL_SECURITY_NUMBER"
	usITIN       = "US_INDIVIDUAL_TAXPAYER_IDENTIFICATION_NUMBER"
	usPassport   = "US_PASSPORT"
	ukNHS        = "UK_NATIONAL_HEALTH_SERVICE_NUMBER"
	phoneNumber  = "PHONE_NUMBER"
	deTaxID      = "GERMANY_TAXPAYER_IDENTIFICATION_NUMBER"
	frNIR        = "FRANCE_NIR"
	canadaSIN    = "CANADA_SOCIAL_INSURANCE_NUMBER"
	brazilCPF    = "BRAZIL_CPF_NUMBER"
	indiaAadhaar = "INDIA_AADHAAR_INDIVIDUAL"
)

var numberTypes = []string{creditCard, usSSN, usITIN, usPassport, ukNHS, phoneNumber, deTaxID, frNIR, canadaSIN, brazilCPF, indiaAadhaar}

// maxNumber is the most digits that are looked at.
const maxNumber = 20

// number is a run of digits in groups that are divided by single separators.
type number struct {
	d      [maxNumber]byte // values, not characters
	n      int
	size   [maxNumber]int  // digits in each group
	sep    [maxNumber]byte // separator before each group
	ends   [maxNumber]int  // buffer index after each group
	groups int
	start  int
	more   bool // digits go on behind maxNumber
	prev   byte // the byte before, and the one before that
	prev2  byte
}

// read fills n from the digits at i.
func (n *number) read(v *view, i int) {
	*n = number{start: i, prev: v.at(i - 1), prev2: v.at(i - 2)}
	sep := byte(0)
	for {
		g := n.groups
		n.groups++
		n.sep[g] = sep
		for isDigit(v.at(i)) {
			if n.n == maxNumber {
				n.more = true
				n.ends[g] = i
				return
			}
			n.d[n.n] = v.buf[i] - '0'
			n.n++
			n.size[g]++
			i++
		}
		n.ends[g] = i
		sep = v.at(i)
		if sep != ' ' && sep != '-' && sep != '.' && sep != '/' || !isDigit(v.at(i+1)) || n.groups == maxNumber {
			return
		}
		i++
	}
}

// shape reports whether the first groups have the given sizes, all with one of
// the separators in seps and the same.
func (n *number) shape(seps string, sizes ...int) bool {
	if n.groups < len(sizes) {
		return false
	}
	for g, want := range sizes {
		if n.size[g] != want || g > 1 && n.sep[g] != n.sep[1] {
			return false
		}
	}
	if len(sizes) == 1 {
		return true
	}
	for k := range len(seps) {
		if seps[k] == n.sep[1] {
			return true
		}
	}
	return false
}

// closed reports whether a number that consists of the first g groups stands
// alone: no letter or digit touches it and no further group follows.
func (n *number) closed(v *view, g int) bool {
	if n.groups != g || n.more || n.size[g-1] == 0 {
		return false
	}
	return n.open() && !isWord(v.at(n.ends[g-1]))
}

// open reports whether the number's start is free: not the tail of a word or
// of a longer number.
func (n *number) open() bool {
	if isWord(n.prev) {
		return false
	}
	if n.prev == ' ' && n.groups > 1 && n.sep[1] != ' ' {
		return true
	}
	return !isDigit(n.prev2) || n.prev != '-' && n.prev != '.' && n.prev != '/' && n.prev != ' '
}

// same reports whether all of the first k digits are equal.
func (n *number) same(k int) bool {
	for _, d := range n.d[1:k] {
		if d != n.d[0] {
			return false
		}
	}
	return true
}

// value returns digits [from, to) as a number.
func (n *number) value(from, to int) int {
	x := 0
	for _, d := range n.d[from:to] {
		x = 10*x + int(d)
	}
	return x
}

// numberRec recognizes everything that is made of digits.
type numberRec struct {
	// type numbers by detector, -1 if not wanted: no map look-up in the scan
	card, ssn, itin, passport, nhs, phone, taxID, nir, sin, cpf, aadhaar int

	ids [maxNumber + 1]idRec // by number of digits
	any bool                 // there are some
}

func newNumbers(types map[string]int) []recognizer {
	get := func(name string) int {
		if i, ok := types[name]; ok {
			return i
		}
		return -1
	}
	r := &numberRec{
		card: get(creditCard), ssn: get(usSSN), itin: get(usITIN), passport: get(usPassport), nhs: get(ukNHS), phone: get(phoneNumber),
		taxID: get(deTaxID), nir: get(frNIR), sin: get(canadaSIN), cpf: get(brazilCPF), aadhaar: get(indiaAadhaar),
	}
	r.ids, r.any = newIDs(types)
	return []recognizer{r}
}

// The patterns of numberRec.
const (
	patDigits = iota // up to patPlus: three digits, with single separators
	patPlus   = iota + 3
	patParen
	patLetter
)

func (r *numberRec) patterns() [][]set {
	d, s := classOf("0-9"), classOf(" ./")
	s.add('-')
	plus, paren, up := classOf("+"), classOf("("), classOf("A-Z")
	return [][]set{
		{noDigit, d, d, d},
		{noDigit, d, s, d, d},
		{noDigit, d, d, s, d},
		{noDigit, d, s, d, s, d},
		{plus, d},
		{paren, d, d, d},
		{up, d, d, d},
	}
}

func (r *numberRec) recognize(v *view, at, id int, emit *emitter) {
	n := &v.number
	switch id {
	case patPlus:
		if r.phone >= 0 {
			n.read(v, at+1)
			r.international(v, n, at, emit)
		}
		return
	case patParen:
		if r.phone >= 0 {
			r.parenthesized(v, at, emit)
		}
		return
	case patLetter:
		if r.passport >= 0 {
			n.read(v, at+1)
			r.letterPassport(v, n, at, emit)
		}
		return
	}
	if isDigit(v.at(at - 1)) {
		return // the group began earlier
	}
	n.read(v, at)
	if n.n < 9 {
		return
	}
	if r.card >= 0 && n.n >= 13 {
		r.creditCard(v, n, emit)
	}
	r.whole(v, n, emit)
	// "536-90-4399 12": what comes behind a space need not be of the number.
	if n.groups > 2 && n.sep[1] != ' ' {
		for g := 2; g < n.groups; g++ {
			if n.sep[g] == ' ' {
				n.cut(g)
				r.whole(v, n, emit)
				return
			}
		}
	}
}

// cut drops the groups from g on.
func (n *number) cut(g int) {
	n.n, n.more = 0, false
	for _, size := range n.size[:g] {
		n.n += size
	}
	n.groups = g
}

// whole tries what n is as a whole.
func (r *numberRec) whole(v *view, n *number, emit *emitter) {
	if r.nir >= 0 && n.n == 15 {
		r.frenchNIR(v, n, emit)
	}
	if n.n >= 9 && n.n <= 12 {
		r.short(v, n, emit)
	}
	if r.any && n.n < len(r.ids) && len(r.ids[n.n].rules) > 0 && n.closed(v, n.groups) && !n.same(n.n) {
		r.ids[n.n].try(v, n, emit)
	}
}

// short tries the identifiers of 9 to 12 digits.
func (r *numberRec) short(v *view, n *number, emit *emitter) {
	if !n.closed(v, n.groups) || n.same(n.n) {
		return
	}
	switch n.n {
	case 9:
		if r.ssn >= 0 {
			r.socialSecurity(v, n, emit)
		}
		if r.itin >= 0 {
			r.taxpayer(v, n, emit)
		}
		if r.passport >= 0 && n.groups == 1 && v.near(n.start, contextPassport) {
			emit.add(r.passport, n.start, n.ends[0], Likely)
		}
		if r.sin >= 0 {
			r.socialInsurance(v, n, emit)
		}
	case 10:
		if r.nhs >= 0 {
			r.health(v, n, emit)
		}
		if r.phone >= 0 {
			r.nanp(v, n, emit)
		}
	case 11:
		if r.taxID >= 0 {
			r.germanTax(v, n, emit)
		}
		if r.cpf >= 0 {
			r.brazilian(v, n, emit)
		}
		if r.phone >= 0 && n.d[0] == 1 && n.groups >= 4 && n.size[0] == 1 {
			r.nanp(v, n, emit)
		}
	case 12:
		if r.aadhaar >= 0 {
			r.aadhaarNumber(v, n, emit)
		}
	}
}

var (
	contextCard     = []string{"card", "credit", "debit", "visa", "mastercard", "amex", "pan", "cc", "ccn", "payment", "kreditkarte", "carte"}
	contextSSN      = []string{"ssn", "social security", "social_security", "socialsecurity", "social-security", "soc sec"}
	contextITIN     = []string{"itin", "taxpayer", "tax id", "tax_id", "tin"}
	contextPassport = []string{"passport", "passnr", "passeport", "reisepass"}
	contextNHS      = []string{"nhs", "national health", "health service"}
	contextPhone    = []string{"phone", "mobile", "cell", "fax", "call", "contact", "tel", "telephone", "msisdn", "whatsapp", "sms"}
	// contextBare is for ten digits without any separator, which are also what
	// registers and spreadsheet cells hold.
	contextBare    = []string{"phone", "mobile", "fax", "tel", "telephone", "msisdn", "whatsapp", "sms", "cellular"}
	contextDETax   = []string{"steuer", "idnr", "tax id", "taxid", "tin"}
	contextNIR     = []string{"nir", "insee", "secu", "sécu", "securite sociale"}
	contextSIN     = []string{"sin", "social insurance", "assurance sociale", "social_insurance"}
	contextCPF     = []string{"cpf", "cadastro"}
	contextAadhaar = []string{"aadhaar", "aadhar", "uidai", "uid"}
)

// cardIssuer reports whether a card number of length n may begin with the
// digits, and how sure issuer and length are.
func cardIssuer(n *number, length int) bool {
	p2, p3, p4 := n.value(0, 2), n.value(0, 3), n.value(0, 4)
	switch {
	case n.d[0] == 4: // Visa
		return length == 13 || length == 16 || length == 19
	case p2 >= 51 && p2 <= 55, p4 >= 2221 && p4 <= 2720: // Mastercard
		return length == 16
	case p2 == 34 || p2 == 37: // American Express
		return length == 15
	case p4 == 6011, p3 >= 644 && p3 <= 649, p2 == 65: // Discover
		return length >= 16
	case p2 == 62: // UnionPay
		return length >= 16
	case p2 == 35 && p4 >= 3528 && p4 <= 3589: // JCB
		return length >= 16
	case p3 >= 300 && p3 <= 305, p2 == 36, p2 == 38, p2 == 39: // Diners
		return length == 14 || length == 16
	case p4 == 5018, p4 == 5020, p4 == 5038, p4 == 6304, p4 == 6759, p4 >= 6761 && p4 <= 6763: // Maestro
		return length >= 13
	}
	return false
}

func luhn(d []byte) bool {
	sum := 0
	for i := range d {
		x := int(d[len(d)-1-i])
		if i%2 == 1 {
			if x *= 2; x > 9 {
				x -= 9
			}
		}
		sum += x
	}
	return sum%10 == 0
}

// creditCard tries every length that ends with a group, the longest first.
func (r *numberRec) creditCard(v *view, n *number, emit *emitter) {
	if isDigit(n.prev) || isAlpha(n.prev) && !v.gluedBefore(n.start) || n.prev == '.' && isDigit(n.prev2) {
		return
	}
	total := 0
	best, bestG := 0, 0
	for g := range n.groups {
		total += n.size[g]
		if total > 19 {
			break
		}
		if g > 0 && (n.sep[g] == '.' || n.sep[g] == '/') {
			break
		}
		if total >= 13 && cardIssuer(n, total) && luhn(n.d[:total]) {
			best, bestG = total, g+1
		}
	}
	if best == 0 || n.same(best) {
		return
	}
	end := n.ends[bestG-1]
	next := v.at(end)
	if isDigit(next) || isAlpha(next) && !v.gluedBehind(end) || next == '.' && isDigit(v.at(end+1)) {
		return
	}
	l := cardShape(n, best, bestG)
	if l == 0 {
		return
	}
	emit.add(r.card, n.start, end, v.graded(l, n.start, end, contextCard))
}

// maxGlued is the longest word that may touch a card number.
const maxGlued = 16

// gluedBefore reports whether the letters that touch a number at i from the left
// are a word about cards, like "card4111…". Other letters make it a part of an
// identifier.
func (v *view) gluedBefore(i int) bool {
	from := i
	for from > 0 && i-from <= maxGlued && isAlpha(v.buf[from-1]) {
		from--
	}
	var b [maxGlued]byte
	if i-from > maxGlued || from > 0 && isDigit(v.buf[from-1]) {
		return false
	}
	for k, c := range v.buf[from:i] {
		b[k] = lower(c)
	}
	word := b[:i-from]
	for _, w := range gluedCard {
		if bytes.HasPrefix(word, []byte(w)) && len(w) > 3 || string(word) == w {
			return true
		}
	}
	return false
}

var gluedCard = []string{"card", "creditcard", "debitcard", "credit", "debit", "visa", "mastercard", "amex", "pan", "cc", "ccn", "ccnum", "ccnumber"}

// gluedBehind reports whether what touches a number at i from the right is a
// word that follows card numbers: the date or the code.
func (v *view) gluedBehind(i int) bool {
	var b [3]byte
	for k := range b {
		b[k] = lower(v.at(i + k))
	}
	switch string(b[:]) {
	case "exp", "cvv", "cvc":
		return true
	}
	return false
}

func cardShape(n *number, digits, groups int) Likelihood {
	uniform, ones := true, true
	for g := range groups {
		uniform = uniform && (g < 2 || n.sep[g] == n.sep[1])
		ones = ones && n.size[g] == 1
	}
	alone := n.groups == groups && !n.more
	switch {
	case groups == 1 && (digits == 15 || digits == 16):
		return Likely
	case groups == 1: // article numbers, time stamps and identifiers have these lengths, too
		return Unlikely
	case uniform && (n.shape(" -", 4, 4, 4, 4) || n.shape(" -", 4, 6, 5) || n.shape(" -", 4, 6, 4) || n.shape(" -", 4, 4, 4, 4, 3)):
		return Likely
	case ones && uniform && alone && (n.prev != n.sep[1] || !isDigit(n.prev2)):
		return Possible
	case ones:
		return VeryUnlikely
	case uniform && alone, groups == 4 && n.size[0] == 4 && n.size[1] == 4 && n.size[2] == 4 && n.size[3] == 4:
		return Possible
	}
	return Unlikely
}
