package proxy_test

import (
	"encoding/hex"
	"flag"
	"fmt"
	"io"
	"net/http"
	"os"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	tracev1pb "go.opentelemetry.io/proto/otlp/trace/v1"
)

var updateSpans = flag.Bool("update-spans", false, "write testdata/spans.golden from what FAIRLEAD_ENVOY does")

// traceCollector is an OpenTelemetry collector for traces, by gRPC and by HTTP.
type traceCollector struct {
	mu       sync.Mutex
	spans    []*tracev1pb.Span
	resource string
	wrong    []string
}

func (c *traceCollector) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	c.mu.Lock()
	defer c.mu.Unlock()
	var d tracev1pb.TracesData
	if err := receiveOTLP(w, r, "trace", &d, func(grpc bool) bool { return grpc || r.Host == "otel.example" && r.Header.Get("X-Token") == "abc" }); err != nil {
		c.wrong = append(c.wrong, err.Error())
		return
	}
	for _, r := range d.GetResourceSpans() {
		c.resource = r.GetResource().String()
		for _, s := range r.GetScopeSpans() {
			c.spans = append(c.spans, s.GetSpans()...)
		}
	}
}

func (c *traceCollector) take() []*tracev1pb.Span {
	c.mu.Lock()
	defer c.mu.Unlock()
	out := c.spans
	c.spans = nil
	return out
}

func (c *traceCollector) count() int {
	c.mu.Lock()
	defer c.mu.Unlock()
	return len(c.spans)
}

const grpcTracer = `{name: otel, typed_config: {"@type": type.googleapis.com/envoy.config.trace.v3.OpenTelemetryConfig, service_name: svc, grpc_service: {envoy_grpc: {cluster_name: otel}, timeout: 1s}}}`

// tracedListener is a listener whose connection manager traces.
func tracedListener(name string, port int, direction, tracing string) string {
	return fmt.Sprintf(`
  - name: %s
    address: {socket_address: {address: 127.0.0.1, port_value: %d}}
    traffic_direction: %s
    filter_chains:
    - filters:
      - name: envoy.filters.network.http_connection_manager
        typed_config:
          "@type": type.googleapis.com/envoy.extensions.filters.network.http_connection_manager.v3.HttpConnectionManager
          stat_prefix: %[1]s
          normalize_path: true
          route_config:
            virtual_hosts:
            - name: all
              domains: ["*"]
              routes:
              - {match: {prefix: /plain}, route: {cluster: app}}
              - {match: {prefix: /rewrite}, route: {cluster: app, prefix_rewrite: /x}}
              - {match: {prefix: /retry}, route: {cluster: app, retry_policy: {retry_on: 5xx, num_retries: 1, retry_back_off: {base_interval: 0.001s}}}, decorator: {operation: retried}}
              - {match: {prefix: /slow}, route: {cluster: app, timeout: 0.05s}}
              - {match: {prefix: /refused}, route: {cluster: nobody}}
              - {match: {prefix: /quiet}, route: {cluster: app}, decorator: {operation: quiet, propagate: false}}
              - match: {prefix: /tags}
                route: {cluster: app}
                metadata: {filter_metadata: {ns: {a: {b: deep}, num: 7}}}
                tracing: {random_sampling: {numerator: 100}, custom_tags: [{tag: lit, literal: {value: route}}, {tag: md, metadata: {kind: {route: {}}, metadata_key: {key: ns, path: [{key: a}, {key: b}]}}}, {tag: mdn, metadata: {kind: {route: {}}, metadata_key: {key: ns, path: [{key: num}]}}}, {tag: mda, metadata: {kind: {route: {}}, metadata_key: {key: ns, path: [{key: a}]}}}, {tag: mdd, metadata: {kind: {request: {}}, metadata_key: {key: none, path: [{key: num}]}, default_value: dflt}}]}
              - {match: {prefix: /never}, route: {cluster: app}, tracing: {random_sampling: {numerator: 0}}}
              - {match: {prefix: /direct}, direct_response: {status: 503}}
              - {match: {prefix: /}, route: {cluster: app}, decorator: {operation: "op:80/*"}}
          http_filters: [{name: router, typed_config: {"@type": type.googleapis.com/envoy.extensions.filters.http.router.v3.Router}}]
          tracing: {%[4]s}
`, name, port, direction, tracing)
}

