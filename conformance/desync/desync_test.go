package desync

import (
	"bytes"
	"fmt"
	"io"
	"net"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/fairlead-mesh/fairlead/conformance/running"
	"golang.org/x/net/http2"
)

// origin answers whatever comes and keeps every byte, by connection.
type origin struct {
	l     net.Listener
	mu    sync.Mutex
	conns []*bytes.Buffer
}

func newOrigin(t *testing.T) *origin {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	o := &origin{l: l}
	t.Cleanup(func() { _ = l.Close() })
	go func() {
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			buf := &bytes.Buffer{}
			o.mu.Lock()
			o.conns = append(o.conns, buf)
			o.mu.Unlock()
			go o.serve(c, buf)
		}
	}()
	return o
}

// serve answers each request that the strict parser finds. Bytes that are none
// are kept, and end the connection.
func (o *origin) serve(c net.Conn, all *bytes.Buffer) {
	defer c.Close()
	var open []byte
	p := make([]byte, 64<<10)
	for {
		n, err := c.Read(p)
		if err != nil {
			return
		}
		o.mu.Lock()
		all.Write(p[:n])
		o.mu.Unlock()
		open = append(open, p[:n]...)
		for len(open) > 0 {
			_, rest, err := parse(open)
			if err == errMore { //nolint:errorlint // as it is
				break
			}
			if err != nil {
				return
			}
			open = rest
			if _, err := io.WriteString(c, "HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nok"); err != nil {
				return
			}
		}
	}
}

const bootstrap = `
static_resources:
  listeners:
  - name: h1
    address: {socket_address: {address: 127.0.0.1, port_value: %[1]d}}
    filter_chains: [{filters: [{name: hcm, typed_config: {"@type": type.googleapis.com/envoy.extensions.filters.network.http_connection_manager.v3.HttpConnectionManager,
      stat_prefix: h1, codec_type: HTTP1, http_protocol_options: {accept_http_10: true, default_host_for_http_10: ten.example}, route_config: &routes {virtual_hosts: [{name: all, domains: ["*"], routes: [{match: {prefix: /}, route: {cluster: origin, timeout: 3s}}]}]},
      http_filters: [{name: router, typed_config: {"@type": type.googleapis.com/envoy.extensions.filters.http.router.v3.Router}}]}}]}]
  - name: h2
    address: {socket_address: {address: 127.0.0.1, port_value: %[2]d}}
    filter_chains: [{filters: [{name: hcm, typed_config: {"@type": type.googleapis.com/envoy.extensions.filters.network.http_connection_manager.v3.HttpConnectionManager,
      stat_prefix: h2, codec_type: HTTP2, route_config: *routes,
      http_filters: [{name: router, typed_config: {"@type": type.googleapis.com/envoy.extensions.filters.http.router.v3.Router}}]}}]}]
  clusters:
  - name: origin
    type: STATIC
    load_assignment: {cluster_name: origin, endpoints: [{lb_endpoints: [{endpoint: {address: {socket_address: {address: 127.0.0.1, port_value: %[3]d}}}}]}]}
`

// start runs Fairlead in front of o.
func start(t *testing.T, o *origin) (h1, h2 string) {
	t.Helper()
	p1, p2 := running.FreePort(t), running.FreePort(t)
	running.Start(t, fmt.Sprintf(bootstrap, p1, p2, running.Port(o.l)), p2)
	return running.Address(p1), running.Address(p2)
}

// send writes b, ends the direction and reads until the other end has ended.
func send(address string, b []byte) (answer []byte, err error) {
	c, err := net.Dial("tcp", address)
	if err != nil {
		return nil, err
	}
	defer c.Close()
	_ = c.SetDeadline(time.Now().Add(5 * time.Second))
	go func() {
		_, _ = c.Write(b)
		_ = c.(*net.TCPConn).CloseWrite()
	}()
	return io.ReadAll(c)
}

// sendH2 writes b and reads until the stream has ended or the connection is
// given up.
func sendH2(address string, b []byte) (answer []byte, err error) {
	c, err := net.Dial("tcp", address)
	if err != nil {
		return nil, err
	}
	defer c.Close()
	_ = c.SetDeadline(time.Now().Add(5 * time.Second))
	if _, err := c.Write(b); err != nil {
		return nil, err
	}
	fr := http2.NewFramer(c, c)
	for {
		f, err := fr.ReadFrame()
		if err != nil {
			return answer, err
		}
		switch f := f.(type) {
		case *http2.DataFrame:
			answer = append(answer, f.Data()...)
			if f.StreamEnded() {
				return answer, nil
			}
		case *http2.HeadersFrame:
			if f.StreamEnded() {
				return answer, nil
			}
		case *http2.RSTStreamFrame, *http2.GoAwayFrame:
			return answer, nil
		}
	}
}

// each runs f for 0..n-1 on a few goroutines.
func each(n int, f func(i int)) {
	var wg sync.WaitGroup
	next := make(chan int)
	for range 16 {
		wg.Go(func() {
			for i := range next {
				f(i)
			}
		})
	}
	for i := range n {
		next <- i
	}
	close(next)
	wg.Wait()
}

// judge reads what every upstream connection carried.
func (o *origin) judge(t *testing.T, name func(id string) string) (forwarded int) {
	t.Helper()
	time.Sleep(200 * time.Millisecond)
	o.mu.Lock()
	defer o.mu.Unlock()
	for _, c := range o.conns {
		ms, err := requests(c.Bytes())
		forwarded += len(ms)
		for _, m := range ms {
			for _, f := range m.trailers {
				switch f[0] {
				case "content-length", "transfer-encoding", "host":
					t.Errorf("%s: trailer %s", name(strings.Join(m.all("x-case"), "")), f[0])
				}
			}
		}
		if err == nil {
			continue
		}
		b := c.Bytes()
		id := ""
		if i := bytes.LastIndex(b, []byte("x-case: ")); i >= 0 {
			id, _, _ = strings.Cut(string(b[i+len("x-case: "):]), "\r\n")
		}
		t.Errorf("violation: %v, about case %s:\n%q", err, name(id), b[max(0, len(b)-400):])
	}
	return forwarded
}

