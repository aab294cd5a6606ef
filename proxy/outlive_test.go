package proxy_test

import (
	"bufio"
	"fmt"
	"io"
	"net/http"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/fairlead-mesh/fairlead/filters"
	"github.com/fairlead-mesh/fairlead/filters/builtin"
	"github.com/fairlead-mesh/fairlead/internal/message"
	"github.com/fairlead-mesh/fairlead/proxy"
	"github.com/fairlead-mesh/fairlead/xdsclient/xdsresource"
)

const witnessType = "type.googleapis.com/fairlead.test.v1.Witness"

// witnesses makes filters that see all of a stream, and notice if that is after they
// were closed. There is one for each configuration.
type witnesses struct{ all [4]witness }

func (*witnesses) TypeURLs() []string { return []string{witnessType} }

func (*witnesses) Decode(a filters.Any, _ *filters.Decoding) (filters.Config, error) {
	var n int
	_, err := fmt.Sscanf(string(a.Value), `{"n":%d}`, &n)
	return n, err
}

func (w *witnesses) DecodeOverride(a filters.Any, d *filters.Decoding) (filters.Config, error) {
	return w.Decode(a, d)
}

func (w *witnesses) Compile(_ *filters.Env, base, override filters.Config) (filters.HTTPFilter, error) {
	n, _ := base.(int)
	if o, ok := override.(int); ok {
		n = o
	}
	f := &w.all[n]
	f.n = n
	return f, nil
}

type witness struct {
	n                         int
	closed, late, used, ended atomic.Int32
}

func (w *witness) use() {
	w.used.Add(1)
	if w.closed.Load() > 0 {
		w.late.Add(1)
	}
}

func (w *witness) Close() error {
	w.closed.Add(1)
	return nil
}

func (w *witness) Do(s *filters.Stream, next filters.Next) (*filters.Response, error) {
	w.use()
	if s.Body != message.NoBody {
		s.Body = witnessed{s.Body, w}
	}
	r, err := next.Do(s)
	if err != nil {
		return nil, err
	}
	w.use()
	r.Header.Set("x-witness", fmt.Sprint(w.n))
	if !message.IsEmpty(r.Body) {
		r.Body = witnessed{r.Body, w}
	}
	return r, nil
}

func (w *witness) OnStreamEnd(*filters.Stream, *filters.Response) {
	w.use()
	w.ended.Add(1)
}

type witnessed struct {
	message.Body
	w *witness
}

func (b witnessed) Next() ([]byte, bool, error) {
	p, last, err := b.Body.Next()
	b.w.use()
	return p, last, err
}

// outliving is a proxy whose HTTP filter is replaced under its streams.
type outliving struct {
	*world
	port int
	w    witnesses
	dec  *xdsresource.Decoder
	http *http.Client // speaks HTTP/2
	more chan struct{}
	gate gate
}

func newOutliving(t *testing.T) *outliving {
	t.Helper()
	return newOutlivingWith(t, proxy.Options{DrainTime: 50 * time.Millisecond})
}

func newOutlivingWith(t *testing.T, opt proxy.Options) *outliving {
	t.Helper()
	o := &outliving{more: make(chan struct{}, 1)}
	reg := builtin.Registry()
	reg.RegisterHTTP(&o.w)
	o.gate = gate{make(chan struct{}), make(chan struct{})}
	reg.RegisterHTTP(&o.gate)
	opt.Registry = reg
	o.world, o.port, o.dec = newWorldWith(t, opt), freePort(t), xdsresource.NewDecoder(reg, xdsresource.Options{})
	origin := (*services)(nil).serve(t, http.HandlerFunc(o.origin))
	o.res.Clusters["app"] = plainCluster(t, "app", origin, "")
	o.res.Clusters["app2"] = plainCluster(t, "app2", origin, `typed_extension_protocol_options: {envoy.extensions.upstreams.http.v3.HttpProtocolOptions: {"@type": type.googleapis.com/envoy.extensions.upstreams.http.v3.HttpProtocolOptions, explicit_http_config: {http2_protocol_options: {}}}},`)
	o.res.Clusters["echo"] = plainCluster(t, "echo", tcpOrigin(t, ""), "")
	p := &http.Protocols{}
	p.SetUnencryptedHTTP2(true)
	tr := &http.Transport{Protocols: p}
	t.Cleanup(tr.CloseIdleConnections)
	o.http = &http.Client{Transport: tr}
	return o
}

