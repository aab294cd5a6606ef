package desync

import (
	"bytes"
	"fmt"
	"strings"
	"testing"
	"time"

	"github.com/fairlead-mesh/fairlead/conformance/running"
)

// lineUp says which answers are right for the heads of a row of
// docs/engine-tests.md: any of the statuses, and whether the connection ends.
type lineUp struct {
	row, name, bytes string
	want             string // statuses, in order of the answers; several of one answer by "/"
}

func httpRows() []lineUp {
	const host = "Host: a\r\n"
	get := func(fields string) string { return "GET / HTTP/1.1\r\n" + fields + "\r\n" }
	many := func(n int) (s string) {
		for i := range n {
			s += fmt.Sprintf("x-%d: y\r\n", i)
		}
		return s
	}
	out := []lineUp{
		{"A1", "no host", get(""), "400"},
		{"A3", "an absolute target", "GET http://b:99/x HTTP/1.1\r\nHost: a\r\n\r\n", "200"},
		{"A4", "HTTP/1.0", "GET / HTTP/1.0\r\n" + host + "\r\n", "426"},
		{"A4", "HTTP/0.9", "GET / HTTP/0.9\r\n" + host + "\r\n", "400/426/505"},
		{"A4", "no version", "GET /\r\n" + host + "\r\n", "400/426"},
		{"A4", "HTTP/2.0", "GET / HTTP/2.0\r\n" + host + "\r\n", "400/426/505"},
		{"A4", "HTTP/1.10", "GET / HTTP/1.10\r\n" + host + "\r\n", "400"},
		{"A4", "http/1.1", "GET / http/1.1\r\n" + host + "\r\n", "400"},
		{"A7", "ten in a row", strings.Repeat(get(host), 2) + "X\r\n\r\n" + strings.Repeat(get(host), 7), "200 200 400"},
		{"A8", "100-continue", "POST / HTTP/1.1\r\n" + host + "Expect: 100-continue\r\nContent-Length: 1\r\n\r\nx", "100 200"},
		{"A8", "another expectation", get(host + "Expect: foo\r\n"), "200"}, // as Envoy: the origin may have an opinion,
		{"A8", "a space before the colon", get(host + "Expect : 100-continue\r\n"), "400"},
		{"A11", "61 KiB of fields", get(host + "x: " + strings.Repeat("y", 61<<10) + "\r\n"), "431"},
		{"A11", "59 KiB of fields", get(host + "x: " + strings.Repeat("y", 59<<10) + "\r\n"), "200"},
		{"A11", "101 fields", get(host + many(101)), "431"},
		{"A11", "a target of 100,001 bytes", "GET /" + strings.Repeat("u", 100_000) + " HTTP/1.1\r\n" + host + "\r\n", "414/431"},
		{"A12", "fields of one hop", get(host + "Connection: close, X-A\r\nX-A: 1\r\nKeep-Alive: 1\r\nProxy-Connection: close\r\nTE: gzip\r\n"), "200"},
		{"A14", "OPTIONS *", "OPTIONS * HTTP/1.1\r\n" + host + "\r\n", "200/404"},
		{"A14", "GET *", "GET * HTTP/1.1\r\n" + host + "\r\n", "400/404"},
		{"A14", "CONNECT /", "CONNECT / HTTP/1.1\r\n" + host + "\r\n", "400"},
		{"A14", "CONNECT without port", "CONNECT a HTTP/1.1\r\n" + host + "\r\n", "400/404"},
		{"A14", "CONNECT", "CONNECT a:80 HTTP/1.1\r\n" + host + "\r\n", "403/404"},
	}
	for _, h := range []string{"a\r\nHost: a", "a\r\nHost: b", "a b", "a, b", "u@b", "a:80:90", "[::1", "a\x00b"} {
		out = append(out, lineUp{"A2", fmt.Sprintf("host %q", h), get("Host: " + h + "\r\n"), "400"})
	}
	for _, f := range []string{"Name : v", "Te\r\nst: x", ": empty", "X y: z", "x: a\r\n folded"} {
		out = append(out, lineUp{"A5", fmt.Sprintf("field %q", f), get(host + f + "\r\n"), "400"})
	}
	out = append(out, lineUp{"A5", "a field that begins with a tab", get("\tHost: a\r\n"), "400"})
	for c := range 256 {
		b := string([]byte{byte(c)})
		if !token("x"+b) && c != ':' {
			out = append(out, lineUp{"A5", fmt.Sprintf("byte %#02x in a name", c), get(host + "X" + b + "Y: z\r\n"), "400"})
		}
		if c < ' ' && c != '\t' || c == 0x7f {
			out = append(out, lineUp{"A6", fmt.Sprintf("byte %#02x in a value", c), get(host + "X: a" + b + "b\r\n"), "400"})
		}
	}
	return out
}

// Each line of the table for HTTP/1, byte for byte: the statuses of all answers, and
// nothing behind one of 400.
func TestTheRowsOfHTTP1(t *testing.T) {
	o := newLiar(t, func(string) string { return "HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok" })
	port := running.FreePort(t)
	running.Start(t, fmt.Sprintf(upgradeBootstrap, port, running.Port(o.l)), port)
	rows := httpRows()
	if len(rows) != 246 {
		t.Errorf("%d rows, want 246", len(rows))
	}
	each(len(rows), func(i int) {
		r := rows[i]
		last := "GET /last HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n"
		if strings.Contains(r.bytes, "lose") {
			last = ""
		}
		a, closed, err := exchange(running.Address(port), r.bytes+last, 10*time.Second)
		var got []string
		for rest := a; ; {
			i := bytes.Index(rest, []byte("HTTP/1.1 "))
			if i < 0 || len(rest) < i+12 {
				break
			}
			got = append(got, string(rest[i+9:i+12]))
			rest = rest[i+12:]
		}
		want := strings.Fields(r.want)
		refused := strings.ContainsAny(want[len(want)-1], "45") && want[len(want)-1][0] != '2'
		if !refused && last != "" {
			want = append(want, "200")
		}
		ok := err == nil && closed && len(got) >= len(want) && (len(got) == len(want) || refused && last != "" && len(got) == len(want)+1 && want[len(want)-1] != "400")
		for i := range min(len(want), len(got)) {
			ok = ok && strings.Contains("/"+want[i]+"/", "/"+got[i]+"/")
		}
		if !ok {
			t.Errorf("%s, %s: statuses %v, closed %t, %v, want %v", r.row, r.name, got, closed, err, want)
		}
	})
}
