package behaviour

import (
	"bufio"
	"errors"
	"fmt"
	"io"
	"slices"
	"strconv"
	"strings"
)

// message is one HTTP/1.1 message as it was on the wire.
type message struct {
	start    string // the first line
	headers  []header
	body     string
	trailers []header
	state    string // why the message ended early, or empty
}

type header struct{ name, value string }

// get returns the first value of a header, by its lower case name.
func (m *message) get(name string) string {
	for _, h := range m.headers {
		if strings.EqualFold(h.name, name) {
			return h.value
		}
	}
	return ""
}

// readHead reads a first line and headers. It is lenient: what a proxy sends
// is to be shown, not judged.
func readHead(r *bufio.Reader) (*message, error) {
	start, err := readLine(r)
	if err != nil {
		return nil, err
	}
	m := &message{start: start}
	m.headers, err = readHeaders(r)
	return m, err
}

func readHeaders(r *bufio.Reader) ([]header, error) {
	var hs []header
	for {
		line, err := readLine(r)
		if err != nil || line == "" {
			return hs, err
		}
		name, value, ok := strings.Cut(line, ":")
		if !ok {
			name, value = line, "(no colon)"
		}
		hs = append(hs, header{name, strings.TrimSpace(value)})
	}
}

func readLine(r *bufio.Reader) (string, error) {
	line, err := r.ReadString('\n')
	if err != nil {
		if line != "" && errors.Is(err, io.EOF) {
			err = io.ErrUnexpectedEOF
		}
		return line, err
	}
	return strings.TrimRight(line, "\r\n"), nil
}

// readBody reads the body of m by its framing headers. toEOF says that a
// message without them ends with the connection, as a response does.
func (m *message) readBody(r *bufio.Reader, toEOF bool) error {
	var b strings.Builder
	var err error
	switch te, cl := m.get("transfer-encoding"), m.get("content-length"); {
	case strings.Contains(strings.ToLower(te), "chunked"):
		m.trailers, err = readChunks(r, &b)
	case cl != "":
		var n int64
		if n, err = strconv.ParseInt(cl, 10, 64); err == nil {
			_, err = io.CopyN(&b, r, n)
		}
	case toEOF:
		_, err = io.Copy(&b, r)
	}
	m.body = b.String()
	return err
}

func readChunks(r *bufio.Reader, b *strings.Builder) ([]header, error) {
	for {
		line, err := readLine(r)
		if err != nil {
			return nil, err
		}
		size, _, _ := strings.Cut(line, ";")
		n, err := strconv.ParseInt(strings.TrimSpace(size), 16, 64)
		if err != nil {
			return nil, fmt.Errorf("chunk size %q: %w", line, err)
		}
		if n == 0 {
			return readHeaders(r)
		}
		if _, err := io.CopyN(b, r, n); err != nil {
			return nil, err
		}
		if _, err := readLine(r); err != nil {
			return nil, err
		}
	}
}

// canonical writes m with sorted headers. keep may change a value or leave a
// header out.
func (m *message) canonical(b *strings.Builder, keep func(h header) (string, bool)) {
	b.WriteString(m.start + "\n")
	hs := slices.Clone(m.headers)
	slices.SortStableFunc(hs, func(x, y header) int { return strings.Compare(x.name, y.name) })
	for _, h := range hs {
		if v, ok := keep(h); ok {
			b.WriteString(strings.TrimRight(h.name+": "+show(v), " ") + "\n")
		}
	}
	if m.body != "" {
		fmt.Fprintf(b, "| body %s\n", quote(m.body))
	}
	for _, h := range m.trailers {
		fmt.Fprintf(b, "| trailer %s: %s\n", h.name, show(h.value))
	}
	if m.state != "" {
		fmt.Fprintf(b, "| %s\n", m.state)
	}
}

// quote shortens long bodies: their length and ends tell them apart.
func quote(s string) string {
	if len(s) > 400 {
		return fmt.Sprintf("%q ... %q (%d bytes)", s[:20], s[len(s)-20:], len(s))
	}
	return strconv.Quote(s)
}

// show writes a value so that a file of the corpus stays plain text.
func show(v string) string {
	if strings.IndexFunc(v, func(r rune) bool { return r < ' ' || r > '~' }) < 0 {
		return v
	}
	return strconv.QuoteToASCII(v)
}

// Match reports whether got is what want says: equal line by line, where a
// value "*" in want is any value that is not empty. A want that is just "*"
// is met by anything: it stands where what happens is a race.
func Match(want, got string) bool {
	if want == "*\n" {
		return true
	}
	w, g := strings.Split(want, "\n"), strings.Split(got, "\n")
	return slices.EqualFunc(w, g, func(w, g string) bool {
		if name, ok := strings.CutSuffix(w, ": *"); ok {
			return strings.HasPrefix(g, name+": ")
		}
		return w == g || w != "" && strings.ContainsRune("[{", rune(w[0])) && matchRecord(w, g)
	})
}

// matchRecord matches a line of an access log, where "*" is a value without
// spaces, quotes, commas and closing brackets.
func matchRecord(want, got string) bool {
	parts := strings.Split(want, "*")
	got, ok := strings.CutPrefix(got, parts[0])
	for _, p := range parts[1:] {
		end := strings.IndexAny(got, "\" ,}]")
		if end < 0 {
			end = len(got)
		}
		if !ok || end == 0 {
			return false
		}
		got, ok = strings.CutPrefix(got[end:], p)
	}
	return ok && got == ""
}

// Diff returns the lines of want and got with "-" and "+" before those only
// one of them has.
func Diff(want, got string) string {
	w, g := strings.Split(strings.TrimSuffix(want, "\n"), "\n"), strings.Split(strings.TrimSuffix(got, "\n"), "\n")
	// lens[i][j] is the length of the longest common subsequence of w[i:], g[j:].
	lens := make([][]int, len(w)+1)
	for i := range lens {
		lens[i] = make([]int, len(g)+1)
	}
	for i := len(w) - 1; i >= 0; i-- {
		for j := len(g) - 1; j >= 0; j-- {
			if Match(w[i], g[j]) {
				lens[i][j] = lens[i+1][j+1] + 1
			} else {
				lens[i][j] = max(lens[i+1][j], lens[i][j+1])
			}
		}
	}
	var b strings.Builder
	for i, j := 0, 0; i < len(w) || j < len(g); {
		switch {
		case i < len(w) && j < len(g) && Match(w[i], g[j]):
			b.WriteString("  " + g[j] + "\n")
			i, j = i+1, j+1
		case i < len(w) && (j == len(g) || lens[i+1][j] >= lens[i][j+1]):
			b.WriteString("- " + w[i] + "\n")
			i++
		default:
			b.WriteString("+ " + g[j] + "\n")
			j++
		}
	}
	return b.String()
}
