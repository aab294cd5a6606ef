package dlp

import (
	"errors"
	"fmt"
)

// wordsRec finds an operator's words.
type wordsRec struct {
	typ        int
	words      []string
	likelihood Likelihood
}

const maxWord = 200

func newWords(w Words, typ int) ([]recognizer, error) {
	if w.Type == "" || len(w.List) == 0 {
		return nil, errors.New("a type and at least one word are required")
	}
	l := w.Likelihood
	if l == 0 {
		l = Likely
	}
	var out []recognizer
	for i, word := range w.List {
		if len(word) < 2 || len(word) > maxWord {
			return nil, fmt.Errorf("word %d has %d bytes: want 2 to %d", i, len(word), maxWord)
		}
	}
	for rest := w.List; len(rest) > 0; {
		n := min(len(rest), 255)
		out = append(out, &wordsRec{typ, rest[:n], l})
		rest = rest[n:]
	}
	return out, nil
}

func (r *wordsRec) patterns() [][]set { return foldedAll(r.words) }

func (r *wordsRec) recognize(v *view, at, id int, emit *emitter) {
	w := r.words[id]
	end := at + len(w)
	if isWord(w[0]) && isWord(v.at(at-1)) || isWord(w[len(w)-1]) && isWord(v.at(end)) {
		return
	}
	emit.add(r.typ, at, end, r.likelihood)
}
