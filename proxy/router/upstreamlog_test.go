package router

import (
	"bytes"
	"log/slog"
	"strings"
	"testing"

	"github.com/fairlead-mesh/fairlead/internal/format"
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
