package desync

import (
	"bufio"
	"bytes"
	"fmt"
	"io"
	"net"
	"net/http"
	"strings"
	"testing"
	"time"

	"github.com/fairlead-mesh/fairlead/conformance/running"
)

// liar is an origin that answers each path with bytes of its choice.
type liar struct {
	l      net.Listener
	answer func(head string) string
}

func newLiar(t *testing.T, answer func(head string) string) *liar {
	t.Helper()
	l, err := net.Listen("tcp", running.Address(0))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = l.Close() })
	o := &liar{l, answer}
	go func() {
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			go o.serve(c)
		}
	}()
	return o
}

func (o *liar) serve(c net.Conn) {
	defer c.Close()
	for br := bufio.NewReader(c); ; {
		r, err := http.ReadRequest(br)
		if err != nil {
			return
		}
		_, _ = io.Copy(io.Discard, r.Body)
		if _, err := io.WriteString(c, o.answer(r.URL.Path)); err != nil {
			return
		}
	}
}

// lies are responses that are read in more than one way, or are more than one.
var lies = []struct {
	name, bytes string
	// ok says that the first part of it may be passed on as it is.
	ok bool
}{
	{"a length and chunks", "HTTP/1.1 200 OK\r\nContent-Length: 5\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\nHTTP/1.1 200 OK\r\nContent-Length: 4\r\n\r\nevil", false},
	{"chunks and a length", "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\nContent-Length: 5\r\n\r\n0\r\n\r\n", false},
	{"two lengths", "HTTP/1.1 200 OK\r\nContent-Length: 2\r\nContent-Length: 40\r\n\r\nokHTTP/1.1 200 OK\r\nContent-Length: 4\r\n\r\nevil", false},
	{"a list of lengths", "HTTP/1.1 200 OK\r\nContent-Length: 2, 2\r\n\r\nok", false},
	{"a length with a sign", "HTTP/1.1 200 OK\r\nContent-Length: +2\r\n\r\nok", false},
	{"a negative length", "HTTP/1.1 200 OK\r\nContent-Length: -1\r\n\r\nok", false},
	{"a length beyond 64 bits", "HTTP/1.1 200 OK\r\nContent-Length: 18446744073709551618\r\n\r\nok", false},
	{"a line that ends with LF", "HTTP/1.1 200 OK\r\nX: a\nY: b\r\nContent-Length: 2\r\n\r\nok", false},
	{"a line that ends with CR", "HTTP/1.1 200 OK\r\nX: a\rY: b\r\nContent-Length: 2\r\n\r\nok", false},
	{"NUL in a value", "HTTP/1.1 200 OK\r\nX: a\x00b\r\nContent-Length: 2\r\n\r\nok", false},
	{"a folded line", "HTTP/1.1 200 OK\r\nX: a\r\n b\r\nContent-Length: 2\r\n\r\nok", false},
	{"a space before the colon", "HTTP/1.1 200 OK\r\nContent-Length : 2\r\n\r\nok", false},
	{"another coding", "HTTP/1.1 200 OK\r\nTransfer-Encoding: gzip\r\n\r\nok", false},
	{"chunked twice", "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked, chunked\r\n\r\n0\r\n\r\n", false},
	{"101 that nobody asked for", "HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n\r\nHTTP/1.1 200 OK\r\nContent-Length: 4\r\n\r\nevil", false},
	{"HTTP/2.0", "HTTP/2.0 200 OK\r\nContent-Length: 2\r\n\r\nok", false},
	{"no version", "200 OK\r\nContent-Length: 2\r\n\r\nok", false},
	{"a status of two digits", "HTTP/1.1 20 OK\r\nContent-Length: 2\r\n\r\nok", false},
	{"a status of four digits", "HTTP/1.1 2000 OK\r\nContent-Length: 2\r\n\r\nok", false},
	{"a request", "GET / HTTP/1.1\r\nHost: a\r\n\r\n", false},
	{"two responses", "HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nokHTTP/1.1 200 OK\r\nContent-Length: 4\r\n\r\nevil", true},
	{"bytes behind the response", "HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok evil evil evil", true},
	{"a chunked response and another", "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n2\r\nok\r\n0\r\n\r\nHTTP/1.1 200 OK\r\nContent-Length: 4\r\n\r\nevil", true},
	{"204 with a body", "HTTP/1.1 204 No Content\r\nContent-Length: 42\r\n\r\nHTTP/1.1 200 OK\r\nContent-Length: 4\r\n\r\nevil", true},
	{"304 with a body", "HTTP/1.1 304 Not Modified\r\nContent-Length: 4\r\n\r\nevil", true},
	{"an interim answer, then one, then another", "HTTP/1.1 103 Early Hints\r\n\r\nHTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nokHTTP/1.1 200 OK\r\nContent-Length: 4\r\n\r\nevil", true},
	{"chunks with a bad size", "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n0x2\r\nok\r\n0\r\n\r\n", false},
	{"chunks whose lines end with LF", "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n2\nok\n0\n\n", false},
	{"trailers that frame", "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n2\r\nok\r\n0\r\nContent-Length: 40\r\n\r\n", true},
}