// origin answers line by line what it gets, or in two parts.
func (o *outliving) origin(w http.ResponseWriter, r *http.Request) {
	rc := http.NewResponseController(w)
	switch r.URL.Path {
	case "/down":
		_, _ = io.WriteString(w, "one\n")
		_ = rc.Flush()
		select {
		case <-o.more:
		case <-r.Context().Done():
			return
		}
		_, _ = io.WriteString(w, "two\n")
		w.Header().Set(http.TrailerPrefix+"x-trailer", "three")
	case "/up":
		b, _ := io.ReadAll(r.Body)
		_, _ = w.Write(b)
	case "/both":
		_ = rc.EnableFullDuplex()
		w.Header().Set("content-type", "text/event-stream")
		_ = rc.Flush()
		for in := bufio.NewScanner(r.Body); in.Scan(); _ = rc.Flush() {
			_, _ = fmt.Fprintln(w, in.Text())
		}
		w.Header().Set(http.TrailerPrefix+"x-answer-trailer", "u")
	case "/ws":
		c, br, err := rc.Hijack()
		if err != nil {
			return
		}
		defer c.Close()
		_, _ = io.WriteString(c, "HTTP/1.1 101 Switching Protocols\r\nconnection: upgrade\r\nupgrade: websocket\r\n\r\n")
		_, _ = io.Copy(c, br)
	}
}

// push puts the filter of configuration n in force: by routes, or as an extension
// that arrived.
func (o *outliving) push(n int, discovered bool) {
	o.t.Helper()
	config := func(n int) string {
		return fmt.Sprintf(`{"@type": type.googleapis.com/udpa.type.v1.TypedStruct, type_url: %s, value: {n: %d}}`, witnessType, n)
	}
	from, per := "typed_config: "+config(3), fmt.Sprintf("typed_per_filter_config: {w: %s},", config(n))
	if discovered {
		from, per = `config_discovery: {config_source: {ads: {}}, type_urls: [`+witnessType+`]}`, ""
		o.res.Extensions["w"] = decodeWith[*xdsresource.ExtensionConfig](o.t, o.dec, xdsresource.ExtensionConfigType, "{name: w, typed_config: "+config(n)+"}")
	}
	o.res.Listeners["l"] = decodeWith[*xdsresource.Listener](o.t, o.dec, xdsresource.ListenerType, fmt.Sprintf(`{name: l, address: {socket_address: {address: 127.0.0.1, port_value: %d}}, filter_chains: [%s]}`, o.port,
		chainYAML("c", "{}", "{name: w, "+from+"},", fmt.Sprintf(`http2_protocol_options: {allow_connect: true}, upgrade_configs: [{upgrade_type: CONNECT}, {upgrade_type: websocket}],
route_config: {name: r, virtual_hosts: [{name: v, domains: ["*"], %s routes: [
  {match: {connect_matcher: {}}, route: {cluster: echo, timeout: 0s, upgrade_configs: [{upgrade_type: CONNECT, connect_config: {}}]}},
  {match: {prefix: /ws}, route: {cluster: app, timeout: 0s}}, {match: {prefix: /none}, direct_response: {status: 204}},
  {match: {prefix: /}, route: {cluster: app2, timeout: 0s}}]}]}`, per))))
	o.mustApply()
	c := dial(o.t, o.port)
	defer c.Close()
	_, _ = io.WriteString(c, "GET /none HTTP/1.1\r\nhost: a\r\n\r\n")
	r, err := http.ReadResponse(c.br, nil)
	if err != nil {
		o.t.Fatal(err)
	}
	if got := r.Header.Get("x-witness"); got != fmt.Sprint(n) {
		o.t.Fatalf("the filter in force is %q, want %d", got, n)
	}
}

func decodeWith[T any](t *testing.T, dec *xdsresource.Decoder, typeURL, doc string) T {
	t.Helper()
	v, err := dec.FromYAML(typeURL, []byte(doc))
	if err != nil {
		t.Fatal(err)
	}
	r, _ := v.(T)
	return r
}

// longStream is a stream that is open: more passes something through it, end ends it.
type longStream struct{ more, end func() }

// bytes is a longStream on a connection that echoes lines.
func (o *outliving) bytes(w io.Writer, br *bufio.Reader, end func()) longStream {
	n := 0
	return longStream{func() {
		o.t.Helper()
		n++
		line := fmt.Sprintf("line %d\n", n)
		if _, err := io.WriteString(w, line); err != nil {
			o.t.Fatal(err)
		}
		if got, err := br.ReadString('\n'); err != nil || got != line {
			o.t.Fatalf("%q %v, want %q", got, err, line)
		}
	}, end}
}

// over1 sends head on a connection and awaits the status.
func (o *outliving) over1(head, status string) *client {
	o.t.Helper()
	c := dial(o.t, o.port)
	_, _ = io.WriteString(c, head)
	for first := true; ; first = false {
		l, err := c.br.ReadString('\n')
		if err != nil || first && !strings.Contains(l, status) {
			o.t.Fatalf("%q %v", l, err)
		}
		if l == "\r\n" {
			return c
		}
	}
}

// over2 sends a request whose body is written to what it returns.
func (o *outliving) over2(method, path string) (*io.PipeWriter, *http.Response) {
	o.t.Helper()
	pr, pw := io.Pipe()
	rq, err := http.NewRequestWithContext(o.t.Context(), method, fmt.Sprintf("http://127.0.0.1:%d%s", o.port, path), pr)
	if err != nil {
		o.t.Fatal(err)
	}
	r, err := o.http.Do(rq)
	if err != nil {
		o.t.Fatal(err)
	}
	if r.StatusCode != http.StatusOK {
		o.t.Fatal(r.Status)
	}
	return pw, r
}

