// Package dlp finds sensitive data in byte streams: card numbers, personal
// identifiers, credentials, and what an operator adds. One automaton passes
// over all bytes and stops at keywords and character classes; only there do
// recognizers look closer, with real validators (checksums, issuer and country
// tables, structure). Names are those of Google's Sensitive Data Protection
// where it has one.
//
// A Scanner holds back only the bytes that a match could still extend over, and
// its findings do not depend on how the stream was cut into pieces.
package dlp

import (
	"errors"
	"fmt"
	"slices"
	"strings"
)

// Likelihood grades a finding as Google's likelihood does.
type Likelihood uint8

// The likelihoods in ascending order. The zero Likelihood is unspecified.
const (
	VeryUnlikely Likelihood = iota + 1
	Unlikely
	Possible
	Likely
	VeryLikely
)

var likelihoodNames = [...]string{"LIKELIHOOD_UNSPECIFIED", "VERY_UNLIKELY", "UNLIKELY", "POSSIBLE", "LIKELY", "VERY_LIKELY"}

// String returns Google's name of l.
func (l Likelihood) String() string {
	if int(l) < len(likelihoodNames) {
		return likelihoodNames[l]
	}
	return likelihoodNames[0]
}

// Bounds of every scanner.
const (
	// MaxMatch is the longest match of any detector, in bytes.
	MaxMatch = 8 << 10
	// history is how far back a recognizer may look: word boundaries and
	// context words.
	history = 128
	// contextBytes is how far before a match context words count.
	contextBytes = 96
)

// ErrTooComplex is returned by a scanner if the data makes the operator's
// regular expressions work far more than data of its size should.
var ErrTooComplex = errors.New("dlp: data too complex for the configured patterns")

// Finding is one match.
type Finding struct {
	// Type indexes Engine.Types.
	Type int
	// Start and End are offsets in the stream.
	Start, End int64
	Likelihood Likelihood
}

// Regex is an operator's regular expression (RE2 syntax).
type Regex struct {
	Type, Pattern string
	// MaxLength bounds a match in bytes; longer ones are cut there. 0 is 256.
	MaxLength  int
	Likelihood Likelihood // 0 is Likely
	// Context words in the bytes before a match raise its likelihood by one.
	Context []string
}

// Words is an operator's list of words, matched as whole words without regard
// to ASCII case.
type Words struct {
	Type       string
	List       []string
	Likelihood Likelihood // 0 is Likely
}

// Options says what an Engine looks for.
type Options struct {
	// Types lists built-in detectors; see Builtin.
	Types   []string
	Regexes []Regex
	Words   []Words
}

// Engine is a compiled set of detectors: immutable and safe for concurrent
// use.
type Engine struct {
	types    []string
	recs     []recognizer
	auto     *automaton
	patterns []patternRef
	tails    []tail
}

// patternRef says whom to call when a pattern of the automaton matched.
type patternRef struct {
	rec    uint16
	length uint8
	id     uint8 // which of the recognizer's patterns
	tail   *tail // if its matches begin before the pattern
}

// tail describes matches that begin before the pattern which reveals them: an
// e-mail address begins before its "@".
type tail struct {
	class *set
	max   int
	// before says that the run of class ends where the pattern begins,
	// otherwise it includes what was seen of it.
	before bool
}

// recognizer looks closer where one of its patterns matched.
type recognizer interface {
	// patterns are the byte sequences to stop at, at most 255. One that begins
	// with boundary or noDigit is only looked for behind such a byte, which is
	// not part of it.
	patterns() [][]set
	// recognize examines v around at, where pattern id begins. What it
	// reports depends on nothing but the bytes read through v. If it may
	// report a match that begins before at, it lowers v.from accordingly,
	// before reading ahead.
	recognize(v *view, at, id int, emit *emitter)
}

// tailer is implemented by recognizers whose matches begin before their
// pattern.
type tailer interface{ tail() tail }

// Types returns the names of the detectors; Finding.Type indexes it.
func (e *Engine) Types() []string { return e.types }

// Builtin returns the names of the built-in detectors, sorted.
func Builtin() []string { return namesOf(groups()) }