// Whatever an origin answers, the client gets a valid response, an error, or one
// that breaks off; the next one, on any connection, gets its own.
func TestNoClientGetsTheRestOfAnothersResponse(t *testing.T) {
	if len(lies) != 29 {
		t.Errorf("%d responses, want 29", len(lies))
	}
	o := newLiar(t, func(path string) string {
		var i int
		if _, err := fmt.Sscanf(path, "/lie/%d", &i); err == nil {
			return lies[i].bytes
		}
		return fmt.Sprintf("HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n%s", len(path), path)
	})
	h1 := running.FreePort(t)
	running.Start(t, fmt.Sprintf(upgradeBootstrap, h1, running.Port(o.l)), h1)
	for i, x := range lies {
		t.Run(x.name, func(t *testing.T) {
			a, _, _ := exchange(running.Address(h1), fmt.Sprintf("GET /lie/%d HTTP/1.1", i)+"\r\nHost: a\r\n\r\nGET /behind HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n", 10*time.Second)
			if bytes.Contains(a, []byte("evil")) {
				t.Errorf("the client got %q", a)
			}
			br := bufio.NewReader(bytes.NewReader(a))
			r, err := http.ReadResponse(br, &http.Request{Method: http.MethodGet})
			if err != nil {
				t.Fatalf("no response: %q", a)
			}
			for r.StatusCode >= 100 && r.StatusCode < 200 {
				if r.StatusCode == http.StatusSwitchingProtocols {
					t.Fatalf("the client got %q", a)
				}
				if r, err = http.ReadResponse(br, &http.Request{Method: http.MethodGet}); err != nil {
					t.Fatalf("no response: %q", a)
				}
			}
			body, err := io.ReadAll(r.Body)
			if !x.ok && r.StatusCode == http.StatusOK && err == nil {
				t.Errorf("the client took %q for a whole response", a)
			}
			if x.ok && (r.StatusCode >= 400 || err != nil) && !strings.Contains(x.name, "behind") {
				t.Errorf("the client got %d %q, %v", r.StatusCode, body, err)
			}
			if n := len(r.Header.Values("Content-Length")); n > 1 || n == 1 && len(r.TransferEncoding) > 0 {
				t.Errorf("framed twice: %q", a)
			}
			for i := range 20 {
				path := fmt.Sprintf("/own-%d", i)
				a, _, err := exchange(running.Address(h1), "GET "+path+" HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n", 10*time.Second)
				if err != nil || !bytes.HasPrefix(a, []byte("HTTP/1.1 200")) || !bytes.HasSuffix(a, []byte("\r\n\r\n"+path)) {
					t.Errorf("the client behind it got %q, %v", a, err)
				}
			}
		})
	}
}

const upgradeBootstrap = `
static_resources:
  listeners:
  - name: h1
    address: {socket_address: {address: 127.0.0.1, port_value: %[1]d}}
    filter_chains: [{filters: [{name: hcm, typed_config: {"@type": type.googleapis.com/envoy.extensions.filters.network.http_connection_manager.v3.HttpConnectionManager,
      stat_prefix: h1, codec_type: HTTP1, upgrade_configs: [{upgrade_type: websocket}], route_config: {virtual_hosts: [{name: all, domains: ["*"], routes: [{match: {prefix: /}, route: {cluster: origin, timeout: 3s}}]}]},
      http_filters: [{name: router, typed_config: {"@type": type.googleapis.com/envoy.extensions.filters.http.router.v3.Router}}]}}]}]
  clusters:
  - name: origin
    type: STATIC
    max_requests_per_connection: 1 # what comes behind an answer is then no request of somebody else
    load_assignment: {cluster_name: origin, endpoints: [{lb_endpoints: [{endpoint: {address: {socket_address: {address: 127.0.0.1, port_value: %[2]d}}}}]}]}
`

// doorkeeper is an origin that answers the upgrades of a test, by number, and keeps
// what came before and behind its answer.
type doorkeeper struct {
	l       net.Listener
	answers []string
	granted []bool
	heard   []chan [2]string
}

