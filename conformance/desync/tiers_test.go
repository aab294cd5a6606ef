package desync

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"strings"
	"sync"
	"testing"
	"time"
)

// tier says how bad a request is, in the classes of http-desync-guardian: the tables
// below are our own, of the same kinds.
type tier int

const (
	compliant  tier = iota // must be served
	acceptable             // odd, but everybody agrees where it ends: served clean or refused
	ambiguous              // parsers disagree where it ends: served clean or refused
	severe                 // must be refused, and its connection closed
)

// tiered is a request of a tier; another one follows it on its connection.
type tiered struct {
	name  string
	tier  tier
	bytes string
}

// request1 is the head of a request.
func request1(method, target, version string, fields ...string) string {
	b := method + " " + target
	if version != "" {
		b += " " + version
	}
	b += "\r\nHost: h.example\r\n"
	for _, f := range fields {
		b += f + "\r\n"
	}
	return b + "\r\n"
}

const chunkedBody = "5\r\nabcde\r\n0\r\n\r\n"

// controls are those that no part of a head may have.
func controls() (out []byte) {
	for c := range byte(0x20) {
		if c != '\t' && c != '\r' && c != '\n' {
			out = append(out, c)
		}
	}
	return append(out, 0x7f)
}

func severeCases() (out []tiered) {
	add := func(name, b string) { out = append(out, tiered{"severe: " + name, severe, b}) }
	post := func(fields ...string) string { return request1("POST", "/severe", "HTTP/1.1", fields...) }
	for i, l := range []string{"5\r\nContent-Length: 6", "6\r\nContent-Length: 5", "5,5", "5,6", "5 5", "5.5", "18446744073709551616", "18446744073709551621", "9223372036854775813", "-5", "+5", "5;5", "0x5", "５", "5e0", "\"5\"", "5\r\n 5"} {
		add(fmt.Sprintf("length %d", i), post("Content-Length: "+l)+"abcde")
	}
	for i, e := range []string{"xchunked", "chunked,chunked", "chunked\r\nTransfer-Encoding: chunked", "chunked, identity", "identity, chunked, identity", "chunkedchunked", "chun ked", "\"chunked\"", "chunked;", "nothing", "cow", "chunked\r\n chunked"} {
		add(fmt.Sprintf("encoding %d", i), post("Transfer-Encoding: "+e)+chunkedBody)
	}
	for _, c := range controls() {
		s := string([]byte{c})
		add(fmt.Sprintf("byte %#02x behind the encoding", c), post("Transfer-Encoding: chunked"+s)+chunkedBody)
		add(fmt.Sprintf("byte %#02x before the length", c), post("Content-Length: "+s+"5")+"abcde")
		add(fmt.Sprintf("byte %#02x behind the length", c), post("Content-Length: 5"+s)+"abcde")
		add(fmt.Sprintf("byte %#02x in a name", c), post("Content-Length: 5", "Some"+s+"Field: x")+"abcde")
		add(fmt.Sprintf("byte %#02x at the start of a line", c), post("Content-Length: 5", s+"Field: x")+"abcde")
		add(fmt.Sprintf("byte %#02x in a value", c), post("Content-Length: 5", "Field: x"+s+"content-length: 1000")+"abcde")
		add(fmt.Sprintf("byte %#02x in the method", c), request1("PO"+s+"ST", "/severe", "HTTP/1.1", "Content-Length: 5")+"abcde")
	}
	for i, f := range []string{
		"Field: several\r\n lines\r\n Transfer-Encoding: chunked", "Field: several\n lines", "Field: a\rTransfer-Encoding: chunked", "Field: a\nTransfer-Encoding: chunked", "Field\r: a", "Field\n: Content-Length: 1000",
		"Field: a\r\rb", "\r\tTransfer-Encoding: chunked",
	} {
		add(fmt.Sprintf("line end %d", i), post("Content-Length: 5", f)+"abcde")
	}
	for _, n := range []string{"Content-Length", "Transfer-Encoding"} {
		v := map[string]string{"Content-Length": "5", "Transfer-Encoding": "chunked"}[n]
		for _, w := range []string{" ", "\t"} {
			add(fmt.Sprintf("%s twice, %q behind the first", n, w), post(n+w+": "+v, n+": "+v)+chunkedBody)
			add(fmt.Sprintf("%s twice, %q before the second", n, w), post(n+": "+v, w+n+": "+v)+chunkedBody)
		}
	}
	return out
}