func TestHTTP1ReachesTheOriginCleanOrNotAtAll(t *testing.T) {
	o := newOrigin(t)
	h1, _ := start(t, o)
	cases := h1Cases()
	if len(cases) != 8518 {
		t.Errorf("%d cases", len(cases))
	}
	var mu sync.Mutex
	refused, valid := 0, 0
	each(len(cases), func(i int) {
		c := &cases[i]
		b := strings.Replace(c.bytes, "Host: h.example\r\n", fmt.Sprintf("Host: h.example\r\nX-Case: %d\r\n", i), 1)
		a, err := send(h1, []byte(b))
		for try := 0; c.valid && len(a) == 0 && try < 3; try++ { // who ends its direction has gone, on a machine that is busy
			a, err = send(h1, []byte(b))
		}
		mu.Lock()
		defer mu.Unlock()
		ok := bytes.HasPrefix(a, []byte("HTTP/1.1 200"))
		if !ok {
			refused++
		}
		if c.valid {
			valid++
			if !ok {
				t.Errorf("%s: a valid request got %q, %v", c.name, a[:min(len(a), 100)], err)
			}
		}
	})
	forwarded := o.judge(t, func(id string) string {
		var i int
		if _, err := fmt.Sscan(id, &i); err != nil || i >= len(cases) {
			return "unknown"
		}
		return fmt.Sprintf("%s: %q", cases[i].name, cases[i].bytes[:min(len(cases[i].bytes), 300)])
	})
	t.Logf("%d cases, %d refused, %d requests reached the origin", len(cases), refused, forwarded)
	if valid != 6 || forwarded < 500 || refused < 2000 {
		t.Errorf("%d valid cases, %d requests forwarded, %d refused: the corpus does not test what it should", valid, forwarded, refused)
	}
}

func TestHTTP2ReachesTheOriginCleanOrNotAtAll(t *testing.T) {
	o := newOrigin(t)
	_, h2 := start(t, o)
	cases := h2Cases()
	if len(cases) != 2133 {
		t.Errorf("%d cases", len(cases))
	}
	var mu sync.Mutex
	valid := 0
	each(len(cases), func(i int) {
		c := cases[i]
		c.fields = append(append([][2]string{}, c.fields...), [2]string{"x-case", fmt.Sprint(i)})
		a, err := sendH2(h2, c.encode())
		if c.valid {
			mu.Lock()
			valid++
			mu.Unlock()
			if !bytes.Contains(a, []byte("ok")) {
				t.Errorf("%s: a valid request got %q, %v", c.name, a, err)
			}
		}
	})
	forwarded := o.judge(t, func(id string) string {
		var i int
		if _, err := fmt.Sscan(id, &i); err != nil || i >= len(cases) {
			return "unknown"
		}
		return fmt.Sprintf("%s: %q", cases[i].name, cases[i].fields)
	})
	t.Logf("%d cases, %d requests reached the origin", len(cases), forwarded)
	if valid != 2 || forwarded < 500 {
		t.Errorf("%d valid cases, %d requests forwarded: the corpus does not test what it should", valid, forwarded)
	}
}

// The parser itself must see what it is there for.
func TestTheStrictParserSeesViolations(t *testing.T) {
	const head = "POST /a HTTP/1.1\r\nhost: h\r\n"
	for _, bad := range []string{
		"GET /a HTTP/1.1\nhost: h\n\n", "GET /a HTTP/1.0\r\nhost: h\r\n\r\n", "GET /\x80 HTTP/1.1\r\nhost: h\r\n\r\n", "GET  /a HTTP/1.1\r\nhost: h\r\n\r\n",
		"GET /a HTTP/1.1\r\n\r\n", "GET /a HTTP/1.1\r\nhost: h\r\nhost: h\r\n\r\n", "GET /a HTTP/1.1\r\nhost: h\r\n folded\r\n\r\n", "GET /a HTTP/1.1\r\nhost: h\r\nx : y\r\n\r\n",
		head + "content-length: 05\r\n\r\nabcde", head + "content-length: 5\r\ncontent-length: 5\r\n\r\nabcde", head + "content-length: 5\r\ntransfer-encoding: chunked\r\n\r\n0\r\n\r\n",
		head + "transfer-encoding: gzip, chunked\r\n\r\n0\r\n\r\n", head + "transfer_encoding: chunked\r\n\r\n0\r\n\r\n", head + "transfer-encoding: chunked\r\n\r\n5;a=b\r\nabcde\r\n0\r\n\r\n",
		head + "transfer-encoding: chunked\r\n\r\n5\r\nabcdeX\r\n0\r\n\r\n", head + "x: a\x00b\r\n\r\n", head + "x: a\rb\r\n\r\n",
	} {
		if _, err := requests([]byte(bad)); err == nil {
			t.Errorf("not seen: %q", bad)
		}
	}
	good := head + "content-length: 5\r\n\r\nabcde" + head + "transfer-encoding: chunked\r\n\r\n5\r\nabcde\r\n0\r\nx: y\r\n\r\nGET /b?c HTTP/1.1\r\nhost: h\r\n\r\n"
	if ms, err := requests([]byte(good)); err != nil || len(ms) != 3 || string(ms[1].body) != "abcde" {
		t.Errorf("%v, %v", ms, err)
	}
}
