package desync

import (
	"bytes"
	"fmt"
	"math/rand/v2"
	"os"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"
)

// meaningful are bytes that parsers look for.
var meaningful = []string{
	"\r\n", "\n", "\r", "\r\n\r\n", "0\r\n\r\n", " ", "\t", "\x00", "\x0b", "\x7f", "\x85", "\xa0", ":", ",", ";", "?", "#", "/", "//", "\\", "%0d%0a", "5\r\n", "-1", "0x5", "+5",
	"Content-Length: 5\r\n", "Content-Length: 0\r\n", "Transfer-Encoding: chunked\r\n", "Host: x\r\n", "Connection: close\r\n", "Connection: Content-Length\r\n", "Expect: 100-continue\r\n",
	"Upgrade: h2c\r\n", "GET /second HTTP/1.1\r\nHost: h.example\r\n\r\n", "HTTP/1.0", "HTTP/1.1 ", "chunked", "identity",
}

// mutate changes b in one of thirteen ways; other is another case.
func mutate(r *rand.Rand, b, other string) string {
	i, j := r.IntN(len(b)+1), r.IntN(len(b)+1)
	i, j = min(i, j), max(i, j)
	lines := strings.SplitAfter(b, "\n")
	k, l := r.IntN(len(lines)), r.IntN(len(lines))
	switch r.IntN(13) {
	case 0: // delete a byte
		return b[:i] + b[min(i+1, len(b)):]
	case 1: // delete a few
		return b[:i] + b[min(j, i+4):]
	case 2: // replace a byte
		return b[:i] + string([]byte{byte(r.IntN(256))}) + b[min(i+1, len(b)):]
	case 3: // flip a bit
		c := []byte(b)
		if len(c) > 0 {
			c[r.IntN(len(c))] ^= 1 << r.IntN(8)
		}
		return string(c)
	case 4: // insert a byte
		return b[:i] + string([]byte{byte(r.IntN(256))}) + b[i:]
	case 5, 6: // insert what means something
		return b[:i] + meaningful[r.IntN(len(meaningful))] + b[i:]
	case 7: // splice
		return b[:i] + other[r.IntN(len(other)+1):]
	case 8: // repeat a part
		return b[:j] + b[i:]
	case 9: // swap two lines
		lines[k], lines[l] = lines[l], lines[k]
	case 10: // repeat a line
		lines[k] += lines[k]
	case 11: // change the case of a line
		lines[k] = strings.ToUpper(lines[k])
	case 12: // end a line otherwise
		lines[k] = strings.TrimRight(lines[k], "\r\n") + []string{"\n", "\r", "\r\r\n", ""}[r.IntN(4)]
	}
	return strings.Join(lines, "")
}

// mutations is $DESYNC_MUTATIONS, 30,000 by default: docs/engine-tests.md says when
// a million were tried.
func mutations(t *testing.T) int {
	t.Helper()
	s := os.Getenv("DESYNC_MUTATIONS")
	if s == "" {
		return 30_000
	}
	n, err := strconv.Atoi(s)
	if err != nil || n < 20 {
		t.Fatalf("DESYNC_MUTATIONS=%s: want a number, 20 or more", s)
	}
	return n
}

// Cases of the corpus, changed at random in one to four places: the seed is
// fixed, so that a violation comes again.
func TestMutatedRequestsReachTheOriginCleanOrNotAtAll(t *testing.T) {
	n := mutations(t)
	o := newOrigin(t)
	h1, _ := start(t, o)
	seeds := h1Cases()
	for _, c := range tieredCases() {
		seeds = append(seeds, rawCase{name: c.name, bytes: c.bytes, valid: c.tier == compliant})
	}
	r := rand.New(rand.NewPCG(16, 9112))
	cases := make([]string, n)
	var good []rawCase
	for _, c := range seeds {
		if c.valid {
			good = append(good, c)
		}
	}
	for i := range cases {
		from := [][]rawCase{seeds, good}[r.IntN(2)] // most others are refused as they are
		b := from[r.IntN(len(from))].bytes
		for range 1 + r.IntN(4) {
			b = mutate(r, b, seeds[r.IntN(len(seeds))].bytes)
		}
		cases[i] = strings.Replace(b, "Host: h.example\r\n", fmt.Sprintf("Host: h.example\r\nX-Case: %d\r\n", i), 1)
	}
	// Controls, among all the others.
	valid := 0
	for i := 0; i < n; i += 20 {
		cases[i] = fmt.Sprintf("POST /control HTTP/1.1\r\nHost: h.example\r\nX-Case: %d\r\nConnection: close\r\nContent-Length: 5\r\n\r\nabcde", i)
		valid++
	}
	var mu sync.Mutex
	refused := 0
	each(n, func(i int) {
		var a []byte
		var err error
		if i%20 == 0 { // who ends its direction has gone, on a machine that is busy
			a, _, err = exchange(h1, cases[i], 20*time.Second)
		} else {
			a, err = send(h1, []byte(cases[i]))
		}
		mu.Lock()
		defer mu.Unlock()
		ok := bytes.HasPrefix(a, []byte("HTTP/1.1 200"))
		if !ok {
			refused++
		}
		if i%20 == 0 && !ok {
			t.Errorf("a valid request got %q, %v", a[:min(len(a), 100)], err)
		}
	})
	forwarded := o.judge(t, func(id string) string {
		var i int
		if _, err := fmt.Sscan(id, &i); err != nil || i < 0 || i >= n {
			return "unknown"
		}
		return fmt.Sprintf("%q", cases[i][:min(len(cases[i]), 300)])
	})
	t.Logf("%d cases, %d of them valid, %d refused, %d requests reached the origin", n, valid, refused, forwarded)
	if valid != (n+19)/20 || forwarded < n*2/15 || refused < n/3 {
		t.Errorf("%d valid cases, %d requests forwarded, %d refused: the cases do not test what they should", valid, forwarded, refused)
	}
}
