package soak

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"strings"
	"time"

	"golang.org/x/net/http2"
	"golang.org/x/net/http2/hpack"

	"github.com/fairlead-mesh/fairlead/conformance/running"
)

// maxAttack is how long an attacker tries.
const maxAttack = 3 * time.Second

// attacks are patterns of the package abuse, in small: each opens connections of
// its own, and returns an error if it had success.
func (l *load) attacks() []func() error {
	return []func() error{
		func() error {
			return l.inject("POST /app/ HTTP/1.1\r\nhost: app\r\ncontent-length: 5\r\ntransfer-encoding: chunked\r\n\r\n0\r\n\r\nGET /smuggled HTTP/1.1\r\nhost: app\r\n\r\n")
		},
		func() error { return l.inject("GET /app/ HTTP/1.1\r\nhost: app\r\nhost: other\r\n\r\n") },
		func() error {
			return l.inject("POST /app/ HTTP/1.1\r\nhost: app\r\ntransfer-encoding: chunked\r\n\r\nffffffffffffffffff\r\n")
		},
		func() error { return l.inject("GET /app/\x00 HTTP/1.1\r\nhost: app\r\n\r\n") },
		func() error { return l.flood(rapidReset) },
		func() error {
			return l.flood(func(f *http2.Framer, _ []byte, n int) error { return f.WriteSettings(http2.Setting{ID: 4, Val: 65535}) })
		},
		func() error { return l.flood(continuations) },
		l.garbage, l.foreign, l.strange, l.vanish,
	}
}

// attack runs one pattern after the other at a rate.
func (l *load) attack(rate float64) {
	list := l.attacks()
	l.workers(rate, func() (func(), func()) {
		i := 0
		return func() {
			if l.calm.Load() {
				return
			}
			l.ledger.attacks.Add(1)
			if err := list[i%len(list)](); err != nil {
				l.ledger.fail(fmt.Sprintf("attack %c", 'a'+i%len(list)), err)
			}
			i++
		}, func() {}
	})
}

// inject sends what must not be understood.
func (l *load) inject(req string) error {
	c, err := l.dialEdge(context.Background())
	if err != nil {
		return err
	}
	defer func() { _ = c.Close() }()
	_ = c.SetDeadline(time.Now().Add(maxAttack))
	_, _ = io.WriteString(c, req)
	b, _ := io.ReadAll(io.LimitReader(c, 1<<16))
	if len(b) > 0 && !strings.HasPrefix(string(b), "HTTP/1.1 4") || strings.Count(string(b), "HTTP/1.1 ") > 1 {
		return fmt.Errorf("%.60q was answered %.60q", req, b)
	}
	return nil
}

func head() []byte {
	var b strings.Builder
	e := hpack.NewEncoder(&b)
	e.SetMaxDynamicTableSizeLimit(0)
	for _, f := range [][2]string{{":method", "GET"}, {":scheme", "http"}, {":authority", "app"}, {":path", "/app/"}} {
		_ = e.WriteField(hpack.HeaderField{Name: f[0], Value: f[1]})
	}
	return []byte(b.String())
}

func rapidReset(f *http2.Framer, h []byte, n int) error {
	id := uint32(2*n + 1)
	if err := f.WriteHeaders(http2.HeadersFrameParam{StreamID: id, BlockFragment: h, EndStream: true, EndHeaders: true}); err != nil {
		return err
	}
	return f.WriteRSTStream(id, http2.ErrCodeCancel)
}

func continuations(f *http2.Framer, h []byte, n int) error {
	if n == 0 {
		return f.WriteHeaders(http2.HeadersFrameParam{StreamID: 1, BlockFragment: h})
	}
	return f.WriteContinuation(1, false, nil)
}

// flood sends frames until it is cut: it must be.
func (l *load) flood(frame func(f *http2.Framer, h []byte, n int) error) error {
	c, err := l.dialEdge(context.Background())
	if err != nil {
		return err
	}
	defer func() { _ = c.Close() }()
	_ = c.SetDeadline(time.Now().Add(maxAttack))
	if _, err := io.WriteString(c, http2.ClientPreface); err != nil {
		return nil
	}
	f, h := http2.NewFramer(c, nil), head()
	if err := f.WriteSettings(); err != nil {
		return nil
	}
	gone := make(chan struct{})
	go func() {
		defer close(gone)
		_, _ = io.Copy(io.Discard, c)
	}()
	for n := range 30_000 {
		select {
		case <-gone:
			return nil
		default:
		}
		if err := frame(f, h, n); err != nil {
			return nil
		}
	}
	t := time.NewTimer(maxAttack)
	defer t.Stop()
	select {
	case <-gone:
		return nil
	case <-t.C:
		return errors.New("a flood of frames was not cut")
	}
}

// garbage is no TLS.
func (l *load) garbage() error {
	c, err := net.DialTimeout("tcp", running.Address(l.hbone), patience)
	if err != nil {
		return err
	}
	defer func() { _ = c.Close() }()
	_ = c.SetDeadline(time.Now().Add(maxAttack))
	_, _ = io.WriteString(c, "GET / HTTP/1.1\r\nhost: app\r\n\r\n"+lorem[:300])
	b, _ := io.ReadAll(io.LimitReader(c, 1<<16))
	if strings.Contains(string(b), "200") {
		return fmt.Errorf("plaintext was answered %.60q", b)
	}
	return nil
}

// foreign has a certificate that nobody trusts, or none.
func (l *load) foreign() error {
	for _, own := range []*tls.Certificate{l.outsider, nil} {
		c, err := net.DialTimeout("tcp", running.Address(l.hbone), patience)
		if err != nil {
			return err
		}
		_ = c.SetDeadline(time.Now().Add(maxAttack))
		tc := tls.Client(c, clientConfig(l.pki.now.Load(), own))
		err = tc.Handshake()
		if err == nil { // TLS 1.3: the refusal comes with the first read
			_, err = tc.Read(make([]byte, 1))
		}
		_ = c.Close()
		if err == nil {
			return errors.New("a client without a trusted certificate was let in")
		}
	}
	return nil
}

// strange is somebody known who may nothing.
func (l *load) strange() error {
	m := &mux{s: l.site, dial: func(ctx context.Context) (net.Conn, error) { return l.dialAs(ctx, l.pki.now.Load().stranger) }}
	defer m.close()
	p := &plain{limit: 1, life: time.Second, dial: func(ctx context.Context) (net.Conn, error) { return m.open(ctx, "10.1.2.3:9080") }}
	defer p.close()
	resp, _, err := p.do(context.Background(), "GET /app/ HTTP/1.1\r\nhost: app\r\nconnection: close\r\n\r\n")
	if err == nil && resp.StatusCode != http.StatusForbidden {
		err = fmt.Errorf("a stranger was answered %s", resp.Status)
	}
	return err
}

// vanish goes away in the middle of its request, without a word.
func (l *load) vanish() error {
	c, err := l.dialEdge(context.Background())
	if err != nil {
		return err
	}
	_, _ = io.WriteString(c, "POST /app/ HTTP/1.1\r\nhost: app\r\ncontent-length: 100000\r\n\r\n"+lorem[:500])
	if tc, ok := c.(*net.TCPConn); ok {
		_ = tc.SetLinger(0)
	}
	return c.Close()
}
