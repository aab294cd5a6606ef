package abuse

import (
	"bufio"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"strings"
	"syscall"
	"testing"
	"time"
	"unsafe"

	"github.com/fairlead-mesh/fairlead/conformance/running"
)

// limitFiles bounds the open files of another process.
func limitFiles(t *testing.T, pid, n int) {
	t.Helper()
	l := syscall.Rlimit{Cur: uint64(n), Max: uint64(n)}
	if _, _, e := syscall.RawSyscall6(syscall.SYS_PRLIMIT64, uintptr(pid), syscall.RLIMIT_NOFILE, uintptr(unsafe.Pointer(&l)), 0, 0, 0); e != 0 {
		t.Fatal(e)
	}
}

func openFiles(t *testing.T, pid int) int {
	t.Helper()
	d, err := os.ReadDir(fmt.Sprintf("/proc/%d/fd", pid))
	if err != nil {
		t.Fatal(err)
	}
	return len(d)
}

// asker is a connection that asks again and again.
type asker struct {
	c  net.Conn
	br *bufio.Reader
}

func dialAsker(t *testing.T, port int) *asker {
	t.Helper()
	c, err := net.Dial("tcp", running.Address(port))
	if err != nil {
		t.Fatal(err)
	}
	return &asker{c, bufio.NewReader(c)}
}

// ask reports the status, 0 if there is no answer within patience.
func (a *asker) ask(path string, patience time.Duration) int {
	_ = a.c.SetDeadline(time.Now().Add(patience))
	if _, err := io.WriteString(a.c, "GET "+path+" HTTP/1.1\r\nhost: a\r\n\r\n"); err != nil {
		return 0
	}
	return a.answer(patience)
}

func (a *asker) answer(patience time.Duration) int {
	_ = a.c.SetDeadline(time.Now().Add(patience))
	resp, err := http.ReadResponse(a.br, nil)
	if err != nil {
		return 0
	}
	_, _ = io.Copy(io.Discard, resp.Body)
	_ = resp.Body.Close()
	return resp.StatusCode
}

// Without descriptors open connections go on, also to upstreams that they have;
// new ones wait and are served when descriptors come back.
func TestWithoutDescriptorsOpenConnectionsGoOn(t *testing.T) {
	origin := &http.Server{Handler: http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) { _, _ = w.Write([]byte("origin")) }), ReadHeaderTimeout: time.Minute}
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	go func() { _ = origin.Serve(l) }()
	defer origin.Close()
	h2, h1 := running.FreePort(t), running.FreePort(t)
	doc := strings.Replace(fmt.Sprintf(bootstrap, h2, h1, running.FreePort(t), running.Port(l)), "idle_timeout: 2s}, request_headers_timeout: 2s", "idle_timeout: 60s}", 1)
	pid, logged := running.StartLogged(t, doc, h2)

	old := dialAsker(t, h1)
	defer old.c.Close()
	for _, path := range []string{"/", "/big"} {
		if s := old.ask(path, 20*time.Second); s != http.StatusOK {
			t.Fatalf("before: %s: %d", path, s)
		}
	}
	const room = 20
	limitFiles(t, pid, openFiles(t, pid)+room)
	var crowd []*asker
	for range 3 * room {
		a := dialAsker(t, h1)
		defer a.c.Close()
		crowd = append(crowd, a)
	}
	time.Sleep(200 * time.Millisecond)
	served := 0
	for _, a := range crowd {
		if a.ask("/", 250*time.Millisecond) == http.StatusOK {
			served++
		}
	}
	if served == 0 || served > room+2 { // one or two were just being closed
		t.Errorf("%d of %d new connections were served, with room for %d", served, len(crowd), room)
	}
	for range 20 {
		for _, path := range []string{"/", "/big"} {
			if s := old.ask(path, 20*time.Second); s != http.StatusOK {
				t.Fatalf("without descriptors an open connection got %d for %s", s, path)
			}
		}
	}
	// An upstream connection can't be opened: an answer, no silence.
	if s := crowd[0].ask("/big", 20*time.Second); s != http.StatusOK && s != http.StatusServiceUnavailable {
		t.Errorf("a request that may need a new upstream connection got %d", s)
	}
	if n := strings.Count(logged(), "check the limit of open files"); n == 0 || n > 5 {
		t.Errorf("%d lines say what to check:\n%s", n, logged())
	}
	for _, a := range crowd[:len(crowd)-1] {
		_ = a.c.Close()
	}
	began := time.Now()
	last := crowd[len(crowd)-1] // it has waited all the time
	if s := last.answer(20 * time.Second); s != http.StatusOK {
		t.Errorf("the connection that waited got %d", s)
	}
	fresh := dialAsker(t, h1)
	defer fresh.c.Close()
	if s := fresh.ask("/big", 20*time.Second); s != http.StatusOK {
		t.Errorf("a new connection got %d", s)
	}
	t.Logf("%d served of %d, recovered after %v", served, len(crowd), time.Since(began).Round(time.Millisecond))
	if d := time.Since(began); d > 30*time.Second {
		t.Errorf("recovered after %v", d)
	}
}
