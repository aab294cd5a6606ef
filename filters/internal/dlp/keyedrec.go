package dlp

import "strings"

// keyedRec recognizes the value of a keyedRule.
type keyedRec struct {
	typ     int
	words   []string
	value   template
	entropy float64
}

func newKeyed(types map[string]int) []recognizer {
	var out []recognizer
	for _, k := range keyedRules {
		if typ, ok := types[k.typ]; ok {
			out = append(out, &keyedRec{typ: typ, words: strings.Fields(k.keywords), value: newTemplate(k.shape), entropy: k.entropy})
		}
	}
	return out
}

func keyedTypes() []string {
	out := make([]string, len(keyedRules))
	for i := range keyedRules {
		out[i] = keyedRules[i].typ
	}
	return out
}

func (r *keyedRec) patterns() [][]set { return foldedAll(r.words) }

// maxName is how many bytes of a name may follow its keyword.
const maxName = 32

func (r *keyedRec) recognize(v *view, at, id int, emit *emitter) {
	i, ok := v.assigned(at + len(r.words[id]))
	if !ok || !v.literal(i, r.value.prefix) {
		return
	}
	start, end := r.value.match(v, i+len(r.value.prefix))
	if end == 0 || isWord(v.at(end)) || v.at(end) == '-' && isAlnum(v.at(end+1)) {
		return
	}
	digit := false
	for _, c := range v.buf[start:end] {
		digit = digit || isDigit(c)
	}
	if !digit || entropy(v.buf[start:end]) < r.entropy {
		return
	}
	emit.add(r.typ, start, end, Likely)
}

// assigned reads the rest of a name at i, an operator and an opening quote. It
// returns where the value begins.
func (v *view) assigned(i int) (int, bool) {
	for limit := i + maxName; i < limit; i++ {
		if c := v.at(i); !isWord(c) && c != '.' && c != '-' {
			break
		}
	}
	quotes := func() {
		for limit := i + 5; i < limit; i++ {
			if c := v.at(i); c != ' ' && c != '"' && c != '\'' && c != '`' && c != '\t' && c != '\\' {
				return
			}
		}
	}
	quotes()
	operator := i
	for ; i < operator+3; i++ {
		if c := v.at(i); c != '=' && c != ':' && c != '>' && c != ',' && c != '|' && c != '?' {
			break
		}
	}
	if i == operator {
		return 0, false
	}
	quotes()
	return i, true
}
