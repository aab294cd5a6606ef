package proxy_test

import (
	"context"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"

	commonv1pb "go.opentelemetry.io/proto/otlp/common/v1"
	logsv1pb "go.opentelemetry.io/proto/otlp/logs/v1"
)

// logCollector keeps a text of each record with its resource.
type logCollector struct {
	mu      sync.Mutex
	records []string
	wrong   []string
}

func (c *logCollector) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	c.mu.Lock()
	defer c.mu.Unlock()
	var d logsv1pb.LogsData
	if err := receiveOTLP(w, r, "logs", &d, func(grpc bool) bool {
		if grpc {
			return r.Host == "otel.example" && r.Header.Get("X-Meta") == "m"
		}
		return r.Host == "otel.example:4318" && r.Header.Get("X-Token") == "abc"
	}); err != nil {
		c.wrong = append(c.wrong, err.Error())
		return
	}
	for _, rl := range d.GetResourceLogs() {
		for _, s := range rl.GetScopeLogs() {
			for _, rec := range s.GetLogRecords() {
				c.records = append(c.records, logText(rl, rec))
			}
		}
	}
}

func kvText(kvs []*commonv1pb.KeyValue) string {
	var out []string
	for _, kv := range kvs {
		out = append(out, fmt.Sprintf("%s=%s", kv.GetKey(), strings.Join(strings.Fields(kv.GetValue().String()), " ")))
	}
	slices.Sort(out)
	return "\n  " + strings.Join(out, "\n  ")
}

func logText(rl *logsv1pb.ResourceLogs, r *logsv1pb.LogRecord) string {
	return fmt.Sprintf("record time %t observed %t severity %d trace %d span %d\nbody %s\nattributes%s\nresource%s\n",
		r.GetTimeUnixNano() > 0, r.GetObservedTimeUnixNano() > 0, r.GetSeverityNumber(), len(r.GetTraceId()), len(r.GetSpanId()),
		strings.Join(strings.Fields(r.GetBody().String()), " "), kvText(r.GetAttributes()), kvText(rl.GetResource().GetAttributes()))
}

func (c *logCollector) texts() []string {
	c.mu.Lock()
	defer c.mu.Unlock()
	out := slices.Clone(c.records)
	slices.Sort(out)
	return out
}

const (
	otlpLogType = `"@type": type.googleapis.com/envoy.extensions.access_loggers.open_telemetry.v3.OpenTelemetryAccessLogConfig`
	otlpGRPC    = `grpc_service: {envoy_grpc: {cluster_name: otel, authority: otel.example}, initial_metadata: [{key: x-meta, value: m}]}`
	otlpTCP     = `{name: otel, typed_config: {` + otlpLogType + `, common_config: {log_name: tcp_log, ` + otlpGRPC + `, transport_api_version: V3}, body: {string_value: "tcp %BYTES_RECEIVED% %BYTES_SENT%"}}}`
)

// otlpLogs are the access loggers of three HTTP listeners.
var otlpLogs = map[string]string{
	// As istiod writes them.
	"common": `[{name: otel, filter: {status_code_filter: {comparison: {op: GE, value: {default_value: 200, runtime_key: k}}}}, typed_config: {` + otlpLogType + `, common_config: {log_name: the_log, ` + otlpGRPC + `, transport_api_version: V3, filter_state_objects_to_log: [fs.key, fs.none], custom_tags: [{tag: common, literal: {value: v}}]}, disable_builtin_labels: true,
            body: {string_value: "%REQ(:METHOD)% %REQ(x-no)% %RESPONSE_CODE%"}, attributes: {values: [{key: method, value: {string_value: "%REQ(:METHOD)%"}}, {key: none, value: {string_value: "%REQ(x-no)%"}}, {key: code, value: {string_value: "%RESPONSE_CODE%"}}]}}},
            {name: never, filter: {status_code_filter: {comparison: {op: GE, value: {default_value: 500, runtime_key: k}}}}, typed_config: {` + otlpLogType + `, common_config: {log_name: other, ` + otlpGRPC + `}, body: {string_value: never}}}]`,
	"grpc": `[{name: otel, typed_config: {` + otlpLogType + `, ` + otlpGRPC + `, log_name: named, filter_state_objects_to_log: [fs.key, fs.none], resource_attributes: {values: [{key: region, value: {string_value: r1}}, {key: node_name, value: {string_value: mine}}]},
            body: {kvlist_value: {values: [{key: path, value: {string_value: "%REQ(:PATH)%"}}, {key: list, value: {array_value: {values: [{string_value: "%PROTOCOL%"}, {string_value: lit}]}}}]}},
            custom_tags: [{tag: lit, literal: {value: v}}, {tag: hdr, request_header: {name: x-h}}]}}]`,
	"http": `[{name: otel, typed_config: {` + otlpLogType + `, http_service: {http_uri: {uri: "http://otel.example:4318/v1/logs", cluster: otelhttp, timeout: 1s}, request_headers_to_add: [{header: {key: x-token, value: abc}}]},
            resource_detectors: [{name: static, typed_config: {"@type": type.googleapis.com/envoy.extensions.tracers.opentelemetry.resource_detectors.v3.StaticConfigResourceDetectorConfig, attributes: {found: here}}}]}}]`,
}

// logLab is a bootstrap with those logs, and requests.
type logLab struct {
	c     *logCollector
	ports map[string]int
	doc   string
}

