package dlp

import (
	"bytes"
	"errors"
	"fmt"
	"math/rand/v2"
	"strings"
	"testing"

	"github.com/fairlead-mesh/fairlead/internal/sweep"
)

// outcomeOf scans text in pieces that end at cuts and returns everything that
// can be observed.
type outcomeOf struct {
	findings []string
	out      string
	blocked  bool
	err      error
	held     int
}

func (o outcomeOf) String() string {
	return fmt.Sprintf("%v blocked=%v err=%v out=%q", o.findings, o.blocked, o.err, o.out)
}

func scan(e *Engine, text string, cuts []int, edit func(Finding, []byte) Edit) outcomeOf {
	var o outcomeOf
	s := e.NewScanner(func(f Finding, text []byte) Edit {
		o.findings = append(o.findings, fmt.Sprintf("%s[%d:%d]%s=%q", e.Types()[f.Type], f.Start, f.End, f.Likelihood, text))
		if edit == nil {
			return Edit{}
		}
		return edit(f, text)
	})
	defer s.Free()
	var out bytes.Buffer
	prev := 0
	write := func(p string, final bool) bool {
		b, err := s.Write([]byte(p), final)
		out.Write(b)
		o.held = max(o.held, s.Held())
		o.err, o.blocked = err, s.Blocked()
		return err == nil && !s.Blocked()
	}
	for _, c := range cuts {
		if !write(text[prev:c], false) {
			break
		}
		prev = c
	}
	if o.err == nil && !o.blocked {
		write(text[prev:], true)
	}
	if !o.blocked {
		o.out = out.String()
	}
	return o
}

func everything(t testing.TB) *Engine {
	t.Helper()
	e, err := New(Options{
		Types: Builtin(),
		Regexes: []Regex{
			{Type: "EMPLOYEE", Pattern: `\bEMP-\d{4,8}\b`},
			{Type: "UNICODE", Pattern: `(?i)straße\s+\d+`, Context: []string{"adresse"}},
			{Type: "OPTIONAL", Pattern: `(x?yz+|zz)[^;]*;`, MaxLength: 40},
			{Type: "ANCHORED", Pattern: `(?m)^key=.*$`},
		},
		Words: []Words{{Type: "PROJECT", List: []string{"Bluebird", "op skyfall", "über"}}, {Type: "SHORT", List: []string{"hr", "it"}, Likelihood: Unlikely}},
	})
	if err != nil {
		t.Fatal(err)
	}
	return e
}

// samples holds at least one secret of each kind in context.
var samples = []string{
	"pay with 4111 1111 1111 1111, exp 12/27; or 378282246310005\n",
	`{"card":"5555555555554444","ssn":"536-90-4399","mail":"jane.doe+x@example.com"}`,
	"call +49 (30) 1234567 or (212) 555-0187 or 212-555-0187 fax +33 1 23 45 67 89",
	"iban: GB82 WEST 1234 5698 7654 32 / DE89370400440532013000",
	"aws_access_key_id=AKIAIOSFODNN7EXAMPLE\naws_secret_access_key = wJalrXUtnFEMI/K7MDENG/bPxRfiCYEXAMPLEKEY\n",
	"-----BEGIN RSA PRIVATE KEY-----\nMIIEowIBAAKCAQEAtVKUtcx/n9rt5afY/2WFNvU6PlFMggCatsZ3l4RjKxH0jgdLq6CScb0P\n-----END RSA PRIVATE KEY-----\nrest",
	"Authorization: Bearer eyJhbGciOiJIUzI1NiJ9.eyJzdWIiOiIxIn0.c2lnbmF0dXJl",
	"token ghp_16C7e42F292c6912E7710c838347Ae178B4a xoxb-123456789012-1234567890123-AbCdEfGhIjKlMnOpQrStUvWx",
	"from 10.1.2.3:8080 to 2001:db8::8a2e:370:7334 mac 00:1A:2B:3C:4D:5E",
	"db_password = \"Xk29fLq0Zr81mWv\" EMP-12345 Bluebird straße 12 xyzzz foo; key=value\nkey=other",
	"NHS number 943 476 5919, Steuer-ID 86095742719, 1 85 05 78 006 084 91",
	"passport number C12345678 itin 912-80-1234 CPF 529.982.247-25",
}

func allCuts(n int) []int {
	out := make([]int, n)
	for i := range out {
		out[i] = i
	}
	return out
}

