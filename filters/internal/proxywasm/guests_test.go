package proxywasm

import (
	"context"
	"errors"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/fairlead-mesh/fairlead/filters"
	"github.com/fairlead-mesh/fairlead/internal/message"
)

func TestModulesThatCantRunAreRefusedWithTheReason(t *testing.T) {
	for _, c := range []struct{ module, config, want string }{
		{"noalloc", "", "exports neither malloc nor proxy_on_memory_allocate"},
		{"future", "", "made for version 0.9.0 of the Proxy-Wasm ABI; 0.1.0, 0.2.0 and 0.2.1 can be run"},
		{"stranger", "", "imports env.proxy_launch, which version 0.2.1 of the ABI does not have"},
		{"probe", "refuse", "proxy_on_configure returned false"},
		{"probe", "trap", "proxy_on_configure: wasm error: unreachable"},
	} {
		w, err := tryWorld(t, c.module, Config{PluginConfig: c.config}, &filters.Shared{})
		if err == nil || !strings.Contains(err.Error(), c.want) {
			t.Errorf("%s %q: %v", c.module, c.config, err)
		}
		if n := w.reg.Scope("").Gauge("envoy_wasm__active").Value(); n != 0 {
			t.Errorf("%s: %d VMs", c.module, n)
		}
	}
	if _, err := Start(context.Background(), &filters.Env{}, &Config{}, []byte("\x00asm\x01\x00\x00\x00\x01\xff")); !errors.Is(err, errModule) {
		t.Error(err)
	}
	if _, err := Start(context.Background(), &filters.Env{}, &Config{}, nil); !errors.Is(err, errModule) {
		t.Error(err)
	}
	w, err := tryWorld(t, "probe", Config{VMConfig: "refuse"}, &filters.Shared{})
	if err == nil || !strings.Contains(err.Error(), "proxy_on_vm_start returned false") {
		t.Error(w, err)
	}
}

func TestAGuestForTheFirstVersionOfTheABI(t *testing.T) {
	w, err := tryWorld(t, "old", Config{PluginConfig: "cfg"}, &filters.Shared{})
	if err != nil {
		t.Fatal(err)
	}
	r := w.ask("")
	want := []string{"configuration 0", "cfg", "headers 6", "missing 0", "size 0", "clear 0", "continue 0", "response 3"}
	if r.status != "200" || !slices.Equal(r.log, want) || w.rerouted != 1 {
		t.Errorf("%s %q %d", r.status, r.log, w.rerouted)
	}
}

func TestAGuestThatUsesWASI(t *testing.T) {
	w, err := tryWorld(t, "wasi", Config{Env: []string{"A=b", "C=d=e"}}, &filters.Shared{})
	if err != nil {
		t.Fatal(err)
	}
	want := []string{"main after initialize", "write 0", "env A=b", "env C=d=e", "to standard error", "write 0", "clock 0 1", "random 0 1"}
	if got := w.log.take(); !slices.Equal(got, want) {
		t.Errorf("%q", got)
	}
	r := w.ask("")
	if r.status != "503" || r.details != "wasm_fail_stream" || !slices.ContainsFunc(w.log.other, func(s string) bool { return strings.Contains(s, "proc_exit(3)") }) {
		t.Errorf("%+v %q", r, w.log.other)
	}
}

func TestWhatAModuleConsistsOfSurvivesTheRewriting(t *testing.T) {
	w, err := tryWorld(t, "kinds", Config{}, &filters.Shared{})
	if err != nil {
		t.Fatal(err)
	}
	if r := w.ask(""); r.status != "200" || len(r.log) > 0 {
		t.Errorf("%+v", r)
	}
}

func TestAGuestWithoutMemoryLeftIsTold(t *testing.T) {
	w, err := tryWorld(t, "nullalloc", Config{}, &filters.Shared{})
	if err != nil {
		t.Fatal(err)
	}
	r := w.ask("") // its response callback recurses until the stack ends
	if r.status != "503" || r.details != "wasm_fail_stream" || !w.reached {
		t.Errorf("%+v %q", r, w.log.other)
	}
}