func newLogLab(t *testing.T) *logLab {
	l := &logLab{c: &logCollector{}, ports: map[string]int{"tcp": freePort(t), "traced": freePort(t)}}
	otel := h2cServer(t, l.c.ServeHTTP)
	traces := h2cServer(t, (&traceCollector{}).ServeHTTP)
	app := h2cServer(t, func(w http.ResponseWriter, _ *http.Request) { _, _ = io.WriteString(w, "hello") })
	var doc strings.Builder
	fmt.Fprintf(&doc, "node: {id: n1, cluster: c1, locality: {zone: z1}}\nstatic_resources:\n  listeners:")
	setState := `{name: fs, typed_config: {"@type": type.googleapis.com/envoy.extensions.filters.http.set_filter_state.v3.Config, on_request_headers: [{object_key: fs.key, factory_key: envoy.string, format_string: {text_format_source: {inline_string: "value"}}}]}}, `
	for name, logs := range otlpLogs {
		l.ports[name] = freePort(t)
		doc.WriteString(strings.Replace(hcmListener(name, l.ports[name], "app", "access_log: "+logs), "http_filters: [", "http_filters: ["+setState, 1))
	}
	doc.WriteString(hcmListener("traced", l.ports["traced"], "app", "tracing: {provider: "+grpcTracer+"}\n          access_log: [{name: otel, typed_config: {"+otlpLogType+", "+otlpGRPC+", body: {string_value: traced}}}]"))
	fmt.Fprintf(&doc, `
  - name: tcp
    address: {socket_address: {address: 127.0.0.1, port_value: %d}}
    access_log: [%s]
    filter_chains:
    - filters:
      - name: tcp
        typed_config: {"@type": type.googleapis.com/envoy.extensions.filters.network.tcp_proxy.v3.TcpProxy, stat_prefix: tcp, cluster: app, access_log: [%s]}
`, l.ports["tcp"], strings.Replace(strings.Replace(otlpTCP, "tcp %B", "listener %B", 1), "tcp_log", "listener_log", 1), otlpTCP)
	doc.WriteString("\n  clusters:" + httpCluster("app", app, "http_protocol_options: {}") + httpCluster("otel", otel, "http2_protocol_options: {}") +
		httpCluster("otelhttp", otel, "http_protocol_options: {}") + httpCluster("spans", traces, "http2_protocol_options: {}"))
	l.doc = strings.ReplaceAll(doc.String(), "service_name: svc, grpc_service: {envoy_grpc: {cluster_name: otel}", "service_name: svc, grpc_service: {envoy_grpc: {cluster_name: spans}")
	return l
}

// run makes the requests and returns the texts of want records.
func (l *logLab) run(t *testing.T, want int) []string {
	t.Helper()
	for _, name := range []string{"common", "grpc", "http", "traced", "tcp"} {
		cl := dial(t, l.ports[name])
		if _, err := fmt.Fprintf(cl, "GET /x HTTP/1.1\r\nhost: a\r\nconnection: close\r\nx-h: h\r\n\r\n"); err != nil {
			t.Fatal(err)
		}
		_, _ = io.Copy(io.Discard, cl)
		cl.Close()
	}
	eventually(t, fmt.Sprintf("%d records arrive", want), func() bool { return len(l.c.texts()) >= want || len(l.c.wrong) > 0 })
	if len(l.c.wrong) > 0 {
		t.Fatal(l.c.wrong)
	}
	return l.c.texts()
}

const (
	logsGolden  = "testdata/otlplogs.golden"
	logsRecords = 6
)

func (l *logLab) check(t *testing.T) {
	got := strings.Join(l.run(t, logsRecords), "")
	want, err := os.ReadFile(logsGolden)
	if err != nil {
		t.Fatal(err)
	}
	if got != string(want) {
		t.Errorf("got\n%s\nwant\n%s", got, want)
	}
}

// TestOTLPAccessLogsAreThoseOfEnvoy compares with what Envoy 1.40 sent for the
// same requests, of HTTP, of TCP and of a listener.
func TestOTLPAccessLogsAreThoseOfEnvoy(t *testing.T) {
	l := newLogLab(t)
	startProxy(t, l.doc, nil)
	l.check(t)
}

// TestEnvoyAgreesAboutOTLPAccessLogs checks the golden file against the Envoy
// binary that FAIRLEAD_ENVOY names.
func TestEnvoyAgreesAboutOTLPAccessLogs(t *testing.T) {
	l := newLogLab(t)
	runEnvoy(t, l.doc, l.ports["grpc"])
	if !*updateSpans {
		l.check(t)
		return
	}
	if err := os.WriteFile(logsGolden, []byte(strings.Join(l.run(t, logsRecords), "")), 0o600); err != nil {
		t.Fatal(err)
	}
}

// runEnvoy runs the Envoy binary that FAIRLEAD_ENVOY names until the test ends.
func runEnvoy(t *testing.T, doc string, port int) {
	t.Helper()
	bin := os.Getenv("FAIRLEAD_ENVOY")
	if bin == "" {
		t.Skip("FAIRLEAD_ENVOY is not set")
	}
	file := filepath.Join(t.TempDir(), "envoy.yaml")
	if err := os.WriteFile(file, []byte(doc), 0o600); err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	cmd := exec.CommandContext(ctx, bin, "--use-dynamic-base-id", "-l", "warn", "--concurrency", "1", "-c", file)
	cmd.Stderr = os.Stderr
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { cancel(); _ = cmd.Wait() })
	eventually(t, "Envoy listens", func() bool {
		c, err := (&net.Dialer{}).DialContext(ctx, "tcp", fmt.Sprintf("127.0.0.1:%d", port))
		if err == nil {
			c.Close()
		}
		return err == nil
	})
}
