package bypass

import (
	"fmt"
	"slices"
	"strings"
)

// shapes are ways to write /admin/secret before anything is encoded.
var shapes = []string{
	"/admin/secret", "//admin/secret", "///admin///secret", "/admin//secret", "/./admin/secret", "/admin/./secret", "/.//admin/secret",
	"/public/../admin/secret", "/public/x/../../admin/secret", "/../admin/secret", "/../../../admin/secret", "/public/..//admin/secret",
	"/public/.//..//admin/secret", "//public/../admin/secret", "/public//../admin/secret", "/public/./../admin/secret", "/public/../../admin/secret",
	"/admin/../admin/secret", "/admin/../public/../admin/secret", "/public/../admin/x/../secret", "/admin/secret/", "/admin/secret/.", "/admin/secret/x/..",
	`\admin\secret`, `/\admin/secret`, `\/admin/secret`, `/public\..\admin\secret`, `/public/..\admin/secret`, `/public\../admin/secret`, `/admin\secret`,
	"/;/admin/secret", "/admin;x=1/secret", "/admin/;x/secret", "/public/..;/admin/secret", "/public;/../admin/secret", "/public;x=/../admin/secret", "/admin/secret;x",
	"/admin#/secret", "/public#/../admin/secret", "/admin/secret#x", "/#/../admin/secret", "/admin/secret?x", "/public?/../admin/secret", "/admin/secret??", "/?/admin/secret",
	"/public/.../admin/secret", "/public/. ./admin/secret", "/public/.. /admin/secret", "/admin /secret", "/ admin/secret", "/ADMIN/secret", "/Admin/Secret", "/admin/SECRET",
	"/admin.", "/admin", "/admin/", "/admin/.", "/public/../admin/", "/admin/secret%", "/admin/secret%2", "/%/../admin/secret", "/public/..%/admin/secret",
	"/public/%2e%2e/admin/secret", "/public/%2e./admin/secret", "/public/.%2e/admin/secret", "/public%2f..%2fadmin%2fsecret", "/%2fadmin/secret", "/public/..%2fadmin/secret",
	"http://h.example/admin/secret", "http://h.example//admin/secret", "http://h.example/public/../admin/secret", "HTTP://h.example/admin/secret", "//h.example/admin/secret",
	"admin/secret", "./admin/secret", "../admin/secret", "*/admin/secret", "*", "http://h.example\\admin\\secret", "http:///admin/secret", "/http://h.example/../../admin/secret",
}

// encoder rewrites what a shape holds.
type encoder struct {
	name string
	f    func(string) string
}

// each replaces the bytes of set, from the second byte on.
func each(set string, f func(byte) string) func(string) string {
	return func(s string) string {
		var b strings.Builder
		for i := range len(s) {
			if i > 0 && strings.IndexByte(set, s[i]) >= 0 {
				b.WriteString(f(s[i]))
			} else {
				b.WriteByte(s[i])
			}
		}
		return b.String()
	}
}

const letters = "abcdefghijklmnopqrstuvwxyz"

func lower(c byte) string  { return fmt.Sprintf("%%%02x", c) }
func upper(c byte) string  { return fmt.Sprintf("%%%02X", c) }
func double(c byte) string { return fmt.Sprintf("%%25%02x", c) }
func triple(c byte) string { return fmt.Sprintf("%%2525%02x", c) }
func nibble(c byte) string {
	return "%" + lower(fmt.Sprintf("%02x", c)[0]) + lower(fmt.Sprintf("%02x", c)[1])
}
func second(c byte) string {
	return "%" + fmt.Sprintf("%02x", c)[:1] + lower(fmt.Sprintf("%02x", c)[1])
}

// overlong is UTF-8 in more bytes than needed, which decoders must not take.
func overlong(c byte) string { return fmt.Sprintf("%%%02x%%%02x", 0xc0|c>>6, 0x80|c&0x3f) }
func longer(c byte) string   { return fmt.Sprintf("%%e0%%%02x%%%02x", 0x80|c>>6, 0x80|c&0x3f) }
func raw(c byte) string      { return string([]byte{0xc0 | c>>6, 0x80 | c&0x3f}) }
func unicode(c byte) string  { return fmt.Sprintf("%%u00%02x", c) }

// wide is the full-width form of an ASCII character.
func wide(c byte) string {
	var b strings.Builder
	for _, x := range []byte(string(rune(c) + 0xfee0)) {
		b.WriteString(lower(x))
	}
	return b.String()
}

func encoders() []encoder {
	out := []encoder{{"as it is", func(s string) string { return s }}}
	for _, set := range []struct{ name, bytes string }{{"dots", "."}, {"slashes", `/\`}, {"dots and slashes", `./\`}, {"an a", "a"}, {"letters", letters}, {"all", `./\;#?` + letters}} {
		for _, e := range []struct {
			name string
			f    func(byte) string
		}{{"lower", lower}, {"upper", upper}, {"double", double}, {"triple", triple}, {"nibbles", nibble}, {"second nibble", second}, {"overlong", overlong}, {"longer", longer}, {"raw overlong", raw}, {"%u", unicode}, {"full width", wide}} {
			out = append(out, encoder{set.name + " " + e.name, each(set.bytes, e.f)})
		}
	}
	for _, mid := range []string{"%00", "%20", "%09", "%0d%0a", "%0a", "%7f", "%ff", "%c0", "%", "%zz", "%e2%80%8b"} {
		out = append(out, encoder{"dot " + mid, func(s string) string { return strings.ReplaceAll(s, "..", ".."+mid) }}, encoder{"slash " + mid, func(s string) string { return strings.ReplaceAll(s, "/a", "/"+mid+"a") }},
			encoder{"end " + mid, func(s string) string { return s + mid }})
	}
	return out
}

// targets are the request targets of the corpus, each once.
func targets() []string {
	seen := map[string]bool{}
	var out []string
	add := func(s string) {
		// A target with these is no target in HTTP/1.1 and tested elsewhere.
		if s != "" && !strings.ContainsAny(s, "\r\n") && !seen[s] {
			seen[s] = true
			out = append(out, s)
		}
	}
	es := encoders()
	for _, s := range shapes {
		for _, e := range es {
			add(e.f(s))
		}
	}
	for i := range 256 {
		for _, enc := range []string{string([]byte{byte(i)}), lower(byte(i)), upper(byte(i)), double(byte(i))} {
			for _, p := range []string{"/admin" + enc, "/" + enc + "admin/secret", "/admin/" + enc + "secret", "/admin" + enc + "/secret", "/admin/secret" + enc, "/public/.." + enc + "admin/secret", "/public" + enc + "../admin/secret", enc + "/admin/secret"} {
				add(p)
			}
		}
	}
	slices.Sort(out)
	return out
}
