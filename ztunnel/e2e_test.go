package ztunnel

import (
	"bytes"
	"context"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/netip"
	"os"
	"strings"
	"sync"
	"testing"
	"time"

	"go.uber.org/goleak"

	"github.com/fairlead-mesh/fairlead/internal/identity"
	"github.com/fairlead-mesh/fairlead/internal/stats"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// Addresses of the two workloads, in a loopback network of this process: HBONE peers
// are always at port 15008.
var (
	home  = fmt.Sprintf("127.%d.%d.", 200+os.Getpid()/250%50, os.Getpid()%250)
	addrA = home + "1"
	addrB = home + "2"
)

type syncBuffer struct {
	mu sync.Mutex
	b  bytes.Buffer
}

func (s *syncBuffer) Write(p []byte) (int, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.b.Write(p)
}

func (s *syncBuffer) String() string {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.b.String()
}

// running is a ztunnel that runs.
type running struct {
	*Ztunnel
	log      syncBuffer
	registry stats.Registry
	stop     func() // ends it and waits
}

// echoServer sends back what it gets, and half-closes after the client did.
func echoServer(t *testing.T) int {
	l, err := net.Listen("tcp", addrB+":0")
	if err != nil {
		t.Fatal(err)
	}
	var wg sync.WaitGroup
	t.Cleanup(func() { _ = l.Close(); wg.Wait() })
	wg.Go(func() {
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			wg.Go(func() {
				defer c.Close()
				_, _ = io.Copy(c, c)
			})
		}
	})
	return l.Addr().(*net.TCPAddr).Port
}

func describe(port int) string {
	return fmt.Sprintf(`
policies:
- {name: no-9, namespace: default, scope: Namespace, action: Deny, rules: [[[{principals: [!Exact cluster.local/ns/default/sa/a], destinationPorts: [%[1]d]}]]]}
services:
- {name: echo, namespace: default, hostname: echo.default.svc.cluster.local, vips: [/10.77.0.1], ports: {80: %[1]d, 81: 1}}
- {name: wped, namespace: default, hostname: wped.default.svc.cluster.local, vips: [/10.77.0.2], ports: {80: %[1]d}, waypoint: {destination: default/nowhere}}
workloads:
- {name: a, namespace: default, serviceAccount: a, workloadIps: [%[2]s], protocol: HBONE, services: {}}
- {name: b, namespace: default, serviceAccount: b, workloadIps: [%[3]s], protocol: HBONE, services: {default/echo.default.svc.cluster.local: {}, default/wped.default.svc.cluster.local: {}}}
`, port, addrA, addrB)
}

func start(t *testing.T, ca *identity.DevCA, name string, as identity.ID, doc, more string) *running {
	t.Helper()
	if !strings.Contains(more, "drainTime:") {
		more += "drainTime: 300ms\n"
	}
	c := parse(t, fmt.Sprintf("workload: {namespace: default, name: %s, serviceAccount: %s}\nidentity: {devCA: true}\n", name, name)+more+doc)
	src, err := ca.Source(as)
	if err != nil {
		t.Fatal(err)
	}
	r := &running{}
	c.Identity, c.Source, c.Registry, c.Logger = IdentityConfig{}, src, &r.registry, slog.New(slog.NewTextHandler(&r.log, nil))
	if r.Ztunnel, err = New(c); err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan struct{})
	go func() {
		defer close(done)
		if err := r.Run(ctx); err != nil {
			t.Error(err)
		}
	}()
	r.stop = func() { cancel(); <-done }
	t.Cleanup(r.stop)
	return r
}

var (
	listenA = "listeners: {socks5: '127.0.0.1:0', connect: '127.0.0.1:0', forward: [{listen: '127.0.0.1:0', destination: 'echo.default:80'}]}\n"
	listenB = "listeners: {hbone: '" + addrB + ":15008'}\n"
)

func idOf(sa string) identity.ID {
	return identity.ID{TrustDomain: "cluster.local", Namespace: "default", ServiceAccount: sa}
}

// pair starts both ends; policies holds if deny is set. more is told to the server's.
func pair(t *testing.T, deny bool, serverID identity.ID, more ...string) (a, b *running, port int) {
	ca, err := identity.NewDevCA("cluster.local")
	if err != nil {
		t.Fatal(err)
	}
	port = echoServer(t)
	doc := describe(port)
	if !deny {
		doc = strings.Replace(doc, "action: Deny, rules", "action: Deny, dryRun: true, rules", 1)
	}
	b = start(t, ca, "b", serverID, doc, listenB+strings.Join(more, ""))
	return start(t, ca, "a", idOf("a"), doc, listenA), b, port
}

