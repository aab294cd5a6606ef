package dlp

// nanp is a number of the North American plan: NXX NXX XXXX, with or without a
// leading 1 in its own group.
func (r *numberRec) nanp(v *view, n *number, emit *emitter) {
	d, first := n.d[:n.n], 0
	if n.n == 11 {
		d, first = d[1:], 1
	}
	if !nanpDigits(d) {
		return
	}
	l, words := VeryUnlikely, contextPhone
	switch {
	case n.groups == first+3 && n.size[first] == 3 && n.size[first+1] == 3:
		switch sep := n.sep[first+1]; {
		case sep != n.sep[first+2] || sep == '/':
			return
		case sep == ' ':
			l = Possible
		default:
			l = Likely
		}
	case n.groups != 1:
		return
	default:
		words = contextBare
	}
	emit.add(r.phone, n.start, n.ends[n.groups-1], v.graded(l, n.start, n.ends[n.groups-1], words))
}

// nanpDigits checks area and exchange codes: no leading 0 or 1, no service
// code N11, no area code that is reserved for the plan's expansion.
func nanpDigits(d []byte) bool {
	return d[0] >= 2 && d[3] >= 2 && (d[1] != 1 || d[2] != 1) && (d[4] != 1 || d[5] != 1) && d[1] != 9 &&
		(d[0] != 3 || d[1] != 7) && (d[0] != 9 || d[1] != 6)
}

// parenthesized is (NXX) NXX-XXXX.
func (r *numberRec) parenthesized(v *view, at int, emit *emitter) {
	i := at + 1
	if !isDigit(v.at(i)) || !isDigit(v.at(i+1)) || !isDigit(v.at(i+2)) || v.at(i+3) != ')' || isWord(v.at(at-1)) {
		return
	}
	j := i + 4
	if c := v.at(j); c == ' ' || c == '-' || c == '.' {
		j++
	}
	if !isDigit(v.at(j)) {
		return
	}
	var n number
	n.read(v, j)
	if n.n != 7 || n.more || n.groups > 2 || n.groups == 2 && (n.size[0] != 3 || n.sep[1] == '/') {
		return
	}
	var d [10]byte
	for k := range 3 {
		d[k] = v.buf[i+k] - '0'
	}
	copy(d[3:], n.d[:7])
	end := n.ends[n.groups-1]
	if !nanpDigits(d[:]) || isWord(v.at(end)) {
		return
	}
	emit.add(r.phone, at, end, v.boost(Likely, at, contextPhone))
}

// international is a number of ITU-T E.164 with its plus sign; a national part
// in parentheses, +49 (30) 1234567, is read over.
func (r *numberRec) international(v *view, n *number, at int, emit *emitter) {
	if prev := v.at(at - 1); isWord(prev) || prev == '+' {
		return
	}
	digits := append([]byte(nil), n.d[:n.n]...)
	end, groups, more := n.ends[n.groups-1], n.groups, n.more
	next := v.at(end)
	j := end
	if next == ' ' {
		j++
	}
	if v.at(j) == '(' && isDigit(v.at(j+1)) && n.n <= 3 {
		k := j + 1
		for k < j+6 && isDigit(v.at(k)) {
			digits = append(digits, v.buf[k]-'0')
			k++
		}
		if v.at(k) != ')' {
			return
		}
		k++
		if c := v.at(k); c == ' ' || c == '-' {
			k++
		}
		if !isDigit(v.at(k)) {
			return
		}
		var rest number
		rest.read(v, k)
		digits = append(digits, rest.d[:rest.n]...)
		end, groups, more = rest.ends[rest.groups-1], groups+1+rest.groups, rest.more
	}
	if n.groups == 2 && n.sep[1] == '.' && n.size[1] < 3 { // a decimal fraction
		return
	}
	if isWord(v.at(end)) || more || len(digits) > 15 {
		return
	}
	cc := countryCode(digits)
	if cc == 0 || len(digits)-cc < 6 {
		return
	}
	if digits[0] == 1 && (len(digits) != 11 || !nanpDigits(digits[1:])) {
		return
	}
	l := Likely
	if groups == 1 && len(digits) < 10 {
		l = Possible
	}
	emit.add(r.phone, at, end, v.boost(l, at, contextPhone))
}

// countryCode returns the length of the E.164 country code that d begins with,
// 0 if there is none.
func countryCode(d []byte) int {
	if len(d) < 8 || d[0] == 0 {
		return 0
	}
	if d[0] == 1 || d[0] == 7 {
		return 1
	}
	two := 10*int(d[0]) + int(d[1])
	switch two {
	case 20, 27, 30, 31, 32, 33, 34, 36, 39, 40, 41, 43, 44, 45, 46, 47, 48, 49, 51, 52, 53, 54, 55, 56, 57, 58,
		60, 61, 62, 63, 64, 65, 66, 81, 82, 84, 86, 90, 91, 92, 93, 94, 95, 98:
		return 2
	case 21, 22, 23, 24, 25, 26, 29, 35, 37, 38, 42, 50, 59, 67, 68, 80, 85, 87, 88, 96, 97, 99:
		return 3
	}
	return 0
}