// New compiles an engine. Errors name the entry of o that is at fault.
func New(o Options) (*Engine, error) {
	e := &Engine{}
	index := map[string]int{}
	typeOf := func(name string) int {
		i, ok := index[name]
		if !ok {
			i = len(e.types)
			index[name] = i
			e.types = append(e.types, name)
		}
		return i
	}
	known := Builtin()
	want := map[string]int{}
	for i, t := range o.Types {
		if _, ok := slices.BinarySearch(known, t); !ok {
			return nil, fmt.Errorf("types[%d]: %q is not a built-in detector; have %s", i, t, strings.Join(known, ", "))
		}
		want[t] = typeOf(t)
	}
	for _, g := range groups() {
		sub := map[string]int{}
		for _, t := range g.types {
			if i, ok := want[t]; ok {
				sub[t] = i
			}
		}
		if len(sub) > 0 {
			e.recs = append(e.recs, g.make(sub)...)
		}
	}
	for i, r := range o.Regexes {
		rec, err := newRegex(r, typeOf(r.Type))
		if err != nil {
			return nil, fmt.Errorf("regexes[%d] (%s): %w", i, r.Type, err)
		}
		e.recs = append(e.recs, rec)
	}
	for i, w := range o.Words {
		recs, err := newWords(w, typeOf(w.Type))
		if err != nil {
			return nil, fmt.Errorf("words[%d] (%s): %w", i, w.Type, err)
		}
		e.recs = append(e.recs, recs...)
	}
	return e, e.build()
}

func (e *Engine) build() error {
	var pats [][]set
	if len(e.recs) > 1<<16-1 {
		return fmt.Errorf("%d recognizers: too many", len(e.recs))
	}
	for i, r := range e.recs {
		ps := r.patterns()
		if len(ps) > 255 {
			return fmt.Errorf("recognizer %d has %d patterns: too many", i, len(ps))
		}
		ref := patternRef{rec: uint16(i)}
		if t, ok := r.(tailer); ok {
			before := t.tail()
			ref.tail = &before
			e.tails = append(e.tails, before)
		}
		for k, p := range ps {
			pats = append(pats, p)
			ref.length, ref.id = uint8(len(p)-behind(p)), uint8(k)
			e.patterns = append(e.patterns, ref)
		}
	}
	var err error
	e.auto, err = newAutomaton(pats)
	return err
}

// group is a family of built-in detectors that share recognizers.
type group struct {
	types []string
	make  func(types map[string]int) []recognizer
}

// one makes the recognizers of a single detector.
func one(name string, f func(typ int) recognizer) group {
	return group{[]string{name}, func(types map[string]int) []recognizer { return []recognizer{f(types[name])} }}
}

// personal lists the detectors of what belongs to persons, accounts and
// organizations, secrets those of credentials.
func personal() []group {
	return []group{
		{append(idTypes(), numberTypes...), newNumbers},
		one(emailAddress, func(t int) recognizer { return &emailRec{t} }),
		one(ipAddress, func(t int) recognizer { return &ipRec{t} }),
		one(macAddress, func(t int) recognizer { return &macRec{t} }),
		one(ibanCode, func(t int) recognizer { return &ibanRec{t} }),
		{maskTypes(), newMasks},
		{labelledTypes(), newLabelled},
		one(passportMRZ, func(t int) recognizer { return &mrzRec{t} }),
		one(cardTrack, func(t int) recognizer { return &trackRec{t} }),
		{[]string{bitcoinAddress}, func(types map[string]int) []recognizer {
			t := types[bitcoinAddress]
			return []recognizer{&base58Rec{t, "13", []byte{0, 5}}, &bech32Rec{t}}
		}},
		one(ethereumAddress, func(t int) recognizer { return &ethereumRec{t} }),
		one(tronAddress, func(t int) recognizer { return &base58Rec{t, "T", []byte{0x41}} }),
	}
}

func secrets() []group {
	return []group{
		{tokenTypes(), newTokens},
		{keyedTypes(), newKeyed},
		one(privateKey, func(t int) recognizer { return &pemRec{t} }),
		one(jsonWebToken, func(t int) recognizer { return &jwtRec{t} }),
		one(basicAuth, func(t int) recognizer { return &basicRec{t} }),
		one(urlCredentials, func(t int) recognizer { return &urlRec{t} }),
		one(telegramToken, func(t int) recognizer { return newBack(t, "0-9", 8, 10, ":AA[A-Za-z0-9_-]{33}") }),
		one(githubToken, func(t int) recognizer { return &githubRec{t} }),
		one(genericSecret, func(t int) recognizer { return &genericRec{t} }),
	}
}

func groups() []group { return append(personal(), secrets()...) }

// PersonalTypes returns the names of the detectors of personal data, sorted.
func PersonalTypes() []string { return namesOf(personal()) }

// SecretTypes returns the names of the detectors of credentials, sorted.
func SecretTypes() []string { return namesOf(secrets()) }

func namesOf(gs []group) []string {
	var out []string
	for _, g := range gs {
		out = append(out, g.types...)
	}
	slices.Sort(out)
	return slices.Compact(out)
}
