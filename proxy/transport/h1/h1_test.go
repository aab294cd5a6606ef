package h1

import (
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"io"
	"math/big"
	"strings"
	"sync"
	"testing"
	"time"

	"go.uber.org/goleak"

	"github.com/fairlead-mesh/fairlead/internal/conntest"
	"github.com/fairlead-mesh/fairlead/internal/message"
	"github.com/fairlead-mesh/fairlead/internal/netio"
	"github.com/fairlead-mesh/fairlead/proxy/transport"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// handler is a transport.Handler made of functions.
type handler struct {
	serve func(s transport.ServerStream)
	mu    sync.Mutex
	errs  []string
}

func (h *handler) ServeStream(s transport.ServerStream) { h.serve(s) }
func (h *handler) ProtocolError(status int, details string) {
	h.mu.Lock()
	h.errs = append(h.errs, fmt.Sprintf("%d %s", status, details))
	h.mu.Unlock()
}

// echo answers with method, path and body of the request.
func echo(s transport.ServerStream) {
	var h, r message.Header
	s.ReadHeaders(&h)
	var b []byte
	for {
		p, last, err := s.Body().Next()
		if err != nil {
			s.Reset(transport.LocalReset)
			return
		}
		b = append(b, p...)
		if last {
			break
		}
	}
	out := h.Get(message.Method) + " " + h.Get(message.Authority) + h.Get(message.Path) + " " + string(b)
	r.Add(message.Status, "200")
	if err := s.WriteHeaders(&r, false); err == nil {
		_ = s.WriteData([]byte(out), true)
	}
}

func start(c netio.Conn, h transport.Handler, cfg *transport.ServerConfig) (done chan struct{}) {
	done = make(chan struct{})
	s := NewServer(c, cfg, h)
	go s.Serve(func() { close(done) })
	return done
}

func wait(t *testing.T, done chan struct{}) {
	t.Helper()
	select {
	case <-done:
	case <-time.After(20 * time.Second):
		t.Fatal("the connection did not end")
	}
}

// secured puts TLS on sockets.
func secured(t testing.TB) (client, server netio.Conn) {
	t.Helper()
	cc, sc := conntest.Sockets(t)
	cert := certificate(t)
	ch := make(chan netio.Conn, 1)
	go func() {
		c, err := netio.ServerTLS(context.Background(), sc, &tls.Config{Certificates: []tls.Certificate{cert}})
		if err != nil {
			t.Error(err)
		}
		ch <- c
	}()
	cc, err := netio.ClientTLS(context.Background(), cc, &tls.Config{InsecureSkipVerify: true})
	if err != nil {
		t.Fatal(err)
	}
	return cc, <-ch
}

func certificate(t testing.TB) tls.Certificate {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	tmpl := &x509.Certificate{SerialNumber: big.NewInt(1), NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(time.Hour)}
	der, err := x509.CreateCertificate(rand.Reader, tmpl, tmpl, key.Public(), key)
	if err != nil {
		t.Fatal(err)
	}
	return tls.Certificate{Certificate: [][]byte{der}, PrivateKey: key}
}

var kinds = map[string]func(testing.TB) (client, server netio.Conn){"pipe": conntest.Pipes, "socket": conntest.Sockets, "tls": secured}

func TestExchangesReuseAConnection(t *testing.T) {
	for name, conns := range kinds {
		t.Run(name, func(t *testing.T) {
			cc, sc := conns(t)
			done := start(sc, &handler{serve: echo}, &transport.ServerConfig{AllowAbsoluteURL: true})
			cl := NewClient(cc, &transport.ClientConfig{})
			for i := range 5 {
				st, err := cl.NewStream()
				if err != nil {
					t.Fatal(err)
				}
				var h message.Header
				body := strings.Repeat("x", i*5000)
				h.Add(message.Method, "POST")
				h.Add(message.Authority, "a.b")
				h.Add(message.Path, fmt.Sprintf("/p/%d", i))
				h.Add("x-a", "b")
				if err := st.WriteHeaders(&h, body == ""); err != nil {
					t.Fatal(err)
				}
				if body != "" {
					if err := st.WriteData([]byte(body), true); err != nil {
						t.Fatal(err)
					}
				}
				status, _, err := st.ReadHeaders(&h)
				if err != nil || status != 200 {
					t.Fatal(status, err)
				}
				got, err := io.ReadAll(message.NewReader(st.Body()))
				if want := fmt.Sprintf("POST a.b/p/%d %s", i, body); err != nil || string(got) != want {
					t.Fatalf("got %d bytes %.40q, %v", len(got), got, err)
				}
				st.Release()
				if cl.Available() != 1 {
					t.Fatal("the connection is not reusable")
				}
			}
			cl.Close(netio.ErrClosed)
			wait(t, done)
		})
	}
}

// raw sends in to a server and returns everything that comes back.
func raw(t *testing.T, in string, h *handler, cfg *transport.ServerConfig) string {
	t.Helper()
	cc, sc := conntest.Pipes(t)
	done := start(sc, h, cfg)
	if _, err := cc.Write([]byte(in)); err != nil {
		t.Fatal(err)
	}
	_ = cc.CloseWrite()
	b := make([]byte, 64<<10)
	var out []byte
	for {
		n, err := cc.Read(b)
		out = append(out, b[:n]...)
		if err != nil {
			break
		}
	}
	wait(t, done)
	return string(out)
}

// requests: what a server makes of bytes. want is "METHOD authority+path body"
// lines of the requests served, or the status refused with.
var requests = []struct{ name, in, want string }{
	{"a plain GET", "GET / HTTP/1.1\r\nhost: a\r\n\r\n", "GET a/ "},
	{"two pipelined requests", "GET /1 HTTP/1.1\r\nhost: a\r\n\r\nGET /2 HTTP/1.1\r\nhost: a\r\n\r\n", "GET a/1 |GET a/2 "},
	{"a body by length", "POST / HTTP/1.1\r\nhost: a\r\ncontent-length: 3\r\n\r\nabc", "POST a/ abc"},
	{"a chunked body", "POST / HTTP/1.1\r\nhost: a\r\ntransfer-encoding: chunked\r\n\r\n3\r\nabc\r\n2;x=y\r\nde\r\n0\r\n\r\n", "POST a/ abcde"},
	{"a chunked body with trailers", "POST / HTTP/1.1\r\nhost: a\r\ntransfer-encoding: chunked\r\n\r\n3\r\nabc\r\n0\r\nx-t: 1\r\n\r\nGET /2 HTTP/1.1\r\nhost: a\r\n\r\n", "POST a/ abc|GET a/2 "},
	{"absolute form", "GET http://b:8/x?y HTTP/1.1\r\nhost: a\r\n\r\n", "GET b:8/x?y "},
	{"absolute form without a path", "GET http://b HTTP/1.1\r\nhost: a\r\n\r\n", "GET b/ "},
	{"an empty line first", "\r\nGET / HTTP/1.1\r\nhost: a\r\n\r\n", "GET a/ "},
	{"asterisk form", "OPTIONS * HTTP/1.1\r\nhost: a\r\n\r\n", "OPTIONS a* "},
	{"upper case chunk size", "POST / HTTP/1.1\r\nhost: a\r\ntransfer-encoding: chunked\r\n\r\nA\r\n0123456789\r\n0\r\n\r\n", "POST a/ 0123456789"},
	{"asterisk with GET", "GET * HTTP/1.1\r\nhost: a\r\n\r\n", "400"},
	{"obs-fold", "GET / HTTP/1.1\r\nhost: a\r\nx: 1\r\n 2\r\n\r\n", "400"},
	{"a space before the colon", "GET / HTTP/1.1\r\nhost : a\r\n\r\n", "400"},
	{"a bare line feed", "GET / HTTP/1.1\nhost: a\n\n", "400"},
	{"a bare carriage return in a value", "GET / HTTP/1.1\r\nhost: a\r\nx: a\rb\r\n\r\n", "400"},
	{"a NUL in a value", "GET / HTTP/1.1\r\nhost: a\r\nx: a\x00b\r\n\r\n", "400"},
	{"no colon", "GET / HTTP/1.1\r\nhost: a\r\nnothing\r\n\r\n", "400"},
	{"an empty name", "GET / HTTP/1.1\r\nhost: a\r\n: v\r\n\r\n", "400"},
	{"two hosts", "GET / HTTP/1.1\r\nhost: a\r\nhost: b\r\n\r\n", "400"},
	{"a host with a path", "GET / HTTP/1.1\r\nhost: a/b\r\n\r\n", "400"},
	{"two lengths", "POST / HTTP/1.1\r\nhost: a\r\ncontent-length: 3\r\ncontent-length: 3\r\n\r\nabc", "400"},
	{"a list of lengths", "POST / HTTP/1.1\r\nhost: a\r\ncontent-length: 3, 3\r\n\r\nabc", "400"},
	{"a signed length", "POST / HTTP/1.1\r\nhost: a\r\ncontent-length: +3\r\n\r\nabc", "400"},
	{"a hexadecimal length", "POST / HTTP/1.1\r\nhost: a\r\ncontent-length: 0x3\r\n\r\nabc", "400"},
	{"an empty length", "POST / HTTP/1.1\r\nhost: a\r\ncontent-length:\r\n\r\n", "400"},
	{"length and chunked", "POST / HTTP/1.1\r\nhost: a\r\ncontent-length: 3\r\ntransfer-encoding: chunked\r\n\r\n0\r\n\r\n", "400"},
	{"an unknown coding", "POST / HTTP/1.1\r\nhost: a\r\ntransfer-encoding: gzip, chunked\r\n\r\n0\r\n\r\n", "501"},
	{"chunked twice", "POST / HTTP/1.1\r\nhost: a\r\ntransfer-encoding: chunked\r\ntransfer-encoding: chunked\r\n\r\n0\r\n\r\n", "501"},
	{"a look-alike of chunked", "POST / HTTP/1.1\r\nhost: a\r\ntransfer-encoding: xchunked\r\n\r\n0\r\n\r\n", "501"},
	{"HTTP/1.0 unless allowed", "GET / HTTP/1.0\r\nhost: a\r\n\r\n", "426"},
	{"a later version", "GET / HTTP/1.2\r\nhost: a\r\n\r\n", "426"},
	{"HTTP/2 in a request line", "GET / HTTP/2.0\r\nhost: a\r\n\r\n", "426"},
	{"no version", "GET /\r\nhost: a\r\n\r\n", "426"},
	{"a control character in the target", "GET /\x01 HTTP/1.1\r\nhost: a\r\n\r\n", "400"},
	{"a byte above 0x7f in the target", "GET /\xc3\xa9 HTTP/1.1\r\nhost: a\r\n\r\n", "400"},
	{"a space in the target", "GET /a b HTTP/1.1\r\nhost: a\r\n\r\n", "400"},
	{"a bad method", "G(T / HTTP/1.1\r\nhost: a\r\n\r\n", "400"},
	{"CONNECT without a port", "CONNECT a HTTP/1.1\r\nhost: a\r\n\r\n", "400"},
	{"CONNECT with a body", "CONNECT a:1 HTTP/1.1\r\nhost: a\r\ncontent-length: 3\r\n\r\nabc", "400"},
	{"another scheme", "GET ftp://a/ HTTP/1.1\r\nhost: a\r\n\r\n", "400"},
	{"a relative target", "GET x HTTP/1.1\r\nhost: a\r\n\r\n", "400"},
	{"a TLS hello", "\x16\x03\x01\x00\xa5\x01\x00", "400"},
	{"too many fields", "GET / HTTP/1.1\r\nhost: a\r\n" + strings.Repeat("x: y\r\n", 101) + "\r\n", "431"},
	{"too large a head", "GET / HTTP/1.1\r\nhost: a\r\nx: " + strings.Repeat("y", 61<<10) + "\r\n\r\n", "431"},
}

func TestRequestsAreParsedStrictly(t *testing.T) {
	if len(requests) != 44 {
		t.Fatalf("%d cases, want 44", len(requests))
	}
	for _, c := range requests {
		t.Run(c.name, func(t *testing.T) {
			var got []string
			h := &handler{}
			h.serve = func(s transport.ServerStream) {
				var hd, r message.Header
				s.ReadHeaders(&hd)
				b, err := io.ReadAll(message.NewReader(s.Body()))
				if err != nil {
					s.Reset(transport.LocalReset)
					return
				}
				got = append(got, hd.Get(message.Method)+" "+hd.Get(message.Authority)+hd.Get(message.Path)+" "+string(b))
				r.Add(message.Status, "204")
				_ = s.WriteHeaders(&r, true)
			}
			out := raw(t, c.in, h, &transport.ServerConfig{AllowAbsoluteURL: true})
			if len(c.want) == 3 {
				if !strings.HasPrefix(out, "HTTP/1.1 "+c.want+" ") || len(got) > 0 || len(h.errs) != 1 {
					t.Errorf("got %.60q, served %q, errors %q", out, got, h.errs)
				}
				return
			}
			if g := strings.Join(got, "|"); g != c.want {
				t.Errorf("served %q, want %q (wire %.80q)", g, c.want, out)
			}
		})
	}
}

func TestHopByHopFieldsAreRemoved(t *testing.T) {
	var hd message.Header
	h := &handler{serve: func(s transport.ServerStream) {
		s.ReadHeaders(&hd)
		var r message.Header
		r.Add(message.Status, "204")
		_ = s.WriteHeaders(&r, true)
	}}
	raw(t, "GET / HTTP/1.1\r\nHost: a\r\nConnection: close, X-Drop\r\nX-Drop: 1\r\nX-Forwarded-For: 1.2.3.4\r\nKeep-Alive: 3\r\nTE: gzip, trailers\r\nUpgrade: h2c\r\nHTTP2-Settings: x\r\nX-Keep: y\r\n\r\n", h, &transport.ServerConfig{})
	var names []string
	for i := range hd.Len() {
		names = append(names, hd.At(i).Name)
	}
	if got, want := strings.Join(names, " "), ":method :scheme :authority :path x-forwarded-for x-keep te"; got != want {
		t.Errorf("got %q, want %q", got, want)
	}
}

func TestAResponseThatBreaksOffIsNotTakenForWhole(t *testing.T) {
	for in, reason := range map[string]transport.ResetReason{
		"HTTP/1.1 200 OK\r\ncontent-length: 5\r\n\r\nabc":                                     transport.ProtocolError,
		"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n5\r\nab":                        transport.ProtocolError,
		"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\nzz\r\n":                         transport.ProtocolError,
		"HTTP/1.1 200 OK\r\ncontent-length: 5\r\ntransfer-encoding: chunked\r\n\r\n0\r\n\r\n": transport.ProtocolError,
		"HTTP/1.1 200 OK\r\ncontent-length: 5\r\ncontent-length: 6\r\n\r\nabcdef":             transport.ProtocolError,
		"NOPE\r\n\r\n": transport.ProtocolError,
		"":             transport.ConnectionTermination,
	} {
		cc, sc := conntest.Pipes(t)
		_, _ = sc.Write([]byte(in))
		_ = sc.CloseWrite()
		cl := NewClient(noProbe{cc}, &transport.ClientConfig{})
		st, err := cl.NewStream()
		if err != nil {
			t.Fatal(err)
		}
		var h message.Header
		h.Add(message.Method, "GET")
		h.Add(message.Authority, "a")
		h.Add(message.Path, "/")
		_ = st.WriteHeaders(&h, true)
		if _, _, err = st.ReadHeaders(&h); err == nil {
			_, err = io.ReadAll(message.NewReader(st.Body()))
		}
		if transport.ReasonOf(err) != reason {
			t.Errorf("%q: got %v, want %v", in, err, reason)
		}
		st.Release()
		if cl.Available() != 0 {
			t.Errorf("%q: the connection is reused", in)
		}
	}
}

// noProbe hides Probe, so that a test can put the answer there beforehand.
type noProbe struct{ netio.Conn }

func TestClientGoneInterruptsTheStream(t *testing.T) {
	cc, sc := conntest.Sockets(t)
	got := make(chan error, 1)
	done := start(sc, &handler{serve: func(s transport.ServerStream) {
		s.OnReset(func(err error) { got <- err })
		select {
		case <-time.After(20 * time.Second):
		case err := <-got:
			got <- err
		}
	}}, &transport.ServerConfig{})
	_, _ = cc.Write([]byte("GET / HTTP/1.1\r\nhost: a\r\n\r\n"))
	time.Sleep(20 * time.Millisecond)
	_ = cc.Close()
	select {
	case err := <-got:
		if transport.ReasonOf(err) != transport.ConnectionTermination {
			t.Error(err)
		}
	case <-time.After(20 * time.Second):
		t.Error("nobody was told")
	}
	wait(t, done)
}

// A callback of OnReset that runs while its owner is being reused would meet the
// next request.
func TestOnResetCanBeTakenBack(t *testing.T) {
	cc, sc := conntest.Pipes(t)
	entered, leave := make(chan struct{}), make(chan struct{})
	var s *Server
	s = NewServer(sc, &transport.ServerConfig{}, &handler{serve: func(st transport.ServerStream) {
		st.OnReset(func(error) {
			close(entered)
			<-leave
		})
		closed := make(chan struct{})
		go func() { s.Close(errors.New("closed")); close(closed) }()
		<-entered
		go func() {
			time.Sleep(20 * time.Millisecond)
			close(leave)
		}()
		st.OnReset(nil)
		select {
		case <-leave:
		default:
			t.Error("OnReset(nil) returned while the callback ran")
		}
		st.OnReset(nil) // nor does it call what is not there
		<-closed
	}})
	done := make(chan struct{})
	go s.Serve(func() { close(done) })
	_, _ = cc.Write([]byte("GET / HTTP/1.1\r\nhost: a\r\n\r\n"))
	wait(t, done)
	_ = cc.Close()
}

func TestIdleTimeoutClosesTheConnection(t *testing.T) {
	cc, sc := conntest.Pipes(t)
	done := start(sc, &handler{serve: echo}, &transport.ServerConfig{IdleTimeout: 30 * time.Millisecond})
	b := make([]byte, 1)
	if _, err := cc.Read(b); !errors.Is(err, io.EOF) && err == nil {
		t.Error("want an end")
	}
	wait(t, done)
}
