package proxy_test

import (
	"bufio"
	"fmt"
	"io"
	"log/slog"
	"maps"
	"net"
	"net/http"
	"slices"
	"strings"
	"testing"
	"time"

	rlsv3pb "github.com/envoyproxy/go-control-plane/envoy/service/ratelimit/v3"
	"google.golang.org/grpc"

	"github.com/fairlead-mesh/fairlead/filters"
	"github.com/fairlead-mesh/fairlead/proxy"
	"github.com/fairlead-mesh/fairlead/xdsclient/xdsresource"
)

const (
	gateType    = google + "fairlead.test.v1.Gate"
	localLimitT = google + "envoy.extensions.filters.http.local_ratelimit.v3.LocalRateLimit"
	limitT      = google + "envoy.extensions.filters.http.ratelimit.v3.RateLimit"
)

// gate holds requests with x-gate before the filters behind it.
type gate struct{ arrived, open chan struct{} }

func (*gate) TypeURLs() []string { return []string{gateType} }

func (*gate) Decode(filters.Any, *filters.Decoding) (filters.Config, error) { return "gate", nil }

func (*gate) DecodeOverride(filters.Any, *filters.Decoding) (filters.Config, error) {
	return "gate", nil
}

func (g *gate) Compile(*filters.Env, filters.Config, filters.Config) (filters.HTTPFilter, error) {
	return g, nil
}

func (g *gate) Do(s *filters.Stream, next filters.Next) (*filters.Response, error) {
	if s.Request.Has("x-gate") {
		close(g.arrived)
		<-g.open
	}
	return next.Do(s)
}

// outlived is a kind of filter that is replaced while it has a stream.
type outlived struct {
	name, config string
	header       map[string]string
	// late: the request comes to the filter after that.
	late bool
	// send and want are what is sent behind that, and comes back.
	send, want string
	// after, if not nil, waits for what the filter does in the end.
	after func(*outlivedLab)
}

type outlivedLab struct {
	*outliving
	log       *syncLog
	decisions *collector
	limits    *limiter
	services  *services
}

func newOutlivedLab(t *testing.T) *outlivedLab {
	t.Helper()
	l := &outlivedLab{log: &syncLog{}, decisions: &collector{}, limits: &limiter{}, services: newServices(t)}
	l.outliving = newOutlivingWith(t, proxy.Options{
		DrainTime: 50 * time.Millisecond, Logger: slog.New(slog.NewTextHandler(l.log, &slog.HandlerOptions{Level: slog.LevelDebug})),
	})
	lis, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	g, done := grpc.NewServer(), make(chan struct{})
	rlsv3pb.RegisterRateLimitServiceServer(g, l.limits)
	go func() { defer close(done); _ = g.Serve(lis) }()
	t.Cleanup(func() { g.Stop(); <-done })
	const http2 = `typed_extension_protocol_options: {envoy.extensions.upstreams.http.v3.HttpProtocolOptions: {"@type": type.googleapis.com/envoy.extensions.upstreams.http.v3.HttpProtocolOptions, explicit_http_config: {http2_protocol_options: {}}}},`
	l.res.Clusters["rls"] = plainCluster(t, "rls", lis.Addr().(*net.TCPAddr).Port, http2)
	l.res.Clusters["otel"] = plainCluster(t, "otel", l.services.serve(t, l.decisions), http2)
	l.res.Clusters["good"] = plainCluster(t, "good", l.services.port["good"], http2)
	return l
}