func ambiguousCases() (out []tiered) {
	add := func(name, b string) { out = append(out, tiered{"ambiguous: " + name, ambiguous, b}) }
	mangle := map[string]func(string) string{
		"space behind":       func(s string) string { return s + " " },
		"tab behind":         func(s string) string { return s + "\t" },
		"space before":       func(s string) string { return " " + s },
		"a control before":   func(s string) string { return "\x01" + s },
		"two controls":       func(s string) string { return "\x01\x01" + s },
		"space in it":        func(s string) string { return strings.Replace(s, "-", "- ", 1) },
		"space for hyphen":   func(s string) string { return strings.Replace(s, "-", " ", 1) },
		"underscore":         func(s string) string { return strings.Replace(s, "-", "_", 1) },
		"three hyphens":      func(s string) string { return strings.Replace(s, "-", "---", 1) },
		"three underscores":  func(s string) string { return strings.Replace(s, "-", "___", 1) },
		"no hyphen":          func(s string) string { return strings.Replace(s, "-", "", 1) },
		"a long s":           func(s string) string { return strings.NewReplacer("s", "\u017f", "t-", "\u0167-").Replace(s) },
		"an i without dot":   func(s string) string { return strings.NewReplacer("i", "\u0131", "L", "\u0141").Replace(s) },
		"spaces of Unicode":  func(s string) string { return "\u2003\u00a0" + s },
		"spaces behind":      func(s string) string { return s + "\u3000" },
		"a bar of Unicode":   func(s string) string { return strings.Replace(s, "-", "\u2015", 1) },
		"a byte behind":      func(s string) string { return s + "\x88" },
		"a byte before":      func(s string) string { return "\xa0" + s },
		"a letter behind":    func(s string) string { return s + " x" },
		"a colon before":     func(s string) string { return ":" + s },
		"a colon behind":     func(s string) string { return s + ":" },
		"full width":         func(s string) string { return strings.Replace(s, "-", "－", 1) },
		"a dot for hyphen":   func(s string) string { return strings.Replace(s, "-", ".", 1) },
		"a quote":            func(s string) string { return `"` + s + `"` },
		"a zero-width space": func(s string) string { return s + "\u200b" },
	}
	for name, f := range mangle {
		for _, with := range []string{"", "Content-Length: 5", "Transfer-Encoding: chunked"} {
			add(fmt.Sprintf("encoding, %s, with %q", name, with), request1("POST", "/ambiguous", "HTTP/1.1", nonEmpty(f("Transfer-Encoding")+": chunked", with)...)+chunkedBody)
			add(fmt.Sprintf("length, %s, with %q", name, with), request1("POST", "/ambiguous", "HTTP/1.1", nonEmpty(f("Content-Length")+": 5", with)...)+"abcde")
		}
	}
	both := []string{"Transfer-Encoding: chunked", "Content-Length: 5"}
	add("length twice", request1("PUT", "/ambiguous", "HTTP/1.1", both[1], both[1])+"abcde")
	add("both", request1("POST", "/ambiguous", "HTTP/1.1", both...)+chunkedBody)
	add("both, the other way round", request1("POST", "/ambiguous", "HTTP/1.1", both[1], both[0])+chunkedBody)
	add("gzip and a length", request1("POST", "/ambiguous", "HTTP/1.1", "Transfer-Encoding: gzip", both[1])+"abcde")
	for _, m := range []string{"GET", "HEAD", "DELETE", "OPTIONS", "TRACE", "PROPFIND"} {
		add(m+" with a length", request1(m, "/ambiguous", "HTTP/1.1", both[1])+"abcde")
		add(m+" with an encoding", request1(m, "/ambiguous", "HTTP/1.1", both[0])+chunkedBody)
	}
	for _, v := range []string{"HTTP/1.0", "HTTP/0.9", "", "HTTP/2.0", "HTTP/1.2", "HTTP/01.1", "http/1.1", "HTTP/1.1 "} {
		add(fmt.Sprintf("an encoding in %q", v), request1("POST", "/ambiguous", v, both[0])+chunkedBody)
		add(fmt.Sprintf("a length in %q", v), request1("POST", "/ambiguous", v, both[1])+"abcde")
	}
	for _, n := range []string{"", "   \t ", ":", ":Field:Transfer-Encoding:"} {
		add(fmt.Sprintf("a field named %q", n), request1("POST", "/ambiguous", "HTTP/1.1", n+": chunked", both[1])+"abcde")
	}
	return out
}

