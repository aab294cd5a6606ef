package accesslog_test

import (
	"bytes"
	"encoding/json"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"go.uber.org/goleak"

	"github.com/fairlead-mesh/fairlead/internal/accesslog"
	"github.com/fairlead-mesh/fairlead/internal/format"
	"github.com/fairlead-mesh/fairlead/internal/matcher"
	"github.com/fairlead-mesh/fairlead/internal/message"
	"github.com/fairlead-mesh/fairlead/internal/stats"
	"github.com/fairlead-mesh/fairlead/internal/streaminfo"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

func request(code int, flags streaminfo.ResponseFlag) *format.Context {
	h := &message.Header{}
	h.Add(":method", "GET")
	h.Add("x-log", "yes")
	start := time.Unix(0, 0)
	i := &streaminfo.Info{ResponseCode: code, Flags: flags, Start: start, End: start.Add(250 * time.Millisecond), Conn: &streaminfo.Conn{}}
	i.Metadata.Set("ns", "k", "v")
	return &format.Context{Info: i, Request: h}
}

func must[T any](v T, err error) T {
	if err != nil {
		panic(err)
	}
	return v
}

func TestFilters(t *testing.T) {
	yes := must(matcher.NewString(matcher.Exact, "yes", false))
	v := must(matcher.NewString(matcher.Exact, "v", false))
	md := must(matcher.NewMetadata("ns", []string{"k"}, matcher.StringValue(v), false))
	grpc := request(200, 0)
	grpc.Info.IsGRPC = true
	grpc.Trailers = &message.Header{}
	grpc.Trailers.Add("grpc-status", "14")
	var running format.Context
	running.Info = &streaminfo.Info{}
	for _, c := range []struct {
		name string
		f    *accesslog.Filter
		c    *format.Context
		want bool
	}{
		{"nil logs everything", nil, request(200, 0), true},
		{"status at least", accesslog.StatusCode(accesslog.GreaterOrEqual, 400), request(404, 0), true},
		{"status below", accesslog.StatusCode(accesslog.GreaterOrEqual, 400), request(200, 0), false},
		{"no status is 0", accesslog.StatusCode(accesslog.LessOrEqual, 0), request(0, 0), true},
		{"status equal", accesslog.StatusCode(accesslog.Equal, 200), request(200, 0), true},
		{"status not equal", accesslog.StatusCode(accesslog.NotEqual, 200), request(200, 0), false},
		{"duration", accesslog.Duration(accesslog.GreaterOrEqual, 250), request(200, 0), true},
		{"short duration", accesslog.Duration(accesslog.GreaterOrEqual, 251), request(200, 0), false},
		{"unfinished has no duration", accesslog.Duration(accesslog.LessOrEqual, 1000), &running, false},
		{"one of the flags", must(accesslog.ResponseFlags([]string{"UF", "NR"})), request(503, streaminfo.NoRouteFound), true},
		{"other flag", must(accesslog.ResponseFlags([]string{"UF", "NR"})), request(503, streaminfo.NoHealthyUpstream), false},
		{"any flag", must(accesslog.ResponseFlags(nil)), request(503, streaminfo.NoHealthyUpstream), true},
		{"no flag", must(accesslog.ResponseFlags(nil)), request(503, 0), false},
		{"and", accesslog.And(accesslog.StatusCode(accesslog.Equal, 200), accesslog.StatusCode(accesslog.Equal, 201)), request(200, 0), false},
		{"or", accesslog.Or(accesslog.StatusCode(accesslog.Equal, 200), accesslog.StatusCode(accesslog.Equal, 201)), request(201, 0), true},
		{"not", accesslog.Not(accesslog.All()), request(200, 0), false},
		{"header", accesslog.Header(must(matcher.NewHeader(matcher.HeaderSpec{Name: "X-Log", String: &yes}))), request(200, 0), true},
		{"header without request", accesslog.Header(must(matcher.NewHeader(matcher.HeaderSpec{Name: "X-Log"}))), &running, false},
		{"metadata", accesslog.Metadata(md, "ns", []string{"k"}, false), request(200, 0), true},
		{"no metadata", accesslog.Metadata(md, "ns", []string{"k"}, true), &running, true},
		{"runtime 0", accesslog.Runtime(0), request(200, 0), false},
		{"runtime 1", accesslog.Runtime(1), request(200, 0), true},
		{"grpc status", must(accesslog.GRPCStatus([]string{"UNAVAILABLE"}, false)), grpc, true},
		{"grpc status excluded", must(accesslog.GRPCStatus([]string{"UNAVAILABLE"}, true)), grpc, false},
		{"grpc status from HTTP", must(accesslog.GRPCStatus([]string{"UNAVAILABLE"}, false)), request(503, 0), true},
		{"no grpc status is unknown", must(accesslog.GRPCStatus([]string{"UNKNOWN"}, false)), request(0, 0), true},
		{"CEL", must(accesslog.CEL("response.code >= 500 && !connection.mtls")), request(503, 0), true},
		{"CEL false", must(accesslog.CEL("response.code >= 500")), request(404, 0), false},
		{"CEL error", must(accesslog.CEL("request.headers['nope'] == 'x'")), request(404, 0), false},
		{"CEL of another type", must(accesslog.CEL("response.code")), request(1, 0), false},
	} {
		if got := c.f.Match(c.c); got != c.want {
			t.Errorf("%s: %v", c.name, got)
		}
	}
	if _, err := accesslog.CEL("response.code >="); err == nil {
		t.Error("a broken CEL expression compiles")
	}
	if _, err := accesslog.GRPCStatus([]string{"XX"}, false); err == nil {
		t.Error("an unknown status is accepted")
	}
	if _, err := accesslog.ResponseFlags([]string{"XX"}); err == nil {
		t.Error("an unknown flag is accepted")
	}
}

func TestFractionIsAboutRight(t *testing.T) {
	f, n := accesslog.Runtime(0.3), 0
	for range 10000 {
		if f.Match(nil) {
			n++
		}
	}
	if n < 2700 || n > 3300 {
		t.Errorf("%d of 10000", n)
	}
}

func TestLoggersOfOnePathShareASink(t *testing.T) {
	dir := t.TempDir()
	path := filepath.Join(dir, "log")
	sinks := accesslog.NewSinks(nil)
	text := must(sinks.Logger(must(accesslog.NewText(path, "text %RESPONSE_CODE%\n")), accesslog.StatusCode(accesslog.GreaterOrEqual, 400)))
	js := must(sinks.Logger(must(accesslog.NewJSON(path, must(accesslog.CompileJSON(map[string]any{"code": "%RESPONSE_CODE%"}, false)))), nil))
	text.Log(request(200, 0))
	text.Log(request(404, 0))
	js.Log(request(503, 0))
	sinks.Flush()
	if got := read(t, path); got != "text 404\n{\"code\":503}\n" {
		t.Errorf("%q", got)
	}
	// Rotation: the file is moved away, then reopened.
	if err := os.Rename(path, path+".1"); err != nil {
		t.Fatal(err)
	}
	js.Log(request(1, 0))
	sinks.Flush()
	if err := sinks.Reopen(); err != nil {
		t.Fatal(err)
	}
	js.Log(request(2, 0))
	if err := sinks.Close(); err != nil {
		t.Fatal(err)
	}
	if got := read(t, path+".1"); !strings.HasSuffix(got, "{\"code\":1}\n") {
		t.Errorf("old file %q", got)
	}
	if got := read(t, path); got != "{\"code\":2}\n" {
		t.Errorf("new file %q", got)
	}
	js.Log(request(3, 0)) // dropped, must not panic
	if _, err := sinks.Logger(must(accesslog.NewText(path, "")), nil); err == nil {
		t.Error("a closed set opens files")
	}
}

func read(t *testing.T, path string) string {
	t.Helper()
	b, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	return string(b)
}

func TestMissingDirectoryIsAnErrorThatSaysSo(t *testing.T) {
	sinks := accesslog.NewSinks(nil)
	_, err := sinks.Logger(must(accesslog.NewText(filepath.Join(t.TempDir(), "no", "log"), "x")), nil)
	if err == nil || !strings.Contains(err.Error(), "is the directory there") {
		t.Error(err)
	}
	if _, err := accesslog.NewText("", "x"); err == nil {
		t.Error("a log without path is accepted")
	}
	if _, err := accesslog.NewText("p", "%NOPE%"); err == nil {
		t.Error("a broken format is accepted")
	}
}

func TestLinesWaitAtMostASecond(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		path := filepath.Join(t.TempDir(), "log")
		sinks := accesslog.NewSinks(nil)
		l := must(sinks.Logger(must(accesslog.NewText(path, "x\n")), nil))
		for range 2 { // the timer is armed again
			l.Log(request(200, 0))
			time.Sleep(time.Second + time.Millisecond)
			synctest.Wait()
		}
		if got := read(t, path); got != "x\nx\n" {
			t.Errorf("%q", got)
		}
		if err := sinks.Close(); err != nil {
			t.Error(err)
		}
	})
}

