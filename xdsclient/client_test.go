package xdsclient_test

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"github.com/fairlead-mesh/fairlead/internal/xdstest"
	"github.com/fairlead-mesh/fairlead/xdsclient"
)

const wait = 20 * time.Second

// decode reads "text -> short/name …" where short is cds, eds, lds, rds, sds.
func decode(_ string, b []byte) (any, []xdsclient.Key, error) {
	text, refs, _ := strings.Cut(string(b), " -> ")
	switch text {
	case "bad":
		return nil, nil, errors.New("field x: out of range")
	case "panic":
		panic("boom")
	}
	var ks []xdsclient.Key
	for r := range strings.FieldsSeq(refs) {
		short, name, _ := strings.Cut(r, "/")
		ks = append(ks, xdsclient.Key{TypeURL: short2url[short], Name: name})
	}
	return text, ks, nil
}

var short2url = map[string]string{
	"cds": xdstest.Cluster, "eds": xdstest.Endpoints, "lds": xdstest.Listener, "rds": xdstest.Route,
	"sds": xdstest.Secret, "wds": xdstest.Workload, "none": "type.googleapis.com/none",
}

func short(url string) string {
	for s, u := range short2url {
		if u == url {
			return s
		}
	}
	return url
}

type harness struct {
	t      *testing.T
	srv    *xdstest.Server
	client *xdsclient.Client
	stop   func()

	mu    sync.Mutex
	cond  *sync.Cond
	views []*xdsclient.View
	eds   []string
}

func start(t *testing.T, seed map[string]string, tune func(*xdsclient.Config)) *harness {
	t.Helper()
	h := &harness{t: t, srv: xdstest.New(t, xdstest.Options{})}
	h.cond = sync.NewCond(&h.mu)
	for k, v := range seed {
		h.set(k, v)
	}
	types := []xdsclient.ResourceType{
		{TypeURL: xdstest.Cluster, Wildcard: true},
		{TypeURL: xdstest.Endpoints, KeepRemoved: true, OnChange: h.onEDS},
		{TypeURL: xdstest.Listener, Wildcard: true, After: []string{xdstest.Cluster, xdstest.Endpoints}},
		{TypeURL: xdstest.Route, KeepRemoved: true, Last: true},
		{TypeURL: xdstest.Secret, NoWait: true},
	}
	for i := range types {
		types[i].Decode = decode
	}
	cfg := xdsclient.Config{
		Target: h.srv.Addr(), Types: types, OnView: h.onView,
		Node:       xdsclient.Node{ID: "waypoint~1.2.3.4~w.ns~ns.svc.cluster.local", Metadata: map[string]any{"NAMESPACE": "ns"}},
		MinBackoff: 10 * time.Millisecond, MaxBackoff: 100 * time.Millisecond, Quiet: 5 * time.Millisecond,
	}
	if tune != nil {
		tune(&cfg)
	}
	c, err := xdsclient.New(cfg)
	if err != nil {
		t.Fatal(err)
	}
	h.client = c
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan struct{})
	go func() { defer close(done); _ = c.Run(ctx) }()
	h.stop = sync.OnceFunc(func() { cancel(); <-done })
	t.Cleanup(h.stop)
	return h
}

func (h *harness) onView(v *xdsclient.View) {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.views = append(h.views, v)
	h.cond.Broadcast()
}

func (h *harness) onEDS(cs []xdsclient.Change) {
	h.mu.Lock()
	defer h.mu.Unlock()
	for _, c := range cs {
		h.eds = append(h.eds, fmt.Sprintf("%s=%v", c.Name, c.Value))
	}
	h.cond.Broadcast()
}

func (h *harness) set(key, value string) {
	s, name, _ := strings.Cut(key, "/")
	h.srv.SetBytes(short2url[s], name, "", []byte(value))
}

// view renders the newest View: "cds/a=x lds/b=y missing sds/z".
func render(v *xdsclient.View) string {
	var out []string
	for _, s := range []string{"cds", "eds", "lds", "rds", "sds"} {
		for _, r := range v.Sorted(short2url[s]) {
			out = append(out, fmt.Sprintf("%s/%s=%v", s, r.Name, r.Value))
		}
	}
	for _, k := range v.Missing() {
		out = append(out, "missing "+short(k.TypeURL)+"/"+k.Name)
	}
	return strings.Join(out, " ")
}

