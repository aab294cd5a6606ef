package istio

import (
	"bufio"
	"context"
	"fmt"
	"io"
	"net"
	"net/http"
	"strings"
	"sync/atomic"
	"testing"
	"time"
)

// client is a workload whose connections go through its ztunnel's CONNECT
// listener, as they would by redirection in a pod.
type client struct {
	proxy string
	http  *http.Client
	// opened counts connections.
	opened atomic.Int64
}

func newClient(proxy string) *client {
	c := &client{proxy: proxy}
	c.http = &http.Client{
		Timeout:       10 * time.Second,
		CheckRedirect: func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse },
		Transport: &http.Transport{MaxIdleConnsPerHost: 8, DialContext: func(ctx context.Context, _, addr string) (net.Conn, error) {
			return c.dial(ctx, addr)
		}},
	}
	return c
}

// newOutsider returns a client outside of the mesh, all of whose connections go
// to addr.
func newOutsider(addr string) *client {
	return &client{http: &http.Client{
		Timeout: 10 * time.Second,
		Transport: &http.Transport{DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
			return (&net.Dialer{Timeout: 20 * time.Second}).DialContext(ctx, "tcp", addr)
		}},
	}}
}

// dial opens a connection to a service by name.
func (c *client) dial(ctx context.Context, addr string) (net.Conn, error) {
	conn, err := (&net.Dialer{Timeout: 20 * time.Second}).DialContext(ctx, "tcp", c.proxy)
	if err != nil {
		return nil, err
	}
	_ = conn.SetDeadline(time.Now().Add(20 * time.Second))
	if _, err := fmt.Fprintf(conn, "CONNECT %s HTTP/1.1\r\nHost: %s\r\n\r\n", addr, addr); err != nil {
		_ = conn.Close()
		return nil, err
	}
	head, err := readHead(conn)
	if err == nil && !strings.HasPrefix(head, "HTTP/1.1 200") {
		_ = conn.SetReadDeadline(time.Now().Add(2 * time.Second))
		why, _ := io.ReadAll(conn)
		err = fmt.Errorf("answer %q", strings.SplitAfter(head, "\r\n")[0]+string(why))
	}
	if err != nil {
		_ = conn.Close()
		return nil, fmt.Errorf("CONNECT %s: %w", addr, err)
	}
	_ = conn.SetDeadline(time.Time{})
	c.opened.Add(1)
	return conn, nil
}

// readHead reads up to the empty line, and not a byte more.
func readHead(c net.Conn) (string, error) {
	var head []byte
	for b := make([]byte, 1); !strings.HasSuffix(string(head), "\r\n\r\n"); {
		if _, err := io.ReadFull(c, b); err != nil {
			return string(head), err
		}
		head = append(head, b[0])
	}
	return string(head), nil
}

// answer is what the client got.
type answer struct {
	Status int
	Header http.Header
	Body   string
}

// try sends a request; headers are "name: value".
func (c *client) try(method, url string, headers ...string) (answer, error) {
	return c.send(method, url, "", headers...)
}

// send is try with a body.
func (c *client) send(method, url, body string, headers ...string) (answer, error) {
	req, err := http.NewRequestWithContext(context.Background(), method, url, strings.NewReader(body))
	if err != nil {
		return answer{}, err
	}
	for _, h := range headers {
		k, v, _ := strings.Cut(h, ": ")
		if k == "host" {
			req.Host = v
		}
		req.Header.Add(k, v)
	}
	resp, err := c.http.Do(req)
	if err != nil {
		return answer{}, err
	}
	defer resp.Body.Close()
	b, err := io.ReadAll(resp.Body)
	return answer{resp.StatusCode, resp.Header, string(b)}, err
}

// get sends a GET request.
func (c *client) get(t *testing.T, url string, headers ...string) answer {
	t.Helper()
	a, err := c.try(http.MethodGet, url, headers...)
	if err != nil {
		t.Fatal(err)
	}
	return a
}

// raw sends a request head as it is, on a connection of its own.
func (c *client) raw(t *testing.T, addr, head string) answer {
	t.Helper()
	conn, err := c.dial(t.Context(), addr)
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	_ = conn.SetDeadline(time.Now().Add(20 * time.Second))
	if _, err := io.WriteString(conn, head); err != nil {
		t.Fatal(err)
	}
	resp, err := http.ReadResponse(bufio.NewReader(conn), nil)
	if err != nil {
		t.Fatalf("%q: %v", head, err)
	}
	defer resp.Body.Close()
	b, _ := io.ReadAll(resp.Body)
	return answer{resp.StatusCode, resp.Header, string(b)}
}

// call sends a gRPC message, "hello", to a method of the service grpc, on a
// connection of its own.
func (c *client) call(t *testing.T, method string) (*http.Response, []byte) {
	t.Helper()
	p := &http.Protocols{}
	p.SetUnencryptedHTTP2(true)
	tr := &http.Transport{Protocols: p, DialContext: func(ctx context.Context, _, addr string) (net.Conn, error) { return c.dial(ctx, addr) }}
	defer tr.CloseIdleConnections()
	req, err := http.NewRequestWithContext(t.Context(), http.MethodPost, "http://grpc.app.svc.cluster.local"+method, strings.NewReader("\x00\x00\x00\x00\x05hello"))
	if err != nil {
		t.Fatal(err)
	}
	req.Header.Set("content-type", "application/grpc")
	req.Header.Set("te", "trailers")
	resp, err := tr.RoundTrip(req)
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	b, err := io.ReadAll(resp.Body)
	if err != nil {
		t.Fatal(err)
	}
	return resp, b
}