var longStreams = []struct {
	name string
	open func(o *outliving) longStream
}{
	{"a download", func(o *outliving) longStream {
		c := o.over1("GET /down HTTP/1.1\r\nhost: a\r\n\r\n", "200")
		read := func(want string) {
			o.t.Helper()
			for _, want := range []string{fmt.Sprintf("%x\r\n", len(want)), want, "\r\n"} {
				if got, err := c.br.ReadString('\n'); err != nil || got != want {
					o.t.Fatalf("%q %v, want %q", got, err, want)
				}
			}
		}
		read("one\n")
		return longStream{func() { o.more <- struct{}{}; read("two\n") }, func() { _ = c.Close() }}
	}},
	{"an upload", func(o *outliving) longStream {
		c := dial(o.t, o.port)
		_, _ = io.WriteString(c, "POST /up HTTP/1.1\r\nhost: a\r\ncontent-length: 8\r\n\r\none\n")
		return longStream{func() {
			_, _ = io.WriteString(c, "two\n")
			r, err := http.ReadResponse(c.br, nil)
			if err != nil {
				o.t.Fatal(err)
			}
			if b, err := io.ReadAll(r.Body); err != nil || string(b) != "one\ntwo\n" {
				o.t.Fatalf("%q %v", b, err)
			}
		}, func() { _ = c.Close() }}
	}},
	{"a call of HTTP/2", func(o *outliving) longStream {
		w, r := o.over2("POST", "/both")
		return o.bytes(w, bufio.NewReader(r.Body), func() { _ = w.Close(); _, _ = io.Copy(io.Discard, r.Body); _ = r.Body.Close() })
	}},
	{"a WebSocket", func(o *outliving) longStream {
		c := o.over1("GET /ws HTTP/1.1\r\nhost: a\r\nconnection: upgrade\r\nupgrade: websocket\r\n\r\n", "101")
		return o.bytes(c, c.br, func() { _ = c.Close() })
	}},
	{"a CONNECT of HTTP/1", func(o *outliving) longStream {
		c := o.over1("CONNECT a:80 HTTP/1.1\r\nhost: a:80\r\n\r\n", "200")
		return o.bytes(c, c.br, func() { _ = c.Close() })
	}},
	{"a CONNECT of HTTP/2", func(o *outliving) longStream {
		w, r := o.over2("CONNECT", "")
		return o.bytes(w, bufio.NewReader(r.Body), func() { _ = w.Close(); _, _ = io.Copy(io.Discard, r.Body); _ = r.Body.Close() })
	}},
}

// A filter that routes or discovery replace is closed when the last stream has ended
// that began with it, be that long after the drain time, and then at once.
func TestAFilterLivesAsLongAsItsStreams(t *testing.T) {
	for _, discovered := range []bool{false, true} {
		for _, kind := range longStreams {
			t.Run(map[bool]string{false: "routes, ", true: "discovery, "}[discovered]+kind.name, func(t *testing.T) {
				o := newOutliving(t)
				o.push(0, discovered)
				st := kind.open(o)
				former, next := &o.w.all[0], &o.w.all[1]
				eventually(t, "the stream is on its way", func() bool { return former.used.Load() >= 4 }) // with that of push
				o.push(1, discovered)
				o.push(2, discovered)
				eventually(t, "a filter without streams is closed", func() bool { return next.closed.Load() == 1 })
				o.ReleaseNow() // as if the drain time were over
				if n := former.closed.Load(); n != 0 {
					t.Errorf("closed under its stream")
				}
				st.more()
				st.end()
				eventually(t, "the filter is closed", func() bool { return former.closed.Load() == 1 })
				if n := former.ended.Load(); n != 2 {
					t.Errorf("it saw the end of %d streams", n)
				}
				o.Close()
				for i := range 3 {
					if w := &o.w.all[i]; w.closed.Load() != 1 || w.late.Load() != 0 {
						t.Errorf("filter %d was closed %d times, and used %d times after that", i, w.closed.Load(), w.late.Load())
					}
				}
			})
		}
	}
}

// A listener that is replaced cuts its connections at the end of the drain time: its
// filters live that long.
func TestAFilterOfAReplacedListenerEndsWithTheDrainTime(t *testing.T) {
	for _, kind := range longStreams {
		t.Run(kind.name, func(t *testing.T) {
			o := newOutliving(t)
			o.push(0, false)
			st := kind.open(o)
			former := &o.w.all[0]
			eventually(t, "the stream is on its way", func() bool { return former.used.Load() >= 4 })
			delete(o.res.Listeners, "l")
			o.mustApply()
			eventually(t, "the stream is cut, and its filter closed", func() bool {
				o.ReleaseNow() // does nothing while there are connections
				return former.closed.Load() == 1
			})
			if n, late := former.ended.Load(), former.late.Load(); n != 2 || late != 0 {
				t.Errorf("it saw the end of %d streams, and was used %d times after it was closed", n, late)
			}
			st.end()
		})
	}
}