func TestMemoryIsLimited(t *testing.T) {
	w := newWorld(t, Config{})
	r := w.ask("grow")
	ok := slices.ContainsFunc(r.log, func(s string) bool {
		return strings.HasPrefix(s, "pages=") && len(s) <= len("pages=4096") && s >= "pages=38"
	})
	if r.status != "200" || !ok {
		t.Errorf("%q", r.log)
	}
}

func TestAGuestThatFailsFailsItsStreamsByThePolicy(t *testing.T) {
	for policy, after := range map[Policy]string{FailClosed: "503", FailOpen: "200", FailReload: "503"} {
		w := newWorld(t, Config{Policy: policy, ReloadBase: 3 * time.Second})
		if r := w.ask("trap"); r.status != "503" || r.details != "wasm_fail_stream" || w.reached {
			t.Errorf("%d: %+v", policy, r)
		}
		if r := w.ask("after"); r.status != after || w.reached != (policy == FailOpen) {
			t.Errorf("%d: %+v", policy, r)
		}
		if policy != FailReload {
			continue
		}
		time.Sleep(4600 * time.Millisecond)
		if r := w.ask("headers"); r.status != "200" || w.seen.Count("x-added") != 2 {
			t.Errorf("%+v", r)
		}
		w.ask("trap")
		if r := w.ask("too soon"); r.status != "503" || w.reached {
			t.Errorf("%+v", r)
		}
		reloads := w.reg.Scope("").CounterFamily("fairlead_wasm_reloads_total", "", "plugin", "result")
		if s, b := reloads.With("probe", "success").Value(), reloads.With("probe", "backoff").Value(); s != 1 || b != 2 {
			t.Errorf("%d reloads, %d put off", s, b)
		}
	}
	for do, want := range map[string]string{"body-trap": "503", "response-trap": "503"} {
		w := newWorld(t, Config{})
		if r := w.ask(do, "a body"); r.status != want || r.details != "wasm_fail_stream" {
			t.Errorf("%s: %+v", do, r)
		}
	}
	w := newWorld(t, Config{})
	if r := w.ask("response-body-trap"); r.status != "200" || r.err == nil || r.details != "wasm_fail_stream" {
		t.Errorf("%+v", r)
	}
	w = newWorld(t, Config{})
	if r := w.ask("response-body-local"); r.status != "200" || r.err == nil || r.details != "by_guest" {
		t.Errorf("%+v", r)
	}
	if r := w.ask("close"); !errors.Is(r.err, filters.ErrClosed) || r.details != "wasm_close_stream" {
		t.Errorf("%+v", r)
	}
}

func TestAGuestThatRunsForTooLongIsEnded(t *testing.T) {
	w := newWorld(t, Config{})
	start := time.Now()
	r := w.ask("loop")
	if d := time.Since(start); r.status != "503" || r.details != "wasm_fail_stream" || d < CallTimeout || d > 15*CallTimeout {
		t.Errorf("%+v after %v", r, d)
	}
	if n := w.reg.Scope("").CounterFamily("fairlead_wasm_failures_total", "", "plugin", "reason").With("probe", "timeout").Value(); n != 1 {
		t.Error(n)
	}
}

func TestAStreamThatItsClientLeavesWaitsNoLonger(t *testing.T) {
	w := newWorld(t, Config{})
	for _, do := range []string{"pause", "odd"} {
		s := newStream(do, nil)
		gone := errors.New("gone")
		time.AfterFunc(30*time.Millisecond, func() { s.Interrupt(gone) })
		if r := w.serve(s); !errors.Is(r.err, gone) || w.reached {
			t.Errorf("%s: %+v", do, r)
		}
	}
	s := newStream("drop-body", &chunks{parts: []string{"a"}})
	gone := errors.New("gone")
	time.AfterFunc(30*time.Millisecond, func() { s.Interrupt(gone) })
	if r := w.serve(s); !errors.Is(r.err, gone) {
		t.Errorf("%+v", r)
	}
}

