package proxy_test

import (
	"context"
	"fmt"
	"io"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"
)

// TestNothingThatIsWrittenHoldsAFinding sends what DLP finds, in every place and
// with every action, through a process, and looks for it in all that comes out
// of that: the process's log with its events, access logs to files and to a
// collector, spans, metrics and the admin interface.
func TestNothingThatIsWrittenHoldsAFinding(t *testing.T) {
	spans, logs := &traceCollector{}, &logCollector{}
	otel := h2cServer(t, func(w http.ResponseWriter, r *http.Request) {
		if strings.Contains(r.URL.Path, "LogsService") {
			logs.ServeHTTP(w, r)
			return
		}
		spans.ServeHTTP(w, r)
	})
	arrived := make(chan string, 1000)
	app := h2cServer(t, func(w http.ResponseWriter, r *http.Request) {
		b, err := io.ReadAll(r.Body)
		arrived <- fmt.Sprint(r.URL, r.Header, string(b), err)
		w.Header().Set("X-Answer", "for jane.doe@example.com")
		w.Header().Set("Trailer", "X-Trailer")
		_, _ = io.WriteString(w, "card 4111 1111 1111 1111")
		w.Header().Set("X-Trailer", "jane.doe@example.com")
	})
	// Parts of what is sent, none of which is part of anything else.
	pieces := []string{"4111111", "4111 1111", "4111+1111", "4111%20", "%3411", "%253411", "jane.doe", "jane%2e", "IOSFODNN7"}

	file := filepath.Join(t.TempDir(), "access.log")
	admin := freePort(t)
	doc, ports := findingsYAML(t, file, app, otel)
	_, log := launch(t, withAdmin(doc, admin))
	eventually(t, "it is ready", func() bool {
		status, _ := fetch(t, fmt.Sprintf("http://127.0.0.1:%d/ready", admin))
		return status == 200
	})

	requests := []struct{ path, header, value, body string }{
		{"/old/4111111111111111/x?q=1", "X-H", "plain", ""},
		{"/old/x?q=4111111111111111", "Cookie", "a=b; c=jane.doe@example.com", "4111 1111 1111 1111"},
		{"/old/x?q=4111+1111+1111+1111&r=AKIAIOSFODNN7EXAMPLE", "X-H", "a AKIAIOSFODNN7EXAMPLE b", "AKIAIOSFODNN7EXAMPLE"},
		{"/old/x?q=%34111111111111111", "Referer", "http://h/?c=4111111111111111&m=jane.doe@example.com", ""},
		{"/old/x?q=%253411111111111111%2531", "X-H", "4111-1111-1111-1111", ""},
		{"/old/x?q=1", "X-H", "jane.doe@example.com, 4111111111111111", strings.Repeat("clean text, ", 9000) + "4111111111111111"},
		{"/old/x?q=1", "X-H", "plain", "write to jane.doe@example.com"},
	}
	tr := &http.Transport{DisableKeepAlives: true}
	defer tr.CloseIdleConnections()
	client := &http.Client{Transport: tr, Timeout: 20 * time.Second}
	n, reached := 0, 0
	for name, port := range ports {
		for _, r := range requests {
			req, err := http.NewRequestWithContext(context.Background(), http.MethodPost, fmt.Sprintf("http://127.0.0.1:%d%s", port, r.path), strings.NewReader(r.body))
			if err != nil {
				t.Fatal(err)
			}
			req.Header.Set(r.header, r.value)
			req.Header.Set("X-Case", name)
			if resp, err := client.Do(req); err == nil {
				_, _ = io.Copy(io.Discard, resp.Body)
				resp.Body.Close()
			}
			n++
		}
	}
	// A request that was stopped late arrives late, if at all.
	eventually(t, "upstream is done", func() bool { return len(arrived) >= 7*len(requests) })
	for len(arrived) > 0 {
		got := <-arrived
		reached++
		for _, name := range []string{"report", "counting", "dry", "answers", "route"} {
			if strings.Contains(got, "X-Case:["+name+"]") && containsAny(got, pieces) == "" {
				t.Errorf("%s: upstream didn't get what was sent: %.1000s", name, got)
			}
		}
	}
	if n != len(ports)*len(requests) || reached < 5*len(requests) {
		t.Errorf("%d requests, %d reached upstream", n, reached)
	}
	lines := func() int {
		b, _ := os.ReadFile(file)
		return strings.Count(string(b), "\n")
	}
	eventually(t, "all access logs are written", func() bool { return lines() >= n })
	eventually(t, "all records arrive", func() bool { return len(logs.texts()) >= n })
	eventually(t, "all spans arrive", func() bool { return spans.count() >= n+reached })

	written, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	outputs := map[string]string{"the process's log": log.String(), "the access log": string(written), "OpenTelemetry logs": strings.Join(logs.texts(), "\n")}
	var traces strings.Builder
	for _, s := range spans.take() {
		fmt.Fprintln(&traces, s)
	}
	outputs["spans"] = traces.String()
	for _, path := range []string{"/stats/prometheus", "/stats", "/config_dump", "/clusters", "/listeners?format=json", "/debug/unsupported", "/server_info"} {
		_, outputs[path] = fetch(t, fmt.Sprintf("http://127.0.0.1:%d%s", admin, path))
	}
	holdNone(t, outputs, pieces)
	// And what must be there.
	for what, part := range map[string]string{
		"the process's log": `CREDIT_CARD_NUMBER`, "the access log": "/old/****************/x?q=1", "spans": "/old/****************/x?q=1",
		"/stats/prometheus": `fairlead_dlp_findings_total{policy="dlp",type="CREDIT_CARD_NUMBER",place="request_query",action="block"}`,
	} {
		if !strings.Contains(outputs[what], part) {
			t.Errorf("%s: no %s in\n%.2000s", what, part, outputs[what])
		}
	}
}