// until waits for cond, which runs under the lock.
func (h *harness) until(what string, cond func() bool) {
	h.t.Helper()
	timer := time.AfterFunc(wait, func() { h.mu.Lock(); defer h.mu.Unlock(); h.cond.Broadcast() })
	defer timer.Stop()
	end := time.Now().Add(wait)
	h.mu.Lock()
	defer h.mu.Unlock()
	for !cond() {
		if time.Now().After(end) {
			var last string
			if n := len(h.views); n > 0 {
				last = render(h.views[n-1])
			}
			h.t.Fatalf("no %s in time; last view %q, eds %q", what, last, h.eds)
		}
		h.cond.Wait()
	}
}

func (h *harness) wantView(want string) *xdsclient.View {
	h.t.Helper()
	var v *xdsclient.View
	h.until("view "+want, func() bool {
		if n := len(h.views); n > 0 && render(h.views[n-1]) == want {
			v = h.views[n-1]
		}
		return v != nil
	})
	return v
}

func (h *harness) await(what string, ok func([]xdstest.Request) bool) {
	h.t.Helper()
	if !h.srv.Await(wait, ok) {
		h.t.Fatalf("no %s; requests: %s", what, script(h.srv.Requests(), false))
	}
}

// script renders requests: "cds *", "eds +a -b", "cds ack", "lds nack(…)".
func script(rs []xdstest.Request, acks bool) []string {
	var out []string
	for _, r := range rs {
		var s string
		switch {
		case r.IsNACK():
			s = "nack(" + r.GetErrorDetail().GetMessage() + ")"
		case r.IsACK():
			if !acks {
				continue
			}
			s = "ack"
		default:
			var p []string
			for _, n := range r.GetResourceNamesSubscribe() {
				p = append(p, "+"+n)
			}
			for _, n := range r.GetResourceNamesUnsubscribe() {
				p = append(p, "-"+n)
			}
			if len(p) == 0 {
				p = []string{"*"}
			}
			s = strings.Join(p, " ")
		}
		out = append(out, short(r.GetTypeUrl())+" "+s)
	}
	return out
}

func TestSubscribesInOrderAndHandsOverOneCompleteFirstView(t *testing.T) {
	h := start(t, map[string]string{
		"cds/a": "A -> eds/a", "cds/b": "B -> eds/b", "eds/a": "1", "eds/b": "2", "lds/l": "L -> rds/r", "rds/r": "R",
	}, nil)
	v := h.wantView("cds/a=A cds/b=B eds/a=1 eds/b=2 lds/l=L rds/r=R")
	if v.Generation != 1 {
		t.Errorf("generation = %d, want the first view to be complete", v.Generation)
	}
	want := []string{"cds *", "cds ack", "eds +a +b", "eds ack", "lds *", "lds ack", "rds +r", "rds ack"}
	h.await("last ack", func(rs []xdstest.Request) bool { return len(rs) >= len(want) })
	rs := h.srv.Requests()
	if got := script(rs, true); !slices.Equal(got, want) {
		t.Errorf("requests = %q\nwant %q", got, want)
	}
	for i, r := range rs {
		if (r.GetNode() != nil) != (i == 0) {
			t.Errorf("request %d: node sent = %v, want it in the first only", i, r.GetNode() != nil)
		}
		if r.IsACK() && (len(r.GetResourceNamesSubscribe()) > 0 || len(r.GetInitialResourceVersions()) > 0) {
			t.Errorf("request %d: an ACK carries more than type and nonce: %v", i, r)
		}
	}
}

func TestRejectsOneResourceAndAppliesTheOthers(t *testing.T) {
	h := start(t, map[string]string{"cds/a": "A1", "cds/b": "B1"}, nil)
	h.wantView("cds/a=A1 cds/b=B1")
	h.srv.Update([]xdstest.Resource{
		{TypeURL: xdstest.Cluster, Name: "a", Value: []byte("bad")},
		{TypeURL: xdstest.Cluster, Name: "b", Value: []byte("B2")},
		{TypeURL: xdstest.Cluster, Name: "c", Value: []byte("panic")},
	}, nil)
	h.wantView("cds/a=A1 cds/b=B2")
	nack := "cds nack(a: field x: out of range; c: the decoder panicked: boom)"
	h.await("nack", func(rs []xdstest.Request) bool { return slices.Contains(script(rs, false), nack) })
	st := h.client.Status().Types[0]
	if len(st.Rejected) != 2 || !st.Rejected[0].Serving || st.Rejected[1].Serving || st.Nacks != 1 {
		t.Errorf("status = %+v", st)
	}
	h.set("cds/a", "A3")
	h.wantView("cds/a=A3 cds/b=B2")
	if st := h.client.Status().Types[0]; len(st.Rejected) != 1 {
		t.Errorf("rejected after the fix = %+v", st.Rejected)
	}
}

