package proxy_test

import (
	"context"
	"encoding/json"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/fairlead-mesh/fairlead/filters"
	"github.com/fairlead-mesh/fairlead/internal/message"
	"github.com/fairlead-mesh/fairlead/internal/netio"
)

// trap is code with a bug at one place: a filter, and what a filter puts in the
// way of others. Only requests to the host "trap", and connections that are made
// while it is armed, come across it.
type trap struct {
	Where string `json:"where"`
	armed *atomic.Bool
}

const trapType = "type.googleapis.com/fairlead.test.v1.Trap"

func (tr *trap) at(where string) {
	if tr.Where == where {
		panic("trap: " + where)
	}
}

// trapConfigYAML is a filter entry.
func trapConfigYAML(where string) string {
	return fmt.Sprintf(`{name: trap, typed_config: {"@type": type.googleapis.com/udpa.type.v1.TypedStruct, type_url: %s, value: {where: %q}}},`, trapType, where)
}

// traps makes filters of all three kinds.
type traps struct {
	armed  atomic.Bool
	closed atomic.Int32
}

func (*traps) TypeURLs() []string { return []string{trapType} }

func (f *traps) Decode(a filters.Any, _ *filters.Decoding) (filters.Config, error) {
	tr := &trap{armed: &f.armed}
	if err := json.Unmarshal(a.Value, tr); err != nil {
		return nil, err
	}
	tr.at("decode")
	return tr, nil
}

func (f *traps) DecodeOverride(a filters.Any, d *filters.Decoding) (filters.Config, error) {
	return f.Decode(a, d)
}

type (
	httpTraps     struct{ *traps }
	networkTraps  struct{ *traps }
	listenerTraps struct{ *traps }
)

// MergeOverrides implements filters.OverrideMerger.
func (f httpTraps) MergeOverrides(_, c filters.Config) filters.Config {
	f.of(c).at("merge overrides")
	return c
}

func (*traps) of(c filters.Config) *trap {
	tr, ok := c.(*trap)
	if !ok {
		return &trap{}
	}
	return tr
}

func (f httpTraps) Compile(_ *filters.Env, base, _ filters.Config) (filters.HTTPFilter, error) {
	tr := f.of(base)
	tr.at("compile an HTTP filter")
	return tr, nil
}

func (f networkTraps) Compile(_ *filters.Env, c filters.Config) (any, error) {
	tr := f.of(c)
	tr.at("compile a network filter")
	if tr.Where == "serve" {
		return trapTerminal{tr}, nil
	}
	return tr, nil
}

func (f listenerTraps) Compile(_ *filters.Env, c filters.Config) (filters.ListenerFilter, error) {
	tr := f.of(c)
	tr.at("compile a listener filter")
	return tr, nil
}

// Close implements io.Closer.
func (tr *trap) Close() error {
	tr.at("close a filter")
	return nil
}

// Do implements filters.HTTPFilter.
func (tr *trap) Do(s *filters.Stream, next filters.Next) (*filters.Response, error) {
	if s.Request.Get(message.Authority) != "trap" {
		return next.Do(s)
	}
	tr.at("request")
	if strings.HasPrefix(tr.Where, "state") {
		s.Info.FilterState.Set("trap", tr, 0)
	}
	if tr.Where == "select the route again" {
		s.Reselect = func(*filters.Stream) { tr.at(tr.Where) }
		s.ClearRouteCache()
	}
	if err := s.Guard(tr); err != nil {
		return nil, err
	}
	defer s.Unguard(tr)
	s.Body = &trapBody{Body: s.Body, tr: tr, of: "request"}
	if tr.Where == "state in a local reply" {
		return s.LocalReply(418, "", "trap", 0), nil
	}
	r, err := next.Do(s)
	if err != nil {
		return r, err
	}
	tr.at("response")
	r.Body = &trapBody{Body: r.Body, tr: tr, of: "response"}
	if r.Tunnel != nil {
		r.Tunnel = &trapTunnel{r.Tunnel, tr}
	}
	return r, nil
}

// OnStreamEnd implements filters.StreamEnder.
func (tr *trap) OnStreamEnd(s *filters.Stream, _ *filters.Response) {
	if s.Request.Get(message.Authority) == "trap" {
		tr.at("stream end")
	}
}

// Interrupt implements filters.Interrupter.
func (tr *trap) Interrupt(error) { tr.at("interrupt") }

// Serialize and Field implement streaminfo.Object.
func (tr *trap) Serialize() string { panic("trap: " + tr.Where) }

func (tr *trap) Field(string) (string, bool) { panic("trap: " + tr.Where) }

type trapBody struct {
	message.Body
	tr    *trap
	of    string
	calls int
}

func (b *trapBody) Next() ([]byte, bool, error) {
	if b.calls++; b.calls > 1 {
		b.tr.at(b.of + " body, further chunk")
	}
	b.tr.at(b.of + " body, first chunk")
	return b.Body.Next()
}

