package ztunnel

import (
	"bytes"
	"context"
	"crypto/sha256"
	"crypto/tls"
	"fmt"
	"io"
	"math/rand/v2"
	"net"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"golang.org/x/net/http2"

	"github.com/fairlead-mesh/fairlead/internal/hbonetest"
	"github.com/fairlead-mesh/fairlead/internal/identity"
)

// application counts the connections that it gets and echoes what they bring.
type application struct {
	port    int
	opened  atomic.Int32
	arrived sync.Map // everything that came, by number
}

func newApplication(t *testing.T) *application {
	t.Helper()
	l, err := net.Listen("tcp", addrB+":0")
	if err != nil {
		t.Fatal(err)
	}
	a := &application{port: l.Addr().(*net.TCPAddr).Port}
	var wg sync.WaitGroup
	t.Cleanup(func() { _ = l.Close(); wg.Wait() })
	wg.Go(func() {
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			n := a.opened.Add(1)
			wg.Go(func() {
				defer c.Close()
				var all bytes.Buffer
				_, _ = io.Copy(io.MultiWriter(c, &all), c)
				a.arrived.Store(n, all.String())
			})
		}
	})
	return a
}

// served is a ztunnel that peers talk to with frames of their own.
type served struct {
	*running
	*application
	t  *testing.T
	ca *identity.DevCA
}

func newServed(t *testing.T, edit func(doc string) string) *served {
	t.Helper()
	ca, err := identity.NewDevCA("cluster.local")
	if err != nil {
		t.Fatal(err)
	}
	s := &served{application: newApplication(t), t: t, ca: ca}
	doc := strings.Replace(describe(s.port), "action: Deny, rules", "action: Deny, dryRun: true, rules", 1)
	if edit != nil {
		doc = edit(describe(s.port))
	}
	s.running = start(t, ca, "b", idOf("b"), doc, listenB)
	return s
}

// handshake is a connection of workload a.
func (s *served) handshake() *tls.Conn {
	s.t.Helper()
	src, err := s.ca.Source(idOf("a"))
	if err != nil {
		s.t.Fatal(err)
	}
	c, err := tls.Dial("tcp", addrB+":15008", &tls.Config{Certificates: []tls.Certificate{*src.Certificate()}, InsecureSkipVerify: true, NextProtos: []string{"h2"}, MinVersion: tls.VersionTLS13})
	if err != nil {
		s.t.Fatal(err)
	}
	s.t.Cleanup(func() { _ = c.Close() })
	return c
}

func (s *served) peer() *hbonetest.Peer { s.t.Helper(); return hbonetest.New(s.t, s.handshake()) }

// app is the address of the application, as peers name it.
func (s *served) app() string { return addrB + ":" + strconv.Itoa(s.port) }

// verdict is the status, "reset", or "gone".
func verdict(p *hbonetest.Peer, stream uint32) string {
	a, err := p.Wait(stream, 5*time.Second, hbonetest.Answered)
	switch {
	case err != nil:
		return "gone"
	case a.Reset:
		return "reset"
	}
	return a.Status
}

// mustServe fails unless a tunnel can be opened on p.
func (s *served) mustServe(p *hbonetest.Peer, stream uint32) {
	s.t.Helper()
	p.Connect(stream, s.app())
	if v := verdict(p, stream); v != "200" {
		s.t.Fatalf("a good CONNECT got %s", v)
	}
	_ = p.Data(stream, true, []byte("hello"))
	if a, err := p.Wait(stream, 5*time.Second, hbonetest.Over); err != nil || string(a.Data) != "hello" {
		s.t.Fatalf("%q came back, %v", a.Data, err)
	}
}