func TestFullBuffersAreWrittenAtOnce(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		path := filepath.Join(t.TempDir(), "log")
		sinks := accesslog.NewSinks(nil)
		line := strings.Repeat("x", 1023) + "\n"
		l := must(sinks.Logger(must(accesslog.NewText(path, line)), nil))
		for range 256 {
			l.Log(request(200, 0))
		}
		synctest.Wait()
		if n := len(read(t, path)); n != 256<<10 {
			t.Errorf("%d bytes were written", n)
		}
		if err := sinks.Close(); err != nil {
			t.Error(err)
		}
	})
}

func TestAStalledPipeDropsAndCounts(t *testing.T) {
	path := filepath.Join(t.TempDir(), "fifo")
	if err := mkfifo(path); err != nil {
		t.Skip(err)
	}
	r, err := os.OpenFile(path, os.O_RDWR, 0)
	if err != nil {
		t.Fatal(err)
	}
	reg := &stats.Registry{}
	sinks := accesslog.NewSinks(reg.Scope("fairlead_access_log_"))
	l := must(sinks.Logger(must(accesslog.NewText(path, strings.Repeat("x", 4095)+"\n")), nil))
	start := time.Now()
	for range 1000 { // 4 MiB; the pipe and the buffers hold less
		l.Log(request(200, 0))
	}
	if d := time.Since(start); d > 20*time.Second {
		t.Errorf("logging blocked for %v", d)
	}
	dropped := reg.Scope("").Counter("fairlead_access_log_dropped_lines_total").Value()
	if dropped == 0 {
		t.Error("nothing was dropped")
	}
	go func() { // drain, so that Close can end
		buf := make([]byte, 64<<10)
		for {
			if _, err := r.Read(buf); err != nil {
				return
			}
		}
	}()
	if err := sinks.Close(); err != nil {
		t.Error(err)
	}
	_ = r.Close()
}