func (b *trapBody) Ready() (int, bool) {
	b.tr.at(b.of + " body, what is ready")
	return b.Body.Ready()
}

func (b *trapBody) Trailers() *message.Header {
	b.tr.at(b.of + " trailers")
	return b.Body.Trailers()
}

func (b *trapBody) Close() {
	b.Body.Close()
	b.tr.at(b.of + " body, close")
}

type trapTunnel struct {
	filters.Tunnel
	tr *trap
}

func (t *trapTunnel) TakeOver(c netio.Conn, done func()) {
	t.tr.at("tunnel")
	t.Tunnel.TakeOver(c, done)
}

// mineHTTP are places on the way of a request, and what its client gets.
var mineHTTP = []struct {
	where, want        string
	lines              int
	path               string
	hcm, route, fields string // of the manager, of the route's action, of the route
	before             string // HTTP filters between the trap and the router
}{
	{where: "request", want: "500"},
	{where: "response", want: "500"},
	{where: "stream end", want: "200"},
	{where: "select the route again", want: "500"},
	{where: "request body, what is ready", want: "500"},
	{where: "request body, first chunk", want: "500|broken"},
	{where: "request body, further chunk", want: "500|broken"},
	{where: "request trailers", want: "500|broken"},
	{where: "response body, what is ready", want: "500|broken"},
	{where: "response body, first chunk", want: "500|broken"},
	{where: "response body, further chunk", want: "broken"},
	{where: "response trailers", want: "500|broken"},
	{where: "response body, close", want: "200|broken"},
	{where: "interrupt", want: "reset", path: "/hang"},
	{where: "interrupt", want: "reset|504|408", path: "/hang", route: "idle_timeout: 0.2s,"},
	{where: "state in an access log", want: "200", hcm: accessLogs("access_log")},
	{where: "state in a request header", want: "500", fields: `request_headers_to_add: [{header: {key: x, value: "%FILTER_STATE(trap:PLAIN)%"}}],`},
	{where: "state in a response header", want: "500|reset", fields: `response_headers_to_add: [{header: {key: x, value: "%FILTER_STATE(trap:PLAIN)%"}}],`},
	{where: "state in a local reply", want: "reset|500", lines: 1, hcm: `local_reply_config: {body_format: {text_format_source: {inline_string: "%FILTER_STATE(trap:PLAIN)%"}}},`},
	{where: "state in a policy", want: "500", before: `{name: rbac, typed_config: {"@type": type.googleapis.com/envoy.extensions.filters.http.rbac.v3.RBAC, rules: {action: DENY, policies: {p: {permissions: [{any: true}], principals: [{filter_state: {key: trap, string_match: {exact: x}}}]}}}}},`},
	{where: "state in a hash", want: "500", route: `hash_policy: [{filter_state: {key: trap}}],`},
	{where: "tunnel", want: "200|broken|reset", path: "CONNECT"},
}

// accessLogs is a log that asks the trap's filter state.
func accessLogs(field string) string {
	return field + `: [{name: f, typed_config: {"@type": type.googleapis.com/envoy.extensions.access_loggers.file.v3.FileAccessLog, path: /dev/null, log_format: {text_format_source: {inline_string: "%FILTER_STATE(trap:PLAIN)%\n"}}}}],`
}

const minesHTTP = 22

// TestAPanicInARequestCostsThatRequest: its neighbours on the same connection,
// the connection and the process go on.
func TestAPanicInARequestCostsThatRequest(t *testing.T) {
	if len(mineHTTP) != minesHTTP {
		t.Fatalf("%d places, want %d", len(mineHTTP), minesHTTP)
	}
	h := http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if r.URL.Path == "/hang" {
			<-r.Context().Done()
			return
		}
		rc := http.NewResponseController(w)
		_ = rc.EnableFullDuplex()
		w.Header().Set("trailer", "x-end")
		_, _ = io.WriteString(w, "head ")
		_ = rc.Flush()
		b := make([]byte, 1024)
		for {
			n, err := r.Body.Read(b)
			_, _ = w.Write(b[:n])
			_ = rc.Flush()
			if err != nil {
				break
			}
		}
		w.Header().Set("x-end", "yes")
	})
	origin := httptest.NewUnstartedServer(h)
	origin.Config.Protocols = &http.Protocols{}
	origin.Config.Protocols.SetHTTP1(true)
	origin.Config.Protocols.SetUnencryptedHTTP2(true)
	origin.Start()
	defer origin.Close()
	echo := tcpOrigin(t, "")
	for _, c := range mineHTTP {
		t.Run(c.where+" "+c.path+c.hcm[:min(len(c.hcm), 10)], func(t *testing.T) {
			m := newMinefield(t)
			m.cluster("app", tcpPort(origin.Listener), true)
			m.cluster("echo", echo, false)
			m.listener(fmt.Sprintf(`{name: l, address: {socket_address: {address: 127.0.0.1, port_value: 0}}, filter_chains: [{filters: [{name: hcm, typed_config: {
"@type": type.googleapis.com/envoy.extensions.filters.network.http_connection_manager.v3.HttpConnectionManager, stat_prefix: x, %s upgrade_configs: [{upgrade_type: CONNECT}], http2_protocol_options: {allow_connect: true},
route_config: {name: r, virtual_hosts: [{name: trap, domains: [trap], routes: [{match: {connect_matcher: {}}, route: {cluster: echo, upgrade_configs: [{upgrade_type: CONNECT, connect_config: {}}]}}, {match: {prefix: /}, %s route: {cluster: app, %s timeout: 0s}}]},
  {name: v, domains: ["*"], routes: [{match: {prefix: /}, route: {cluster: app, timeout: 0s}}]}]},
http_filters: [%s %s %s]}}]}]}`, c.hcm, c.fields, c.route, trapConfigYAML(c.where), c.before, routerFilter))
			m.apply()
			m.cross(c.path, c.want)
			lines := c.lines
			if lines == 0 {
				lines = 1
			}
			m.settled(c.where, lines)
		})
	}
}

