package proxy_test

import (
	"bytes"
	"fmt"
	"log/slog"
	"net/http"
	"net/http/httptest"
	"strings"
	"sync"
	"testing"

	"github.com/fairlead-mesh/fairlead/internal/netio"
)

// A tunnel that no filter chain takes is over before the hand-over returns.
// Its stream must end once, and not be used again before that.
func TestATunnelThatEndsInItsHandOverEndsOnce(t *testing.T) {
	var mu sync.Mutex
	var log bytes.Buffer
	before := slog.Default()
	slog.SetDefault(slog.New(slog.NewTextHandler(writerFunc(func(p []byte) (int, error) {
		mu.Lock()
		defer mu.Unlock()
		return log.Write(p)
	}), nil)))
	defer slog.SetDefault(before)
	origin := httptest.NewServer(http.HandlerFunc(func(http.ResponseWriter, *http.Request) {}))
	defer origin.Close()
	ca, src := devCA(t)
	port := freePort(t)
	startProxy(t, fmt.Sprintf(waypointYAML, port, strings.TrimPrefix(origin.URL, "http://127.0.0.1:")), src)
	for range 20 {
		// The reset may overtake the answer.
		c, cl, err := tryTunnel(t, ca, "spiffe://cluster.local/ns/app/sa/client", port, "10.1.2.3:1")
		if err == nil {
			if n, err := c.Read(make([]byte, 1)); n != 0 || err == nil {
				t.Errorf("read %d bytes: %v", n, err)
			}
			_ = c.Close()
		}
		cl.Close(netio.ErrClosed)
	}
	mu.Lock()
	defer mu.Unlock()
	if s := log.String(); strings.Contains(s, "panic") {
		t.Errorf("the log is\n%s", s)
	}
}

type writerFunc func([]byte) (int, error)

func (f writerFunc) Write(p []byte) (int, error) { return f(p) }
