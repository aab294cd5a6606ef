package router

import (
	"bytes"
	"log/slog"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/fairlead-mesh/fairlead/internal/format"
	"github.com/fairlead-mesh/fairlead/internal/message"
	"github.com/fairlead-mesh/fairlead/internal/netio"
	"github.com/fairlead-mesh/fairlead/internal/streaminfo"
	"github.com/fairlead-mesh/fairlead/xdsclient/xdsresource"
)

type panickingLog struct{}

func (panickingLog) Log(*format.Context) { panic("a log") }

// A panic costs the lines of the attempt, not its request.
func TestAPanicInAnUpstreamLogCostsItsLines(t *testing.T) {
	w := newWorld(t, &origin{handle: func(*exchange) answer { return answer{status: 200, body: "hi"} }})
	var out bytes.Buffer
	w.f = New(nil, Deps{Clusters: w.m, UpstreamLogs: []AccessLogger{panickingLog{}}, Logger: slog.New(slog.NewTextHandler(&out, nil))})
	if r := w.do(newStream()); r.err != nil || r.bodyErr != nil || r.status != 200 || r.body != "hi" {
		t.Errorf("%d %q, %v, %v", r.status, r.body, r.err, r.bodyErr)
	}
	if n := strings.Count(out.String(), "panic in an upstream access log"); n != 1 || !strings.Contains(out.String(), "upstreamlog_test.go") {
		t.Errorf("%d lines: %s", n, out.String())
	}
	w.idle()
}

// wire renders what an access log says of the bytes on the wire.
func wire(t *testing.T, info *streaminfo.Info) string {
	t.Helper()
	f, err := format.Compile("%UPSTREAM_WIRE_BYTES_RECEIVED% %UPSTREAM_WIRE_BYTES_SENT%")
	if err != nil {
		t.Fatal(err)
	}
	return string(f.Append(nil, &format.Context{Info: info}))
}

type wireLog struct {
	t     *testing.T
	lines *[]string
}

func (l wireLog) Log(x *format.Context) { *l.lines = append(*l.lines, wire(l.t, x.Info)) }

// Attempts add up as in Envoy; an upstream log has those of its own.
func TestBytesOnTheWireToUpstreamAreThoseOfAllAttempts(t *testing.T) {
	w := newWorld(t, &origin{in: 7, out: 11, handle: func(*exchange) answer { return answer{status: 503, body: "no"} }})
	var lines []string
	w.f = New(nil, Deps{Clusters: w.m, UpstreamLogs: []AccessLogger{wireLog{t, &lines}}})
	w.retry(xdsresource.RetryPolicy{On: xdsresource.Retry5xx, NumRetries: 2, BaseInterval: time.Millisecond})
	r := w.do(newStream())
	if got := wire(t, r.info); got != "- -" {
		t.Errorf("before the end: %s", got)
	}
	r.info.End = time.Now()
	if got := wire(t, r.info); r.status != 503 || got != "21 33" {
		t.Errorf("%d after %d attempts: %s, want 21 33", r.status, r.info.AttemptCount, got)
	}
	if want := []string{"7 11", "7 11", "7 11"}; !slices.Equal(lines, want) {
		t.Errorf("upstream log %q, want %q", lines, want)
	}
	w.idle()
}

// The codec of HTTP/2 counts what a tunnel carries; that of HTTP/1 can't.
func TestBytesOfATunnelAreCountedOrNotKnown(t *testing.T) {
	for v, want := range map[message.Version]string{message.HTTP11: "- -", message.HTTP2: "7 11"} {
		o := &origin{version: v, in: 7, out: 11, handle: func(*exchange) answer { return answer{status: 101} }, tunnel: func() netio.Conn {
			near, far := netio.Pipe(hereAddr, thereAddr)
			go echo(far)
			return near
		}}
		w := newWorld(t, o)
		r := w.do(newStream("upgrade", "websocket", "connection", "upgrade"))
		through(t, r, "frames")
		r.info.End = time.Now()
		if got := wire(t, r.info); got != want {
			t.Errorf("%s: %s, want %s", v, got, want)
		}
		w.idle()
	}
}