// Whatever a peer asks for that is not a tunnel to this workload is refused, and
// nobody is dialled for it.
func TestAPeerOnlyGetsToTheOwnWorkload(t *testing.T) {
	s := newServed(t, func(doc string) string {
		doc = strings.Replace(doc, "action: Deny, rules", "action: Deny, dryRun: true, rules", 1)
		return strings.Replace(doc, "policies:", "upstream: "+addrB+"\npolicies:", 1)
	})
	port := strconv.Itoa(s.port)
	connect := func(authority string, more ...string) []string {
		return append([]string{":method", "CONNECT", ":authority", authority}, more...)
	}
	plain := func(method, path string) []string {
		return []string{":method", method, ":scheme", "http", ":authority", s.app(), ":path", path}
	}
	cases := []struct {
		name, want string
		fields     []string
	}{
		{"GET", "400", plain("GET", "/")},
		{"POST", "400", plain("POST", "/")},
		{"OPTIONS *", "400", plain("OPTIONS", "*")},
		{"CONNECT with a path", "reset", connect(s.app(), ":path", "/")},
		{"CONNECT with a scheme", "reset", connect(s.app(), ":scheme", "http")},
		{"extended CONNECT", "reset", append(plain("CONNECT", "/"), ":protocol", "websocket")},
		{"CONNECT without an authority", "reset", []string{":method", "CONNECT"}},
		{"an authority of nothing", "reset", connect("")},
		{"no port", "400", connect(addrB)},
		{"port 0", "400", connect(addrB + ":0")},
		{"port 65536", "reset", connect(addrB + ":65536")},
		{"a port with a sign", "reset", connect(addrB + ":+80")},
		{"user information", "reset", connect("u@" + s.app())},
		{"a line break", "reset", connect(s.app() + "\r\nx: y")},
		{"a space", "reset", connect(addrB + " :" + port)},
		{"300 bytes", "400", connect(strings.Repeat("h", 296) + ":80")},
		{"another address", "400", connect(home + "9:" + port)},
		{"the peer itself", "400", connect(addrA + ":" + port)},
		{"loopback", "400", connect("127.0.0.1:15000")},
		{"loopback by name", "503", connect("localhost:15000")},
		{"loopback of IPv6", "400", connect("[::1]:15000")},
		{"any address", "400", connect("0.0.0.0:" + port)},
		{"metadata of a cloud", "400", connect("169.254.169.254:80")},
		{"an unknown host", "503", connect("nobody:80")},
		{"a port that the service lacks", "503", connect("echo.default.svc.cluster.local:82")},
		{"the own port 15008", "503", connect(addrB + ":15008")},
		{"the own port 15001", "503", connect(addrB + ":15001")},
		{"the own port 15006", "503", connect(addrB + ":15006")},
		{"the own port 15008 by a mapped address", "503", connect("[::ffff:" + addrB + "]:15008")},
	}
	if len(cases) != 29 {
		t.Errorf("%d cases, want 29", len(cases))
	}
	for _, c := range cases {
		p := s.peer()
		p.Head(1, false, c.fields...)
		if got := verdict(p, 1); got != c.want {
			t.Errorf("%s: %s, want %s", c.name, got, c.want)
		}
	}
	if n := s.opened.Load(); n != 0 {
		t.Errorf("the application was dialled %d times", n)
	}
	s.mustServe(s.peer(), 1)
}

// The port that tells metrics is as little for peers as those of tunnels.
func TestAPeerDoesNotGetToTheStatistics(t *testing.T) {
	ca, err := identity.NewDevCA("cluster.local")
	if err != nil {
		t.Fatal(err)
	}
	app := newApplication(t)
	stats := app.port + 1
	for ; ; stats++ {
		l, err := net.Listen("tcp", addrB+":"+strconv.Itoa(stats))
		if err == nil {
			_ = l.Close()
			break
		}
	}
	s := &served{application: app, t: t, ca: ca}
	s.running = start(t, ca, "b", idOf("b"), describe(app.port), strings.Replace(listenB, "}", fmt.Sprintf(", stats: '%s:%d'}", addrB, stats), 1))
	p := s.peer()
	p.Connect(1, addrB+":"+strconv.Itoa(stats))
	if v := verdict(p, 1); v != "503" {
		t.Errorf("a tunnel to the statistics got %s", v)
	}
}