const customTags = `custom_tags: [{tag: lit, literal: {value: v}}, {tag: env, environment: {name: FAIRLEAD_NO_SUCH, default_value: d}}, {tag: noenv, environment: {name: FAIRLEAD_NO_SUCH}}, {tag: hdr, request_header: {name: X-H, default_value: none}}, {tag: nohdr, request_header: {name: x-no}},
            {tag: fmt, value: "%REQ(x-z)%"}, {tag: fmt2, value: "a %REQ(x-z)% %REQ(:METHOD)%"}, {tag: "http.method", literal: {value: replaced}}, {tag: num, literal: {value: "7"}, value_type: INT}, {tag: bad, literal: {value: x}, value_type: INT}, {tag: bool, literal: {value: "true"}, value_type: BOOL}]`

type spanCase struct {
	name, listener, path string
	header               []string
}

const parentOf = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-"

var spanCases = []spanCase{
	{"a root on an inbound listener", "in", "/plain?a=b", nil},
	{"a root on an outbound listener", "out", "/plain", nil},
	{"a span of the attempt", "spawn", "/plain", nil},
	{"a decorator names the span and the response", "in", "/", nil},
	{"a decorator that is not propagated", "in", "/quiet", nil},
	{"a decorator on an outbound listener goes upstream", "out", "/", nil},
	{"the request's decorator is stronger inbound", "in", "/", []string{"x-envoy-decorator-operation: theirs"}},
	{"the response's decorator is stronger outbound", "out", "/answer-decorator", nil},
	{"a sampled parent", "in", "/plain", []string{"traceparent: " + parentOf + "01", "tracestate: a=1", "tracestate: b=2"}},
	{"a sampled parent of an attempt", "spawn", "/plain", []string{"traceparent: " + parentOf + "01", "tracestate: a=1"}},
	{"a parent that is not sampled", "in", "/plain", []string{"traceparent: " + parentOf + "00"}},
	{"other flags of a parent", "in", "/plain", []string{"traceparent: " + parentOf + "ff"}},
	{"a parent of a later version", "in", "/plain", []string{"traceparent: 01" + parentOf[2:] + "01"}},
	{"upper case", "in", "/plain", []string{"traceparent: " + strings.ToUpper(parentOf) + "01"}},
	{"a parent that is too short", "in", "/plain", []string{"traceparent: 00-0af7651916cd43dd8448eb211c80319c-01"}},
	{"a parent with a zero trace", "in", "/plain", []string{"traceparent: 00-00000000000000000000000000000000-b7ad6b7169203331-01"}},
	{"a parent with a zero span", "in", "/plain", []string{"traceparent: 00-0af7651916cd43dd8448eb211c80319c-0000000000000000-01"}},
	{"a parent that is no hex", "in", "/plain", []string{"traceparent: 00-0af7651916cd43dd8448eb211c80319g-b7ad6b7169203331-01"}},
	{"a tracestate without parent", "in", "/plain", []string{"tracestate: a=1"}},
	{"a path that is long", "in", "/plain/" + strings.Repeat("x", 300), nil},
	{"a path that is rewritten", "in", "/rewrite/a?b=c", nil},
	{"a retry", "spawn", "/retry", nil},
	{"a retry without spans of attempts", "in", "/retry", nil},
	{"an upstream that is not there", "spawn", "/refused", nil},
	{"a direct response", "spawn", "/direct", nil},
	{"an error of upstream", "spawn", "/plain/503", nil},
	{"a client error", "spawn", "/plain/404", nil},
	{"a client error outbound", "out", "/plain/404", nil},
	{"custom tags", "tags", "/plain", []string{"x-h: h"}},
	{"custom tags of the route", "tags", "/tags", []string{"x-z: z"}},
	{"operations by format", "format", "/", []string{"x-envoy-decorator-operation: theirs"}},
	{"trace headers stay", "nopropagation", "/plain", []string{"traceparent: " + parentOf + "01"}},
	{"client trace", "never", "/plain", []string{"x-client-trace-id: c1"}},
	{"not sampled", "never", "/plain", nil},
	{"not sampled, with spans of attempts", "neverspawn", "/plain", nil},
	{"sampled by the request id", "never", "/plain", []string{"x-request-id: 125ecb25-8ed4-9a2f-8b8b-c3c1f2b4a111"}},
	{"forced by the request id", "never", "/plain", []string{"x-request-id: 125ecb25-8ed4-aa2f-8b8b-c3c1f2b4a111"}},
	{"a request id that says no", "in", "/plain", []string{"x-request-id: 125ecb25-8ed4-4a2f-8b8b-c3c1f2b4a111"}},
	{"a request id that is none", "in", "/plain", []string{"x-request-id: zzz"}},
	{"overall zero", "overall", "/plain", []string{"x-request-id: 125ecb25-8ed4-9a2f-8b8b-c3c1f2b4a111"}},
	{"a route that is never sampled", "in", "/never", nil},
	{"always on", "always", "/plain", nil},
	{"always on with a parent that is not sampled", "always", "/plain", []string{"traceparent: " + parentOf + "00"}},
	{"parent based", "parentbased", "/plain", nil},
	{"parent based with a parent that is not sampled", "parentbased", "/plain", []string{"traceparent: " + parentOf + "00"}},
	{"a user agent", "in", "/plain", []string{"user-agent: ua"}},
	{"an operation by format where the route has a name", "format", "/", nil},
	{"always on, and a sampled parent", "always", "/plain", []string{"traceparent: " + parentOf + "01"}},
	{"always on and drawn", "always100", "/plain", nil},
	{"always on and drawn, and a parent that is not sampled", "always100", "/plain", []string{"traceparent: " + parentOf + "00"}},
	{"parent based and drawn", "parentbased100", "/plain", nil},
	{"parent based and drawn, and a parent that is not sampled", "parentbased100", "/plain", []string{"traceparent: " + parentOf + "00"}},
	{"ids don't say", "noid", "/plain", nil},
	{"ids don't say, and a parent that is not sampled", "noid", "/plain", []string{"traceparent: " + parentOf + "00"}},
	{"a route timeout", "spawn", "/slow", nil},
	{"a reset before the response", "spawn", "POST /plain/abort", nil},
	{"gRPC that is not found", "spawn", "/plain/grpc5", []string{"content-type: application/grpc", "te: trailers"}},
	{"gRPC that is not authenticated", "spawn", "/plain/grpc16", []string{"content-type: application/grpc", "te: trailers"}},
	{"gRPC that fails with trailers", "spawn", "/plain/trailers13", []string{"content-type: application/grpc", "te: trailers"}},
	{"gRPC that fails", "spawn", "/plain/grpc14", []string{"content-type: application/grpc", "te: trailers", "grpc-timeout: 1S"}},
}

