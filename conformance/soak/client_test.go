package soak

import (
	"bufio"
	"context"
	"crypto/tls"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/url"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"golang.org/x/net/http2"

	"github.com/fairlead-mesh/fairlead/conformance/running"
)

// patience is how long anything may take.
const patience = 20 * time.Second

// site is where clients go.
type site struct {
	edge, hbone int
	pki         *pki
	ledger      *ledger
	life        time.Duration // of a connection
	outsider    *tls.Certificate
	calm        atomic.Bool // nobody attacks
}

func (s *site) dialEdge(ctx context.Context) (net.Conn, error) {
	return (&net.Dialer{Timeout: patience}).DialContext(ctx, "tcp", running.Address(s.edge))
}

func (s *site) dialTLS(ctx context.Context) (net.Conn, error) {
	return s.dialAs(ctx, s.pki.now.Load().client)
}

func (s *site) dialAs(ctx context.Context, own *tls.Certificate) (net.Conn, error) {
	c, err := (&net.Dialer{Timeout: patience}).DialContext(ctx, "tcp", running.Address(s.hbone))
	if err != nil {
		return nil, err
	}
	tc := tls.Client(c, clientConfig(s.pki.now.Load(), own))
	ctx, cancel := context.WithTimeout(ctx, patience)
	defer cancel()
	if err := tc.HandshakeContext(ctx); err != nil {
		_ = c.Close()
		return nil, fmt.Errorf("handshake: %w", err)
	}
	return tc, nil
}

// mux is an HTTP/2 client that replaces its connection when it is old, or when
// the server says GOAWAY. What the server says it has not looked at is asked
// again.
type mux struct {
	s    *site
	dial func(context.Context) (net.Conn, error)

	mu    sync.Mutex
	cc    *http2.ClientConn
	until time.Time
	old   sync.WaitGroup
}

func (m *mux) conn(ctx context.Context) (*http2.ClientConn, error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.cc != nil && time.Now().Before(m.until) && m.cc.CanTakeNewRequest() {
		return m.cc, nil
	}
	m.dropLocked()
	c, err := m.dial(ctx)
	if err != nil {
		return nil, err
	}
	cc, err := (&http2.Transport{AllowHTTP: true}).NewClientConn(c)
	if err != nil {
		_ = c.Close()
		return nil, err
	}
	m.cc, m.until = cc, time.Now().Add(m.s.life)
	return cc, nil
}

// dropLocked ends the connection when its streams are over.
func (m *mux) dropLocked() {
	cc := m.cc
	if cc == nil {
		return
	}
	m.cc = nil
	m.old.Go(func() {
		ctx, cancel := context.WithTimeout(context.Background(), 2*m.s.life+patience)
		defer cancel()
		if err := cc.Shutdown(ctx); err != nil {
			_ = cc.Close()
		}
	})
}

func (m *mux) close() {
	m.mu.Lock()
	m.dropLocked()
	m.mu.Unlock()
	m.old.Wait()
}

// do asks; make is called again for a request that was not looked at.
func (m *mux) do(ctx context.Context, make func() *http.Request) (*http.Response, error) {
	for i := 0; ; i++ {
		cc, err := m.conn(ctx)
		if err != nil {
			return nil, err
		}
		resp, err := cc.RoundTrip(make())
		if err == nil || i == 5 || !untouched(err) {
			return resp, err
		}
		m.s.ledger.repeated.Add(1)
		m.mu.Lock()
		if m.cc == cc {
			m.dropLocked()
		}
		m.mu.Unlock()
	}
}

// untouched reports whether err says that the server has not looked at the
// request (RFC 9113, 8.7), or that it was not sent.
func untouched(err error) bool {
	if se, ok := errors.AsType[http2.StreamError](err); ok {
		return se.Code == http2.ErrCodeRefusedStream
	}
	return strings.Contains(err.Error(), "client conn not usable") || strings.Contains(err.Error(), "graceful shutdown GOAWAY")
}

// tunnel is a CONNECT stream.
type tunnel struct {
	w    *io.PipeWriter
	resp *http.Response
	stop context.CancelFunc
}