func TestAStalledPipeDoesNotHoldUpTheEnd(t *testing.T) {
	path := filepath.Join(t.TempDir(), "fifo")
	if err := mkfifo(path); err != nil {
		t.Skip(err)
	}
	r, err := os.OpenFile(path, os.O_RDWR, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer r.Close()
	sinks := accesslog.NewSinks(nil)
	l := must(sinks.Logger(must(accesslog.NewText(path, strings.Repeat("x", 4095)+"\n")), nil))
	for range 1000 {
		l.Log(request(200, 0))
	}
	closed := make(chan error, 1)
	go func() { closed <- sinks.Close() }()
	select {
	case err := <-closed:
		if err == nil {
			t.Error("lines were lost, and nobody says so")
		}
	case <-time.After(20 * time.Second):
		t.Error("Close waits for somebody who reads")
		go func() { _, _ = io.Copy(io.Discard, r) }()
		<-closed
	}
}

func TestConcurrentLinesStayWhole(t *testing.T) {
	path := filepath.Join(t.TempDir(), "log")
	sinks := accesslog.NewSinks(nil)
	l := must(sinks.Logger(must(accesslog.NewJSON(path, must(accesslog.CompileJSON(map[string]any{"a": "%RESPONSE_CODE%", "b": strings.Repeat("y", 200)}, false)))), nil))
	var wg sync.WaitGroup
	for w := range 8 {
		wg.Go(func() {
			for range 500 {
				l.Log(request(w, 0))
			}
		})
	}
	wg.Wait()
	if err := sinks.Close(); err != nil {
		t.Fatal(err)
	}
	n := 0
	for line := range bytes.SplitSeq(bytes.TrimSuffix([]byte(read(t, path)), []byte("\n")), []byte("\n")) {
		if !json.Valid(line) {
			t.Fatalf("%q", line)
		}
		n++
	}
	if n != 4000 {
		t.Errorf("%d lines", n)
	}
}

// TestAPanicLeavesNoHalfLine: it costs its line, and no other.
func TestAPanicLeavesNoHalfLine(t *testing.T) {
	path := filepath.Join(t.TempDir(), "log")
	sinks := accesslog.NewSinks(nil)
	l := must(sinks.Logger(must(accesslog.NewText(path, "half %RESPONSE_CODE%\n")), nil))
	for range 2 {
		l.Log(request(200, 0))
		func() {
			defer func() {
				if recover() == nil {
					t.Error("nothing panicked")
				}
			}()
			l.Log(nil)
		}()
	}
	if err := sinks.Close(); err != nil {
		t.Fatal(err)
	}
	if got := read(t, path); got != "half 200\nhalf 200\n" {
		t.Errorf("%q", got)
	}
}

func TestLoggingAllocatesNothing(t *testing.T) {
	sinks := accesslog.NewSinks(nil)
	l := must(sinks.Logger(must(accesslog.NewText("/dev/null", "")), accesslog.StatusCode(accesslog.GreaterOrEqual, 1)))
	c := request(200, 0)
	for range 200 {
		l.Log(c)
	}
	if n := testing.AllocsPerRun(100, func() { l.Log(c) }); n > 0.1 {
		t.Errorf("%v allocations", n)
	}
	if err := sinks.Close(); err != nil {
		t.Error(err)
	}
}

func TestDefaultFormatIsEnvoys(t *testing.T) {
	f := must(accesslog.NewText("p", ""))
	got := string(f.Append(nil, request(200, 0)))
	if want := `[1970-01-01T00:00:00.000Z] "GET - -" 200 - 0 0 250 - "-" "-" "-" "-" "-"` + "\n"; got != want {
		t.Errorf("%s", fmt.Sprintf("%q\n%q", got, want))
	}
}

func TestLinesOfOthersGoToTheSameFile(t *testing.T) {
	s := accesslog.NewSinks(nil)
	name := filepath.Join(t.TempDir(), "log")
	a, err := s.Lines(name)
	if err != nil {
		t.Fatal(err)
	}
	b, err := s.Lines(name)
	if err != nil {
		t.Fatal(err)
	}
	if !a([]byte("1\n")) || !b([]byte("2\n")) {
		t.Error("dropped")
	}
	s.Flush()
	if got, err := os.ReadFile(name); err != nil || string(got) != "1\n2\n" {
		t.Errorf("%q, %v", got, err)
	}
	if a(make([]byte, 1<<20+1)) {
		t.Error("more than the buffer holds was taken")
	}
	if err := s.Close(); err != nil {
		t.Fatal(err)
	}
	if a([]byte("3\n")) {
		t.Error("taken after the end")
	}
	if _, err := s.Lines(name); err == nil {
		t.Error("opened after the end")
	}
}