// seenUpstream is what the origin was asked.
type seenUpstream struct {
	mu sync.Mutex
	h  []http.Header
}

func (u *seenUpstream) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	u.mu.Lock()
	u.h = append(u.h, r.Header.Clone())
	n := len(u.h)
	u.mu.Unlock()
	switch {
	case strings.HasPrefix(r.URL.Path, "/retry") && n == 1, strings.HasSuffix(r.URL.Path, "/503"):
		w.WriteHeader(http.StatusServiceUnavailable)
	case strings.HasSuffix(r.URL.Path, "/404"):
		w.WriteHeader(http.StatusNotFound)
	case strings.Contains(r.URL.Path, "/grpc"):
		w.Header().Set("Content-Type", "application/grpc")
		w.Header().Set("Grpc-Status", r.URL.Path[len("/plain/grpc"):])
		w.Header().Set("Grpc-Message", "gone")
	case strings.HasSuffix(r.URL.Path, "/trailers13"):
		w.Header().Set("Content-Type", "application/grpc")
		w.Header().Set("Trailer", "Grpc-Status")
		_, _ = w.Write([]byte{0, 0, 0, 0, 0})
		w.Header().Set("Grpc-Status", "13")
	case strings.HasSuffix(r.URL.Path, "/abort"):
		panic(http.ErrAbortHandler)
	case strings.HasPrefix(r.URL.Path, "/slow"):
		time.Sleep(150 * time.Millisecond)
	case strings.HasSuffix(r.URL.Path, "/answer-decorator"):
		w.Header().Set("X-Envoy-Decorator-Operation", "answered")
	default:
		_, _ = io.WriteString(w, "hello")
	}
}