// discover makes config that of the filter.
func (l *outlivedLab) discover(config string) {
	l.t.Helper()
	config = strings.ReplaceAll(config, "${TOKEN}", l.services.token())
	l.res.Extensions["w"] = decodeWith[*xdsresource.ExtensionConfig](l.t, l.dec, xdsresource.ExtensionConfigType, "{name: w, typed_config: "+config+"}")
	l.res.Listeners["l"] = decodeWith[*xdsresource.Listener](l.t, l.dec, xdsresource.ListenerType, fmt.Sprintf(`{name: l, address: {socket_address: {address: 127.0.0.1, port_value: %d}}, filter_chains: [%s]}`, l.port,
		chainYAML("c", "{}", `{name: gate, typed_config: {"@type": `+typedSt+`, type_url: `+gateType+`, value: {}}}, {name: w, config_discovery: {config_source: {ads: {}}, type_urls: [`+strings.Join([]string{wasmT, regoT, dlpT, jwtT, authzT, localLimitT, limitT}, ", ")+`]}},`,
			`route_config: {name: r, virtual_hosts: [{name: v, domains: ["*"], routes: [{match: {prefix: /none}, direct_response: {status: 204}},
  {match: {prefix: /}, route: {cluster: app2, timeout: 0s, rate_limits: [{actions: [{generic_key: {descriptor_value: first}}]}, {actions: [{generic_key: {descriptor_value: done}}], apply_on_stream_done: true}]}}]}]}`)))
	l.mustApply()
}

// begin sends a request, whose body is written to what it returns.
func (l *outlivedLab) begin(header map[string]string) (body *io.PipeWriter, answer chan *http.Response) {
	l.t.Helper()
	pr, pw := io.Pipe()
	rq, err := http.NewRequestWithContext(l.t.Context(), http.MethodPost, fmt.Sprintf("http://127.0.0.1:%d/both", l.port), pr)
	if err != nil {
		l.t.Fatal(err)
	}
	for k, v := range header {
		rq.Header.Set(k, strings.ReplaceAll(v, "${TOKEN}", l.services.token()))
	}
	rq.Trailer = http.Header{"X-Request-Trailer": {"t"}}
	answer = make(chan *http.Response, 1)
	go func() {
		r, err := l.http.Do(rq)
		if err != nil {
			r = &http.Response{Status: err.Error()}
		}
		answer <- r
	}()
	return pw, answer
}

const denies = `{"@type": ` + typedSt + `, type_url: ` + regoT + `, value: {timeout: 10s, policy: {sources: [{inline_string: "package envoy.authz\nallow := false"}]}}}`

func outlivedFilters(t *testing.T) []outlived {
	logged := func(events ...string) func(*outlivedLab) {
		return func(l *outlivedLab) {
			eventually(l.t, fmt.Sprintf("the guest sees %q", events), func() bool {
				return !slices.ContainsFunc(events, func(e string) bool { return !strings.Contains(l.log.String(), e) })
			})
		}
	}
	const card = "card 4111 1111 1111 1111"
	return []outlived{
		{
			name: "wasm", config: wasmYAML(t, "probe", "FAIL_CLOSED", "former"), send: "second", want: "second",
			// The root context, too, ends after the stream.
			after: logged("body 0 second", "text=\"request_trailers ", "text=\"response_trailers ", "text=\"log ", "text=\"delete ", "text=\"done 0 "),
		},
		{name: "wasm, asked late", config: wasmYAML(t, "probe", "FAIL_CLOSED", "former"), late: true, send: "second", want: "second", after: logged("body 0 second", "text=\"log ")},
		{
			name: "dlp", send: card, want: "****",
			config: `{"@type": ` + typedSt + `, type_url: ` + dlpT + `, value: {rules: [{name: r, info_types: [CREDIT_CARD_NUMBER], action: MASK}]}}`,
		},
		{
			name: "rego, asked late, with its decision log", late: true,
			config: `{"@type": ` + typedSt + `, type_url: ` + regoT + `, value: {timeout: 10s, policy: {sources: [{inline_string: "package envoy.authz\nallow := true"}]}, decision_log: {otlp: {cluster: otel, protocol: GRPC, flush_interval: 0.05s}}}}`,
			after: func(l *outlivedLab) {
				eventually(l.t, "the decision is logged", func() bool {
					l.decisions.mu.Lock()
					defer l.decisions.mu.Unlock()
					return len(l.decisions.records) == 2 && len(l.decisions.wrong) == 0
				})
			},
		},
		{
			name: "jwt_authn, asked late, with keys from elsewhere", late: true, header: map[string]string{"authorization": "Bearer ${TOKEN}"},
			config: `{"@type": ` + jwtT + `, providers: {p: {issuer: i, remote_jwks: {http_uri: {uri: "http://x/jwks", cluster: good, timeout: 5s}}}}, rules: [{match: {prefix: /}, requires: {provider_name: p}}]}`,
		},
		{
			name: "ext_authz, asked late", late: true,
			config: `{"@type": ` + authzT + `, transport_api_version: V3, grpc_service: {envoy_grpc: {cluster_name: good}, timeout: 5s}}`,
		},
		{
			name: "local_ratelimit, asked late", late: true,
			config: `{"@type": ` + localLimitT + `, stat_prefix: x, token_bucket: {max_tokens: 100, tokens_per_fill: 100, fill_interval: 60s}, filter_enabled: {default_value: {numerator: 100}}, filter_enforced: {default_value: {numerator: 100}}}`,
		},
		{
			name:   "ratelimit, on stream end",
			config: `{"@type": ` + limitT + `, domain: d, timeout: 5s, failure_mode_deny: true, rate_limit_service: {transport_api_version: V3, grpc_service: {envoy_grpc: {cluster_name: rls}}}}`,
			after: func(l *outlivedLab) {
				var seen []string
				eventually(l.t, "the service hears of the end", func() bool {
					seen = append(seen, l.limits.take()...)
					return slices.Contains(seen, "generic_key=done")
				})
			},
		},
	}
}