func nonEmpty(list ...string) (out []string) {
	for _, s := range list {
		if s != "" {
			out = append(out, s)
		}
	}
	return out
}

func servedCases() (out []tiered) {
	add := func(t tier, name, b string) { out = append(out, tiered{name, t, b}) }
	for _, m := range []string{"GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS", "PROPFIND", "REPORT"} {
		add(compliant, "compliant: "+m, request1(m, "/served", "HTTP/1.1"))
	}
	for _, u := range []string{"/", "/a/b?c=d&e", "/a;b=c", "/%41%2f", "/a:b@c!$&'()*+,=", "/~-._", "/?", "/" + strings.Repeat("a", 4000), "/a?b=/c?d", "http://h.example/a"} {
		add(compliant, "compliant: "+u[:min(len(u), 30)], request1("GET", u, "HTTP/1.1"))
	}
	for _, f := range []string{
		"X: ", "X:y", "X: y ", "X:\t y \t", "!#$%&'*+.^`|~0a: x", "X: " + `!"#$%&'()*+,-./:;<=>?@[\]^_{|}~`, "X: a\tb", "X: " + strings.Repeat("y", 8000), "Accept: a\r\nAccept: b", "Cookie: a=b; c=\"d\"", "Connection: close", "TE: trailers", "Expect: 100-continue",
	} {
		add(compliant, "compliant: field "+f[:min(len(f), 30)], request1("GET", "/served", "HTTP/1.1", f))
	}
	add(compliant, "compliant: a length", request1("POST", "/served", "HTTP/1.1", "Content-Length: 5")+"abcde")
	add(compliant, "compliant: a length of 0", request1("POST", "/served", "HTTP/1.1", "Content-Length: 0"))
	add(compliant, "compliant: chunks", request1("POST", "/served", "HTTP/1.1", "Transfer-Encoding: chunked")+"2\r\nab\r\n3\r\ncde\r\n0\r\n\r\n")
	add(compliant, "compliant: chunks, in capitals", request1("POST", "/served", "HTTP/1.1", "TRANSFER-ENCODING: chunked")+"A\r\nabcdefghij\r\n0\r\n\r\n")
	for _, m := range []string{"GET", "HEAD"} {
		add(acceptable, "acceptable: "+m+" with a length of 0", request1(m, "/served", "HTTP/1.1", "Content-Length: 0"))
	}
	for _, f := range []string{"x-field : y", "\x01x-field: y", "x field: y", "x-field: \xff", "x_field: y"} {
		add(acceptable, fmt.Sprintf("acceptable: %q", f), request1("PUT", "/served", "HTTP/1.1", f))
		add(acceptable, fmt.Sprintf("acceptable: %q and a length", f), request1("PUT", "/served", "HTTP/1.1", f, "Content-Length: 5")+"abcde")
		add(acceptable, fmt.Sprintf("acceptable: %q and chunks", f), request1("PUT", "/served", "HTTP/1.1", f, "Transfer-Encoding: chunked")+chunkedBody)
	}
	for _, v := range []string{"HTTP/0.9", "", "HTTP/1.2", "HTTP/1.0"} {
		add(acceptable, fmt.Sprintf("acceptable: version %q", v), request1("GET", "/served", v))
	}
	return out
}

