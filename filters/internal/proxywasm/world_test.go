package proxywasm

import (
	"context"
	"errors"
	"log/slog"
	"net/netip"
	"os"
	"slices"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"go.uber.org/goleak"

	"github.com/fairlead-mesh/fairlead/filters"
	"github.com/fairlead-mesh/fairlead/internal/message"
	"github.com/fairlead-mesh/fairlead/internal/stats"
	"github.com/fairlead-mesh/fairlead/internal/streaminfo"
)

func TestMain(m *testing.M) {
	goleak.VerifyTestMain(m, goleak.IgnoreTopFunction("github.com/fairlead-mesh/fairlead/internal/timer.(*wheel).run"))
}

// lines is a logger that keeps what guests log.
type lines struct {
	mu    sync.Mutex
	level slog.Level
	text  []string
	other []string
}

func (l *lines) Enabled(_ context.Context, level slog.Level) bool { return level >= l.level }
func (l *lines) WithAttrs([]slog.Attr) slog.Handler               { return l }
func (l *lines) WithGroup(string) slog.Handler                    { return l }

func (l *lines) Handle(_ context.Context, r slog.Record) error {
	l.mu.Lock()
	defer l.mu.Unlock()
	if r.Message != "wasm log" {
		text := r.Message
		r.Attrs(func(a slog.Attr) bool { text += " " + a.String(); return true })
		l.other = append(l.other, text)
		return nil
	}
	r.Attrs(func(a slog.Attr) bool {
		if a.Key == "text" {
			l.text = append(l.text, a.Value.String())
		}
		return true
	})
	return nil
}

// take returns what was logged since the last time.
func (l *lines) take() []string {
	l.mu.Lock()
	defer l.mu.Unlock()
	out := l.text
	l.text = nil
	return out
}

// until waits for a line, or for n of them.
func (l *lines) until(t *testing.T, want string, n ...int) {
	t.Helper()
	for range 4000 {
		l.mu.Lock()
		found := len(l.text) - len(slices.DeleteFunc(slices.Clone(l.text), func(s string) bool { return s == want }))
		l.mu.Unlock()
		if found >= max(1, append(n, 0)[0]) {
			return
		}
		time.Sleep(5 * time.Millisecond)
	}
	t.Fatalf("no line %q in %q", want, l.take())
}

// world is a plugin with a client before it and an origin behind it.
type world struct {
	t      *testing.T
	p      *Plugin
	log    *lines
	reg    *stats.Registry
	shared *filters.Shared
	env    *filters.Env

	mu    sync.Mutex
	calls []string
	call  func(cluster string, c *filters.Callout) (*filters.CalloutResponse, error)

	seen     message.Header // by the origin
	seenBody string
	trailers string
	reached  bool
	// answer of the origin
	status   string
	body     []string
	trailer  bool
	early    bool // answers before it reads the body
	rerouted int
}

func guest(tb testing.TB, name string) []byte {
	tb.Helper()
	b, err := os.ReadFile("testdata/" + name + ".wasm")
	if err != nil {
		tb.Fatal(err)
	}
	return b
}

// common keeps the probe compiled for all tests; each has VMs of its own.
var common filters.Shared

var keepProbe = sync.OnceValue(func() error {
	code, err := os.ReadFile("testdata/probe.wasm")
	if err == nil {
		_, _, err = acquireModule(context.Background(), &common, &Config{}, code)
	}
	return err
})

func newWorld(t *testing.T, cfg Config) *world {
	t.Helper()
	if err := keepProbe(); err != nil {
		t.Fatal(err)
	}
	if cfg.VMID == "" {
		cfg.VMID = t.Name() + strconv.FormatUint(stateKeys.Add(1), 10)
	}
	w, err := tryWorld(t, "probe", cfg, &common)
	if err != nil {
		t.Fatal(err)
	}
	return w
}

func tryWorld(t *testing.T, module string, cfg Config, shared *filters.Shared) (*world, error) {
	t.Helper()
	w := &world{t: t, log: &lines{level: slog.LevelInfo}, reg: &stats.Registry{}, shared: shared, status: "200", body: []string{"from the origin"}}
	if cfg.Name == "" {
		cfg.Name = "probe"
	}
	w.env = &filters.Env{
		Name: "wasm", Direction: "inbound", Stats: w.reg.Scope(""), Logger: slog.New(w.log), Upstreams: w, Shared: shared,
		Node: &filters.Node{ID: "me~1", Cluster: "c", Metadata: map[string]any{"NAME": "pod"}},
	}
	p, err := Start(context.Background(), w.env, &cfg, guest(t, module))
	if err != nil {
		return w, err
	}
	w.p = p
	t.Cleanup(func() { _ = p.Close() })
	return w, nil
}

// HasCluster implements calloutClusters.
func (w *world) HasCluster(name string) bool { return name == "auth" }

// RoundTrip implements filters.Upstreams.
func (w *world) RoundTrip(ctx context.Context, cluster string, c *filters.Callout, _ int64) (*filters.CalloutResponse, error) {
	w.mu.Lock()
	text := cluster
	for i := range c.Header.Len() {
		text += " " + c.Header.At(i).Name + "=" + c.Header.At(i).Value
	}
	w.calls = append(w.calls, text+" "+string(c.Body))
	call := w.call
	w.mu.Unlock()
	if call != nil {
		return call(cluster, c)
	}
	r := &filters.CalloutResponse{Status: 200, Body: []byte("called")}
	r.Header.Add(message.Status, "200")
	r.Header.Add("x-answer", "1")
	return r, nil
}

