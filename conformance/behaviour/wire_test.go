package behaviour

import (
	"bufio"
	"strings"
	"testing"
)

func TestMatchComparesLinesAndStars(t *testing.T) {
	for _, tc := range []struct {
		name, want, got string
		match           bool
	}{
		{"the same", "a: 1\nb: 2\n", "a: 1\nb: 2\n", true},
		{"another value", "a: 1\n", "a: 2\n", false},
		{"a line more", "a: 1\n", "a: 1\nb: 2\n", false},
		{"a line less", "a: 1\nb: 2\n", "a: 1\n", false},
		{"a star is any value", "a: *\n", "a: 7\n", true},
		{"a star is not no value", "a: *\n", "a:\n", false},
		{"a star is of its header", "a: *\n", "ab: 7\n", false},
		{"a star in a record is a value", "[*] \"*\" 7 *\n", "[12:00] \"GET\" 7 x:9\n", true},
		{"it is one value", "[*] *\n", "[12:00] a b\n", false},
		{"it is not no value", "{\"a\":\"*\"}\n", "{\"a\":\"\"}\n", false},
		{"what is around it counts", "{\"a\":*,\"b\":1}\n", "{\"a\":3,\"b\":2}\n", false},
		{"stars in JSON", "{\"a\":\"*\",\"b\":*}\n", "{\"a\":\"x\",\"b\":12}\n", true},
		{"a lone star is anything", "*\n", "a: 1\nb: 2\n", true},
	} {
		t.Run(tc.name, func(t *testing.T) {
			if got := Match(tc.want, tc.got); got != tc.match {
				t.Errorf("Match = %v, want %v", got, tc.match)
			}
		})
	}
}

func TestDiffMarksWhatIsMissingAndWhatIsMore(t *testing.T) {
	got := Diff("a: 1\nb: *\nc: 3\n", "a: 1\nb: 2\nd: 4\n")
	if want := "  a: 1\n  b: 2\n- c: 3\n+ d: 4\n"; got != want {
		t.Errorf("Diff =\n%swant\n%s", got, want)
	}
}

func TestAMessageIsWrittenWithSortedHeadersAndItsBody(t *testing.T) {
	r := bufio.NewReader(strings.NewReader(
		"HTTP/1.1 200 OK\r\nx-b: 2\r\nTransfer-Encoding: chunked\r\nx-a: \xe9\r\nx-b: 1\r\n\r\n5;x\r\nhello\r\n0\r\nt: 1\r\n\r\nrest"))
	m, final, err := readResponse(r, "GET")
	if err != nil || !final {
		t.Fatal(final, err)
	}
	var b strings.Builder
	m.canonical(&b, func(h header) (string, bool) { return h.value, true })
	want := "HTTP/1.1 200 OK\nTransfer-Encoding: chunked\nx-a: \"\\xe9\"\nx-b: 2\nx-b: 1\n| body \"hello\"\n| trailer t: 1\n"
	if b.String() != want {
		t.Errorf("got\n%swant\n%s", b.String(), want)
	}
}

func TestARequestSectionBecomesBytes(t *testing.T) {
	for _, tc := range []struct {
		name, text string
		raw        bool
		want       string
	}{
		{"the empty line is added", "GET / HTTP/1.1\nHost: a\n", false, "GET / HTTP/1.1\r\nHost: a\r\n\r\n"},
		{"a body ends where its text does", "POST / HTTP/1.1\nContent-Length: 2\n\nhi\n", false, "POST / HTTP/1.1\r\nContent-Length: 2\r\n\r\nhi"},
		{"chunks keep their ends", "POST / HTTP/1.1\nTransfer-Encoding: chunked\n\n0\n\n", false, "POST / HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n"},
		{"raw lines are literals", "\"a\\r\\n\"\n\"b\\x00\"\n", true, "a\r\nb\x00"},
	} {
		t.Run(tc.name, func(t *testing.T) {
			chunks, err := parseRequest(tc.raw, tc.text)
			if err != nil || len(chunks) != 1 || chunks[0].Data != tc.want {
				t.Errorf("got %q, %v, want %q", chunks, err, tc.want)
			}
		})
	}
}

func TestAnswersComeInTurnAndTheLastStays(t *testing.T) {
	script, err := parseAnswers("status 503\nbody \"a\\n\"\n---\nclose\n---\nheader x: 1\n")
	if err != nil {
		t.Fatal(err)
	}
	rec := &recording{scripts: [2][]Answer{script}}
	var got []string
	for range 4 {
		_, a := rec.add(0, &message{start: "GET / HTTP/1.1"})
		if a.empty && a.Close {
			got = append(got, "closed")
			continue
		}
		got = append(got, a.text(0, "GET / HTTP/1.1"))
	}
	last := "HTTP/1.1 200 Status\r\nx: 1\r\ncontent-length: 7\r\n\r\norigin1"
	want := []string{"HTTP/1.1 503 Status\r\ncontent-length: 2\r\n\r\na\n", "closed", last, last}
	if strings.Join(got, "|") != strings.Join(want, "|") {
		t.Errorf("got %q, want %q", got, want)
	}
}

func TestADifferingCaseReplacesOnlyWhatItNames(t *testing.T) {
	s, err := Parse("x/y.txtar", []byte(`comment
-- bootstrap.yaml --
{{.Port}}
-- request one --
GET / HTTP/1.1
-- want.upstream --
nothing
-- want.client --
HTTP/1.1 200 OK
-- differs --
because
-- differs.client --
HTTP/1.1 400 Bad Request
`))
	if err != nil {
		t.Fatal(err)
	}
	if err := s.Check(); err != nil {
		t.Fatal(err)
	}
	want := Seen{Upstream: "nothing\n", Client: "HTTP/1.1 400 Bad Request\n"}
	if got := s.Cases[0].Fairlead(); got != want {
		t.Errorf("got %q, want %q", got, want)
	}
}

// FuzzParse checks that a file that is read is written back without loss.
func FuzzParse(f *testing.F) {
	f.Add([]byte("c\n-- bootstrap.yaml --\n{{.Port}}\n-- request a --\nGET / HTTP/1.1\n-- origin --\nstatus 503\n---\nclose\n-- want.client --\nx\n"))
	f.Add([]byte("c\n-- options --\nshow server\n-- request.raw a --\n\"x\"\npause 1ms\n-- differs --\ny\n"))
	f.Fuzz(func(t *testing.T, data []byte) {
		s, err := Parse("area/f.txtar", data)
		if err != nil {
			return
		}
		again, err := Parse("area/f.txtar", s.Format())
		if err != nil {
			t.Fatalf("what was written is not read: %v", err)
		}
		if string(again.Format()) != string(s.Format()) || len(again.Cases) != len(s.Cases) {
			t.Errorf("written twice:\n%s\n%s", s.Format(), again.Format())
		}
	})
}
