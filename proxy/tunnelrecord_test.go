package proxy_test

import (
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"golang.org/x/net/http2"
)

const recordLine = `%REQ(:METHOD)% %REQ(:AUTHORITY)% %REQ(X-CASE)% %PROTOCOL% %RESPONSE_CODE% %RESPONSE_FLAGS% %RESPONSE_CODE_DETAILS% ` +
	`rx=%BYTES_RECEIVED% tx=%BYTES_SENT% %UPSTREAM_CLUSTER% %UPSTREAM_HOST% %ROUTE_NAME% %VIRTUAL_HOST_NAME% %RESP(SERVER)% %RESP(:STATUS)% ` +
	`%FILTER_STATE(test.key:PLAIN)% %DYNAMIC_METADATA(test:k)% %METADATA(ROUTE:test:k)% %DOWNSTREAM_PEER_URI_SAN% %UPSTREAM_REQUEST_ATTEMPT_COUNT% ` +
	`id=%REQ(X-REQUEST-ID)%=%STREAM_ID% start=%START_TIME(%s)% took=%DURATION% first=%RESPONSE_DURATION%\n`

// TestTheRecordOfATunnelIsWhole compares what the access log says of CONNECT
// streams whose record was put away while they lasted with those whose record was
// not, because a timer needed it.
func TestTheRecordOfATunnelIsWhole(t *testing.T) {
	ca, src := devCA(t)
	origin := answerer(t)
	lines := func(more string) []string {
		hbone, file := freePort(t), filepath.Join(t.TempDir(), "connect.log")
		doc := fmt.Sprintf(allocYAML, freePort(t), hbone, origin, fmt.Sprintf("%q", os.DevNull))
		doc = strings.Replace(doc, "          upgrade_configs: [{upgrade_type: CONNECT}]\n", more+`          upgrade_configs: [{upgrade_type: CONNECT}]
          access_log:
          - name: envoy.access_loggers.file
            typed_config:
              "@type": type.googleapis.com/envoy.extensions.access_loggers.file.v3.FileAccessLog
              path: `+file+`
              log_format: {text_format_source: {inline_string: "`+recordLine+`"}}
`, 1)
		doc = strings.Replace(doc, `              - match: {connect_matcher: {}}
`, `              - name: route
                match: {connect_matcher: {}}
                metadata: {filter_metadata: {test: {k: of-route}}}
`, 1)
		doc = strings.Replace(doc, `          http_filters:
          - name: envoy.filters.http.router
            typed_config: {"@type": type.googleapis.com/envoy.extensions.filters.http.router.v3.Router}
          route_config:
            virtual_hosts:
            - name: default`, `          http_filters:
          - name: fs
            typed_config:
              "@type": type.googleapis.com/envoy.extensions.filters.http.set_filter_state.v3.Config
              on_request_headers: [{object_key: test.key, factory_key: envoy.string, format_string: {text_format_source: {inline_string: "%REQ(X-CASE)%"}}}]
          - name: envoy.filters.http.router
            typed_config: {"@type": type.googleapis.com/envoy.extensions.filters.http.router.v3.Router}
          route_config:
            virtual_hosts:
            - name: default`, 1)
		doc = strings.ReplaceAll(doc, "router.v3.Router}", "router.v3.Router, suppress_envoy_headers: true}") // x-envoy-upstream-service-time has more digits if it takes longer
		startProxy(t, doc, src)
		const n = 20
		l := openLightTunnel(t, ca, hbone)
		var ids []uint32
		for i := range n {
			id := l.open("10.1.2.3:9080", "x-case", fmt.Sprintf("case-%d-%s", i, strings.Repeat("x", i)), "x-request-id", fmt.Sprintf("11111111-1111-4111-8111-%012d", i))
			l.request(id, "GET /api/x HTTP/1.1\r\nhost: reviews\r\n\r\n", "hello")
			ids = append(ids, id)
		}
		for _, id := range ids {
			l.check(l.fr.WriteData(id, true, nil))
			l.await(id, func(f http2.Frame) bool { return f.Header().Flags.Has(http2.FlagDataEndStream) })
		}
		var got []string
		for end := time.Now().Add(10 * time.Second); len(got) < n && time.Now().Before(end); time.Sleep(20 * time.Millisecond) {
			b, _ := os.ReadFile(file)
			got = strings.Split(strings.TrimSuffix(string(b), "\n"), "\n")
		}
		if len(got) != n {
			t.Fatalf("%d lines: %q", len(got), got)
		}
		slices.Sort(got)
		for i, s := range got {
			// Times differ; that they are there must not.
			head, times, _ := strings.Cut(s, " start=")
			var start, took int
			var first string
			if _, err := fmt.Sscanf(times, "%d took=%d first=%s", &start, &took, &first); err != nil || start < 1e9 || took > 1e5 || first == "-" {
				t.Errorf("%q: %v", s, err)
			}
			got[i] = head
		}
		return got
	}
	away, kept := lines(""), lines("          common_http_protocol_options: {max_stream_duration: 3600s}\n")
	if !slices.Equal(away, kept) {
		t.Errorf("put away:\n%s\nkept:\n%s", strings.Join(away, "\n"), strings.Join(kept, "\n"))
	}
	if s := away[len(away)-1]; !strings.Contains(s, " case-") || !strings.Contains(s, "200 - via_upstream rx=38 tx=") || !strings.Contains(s, "of-route spiffe://") {
		t.Errorf("%q", s)
	}
}
