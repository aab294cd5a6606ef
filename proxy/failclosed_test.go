package proxy_test

import (
	"bytes"
	"crypto/ed25519"
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"slices"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/fairlead-mesh/fairlead/filters"
	"github.com/fairlead-mesh/fairlead/filters/builtin"
	"github.com/fairlead-mesh/fairlead/internal/message"
	"github.com/fairlead-mesh/fairlead/internal/streaminfo"
	"github.com/fairlead-mesh/fairlead/proxy"
	"github.com/fairlead-mesh/fairlead/xdsclient/xdsresource"
)

// cell is one way for one filter to fail, or one configuration that says what
// happens then.
type cell struct {
	family, failure, name string

	http    string // before the router
	network string // before the connection manager
	route   string // typed_per_filter_config
	ecds    string // an extension configuration

	path, body, encoding, token string // of the request; a body makes it a POST
	answer, answerEncoding      string // what the origin says, "ok" by default

	// status is what the client gets: 200 if the configuration lets the request
	// pass, 0 for a closed connection.
	status int
	// early is what it gets if the failure shows before the head of the answer
	// has gone on, which depends on how the bytes come; 0: it never does.
	early int
	// details is a part of %RESPONSE_CODE_DETAILS%.
	details string
	// reached: the origin sees the request, and the client must not see its answer.
	reached bool
}

// saboteur is a filter beside the one in question that makes it panic, by what
// filters get from their surroundings: a body, filter state, the way to select
// a route again.
type saboteur struct{}

type sabotage struct {
	Where string `json:"where"`
}

const saboteurType = "type.googleapis.com/fairlead.test.v1.Saboteur"

// sabotages is a filter entry.
func sabotages(where string) string {
	return fmt.Sprintf(`{name: saboteur, typed_config: {"@type": type.googleapis.com/udpa.type.v1.TypedStruct, type_url: %s, value: {where: %s}}},`, saboteurType, where)
}

func (saboteur) TypeURLs() []string { return []string{saboteurType} }

func (saboteur) Decode(a filters.Any, _ *filters.Decoding) (filters.Config, error) {
	var s sabotage
	err := json.Unmarshal(a.Value, &s)
	return s, err
}

type saboteurHTTP struct{ saboteur }

func (saboteurHTTP) DecodeOverride(filters.Any, *filters.Decoding) (filters.Config, error) {
	return nil, errors.New("there is none")
}

func (saboteurHTTP) Compile(_ *filters.Env, base, _ filters.Config) (filters.HTTPFilter, error) {
	s, _ := base.(sabotage)
	return s, nil
}

type saboteurNetwork struct{ saboteur }

func (saboteurNetwork) Compile(_ *filters.Env, cfg filters.Config) (any, error) { return cfg, nil }

type bomb struct{ message.Body }

func (bomb) Next() ([]byte, bool, error) { panic("a bug") }
func (bomb) Ready() (int, bool)          { return 0, false }
func (bomb) Serialize() string           { panic("a bug") }
func (bomb) Field(string) (string, bool) { panic("a bug") }
func (bomb) reselect(s *filters.Stream)  { panic("a bug") }

// Do implements filters.HTTPFilter.
func (s sabotage) Do(st *filters.Stream, next filters.Next) (*filters.Response, error) {
	switch s.Where {
	case "body":
		st.Body = bomb{st.Body}
	case "state":
		st.Info.FilterState.Set("bomb", bomb{}, 0)
	case "reselect":
		st.Reselect = bomb{}.reselect
	case "answer":
		r, err := next.Do(st)
		if err == nil {
			r.Body = bomb{r.Body}
		}
		return r, err
	case "error":
		return nil, errors.New("a bug")
	default:
		panic("a bug")
	}
	return next.Do(st)
}

// OnNewConnection implements filters.NetworkFilter.
func (s sabotage) OnNewConnection(c *filters.Connection) error {
	if s.Where != "state" {
		panic("a bug")
	}
	c.Info.FilterState.Set("bomb", bomb{}, 0)
	c.Info.Conn.FilterState.Set("bomb", bomb{}, 0)
	return nil
}