func TestIdenticalContentMakesNoView(t *testing.T) {
	h := start(t, map[string]string{"cds/a": "A -> eds/a", "eds/a": "1", "lds/l": "L"}, nil)
	first := h.wantView("cds/a=A eds/a=1 lds/l=L")
	acks := func(n int) func([]xdstest.Request) bool {
		return func(rs []xdstest.Request) bool {
			got := 0
			for _, r := range rs {
				if r.IsACK() {
					got++
				}
			}
			return got >= n
		}
	}
	h.await("first acks", acks(3))
	for range 3 {
		h.srv.Resend(xdstest.Cluster)
		h.srv.Resend(xdstest.Listener)
	}
	h.srv.SetBytes(xdstest.Cluster, "a", "other-version", []byte("A -> eds/a"))
	h.await("acks of the repeats", acks(10))
	h.set("cds/b", "B")
	v := h.wantView("cds/a=A cds/b=B eds/a=1 lds/l=L")
	if v.Generation != first.Generation+1 {
		t.Errorf("generation went from %d to %d", first.Generation, v.Generation)
	}
	a1, _ := first.Get(xdstest.Cluster, "a")
	a2, _ := v.Get(xdstest.Cluster, "a")
	if a1.Seq != a2.Seq {
		t.Errorf("the unchanged cluster's Seq went from %d to %d", a1.Seq, a2.Seq)
	}
}

func TestFollowsReferencesAndLetsGoOfThem(t *testing.T) {
	h := start(t, map[string]string{
		"cds/a": "A -> eds/x", "cds/b": "B -> eds/x", "eds/x": "1", "lds/l": "L -> rds/r", "rds/r": "R -> sds/s", "sds/s": "S",
	}, nil)
	h.wantView("cds/a=A cds/b=B eds/x=1 lds/l=L rds/r=R sds/s=S")
	h.srv.Remove(xdstest.Cluster, "a")
	h.wantView("cds/b=B eds/x=1 lds/l=L rds/r=R sds/s=S")
	h.srv.Remove(xdstest.Cluster, "b")
	h.wantView("lds/l=L rds/r=R sds/s=S")
	h.set("lds/l", "L2")
	h.wantView("lds/l=L2")
	h.await("unsubscriptions", func(rs []xdstest.Request) bool {
		s := script(rs, false)
		return slices.Contains(s, "eds -x") && slices.Contains(s, "rds -r") && slices.Contains(s, "sds -s")
	})
	// Coming back, everything is asked for again.
	h.set("lds/l", "L3 -> rds/r")
	h.wantView("lds/l=L3 rds/r=R sds/s=S")
	n := 0
	for _, s := range script(h.srv.Requests(), false) {
		if s == "rds +r" {
			n++
		}
	}
	if n != 2 {
		t.Errorf("rds/r was subscribed %d times, want 2: %q", n, script(h.srv.Requests(), false))
	}
}

func TestEndpointsTakeTheFastPath(t *testing.T) {
	h := start(t, map[string]string{"cds/a": "A -> eds/a", "eds/a": "1", "lds/l": "L"}, nil)
	v := h.wantView("cds/a=A eds/a=1 lds/l=L")
	h.set("eds/a", "2")
	h.until("eds change", func() bool { return slices.Contains(h.eds, "a=2") })
	r, ok := h.client.Latest(xdsclient.Key{TypeURL: xdstest.Endpoints, Name: "a"})
	old, _ := v.Get(xdstest.Endpoints, "a")
	if !ok || r.Value != "2" || r.Seq <= old.Seq {
		t.Errorf("Latest = %+v, %v; the view had Seq %d", r, ok, old.Seq)
	}
	h.srv.Remove(xdstest.Endpoints, "a") // ignored: the cluster still needs it
	h.set("cds/b", "B")
	v = h.wantView("cds/a=A cds/b=B eds/a=2 lds/l=L")
	if v.Generation != 2 {
		t.Errorf("generation = %d: an endpoint change made a view", v.Generation)
	}
	h.srv.Remove(xdstest.Cluster, "a")
	h.until("eds removal", func() bool { return slices.Contains(h.eds, "a=<nil>") })
}

