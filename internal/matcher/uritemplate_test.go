package matcher_test

import (
	"regexp"
	"strings"
	"testing"

	"github.com/fairlead-mesh/fairlead/internal/matcher"
)

func TestURITemplates(t *testing.T) {
	for _, c := range []struct {
		template string
		yes, no  []string
	}{
		{"/", []string{"/"}, []string{"", "/a"}},
		{"/api/users", []string{"/api/users"}, []string{"/api/users/", "/api/user"}},
		{"/api/users/", []string{"/api/users/"}, []string{"/api/users"}},
		{"/api/*", []string{"/api/x", "/api/a.b"}, []string{"/api/", "/api", "/api/x/y", "/api/a=b"}},
		{"/api/**", []string{"/api/", "/api/x", "/api/x/y"}, []string{"/api", "/api/a=b"}},
		{"/**", []string{"/", "/x/y"}, []string{""}},
		{"/*/b/*", []string{"/a/b/c"}, []string{"/a/b/", "/a/x/c"}},
		{"/**/m3u8", []string{"/a/b/m3u8", "//m3u8"}, []string{"/m3u8", "/a/m3u8/"}},
		{"/**.m3u8", []string{"/a/b.m3u8", "/.m3u8"}, []string{"/a/b.m3u"}},
		{"/*.js", []string{"/a.js", "/a.b.js", "/.js.js"}, []string{"/.js", "/a/b.js"}},
		{"/{a}/{b=x/*}/{c=**}", []string{"/1/x/2/", "/1/x/2/3/4"}, []string{"/1/y/2/3", "/1/x/2"}},
		{"/media/{country}/{lang=*}/**", []string{"/media/us/en/", "/media/us/en/a/b"}, []string{"/media/us/en"}},
		{"/{v=a/b}/c", []string{"/a/b/c"}, []string{"/a/x/c"}},
	} {
		m, err := matcher.NewURITemplate(c.template)
		if err != nil {
			t.Errorf("%s: %v", c.template, err)
			continue
		}
		for _, p := range c.yes {
			if !m.Match(p) {
				t.Errorf("%s doesn't match %s", c.template, p)
			}
		}
		for _, p := range c.no {
			if m.Match(p) {
				t.Errorf("%s matches %s", c.template, p)
			}
		}
		if m.String() != c.template {
			t.Error(m.String())
		}
	}
}

func TestBrokenURITemplates(t *testing.T) {
	for template, want := range map[string]string{
		"":                         "must start with /",
		"a":                        "must start with /",
		"/a b":                     "not printable",
		"//a":                      "invalid literal",
		"/a//b":                    "invalid literal",
		"/a=b":                     "invalid literal",
		"/***":                     "invalid literal",
		"/**/*":                    "glob after text glob",
		"/**/{a}":                  "glob after text glob",
		"/{a=**}/{b}":              "glob after text glob",
		"/{a":                      "unmatched variable bracket",
		"/{}":                      "invalid variable name",
		"/{1a}":                    "invalid variable name",
		"/{a}/{a}":                 "repeated variable name",
		"/{a=}":                    "empty variable match",
		"/{a=b/}":                  "invalid variable match",
		"/{a=*b}":                  "invalid variable match",
		"/*x/y":                    "prefix match not supported",
		"/*x*":                     "invalid literal",
		"/{abcdefghijklmnopq}":     "invalid variable length",
		"/{a}/{b}/{c}/{d}/{e}/{f}": "exceeded variable count limit",
	} {
		if _, err := matcher.NewURITemplate(template); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%s: error %v, want %q", template, err, want)
		}
	}
}

func TestURITemplateRewrites(t *testing.T) {
	for _, c := range []struct{ template, rewrite, in, want string }{
		{"/api/{v}/{rest=**}", "/{rest}/{v}", "/api/v1/a/b", "/a/b/v1"},
		{"/api/{v}", "/x", "/api/1", "/x"},
		{"/{a=**}/end", "/{a}", "/x/end/end", "/x/end"},
		{"/{a}.js", "/js/{a}", "/x.min.js", "/js/x.min"},
	} {
		m := must(matcher.NewURITemplate(c.template))
		r, err := matcher.NewURITemplateRewrite(c.rewrite, m)
		if err != nil {
			t.Fatal(err)
		}
		if got, ok := r.Rewrite(c.in); got != c.want || !ok {
			t.Errorf("%s -> %s on %s: %s", c.template, c.rewrite, c.in, got)
		}
		if _, ok := r.Rewrite("/no/match/at=all"); ok {
			t.Errorf("%s rewrites what it doesn't match", c.template)
		}
	}
	m := must(matcher.NewURITemplate("/{a}"))
	for _, bad := range []string{"", "x", "//a", "/{b}", "/{a", "/a?b", "/*"} {
		if _, err := matcher.NewURITemplateRewrite(bad, m); err == nil {
			t.Errorf("rewrite %q is accepted", bad)
		}
	}
}

// templateRegex is Envoy's translation of a template.
func templateRegex(src string) *regexp.Regexp {
	const pchar = `a-zA-Z0-9-._~%!$&'()+,;:@`
	variable := regexp.MustCompile(`\{[a-zA-Z0-9_]+(?:=([^}]*))?\}`)
	src = variable.ReplaceAllStringFunc(src, func(v string) string {
		if p := variable.FindStringSubmatch(v)[1]; p != "" {
			return p
		}
		return "*"
	})
	src = regexp.QuoteMeta(src)
	src = strings.ReplaceAll(src, `\*\*`, "\x00")
	src = strings.ReplaceAll(src, `\*`, "["+pchar+"]+")
	src = strings.ReplaceAll(src, "\x00", "["+pchar+"/]*")
	return regexp.MustCompile("^" + src + `\z`)
}

// FuzzURITemplateAgreesWithEnvoysRegex: a template matches the paths that the
// regular expression matches to which Envoy compiles it.
func FuzzURITemplateAgreesWithEnvoysRegex(f *testing.F) {
	f.Add("/a/*/{b=c/**}", "/a/x/c/y/z")
	f.Add("/**/x.js", "/a/b/x.js")
	f.Add("/*.m", "/a.m.m")
	f.Add("/{a}/{b=*}/", "/1/2/")
	f.Fuzz(func(t *testing.T, template, path string) {
		m, err := matcher.NewURITemplate(template)
		if err != nil {
			return
		}
		if want := templateRegex(template).MatchString(path); m.Match(path) != want {
			t.Errorf("%q on %q: %v, the regex says %v", template, path, !want, want)
		}
	})
}
