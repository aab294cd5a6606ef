package dlp

import (
	"bytes"
	"fmt"
	"math/rand/v2"
	"net/url"
	"strings"
	"testing"

	"github.com/fairlead-mesh/fairlead/internal/sweep"
)

// scanStream is scan for a Stream.
func scanStream(e *Engine, text string, cuts []int, plus bool, edit func(Finding, []byte) Edit) outcomeOf {
	var o outcomeOf
	s := e.NewStream(func(f Finding, text []byte) Edit {
		o.findings = append(o.findings, fmt.Sprintf("%s[%d:%d]%s=%q", e.Types()[f.Type], f.Start, f.End, f.Likelihood, text))
		if edit == nil {
			return Edit{}
		}
		return edit(f, text)
	}, plus, nil)
	defer s.Free()
	var out bytes.Buffer
	prev := 0
	for _, c := range append(cuts, len(text)) {
		b, err := s.Write([]byte(text[prev:c]), false)
		out.Write(b)
		o.err, o.blocked = err, s.Blocked()
		if o.err != nil || o.blocked {
			break
		}
		prev = c
	}
	if o.err == nil && !o.blocked {
		b, err := s.Write(nil, true)
		out.Write(b)
		o.err, o.blocked = err, s.Blocked()
	}
	if !o.blocked {
		o.out = out.String()
	}
	return o
}

var evasions = map[string]func(string) string{
	"percent": func(s string) string {
		var b strings.Builder
		for i := range len(s) {
			fmt.Fprintf(&b, "%%%02x", s[i])
		}
		return b.String()
	},
	"percent, every other": func(s string) string {
		var b strings.Builder
		for i := range len(s) {
			if i%2 == 0 {
				fmt.Fprintf(&b, "%%%02X", s[i])
			} else {
				b.WriteByte(s[i])
			}
		}
		return b.String()
	},
	"query": url.QueryEscape,
	"JSON escapes": func(s string) string {
		var b strings.Builder
		for i := range len(s) {
			fmt.Fprintf(&b, `\u%04x`, s[i])
		}
		return b.String()
	},
	"HTML decimal": func(s string) string {
		var b strings.Builder
		for i := range len(s) {
			fmt.Fprintf(&b, "&#%d;", s[i])
		}
		return b.String()
	},
	"HTML hexadecimal": func(s string) string {
		var b strings.Builder
		for i := range len(s) {
			fmt.Fprintf(&b, "&#x%04X;", s[i])
		}
		return b.String()
	},
	"slashes escaped": func(s string) string { return strings.ReplaceAll(s, "/", `\/`) },
	"full width": func(s string) string {
		return strings.Map(func(r rune) rune {
			if r > ' ' && r < 0x7f {
				return r - '!' + 0xFF01
			}
			return r
		}, s)
	},
	"zero-width joiners": func(s string) string { return strings.Join(strings.Split(s, ""), "\u200d") },
	"soft hyphens":       func(s string) string { return s[:3] + "\u00ad" + s[3:] },
}

func TestEvasions(t *testing.T) {
	e := everything(t)
	secrets := map[string]string{
		creditCard: "4111111111111111", usSSN: "536-90-4399", emailAddress: "jane@example.com", ibanCode: "GB82WEST12345698765432",
		awsCredentials: "AKIAIOSFODNN7EXAMPLE", githubToken: "ghp_16C7e42F292c6912E7710c838347Ae178B4a", jsonWebToken: jwtHead + "." + jwtBody + ".c2ln",
		"STRIPE_API_KEY": "sk_live_4eC39HqLyjWDarjtT1zdp7dc",
	}
	n := 0
	for name, hide := range evasions {
		for typ, secret := range secrets {
			text := `{"v":"` + hide(secret) + `"}`
			mask := func(Finding, []byte) Edit { return Edit{Action: Mask} }
			got := scanStream(e, text, nil, true, mask)
			if !strings.Contains(fmt.Sprint(got.findings), typ) {
				t.Errorf("%s: %s not found in %s", name, typ, text)
			}
			if len(got.out) != len(text) {
				t.Errorf("%s: masked to %q, of another length than %q", name, got.out, text)
			}
			if strings.Contains(got.out, secret) || !strings.HasPrefix(got.out, `{"v":"`) || !strings.HasSuffix(got.out, `"}`) {
				t.Errorf("%s: %s masked to %q", name, text, got.out)
			}
			if again := scanStream(e, text, allCuts(len(text)), true, mask); again.String() != got.String() {
				t.Errorf("%s in pieces:\n got %v\nwant %v", name, again, got)
			}
			n++
		}
	}
	arabic := strings.NewReplacer("0", "٠", "1", "١", "4", "٤").Replace("4111111111111111")
	if got := scanStream(e, "("+arabic+")", nil, false, nil); !strings.Contains(fmt.Sprint(got.findings), creditCard) {
		t.Errorf("Arabic-Indic digits: %v", got.findings)
	}
	if dashes := strings.ReplaceAll("4111-1111-1111-1111", "-", "–"); len(scanStream(e, dashes, nil, false, nil).findings) != 1 {
		t.Error("en dashes: nothing found")
	}
	if n != 80 {
		t.Errorf("%d combinations: want 80", n)
	}
}

