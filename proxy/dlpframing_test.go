package proxy_test

import (
	"bufio"
	"fmt"
	"io"
	"net"
	"net/http"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"
)

// TestEveryFramingIsInspected sends a card number on real connections, in every
// way that a body can be framed, both ways: it is stopped in each.
func TestEveryFramingIsInspected(t *testing.T) {
	const card = "4111111111111111"
	var mu sync.Mutex
	var seen []string // bodies at the application
	app := h2cServer(t, func(w http.ResponseWriter, r *http.Request) {
		b, _ := io.ReadAll(r.Body)
		mu.Lock()
		seen = append(seen, string(b))
		mu.Unlock()
		text := "clean"
		if r.URL.Query().Has("dirty") {
			text = "the card " + card + " of somebody"
		}
		if r.URL.Query().Has("length") {
			w.Header().Set("Content-Length", fmt.Sprint(len(text)))
		}
		for i := range text {
			_, _ = io.WriteString(w, text[i:i+1])
			if r.URL.Query().Has("bytes") {
				_ = http.NewResponseController(w).Flush()
			}
		}
	})
	closing := closeDelimited(t, "the card "+card+" of somebody")
	ports := map[string]int{}
	var doc strings.Builder
	doc.WriteString("node: {id: a, cluster: a}\nstatic_resources:\n  listeners:")
	for name, cluster := range map[string]string{"h1": "one", "h2": "two", "closing": "closing"} {
		ports[name] = freePort(t)
		doc.WriteString(strings.Replace(hcmListener(name, ports[name], cluster, ""), "http_filters: [", `http_filters: [{name: dlp, typed_config: {"@type": type.googleapis.com/fairlead.dlp.v1.Config, rules: [{name: r, info_types: [CREDIT_CARD_NUMBER], action: BLOCK}]}}, `, 1))
	}
	startProxy(t, doc.String()+"\n  clusters:"+httpCluster("one", app, "http_protocol_options: {}")+httpCluster("two", app, "http2_protocol_options: {}")+
		httpCluster("closing", closing, "http_protocol_options: {}"), nil)

	body := "the card " + card + " of somebody"
	h2 := h2cClient(t)
	second := func(port int, path string, body io.Reader, length int64) (int, string) {
		return posted(t, h2, fmt.Sprintf("http://127.0.0.1:%d%s", port, path), body, length)
	}
	n := 0
	for _, up := range []string{"h1", "h2"} {
		port := ports[up]
		head := fmt.Sprintf("POST / HTTP/1.1\r\nHost: 127.0.0.1:%d\r\n", port)
		for name, ask := range map[string]func() (int, string){
			"chunks": func() (int, string) {
				return overTCP(t, port, head+"Transfer-Encoding: chunked\r\n\r\n"+chunks(body, 7))
			},
			"chunks of one byte": func() (int, string) {
				return overTCP(t, port, head+"Transfer-Encoding: chunked\r\n\r\n"+chunks(body, 1))
			},
			"a length": func() (int, string) {
				return overTCP(t, port, head+fmt.Sprintf("Content-Length: %d\r\n\r\n%s", len(body), body))
			},
			"expecting 100": func() (int, string) {
				return overTCP(t, port, head+fmt.Sprintf("Expect: 100-continue\r\nContent-Length: %d\r\n\r\n%s", len(body), body))
			},
			"HTTP/2, a length":        func() (int, string) { return second(port, "/", strings.NewReader(body), int64(len(body))) },
			"HTTP/2, no length":       func() (int, string) { return second(port, "/", io.MultiReader(strings.NewReader(body)), -1) },
			"HTTP/2, one byte a DATA": func() (int, string) { return second(port, "/", &slowly{s: body}, -1) },
			"an answer in chunks":     func() (int, string) { return second(port, "/?dirty", nil, 0) },
			"an answer of a length":   func() (int, string) { return second(port, "/?dirty&length", nil, 0) },
			"an answer byte by byte":  func() (int, string) { return second(port, "/?dirty&bytes", nil, 0) },
			"an answer to HTTP/1.1": func() (int, string) {
				return overTCP(t, port, strings.Replace(head, "POST / ", "GET /?dirty&bytes ", 1)+"\r\n")
			},
		} {
			if status, got := ask(); status != 403 || strings.Contains(got, card) {
				t.Errorf("%s over %s: status %d, %q", name, up, status, got)
			}
			n++
		}
		// And what is clean passes.
		if status, got := second(port, "/", strings.NewReader("clean"), -1); status != 200 || got != "clean" {
			t.Errorf("clean over %s: status %d, %q", up, status, got)
		}
	}
	if status, got := second(ports["closing"], "/", nil, 0); status != 403 || strings.Contains(got, card) {
		t.Errorf("an answer until the connection ends: status %d, %q", status, got)
	}
	if n++; n != 23 {
		t.Errorf("%d framings: want 23", n)
	}
	mu.Lock()
	defer mu.Unlock()
	for _, b := range seen {
		if strings.Contains(b, card) {
			t.Errorf("the application got %q", b)
		}
	}
}

// chunks is body in chunks of n bytes.
func chunks(body string, n int) string {
	var b strings.Builder
	for p := body; p != ""; {
		k := min(n, len(p))
		fmt.Fprintf(&b, "%x\r\n%s\r\n", k, p[:k])
		p = p[k:]
	}
	return b.String() + "0\r\n\r\n"
}

// overTCP sends text and returns the final response.
func overTCP(t *testing.T, port int, text string) (int, string) {
	t.Helper()
	c, err := net.Dial("tcp", fmt.Sprintf("127.0.0.1:%d", port))
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	_ = c.SetDeadline(time.Now().Add(20 * time.Second))
	if _, err := io.WriteString(c, text); err != nil {
		t.Fatal(err)
	}
	r := bufio.NewReader(c)
	for {
		resp, err := http.ReadResponse(r, nil)
		if err != nil {
			t.Fatal(err)
		}
		b, _ := io.ReadAll(resp.Body)
		if resp.StatusCode != http.StatusContinue {
			return resp.StatusCode, string(b)
		}
	}
}

// posted posts body, whose length is -1 if that is not to be said.
func posted(t *testing.T, c *http.Client, url string, body io.Reader, length int64) (int, string) {
	t.Helper()
	req, err := http.NewRequestWithContext(t.Context(), http.MethodPost, url, body)
	if err != nil {
		t.Fatal(err)
	}
	req.ContentLength = length
	resp, err := c.Do(req)
	if err != nil {
		return 0, err.Error()
	}
	defer resp.Body.Close()
	b, _ := io.ReadAll(resp.Body)
	return resp.StatusCode, string(b)
}

// slowly is a reader of one byte at a time, with pauses.
type slowly struct{ s string }

func (r *slowly) Read(p []byte) (int, error) {
	if r.s == "" {
		return 0, io.EOF
	}
	time.Sleep(time.Millisecond)
	p[0], r.s = r.s[0], r.s[1:]
	return 1, nil
}

// closeDelimited is an HTTP/1.0 server: its answer ends with the connection.
func closeDelimited(t *testing.T, text string) (port string) {
	t.Helper()
	return strconv.Itoa(tcpServer(t, func(c net.Conn, _ <-chan struct{}) {
		if _, err := http.ReadRequest(bufio.NewReader(c)); err == nil {
			_, _ = io.WriteString(c, "HTTP/1.0 200 OK\r\n\r\n"+text)
		}
	}))
}
