package istio

import (
	"net/http"
	"strings"
	"testing"
	"time"
)

// event waits for the line of the waypoint's log with all the words.
func (s *scenario) event(t *testing.T, words ...string) {
	t.Helper()
	for end := time.Now().Add(20 * time.Second); time.Now().Before(end); time.Sleep(5 * time.Millisecond) {
	lines:
		for line := range strings.Lines(s.waypoint.output()) {
			for _, w := range words {
				if !strings.Contains(line, w) {
					continue lines
				}
			}
			return
		}
	}
	t.Errorf("no line of the log holds %q", words)
}

// metrics are those of the waypoint.
func (*scenario) metrics(t *testing.T) string {
	t.Helper()
	return fetch(t, "http://127.0.0.1:15020/stats/prometheus")
}

// Pods run with --proxyLogLevel=warning unless their owner says otherwise. What
// was refused, and what DLP found, is told all the same, with both ends.
func TestEventsAtTheLevelsOfIstiosTemplate(t *testing.T) {
	s := begin(t, "plugin")
	const shop = "source.identity=spiffe://cluster.local/ns/client/sa/shop source.namespace=client source.service_account=shop"
	const stranger = "source.identity=spiffe://cluster.local/ns/client/sa/stranger source.namespace=client source.service_account=stranger"
	const to = "destination.address=10.96.0.11:80"
	const service = " destination.proxy_identity=spiffe://cluster.local/ns/app/sa/waypoint destination.namespace=app destination.service=web"
	const trace = "4bf92f3577b34da6a3ce929d0e0e4736"
	const traceparent = "traceparent: 00-" + trace + "-00f067aa0ba902b7-01"
	post := func(c *client, path, body string, headers ...string) {
		t.Helper()
		if _, err := c.send(http.MethodPost, web+path, body, append(headers, traceparent, "content-type: application/json")...); err != nil {
			t.Fatal(err)
		}
	}
	post(s.stranger, "/rego", `{"amount": 101}`)
	s.event(t, `msg="request denied"`, "filter=rego policy=web", "rule=data.envoy.authz.allow reason=denied", stranger, to, service, "path=/rego", "trace_id="+trace)
	post(s.shop, "/closed", `{"amount": 1}`)
	s.event(t, `msg="request denied"`, "filter=rbac", "reason=no_policy_matched", `clause="nearest ns[app]-policy[steps]-rule[0] misses`, shop, to, service, "path=/closed", "trace_id="+trace)
	post(s.shop, "/key", `{"amount": 1, "key": "`+key+`"}`)
	s.event(t, `msg="request denied"`, "filter=dlp", "rule=keys", shop, to, service, "path=/key", "trace_id="+trace)
	s.event(t, `msg="dlp findings"`, "outcome=blocked", "type:AWS_CREDENTIALS", shop, to, service, "trace_id="+trace)
	post(s.shop, "/card", `{"amount": 1, "card": "`+card+`"}`)
	s.event(t, `msg="dlp findings"`, "outcome=changed", "type:CREDIT_CARD_NUMBER", shop, to, service, "trace_id="+trace)
	s.exchange(t, exchange{as: s.shop, method: "GET", url: web + "/answer", answer: "card " + card, header: traceparent, status: 200, body: "card " + masked})
	s.event(t, `msg="dlp findings"`, "direction=response", shop, to, "destination.identity=spiffe://cluster.local/ns/app/sa/web", "destination.workload=web-", "trace_id="+trace)
	if log := s.waypoint.output(); strings.Contains(log, key) || strings.Contains(log, card) {
		t.Error("the log holds what was found")
	}
	metrics := s.metrics(t)
	for _, c := range []string{
		`fairlead_policy_denials_total{filter="rego",policy="web",reason="denied"} 1`,
		`fairlead_dlp_findings_total{policy="extensions.istio.io/trafficextension/app.dlp",type="AWS_CREDENTIALS",place="request_body",action="block"} 1`,
	} {
		if !strings.Contains(metrics, c) {
			t.Errorf("no metric %s", c)
		}
	}
}