func TestReconnectsWithVersionsAndKeepsWhatItHas(t *testing.T) {
	h := start(t, map[string]string{"cds/a": "A -> eds/a", "cds/b": "B", "cds/c": "C", "eds/a": "1", "lds/l": "L"}, nil)
	h.wantView("cds/a=A cds/b=B cds/c=C eds/a=1 lds/l=L")
	h.set("cds/c", "bad")
	h.await("nack", func(rs []xdstest.Request) bool { return rs[len(rs)-1].IsNACK() })
	h.srv.Close()
	for end := time.Now().Add(wait); h.client.Status().State == xdsclient.StateConnected; time.Sleep(time.Millisecond) {
		if time.Now().After(end) {
			t.Fatal("still connected")
		}
	}
	if got := render(h.client.View()); got != "cds/a=A cds/b=B cds/c=C eds/a=1 lds/l=L" {
		t.Errorf("without control plane the view is %q", got)
	}
	h.srv.Remove(xdstest.Cluster, "b")
	h.set("lds/l", "L2")
	before := len(h.srv.Requests())
	if err := h.srv.Restart(); err != nil {
		t.Fatal(err)
	}
	h.wantView("cds/a=A cds/c=C eds/a=1 lds/l=L2")
	h.await("four requests", func(rs []xdstest.Request) bool { return len(rs) >= before+4 })
	rs := h.srv.Requests()[before:]
	if rs[0].GetNode() == nil {
		t.Error("no node in the first request of the second stream")
	}
	c, e := rs[0], rs[1]
	if iv := c.GetInitialResourceVersions(); len(iv) != 3 || iv["a"] == "" || iv["b"] == "" || iv["c"] != "" {
		t.Errorf("initial versions of clusters = %q: want a and b with versions, the rejected c without", iv)
	}
	if e.GetTypeUrl() != xdstest.Endpoints || e.GetInitialResourceVersions()["a"] == "" || !slices.Equal(e.GetResourceNamesSubscribe(), []string{"a"}) {
		t.Errorf("second request = %v", e)
	}
	if st := h.client.Status(); st.Streams != 2 || st.Err == nil || st.ControlPlane != "xdstest" {
		t.Errorf("status = %+v", st)
	}
}

func TestNeverMentionsTypesThatAreNotListed(t *testing.T) {
	h := start(t, map[string]string{"cds/a": "A -> none/x", "lds/l": "L"}, nil)
	h.wantView("cds/a=A lds/l=L")
	if n := h.srv.Streams(); n != 1 {
		t.Errorf("%d streams: the server ended one", n)
	}
}

func TestUnknownTypeEndsTheStreamAndIsReported(t *testing.T) {
	h := start(t, nil, func(c *xdsclient.Config) {
		c.Types = append(c.Types, xdsclient.ResourceType{TypeURL: "type.googleapis.com/acme.T", Decode: decode, Wildcard: true})
	})
	for end := time.Now().Add(wait); ; time.Sleep(time.Millisecond) {
		if st := h.client.Status(); st.Err != nil && strings.Contains(st.Err.Error(), "restricted") {
			return
		}
		if time.Now().After(end) {
			t.Fatalf("status = %+v", h.client.Status())
		}
	}
}

func TestAMissingSecretDelaysNothing(t *testing.T) {
	h := start(t, map[string]string{"lds/l": "L -> sds/s"}, func(c *xdsclient.Config) { c.SettleTimeout = time.Hour })
	h.wantView("lds/l=L missing sds/s")
	h.set("sds/s", "S")
	h.wantView("lds/l=L sds/s=S")
}

func TestAViewWaitsForNewReferencesButNotForever(t *testing.T) {
	h := start(t, map[string]string{"lds/l": "L"}, func(c *xdsclient.Config) { c.SettleTimeout = 300 * time.Millisecond })
	h.wantView("lds/l=L")
	begin := time.Now()
	h.set("lds/l", "L2 -> rds/r")
	h.wantView("lds/l=L2 missing rds/r")
	if d := time.Since(begin); d < 250*time.Millisecond {
		t.Errorf("the view came after %v", d)
	}
	h.set("rds/r", "R")
	h.wantView("lds/l=L2 rds/r=R")
}

