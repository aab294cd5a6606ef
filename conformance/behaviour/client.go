package behaviour

import (
	"bufio"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"strings"
	"sync"
	"syscall"
	"time"
)

// hidden are the response headers that are compared only where a suite says
// so.
var hidden = map[string]bool{"date": true, "server": true, "x-envoy-upstream-service-time": true}

// patience is how long the client waits for a response.
const patience = 4 * time.Second

// exchange sends the chunks on a new connection and returns what came back.
func exchange(port int, chunks []Chunk, opts ClientOptions, compare map[string]bool) (string, error) {
	c, err := net.Dial("tcp4", fmt.Sprintf("127.0.0.1:%d", port))
	if errors.Is(err, syscall.ECONNRESET) {
		return ending(err), nil // accepted and refused before the client knew
	}
	if err != nil {
		return "", err
	}
	var writing sync.WaitGroup
	defer writing.Wait()
	defer c.Close()
	if err := c.SetDeadline(time.Now().Add(patience)); err != nil {
		return "", err
	}
	writing.Go(func() {
		for _, ch := range chunks {
			time.Sleep(ch.Pause)
			if _, err := io.WriteString(c, ch.Data); err != nil {
				return // the proxy has answered and closed
			}
		}
	})
	if opts.HangUp > 0 {
		hangUp := time.AfterFunc(opts.HangUp, func() { c.Close() })
		defer hangUp.Stop()
	}
	methods := requestMethods(chunks)
	r := bufio.NewReader(c)
	var b strings.Builder
	for n := 0; n < opts.Responses; {
		if b.Len() > 0 {
			b.WriteString("\n")
		}
		m, final, err := readResponse(r, methods[min(n, len(methods)-1)])
		if m == nil {
			b.WriteString(ending(err))
			break
		}
		m.canonical(&b, func(h header) (string, bool) {
			name := strings.ToLower(h.name)
			return h.value, compare[name] || !hidden[name]
		})
		if err != nil {
			break
		}
		if final {
			n++
		}
	}
	return b.String(), nil
}

// requestMethods guesses the methods of pipelined requests: the words before
// targets that end in an HTTP version.
func requestMethods(chunks []Chunk) []string {
	var all strings.Builder
	for _, ch := range chunks {
		all.WriteString(ch.Data)
	}
	var ms []string
	for line := range strings.Lines(all.String()) {
		if strings.Contains(line, " HTTP/1.") {
			method, _, _ := strings.Cut(line, " ")
			ms = append(ms, method)
		}
	}
	return append(ms, "GET")
}

// readResponse reads one response; m is nil when not even its head came.
// final is false for an interim response.
func readResponse(r *bufio.Reader, method string) (m *message, final bool, err error) {
	m, err = readHead(r)
	if err != nil {
		return nil, false, err
	}
	_, rest, _ := strings.Cut(m.start, " ")
	if strings.HasPrefix(rest, "1") {
		return m, strings.HasPrefix(rest, "101"), nil
	}
	if method == "HEAD" || strings.HasPrefix(rest, "204") || strings.HasPrefix(rest, "304") {
		return m, true, nil
	}
	if err := m.readBody(r, true); err != nil {
		m.state = strings.TrimPrefix(strings.TrimSpace(ending(err)), "| ")
		return m, true, err
	}
	return m, true, nil
}

// ending says how a connection that gave no whole response ended.
func ending(err error) string {
	if errors.Is(err, os.ErrDeadlineExceeded) {
		return "| silence\n"
	}
	return "| closed\n" // by FIN or RST: which one is a race with what was sent
}