func (u *seenUpstream) take() []http.Header {
	u.mu.Lock()
	defer u.mu.Unlock()
	out := u.h
	u.h = nil
	return out
}

// spanLab is a proxy with a collector and an origin.
type spanLab struct {
	c     *traceCollector
	up    *seenUpstream
	ports map[string]int
	names *strings.Replacer
	doc   string
}

func newSpanLab(t *testing.T) *spanLab {
	l := &spanLab{c: &traceCollector{}, up: &seenUpstream{}, ports: map[string]int{}}
	otel, app := h2cServer(t, l.c.ServeHTTP), h2cServer(t, l.up.ServeHTTP)
	provider := "provider: " + grpcTracer
	sampler := func(s string) string {
		return "provider: " + strings.Replace(grpcTracer, "service_name: svc", "service_name: svc, sampler: {name: s, typed_config: "+s+"}", 1)
	}
	const always = `{"@type": type.googleapis.com/envoy.extensions.tracers.opentelemetry.samplers.v3.AlwaysOnSamplerConfig}`
	listeners := ""
	traced := [][3]string{
		{"in", "INBOUND", provider},
		{"out", "OUTBOUND", provider},
		{"spawn", "OUTBOUND", "spawn_upstream_span: true, " + provider},
		{"tags", "INBOUND", "spawn_upstream_span: true, " + customTags + ", " + provider},
		{"format", "INBOUND", `spawn_upstream_span: true, operation: "%REQ(:METHOD)% %REQ(x-no)%", upstream_operation: "to %UPSTREAM_CLUSTER%", ` + provider},
		{"nopropagation", "INBOUND", "spawn_upstream_span: true, no_context_propagation: true, " + provider},
		{"never", "INBOUND", "random_sampling: {value: 0}, " + provider},
		{"neverspawn", "INBOUND", "spawn_upstream_span: true, random_sampling: {value: 0}, " + provider},
		{"overall", "INBOUND", "overall_sampling: {value: 0}, " + provider},
		{"always", "INBOUND", "random_sampling: {value: 0}, " + sampler(always)},
		{"always100", "INBOUND", sampler(always)},
		{"parentbased100", "INBOUND", sampler(`{"@type": type.googleapis.com/envoy.extensions.tracers.opentelemetry.samplers.v3.ParentBasedSamplerConfig, wrapped_sampler: {name: root, typed_config: ` + always + `}}`)},
		{"noid", "INBOUND", "random_sampling: {value: 0}, " + provider + "}\n          request_id_extension: {typed_config: {\"@type\": type.googleapis.com/envoy.extensions.request_id.uuid.v3.UuidRequestIdConfig, use_request_id_for_trace_sampling: false}"},
		{"parentbased", "INBOUND", "random_sampling: {value: 0}, " + sampler(`{"@type": type.googleapis.com/envoy.extensions.tracers.opentelemetry.samplers.v3.ParentBasedSamplerConfig, wrapped_sampler: {name: root, typed_config: `+always+`}}`)},
	}
	ports := freePorts(t, len(traced)+1)
	for i, v := range traced {
		l.ports[v[0]] = ports[i]
		listeners += tracedListener(v[0], ports[i], v[1], v[2])
	}
	nobody := fmt.Sprint(ports[len(traced)])
	l.names = strings.NewReplacer("127.0.0.1:"+app, "APP", "127.0.0.1:"+nobody, "NOBODY")
	l.doc = "node: {id: n1, cluster: c1, locality: {zone: z1}}\n" +
		"layered_runtime: {layers: [{name: s, static_layer: {tracing.opentelemetry.min_flush_spans: 1}}]}\n" +
		"static_resources:\n  listeners:" + listeners + "\n  clusters:" +
		httpCluster("app", app, "http_protocol_options: {}") + httpCluster("nobody", nobody, "http_protocol_options: {}") +
		httpCluster("otel", otel, "http2_protocol_options: {}")
	return l
}