func TestTheVerdictDoesNotDependOnCuts(t *testing.T) {
	e := everything(t)
	edits := map[string]func(Finding, []byte) Edit{
		"report":  nil,
		"mask":    func(Finding, []byte) Edit { return Edit{Action: Mask, KeepLast: 4} },
		"replace": func(f Finding, _ []byte) Edit { return Edit{Action: Replace, Tag: "[" + e.Types()[f.Type] + "]"} },
		"mixed": func(f Finding, _ []byte) Edit {
			return Edit{Action: Action(f.Type % 3), Tag: "<>", KeepLast: f.Type % 5}
		},
		"block": func(f Finding, _ []byte) Edit {
			if f.Likelihood >= Likely {
				return Edit{Action: Block}
			}
			return Edit{}
		},
	}
	for name, edit := range edits {
		for i, text := range append(samples, strings.Join(samples, " ")) {
			want := scan(e, text, nil, edit)
			if len(want.findings) == 0 {
				t.Errorf("sample %d: nothing found", i)
			}
			check := func(cuts []int) {
				t.Helper()
				if got := scan(e, text, cuts, edit); got.String() != want.String() {
					t.Fatalf("%s, sample %d cut at %v:\n got %v\nwant %v", name, i, cuts, got, want)
				}
			}
			check(allCuts(len(text)))
			if len(text) < 300 {
				for c := range len(text) {
					check([]int{c})
				}
			}
			r := rand.New(rand.NewPCG(1, uint64(i)))
			for range 20 {
				var cuts []int
				for c := range len(text) {
					if r.IntN(7) == 0 {
						cuts = append(cuts, c)
					}
				}
				check(cuts)
			}
		}
	}
}

// FuzzChunkInvariance: findings and output do not depend on how a text is cut.
func FuzzChunkInvariance(f *testing.F) {
	e := everything(f)
	for i, s := range samples {
		f.Add([]byte(s), uint64(i), byte(i))
	}
	f.Fuzz(sweep.Around(f, func(t *testing.T, text []byte, seed uint64, mode byte) {
		if len(text) > 8<<10 {
			return
		}
		edit := func(fd Finding, _ []byte) Edit {
			return Edit{Action: Action((byte(fd.Type) + mode) % 4), Tag: "<TAG>", KeepLast: int(mode % 5), All: mode&16 != 0}
		}
		want := scan(e, string(text), nil, edit)
		r := rand.New(rand.NewPCG(seed, 1))
		var cuts []int
		for c := range text {
			if r.IntN(1+int(seed%9)) == 0 {
				cuts = append(cuts, c)
			}
		}
		if got := scan(e, string(text), cuts, edit); got.String() != want.String() {
			t.Fatalf("cut at %v:\n got %v\nwant %v", cuts, got, want)
		}
	}))
}

func TestOnlyTheTailThatMayMatchIsHeld(t *testing.T) {
	e := everything(t)
	for _, tt := range []struct {
		text string
		held int
	}{
		{"hello world\n", 0},
		{"data: {\"x\":1}\n\n", 0},
		{"hello world", 5}, // may become world@example.com
		{"a: 4111 1111 ", 10},
		{"-----BEGIN PRIVATE KEY-----\n" + strings.Repeat("QUJD", 1000), 28 + 4000},
	} {
		s := e.NewScanner(func(Finding, []byte) Edit { return Edit{} })
		if _, err := s.Write([]byte(tt.text), false); err != nil {
			t.Fatal(err)
		}
		if got := s.Held(); got != tt.held {
			t.Errorf("%.40q: %d bytes held, want %d", tt.text, got, tt.held)
		}
		s.Free()
	}
}