func TestSurvivesRefusedStreams(t *testing.T) {
	h := start(t, map[string]string{"cds/a": "A", "lds/l": "L"}, nil)
	h.wantView("cds/a=A lds/l=L")
	h.srv.Refuse(status.Error(codes.Unavailable, "too many streams"))
	h.srv.DropStreams(nil)
	for end := time.Now().Add(wait); !strings.Contains(fmt.Sprint(h.client.Status().Err), "too many streams"); time.Sleep(time.Millisecond) {
		if time.Now().After(end) {
			t.Fatalf("status = %+v", h.client.Status())
		}
	}
	h.set("cds/a", "A2")
	h.srv.Refuse(nil)
	h.wantView("cds/a=A2 lds/l=L")
}

func TestASlowServerIsNoError(t *testing.T) {
	h := start(t, map[string]string{"cds/a": "A", "lds/l": "L"}, func(c *xdsclient.Config) { c.Quiet = time.Millisecond })
	h.srv.Delay(200 * time.Millisecond)
	h.wantView("cds/a=A lds/l=L")
	if n := h.srv.Streams(); n != 1 {
		t.Errorf("%d streams", n)
	}
}

func TestBurstsCoalesce(t *testing.T) {
	h := start(t, map[string]string{"cds/a": "A0", "lds/l": "L"}, func(c *xdsclient.Config) { c.Quiet = time.Second })
	h.wantView("cds/a=A0 lds/l=L")
	for i := range 30 {
		h.set("cds/a", fmt.Sprint("A", i+1))
	}
	if v := h.wantView("cds/a=A30 lds/l=L"); v.Generation > 4 {
		t.Errorf("30 updates made %d views", v.Generation-1)
	}
}

// TestARouteAloneIsNotKeptWaiting has a Quiet that the test does not live through:
// neither the first view, of which nothing is missing, nor a route alone waits for it.
func TestARouteAloneIsNotKeptWaiting(t *testing.T) {
	h := start(t, map[string]string{"cds/a": "A", "lds/l": "L -> rds/r", "rds/r": "R0"}, func(c *xdsclient.Config) { c.Quiet = time.Hour })
	h.wantView("cds/a=A lds/l=L rds/r=R0")
	h.set("rds/r", "R1")
	h.wantView("cds/a=A lds/l=L rds/r=R1")
}

func TestAClusterWaitsForWhatMayFollow(t *testing.T) {
	const quiet = 2 * time.Second
	h := start(t, map[string]string{"cds/a": "A", "lds/l": "L -> rds/r", "rds/r": "R1"}, func(c *xdsclient.Config) { c.Quiet = quiet })
	h.wantView("cds/a=A lds/l=L rds/r=R1")
	begin := time.Now()
	h.set("cds/a", "B") // others may follow
	h.wantView("cds/a=B lds/l=L rds/r=R1")
	if d := time.Since(begin); d < quiet {
		t.Errorf("a cluster made a view after %v", d)
	}
	// A cluster, and then a route: one view of both.
	was := h.client.View().Generation
	h.set("cds/a", "C")
	h.set("rds/r", "R3")
	if v := h.wantView("cds/a=C lds/l=L rds/r=R3"); v.Generation != was+1 {
		t.Errorf("a cluster and a route made %d views", v.Generation-was)
	}
}

func TestRefusesBrokenConfigurations(t *testing.T) {
	ok := xdsclient.ResourceType{TypeURL: "t", Decode: decode}
	for name, c := range map[string]xdsclient.Config{
		"no target":       {Node: xdsclient.Node{ID: "n"}},
		"no node ID":      {Target: "x"},
		"no decoder":      {Target: "x", Node: xdsclient.Node{ID: "n"}, Types: []xdsclient.ResourceType{{TypeURL: "t"}}},
		"type twice":      {Target: "x", Node: xdsclient.Node{ID: "n"}, Types: []xdsclient.ResourceType{ok, ok}},
		"after unknown":   {Target: "x", Node: xdsclient.Node{ID: "n"}, Types: []xdsclient.ResourceType{{TypeURL: "t", Decode: decode, After: []string{"u"}}}},
		"broken metadata": {Target: "x", Node: xdsclient.Node{ID: "n", Metadata: map[string]any{"a": struct{}{}}}},
	} {
		if _, err := xdsclient.New(c); err == nil {
			t.Errorf("%s: no error", name)
		}
	}
}