func TestBodiesAreBufferedUpToTheLimit(t *testing.T) {
	w := newWorld(t, Config{})
	part := strings.Repeat("x", 600<<10)
	if r := w.ask("buffer", part, part); r.status != "413" || r.details != "request_payload_too_large" {
		t.Errorf("%s %s", r.status, r.details)
	}
	w.body = []string{part, part}
	if r := w.ask("response-buffer"); r.err == nil || r.details != "response_payload_too_large" {
		t.Errorf("%+v", r.status)
	}
	s := newStream("buffer", &chunks{parts: []string{"four", "more"}})
	s.Info.Conn.BufferLimit = 6
	w.body = nil
	if r := w.serve(s); r.status != "413" {
		t.Errorf("%+v", r)
	}
	if r := w.ask("no buffering", part, part); r.status != "200" || len(w.seenBody) != 2*len(part) {
		t.Errorf("%s %d", r.status, len(w.seenBody))
	}
}

func TestOnlyAllowedCapabilitiesAreThere(t *testing.T) {
	w := newWorld(t, Config{Capabilities: []string{"proxy_get_header_map_value", "proxy_log", "proxy_on_request_headers", "proxy_on_response_headers"}})
	r := w.ask("headers shared")
	want := []string{"request_headers 2 6 1", "add=10", "replace=10", "remove=10", "get=1"}
	for _, l := range want {
		if !slices.Contains(r.log, l) {
			t.Errorf("no %q in %q", l, r.log)
		}
	}
	if slices.ContainsFunc(r.log, func(s string) bool { return strings.HasPrefix(s, "done") || strings.HasPrefix(s, "configure") }) || r.status != "200" {
		t.Errorf("%q", r.log)
	}
	if !slices.ContainsFunc(w.log.other, func(s string) bool { return strings.Contains(s, "proxy_add_header_map_value") }) {
		t.Errorf("%q", w.log.other)
	}
	wasi, err := tryWorld(t, "wasi", Config{Capabilities: []string{"proxy_log", "proxy_on_configure"}, Env: []string{"A=b"}}, &filters.Shared{})
	if err != nil {
		t.Fatal(err)
	}
	if got := wasi.log.take(); !slices.Contains(got, "write 76") || !slices.Contains(got, "clock 76 0") || slices.Contains(got, "env A=b") {
		t.Errorf("%q", got)
	}
}

func TestTimersAndQueuesCallTheGuest(t *testing.T) {
	w := newWorld(t, Config{PluginConfig: "tick"})
	w.log.until(t, "tick 0 0 0", 3)
	time.Sleep(150 * time.Millisecond)
	if n := len(slices.DeleteFunc(w.log.take(), func(s string) bool { return s != "tick 0 0 0" })); n != 3 {
		t.Errorf("%d ticks: the guest stopped the timer after three", n)
	}
	q := newWorld(t, Config{PluginConfig: "queue"})
	r := q.ask("enqueue")
	if r.status != "200" {
		t.Error(r)
	}
	if !slices.Contains(r.log, "queue 0 item") { // it came before the end of the stream
		q.log.until(t, "queue 0 item")
	}
}

func TestAPluginMayPutOffItsEnd(t *testing.T) {
	w := newWorld(t, Config{PluginConfig: "later"})
	if err := w.p.Close(); err != nil {
		t.Fatal(err)
	}
	w.log.until(t, "delete 0 0 0")
	if got := w.log.take(); !slices.Contains(got, "too early=1") && !slices.Contains(got, "done=0") {
		t.Errorf("%q", got)
	}
	for range 4000 {
		if w.p.pool.active.Value() == 0 {
			return
		}
		time.Sleep(5 * time.Millisecond)
	}
	t.Error("the VM lives on")
}

func TestUnaryGRPCCalls(t *testing.T) {
	w := newWorld(t, Config{})
	w.call = func(_ string, c *filters.Callout) (*filters.CalloutResponse, error) {
		r := &filters.CalloutResponse{Status: 200, Body: append([]byte{0, 0, 0, 0, 6}, "answer"...)}
		r.Trailers.Add("grpc-status", "0")
		return r, nil
	}
	r := w.ask("grpc")
	r.has(t, "no cluster=4", "stream=12", "send=1", "grpc=0", "1", "other=0", "cancel=0", "again=1", "grpc_receive 0 1 6", "message answer", "continue=0")
	w.mu.Lock()
	defer w.mu.Unlock()
	call := slices.IndexFunc(w.calls, func(s string) bool { return strings.HasSuffix(s, "question") })
	if r.status != "200" || call < 0 || !strings.Contains(w.calls[call], ":path=/pkg.Svc/Method te=trailers content-type=application/grpc grpc-timeout=500m x-meta=m \x00\x00\x00\x00\x08question") {
		t.Errorf("%+v %q", r.status, w.calls)
	}
}

