package overload

import (
	"bytes"
	"context"
	"log/slog"
	"runtime"
	"strings"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"go.uber.org/goleak"

	"github.com/fairlead-mesh/fairlead/internal/stats"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

func TestConnectionsAreRefusedBeforeRequestsAndBothCalmDown(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var used atomic.Uint64
		var out bytes.Buffer
		reg := &stats.Registry{}
		m := New(Options{Limit: 1000, Used: used.Load, Logger: slog.New(slog.NewTextHandler(&out, nil)), Stats: reg.Scope("envoy_overload_")})
		ctx, cancel := context.WithCancel(t.Context())
		done := make(chan struct{})
		go func() { m.Run(ctx); close(done) }()
		for _, c := range []struct {
			used                  uint64
			connections, requests bool
		}{
			{100, false, false},
			{799, false, false},
			{800, true, false},
			{760, true, false},
			{949, true, false},
			{950, true, true},
			{901, true, true},
			{899, true, false},
			{751, true, false},
			{749, false, false},
			{2000, true, true},
			{0, false, false},
		} {
			used.Store(c.used)
			time.Sleep(period + time.Millisecond)
			synctest.Wait()
			if cx, rq := m.RefusesConnections(), m.RefusesRequests(); cx != c.connections || rq != c.requests {
				t.Errorf("%d of 1000: connections refused %t, requests %t", c.used, cx, rq)
			}
			var b strings.Builder
			if err := reg.WritePrometheus(&b); err != nil {
				t.Fatal(err)
			}
			want := "reject_incoming_connections_active " + map[bool]string{true: "1", false: "0"}[c.connections]
			if !strings.Contains(b.String(), want) {
				t.Errorf("%d of 1000: %s is not in\n%s", c.used, want, b.String())
			}
		}
		cancel()
		<-done
		for _, want := range []string{"new connections are refused, open ones go on", "limit_bytes=1000", "new connections are accepted", "answered 503", "requests are served again"} {
			if n := strings.Count(out.String(), want); n == 0 || n > 8 {
				t.Errorf("%q is logged %d times:\n%s", want, n, out.String())
			}
		}
	})
}

func TestWithoutALimitNothingIsRefused(t *testing.T) {
	m := New(Options{})
	if m != nil || m.RefusesConnections() || m.RefusesRequests() {
		t.Error("a limit that nobody set")
	}
	m.Run(t.Context())
}

func TestWhatIsInUseIsWhatLives(t *testing.T) {
	var r reader
	r.init()
	runtime.GC()
	before := r.used()
	const size = 64 << 20
	b := make([]byte, size)
	for i := 0; i < size; i += 4096 {
		b[i] = 1
	}
	runtime.GC()
	with := r.used()
	runtime.KeepAlive(b) // not beyond this
	runtime.GC()
	after := r.used()
	if with < before+size*9/10 || after > before+size/2 {
		t.Errorf("before %d, with %d more %d, after %d", before, size, with, after)
	}
}