func tieredCases() []tiered {
	return append(append(severeCases(), ambiguousCases()...), servedCases()...)
}

// exchange writes b and reads until the other end ends the connection, or is silent.
func exchange(address, b string, patience time.Duration) (answer []byte, closed bool, err error) {
	c, err := net.Dial("tcp", address)
	if err != nil {
		return nil, false, err
	}
	defer c.Close()
	_ = c.SetDeadline(time.Now().Add(patience))
	_, _ = io.WriteString(c, b)
	answer, err = io.ReadAll(c)
	return answer, !errors.Is(err, os.ErrDeadlineExceeded), nil
}

// wantTiers is how many cases there are of each.
var wantTiers = map[tier]int{compliant: 36, acceptable: 21, ambiguous: 186, severe: 255}

func TestRequestsAreTreatedByHowBadTheyAre(t *testing.T) {
	o := newOrigin(t)
	h1, _ := start(t, o)
	cases := tieredCases()
	count := map[tier]int{}
	for _, c := range cases {
		count[c.tier]++
	}
	if fmt.Sprint(count) != fmt.Sprint(wantTiers) {
		t.Errorf("%v cases, want %v", count, wantTiers)
	}
	var mu sync.Mutex
	refused := map[tier]int{}
	each(len(cases), func(i int) {
		c := &cases[i]
		b := strings.Replace(c.bytes, "Host: h.example\r\n", fmt.Sprintf("Host: h.example\r\nX-Case: %d\r\n", i), 1)
		a, closed, err := exchange(h1, b+smuggled+"GET /last HTTP/1.1\r\nHost: h.example\r\nConnection: close\r\n\r\n", 5*time.Second)
		ok := bytes.HasPrefix(bytes.TrimPrefix(a, []byte("HTTP/1.1 100 Continue\r\n\r\n")), []byte("HTTP/1.1 200"))
		mu.Lock()
		defer mu.Unlock()
		if !ok {
			refused[c.tier]++
		}
		switch {
		case err != nil:
			t.Errorf("%s: %v", c.name, err)
		case !closed:
			t.Errorf("%s: the connection stays open behind %q", c.name, a[:min(len(a), 200)])
		case c.tier == compliant && !ok:
			t.Errorf("%s: got %q", c.name, a[:min(len(a), 200)])
		case c.tier == severe && (!bytes.HasPrefix(a, []byte("HTTP/1.1 400")) && !bytes.HasPrefix(a, []byte("HTTP/1.1 501")) || bytes.Count(a, []byte("HTTP/1.1 ")) != 1):
			t.Errorf("%s: got %q", c.name, a[:min(len(a), 300)])
		}
	})
	forwarded := o.judge(t, func(id string) string {
		var i int
		if _, err := fmt.Sscan(id, &i); err != nil || i >= len(cases) {
			return "unknown"
		}
		return fmt.Sprintf("%s: %q", cases[i].name, cases[i].bytes[:min(len(cases[i].bytes), 300)])
	})
	t.Logf("%d cases; of %d compliant ones %d were refused, of %d acceptable %d, of %d ambiguous %d, of %d severe %d; %d requests reached the origin",
		len(cases), count[compliant], refused[compliant], count[acceptable], refused[acceptable], count[ambiguous], refused[ambiguous], count[severe], refused[severe], forwarded)
}
