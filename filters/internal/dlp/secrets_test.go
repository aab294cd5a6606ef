package dlp

import (
	"os"
	"slices"
	"strings"
	"testing"
)

// tableCase is a line of a table in testdata.
type tableCase struct {
	line            int
	typ, text, want string // want is "" for no finding
}

// readTable reads a table: one case a line, "TYPE + text with «match»" or
// "TYPE - text".
func readTable(t *testing.T, name string) (cases []tableCase) {
	t.Helper()
	b, err := os.ReadFile(name)
	if err != nil {
		t.Fatal(err)
	}
	for i, l := range strings.Split(strings.ReplaceAll(string(b), "·", ""), "\n") {
		if l == "" || l[0] == '#' {
			continue
		}
		typ, rest, _ := strings.Cut(l, " ")
		sign, text, ok := strings.Cut(rest, " ")
		c := tableCase{line: i + 1, typ: typ, text: text}
		if sign == "+" {
			_, match, _ := strings.Cut(text, "«")
			c.want, _, ok = strings.Cut(match, "»")
			c.text = strings.NewReplacer("«", "", "»", "").Replace(text)
		}
		if !ok || c.text == "" {
			t.Fatalf("%s:%d: %q is no case", name, i+1, l)
		}
		cases = append(cases, c)
	}
	return cases
}

// checkTable runs the cases and returns how many detect and reject for each
// detector.
func checkTable(t *testing.T, name string) (pos, neg map[string]int) {
	t.Helper()
	pos, neg = map[string]int{}, map[string]int{}
	engines := map[string]*Engine{}
	for _, c := range readTable(t, name) {
		e := engines[c.typ]
		if e == nil {
			var err error
			if e, err = New(Options{Types: []string{c.typ}}); err != nil {
				t.Fatalf("%s:%d: %v", name, c.line, err)
			}
			engines[c.typ] = e
		}
		if c.want == "" {
			neg[c.typ]++
		} else {
			pos[c.typ]++
		}
		for _, text := range []string{c.text, "\n" + c.text + "\n"} {
			var got []string
			scan(e, text, allCuts(len(text)), func(f Finding, m []byte) Edit {
				if f.Likelihood >= Possible {
					got = append(got, string(m))
				}
				return Edit{}
			})
			if c.want == "" && len(got) > 0 || c.want != "" && (len(got) != 1 || got[0] != c.want) {
				t.Errorf("%s:%d: %s in %q: found %q, want %q", name, c.line, c.typ, text, got, c.want)
			}
		}
	}
	return pos, neg
}

func TestEverySecretRuleHasExamples(t *testing.T) {
	pos, neg := checkTable(t, "testdata/secrets.txt")
	rules := map[string]int{}
	for _, r := range tokenRules {
		rules[r.typ]++
	}
	for _, r := range keyedRules {
		rules[r.typ]++
	}
	for typ, n := range rules {
		if pos[typ] < n || neg[typ] < 2*n {
			t.Errorf("%s: %d rules with %d positive and %d negative examples", typ, n, pos[typ], neg[typ])
		}
	}
	for _, typ := range SecretTypes() {
		if pos[typ] == 0 && len(detectorCases[typ]) == 0 {
			t.Errorf("%s has no examples", typ)
		}
	}
	total := 0
	for _, m := range []map[string]int{pos, neg} {
		for _, n := range m {
			total += n
		}
	}
	kinds := len(SecretTypes())
	t.Logf("%d kinds of secrets, %d rules with %d examples", kinds, len(tokenRules)+len(keyedRules)+9, total)
	if kinds < 290 || len(tokenRules) < 237 || len(keyedRules) < 113 || total < 1200 {
		t.Errorf("%d kinds of secrets, %d+%d rules, %d examples: some got lost", kinds, len(tokenRules), len(keyedRules), total)
	}
	if len(slices.Compact(SecretTypes())) != kinds {
		t.Error("a name is used twice")
	}
}
