package proxywasm

import (
	"fmt"
	"slices"
	"strings"
	"testing"
)

func TestAStreamIsShownToTheGuestInEnvoysOrder(t *testing.T) {
	w := newWorld(t, Config{Name: "probe", RootID: "r", VMID: "v", VMConfig: "vmc", PluginConfig: "hello"})
	start := w.log.take()
	want := []string{"create 0 0 0", "vm_start 3 0 vmc", "configure 5 0 hello", "property plugin_name=probe", "property plugin_root_id=r", "property plugin_vm_id=v"}
	if !slices.Equal(start, want) {
		t.Errorf("%q", start)
	}
	w.trailer = true
	r := w.ask("", "some ", "body")
	want = []string{
		"create 1 0 0", "request_headers 1 6 0", "request_body 1 5 0", "body 0 some  0 5 0", "request_body 1 4 0", "body 0 body 0 4 0", "request_body 1 0 1", "body 0  0 0 0",
		"response_headers 1 3 0", "response_body 1 15 0", "body 0 from the origin 0 15 0", "response_trailers 1 1 0",
		"log 1 0 0", "logged 200", "logged /x", "done 1 0 0", "delete 1 0 0",
	}
	if !slices.Equal(r.log, want) {
		t.Errorf("got\n  %s\nwant\n  %s", strings.Join(r.log, "\n  "), strings.Join(want, "\n  "))
	}
	if r.status != "200" || r.body != "from the origin" || r.trailers != "x-trailer=t;" || w.seenBody != "some body" || r.header["x-probe"] == nil {
		t.Errorf("%+v %q", r, w.seenBody)
	}
}

func TestWhatAGuestDoesToAStream(t *testing.T) {
	for _, c := range []struct {
		do, body      string // parts of the body with | between
		status, reply string
		upstream      string // what reaches the origin; - if nothing does
		lines         string // that are logged, with | between
		details       string
	}{
		{do: "headers", status: "200", reply: "from the origin", upstream: "", lines: "add=0|replace=0|remove=0|get=0|got one|missing=1|bad name=2|bad value=2|bad map=2"},
		{do: "local", status: "403", reply: "denied by guest", upstream: "-", lines: "response_headers 1 4 0|response_body 1 15 1", details: "by_guest"},
		{do: "local-continue", status: "403", reply: "denied by guest", upstream: "-"},
		{do: "local-ok", status: "200", reply: "answered by guest", upstream: "-", details: "by_guest"},
		{do: "pointer", status: "200", reply: "from the origin", lines: "log=6|get=6|get to=6|pairs=2|property=6"},
		{do: "continue-self", status: "200", reply: "from the origin", lines: "continue=0"},
		{do: "end", status: "200", reply: "from the origin"},
		{do: "log-level", status: "200", reply: "from the origin", lines: "level=2"},
		{do: "foreign", status: "200", reply: "from the origin", lines: "foreign=1"},
		{do: "enqueue", status: "200", reply: "from the origin", lines: "resolve=1|enqueue=1"},
		{do: "shared", status: "200", reply: "from the origin", lines: "get=1|set=0|get=0|v1|stale=8|time=0"},
		{do: "metric", status: "200", reply: "from the origin", lines: "counter=0|4|gauge=0|5|histogram=0|6|other=2|inc=2|7|get=2|unknown=1"},
		{do: "bad-path", status: "200", reply: "from the origin", lines: "path=2"},
		{do: "pairs", status: "200", reply: "from the origin", lines: "size=0|set=0|get=0|6|without=2"},
		{do: "call-nowhere", status: "200", reply: "from the origin", lines: "http_call=2"},
		{do: "response-status", status: "418", reply: "from the origin", lines: "status=0"},
		{do: "response-headers", status: "200", reply: "from the origin", lines: "add=0|replace=0|remove=0|bad value=2"},
		{do: "response-local", status: "502", reply: "response denied", details: "by_guest"},
		{do: "response-buffer response-replace", status: "200", reply: "replaced response", lines: "response_body 1 15 0|response_body 1 15 1|set=0"},
		{do: "response-replace", status: "200", reply: "from the originreplaced response"},
		{do: "buffer", body: "a|b", status: "200", reply: "from the origin", upstream: "ab", lines: "request_body 1 1 0|request_body 1 2 0|request_body 1 2 1"},
		{do: "watermark", body: "a|b", status: "200", reply: "from the origin", upstream: "ab", lines: "request_body 1 1 0|request_body 1 0 1"},
		{do: "buffer body-replace", body: "a|b", status: "200", reply: "from the origin", upstream: "replaced", lines: "set=0"},
		{do: "buffer body-prepend", body: "a|b", status: "200", reply: "from the origin", upstream: "before ab", lines: "set=0"},
		{do: "buffer body-append", body: "a|b", status: "200", reply: "from the origin", upstream: "ab behind", lines: "set=0"},
		{do: "body-middle", body: "abcdef", status: "200", reply: "from the origin", upstream: "abcdef", lines: "set=2"},
		{do: "body-head", body: "abc", status: "200", reply: "from the origin", upstream: "abc", lines: "late=2"},
		{do: "body-deny", body: "abc", status: "403", reply: "body denied", lines: "response_headers 1 4 0", details: "by_guest"},
		{do: "call", status: "200", reply: "from the origin", lines: "http_call=0|call_response 0 2 6|call status 200|call body called|status 0 |effective=0|continue=0"},
		{do: "call-deny", status: "401", reply: "callout says no", upstream: "-"},
		{do: "body-call", body: "abc", status: "200", reply: "from the origin", upstream: "abc", lines: "continue=0"},
		{do: "buffer body-call", body: "abc|d", status: "200", reply: "from the origin", upstream: "abcd", lines: "continue=0"},
		{do: "response-call", status: "200", reply: "from the origin", lines: "continue=0"},
	} {
		t.Run(c.do, func(t *testing.T) {
			w := newWorld(t, Config{})
			var body []string
			if c.body != "" {
				body = strings.Split(c.body, "|")
			}
			r := w.ask(c.do, body...)
			if r.err != nil || r.status != c.status || r.body != c.reply || c.details != "" && r.details != c.details {
				t.Errorf("%v %s %q %s", r.err, r.status, r.body, r.details)
			}
			if w.reached == (c.upstream == "-") || c.upstream != "-" && w.seenBody != c.upstream && r.err == nil && c.details == "" {
				t.Errorf("the origin: %t %q", w.reached, w.seenBody)
			}
			if c.lines != "" {
				r.has(t, strings.Split(c.lines, "|")...)
			}
			r.has(t, "log 1 0 0", "done 1 0 0", "delete 1 0 0")
		})
	}
}

func TestHeadersThatAGuestChanges(t *testing.T) {
	w := newWorld(t, Config{})
	r := w.ask("headers")
	got := fmt.Sprintln(w.seen.Count("x-added"), w.seen.Get("x-replaced"), w.seen.Has("x-removed"), w.seen.Has("x-bad"), w.rerouted)
	if r.err != nil || got != "2 new false false 1\n" {
		t.Error(got, r.err)
	}
	w.ask("path")
	if w.seen.Get(":path") != "/other?x=1" || w.rerouted != 2 {
		t.Error(w.seen.Get(":path"), w.rerouted)
	}
	w.ask("pairs")
	if w.seen.Get(":authority") != "set.example" || w.seen.Count("x-set") != 2 || w.seen.Has("x-do") || w.seen.At(0).Name != ":method" {
		t.Error(w.seen)
	}
}
