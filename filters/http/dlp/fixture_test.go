package dlp

import (
	"bytes"
	"fmt"
	"log/slog"
	"net/netip"
	"strconv"
	"strings"
	"testing"

	"github.com/fairlead-mesh/fairlead/filters"
	"github.com/fairlead-mesh/fairlead/internal/message"
	"github.com/fairlead-mesh/fairlead/internal/stats"
	"github.com/fairlead-mesh/fairlead/internal/streaminfo"
)

// pieces is a body in chunks, with trailers.
type pieces struct {
	p        []string
	trailers *message.Header
	closed   int
	err      error // at the end
}

func (b *pieces) Next() ([]byte, bool, error) {
	if len(b.p) == 0 {
		if b.err != nil {
			return nil, false, b.err
		}
		return nil, true, nil
	}
	c := []byte(b.p[0])
	b.p = b.p[1:]
	return c, len(b.p) == 0 && b.err == nil, nil
}

func (b *pieces) Ready() (int, bool) { return 0, false }

func (b *pieces) Trailers() *message.Header { return b.trailers }

func (b *pieces) Close() { b.closed++ }

// split cuts s into n pieces or single bytes (0).
func split(s string, n int) []string {
	var out []string
	size := 1
	if n > 0 {
		size = (len(s) + n - 1) / n
	}
	for len(s) > size {
		out = append(out, s[:size])
		s = s[size:]
	}
	return append(out, s)
}

func readAll(b message.Body) (string, error) {
	var out strings.Builder
	for {
		p, last, err := b.Next()
		out.Write(p)
		if err != nil || last {
			return out.String(), err
		}
	}
}

// upstream answers and records what reached it.
type upstream struct {
	called  bool
	header  map[string]string
	body    string
	bodyErr error
	early   bool // answer before the body is read

	status   int
	response [][2]string
	answer   message.Body
	tunnel   filters.Tunnel
	request  message.Body
}

func (u *upstream) Do(s *filters.Stream, _ filters.Next) (*filters.Response, error) {
	u.called = true
	u.header = map[string]string{}
	for i := range s.Request.Len() {
		u.header[s.Request.At(i).Name] = strings.Clone(s.Request.At(i).Value)
	}
	u.request = s.Body
	if !u.early {
		if u.body, u.bodyErr = readAll(s.Body); u.bodyErr != nil {
			s.Body.Close()
			return nil, u.bodyErr
		}
		s.Body.Close()
	}
	r := s.NewResponse()
	if u.status == 0 {
		u.status = 200
	}
	r.Header.Add(message.Status, strconv.Itoa(u.status))
	for _, h := range u.response {
		r.Header.Add(h[0], h[1])
	}
	if u.answer != nil {
		r.Body = u.answer
	}
	r.Tunnel = u.tunnel
	return r, nil
}

type fixture struct {
	f    filters.HTTPFilter
	log  *bytes.Buffer
	reg  *stats.Registry
	conf filters.Config
}

func compile(t testing.TB, js, over string) *fixture {
	t.Helper()
	x := &fixture{log: &bytes.Buffer{}, reg: &stats.Registry{}}
	var err error
	if x.conf, err = (Factory{}).Decode(filters.Any{TypeURL: TypeURL, Value: []byte(js), JSON: true}, nil); err != nil {
		t.Fatal(err)
	}
	var o filters.Config
	if over != "" {
		if o, err = (Factory{}).DecodeOverride(filters.Any{TypeURL: PerRouteTypeURL, Value: []byte(over), JSON: true}, nil); err != nil {
			t.Fatal(err)
		}
	}
	env := &filters.Env{Name: "dlp", Stats: x.reg.Scope(""), Logger: slog.New(slog.NewJSONHandler(x.log, nil))}
	if x.f, err = (Factory{}).Compile(env, x.conf, o); err != nil {
		t.Fatal(err)
	}
	return x
}

// one makes a configuration of a single rule.
func one(action string, more ...string) string {
	return fmt.Sprintf(`{"rules":[{"name":"r","infoTypes":["CREDIT_CARD_NUMBER","EMAIL_ADDRESS","AWS_CREDENTIALS"],"action":%q%s}]}`,
		action, strings.Join(append([]string{""}, more...), ","))
}

type request struct {
	method, path string
	header       [][2]string
	body         message.Body
	grpc         bool
}

func (r request) stream() *filters.Stream {
	s := &filters.Stream{}
	s.Reset()
	if r.method == "" {
		r.method = "POST"
	}
	if r.path == "" {
		r.path = "/"
	}
	s.Request.Add(message.Method, r.method)
	s.Request.Add(message.Path, r.path)
	s.Request.Add(message.Scheme, "http")
	s.Request.Add(message.Authority, "a")
	for _, h := range r.header {
		s.Request.Add(h[0], h[1])
	}
	if r.body != nil {
		s.Body = r.body
	}
	s.Info.Conn = &streaminfo.Conn{Remote: netip.MustParseAddrPort("10.0.0.1:4")}
	s.Info.IsGRPC = r.grpc
	s.Info.RequestID = "req-7"
	return s
}

// result is what a client and an upstream saw.
type result struct {
	u       *upstream
	s       *filters.Stream
	status  int
	header  map[string]string
	body    string
	bodyErr error
}

func (x *fixture) run(t testing.TB, r request, u *upstream) result {
	t.Helper()
	if u == nil {
		u = &upstream{}
	}
	s := r.stream()
	s.SetChain([]filters.HTTPFilter{x.f, u})
	resp, err := filters.Start(s)
	if err != nil {
		t.Fatalf("the chain failed: %v", err)
	}
	out := result{u: u, s: s, status: resp.Status(), header: map[string]string{}}
	for i := range resp.Header.Len() {
		out.header[resp.Header.At(i).Name] = resp.Header.At(i).Value
	}
	out.body, out.bodyErr = readAll(resp.Body)
	resp.Body.Close()
	return out
}