// What filters do after their decision, or decide late, they do as long as the stream
// lasts, whatever replaced them meanwhile.
func TestReplacedFiltersServeTheirStreamsToTheEnd(t *testing.T) {
	for _, f := range outlivedFilters(t) {
		t.Run(f.name, func(t *testing.T) {
			if f.send == "" {
				f.send, f.want = "second", "second"
			}
			l := newOutlivedLab(t)
			l.discover(f.config)
			header := map[string]string{"content-type": "text/event-stream"}
			maps.Copy(header, f.header)
			if f.late {
				header["x-gate"] = "1"
			}
			var w *io.PipeWriter
			var answer chan *http.Response
			var r *http.Response
			var br *bufio.Reader
			line := func(send, want string) {
				t.Helper()
				if _, err := io.WriteString(w, send+"\n"); err != nil {
					t.Fatal(err)
				}
				if got, err := br.ReadString('\n'); err != nil || !strings.Contains(got, want) || strings.Contains(got, "4111 1111 1111 1111") {
					t.Fatalf("%q %v, want %q", got, err, want)
				}
			}
			head := func() {
				t.Helper()
				if r = <-answer; r.StatusCode != http.StatusOK {
					t.Fatal(r.Status)
				}
				br = bufio.NewReader(r.Body)
			}
			within(t, "the filter is in force", func() bool {
				status, _ := request(t, l.port, "/none")
				return status == 204 || f.header != nil && status == 401
			})
			w, answer = l.begin(header)
			if f.late {
				<-l.gate.arrived
			} else {
				head()
				line("first", "first")
			}
			l.discover(denies)
			within(t, "the next filter is in force", func() bool { status, _ := request(t, l.port, "/none"); return status == 403 })
			l.ReleaseNow() // as if the drain time were over
			if f.late {
				close(l.gate.open)
				head()
			}
			line(f.send, f.want)
			_ = w.Close()
			if _, err := io.Copy(io.Discard, r.Body); err != nil {
				t.Error(err)
			}
			_ = r.Body.Close()
			if got := r.Trailer.Get("x-answer-trailer"); got != "u" {
				t.Errorf("trailer %q", got)
			}
			if f.after != nil {
				f.after(l)
			}
		})
	}
}