var _ streaminfo.Object = bomb{}

// services are what filters ask: one for each way to behave, by cluster name.
type services struct {
	port map[string]int
	key  ed25519.PrivateKey
}

// refusingPort is a port that is taken and not listened on: a free one may be
// given to somebody else.
func refusingPort(t *testing.T) int {
	fd, err := unix.Socket(unix.AF_INET, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = unix.Close(fd) })
	if err := unix.Bind(fd, &unix.SockaddrInet4{Addr: [4]byte{127, 0, 0, 1}}); err != nil {
		t.Fatal(err)
	}
	a, err := unix.Getsockname(fd)
	if err != nil {
		t.Fatal(err)
	}
	return a.(*unix.SockaddrInet4).Port //nolint:forcetypeassert // of an AF_INET socket
}

func newServices(t *testing.T) *services {
	s := &services{port: map[string]int{"refused": refusingPort(t)}}
	var err error
	if _, s.key, err = ed25519.GenerateKey(nil); err != nil {
		t.Fatal(err)
	}
	for _, kind := range []string{"good", "denying", "failing", "slow", "garbage", "huge"} {
		s.port[kind] = s.serve(t, http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) { s.answer(kind, w, r) }))
	}
	s.port["raw"] = endingServer(t, "\x16\x03garbage\r\n\r\n")
	return s
}

func (*services) serve(t *testing.T, h http.Handler) int {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	p := &http.Protocols{}
	p.SetHTTP1(true)
	p.SetUnencryptedHTTP2(true)
	srv := &http.Server{Handler: h, Protocols: p, ReadHeaderTimeout: 20 * time.Second}
	done := make(chan struct{})
	go func() { defer close(done); _ = srv.Serve(l) }()
	t.Cleanup(func() { _ = srv.Close(); <-done })
	return l.Addr().(*net.TCPAddr).Port //nolint:forcetypeassert // of a TCP listener
}

// answer plays the service of Envoy's ext_authz, by gRPC or HTTP, and a server of keys.
func (s *services) answer(kind string, w http.ResponseWriter, r *http.Request) {
	if kind == "slow" {
		<-r.Context().Done()
		return
	}
	_, _ = io.Copy(io.Discard, r.Body)
	switch {
	case strings.HasSuffix(r.URL.Path, "/Check"):
		w.Header().Set("content-type", "application/grpc")
		msg := map[string][]byte{
			"good": {0x0a, 0, 0x1a, 0}, "denying": {0x0a, 2, 8, 7}, "garbage": {0xff, 0xff, 0xff}, "huge": make([]byte, 2<<20),
		}[kind]
		if msg != nil {
			n := len(msg)
			_, _ = w.Write([]byte{0, byte(n >> 24), byte(n >> 16), byte(n >> 8), byte(n)})
			_, _ = w.Write(msg)
		}
		w.Header().Set(http.TrailerPrefix+"grpc-status", map[bool]string{true: "13", false: "0"}[kind == "failing"])
	case kind == "failing":
		w.WriteHeader(http.StatusInternalServerError)
	case r.URL.Path == "/jwks" && kind == "good":
		_, _ = io.WriteString(w, s.jwks())
	case kind == "garbage":
		_, _ = io.WriteString(w, `{"keys":[`)
	case kind == "huge":
		_, _ = w.Write(bytes.Repeat([]byte(" "), 2<<20))
		_, _ = io.WriteString(w, s.jwks())
	case kind == "denying":
		w.WriteHeader(http.StatusForbidden)
	}
}

func b64url(b []byte) string { return base64.RawURLEncoding.EncodeToString(b) }

func (s *services) jwks() string {
	return fmt.Sprintf(`{"keys":[{"kty":"OKP","crv":"Ed25519","kid":"k","x":%q}]}`, b64url(s.key.Public().(ed25519.PublicKey))) //nolint:forcetypeassert // ed25519's
}

func (s *services) token() string {
	signed := b64url([]byte(`{"alg":"EdDSA","kid":"k"}`)) + "." + b64url([]byte(`{"iss":"i","sub":"alice"}`))
	return signed + "." + b64url(ed25519.Sign(s.key, []byte(signed)))
}

