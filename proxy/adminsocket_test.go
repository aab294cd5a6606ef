package proxy_test

import (
	"context"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/fairlead-mesh/fairlead/filters/builtin"
	"github.com/fairlead-mesh/fairlead/proxy"
)

// overSocket asks the admin interface on a Unix socket.
func overSocket(t *testing.T, path, url string) (int, string) {
	t.Helper()
	return fetchBy(t, &http.Transport{DisableKeepAlives: true, DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
		return (&net.Dialer{}).DialContext(ctx, "unix", path)
	}}, "http://localhost"+url)
}

func TestTheAdminInterfaceOnAUnixSocket(t *testing.T) {
	path := filepath.Join(t.TempDir(), "s")
	stale, err := net.ListenUnix("unix", &net.UnixAddr{Name: path})
	if err != nil {
		t.Fatal(err)
	}
	stale.SetUnlinkOnClose(false)
	_ = stale.Close()                                                    // as a process that was killed leaves it
	doc := `admin: {address: {pipe: {path: "` + path + `", mode: 384}}}` // 0600
	t.Run("serves", func(t *testing.T) {
		p, _ := launch(t, doc)
		eventually(t, "ready", func() bool { return p.Ready() == nil })
		if s, body := overSocket(t, path, "/ready"); s != 200 || !strings.Contains(body, "LIVE") {
			t.Errorf("%d %q", s, body)
		}
		if s, body := overSocket(t, path, "/config_dump"); s != 200 || !strings.Contains(body, "BootstrapConfigDump") {
			t.Errorf("%d %.200q", s, body)
		}
		if st, err := os.Stat(path); err != nil || st.Mode().Perm() != 0o600 {
			t.Errorf("%v, %v", st, err)
		}
		other, err := proxy.FromBootstrap([]byte(doc), proxy.ProcessOptions{Registry: builtin.Registry()})
		if err != nil {
			t.Fatal(err)
		}
		if err := other.Run(t.Context()); err == nil || !strings.Contains(err.Error(), "somebody listens on "+path) {
			t.Errorf("a second proxy: %v", err)
		}
	})
	if _, err := os.Stat(path); err == nil {
		t.Error("the socket is still there after the end")
	}
	if err := os.WriteFile(path, []byte("x"), 0o600); err != nil {
		t.Fatal(err)
	}
	p, err := proxy.FromBootstrap([]byte(doc), proxy.ProcessOptions{Registry: builtin.Registry()})
	if err != nil {
		t.Fatal(err)
	}
	if err := p.Run(t.Context()); err == nil || !strings.Contains(err.Error(), "is no socket") {
		t.Errorf("a file in the place of the socket: %v", err)
	}
}
