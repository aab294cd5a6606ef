package dlp

// tokenRule is a credential with a fixed beginning: the shape that its issuer
// documents, or that it is known to have.
type tokenRule struct {
	typ, shape string
	likelihood Likelihood // of a match; 0 is VeryLikely
}

// tokenRec recognizes the tokens of one type.
type tokenRec struct {
	typ        int
	shapes     []template
	likelihood []Likelihood
}

func newTokens(types map[string]int) []recognizer {
	byType := map[int]*tokenRec{}
	var out []recognizer
	for _, t := range tokenRules {
		typ, ok := types[t.typ]
		if !ok {
			continue
		}
		r := byType[typ]
		if r == nil {
			r = &tokenRec{typ: typ}
			byType[typ] = r
			out = append(out, r)
		}
		l := t.likelihood
		if l == 0 {
			l = VeryLikely
		}
		r.shapes = append(r.shapes, newTemplate(t.shape))
		r.likelihood = append(r.likelihood, l)
	}
	if typ, ok := types[azureToken]; ok {
		out = append(out, &azureRec{typ})
	}
	if typ, ok := types[awsCredentials]; ok {
		out = append(out, &awsSecretRec{typ})
	}
	return out
}

func (r *tokenRec) patterns() [][]set {
	out := make([][]set, len(r.shapes))
	for i := range r.shapes {
		out[i] = exactly(r.shapes[i].prefix)
	}
	return out
}

func (r *tokenRec) recognize(v *view, at, id int, emit *emitter) {
	t := &r.shapes[id]
	if isWord(t.prefix[0]) && isAlnum(v.at(at-1)) {
		return
	}
	body := at + len(t.prefix)
	start, end := t.match(v, body)
	if end == 0 || isWord(v.at(end)) || start < at {
		return
	}
	if entropy(v.buf[body:end]) < 2 { // AKIAXXXXXXXXXXXXXXXX
		return
	}
	emit.add(r.typ, start, end, r.likelihood[id])
}

// backRec recognizes tokens whose fixed part is in the middle: a run of bytes
// of a class comes before it.
type backRec struct {
	typ       int
	anchor    []set
	class     set
	low, high int
	after     template
	// within is how much of the anchor counts as part of the run.
	within int
}

func (r *backRec) patterns() [][]set { return [][]set{r.anchor} }

func (r *backRec) tail() tail { return tail{class: &r.class, max: r.high, before: true} }

func (r *backRec) recognize(v *view, at, _ int, emit *emitter) {
	end := at + r.within
	start := end
	for start > 0 && end-start <= r.high && r.class.has(v.buf[start-1]) {
		start--
	}
	if n := end - start; n < r.low || n > r.high || isWord(v.at(start-1)) {
		return
	}
	v.from = start
	// The template's prefix is the literal part of the anchor.
	_, stop := r.after.match(v, end+len(r.after.prefix))
	if stop == 0 || isWord(v.at(stop)) || entropy(v.buf[start:stop]) < 2.5 {
		return
	}
	emit.add(r.typ, start, stop, VeryLikely)
}

func newBack(typ int, class string, low, high int, after string) *backRec {
	r := &backRec{typ: typ, class: tokenClass(class), low: low, high: high, after: newTemplate(after), within: 2}
	r.anchor = append([]set{r.class, r.class}, exactly(r.after.prefix)...)
	return r
}

// azureRec finds client secrets of Entra ID: three characters, a digit, "Q~"
// and 31 to 34 more.
type azureRec struct{ typ int }

var azureClass = tokenClass("A-Za-z0-9_.~-")

func (r *azureRec) patterns() [][]set {
	return [][]set{{classOf("0-9"), classOf("Q"), classOf("~")}}
}

func (r *azureRec) tail() tail { return tail{class: &azureClass, max: 4, before: true} }

func (r *azureRec) recognize(v *view, at, _ int, emit *emitter) {
	begin := at - 3
	for k := begin; k < at; k++ {
		if !azureClass.has(v.at(k)) {
			return
		}
	}
	if azureClass.has(v.at(begin - 1)) {
		return
	}
	v.from = begin
	start := at + 3
	end := v.span(start, 35, &azureClass)
	if n := end - start; n >= 31 && n <= 34 {
		emit.add(r.typ, begin, end, VeryLikely)
	}
}

// tokenTypes returns the names in tokenRules.
func tokenTypes() []string {
	var out []string
	for _, t := range tokenRules {
		out = append(out, t.typ)
	}
	return out
}