// open connects through HBONE.
func (m *mux) open(ctx context.Context, authority string) (*tunnel, error) {
	ctx, cancel := context.WithCancel(context.WithoutCancel(ctx))
	late := time.AfterFunc(patience, cancel)
	defer late.Stop()
	var pw *io.PipeWriter
	resp, err := m.do(ctx, func() *http.Request {
		var pr *io.PipeReader
		pr, pw = io.Pipe()
		return (&http.Request{Method: http.MethodConnect, URL: &url.URL{Scheme: "https", Host: authority}, Host: authority, Header: http.Header{}, Body: pr, ContentLength: -1}).WithContext(ctx)
	})
	if err != nil {
		cancel()
		return nil, fmt.Errorf("CONNECT: %w", err)
	}
	if resp.StatusCode != http.StatusOK {
		cancel()
		return nil, fmt.Errorf("CONNECT: %s", resp.Status)
	}
	return &tunnel{pw, resp, cancel}, nil
}

func (t *tunnel) Read(p []byte) (int, error)  { return t.resp.Body.Read(p) }
func (t *tunnel) Write(p []byte) (int, error) { return t.w.Write(p) }

// CloseWrite ends what is sent.
func (t *tunnel) CloseWrite() error { return t.w.Close() }

// Close ends it in order if the other side does so within a second.
func (t *tunnel) Close() error {
	_ = t.w.Close()
	late := time.AfterFunc(time.Second, t.stop)
	_, _ = io.Copy(io.Discard, t.resp.Body)
	late.Stop()
	t.stop()
	return t.resp.Body.Close()
}

func (t *tunnel) LocalAddr() net.Addr              { return &net.TCPAddr{} }
func (t *tunnel) RemoteAddr() net.Addr             { return &net.TCPAddr{} }
func (t *tunnel) SetDeadline(time.Time) error      { return nil }
func (t *tunnel) SetReadDeadline(time.Time) error  { return nil }
func (t *tunnel) SetWriteDeadline(time.Time) error { return nil }

// plain is an HTTP/1.1 client of one connection.
type plain struct {
	dial func(context.Context) (net.Conn, error)
	// limit is how many requests a connection takes.
	limit int
	life  time.Duration

	c     net.Conn
	br    *bufio.Reader
	n     int
	until time.Time
}

func (p *plain) close() {
	if p.c != nil {
		_ = p.c.Close()
		p.c = nil
	}
}

// do sends a request as it is and returns the answer with its body.
func (p *plain) do(ctx context.Context, req string) (resp *http.Response, body []byte, err error) {
	if p.c != nil && (p.n >= p.limit || time.Now().After(p.until)) {
		p.close()
	}
	if p.c == nil {
		c, err := p.dial(ctx)
		if err != nil {
			return nil, nil, fmt.Errorf("connecting: %w", err)
		}
		p.c, p.br, p.n, p.until = c, bufio.NewReader(c), 0, time.Now().Add(p.life)
	}
	p.n++
	c := p.c
	late := time.AfterFunc(patience, func() { _ = c.Close() })
	defer late.Stop()
	if _, err = io.WriteString(c, req); err == nil {
		resp, err = http.ReadResponse(p.br, nil)
	}
	if err == nil {
		body, err = io.ReadAll(resp.Body)
		_ = resp.Body.Close()
	}
	if err != nil {
		err = fmt.Errorf("request %d of its connection: %w", p.n, err)
	}
	if err != nil || resp.Close {
		p.close()
	}
	return resp, body, err
}

// readMessage reads a gRPC message with its prefix.
func readMessage(r io.Reader) ([]byte, error) {
	var h [5]byte
	if _, err := io.ReadFull(r, h[:]); err != nil {
		return nil, err
	}
	n := binary.BigEndian.Uint32(h[1:])
	if n > 1<<20 {
		return nil, fmt.Errorf("a message of %d bytes", n)
	}
	m := make([]byte, 5+n)
	copy(m, h[:])
	if _, err := io.ReadFull(r, m[5:]); err != nil {
		return nil, fmt.Errorf("in a message: %v", err) //nolint:errorlint // not the end
	}
	return m, nil
}

func message(s string) []byte {
	return append(binary.BigEndian.AppendUint32([]byte{0}, uint32(len(s))), s...)
}
