package dlp

import "strings"

func has(set string, c byte) bool { return strings.IndexByte(set, c) >= 0 }

func deaNumber(s []byte) bool {
	d := digitsOf(s[2:])
	return has("ABCDEFGHJKLMPRSTUX", s[0]) && int(d[0]+d[2]+d[4]+2*(d[1]+d[3]+d[5]))%10 == int(d[6])
}

// beneficiary is Medicare's identifier: it has no S, L, O, I, B and Z.
func beneficiary(s []byte) bool {
	for _, c := range s {
		if has("SLOIBZ", c) {
			return false
		}
	}
	return s[0] != '0'
}

func insuranceUK(s []byte) bool {
	switch string(s[:2]) {
	case "BG", "GB", "NK", "KN", "TN", "NT", "ZZ":
		return false
	}
	return !has("DFIQUV", s[0]) && !has("DFIQUVO", s[1]) && has("ABCD", s[8])
}

// licenceUK is five characters of the surname, the birthday, initials.
func licenceUK(s []byte) bool {
	for i, c := range s[1:5] {
		if c != '9' && !isUpper(c) || s[i] == '9' && c != '9' {
			return false
		}
	}
	d := digitsOf(s[5:11])
	month := decimal(d[1:3]) % 50
	return month >= 1 && month <= 12 && decimal(d[3:5]) >= 1 && decimal(d[3:5]) <= 31 && (isUpper(s[12]) || s[12] == '9') && isUpper(s[14]) && isUpper(s[15])
}

func panIN(s []byte) bool { return has("ABCFGHLJPT", s[3]) }

func gstin(s []byte) bool {
	if st := decimal(digitsOf(s[:2])); st < 1 || st > 38 && st != 97 {
		return false
	}
	sum := 0
	for i, c := range s[:14] {
		p := base36(c) * (1 + i%2)
		sum += p/36 + p%36
	}
	return (36-sum%36)%36 == base36(s[14]) && panIN(s[2:12])
}

// fiscalIT is the codice fiscale; letters may stand for digits where two
// persons would share a code.
func fiscalIT(s []byte) bool {
	odd := [...]int{1, 0, 5, 7, 9, 13, 15, 17, 19, 21, 2, 4, 18, 20, 11, 3, 6, 8, 12, 14, 16, 10, 22, 25, 24, 23}
	sum := 0
	for i, c := range s[:15] {
		x := base36(c)
		if isUpper(c) {
			x = int(c - 'A')
		}
		if i%2 == 0 {
			x = odd[x]
		}
		sum += x
	}
	for _, i := range []int{6, 7, 9, 10, 12, 13, 14} {
		if !isDigit(s[i]) && !has("LMNPQRSTUV", s[i]) {
			return false
		}
	}
	return has("ABCDEHLMPRST", s[8]) && sum%26 == int(s[15]-'A')
}

func curp(s []byte) bool {
	sum := 0
	for i, c := range s[:17] {
		x := base36(c)
		if c > 'N' { // after N comes Ñ
			x++
		}
		sum += x * (18 - i)
	}
	return has("HMX", s[10]) && dated(digitsOf(s[6:8]), digitsOf(s[8:10])) && (10-sum%10)%10 == int(s[17]-'0')
}

func rfc(s []byte) bool {
	sum := 0
	for i, c := range s[:12] {
		x := base36(c)
		if c > 'N' {
			x++
		}
		sum += x * (13 - i)
	}
	return dated(digitsOf(s[6:8]), digitsOf(s[8:10])) && "0123456789A"[(11-sum%11)%11] == s[12]
}

func nricSG(s []byte) bool {
	sum := weighted(digitsOf(s[1:8]), 2, 7, 6, 5, 4, 3, 2)
	switch s[0] {
	case 'S':
		return "JZIHGFEDCBA"[sum%11] == s[8]
	case 'T':
		return "JZIHGFEDCBA"[(sum+4)%11] == s[8]
	case 'F':
		return "XWUTRQPNMLK"[sum%11] == s[8]
	case 'G':
		return "XWUTRQPNMLK"[(sum+4)%11] == s[8]
	}
	return false
}

func idTW(s []byte) bool {
	const order = "ABCDEFGHJKLMNPQRSTUVXYWZIO"
	x := strings.IndexByte(order, s[0]) + 10
	d := digitsOf(s[1:])
	return (d[0] == 1 || d[0] == 2) && (x/10+x%10*9+weighted(d, 8, 7, 6, 5, 4, 3, 2, 1, 1))%10 == 0
}

func idHK(s []byte) bool {
	check := s[len(s)-1]
	body := s[:len(s)-1]
	sum, w := 0, 9
	if len(body) == 7 {
		sum, w = 36*9, 8
	}
	for _, c := range body {
		sum += base36(c) * w
		w--
	}
	c := (11 - sum%11) % 11
	return c == 10 && check == 'A' || c < 10 && check == byte('0'+c)
}

const dniLetters = "TRWAGMYFPDXBNJZSQVHLCKE"

func dni(s []byte) bool { return dniLetters[decimal(digitsOf(s[:8]))%23] == s[8] }

func nie(s []byte) bool {
	return dniLetters[(int(s[0]-'X')*10_000_000+decimal(digitsOf(s[1:8])))%23] == s[8]
}

