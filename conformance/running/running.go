// Package running starts the Fairlead that tests look at from outside.
package running

import (
	"bytes"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/fairlead-mesh/fairlead/conformance/behaviour"
)

// Address is a port of loopback.
func Address(port int) string { return "127.0.0.1:" + strconv.Itoa(port) }

// FreePort returns a port of loopback that nobody but the process that is told
// it gets while the test runs.
func FreePort(t testing.TB) int {
	t.Helper()
	port, release, err := behaviour.ReservePort()
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(release)
	return port
}

// Port is that of a TCP listener.
func Port(l net.Listener) int {
	a, _ := l.Addr().(*net.TCPAddr)
	return a.Port
}

// output is a log that may be read while it is written.
type output struct {
	mu sync.Mutex
	b  bytes.Buffer
}

// Write implements io.Writer.
func (o *output) Write(p []byte) (int, error) {
	o.mu.Lock()
	defer o.mu.Unlock()
	return o.b.Write(p)
}

func (o *output) text() string {
	o.mu.Lock()
	defer o.mu.Unlock()
	return o.b.String()
}

// Start is StartLogged for those who only need the process id.
func Start(t testing.TB, bootstrap string, port int) (pid int) {
	t.Helper()
	pid, _ = StartLogged(t, bootstrap, port)
	return pid
}

// StartLogged runs $FAIRLEAD_BIN (../../bin/fairlead) from a bootstrap and
// returns its process id, and what it has logged so far, when it accepts at
// port. It ends with the test, which fails if the process logged a panic.
func StartLogged(t testing.TB, bootstrap string, port int) (pid int, logged func() string) {
	t.Helper()
	bin := os.Getenv("FAIRLEAD_BIN")
	if bin == "" {
		bin = filepath.Join("..", "..", "bin", "fairlead")
	}
	if _, err := os.Stat(bin); err != nil {
		t.Fatalf("no fairlead to test: run make build, or set FAIRLEAD_BIN to an absolute path: %v", err)
	}
	file := filepath.Join(t.TempDir(), "bootstrap.yaml")
	if err := os.WriteFile(file, []byte(bootstrap), 0o600); err != nil {
		t.Fatal(err)
	}
	cmd := exec.Command(bin, "proxy", "-c", file)
	log := &output{}
	cmd.Stdout, cmd.Stderr = log, log
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		_ = cmd.Process.Kill()
		_ = cmd.Wait()
		if s := log.text(); strings.Contains(s, "panic") {
			t.Errorf("the process panicked:\n%s", s)
		}
	})
	for range 500 {
		if c, err := net.Dial("tcp", Address(port)); err == nil {
			_ = c.Close()
			return cmd.Process.Pid, log.text
		}
		time.Sleep(20 * time.Millisecond)
	}
	t.Fatalf("fairlead does not accept at port %d: %s", port, log.text())
	return 0, nil
}
