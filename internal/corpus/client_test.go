package corpus

import (
	"bufio"
	"context"
	"crypto/tls"
	"crypto/x509"
	"encoding/json"
	"encoding/pem"
	"fmt"
	"io"
	"net/http"
	"net/netip"
	"strings"
	"testing"
	"time"

	"github.com/fairlead-mesh/fairlead/internal/identity"
	"github.com/fairlead-mesh/fairlead/internal/message"
	"github.com/fairlead-mesh/fairlead/internal/netio"
	"github.com/fairlead-mesh/fairlead/proxy/transport"
	"github.com/fairlead-mesh/fairlead/proxy/transport/h2"
)

// issue makes a certificate and its key in PEM for a name.
func issue(t *testing.T, ca *identity.DevCA, name string) (cert, key []byte) {
	t.Helper()
	c, err := ca.Issue(identity.Leaf{CommonName: name, DNSNames: []string{"served.example"}})
	if err != nil {
		t.Fatal(err)
	}
	der, err := x509.MarshalPKCS8PrivateKey(c.PrivateKey)
	if err != nil {
		t.Fatal(err)
	}
	return identity.EncodeCertificates(c.Certificate...), pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: der})
}

// client sends what a workload of the mesh would.
type client struct {
	t     *testing.T
	ca    *identity.DevCA
	addrs map[string]netip.AddrPort
	certs map[string]*tls.Certificate
	// tunnels are HBONE connections by identity.
	tunnels map[string]transport.ClientConn
}

func (c *client) close() {
	for _, cl := range c.tunnels {
		cl.Close(netio.ErrClosed)
	}
}

func (c *client) cert(id string) *tls.Certificate {
	if c.certs[id] == nil {
		cert, err := c.ca.Issue(identity.Leaf{URIs: []string{id}})
		if err != nil {
			c.t.Fatal(err)
		}
		c.certs[id] = cert
	}
	return c.certs[id]
}

func (c *client) dial(listener string) (netio.Conn, error) {
	ctx, cancel := context.WithTimeout(c.t.Context(), 20*time.Second)
	defer cancel()
	return netio.Dial(ctx, c.addrs[listener], netio.DialOptions{})
}

func (c *client) tls(conn netio.Conn, id, sni string, alpn ...string) (netio.Conn, error) {
	ctx, cancel := context.WithTimeout(c.t.Context(), 20*time.Second)
	defer cancel()
	cfg := &tls.Config{Certificates: []tls.Certificate{*c.cert(id)}, ServerName: sni, InsecureSkipVerify: true, NextProtos: alpn, MinVersion: tls.VersionTLS12}
	return netio.ClientTLS(ctx, conn, cfg)
}

// connect opens a CONNECT stream of a connection.
func connect(cl transport.ClientConn, authority, source string) (netio.Conn, error) {
	st, err := cl.NewStream()
	if err != nil {
		return nil, err
	}
	var h message.Header
	h.Add(message.Method, "CONNECT")
	h.Add(message.Authority, authority)
	if source != "" {
		h.Add("x-istio-source", source)
	}
	if err := st.WriteHeaders(&h, false); err != nil {
		return nil, err
	}
	if err := st.Flush(); err != nil {
		return nil, err
	}
	status, _, err := st.ReadHeaders(&h)
	if err != nil {
		return nil, err
	}
	if status != http.StatusOK {
		return nil, fmt.Errorf("CONNECT %s: %d", authority, status)
	}
	return st.Tunnel(), nil
}

// enter goes through d as the workload id.
func (c *client) enter(d door, id string) (netio.Conn, error) {
	if d.authority == "" {
		conn, err := c.dial(d.listener)
		if err != nil || d.sni == "" {
			return conn, err
		}
		alpn := d.alpn
		if len(alpn) == 0 {
			alpn = []string{"http/1.1"}
		}
		return c.tls(conn, id, d.sni, alpn...)
	}
	if c.tunnels[id] == nil {
		conn, err := c.dial(terminates)
		if err != nil {
			return nil, err
		}
		if conn, err = c.tls(conn, id, "", "h2"); err != nil {
			return nil, err
		}
		if c.tunnels[id], err = h2.NewClient(conn, &transport.ClientConfig{}); err != nil {
			return nil, err
		}
	}
	return connect(c.tunnels[id], d.authority, d.source)
}

// result is what came back.
type result struct {
	status int
	header http.Header
	body   string
	echo   echo
}

func (r *result) read(body []byte) {
	r.body = string(body)
	_ = json.Unmarshal(body, &r.echo)
}

// deadline interrupts conn when it takes too long.
func deadline(conn netio.Conn) (stop func() bool) {
	return time.AfterFunc(20*time.Second, func() { conn.Interrupt(context.DeadlineExceeded) }).Stop
}

// exchange sends one request over HTTP/1.1.
func exchange(conn netio.Conn, q *request) (*result, error) {
	defer deadline(conn)()
	var b strings.Builder
	fmt.Fprintf(&b, "%s %s HTTP/1.1\r\nhost: %s\r\n", q.method, q.path, q.authority)
	for _, h := range q.header {
		fmt.Fprintf(&b, "%s: %s\r\n", h[0], h[1])
	}
	if q.method == http.MethodPost {
		b.WriteString("content-length: 0\r\n")
	}
	b.WriteString("\r\n")
	if _, err := conn.Write([]byte(b.String())); err != nil {
		return nil, err
	}
	resp, err := http.ReadResponse(bufio.NewReader(conn), &http.Request{Method: q.method})
	if err != nil {
		return nil, err
	}
	defer func() { _ = resp.Body.Close() }()
	body, err := io.ReadAll(resp.Body)
	if err != nil {
		return nil, err
	}
	r := &result{status: resp.StatusCode, header: resp.Header}
	r.read(body)
	return r, nil
}

// exchangeH2 sends one request over HTTP/2.
func exchangeH2(conn netio.Conn, q *request) (*result, error) {
	defer deadline(conn)()
	cl, err := h2.NewClient(conn, &transport.ClientConfig{})
	if err != nil {
		return nil, err
	}
	defer cl.Close(netio.ErrClosed)
	st, err := cl.NewStream()
	if err != nil {
		return nil, err
	}
	defer st.Release()
	var h message.Header
	for _, f := range [][2]string{{message.Method, q.method}, {":scheme", "http"}, {message.Authority, q.authority}, {":path", q.path}} {
		h.Add(f[0], f[1])
	}
	for _, f := range q.header {
		h.Add(f[0], f[1])
	}
	if err := st.WriteHeaders(&h, true); err != nil {
		return nil, err
	}
	status, end, err := st.ReadHeaders(&h)
	if err != nil {
		return nil, err
	}
	r := &result{status: status, header: http.Header{}}
	var body []byte
	for last := end; !last; {
		var chunk []byte
		if chunk, last, err = st.Body().Next(); err != nil {
			return nil, err
		}
		body = append(body, chunk...)
	}
	r.read(body)
	return r, nil
}

// exchangeTCP sends one line and reads one.
func exchangeTCP(conn netio.Conn) (*result, error) {
	defer deadline(conn)()
	if _, err := conn.Write([]byte("corpus over tcp\n")); err != nil {
		return nil, err
	}
	line, err := bufio.NewReader(conn).ReadBytes('\n')
	if err != nil {
		return nil, err
	}
	r := &result{}
	r.read(line)
	return r, nil
}
