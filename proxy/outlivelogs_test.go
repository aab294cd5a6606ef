package proxy_test

import (
	"fmt"
	"strings"
	"testing"

	"github.com/fairlead-mesh/fairlead/xdsclient/xdsresource"
)

// logTo puts access logs called name in force: of the listener, or of its connection
// manager.
func (l *outlivedLab) logTo(name string, ofManager bool) {
	l.t.Helper()
	log := fmt.Sprintf(`access_log: [{name: otel, typed_config: {%s, common_config: {log_name: %s, grpc_service: {envoy_grpc: {cluster_name: otel}}, transport_api_version: V3}, body: {string_value: "record of %[2]s"}}}]`, otlpLogType, name)
	of, manager := log+",", ""
	if ofManager {
		of, manager = "", log+","
	}
	l.res.Listeners["l"] = decodeWith[*xdsresource.Listener](l.t, l.dec, xdsresource.ListenerType, fmt.Sprintf(`{name: l, %s address: {socket_address: {address: 127.0.0.1, port_value: %d}}, filter_chains: [%s]}`, of, l.port,
		chainYAML("c", "{}", "", manager+`upgrade_configs: [{upgrade_type: websocket}], route_config: {name: r, virtual_hosts: [{name: v, domains: ["*"], routes: [{match: {prefix: /ws}, route: {cluster: app, timeout: 0s}}, {match: {prefix: /none}, direct_response: {status: 204}}]}]}`)))
	l.mustApply()
}

func (l *outlivedLab) recorded(name string) bool {
	l.decisions.mu.Lock()
	defer l.decisions.mu.Unlock()
	for _, r := range l.decisions.records {
		if strings.Contains(r.String(), "record of "+name) {
			return true
		}
	}
	return false
}

// A record goes to the collector that was configured when its connection began.
func TestReplacedAccessLogsTakeTheRecordsOfTheirConnections(t *testing.T) {
	for name, ofManager := range map[string]bool{"of a listener, whose connections stay": false, "of a connection manager, whose connections are cut": true} {
		t.Run(name, func(t *testing.T) {
			l := newOutlivedLab(t)
			l.logTo("former", ofManager)
			c := l.over1("GET /ws HTTP/1.1\r\nhost: a\r\nconnection: upgrade\r\nupgrade: websocket\r\n\r\n", "101")
			st := l.bytes(c, c.br, func() { _ = c.Close() })
			st.more()
			l.logTo("next", ofManager)
			if status, body := request(t, l.port, "/none"); status != 204 {
				t.Fatal(status, body)
			}
			eventually(t, "the next log is in force", func() bool { return l.recorded("next") })
			l.ReleaseNow() // as if the drain time were over
			if !ofManager {
				st.more()
			}
			st.end()
			eventually(t, "the record of the former", func() bool { return l.recorded("former") })
		})
	}
}