// A peer that a policy refuses gets 401, whatever it says about itself.
func TestWhatAPeerSaysAboutItselfGrantsNothing(t *testing.T) {
	members := make([]string, 5000)
	for i := range members {
		members[i] = fmt.Sprintf("k%d=v", i)
	}
	claims := [][]string{
		nil,
		{"x-istio-source", "waypoint"},
		{"x-istio-source", "gateway"},
		{"x-forwarded-network", "other"},
		{"x-forwarded-client-cert", "URI=spiffe://cluster.local/ns/default/sa/b"},
		{"baggage", "k8s.namespace.name=default,k8s.deployment.name=b,service.name=b"},
		{"baggage", strings.Repeat("x", 8<<10)},
		{"baggage", strings.Join(members, ",")},
		{"baggage", "k=\xff\xfe,\xc0\x80=v"},
		{"baggage", "service.name=a,service.name=b", "baggage", "service.name=c"},
		{"baggage", `service.name="a,b";p="\"",k8s.cluster.name=%zz,=,;,`},
		{"forwarded", `for="10.0.0.1";by="[::1]:80";host="` + addrB + `";proto=http`},
		{"forwarded", `for="` + strings.Repeat(`\"`, 4000)},
		{"forwarded", "for=\xff", "forwarded", "for=1.2.3.4"},
		{"traceparent", "00-00000000000000000000000000000000-0000000000000000-01"},
	}
	for _, deny := range []bool{true, false} {
		s := newServed(t, func(doc string) string {
			if !deny {
				doc = strings.Replace(doc, "action: Deny, rules", "action: Deny, dryRun: true, rules", 1)
			}
			return doc
		})
		want := map[bool]string{true: "401", false: "200"}[deny]
		p := s.peer()
		for i, c := range claims {
			id := uint32(2*i + 1)
			p.Connect(id, s.app(), c...)
			if v := verdict(p, id); v != want {
				t.Errorf("with %.60q: %s, want %s", c, v, want)
			}
			_ = p.Data(id, true, nil)
			if _, err := p.Wait(id, 5*time.Second, hbonetest.Over); err != nil {
				t.Errorf("with %.60q: %v", c, err)
			}
		}
		if n := int(s.opened.Load()); deny && n != 0 || !deny && n != len(claims) {
			t.Errorf("refused %t: the application was dialled %d times", deny, n)
		}
		s.stop()
	}
}

// What a peer sends with a CONNECT before the answer goes to the application that
// it asked for, or nowhere: it is never read as frames or as a request.
func TestEarlyDataGoesWhereItsTunnelGoesOrNowhere(t *testing.T) {
	s := newServed(t, nil)
	p := s.peer()
	smuggled := []byte("\x00\x00\x00\x04\x00\x00\x00\x00\x00GET /smuggled HTTP/1.1\r\nhost: a\r\n\r\nCONNECT " + s.app() + " HTTP/1.1\r\n\r\n")
	for i, c := range []struct{ authority, want string }{{"127.77.1.9:80", "400"}, {"nobody:80", "503"}, {addrB + ":1", "503"}, {s.app(), "200"}} {
		id := uint32(4*i + 1)
		p.Connect(id, c.authority)
		_ = p.Data(id, false, smuggled)
		_ = p.Data(id, true, smuggled)
		if v := verdict(p, id); v != c.want {
			t.Errorf("%s: %s, want %s", c.authority, v, c.want)
		}
		s.mustServe(p, id+2)
	}
	a, err := p.Wait(13, 5*time.Second, hbonetest.Over)
	if err != nil || string(a.Data) != string(smuggled)+string(smuggled) {
		t.Errorf("%q came back, %v", a.Data, err)
	}
	if n := s.opened.Load(); n != 5 {
		t.Errorf("the application was dialled %d times, want 5", n)
	}
	s.arrived.Range(func(_, v any) bool {
		if v != "hello" && v != string(smuggled)+string(smuggled) {
			t.Errorf("the application got %q", v)
		}
		return true
	})
}

// hashed is n bytes of a generator, and their hash.
type hashed struct {
	r *rand.ChaCha8
	n int64
}

func newHashed(seed byte, n int64) *hashed { return &hashed{rand.NewChaCha8([32]byte{seed}), n} }

func (h *hashed) Read(p []byte) (int, error) {
	if h.n == 0 {
		return 0, io.EOF
	}
	n := int(min(int64(len(p)), h.n))
	h.n -= int64(n)
	return h.r.Read(p[:n])
}

func (h *hashed) sum() string {
	s := sha256.New()
	_, _ = io.Copy(s, h)
	return string(s.Sum(nil))
}

