package proxy_test

import (
	"bytes"
	"crypto/tls"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"runtime"
	"runtime/pprof"
	"strconv"
	"syscall"
	"testing"
	"time"

	"golang.org/x/net/http2"
	"golang.org/x/net/http2/hpack"

	"github.com/fairlead-mesh/fairlead/internal/identity"
)

// heldMemory is what lives after collections: objects, and stacks.
func heldMemory() (heap, stack float64) {
	for range 3 {
		runtime.GC()
		time.Sleep(20 * time.Millisecond)
	}
	var m runtime.MemStats
	runtime.ReadMemStats(&m)
	return float64(m.HeapAlloc), float64(m.StackInuse)
}

// lightTunnel is a client of HBONE that keeps nothing for a stream.
type lightTunnel struct {
	t    *testing.T
	c    net.Conn
	fr   *http2.Framer
	head bytes.Buffer
	enc  *hpack.Encoder
	id   uint32
}

func openLightTunnel(t *testing.T, ca *identity.DevCA, port int) *lightTunnel {
	t.Helper()
	id, err := identity.ParseID("spiffe://cluster.local/ns/app/sa/client")
	if err != nil {
		t.Fatal(err)
	}
	src, err := ca.Source(id)
	if err != nil {
		t.Fatal(err)
	}
	c, err := tls.Dial("tcp", net.JoinHostPort("127.0.0.1", strconv.Itoa(port)), &tls.Config{
		Certificates: []tls.Certificate{*src.Certificate()}, InsecureSkipVerify: true, NextProtos: []string{"h2"}, MinVersion: tls.VersionTLS13,
	})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = c.Close() })
	l := &lightTunnel{t: t, c: c, fr: http2.NewFramer(c, c), id: 1}
	l.enc = hpack.NewEncoder(&l.head)
	l.check(errOf(c.Write([]byte(http2.ClientPreface))))
	l.check(l.fr.WriteSettings(), l.fr.WriteWindowUpdate(0, 1<<30))
	return l
}

func errOf(_ int, err error) error { return err }

func (l *lightTunnel) check(errs ...error) {
	l.t.Helper()
	for _, err := range errs {
		if err != nil {
			l.t.Fatal(err)
		}
	}
}

// open opens a stream; fields are pairs of names and values.
func (l *lightTunnel) open(authority string, fields ...string) (id uint32) {
	l.t.Helper()
	l.head.Reset()
	for f := append([]string{":method", "CONNECT", ":authority", authority}, fields...); len(f) > 0; f = f[2:] {
		l.check(l.enc.WriteField(hpack.HeaderField{Name: f[0], Value: f[1]}))
	}
	id, l.id = l.id, l.id+2
	l.check(l.fr.WriteHeaders(http2.HeadersFrameParam{StreamID: id, BlockFragment: l.head.Bytes(), EndHeaders: true}))
	l.await(id, func(f http2.Frame) bool { return f.Header().Type == http2.FrameHeaders })
	return id
}

// request sends one and waits for the answer, which ends with end.
func (l *lightTunnel) request(id uint32, head, end string) {
	l.t.Helper()
	l.check(l.fr.WriteData(id, false, []byte(head)))
	l.await(id, func(f http2.Frame) bool {
		d, ok := f.(*http2.DataFrame)
		return ok && bytes.HasSuffix(d.Data(), []byte(end))
	})
}

func (l *lightTunnel) await(id uint32, ok func(http2.Frame) bool) {
	l.t.Helper()
	for {
		f, err := l.fr.ReadFrame()
		l.check(err)
		switch f := f.(type) {
		case *http2.SettingsFrame:
			if !f.IsAck() {
				l.check(l.fr.WriteSettingsAck())
			}
		case *http2.GoAwayFrame:
			l.t.Fatalf("%v", f)
		case *http2.RSTStreamFrame:
			if f.StreamID == id {
				l.t.Fatalf("%v", f)
			}
		}
		if f.Header().StreamID == id && ok(f) {
			return
		}
	}
}

// lightConn is a TCP connection that holds nothing in this process but a
// descriptor, which the caller closes.
type lightConn int

func openLightConn(t *testing.T, port int) lightConn {
	t.Helper()
	fd, err := syscall.Socket(syscall.AF_INET, syscall.SOCK_STREAM|syscall.SOCK_CLOEXEC, 0)
	if err == nil {
		err = syscall.Connect(fd, &syscall.SockaddrInet4{Port: port, Addr: [4]byte{127, 0, 0, 1}})
	}
	if err != nil {
		t.Fatal(err)
	}
	return lightConn(fd)
}

func (c lightConn) request(t *testing.T, head, end string) {
	t.Helper()
	var buf [4096]byte
	_, err := syscall.Write(int(c), []byte(head))
	n := 0
	for err == nil && !bytes.HasSuffix(buf[:n], []byte(end)) {
		var m int
		if m, err = syscall.Read(int(c), buf[n:]); m <= 0 && err == nil {
			err = fmt.Errorf("the connection ended after %q", buf[:n])
		}
		n += max(m, 0)
	}
	if err != nil {
		t.Fatal(err)
	}
}

// What is idle holds what it needs to go on, and no more: the figures of the
// benchmark's idle streams and connections without what the system and the heap's
// slack add.
func TestIdleStreamsAndConnectionsAreSmall(t *testing.T) {
	if raceEnabled {
		t.Skip("the race detector keeps memory of its own")
	}
	if os.Getenv("IDLE_PROFILE") != "" {
		runtime.MemProfileRate = 1
	}
	ca, src := devCA(t)
	h1, hbone := freePort(t), freePort(t)
	log := strconv.Quote(filepath.Join(t.TempDir(), "access.log"))
	startProxy(t, fmt.Sprintf(allocYAML, h1, hbone, answerer(t), log), src)
	conns := make([]lightConn, 0, 2000)
	defer func() {
		for _, c := range conns {
			_ = syscall.Close(int(c))
		}
	}()
	const request, n = "GET /api/x HTTP/1.1\r\nhost: reviews\r\n\r\n", 1000
	for _, tc := range []struct {
		name string
		max  float64
		use  func() // one more of what is idle then
	}{
		{"CONNECT stream", 1900, func() func() {
			l := openLightTunnel(t, ca, hbone)
			return func() { l.request(l.open("10.1.2.3:9080"), request, "hello") }
		}()},
		{"HTTP/1.1 connection", 3 << 10, func() {
			c := openLightConn(t, h1)
			conns = append(conns, c)
			c.request(t, request, "hello")
		}},
	} {
		for range 20 {
			tc.use()
		}
		heap, stack := heldMemory()
		for range n {
			tc.use()
		}
		var each, stacks float64
		for end := time.Now().Add(10 * time.Second); ; {
			time.Sleep(700 * time.Millisecond) // they doze, and the runtime gives their stacks back
			heap1, stack1 := heldMemory()
			if each, stacks = (heap1-heap)/n, (stack1-stack)/n; each+stacks <= tc.max || time.Now().After(end) {
				break // a busy machine may take longer
			}
		}
		t.Logf("%s: %.0f bytes of heap, %.0f of stacks", tc.name, each, stacks)
		if each+stacks > tc.max {
			t.Errorf("an idle %s holds %.0f bytes and %.0f of stacks, want at most %.0f", tc.name, each, stacks, tc.max)
		}
		if f := os.Getenv("IDLE_PROFILE"); f != "" {
			w, _ := os.Create(f + "." + tc.name[:4])
			_ = pprof.WriteHeapProfile(w)
			_ = w.Close()
		}
	}
}