func TestTextWithoutSecretsPassesAsItIs(t *testing.T) {
	e := everything(t)
	for _, text := range []string{
		`a\u00e9b\ud83d\ude00 \x \u12 100% %zz %4 \`, "–—\u200b\u200b", "über ＡＢＣ", `\\\\\"`, "%", `\u`, "\xe2\x80", "\xef", "a+b c%20d", "a&b&amp;c&#;&#x;&#xZ;&#1", "&", "&#", "&#12345678;", "&#233;&#x1F600;",
	} {
		for _, cuts := range [][]int{nil, allCuts(len(text))} {
			if got := scanStream(e, text, cuts, true, nil); got.out != text {
				t.Errorf("%q cut at %v became %q", text, cuts, got.out)
			}
		}
	}
}

func TestReplacementsInEscapedText(t *testing.T) {
	e, err := New(Options{Types: []string{emailAddress}})
	if err != nil {
		t.Fatal(err)
	}
	edit := func(Finding, []byte) Edit { return Edit{Action: Replace, Tag: "[E]"} }
	for text, want := range map[string]string{
		`x jane\u0040example.com y`:      `x [E] y`,
		`x%20%6aane%40example.com%20y`:   `x%20[E]%20y`,
		"a jane\u200b@example.com b":     "a [E] b",
		`jane\u0040example.com`:          `[E]`,
		`%5Cjane\u0040example.com\u000a`: `%5C[E]\u000a`,
	} {
		for _, cuts := range [][]int{nil, allCuts(len(text))} {
			if got := scanStream(e, text, cuts, false, edit); got.out != want {
				t.Errorf("%q cut at %v became %q, want %q", text, cuts, got.out, want)
			}
		}
	}
}

// FuzzStreamInvariance: findings and output do not depend on how a text is cut,
// and a text without findings is not changed.
func FuzzStreamInvariance(f *testing.F) {
	e := everything(f)
	for i, s := range samples {
		f.Add([]byte(s), uint64(i), byte(i))
		f.Add([]byte(evasions["percent, every other"](s)), uint64(i), byte(i))
		f.Add([]byte(evasions["JSON escapes"](s)), uint64(i), byte(i))
	}
	f.Fuzz(sweep.Around(f, func(t *testing.T, text []byte, seed uint64, mode byte) {
		if len(text) > 4<<10 {
			return
		}
		edit := func(fd Finding, _ []byte) Edit {
			return Edit{Action: Action((byte(fd.Type) + mode) % 4), Tag: "<TAG>", KeepLast: int(mode % 5)}
		}
		want := scanStream(e, string(text), nil, mode&32 != 0, edit)
		if len(want.findings) == 0 && want.err == nil && want.out != string(text) {
			t.Fatalf("nothing found, and %q became %q", text, want.out)
		}
		r := rand.New(rand.NewPCG(seed, 1))
		var cuts []int
		for c := range text {
			if r.IntN(1+int(seed%9)) == 0 {
				cuts = append(cuts, c)
			}
		}
		if got := scanStream(e, string(text), cuts, mode&32 != 0, edit); got.String() != want.String() {
			t.Fatalf("cut at %v:\n got %v\nwant %v", cuts, got, want)
		}
	}))
}