// cross sends a request into the trap beside another on the same connection.
func (m *minefield) cross(path, want string) {
	t := m.t
	p := &http.Protocols{}
	p.SetUnencryptedHTTP2(true)
	var conns []net.Conn
	tp := &http.Transport{MaxConnsPerHost: 1, Protocols: p, DialContext: func(ctx context.Context, network, addr string) (net.Conn, error) {
		c, err := (&net.Dialer{}).DialContext(ctx, network, addr)
		if err == nil {
			conns = append(conns, c)
		}
		return c, err
	}}
	defer func() {
		tp.CloseIdleConnections()
		for _, c := range conns { // it may not have noticed yet that they are idle
			_ = c.Close()
		}
	}()
	send := func(ctx context.Context, method, host, path string, body io.Reader) (*http.Response, error) {
		req, err := http.NewRequestWithContext(ctx, method, fmt.Sprintf("http://127.0.0.1:%d%s", m.port, path), body)
		if err != nil {
			t.Fatal(err)
		}
		req.Host = host
		return tp.RoundTrip(req)
	}
	ctx, cancel := context.WithTimeout(t.Context(), 8*time.Second)
	defer cancel()
	pr, pw := io.Pipe()
	neighbour, err := send(ctx, "POST", "neighbour", "/echo", pr)
	if err != nil {
		t.Fatal(err)
	}
	defer neighbour.Body.Close()
	say := func(text string) {
		t.Helper()
		if _, err := io.WriteString(pw, text); err != nil {
			t.Errorf("the neighbour can't send: %v", err)
			return
		}
		b := make([]byte, len(text))
		if _, err := io.ReadFull(neighbour.Body, b); err != nil || string(b) != text {
			t.Errorf("the neighbour got %q, %v, want %q", b, err, text)
		}
	}
	b := make([]byte, 5)
	if _, err := io.ReadFull(neighbour.Body, b); err != nil {
		t.Fatal(err)
	}
	say("before")
	if got := m.victim(ctx, send, path); !strings.Contains("|"+want+"|", "|"+got+"|") {
		t.Errorf("the client got %s, want %s", got, want)
	}
	say("after")
	resp, err := send(ctx, "GET", "other", "/", nil)
	if err != nil {
		t.Fatal(err)
	}
	if b, err := io.ReadAll(resp.Body); resp.StatusCode != http.StatusOK || string(b) != "head " || err != nil {
		t.Errorf("a later request: %d %q %v", resp.StatusCode, b, err)
	}
	_ = resp.Body.Close()
	_ = pw.Close()
	if _, err := io.Copy(io.Discard, neighbour.Body); err != nil {
		t.Errorf("the neighbour's end: %v", err)
	}
	if n, names := m.sum(func(n string) bool { return n == "envoy_listener_downstream_cx_total" }); n != 1 {
		t.Errorf("there were %v connections, %d dialled:%s", n, len(conns), names)
	}
}

// victim sends the request that meets the trap and says what became of it.
func (m *minefield) victim(ctx context.Context, send func(ctx context.Context, method, host, path string, body io.Reader) (*http.Response, error), path string) string {
	method := "POST"
	switch path {
	case "":
		path = "/"
	case "/hang":
		var cancel context.CancelFunc
		ctx, cancel = context.WithTimeout(ctx, 500*time.Millisecond)
		defer cancel()
	case "CONNECT":
		method, path = "CONNECT", ""
	}
	pr, pw := io.Pipe()
	go func() {
		for _, s := range []string{"one", "two", "three"} {
			if _, err := io.WriteString(pw, s); err != nil {
				return
			}
			time.Sleep(10 * time.Millisecond)
		}
		_ = pw.Close()
	}()
	defer pr.Close()
	resp, err := send(ctx, method, "trap", path, pr)
	if err != nil {
		return "reset"
	}
	defer resp.Body.Close()
	if _, err := io.ReadAll(resp.Body); err != nil {
		return "broken"
	}
	return fmt.Sprint(resp.StatusCode)
}