func (o *doorkeeper) serve(c net.Conn) {
	defer c.Close()
	p := make([]byte, 64<<10)
	n, err := c.Read(p)
	var i int
	if _, e := fmt.Sscanf(string(p[:n]), "GET /upgrade/%d ", &i); err != nil || e != nil {
		return
	}
	_ = c.SetReadDeadline(time.Now().Add(30 * time.Millisecond)) // nothing may follow before the answer
	m, _ := c.Read(p[n:])
	_, _ = io.WriteString(c, o.answers[i])
	var b []byte
	if o.granted[i] { // it comes, if late
		_ = c.SetReadDeadline(time.Now().Add(20 * time.Second))
		b = make([]byte, len(behindUpgrade))
		k, _ := io.ReadFull(c, b)
		b = b[:k]
	}
	_ = c.SetReadDeadline(time.Now().Add(200 * time.Millisecond))
	more, _ := io.ReadAll(c)
	o.heard[i] <- [2]string{string(p[:n+m]), string(b) + string(more)}
}

// behindUpgrade is what clients send behind a request to upgrade.
const behindUpgrade = "GET /smuggled HTTP/1.1\r\nHost: evil\r\nConnection: close\r\n\r\n"

// What a client sends behind a request to upgrade goes to the origin only once that
// has said 101; before, and otherwise, not a byte of it does.
func TestNothingPassesBehindAnUpgradeThatIsNotGranted(t *testing.T) {
	const switching = "HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\r\n"
	const ok = "HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok"
	type question struct{ proto, kind string }
	o := &doorkeeper{}
	var questions []question
	for _, proto := range []string{"websocket", "WebSocket", "foo", "h2c", "websocket, h2c", "TLS/1.0", ""} {
		for _, a := range [][2]string{
			{"200", ok}, {"403", "HTTP/1.1 403 Forbidden\r\nContent-Length: 0\r\n\r\n"}, {"426", "HTTP/1.1 426 Upgrade Required\r\nContent-Length: 0\r\n\r\n"},
			{"101", switching}, {"103 and 200", "HTTP/1.1 103 Early Hints\r\n\r\n" + ok}, {"101 and 200", switching + ok},
		} {
			questions, o.answers, o.heard = append(questions, question{proto, a[0]}), append(o.answers, a[1]), append(o.heard, make(chan [2]string, 4))
			o.granted = append(o.granted, strings.EqualFold(proto, "websocket") && strings.HasPrefix(a[0], "101"))
		}
	}
	if len(questions) != 42 {
		t.Errorf("%d cases, want 42", len(questions))
	}
	var err error
	if o.l, err = net.Listen("tcp", running.Address(0)); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = o.l.Close() })
	go func() {
		for {
			c, err := o.l.Accept()
			if err != nil {
				return
			}
			go o.serve(c)
		}
	}()
	port := running.FreePort(t)
	running.Start(t, fmt.Sprintf(upgradeBootstrap, port, running.Port(o.l)), port)
	each(len(questions), func(i int) {
		q := questions[i]
		name := q.proto + " answered " + q.kind
		a, _, _ := exchange(running.Address(port), fmt.Sprintf("GET /upgrade/%d HTTP/1.1\r\nHost: a\r\nConnection: Upgrade\r\nUpgrade: %s\r\n\r\n%s", i, q.proto, behindUpgrade), 20*time.Second)
		websocket := strings.EqualFold(q.proto, "websocket")
		granted := o.granted[i]
		if granted != bytes.Contains(a, []byte("101 Switching")) {
			t.Errorf("%s: the client got %q", name, a)
		}
		select {
		case h := <-o.heard[i]:
			if low := strings.ToLower(h[0]); strings.Count(low, "http/1.1") > 1 || strings.Contains(low, "h2c") || strings.Contains(low, "tls/1.0") || strings.Contains(low, "foo") {
				t.Errorf("%s: the origin got %q", name, h[0])
			}
			if granted && h[1] != behindUpgrade || !granted && h[1] != "" && !strings.HasPrefix(h[1], "GET /smuggled HTTP/1.1\r\nhost: evil") {
				t.Errorf("%s: behind its answer the origin got %q", name, h[1])
			}
			if websocket && !granted && h[1] != "" {
				t.Errorf("%s: behind its answer the origin got %q", name, h[1])
			}
		case <-time.After(map[bool]time.Duration{true: 20 * time.Second, false: time.Second}[websocket]):
			if websocket {
				t.Errorf("%s: the request did not reach the origin: %q", name, a)
			}
		}
	})
}