// 100 MiB in each direction at once, a byte at a time, half-closes and resets:
// all of it is the same on the other side of two ztunnels.
func TestAFlowIsTheSameBehindTwoZtunnels(t *testing.T) {
	ca, err := identity.NewDevCA("cluster.local")
	if err != nil {
		t.Fatal(err)
	}
	l, err := net.Listen("tcp", addrB+":0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	port := l.Addr().(*net.TCPAddr).Port
	doc := strings.Replace(describe(port), "action: Deny, rules", "action: Deny, dryRun: true, rules", 1)
	start(t, ca, "b", idOf("b"), doc, listenB)
	a := start(t, ca, "a", idOf("a"), doc, listenA)
	open := func() (client, server *net.TCPConn) {
		t.Helper()
		client = dial(t, a.Addr("forward"))
		_ = l.(*net.TCPListener).SetDeadline(time.Now().Add(20 * time.Second))
		c, err := l.Accept()
		if err != nil {
			t.Fatal(err)
		}
		server = c.(*net.TCPConn)
		_ = client.SetDeadline(time.Now().Add(40 * time.Second))
		_ = server.SetDeadline(time.Now().Add(40 * time.Second))
		t.Cleanup(func() { _ = server.Close() })
		return client, server
	}
	size := int64(100 << 20)
	if testing.Short() {
		size = 4 << 20
	}
	t.Run("both ways at once", func(t *testing.T) {
		client, server := open()
		var wg sync.WaitGroup
		for i, ends := range [][2]*net.TCPConn{{client, server}, {server, client}} {
			seed := byte(i)
			wg.Go(func() {
				_, _ = io.CopyBuffer(struct{ io.Writer }{ends[0]}, newHashed(seed, size), make([]byte, 64<<10))
				_ = ends[0].CloseWrite()
			})
			wg.Go(func() {
				s := sha256.New()
				n, err := io.CopyBuffer(s, struct{ io.Reader }{ends[1]}, make([]byte, 64<<10))
				if err != nil || n != size || string(s.Sum(nil)) != newHashed(seed, size).sum() {
					t.Errorf("direction %d: %d bytes of %d, or others: %v", i, n, size, err)
				}
			})
		}
		wg.Wait()
	})
	t.Run("a byte at a time", func(t *testing.T) {
		client, server := open()
		for i := range 2000 {
			b := []byte{byte(i)}
			if _, err := client.Write(b); err != nil {
				t.Fatal(err)
			}
			if i%20 == 0 { // answered, so that the next ones come one by one
				if _, err := io.ReadFull(server, make([]byte, 1)); err != nil {
					t.Fatal(err)
				}
			}
		}
		_ = client.CloseWrite()
		if b, err := io.ReadAll(server); len(b) != 2000-100 || err != nil {
			t.Errorf("%d bytes, %v", len(b), err)
		}
	})
	for name, reverse := range map[string]bool{"the client ends first": false, "the server ends first": true} {
		t.Run(name, func(t *testing.T) {
			first, second := open()
			if reverse {
				first, second = second, first
			}
			_, _ = first.Write([]byte("request"))
			_ = first.CloseWrite()
			if b, err := io.ReadAll(second); string(b) != "request" || err != nil {
				t.Errorf("%q %v", b, err)
			}
			_, _ = second.Write([]byte("answer"))
			_ = second.CloseWrite()
			if b, err := io.ReadAll(first); string(b) != "answer" || err != nil {
				t.Errorf("behind its own end it got %q, %v", b, err)
			}
		})
	}
	for name, reverse := range map[string]bool{"the client resets": false, "the server resets": true} {
		t.Run(name, func(t *testing.T) {
			first, second := open()
			if reverse {
				first, second = second, first
			}
			_, _ = first.Write([]byte("x"))
			if _, err := io.ReadFull(second, make([]byte, 1)); err != nil {
				t.Fatal(err)
			}
			_ = first.SetLinger(0)
			_ = first.Close()
			began := time.Now()
			if _, err := second.Read(make([]byte, 1)); err == nil || err == io.EOF || !strings.Contains(err.Error(), "reset") { //nolint:errorlint // as it is
				t.Errorf("a reset arrives as %v", err)
			}
			if d := time.Since(began); d > 10*time.Second {
				t.Errorf("a reset took %v", d)
			}
		})
	}
}

// A peer that gives up its tunnels, many of them at once, leaves no connection to
// the application behind, and others are served.
func TestAPeerThatResetsItsTunnelsLeavesNothing(t *testing.T) {
	s := newServed(t, nil)
	p := s.peer()
	for i := range 50 {
		id := uint32(2*i + 1)
		p.Connect(id, s.app())
		_ = p.Data(id, false, []byte("x"))
		if i%2 == 0 {
			p.Reset(id, http2.ErrCodeCancel)
		}
	}
	s.mustServe(p, 201)
	ctx, cancel := context.WithTimeout(t.Context(), 20*time.Second)
	defer cancel()
	for i := range 50 {
		if i%2 == 1 {
			p.Reset(uint32(2*i+1), http2.ErrCodeCancel)
		}
	}
	for {
		n := 0
		s.arrived.Range(func(any, any) bool { n++; return true })
		if n == int(s.opened.Load()) {
			return
		}
		if ctx.Err() != nil {
			t.Fatalf("%d of %d connections to the application have ended", n, s.opened.Load())
		}
		time.Sleep(10 * time.Millisecond)
	}
}