func TestMemoryIsBoundedByTheWindow(t *testing.T) {
	e := everything(t)
	inputs := map[string]string{
		"an endless key":      "-----BEGIN RSA PRIVATE KEY-----\n" + strings.Repeat("QUJDREVGR0g/\n", 200000),
		"an endless token":    strings.Repeat("eyJhbGciOiJIUzI1NiJ9", 100000),
		"at signs":            strings.Repeat("a@", 1<<20),
		"digits":              strings.Repeat("4111 ", 400000),
		"one digit":           strings.Repeat("4", 2<<20),
		"keywords":            strings.Repeat("password = ", 200000),
		"colons":              strings.Repeat("1:", 1<<20),
		"key headers":         strings.Repeat("-----BEGIN RSA PRIVATE KEY-----\n", 60000),
		"clean text":          strings.Repeat("The quick brown fox jumps over the lazy dog. ", 40000),
		"words that continue": strings.Repeat("Bluebir", 200000),
		"words":               strings.Repeat("Bluebird ", 100000),
		"short words":         strings.Repeat("hr it ", 100000),
		"words within a key":  strings.Repeat("-----BEGIN RSA PRIVATE KEY-----\n"+strings.Repeat("hr it QUJD ", 700), 20),
		"line breaks":         strings.Repeat(`\n`, 500000),
		"escapes":             strings.Repeat(`\u0061\u0040`, 100000),
		"escapes in a key":    strings.Repeat(`-----BEGIN RSA PRIVATE KEY-----\n`+strings.Repeat(`\u0041`, 9000), 10),
		"HTML":                strings.Repeat("&#x00034;", 100000),
		"joiners":             strings.Repeat("4\u200d1\u200d", 100000),
		"joiners only":        strings.Repeat("\u200d", 300000),
		"addresses":           strings.Repeat("a@b.co ", 100000),
		"numbers of JSON":     "[" + strings.Repeat("4111111111111111,", 50000),
	}
	const limit = 64 << 10 // what the filter's documentation says
	for name, text := range inputs {
		for _, action := range []Action{Keep, Mask, Replace} {
			t.Run(fmt.Sprint(name, " ", action), func(t *testing.T) {
				text := text
				if raceEnabled { // the first 200 KiB show it
					text = text[:min(len(text), 200<<10)]
				}
				s := e.NewStream(func(Finding, []byte) Edit { return Edit{Action: action, Tag: "[TYPE]"} }, false, nil)
				defer s.Free()
				s.JSON()
				const piece = 4 << 10
				held, memory := 0, 0
				for len(text) > 0 {
					p := text[:min(piece, len(text))]
					text = text[len(p):]
					_, err := s.Write([]byte(p), len(text) == 0)
					memory = max(memory, s.Memory())
					held = max(held, s.Held())
					if errors.Is(err, ErrTooComplex) {
						break
					}
					if err != nil {
						t.Fatal(err)
					}
				}
				if max := MaxMatch + piece + 256; held > max {
					t.Errorf("%d bytes held: want at most %d", held, max)
				}
				if memory > limit {
					t.Errorf("%d bytes of memory: want at most %d", memory, limit)
				}
			})
		}
	}
}

func TestCleanTextAllocatesNothing(t *testing.T) {
	e := everything(t)
	text := []byte(strings.Repeat("The quick brown fox jumps over 13 lazy dogs, at 12:30. {\"a\": [1, 2.5, true]}\n", 50))
	s := e.NewScanner(func(Finding, []byte) Edit { return Edit{} })
	defer s.Free()
	if n := testing.AllocsPerRun(100, func() { _, _ = s.Write(text, false) }); n != 0 {
		t.Errorf("%v allocations a piece: want 0", n)
	}
}

func TestMaskingKeepsWhatItShould(t *testing.T) {
	for _, tt := range []struct {
		in   string
		edit Edit
		want string
	}{
		{"4111 1111 1111 1234", Edit{KeepLast: 4}, "**** **** **** 1234"},
		{"4111", Edit{KeepLast: 4}, "****"},
		{"a@b.c", Edit{}, "*@*.*"},
		{"a@b.c", Edit{All: true, With: 'x'}, "xxxxx"},
		{`key\nx`, Edit{}, `******`},
		{"für", Edit{}, "****"},
	} {
		b := []byte(tt.in)
		MaskBytes(b, tt.edit)
		if string(b) != tt.want {
			t.Errorf("%q %+v: %q, want %q", tt.in, tt.edit, b, tt.want)
		}
	}
}

func TestOverlappingEditsMerge(t *testing.T) {
	e, err := New(Options{Regexes: []Regex{{Type: "A", Pattern: `abc\w{3}`}, {Type: "B", Pattern: `fgh\w{3}`}, {Type: "C", Pattern: "cd"}}})
	if err != nil {
		t.Fatal(err)
	}
	text := "-abcdefghijk-"
	for name, tt := range map[string]struct {
		edit func(Finding, []byte) Edit
		want string
	}{
		"masks cover both": {func(Finding, []byte) Edit { return Edit{Action: Mask} }, "-***********-"},
		"a replacement covers both": {func(f Finding, _ []byte) Edit {
			return Edit{Action: Action(int(Mask) + f.Type%2), Tag: "#"}
		}, "-#-"},
		"a tail that one mask keeps is masked by the other": {func(f Finding, _ []byte) Edit {
			return Edit{Action: Mask, KeepLast: 2 * (1 - f.Type%2)}
		}, "-****e******-"},
	} {
		got := scan(e, text, nil, tt.edit)
		if got.out != tt.want {
			t.Errorf("%s: %q, want %q (%v)", name, got.out, tt.want, got.findings)
		}
		if again := scan(e, text, allCuts(len(text)), tt.edit); again.String() != got.String() {
			t.Errorf("%s: in pieces %v, whole %v", name, again, got)
		}
	}
}

func TestExpensivePatternsAreStopped(t *testing.T) {
	e, err := New(Options{Regexes: []Regex{{Type: "X", Pattern: `(a|aa|[ab]+)+!`, MaxLength: 4096}}})
	if err != nil {
		t.Fatal(err)
	}
	got := scan(e, strings.Repeat("a", 1<<20), nil, nil)
	if !errors.Is(got.err, ErrTooComplex) {
		t.Errorf("error %v: want ErrTooComplex", got.err)
	}
}
