package dlp

func (r *numberRec) socialSecurity(v *view, n *number, emit *emitter) {
	area, group, serial := n.value(0, 3), n.value(3, 5), n.value(5, 9)
	if area == 0 || area == 666 || area >= 900 || group == 0 || serial == 0 {
		return
	}
	switch n.value(0, 9) {
	case 78051120, 219099999: // printed on sample cards
		return
	}
	l := VeryUnlikely
	switch {
	case n.shape("-", 3, 2, 4):
		l = Likely
	case n.shape(" .", 3, 2, 4):
		l = Possible
	case n.groups != 1:
		return
	}
	emit.add(r.ssn, n.start, n.ends[n.groups-1], v.graded(l, n.start, n.ends[n.groups-1], contextSSN))
}

func (r *numberRec) taxpayer(v *view, n *number, emit *emitter) {
	g := n.value(3, 5)
	if n.d[0] != 9 || ((g < 50 || g > 65) && (g < 70 || g > 88) && (g < 90 || g > 92) && g < 94) {
		return
	}
	l := VeryUnlikely
	switch {
	case n.shape("-", 3, 2, 4):
		l = Likely
	case n.shape(" ", 3, 2, 4):
		l = Possible
	case n.groups != 1:
		return
	}
	emit.add(r.itin, n.start, n.ends[n.groups-1], v.graded(l, n.start, n.ends[n.groups-1], contextITIN))
}

func (r *numberRec) letterPassport(v *view, n *number, at int, emit *emitter) {
	if n.groups != 1 || n.n != 8 || n.more || isWord(v.at(at-1)) || isWord(v.at(n.ends[0])) {
		return
	}
	l := VeryUnlikely
	emit.add(r.passport, at, n.ends[0], v.boost(l, at, contextPassport))
}

// health is the NHS number: ten digits, modulus 11.
func (r *numberRec) health(v *view, n *number, emit *emitter) {
	sum := 0
	for i := range 9 {
		sum += (10 - i) * int(n.d[i])
	}
	check := (11 - sum%11) % 11
	if check == 10 || check != int(n.d[9]) {
		return
	}
	l := VeryUnlikely
	switch {
	case n.shape(" -", 3, 3, 4):
		l = Unlikely
	case n.groups != 1:
		return
	}
	emit.add(r.nhs, n.start, n.ends[n.groups-1], v.graded(l, n.start, n.ends[n.groups-1], contextNHS))
}

func (r *numberRec) socialInsurance(v *view, n *number, emit *emitter) {
	if n.d[0] == 0 || n.d[0] == 8 || !luhn(n.d[:9]) {
		return
	}
	l := VeryUnlikely
	switch {
	case n.shape("-", 3, 3, 3):
		l = Possible
	case n.shape(" ", 3, 3, 3):
		l = Unlikely
	case n.groups != 1:
		return
	}
	emit.add(r.sin, n.start, n.ends[n.groups-1], v.graded(l, n.start, n.ends[n.groups-1], contextSIN))
}

// germanTax is the Steuer-ID: ISO 7064 mod 11,10, and exactly one digit occurs
// two or three times among the first ten.
func (r *numberRec) germanTax(v *view, n *number, emit *emitter) {
	if n.d[0] == 0 {
		return
	}
	var count [10]int
	for _, d := range n.d[:10] {
		count[d]++
	}
	repeated := 0
	for _, c := range count {
		if c > 3 {
			return
		}
		if c > 1 {
			repeated++
		}
	}
	if repeated != 1 {
		return
	}
	p := 10
	for _, d := range n.d[:10] {
		s := (int(d) + p) % 10
		if s == 0 {
			s = 10
		}
		p = s * 2 % 11
	}
	if (11-p)%10 != int(n.d[10]) {
		return
	}
	l := Unlikely
	switch {
	case n.shape(" ", 2, 3, 3, 3):
		l = Likely
	case n.groups != 1:
		return
	}
	emit.add(r.taxID, n.start, n.ends[n.groups-1], v.graded(l, n.start, n.ends[n.groups-1], contextDETax))
}

// brazilian is the CPF with its two check digits.
func (r *numberRec) brazilian(v *view, n *number, emit *emitter) {
	for k := 9; k <= 10; k++ {
		sum := 0
		for i := range k {
			sum += (k + 1 - i) * int(n.d[i])
		}
		if sum*10%11%10 != int(n.d[k]) {
			return
		}
	}
	l := Unlikely
	switch {
	case n.groups == 4 && n.size[0] == 3 && n.size[1] == 3 && n.size[2] == 3 && n.sep[1] == '.' && n.sep[2] == '.' && n.sep[3] == '-':
		l = VeryLikely
	case n.groups != 1:
		return
	}
	emit.add(r.cpf, n.start, n.ends[n.groups-1], v.graded(l, n.start, n.ends[n.groups-1], contextCPF))
}

// frenchNIR is the INSEE number: sex, year, month, department, serial and the
// key 97 - n mod 97. Corsican letters are not covered.
func (r *numberRec) frenchNIR(v *view, n *number, emit *emitter) {
	if !n.closed(v, n.groups) {
		return
	}
	month := n.value(3, 5)
	if n.d[0] != 1 && n.d[0] != 2 || month == 0 || month > 12 && month < 20 || month > 42 && month < 50 {
		return
	}
	rem := 0
	for _, d := range n.d[:13] {
		rem = (rem*10 + int(d)) % 97
	}
	if 97-rem != n.value(13, 15) {
		return
	}
	l := Possible
	switch {
	case n.shape(" ", 1, 2, 2, 2, 3, 3, 2), n.shape(" ", 13, 2):
		l = VeryLikely
	case n.groups != 1:
		return
	}
	emit.add(r.nir, n.start, n.ends[n.groups-1], v.graded(l, n.start, n.ends[n.groups-1], contextNIR))
}

// aadhaarNumber has twelve digits with a Verhoeff check digit.
func (r *numberRec) aadhaarNumber(v *view, n *number, emit *emitter) {
	if n.d[0] < 2 || !verhoeff(n.d[:12]) {
		return
	}
	l := Unlikely
	switch {
	case n.shape(" -", 4, 4, 4):
		l = Possible
	case n.groups != 1:
		return
	}
	emit.add(r.aadhaar, n.start, n.ends[n.groups-1], v.graded(l, n.start, n.ends[n.groups-1], contextAadhaar))
}

var verhoeffPermutation = [8][10]byte{
	{0, 1, 2, 3, 4, 5, 6, 7, 8, 9},
	{1, 5, 7, 6, 2, 8, 3, 0, 9, 4},
	{5, 8, 0, 3, 7, 9, 6, 1, 4, 2},
	{8, 9, 1, 6, 0, 4, 3, 5, 2, 7},
	{9, 4, 5, 3, 1, 2, 6, 8, 7, 0},
	{4, 2, 8, 6, 5, 7, 3, 9, 0, 1},
	{2, 7, 9, 3, 8, 0, 6, 4, 1, 5},
	{7, 0, 4, 6, 9, 1, 3, 2, 5, 8},
}

// dihedral multiplies in the group of symmetries of a pentagon.
func dihedral(a, b byte) byte {
	if a < 5 {
		if b < 5 {
			return (a + b) % 5
		}
		return 5 + (a+b)%5
	}
	if b < 5 {
		return 5 + (a-b)%5
	}
	return (a - b + 5) % 5
}

func verhoeff(d []byte) bool {
	c := byte(0)
	for i := range d {
		c = dihedral(c, verhoeffPermutation[i%8][d[len(d)-1-i]])
	}
	return c == 0
}