func TestUnaryGRPCCallsThatFail(t *testing.T) {
	w := newWorld(t, Config{})
	for _, c := range []struct {
		r    *filters.CalloutResponse
		err  error
		want string
	}{
		{nil, errOrigin, "status 14 reset"},
		{&filters.CalloutResponse{Status: 503}, nil, "status 14 HTTP status 503"},
		{&filters.CalloutResponse{Status: 200}, nil, "status 13 no grpc-status"},
		{withTrailer(&filters.CalloutResponse{Status: 200}, "7", "not you"), nil, "status 7 not you"},
		{withTrailer(&filters.CalloutResponse{Status: 200, Body: []byte("x")}, "0", ""), nil, "status 13 not one message"},
	} {
		w.mu.Lock()
		w.call = func(string, *filters.Callout) (*filters.CalloutResponse, error) { return c.r, c.err }
		w.mu.Unlock()
		r := w.ask("grpc")
		r.has(t, c.want)
		if r.status != "503" || r.body != "no answer" {
			t.Errorf("%+v", r)
		}
	}
}

func withTrailer(r *filters.CalloutResponse, status, text string) *filters.CalloutResponse {
	r.Trailers.Add("grpc-status", status)
	r.Trailers.Add("grpc-message", text)
	return r
}

func TestACalloutThatFailsHasNoHeaders(t *testing.T) {
	w := newWorld(t, Config{})
	w.call = func(string, *filters.Callout) (*filters.CalloutResponse, error) { return nil, errOrigin }
	r := w.ask("call")
	r.has(t, "call_response 0 0 0", "status 11 reset", "continue=0")
	if r.status != "200" || w.seen.Get("x-after-call") != "1" {
		t.Errorf("%+v", r)
	}
	w.mu.Lock()
	defer w.mu.Unlock()
	if want := "auth :method=POST :path=/callout :authority=auth :scheme=http x-call=1 content-length=8 x-envoy-internal=true x-envoy-expected-rq-timeout-ms=500 question"; w.calls[0] != want {
		t.Errorf("%q", w.calls)
	}
}

func TestProperties(t *testing.T) {
	w := newWorld(t, Config{})
	r := w.ask("property response-property")
	r.has(t, "property path=/x", "property method=GET", "property header=property response-property", "property protocol=HTTP/1.1", "property route=all", "property route_name=all",
		"property cluster=o", "property missing=!1", "set=0", "property mine=value", "property mine2=value", "property node=me~1", "property node.metadata=pod",
		"property code=via_upstream", "property upstream=10.0.0.1:80", "property rheader=o")
	r = w.ask("body-property", "a")
	r.has(t, "property path=/x", "property route=all", "property code=!1", "set=0", "property mine=value")
}

func TestPluginsOfOneVMShareIt(t *testing.T) {
	shared := &filters.Shared{}
	start := func(name, vm string) *world {
		w, err := tryWorld(t, "probe", Config{Name: name, VMID: vm, Runtime: "r"}, shared)
		if err != nil {
			t.Fatal(err)
		}
		return w
	}
	a, b, c := start("a", "1"), start("b", "1"), start("c", "2")
	if a.p.pool != b.p.pool || a.p.pool == c.p.pool || a.p.pool.module != c.p.pool.module {
		t.Error("a and b have one VM, c another, of one module")
	}
	a.ask("shared")
	if r := b.ask("shared"); !slices.Contains(r.log, "get=0") || slices.Contains(r.log, "get=1") {
		t.Errorf("%q", r.log)
	}
	if r := c.ask("shared"); !slices.Contains(r.log, "get=1") {
		t.Errorf("%q", r.log)
	}
	again, err := tryWorld(t, "probe", Config{Name: "a", VMID: "1", Runtime: "r"}, shared)
	if err != nil || len(again.log.take()) != 0 {
		t.Error("an equal plugin is configured anew", err)
	}
	if r := again.ask("local"); r.status != "403" {
		t.Error(r)
	}
}

