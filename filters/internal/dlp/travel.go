package dlp

// Names of the detectors of what machines read from documents and cards.
const (
	passportMRZ = "PASSPORT_MRZ"
	cardTrack   = "CREDIT_CARD_TRACK_NUMBER"
)

// mrzRec recognizes the machine-readable zone of a passport: ICAO 9303, two
// lines of 44 characters.
type mrzRec struct{ typ int }

var mrzClass = classOf("A-Z0-9<")

func (r *mrzRec) patterns() [][]set {
	return [][]set{append(exactly("P<"), maskLetters)}
}

func (r *mrzRec) recognize(v *view, at, _ int, emit *emitter) {
	if isWord(v.at(at-1)) || v.at(at-1) == '<' {
		return
	}
	first := v.span(at, 45, &mrzClass)
	if first-at != 44 {
		return
	}
	i := first
	for i < first+4 && (v.at(i) == '\n' || v.at(i) == '\r' || v.at(i) == ' ' || v.at(i) == '\\' || v.at(i) == 'n' && v.at(i-1) == '\\') {
		i++
	}
	end := v.span(i, 45, &mrzClass)
	if end-i != 44 || i == first {
		return
	}
	s := v.buf[i:end]
	if mrzCheck(s[:9]) == s[9] && mrzCheck(s[13:19]) == s[19] && mrzCheck(s[21:27]) == s[27] {
		emit.add(r.typ, at, end, VeryLikely)
	}
}

// mrzCheck is the check digit of s.
func mrzCheck(s []byte) byte {
	sum := 0
	for i, c := range s {
		if c != '<' {
			sum += base36(c) * []int{7, 3, 1}[i%3]
		}
	}
	return byte('0' + sum%10)
}

// trackRec recognizes the tracks of a card's magnetic stripe: ISO/IEC 7813.
type trackRec struct{ typ int }

func (r *trackRec) patterns() [][]set {
	return [][]set{
		{classOf("%"), classOf("Bb"), maskDigits, maskDigits, maskDigits},
		{classOf(";"), maskDigits, maskDigits, maskDigits, maskDigits},
	}
}

var trackClass = tokenClass("A-Z0-9 ^/.=?-")

func (r *trackRec) recognize(v *view, at, id int, emit *emitter) {
	pan := at + 2 - id
	end := v.span(pan, 20, &maskDigits)
	n := end - pan
	if n < 12 || n > 19 || v.at(end) != "^="[id] || !luhn(digitsOf(v.buf[pan:end])) {
		return
	}
	stop := v.span(end, 60, &trackClass)
	if stop-end < 8 {
		return
	}
	emit.add(r.typ, at, stop, VeryLikely)
}