// run sends the request of a cell through a proxy of its own.
func (c *cell) run(t *testing.T, s *services, reg *filters.Registry) {
	dir := t.TempDir()
	fill := strings.NewReplacer("${DIR}", dir, "${JWKS}", s.jwks(), "${TOKEN}", s.token())
	dec := xdsresource.NewDecoder(reg, xdsresource.Options{})
	var reached atomic.Int32
	origin := s.serve(t, http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		_, err := io.Copy(io.Discard, r.Body)
		if err == nil {
			reached.Add(1)
		}
		if c.answerEncoding != "" {
			w.Header().Set("content-encoding", c.answerEncoding)
		}
		if c.answer == "" {
			_, _ = io.WriteString(w, "ok")
		}
		_, _ = io.WriteString(w, c.answer)
	}))
	log := &eventLog{}
	p, err := proxy.New(proxy.Options{Registry: reg, DrainTime: time.Millisecond, Logger: slog.New(slog.DiscardHandler), Events: slog.New(slog.NewJSONHandler(log, nil))})
	if err != nil {
		t.Fatal(err)
	}
	defer p.Close()
	res := &proxy.Resources{Listeners: map[string]*xdsresource.Listener{}, Clusters: map[string]*xdsresource.Cluster{}, Extensions: map[string]*xdsresource.ExtensionConfig{}}
	l, err := dec.FromYAML(xdsresource.ListenerType, []byte(fill.Replace(c.listener())))
	if err != nil {
		t.Fatal(err)
	}
	res.Listeners["l"], _ = l.(*xdsresource.Listener)
	if c.ecds != "" {
		e, err := dec.FromYAML(xdsresource.ExtensionConfigType, []byte(fill.Replace(c.ecds)))
		if err != nil {
			t.Fatal(err)
		}
		res.Extensions["late"], _ = e.(*xdsresource.ExtensionConfig)
	}
	add := func(name string, port int) {
		v, err := dec.FromYAML(xdsresource.ClusterType, fmt.Appendf(nil, `{name: %[1]s, type: STATIC, connect_timeout: 1s, load_assignment: {cluster_name: %[1]s,
endpoints: [{lb_endpoints: [{endpoint: {address: {socket_address: {address: 127.0.0.1, port_value: %[2]d}}}}]}]}}`, name, port))
		if err != nil {
			t.Fatal(err)
		}
		res.Clusters[name], _ = v.(*xdsresource.Cluster)
	}
	for kind, port := range s.port {
		add(kind, port)
	}
	add("app", origin)
	if err := p.Apply(res); err != nil {
		t.Fatal(err)
	}
	status, body := c.send(t, int(p.Listener("l").Addresses()[0].Port()), fill)
	if status != c.status && (c.early == 0 || status != c.early) || !strings.Contains(body, c.details) {
		t.Errorf("got %d %.200q, want %d %q; %v", status, body, c.status, c.details, p.Snapshot().Diagnostics)
	}
	if (c.status == 200 || c.reached) != (reached.Load() > 0) {
		t.Errorf("the origin was reached %d times", reached.Load())
	}
	if c.status != 200 && status != 0 && strings.Contains(body, "ok") {
		t.Errorf("the origin's answer came through: %q", body)
	}
	c.told(t, log, p, status, body)
}

// told checks that whoever operates the proxy is told of the request once if it
// was denied, and not at all if it was not.
func (c *cell) told(t *testing.T, log *eventLog, p *proxy.Server, status int, body string) {
	t.Helper()
	if c.status != 200 {
		for end := time.Now().Add(20 * time.Second); len(log.events()) == 0 && time.Now().Before(end); time.Sleep(time.Millisecond) {
		}
	}
	p.Close()
	evs := log.events()
	if c.status == 200 {
		if len(evs) > 0 {
			t.Errorf("a request that passed is told of: %v", evs)
		}
		return
	}
	if len(evs) != 1 {
		t.Errorf("%d events: %v", len(evs), evs)
		return
	}
	ev := evs[0]
	switch {
	case c.network != "" && status == 0:
		if msg, _ := ev["msg"].(string); !strings.HasPrefix(msg, "connection ") || ev["termination_details"] == nil && ev["response_code_details"] == nil {
			t.Errorf("%v", ev)
		}
	case status != 0 && (ev["status"] != float64(status) || ev["response_code_details"] != body):
		t.Errorf("the client got %d %s, the event is %v", status, body, ev)
	case ev["response_code_details"] == nil:
		t.Errorf("no details: %v", ev)
	}
}