func dial(t *testing.T, a netip.AddrPort) *net.TCPConn {
	t.Helper()
	c, err := net.Dial("tcp", a.String())
	if err != nil {
		t.Fatal(err)
	}
	_ = c.SetDeadline(time.Now().Add(15 * time.Second))
	t.Cleanup(func() { _ = c.Close() })
	return c.(*net.TCPConn)
}

// socks asks for host:port by name and returns the reply code.
func socks(t *testing.T, a netip.AddrPort, host string, port int) (*net.TCPConn, byte) {
	t.Helper()
	c := dial(t, a)
	req := append([]byte{5, 1, 0, 5, 1, 0, 3, byte(len(host))}, host...)
	if _, err := c.Write(append(req, byte(port>>8), byte(port))); err != nil {
		t.Fatal(err)
	}
	var b [12]byte
	if _, err := io.ReadFull(c, b[:]); err != nil {
		t.Fatal(err)
	}
	if b[0] != 5 || b[1] != 0 || b[2] != 5 {
		t.Fatalf("answer %v", b)
	}
	return c, b[3]
}

// roundTrip sends data, half-closes, and expects the same until the end.
func roundTrip(t *testing.T, c *net.TCPConn, n int) {
	t.Helper()
	data := bytes.Repeat([]byte("0123456789abcdef"), n/16)
	var wg sync.WaitGroup
	wg.Go(func() {
		_, _ = c.Write(data)
		_ = c.CloseWrite()
	})
	got, err := io.ReadAll(c)
	wg.Wait()
	if err != nil || !bytes.Equal(got, data) {
		t.Fatalf("%d bytes of %d came back: %v", len(got), len(data), err)
	}
}

func (r *running) waitLog(t *testing.T, want ...string) {
	t.Helper()
	for range 2000 {
		ok := true
		for _, w := range want {
			ok = ok && strings.Contains(r.log.String(), w)
		}
		if ok {
			return
		}
		time.Sleep(10 * time.Millisecond)
	}
	t.Fatalf("the log lacks one of %q:\n%s", want, r.log.String())
}

func TestAFlowGoesThroughTwoZtunnels(t *testing.T) {
	a, b, port := pair(t, false, idOf("b"))
	c, code := socks(t, a.Addr("socks5"), "echo.default.svc.cluster.local", 80)
	if code != socksOK {
		t.Fatalf("reply %d\n%s\n%s", code, a.log.String(), b.log.String())
	}
	roundTrip(t, c, 1<<20)
	a.waitLog(t, "direction=outbound", "bytes_sent=1048576", "bytes_recv=1048576", "dst.service=echo.default.svc.cluster.local",
		"dst.identity=spiffe://cluster.local/ns/default/sa/b", fmt.Sprintf("dst.hbone_addr=%s:%d", addrB, port))
	b.waitLog(t, "direction=inbound", "bytes_sent=1048576", "src.identity=spiffe://cluster.local/ns/default/sa/a")

	h := dial(t, a.Addr("connect"))
	fmt.Fprintf(h, "CONNECT echo.default:80 HTTP/1.1\r\nhost: echo.default:80\r\n\r\n")
	head := make([]byte, len("HTTP/1.1 200 OK\r\n\r\n"))
	if _, err := io.ReadFull(h, head); err != nil || !strings.HasPrefix(string(head), "HTTP/1.1 200") {
		t.Fatalf("%q %v", head, err)
	}
	roundTrip(t, h, 1<<10)
	roundTrip(t, dial(t, a.Addr("forward")), 1<<10)

	var m bytes.Buffer
	if err := b.registry.WritePrometheus(&m); err != nil {
		t.Fatal(err)
	}
	for _, want := range []string{"istio_tcp_connections_opened_total{", `reporter="destination"`, "istio_tcp_received_bytes_total{", `source_principal="spiffe://cluster.local/ns/default/sa/a"`, `connection_security_policy="mutual_tls"`} {
		if !strings.Contains(m.String(), want) {
			t.Errorf("metrics lack %s:\n%s", want, m.String())
		}
	}
}

