package grpc

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"strconv"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/metadata"
	"google.golang.org/grpc/status"

	"github.com/fairlead-mesh/fairlead/conformance/running"
)

// raw are messages as they are.
type raw struct{}

func (raw) Marshal(v any) ([]byte, error) { return []byte(*v.(*string)), nil }
func (raw) Unmarshal(b []byte, v any) error {
	*v.(*string) = string(b)
	return nil
}
func (raw) Name() string { return "raw" }

const bootstrap = `
static_resources:
  listeners:
  - name: grpc
    address: {socket_address: {address: 127.0.0.1, port_value: %[1]d}}
    filter_chains: [{filters: [{name: hcm, typed_config: {"@type": type.googleapis.com/envoy.extensions.filters.network.http_connection_manager.v3.HttpConnectionManager,
      stat_prefix: grpc, codec_type: HTTP2, http2_protocol_options: {allow_connect: true},
      route_config: {virtual_hosts: [{name: all, domains: ["*"], routes: [{match: {prefix: /}, route: {cluster: app, timeout: 0s}}]}]},
      http_filters: [{name: router, typed_config: {"@type": type.googleapis.com/envoy.extensions.filters.http.router.v3.Router}}]}}]}]
  clusters:
  - name: app
    type: STATIC
    typed_extension_protocol_options: {envoy.extensions.upstreams.http.v3.HttpProtocolOptions: {"@type": type.googleapis.com/envoy.extensions.upstreams.http.v3.HttpProtocolOptions,
      explicit_http_config: {http2_protocol_options: {}}}}
    load_assignment: {cluster_name: app, endpoints: [{lb_endpoints: [{endpoint: {address: {socket_address: {address: 127.0.0.1, port_value: %[2]d}}}}]}]}
`

// app is a server that does what the path of a call asks for.
type app struct {
	port      int
	cancelled atomic.Int32
}

func newApp(t *testing.T) *app {
	t.Helper()
	l, err := net.Listen("tcp", running.Address(0))
	if err != nil {
		t.Fatal(err)
	}
	a := &app{port: running.Port(l)}
	s := grpc.NewServer(grpc.ForceServerCodec(raw{}), grpc.UnknownServiceHandler(a.handle))
	go func() { _ = s.Serve(l) }()
	t.Cleanup(s.Stop)
	return a
}

func (a *app) handle(_ any, st grpc.ServerStream) error {
	method, _ := grpc.MethodFromServerStream(st)
	verb, arg, _ := strings.Cut(strings.TrimPrefix(method, "/app/"), "-")
	n, _ := strconv.Atoi(arg)
	if in, _ := metadata.FromIncomingContext(st.Context()); len(in["x-echo"]) > 0 {
		_ = st.SetHeader(metadata.MD{"x-echo": in["x-echo"], "x-echo-bin": in["x-echo-bin"]})
		st.SetTrailer(metadata.MD{"x-trail": in["x-echo"], "x-trail-bin": in["x-echo-bin"]})
	}
	var m string
	switch verb {
	case "status": // trailers only
		return status.Error(codes.Code(n), fmt.Sprintf("status %d: %%, \"quotes\", ü, \n, %s", n, strings.Repeat("x", n))) //nolint:gosec // 0 to 16
	case "late": // a message, then the status
		m = "message"
		_ = st.SendMsg(&m)
		return status.Error(codes.Code(n), "late") //nolint:gosec // 0 to 16
	case "unary":
		if err := st.RecvMsg(&m); err != nil {
			return err
		}
		return st.SendMsg(&m)
	case "collect":
		total, count := 0, 0
		for st.RecvMsg(&m) == nil {
			total, count = total+len(m), count+1
		}
		m = fmt.Sprint(count, " messages, ", total, " bytes")
		return st.SendMsg(&m)
	case "stream":
		for i := range n {
			m = strings.Repeat(string(rune('a'+i%26)), i)
			if err := st.SendMsg(&m); err != nil {
				return err
			}
		}
		return nil
	case "chat":
		for {
			if err := st.RecvMsg(&m); errors.Is(err, io.EOF) {
				return nil
			} else if err != nil {
				return err
			}
			if err := st.SendMsg(&m); err != nil {
				return err
			}
		}
	case "hang": // messages, then nothing until the client has gone
		for range n {
			m = "before"
			_ = st.SendMsg(&m)
		}
		<-st.Context().Done()
		a.cancelled.Add(1)
		return status.FromContextError(st.Context().Err()).Err()
	}
	return status.Error(codes.Unimplemented, "no such verb")
}

// pair is a client without and one with a proxy between.
type pair struct {
	app             *app
	direct, proxied *grpc.ClientConn
	ports           [2]int
}

func newPair(t *testing.T) *pair {
	t.Helper()
	p := &pair{app: newApp(t)}
	p.ports = [2]int{p.app.port, running.FreePort(t)}
	running.Start(t, fmt.Sprintf(bootstrap, p.ports[1], p.ports[0]), p.ports[1])
	for i, c := range []**grpc.ClientConn{&p.direct, &p.proxied} {
		var err error
		if *c, err = grpc.NewClient(running.Address(p.ports[i]), grpc.WithTransportCredentials(plaintext()), grpc.WithDefaultCallOptions(grpc.ForceCodec(raw{})), grpc.WithDisableRetry()); err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { _ = (*c).Close() })
	}
	return p
}

// both makes a call both ways and compares its account.
func (p *pair) both(t *testing.T, name string, call func(ctx context.Context, c *grpc.ClientConn) string) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), 10*time.Second)
	defer cancel()
	want, got := call(ctx, p.direct), call(ctx, p.proxied)
	if want != got {
		t.Errorf("%s: through the proxy\n%.600s\nand without\n%.600s", name, got, want)
	}
}
