package proxy_test

import (
	"fmt"
	"os"
	"path/filepath"
	"runtime"
	"strings"
	"testing"

	"github.com/fairlead-mesh/fairlead/xdsclient/xdsresource"
)

// Connections of a listener that serves, of a chain that was replaced and of a
// listener that was removed are cut at the end, and have their line.
func TestConnectionsThatAreCutAtTheEndAreLogged(t *testing.T) {
	w := newWorld(t)
	silent := silentServer(t)
	w.res.Clusters["silent"] = decode[*xdsresource.Cluster](t, xdsresource.ClusterType, fmt.Sprintf(`{name: silent, type: STATIC, load_assignment: {cluster_name: silent, endpoints: [{lb_endpoints: [{endpoint: {address: {socket_address: {address: 127.0.0.1, port_value: %d}}}}]}]}}`, silent))
	log := filepath.Join(t.TempDir(), "log")
	set := func(name string, port int, prefix string) {
		v := decode[*xdsresource.Listener](t, xdsresource.ListenerType, fmt.Sprintf(`{name: %s, address: {socket_address: {address: 127.0.0.1, port_value: %d}}, filter_chains: [{name: c, filters: [{name: tcp, typed_config: {
"@type": type.googleapis.com/envoy.extensions.filters.network.tcp_proxy.v3.TcpProxy, stat_prefix: %s, cluster: silent, access_log: [{name: f, typed_config: {"@type": type.googleapis.com/envoy.extensions.access_loggers.file.v3.FileAccessLog,
path: %s, log_format: {text_format_source: {inline_string: "%s ended\n"}}}}]}}]}]}`, name, port, prefix, log, prefix))
		w.res.Listeners[name] = v
	}
	ports := freePorts(t, 3)
	names := []string{"serving", "replaced", "removed"}
	for i, n := range names {
		set(n, ports[i], n)
	}
	w.mustApply()
	for i := range names {
		c := dial(t, ports[i])
		defer c.Close()
		if _, err := c.Write([]byte("x")); err != nil {
			t.Fatal(err)
		}
	}
	within(t, "three connections", func() bool { return w.Active() == 3 })
	set("replaced", ports[1], "other")
	delete(w.res.Listeners, "removed")
	w.mustApply()
	w.Close()
	b, err := os.ReadFile(log)
	if err != nil {
		t.Fatal(err)
	}
	for _, n := range names {
		if strings.Count(string(b), n+" ended\n") != 1 {
			t.Errorf("the line of the connection of %s is there %d times:\n%s", n, strings.Count(string(b), n+" ended\n"), b)
		}
	}
}

// Exporters end with the last part of the configuration that uses them.
func TestExportersOfReplacedLogsEnd(t *testing.T) {
	w := newWorld(t)
	const cluster = `{name: otel, type: STATIC, load_assignment: {cluster_name: otel, endpoints: [{lb_endpoints: [{endpoint: {address: {socket_address: {address: 127.0.0.1, port_value: 9}}}}]}]}}`
	w.res.Clusters["otel"] = decode[*xdsresource.Cluster](t, xdsresource.ClusterType, cluster)
	port := freePort(t)
	set := func(logs string) {
		v := decode[*xdsresource.Listener](t, xdsresource.ListenerType, fmt.Sprintf(`{name: l, address: {socket_address: {address: 127.0.0.1, port_value: %d}}, %s filter_chains: [{name: c, filters: [{name: tcp, typed_config: {
"@type": type.googleapis.com/envoy.extensions.filters.network.tcp_proxy.v3.TcpProxy, stat_prefix: x, cluster: otel, %s}}]}]}`, port, logs, strings.TrimSuffix(strings.ReplaceAll(logs, "log_name: l", "log_name: m"), ", ")))
		w.res.Listeners["l"] = v
		w.mustApply()
	}
	exporters := func() int {
		b := make([]byte, 1<<20)
		return strings.Count(string(b[:runtime.Stack(b, true)]), "otlp.(*Exporter[...]).run(")
	}
	before := exporters()
	set(`access_log: [{name: o, typed_config: {"@type": type.googleapis.com/envoy.extensions.access_loggers.open_telemetry.v3.OpenTelemetryAccessLogConfig, log_name: l, grpc_service: {envoy_grpc: {cluster_name: otel}}}}], `)
	within(t, "two exporters", func() bool { return exporters()-before == 2 }) // a goroutine that was never run has no name yet
	set("")
	within(t, "their end", func() bool { return exporters() == before })
}

// A push that comes while the process ends must not open a port again: who
// connects would be cut off at the end.
func TestAPushOpensNoPortOfAProcessThatEnds(t *testing.T) {
	w := newWorld(t)
	port, other := freePort(t), freePort(t)
	w.listen("l", port, "", chainYAML("c", "{}", "", direct("first")))
	w.mustApply()
	if status, body := request(t, port, "/"); status != 200 || body != "first" {
		t.Fatalf("%d %s", status, body)
	}
	w.DrainListeners(false)
	w.listen("l", port, "", chainYAML("c", "{}", "{name: f, disabled: true, typed_config: "+unknownFilter+"},", direct("second")))
	w.listen("new", other, "", chainYAML("c", "{}", "", direct("new")))
	w.mustApply()
	for _, p := range []int{port, other} {
		if c, err := connect(t, p); err == nil {
			_ = c.Close()
			t.Errorf("port %d is open", p)
		}
	}
}