// origin is the terminal filter.
type origin struct{ w *world }

func (o origin) Do(s *filters.Stream, _ filters.Next) (*filters.Response, error) {
	w := o.w
	w.reached = true
	w.seen.CopyFrom(&s.Request)
	if !w.early {
		text, trailers, err := drain(s.Body)
		if err != nil {
			return nil, err
		}
		w.seenBody, w.trailers = text, trailers
	}
	r := s.NewResponse()
	r.Header.Add(message.Status, w.status)
	r.Header.Add("x-origin", "o")
	r.Header.Add("x-removed", "1")
	s.Info.ResponseCode, s.Info.Details = 200, "via_upstream"
	s.Info.Upstream.Host, s.Info.Upstream.ClusterRaw = "10.0.0.1:80", "o"
	if len(w.body) > 0 {
		b := &chunks{parts: slices.Clone(w.body)}
		if w.trailer {
			b.trailer = &message.Header{}
			b.trailer.Add("x-trailer", "t")
		}
		r.Body = b
	}
	return r, nil
}

// chunks is a body that comes in parts, none of which is ready.
type chunks struct {
	parts   []string
	trailer *message.Header
	wait    func()
	err     error
	last    bool // the last part is known to be the last
}

func (c *chunks) Next() ([]byte, bool, error) {
	if c.wait != nil {
		c.wait()
	}
	if len(c.parts) == 0 {
		return nil, c.err == nil, c.err
	}
	p := c.parts[0]
	c.parts = c.parts[1:]
	return []byte(p), len(c.parts) == 0 && c.err == nil && c.last, nil
}
func (c *chunks) Ready() (int, bool) { return 0, false }
func (c *chunks) Trailers() *message.Header {
	if len(c.parts) > 0 {
		return nil
	}
	return c.trailer
}
func (*chunks) Close() {}

func drain(b message.Body) (text, trailers string, err error) {
	for {
		p, last, err := b.Next()
		if err != nil {
			return text, "", err
		}
		text += string(p)
		if last {
			break
		}
	}
	if t := b.Trailers(); t != nil {
		for i := range t.Len() {
			trailers += t.At(i).Name + "=" + t.At(i).Value + ";"
		}
	}
	return text, trailers, nil
}

// result is what the client got.
type result struct {
	status, body, details, trailers string
	header                          map[string][]string
	err                             error
	log                             []string
}

// route is the only one.
type route struct{}

func (route) Name() string                   { return "all" }
func (route) ClusterName() string            { return "o" }
func (route) Metadata() *streaminfo.Metadata { return nil }
func (route) Chain() []filters.HTTPFilter    { return nil }

func newStream(do string, body message.Body) *filters.Stream {
	s := &filters.Stream{}
	s.Reset()
	s.Info.Conn = &streaminfo.Conn{ID: 7, Remote: netip.MustParseAddrPort("10.1.1.1:5000"), Local: netip.MustParseAddrPort("10.2.2.2:80")}
	s.Info.Start, s.Info.Protocol = time.Now(), message.HTTP11
	for _, kv := range [][2]string{{message.Method, "GET"}, {message.Scheme, "http"}, {message.Authority, "a.example"}, {message.Path, "/x"}, {"x-do", do}, {"x-removed", "1"}} {
		s.Request.Add(kv[0], kv[1])
	}
	s.Route, s.Info.RouteName = route{}, "all"
	if body != nil {
		s.Body = body
		s.Request.Set(message.Method, "POST")
	}
	return s
}

// ask sends a request whose x-do is do.
func (w *world) ask(do string, body ...string) result {
	w.t.Helper()
	var b message.Body
	if len(body) > 0 {
		b = &chunks{parts: body}
	}
	return w.serve(newStream(do, b))
}

func (w *world) serve(s *filters.Stream) result {
	w.t.Helper()
	w.reached, w.seenBody, w.trailers = false, "", ""
	s.Reselect = func(*filters.Stream) { w.rerouted++ }
	s.SetChain([]filters.HTTPFilter{w.p, origin{w}})
	r, err := filters.Start(s)
	out := result{err: err, header: map[string][]string{}}
	if r != nil {
		s.Response = r
		out.status = r.Header.Get(message.Status)
		for i := range r.Header.Len() {
			f := r.Header.At(i)
			out.header[f.Name] = append(out.header[f.Name], strings.Clone(f.Value))
		}
		out.body, out.trailers, out.err = drain(r.Body)
		r.Body.Close()
	}
	out.details = s.Info.Details
	w.p.OnStreamEnd(s, r)
	out.log = w.log.take()
	return out
}

func (r result) has(t *testing.T, lines ...string) {
	t.Helper()
	for _, l := range lines {
		if !slices.Contains(r.log, l) {
			t.Errorf("no line %q in\n  %s", l, strings.Join(r.log, "\n  "))
		}
	}
}

var errOrigin = errors.New("the origin is gone")