func (c *cell) listener() string {
	return fmt.Sprintf(`{name: l, address: {socket_address: {address: 127.0.0.1, port_value: 0}}, filter_chains: [{filters: [%s {name: hcm, typed_config: {
"@type": type.googleapis.com/envoy.extensions.filters.network.http_connection_manager.v3.HttpConnectionManager, stat_prefix: x,
local_reply_config: {body_format: {text_format_source: {inline_string: "%%RESPONSE_CODE_DETAILS%%"}}},
route_config: {name: r, virtual_hosts: [{name: v, domains: ["*"], routes: [{match: {prefix: /}, route: {cluster: app}, typed_per_filter_config: {%s}}]}]},
http_filters: [%s %s]}}]}]}`, c.network, c.route, c.http, routerFilter)
}

func (c *cell) send(t *testing.T, port int, fill *strings.Replacer) (int, string) {
	method, body := http.MethodGet, io.Reader(nil)
	if c.body != "" {
		method, body = http.MethodPost, strings.NewReader(c.body)
	}
	req, err := http.NewRequestWithContext(t.Context(), method, fmt.Sprintf("http://127.0.0.1:%d/%s", port, c.path), body)
	if err != nil {
		t.Fatal(err)
	}
	if c.encoding != "" {
		req.Header.Set("content-encoding", c.encoding)
	}
	if c.body != "" && c.body[0] == '{' {
		req.Header.Set("content-type", "application/json")
	}
	if c.token != "" {
		req.Header.Set("authorization", "Bearer "+fill.Replace(c.token))
	}
	cl := http.Client{Timeout: 20 * time.Second, Transport: &http.Transport{DisableKeepAlives: true, DisableCompression: true}}
	resp, err := cl.Do(req)
	if err != nil {
		var timeout net.Error
		if errors.As(err, &timeout) && timeout.Timeout() {
			t.Error(err)
		}
		return 0, err.Error()
	}
	defer resp.Body.Close()
	b, err := io.ReadAll(resp.Body)
	if err != nil {
		return 0, err.Error()
	}
	return resp.StatusCode, string(b)
}

// TestTheFailClosedMatrix: whatever goes wrong with a filter that decides, the
// request is denied, unless the configuration says otherwise, and then it passes.
func TestTheFailClosedMatrix(t *testing.T) {
	reg := builtin.Registry()
	reg.RegisterHTTP(saboteurHTTP{})
	reg.RegisterNetwork(saboteurNetwork{})
	s := newServices(t)
	denied, passed, fields := 0, 0, map[string]int{}
	for _, c := range matrix() {
		if c.failure != "control" {
			fields[c.family+"/"+c.failure]++
			if c.status == 200 {
				passed++
			} else {
				denied++
			}
		}
		t.Run(c.family+"/"+c.failure+"/"+c.name, func(t *testing.T) { c.run(t, s, reg) })
	}
	if denied != deniedCells || passed != passedCells {
		t.Errorf("%d cells deny and %d pass, want %d and %d", denied, passed, deniedCells, passedCells)
	}
	for _, f := range families {
		for _, k := range failures {
			if n := fields[f+"/"+k]; (n == 0) != slices.Contains(strings.Fields(inapplicable[f]), k) {
				t.Errorf("%s/%s has %d cells", f, k, n)
			}
			delete(fields, f+"/"+k)
		}
	}
	if len(fields) > 0 {
		t.Errorf("outside of the matrix: %v", fields)
	}
	t.Logf("%d cells deny, %d pass as their configuration says", denied, passed)
}
