package proxy_test

import (
	"fmt"
	"net/http"
	"net/http/httptest"
	"strings"
	"sync"
	"testing"

	logsv1pb "go.opentelemetry.io/proto/otlp/logs/v1"
)

// collector is an OpenTelemetry collector for logs, by gRPC and by HTTP.
type collector struct {
	mu      sync.Mutex
	records []*logsv1pb.LogRecord
	wrong   []string
}

func (c *collector) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	c.mu.Lock()
	defer c.mu.Unlock()
	var d logsv1pb.LogsData
	if err := receiveOTLP(w, r, "logs", &d, func(grpc bool) bool { return true }); err != nil {
		c.wrong = append(c.wrong, err.Error())
		return
	}
	for _, r := range d.GetResourceLogs() {
		for _, s := range r.GetScopeLogs() {
			c.records = append(c.records, s.GetLogRecords()...)
		}
	}
}

func (c *collector) seen() (records int, wrong []string) {
	c.mu.Lock()
	defer c.mu.Unlock()
	return len(c.records), c.wrong
}

// TestDecisionsReachACollectorThroughACluster: over the wire, in both protocols.
func TestDecisionsReachACollectorThroughACluster(t *testing.T) {
	for _, protocol := range []string{"GRPC", "HTTP"} {
		t.Run(protocol, func(t *testing.T) {
			c := &collector{}
			srv := httptest.NewUnstartedServer(c)
			srv.Config.Protocols = new(http.Protocols)
			srv.Config.Protocols.SetHTTP1(true)
			srv.Config.Protocols.SetUnencryptedHTTP2(true)
			srv.Start()
			defer srv.Close()
			port, admin := freePort(t), freePort(t)
			filter := fmt.Sprintf(`{name: authz, typed_config: {"@type": type.googleapis.com/fairlead.rego.v1.Config, timeout: 10s, policy: {sources: [{inline_string: "package envoy.authz\ndefault allow := false"}]},
                decision_log: {otlp: {cluster: otel, protocol: %s, flush_interval: 0.05s}}}}, `, protocol)
			startProxy(t, withAdmin("node: {id: a, cluster: a}\nstatic_resources:\n  listeners:"+
				strings.Replace(hcmListener("main", port, "app", ""), "http_filters: [", "http_filters: ["+filter, 1)+
				"\n  clusters:"+httpCluster("app", "1", "http_protocol_options: {}")+httpCluster("otel", urlPort(srv.URL), "http_protocol_options: {}"), admin), nil)
			cl := dial(t, port)
			defer cl.Close()
			const n = 25
			for range n {
				if status, body := cl.get("/x"); status != 403 {
					t.Fatal(status, body)
				}
			}
			eventually(t, "all decisions arrive", func() bool { got, wrong := c.seen(); return got == n || len(wrong) > 0 })
			if _, wrong := c.seen(); len(wrong) > 0 {
				t.Fatal(wrong)
			}
			if r := c.records[0]; r.GetEventName() != "fairlead.policy.decision" || !strings.Contains(r.String(), "denied") {
				t.Errorf("record %v", r)
			}
			eventually(t, "they are counted", func() bool {
				return metric(t, admin, `fairlead_policy_log_exported_total{cluster="otel",result="sent"}`) == fmt.Sprint(n)
			})
		})
	}
}

// TestSecretsOfPoliciesAreHidden: neither form of the configuration shows what
// it takes to download, to sign or to export.
func TestSecretsOfPoliciesAreHidden(t *testing.T) {
	const fields = `policy: {bundles: [{http: {cluster: app, path: /b, credentials: {token: SECRET1}}, verification: {keys: [{id: a, algorithm: HS256, secret: SECRET2}]}}]},
                decision_log: {otlp: {cluster: app, credentials: {token: SECRET3}}}`
	for name, filter := range map[string]string{
		"protobuf":    `{name: authz, typed_config: {"@type": type.googleapis.com/fairlead.rego.v1.Config, ` + fields + `}}, `,
		"TypedStruct": `{name: authz, typed_config: {"@type": type.googleapis.com/udpa.type.v1.TypedStruct, type_url: type.googleapis.com/fairlead.rego.v1.Config, value: {` + fields + `}}}, `,
	} {
		t.Run(name, func(t *testing.T) {
			port, admin := freePort(t), freePort(t)
			startProxy(t, withAdmin("node: {id: a, cluster: a}\nstatic_resources:\n  listeners:"+
				strings.Replace(hcmListener("main", port, "app", ""), "http_filters: [", "http_filters: ["+filter, 1)+
				"\n  clusters:"+httpCluster("app", "1", "http_protocol_options: {}"), admin), nil)
			if status, _ := request(t, port, "/"); status != 403 {
				t.Errorf("without a bundle: %d", status)
			}
			for _, path := range []string{"/config_dump", "/stats/prometheus", "/debug/unsupported", "/listeners?format=json"} {
				status, body := fetch(t, fmt.Sprintf("http://127.0.0.1:%d%s", admin, path))
				if strings.Contains(body, "SECRET") {
					t.Errorf("%s (%d) tells a secret", path, status)
				}
				if path == "/config_dump" && !strings.Contains(body, "fairlead.rego") {
					t.Error("the filter is not in the dump")
				}
			}
		})
	}
}