func TestALocalReplyOfAnEarlierFilterIsLogged(t *testing.T) {
	w := newWorld(t, Config{})
	s := newStream("", nil)
	r := s.LocalReply(429, "", "limited", 0)
	w.p.OnStreamEnd(s, r)
	if got := w.log.take(); !slices.Contains(got, "log 1 0 0") || !slices.Contains(got, "logged 429") || !slices.Contains(got, "delete 1 0 0") {
		t.Errorf("%q", got)
	}
}

func TestAGuestMaySeeTheBodyWhileItHoldsTheHeadBack(t *testing.T) {
	w := newWorld(t, Config{AllowStopIteration: true})
	r := w.ask("stop-headers buffer body-head body-replace", "a", "b")
	if r.status != "200" || w.seen.Get("x-late") != "1" || w.seenBody != "replaced" {
		t.Errorf("%+v %q %q", r, w.seen.Get("x-late"), w.seenBody)
	}
	r.has(t, "late=0")
	if r := w.ask("stop-headers body-deny", "a"); r.status != "403" || w.reached {
		t.Errorf("%+v", r)
	}
}

func TestGRPCClientsGetAnswersAsGRPC(t *testing.T) {
	w := newWorld(t, Config{})
	s := newStream("local", nil)
	s.Info.IsGRPC = true
	if r := w.serve(s); r.status != "200" || r.header["grpc-status"][0] != "7" || r.header["content-type"][0] != "application/grpc" || r.header["x-local"] == nil {
		t.Errorf("%+v", r)
	}
	s = newStream("local", nil)
	s.Request.Set(message.Method, "HEAD")
	if r := w.serve(s); r.status != "403" || r.body != "" {
		t.Errorf("%+v", r)
	}
}

func TestTrailersOfARequestAreShownAndCleaned(t *testing.T) {
	w := newWorld(t, Config{})
	b := &chunks{parts: []string{"a"}, trailer: &message.Header{}}
	for _, name := range []string{"x-own", "x_added", "x-replaced"} {
		b.trailer.Add(name, "t")
	}
	r := w.serve(newStream("headers trailers", b))
	r.has(t, "request_body 1 1 0", "request_trailers 1 3 0", "add=0")
	if r.status != "200" || w.seenBody != "a" || w.trailers != "x-own=t;x-trailer-added=1;" {
		t.Errorf("%s %q %q", r.status, w.seenBody, w.trailers)
	}
	w.trailer = true
	if r := w.ask("response-trailers"); r.trailers != "x-trailer=t;x-trailer-added=1;" {
		t.Errorf("%q", r.trailers)
	}
}

func TestABodyThatNobodyWantsAnyMoreEndsTheGuestsWait(t *testing.T) {
	w := newWorld(t, Config{})
	s := newStream("drop-body", &chunks{parts: []string{"a"}})
	s.Reselect = func(*filters.Stream) {}
	over := errors.New("over")
	s.SetChain([]filters.HTTPFilter{w.p, answersEarly{over}})
	r, err := filters.Start(s)
	if err != nil || r.Header.Get(message.Status) != "200" {
		t.Error(r, err)
	}
	w.p.OnStreamEnd(s, r)
}

// answersEarly answers while the body waits for the guest.
type answersEarly struct{ cause error }

func (a answersEarly) Do(s *filters.Stream, _ filters.Next) (*filters.Response, error) {
	done := make(chan error, 1)
	go func() {
		_, _, err := drain(s.Body)
		done <- err
	}()
	time.Sleep(30 * time.Millisecond)
	s.Body.(filters.Interrupter).Interrupt(a.cause) //nolint:forcetypeassert // the guest's
	if err := <-done; !errors.Is(err, a.cause) {
		return nil, err
	}
	r := s.NewResponse()
	r.Header.Add(message.Status, "200")
	return r, nil
}