func TestFailuresAreToldToTheApplication(t *testing.T) {
	a, b, _ := pair(t, true, idOf("b"))
	for _, tc := range []struct {
		name, host string
		port       int
		code       byte
		log        string
	}{
		{"a policy of the peer denies", "10.77.0.1", 80, socksNotAllowed, "status 401"},
		{"the application refuses", "10.77.0.1", 81, socksRefused, "status 503"},
		{"an unknown waypoint is not bypassed", "10.77.0.2", 80, socksFailure, "unknown waypoint"},
		{"an unknown service port", "10.77.0.1", 99, socksHost, "no healthy upstream"},
		{"a plain destination refuses", "127.0.0.1", 1, socksRefused, "refused"},
		{"a loop", "127.0.0.1", 15008, socksNotAllowed, "recursive"},
	} {
		if _, code := socks(t, a.Addr("socks5"), tc.host, tc.port); code != tc.code {
			t.Errorf("%s: reply %d, want %d\n%s", tc.name, code, tc.code, a.log.String())
		}
		a.waitLog(t, tc.log)
	}
	b.waitLog(t, "explicitly denied by: default/no-9")
	h := dial(t, a.Addr("connect"))
	fmt.Fprintf(h, "CONNECT 10.77.0.1:80 HTTP/1.1\r\nhost: x\r\n\r\n")
	if all, _ := io.ReadAll(h); !strings.HasPrefix(string(all), "HTTP/1.1 403 ") {
		t.Errorf("CONNECT: %q", all)
	}
}

func TestAPeerWithAnotherIdentityIsRefused(t *testing.T) {
	a, _, _ := pair(t, false, idOf("mallory"))
	if _, code := socks(t, a.Addr("socks5"), "10.77.0.1", 80); code == socksOK {
		t.Fatal("connected")
	}
	a.waitLog(t, "the peer is spiffe://cluster.local/ns/default/sa/mallory, expected spiffe://cluster.local/ns/default/sa/b")
}

func TestAClientOfAnotherTrustDomainIsRefused(t *testing.T) {
	ca, err := identity.NewDevCA("cluster.local")
	if err != nil {
		t.Fatal(err)
	}
	doc := describe(echoServer(t))
	b := start(t, ca, "b", idOf("b"), doc, listenB)
	a := start(t, ca, "a", identity.ID{TrustDomain: "evil", Namespace: "default", ServiceAccount: "a"}, doc, listenA)
	if _, code := socks(t, a.Addr("socks5"), "10.77.0.1", 80); code == socksOK {
		t.Fatal("connected")
	}
	b.waitLog(t, "trust domain")
}

func TestASuccessorMayListenBesideItIfToldSo(t *testing.T) {
	ca, err := identity.NewDevCA("cluster.local")
	if err != nil {
		t.Fatal(err)
	}
	shared := "listeners: {hbone: '" + addrB + ":15008', reusePort: true}\n"
	doc := describe(echoServer(t))
	start(t, ca, "b", idOf("b"), doc, shared).stop()
	start(t, ca, "b", idOf("b"), doc, shared)
	start(t, ca, "b", idOf("b"), doc, shared)
	c := parse(t, "workload: {namespace: default, name: b, serviceAccount: b}\nidentity: {devCA: true}\n"+listenB+doc)
	if z, err := New(c); err == nil {
		t.Error("listened without being told so", z.Addr("hbone"))
	}
}

func TestADrainLetsFlowsEndAndThenCutsThem(t *testing.T) {
	const drain = 3 * time.Second
	a, b, _ := pair(t, false, idOf("b"), "drainTime: "+drain.String()+"\n")
	c, code := socks(t, a.Addr("socks5"), "10.77.0.1", 80)
	if code != socksOK {
		t.Fatal(code)
	}
	began := time.Now()
	go b.stop()
	for code == socksOK {
		if time.Since(began) > drain {
			t.Fatal("new flows are accepted while draining")
		}
		time.Sleep(10 * time.Millisecond)
		_, code = socks(t, a.Addr("socks5"), "10.77.0.1", 80)
	}
	if _, err := c.Write([]byte("still")); err != nil {
		t.Fatal(err)
	}
	var buf [5]byte
	if _, err := io.ReadFull(c, buf[:]); err != nil {
		t.Fatalf("a flow was cut at the begin of the drain: %v", err)
	}
	if _, err := c.Read(buf[:]); err == nil {
		t.Fatal("bytes from nowhere")
	}
	if d := time.Since(began); d < drain || d > 20*time.Second {
		t.Errorf("cut after %s", d)
	}
	b.stop()
}