// findingsYAML is a bootstrap of listeners that do what can be done about findings,
// and write all that they can to file and to otel.
func findingsYAML(t *testing.T, file, app, otel string) (text string, ports map[string]int) {
	t.Helper()
	const everything = `"%REQ(:PATH)% %REQ(X-ENVOY-ORIGINAL-PATH?:PATH)% %PATH(WQ:ORIG_OR_PATH)% %PATH(NQ)% %QUERY_PARAM(q)% %REQ(X-H)% %REQ(X-H):12% %REQ(COOKIE)% %REQ(REFERER)% %RESP(X-ANSWER)% %TRAILER(X-TRAILER)% %REQ_WITHOUT_QUERY(:PATH)% %RESPONSE_CODE% %RESPONSE_CODE_DETAILS% %DYNAMIC_METADATA(fairlead.dlp)% %DYNAMIC_METADATA(envoy.filters.http.ext_authz)% %CEL(request.headers['x-h'])% %CEL(request.path)%\n"`
	cases := map[string]string{
		"report":   `rules: [{name: r, info_types: [CREDIT_CARD_NUMBER, EMAIL_ADDRESS, AWS_CREDENTIALS], action: REPORT}]`,
		"counting": `rules: [{name: r, info_types: [CREDIT_CARD_NUMBER, EMAIL_ADDRESS, AWS_CREDENTIALS], action: BLOCK, min_count: 1000}]`,
		"dry":      `dry_run: true, rules: [{name: r, info_types: [CREDIT_CARD_NUMBER, EMAIL_ADDRESS, AWS_CREDENTIALS], action: BLOCK}]`,
		"mask":     `rules: [{name: r, info_types: [CREDIT_CARD_NUMBER, EMAIL_ADDRESS, AWS_CREDENTIALS], action: MASK}]`,
		"replace":  `rules: [{name: r, info_types: [CREDIT_CARD_NUMBER, EMAIL_ADDRESS, AWS_CREDENTIALS], action: REPLACE}]`,
		"tokenize": `hash_key: 0123456789abcdef, rules: [{name: r, info_types: [CREDIT_CARD_NUMBER, EMAIL_ADDRESS, AWS_CREDENTIALS], action: TOKENIZE}]`,
		"block":    `rules: [{name: r, info_types: [CREDIT_CARD_NUMBER, EMAIL_ADDRESS, AWS_CREDENTIALS], action: BLOCK}]`,
		"answers":  `rules: [{name: r, info_types: [CREDIT_CARD_NUMBER, EMAIL_ADDRESS, AWS_CREDENTIALS], action: BLOCK, direction: RESPONSE, places: [HEADERS]}, {name: s, info_types: [CREDIT_CARD_NUMBER, EMAIL_ADDRESS, AWS_CREDENTIALS], action: REPORT}]`,
		"route":    `rules: [{name: r, info_types: [CREDIT_CARD_NUMBER, EMAIL_ADDRESS, AWS_CREDENTIALS], action: ROUTE, direction: REQUEST, add_header: {name: x-found, value: "1"}}, {name: s, info_types: [CREDIT_CARD_NUMBER, EMAIL_ADDRESS, AWS_CREDENTIALS], action: REPORT, direction: RESPONSE}]`,
	}
	var doc strings.Builder
	doc.WriteString("node: {id: a, cluster: a}\nstatic_resources:\n  listeners:")
	ports = map[string]int{}
	for name, conf := range cases {
		ports[name] = freePort(t)
		filter := fmt.Sprintf(`{name: dlp, typed_config: {"@type": type.googleapis.com/fairlead.dlp.v1.Config, %s}}, `, conf)
		l := hcmListener(name, ports[name], "app", fmt.Sprintf(`access_log:
          - {name: file, typed_config: {"@type": type.googleapis.com/envoy.extensions.access_loggers.file.v3.FileAccessLog, path: %q, log_format: {text_format_source: {inline_string: %s}}}}
          - {name: otel, typed_config: {%s, %s, body: {string_value: %s}}}
          tracing: {provider: %s, spawn_upstream_span: true, custom_tags: [{tag: hdr, request_header: {name: X-H}}, {tag: fmt, value: "%%REQ(:PATH)%% %%REQ(COOKIE)%%"}], operation: "op %%REQ(:PATH)%%"}`, file, everything, otlpLogType, otlpGRPC, everything, grpcTracer))
		l = strings.Replace(l, "http_filters: [", "http_filters: ["+filter, 1)
		// "x-found" takes the other route; the one of the body is rewritten.
		l = strings.Replace(l, "routes: [", "routes: [{match: {prefix: /, headers: [{name: x-found, present_match: true}]}, route: {cluster: app, prefix_rewrite: /other/}}, {match: {prefix: /old}, route: {cluster: app, prefix_rewrite: /new}}, ", 1)
		doc.WriteString(l)
	}
	doc.WriteString("\n  clusters:" + httpCluster("app", app, "http_protocol_options: {}") + httpCluster("otel", otel, "http2_protocol_options: {}"))
	return doc.String(), ports
}

// holdNone fails if a line of an output holds one of the pieces.
func holdNone(t *testing.T, outputs map[string]string, pieces []string) {
	t.Helper()
	for what, text := range outputs {
		if text == "" {
			t.Errorf("%s: nothing", what)
		}
		for line := range strings.Lines(text) {
			if p := containsAny(line, pieces); p != "" {
				t.Errorf("%s: %q in %s", what, p, line)
			}
		}
	}
}

// containsAny is the first of pieces that s holds, or "".
func containsAny(s string, pieces []string) string {
	for _, p := range pieces {
		if strings.Contains(s, p) {
			return p
		}
	}
	return ""
}