// outcome is what a request of a case led to, but for its spans.
type outcome struct {
	response string
	upstream []http.Header
}

// run makes the request of case i, which carries the case's name in a tag.
func (l *spanLab) run(t *testing.T, i int) outcome {
	t.Helper()
	c := spanCases[i]
	l.up.take()
	cl := dial(t, l.ports[c.listener])
	defer cl.Close()
	line := "GET " + c.path
	if strings.HasPrefix(c.path, "POST ") {
		line = c.path
	}
	req := fmt.Sprintf("%s HTTP/1.1\r\nhost: a.test\r\ncontent-length: 0\r\nx-envoy-downstream-service-cluster: case%d\r\n", line, i)
	for _, h := range c.header {
		req += h + "\r\n"
	}
	if _, err := io.WriteString(cl, req+"\r\n"); err != nil {
		t.Fatal(err)
	}
	resp, err := http.ReadResponse(cl.br, nil)
	if err != nil {
		t.Fatal(err)
	}
	_, _ = io.Copy(io.Discard, resp.Body)
	resp.Body.Close()
	out := fmt.Sprintf("response %d", resp.StatusCode)
	if v, ok := resp.Header["X-Envoy-Decorator-Operation"]; ok {
		out += fmt.Sprintf(" decorator %q", v)
	}
	return outcome{out, l.up.take()}
}

// runAll describes what came of all cases, of which want spans are expected,
// less than 0 if nobody knows.
func (l *spanLab) runAll(t *testing.T, want int) []string {
	t.Helper()
	outs := make([]outcome, len(spanCases))
	for i := range spanCases {
		outs[i] = l.run(t, i)
	}
	if want < 0 {
		time.Sleep(2 * time.Second)
	} else {
		eventually(t, fmt.Sprintf("%d spans arrive", want), func() bool { return l.c.count() >= want })
	}
	groups := make([][]*tracev1pb.Span, len(spanCases))
	spans := l.c.take()
	requests := map[string]int{}
	for _, s := range spans {
		for _, a := range s.GetAttributes() {
			var i int
			if _, err := fmt.Sscanf(a.GetValue().GetStringValue(), "case%d", &i); err == nil && a.GetKey() == "downstream_cluster" {
				requests[string(s.GetSpanId())] = i
				groups[i] = append(groups[i], s)
			}
		}
	}
	for _, s := range spans {
		if _, ok := requests[string(s.GetSpanId())]; ok {
			continue
		}
		i, ok := requests[string(s.GetParentSpanId())]
		if !ok {
			t.Errorf("whose is %v?", s)
			continue
		}
		groups[i] = append(groups[i], s)
	}
	var texts []string
	for i, c := range spanCases {
		texts = append(texts, "# "+c.name+"\n"+l.describe(&outs[i], groups[i]))
	}
	return texts
}

