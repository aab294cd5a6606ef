package proxy_test

import (
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"
)

// metadataLog is an access log of the static metadata that a connection or
// request can have; only is "" or a CEL expression.
func metadataLog(path, only string) string {
	filter := ""
	if only != "" {
		filter = fmt.Sprintf(`filter: {extension_filter: {name: cel, typed_config: {"@type": type.googleapis.com/envoy.extensions.access_loggers.filters.cel.v3.ExpressionFilter, expression: %q}}}, `, only)
	}
	return fmt.Sprintf(`access_log: [{name: f, %styped_config: {"@type": type.googleapis.com/envoy.extensions.access_loggers.file.v3.FileAccessLog, path: %s,
  log_format: {text_format_source: {inline_string: "%%METADATA(LISTENER:ns:k)%% %%METADATA(LISTENER_FILTER_CHAIN:ns:k)%% %%METADATA(VIRTUAL_HOST:ns:k)%% %%METADATA(ROUTE:ns:k)%%\n"}}}}]`, filter, path)
}

func metadata(v string) string {
	return fmt.Sprintf("metadata: {filter_metadata: {ns: {k: %s}}}", v)
}

// logLines waits until a file has n lines and returns them sorted.
func logLines(t *testing.T, path string, n int) []string {
	t.Helper()
	var lines []string
	for end := time.Now().Add(10 * time.Second); time.Now().Before(end); time.Sleep(20 * time.Millisecond) {
		b, _ := os.ReadFile(path)
		if lines = strings.Split(strings.TrimSuffix(string(b), "\n"), "\n"); len(lines) >= n {
			break
		}
	}
	slices.Sort(lines)
	return lines
}

func TestStaticMetadataIsLogged(t *testing.T) {
	dir := t.TempDir()
	streams, conns := filepath.Join(dir, "streams"), filepath.Join(dir, "conns")
	w, port := newWorld(t), freePort(t)
	routes := fmt.Sprintf(`route_config: {name: r, virtual_hosts: [{name: v, domains: ["*"], %s, routes: [{match: {prefix: /a}, %s, direct_response: {status: 200}}, {match: {prefix: /b}, direct_response: {status: 200}}]}]}`,
		metadata("host"), metadata("route"))
	listen := func(listener, chain string) {
		c := strings.Replace(chainYAML("c", "{}", "", metadataLog(streams, `xds.listener_metadata.filter_metadata['ns']['k'] != 'quiet' && xds.listener_direction == 1`)+", "+routes), "{name:", "{"+metadata(chain)+", name:", 1)
		w.listen("l", port, metadata(listener)+", traffic_direction: INBOUND, "+metadataLog(conns, "")+",", c)
		w.mustApply()
	}
	var wantStreams, wantConns []string
	for _, c := range []struct{ listener, chain, path, stream, conn string }{
		{"one", "chain", "/a", "one chain host route", "one chain - -"},
		{"one", "chain", "/b", "one chain host -", "one chain - -"},
		{"one", "chain", "/none", "one chain host -", "one chain - -"},
		// only the listener changes; its chain is kept
		{"two", "chain", "/a", "two chain host route", "two chain - -"},
		{"two", "link", "/a", "two link host route", "two link - -"},
		{"quiet", "link", "/a", "", "quiet link - -"},
	} {
		listen(c.listener, c.chain)
		request(t, port, c.path)
		wantConns = append(wantConns, c.conn)
		if c.stream != "" {
			wantStreams = append(wantStreams, c.stream)
		}
	}
	slices.Sort(wantStreams)
	slices.Sort(wantConns)
	if got := logLines(t, conns, len(wantConns)); !slices.Equal(got, wantConns) {
		t.Errorf("connections: %q", got)
	}
	if got := logLines(t, streams, len(wantStreams)); !slices.Equal(got, wantStreams) {
		t.Errorf("streams: %q", got)
	}
}