func cif(s []byte) bool {
	if !has("ABCDEFGHJNPQRSUVW", s[0]) || !onlyDigits(s[1:8]) {
		return false
	}
	sum := 0
	for i, x := range digitsOf(s[1:8]) {
		if i%2 == 0 {
			x *= 2
		}
		sum += int(x/10 + x%10)
	}
	c := (10 - sum%10) % 10
	return s[8] == byte('0'+c) || s[8] == "JABCDEFGHI"[c]
}

func ppsn(s []byte) bool {
	sum := weighted(digitsOf(s[:7]), 8, 7, 6, 5, 4, 3, 2)
	if len(s) == 9 {
		if !has("ABCDEFGHI", s[8]) {
			return false
		}
		sum += 9 * int(s[8]-'A'+1)
	}
	return "WABCDEFGHIJKLMNOPQRSTUV"[sum%23] == s[7]
}

func hetu(s []byte) bool {
	if !dated(digitsOf(s[2:4]), digitsOf(s[:2])) {
		return false
	}
	i := 6
	if s[i] == 'A' {
		i++
	}
	n := decimal(digitsOf(s[:6]))*1000 + decimal(digitsOf(s[i:i+3]))
	return "0123456789ABCDEFHJKLMNPRSTUVWXY"[n%31] == s[i+3]
}

func residentX(s []byte) bool { return residentCN(append(digitsOf(s[:17]), 10)) }

func cardDE(s []byte) bool {
	letters, digits, sum := 0, 0, 0
	for i, c := range s[:9] {
		if has("ABDEIOQSU", c) {
			return false
		}
		letters += btoi(isUpper(c))
		digits += btoi(isDigit(c))
		sum += base36(c) * []int{7, 3, 1}[i%3]
	}
	return letters > 0 && digits > 1 && sum%10 == int(s[9]-'0')
}

func rvnr(s []byte) bool {
	if len(s) != 12 || !dated(digitsOf(s[4:6]), digitsOf(s[2:4])) {
		return false
	}
	x := int(s[8]-'A') + 1
	d := append(append(digitsOf(s[:8]), byte(x/10), byte(x%10)), digitsOf(s[9:])...)
	sum := 0
	for i, w := range []byte{2, 1, 2, 5, 7, 1, 2, 1, 2, 1, 2, 1} {
		p := d[i] * w
		sum += int(p/10 + p%10)
	}
	return sum%10 == int(d[12])
}

func nhi(s []byte) bool {
	sum := 0
	for i, c := range s[:6] {
		x := int(c - '0')
		if i < 3 {
			if c == 'I' || c == 'O' {
				return false
			}
			x = strings.IndexByte("ABCDEFGHJKLMNPQRSTUVWXYZ", c) + 1
		}
		sum += x * (7 - i)
	}
	return sum%11 != 0 && (11-sum%11)%10 == int(s[6]-'0')
}

func rut(s []byte) bool {
	d := digitsOf(s[:len(s)-1])
	sum := 0
	for i := range d {
		sum += int(d[len(d)-1-i]) * (2 + i%6)
	}
	return decimal(d) > 1_000_000 && "0K987654321"[sum%11] == s[len(s)-1]
}

//nolint:gocyclo // a line for each country
func vat(s []byte) bool {
	country, n := string(s[:2]), s[2:]
	if country == "AT" {
		n = s[3:] // behind the U
	}
	if country == "ES" {
		return isUpper(n[0]) && cif(n) || isDigit(n[0]) && dni(n)
	}
	if country == "FR" {
		if !onlyDigits(n[:2]) {
			return false
		}
		siren := decimal(digitsOf(n[2:]))
		return luhn(digitsOf(n[2:])) && (12+3*(siren%97))%97 == decimal(digitsOf(n[:2]))
	}
	if country == "NL" {
		sum := mod97([]byte("NL"), n)
		return sum == 1 || elevenProof(digitsOf(n[:9]))
	}
	d := digitsOf(n)
	switch country {
	case "DE", "HR":
		return (d[0] > 0 || country == "HR") && mod11x10(d)
	case "IT":
		return vatIT(d)
	case "BE":
		return d[0] < 2 && 97-decimal(d[:8])%97 == decimal(d[8:])
	case "AT":
		sum := 0
		for i, x := range d[:7] {
			x *= byte(1 + i%2)
			sum += int(x/10 + x%10)
		}
		return (106-sum)%10 == int(d[7])
	case "PL":
		return nip(d)
	case "PT":
		return nifPT(d)
	case "SE":
		return luhn(d[:10]) && d[10] == 0 && d[11] > 0
	case "DK":
		return d[0] > 0 && weighted(d, 2, 7, 6, 5, 4, 3, 2, 1)%11 == 0
	case "FI":
		return weighted(d, 7, 9, 10, 5, 8, 4, 2, 1)%11 == 0
	case "LU":
		return decimal(d[:6])%89 == decimal(d[6:])
	case "GB":
		sum := weighted(d, 8, 7, 6, 5, 4, 3, 2, 10, 1)
		return sum%97 == 0 || (sum+55)%97 == 0
	case "EL":
		return weighted(d, 256, 128, 64, 32, 16, 8, 4, 2)%11%10 == int(d[8])
	case "SK":
		return d[0] > 0 && has("234789", n[2]) && decimal(d)%11 == 0
	case "SI":
		c := 11 - weighted(d, 8, 7, 6, 5, 4, 3, 2)%11
		return d[0] > 0 && c != 11 && c%10 == int(d[7])
	case "HU":
		return weighted(d, 9, 7, 3, 1, 9, 7, 3, 1)%10 == 0
	}
	return false
}