func (l *spanLab) describe(o *outcome, spans []*tracev1pb.Span) string {
	out := &strings.Builder{}
	fmt.Fprintln(out, o.response)
	slices.SortStableFunc(spans[min(1, len(spans)):], func(a, b *tracev1pb.Span) int {
		return int(int64(a.GetStartTimeUnixNano()) - int64(b.GetStartTimeUnixNano()))
	})
	names := map[string]string{"0af7651916cd43dd8448eb211c80319c": "THEIRS", "b7ad6b7169203331": "CLIENT", "": "none"}
	for i, s := range spans {
		names[hex.EncodeToString(s.GetSpanId())] = fmt.Sprintf("S%d", i)
		if id := hex.EncodeToString(s.GetTraceId()); names[id] == "" {
			names[id] = "T"
		}
	}
	name := func(id string) string {
		if n, ok := names[strings.ToLower(id)]; ok {
			return n
		}
		return "new"
	}
	for _, h := range o.upstream {
		fmt.Fprintf(out, "upstream")
		if p := strings.Split(h.Get("Traceparent"), "-"); len(p) == 4 {
			fmt.Fprintf(out, " %s-%s-%s-%s", p[0], name(p[1]), name(p[2]), p[3])
		} else {
			fmt.Fprintf(out, " %q", h.Get("Traceparent"))
		}
		if v := strings.Join(h["Tracestate"], ","); v != "" { // Envoy sends an empty one, too
			fmt.Fprintf(out, " state %q", v)
		}
		if id := h.Get("X-Request-Id"); len(id) == 36 {
			fmt.Fprintf(out, " id %c", id[14])
		}
		if v, ok := h["X-Envoy-Decorator-Operation"]; ok {
			fmt.Fprintf(out, " decorator %q", v)
		}
		out.WriteByte('\n')
	}
	for i, s := range spans {
		fmt.Fprintf(out, "span S%d %q %s trace %s parent %s state %q status %s\n", i, s.GetName(), strings.TrimPrefix(s.GetKind().String(), "SPAN_KIND_"),
			name(hex.EncodeToString(s.GetTraceId())), name(hex.EncodeToString(s.GetParentSpanId())), s.GetTraceState(), s.GetStatus().GetCode())
		var tags []string
		for _, a := range s.GetAttributes() {
			v := strings.ReplaceAll(a.GetValue().String(), ":  ", ": ")
			if u := a.GetValue().GetStringValue(); a.GetKey() == "guid:x-request-id" && len(u) == 36 {
				v = "ID"
			} else if a.GetKey() == "downstream_cluster" {
				v = "CASE"
			}
			tags = append(tags, "  "+a.GetKey()+"="+l.names.Replace(v))
		}
		slices.Sort(tags)
		out.WriteString(strings.Join(tags, "\n") + "\n")
	}
	return out.String()
}

const spansGolden = "testdata/spans.golden"

// section is what the golden file says about a case.
func section(t *testing.T, name string) string {
	t.Helper()
	b, err := os.ReadFile(spansGolden)
	if err != nil && !*updateSpans {
		t.Fatal(err)
	}
	_, rest, ok := strings.Cut(string(b), "# "+name+"\n")
	if !ok {
		return ""
	}
	s, _, _ := strings.Cut(rest, "\n# ")
	return "# " + name + "\n" + strings.TrimSuffix(s, "\n") + "\n"
}

// TestSpansAreThoseOfEnvoy compares with what Envoy 1.40 sent for the same
// requests.
func TestSpansAreThoseOfEnvoy(t *testing.T) {
	if len(spanCases) != 60 {
		t.Errorf("%d cases", len(spanCases))
	}
	l := newSpanLab(t)
	startProxy(t, l.doc, nil)
	l.check(t)
}

// TestEnvoyAgreesAboutSpans checks the golden file against the Envoy binary that
// FAIRLEAD_ENVOY names.
func TestEnvoyAgreesAboutSpans(t *testing.T) {
	l := newSpanLab(t)
	runEnvoy(t, l.doc, l.ports["in"])
	if !*updateSpans {
		l.check(t)
		return
	}
	if err := os.WriteFile(spansGolden, []byte(strings.Join(l.runAll(t, -1), "")), 0o600); err != nil {
		t.Fatal(err)
	}
}

func (l *spanLab) check(t *testing.T) {
	n := 0
	for _, c := range spanCases {
		n += strings.Count(section(t, c.name), "\nspan ")
	}
	got := l.runAll(t, n)
	for i, c := range spanCases {
		t.Run(c.name, func(t *testing.T) {
			if want := section(t, c.name); got[i] != want {
				t.Errorf("got\n%s\nwant\n%s", got[i], want)
			}
		})
	}
	if n := l.c.count(); n > 0 || len(l.c.wrong) > 0 {
		t.Errorf("%d further spans, %v", n, l.c.wrong)
	}
}
