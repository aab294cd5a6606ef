package format_test

import (
	"encoding/json"
	"net/netip"
	"os"
	"strings"
	"testing"
	"time"

	"github.com/fairlead-mesh/fairlead/internal/format"
	"github.com/fairlead-mesh/fairlead/internal/message"
	"github.com/fairlead-mesh/fairlead/internal/streaminfo"
	"github.com/fairlead-mesh/fairlead/internal/sweep"
)

// IstioDefault is the text format that istiod configures by default.
const istioDefault = `[%START_TIME%] "%REQ(:METHOD)% %REQ(X-ENVOY-ORIGINAL-PATH?:PATH)% %PROTOCOL%" %RESPONSE_CODE% %RESPONSE_FLAGS% %RESPONSE_CODE_DETAILS% %CONNECTION_TERMINATION_DETAILS% "%UPSTREAM_TRANSPORT_FAILURE_REASON%" %BYTES_RECEIVED% %BYTES_SENT% %DURATION% %RESP(X-ENVOY-UPSTREAM-SERVICE-TIME)% "%REQ(X-FORWARDED-FOR)%" "%REQ(USER-AGENT)%" "%REQ(X-REQUEST-ID)%" "%REQ(:AUTHORITY)%" "%UPSTREAM_HOST%" %UPSTREAM_CLUSTER_RAW% %UPSTREAM_LOCAL_ADDRESS% %DOWNSTREAM_LOCAL_ADDRESS% %DOWNSTREAM_REMOTE_ADDRESS% %REQUESTED_SERVER_NAME% %ROUTE_NAME%` + "\n"

func header(kv ...string) *message.Header {
	h := &message.Header{}
	for i := 0; i < len(kv); i += 2 {
		h.Add(kv[i], kv[i+1])
	}
	return h
}

func sample() *format.Context {
	start := time.Date(2026, 3, 7, 9, 5, 3, 42_109_007, time.UTC)
	conn := &streaminfo.Conn{
		ID:    7,
		Local: netip.MustParseAddrPort("10.0.0.1:8080"), Remote: netip.MustParseAddrPort("[::ffff:10.0.0.9]:5555"),
		DirectRemote: netip.MustParseAddrPort("[fd00::1]:6666"), RequestedServerName: "sni.example", FilterChainName: "chain", TransportFailureReason: "tls error",
		TLS: &streaminfo.TLS{
			Version: "TLSv1.3", CipherSuite: "TLS_AES_128_GCM_SHA256",
			Peer: streaminfo.Certificate{
				URISANs: []string{"spiffe://td/ns/a/sa/b", "spiffe://td/x"}, Subject: "CN=a", Issuer: "CN=ca", Serial: "0a", Digest: "ff00",
				PEM: "-----BEGIN C-----\nab+/=\n", NotBefore: time.Date(2026, 1, 2, 3, 4, 5, 0, time.UTC),
			},
			LocalCert: streaminfo.Certificate{URISANs: []string{"spiffe://td/me"}, Digest: "aa"},
		},
	}
	info := &streaminfo.Info{
		Conn: conn, Start: start, RequestComplete: start.Add(3 * time.Millisecond), FirstUpstreamRx: start.Add(20 * time.Millisecond),
		End: start.Add(1234 * time.Millisecond), Protocol: message.HTTP11, ResponseCode: 503, Details: "via_upstream",
		Flags: streaminfo.UpstreamConnectionFailure | streaminfo.UpstreamRetryLimitExceeded, RouteName: "r1", VirtualHost: "vh",
		BytesReceived: 10, BytesSent: 20, WireBytesSent: 99, AttemptCount: 2, RequestID: "id-1", TraceID: "abc", IsGRPC: true,
		Upstream: streaminfo.Upstream{
			Cluster: "alt", ClusterRaw: "outbound|80||x", Host: "10.1.1.1:80", Address: netip.MustParseAddrPort("10.1.1.1:80"),
			Local: netip.MustParseAddrPort("10.0.0.1:41000"), TransportFailureReason: "delayed connect error: 111", Protocol: message.HTTP2,
			WireBytesReceived: 77, WireBytesSent: 88,
		},
	}
	md := streaminfo.MetadataFrom(map[string]map[string]any{"istio": {"services": []any{map[string]any{"name": "s", "n": 1.5}}}})
	info.Upstream.ClusterMetadata = &md
	kind := func(v string) *streaminfo.Metadata {
		m := streaminfo.MetadataFrom(map[string]map[string]any{"ns": {"kind": v, "deep": map[string]any{"n": 1.0}}})
		return &m
	}
	info.RouteMetadata, info.VirtualHostMetadata = kind("route"), kind("host")
	conn.ListenerMetadata, conn.FilterChainMetadata, conn.ListenerDirection = kind("listener"), kind("chain"), "outbound"
	info.Metadata.Set("ns", "s", "te\"xt")
	info.Metadata.Set("ns", "n", 3.0)
	info.Metadata.Set("ns", "deep", map[string]any{"b": true, "a": nil})
	info.FilterState.Set("plain", streaminfo.String("v\"1"), streaminfo.SharingNone)
	info.FilterState.Set("downstream_peer", &streaminfo.Peer{Namespace: "ns1", Workload: "w1", CanonicalName: "svc", Labels: map[string]string{"k": "v"}}, streaminfo.SharingNone)
	conn.FilterState.Set("conn", streaminfo.String("c1"), streaminfo.SharingNone)
	return &format.Context{
		Info: info,
		Request: header(":method", "GET", ":scheme", "https", ":authority", "host.example:80", ":path", "/a/b?x=1%202&y", "user-agent", "curl/8",
			"x-request-id", "id-1", "empty", ""),
		Response:       header(":status", "503", "x-envoy-upstream-service-time", "17", "grpc-status", "14"),
		LocalReplyBody: "no healthy\nupstream",
	}
}

func TestOperatorsRenderLikeEnvoy(t *testing.T) {
	t.Setenv("FORMAT_TEST", "env-value")
	hostname, _ := os.Hostname()
	for _, c := range []struct{ src, want string }{
		{"plain 100%% text", "plain 100% text"},
		{"%REQ(:METHOD)% %REQ(:authority)% %REQ(Host)% %REQ(missing)% %REQ(empty)%|", "GET host.example:80 host.example:80 - |"},
		{"%REQ(X-ENVOY-ORIGINAL-PATH?:PATH)% %REQ(user-agent):4% %REQ(:path):0%", "/a/b?x=1%202&y curl "},
		{"%REQUEST_HEADER(:METHOD)% %RESPONSE_HEADER(:status)%", "GET 503"},
		{"%REQ_WITHOUT_QUERY(X-ENVOY-ORIGINAL-PATH?:PATH)% %PATH(NQ)% %PATH(WQ:PATH)% %PATH(WQ:ORIG)%", "/a/b /a/b /a/b?x=1%202&y -"},
		{"%QUERY_PARAM(x)% %QUERY_PARAM(y)% %QUERY_PARAM(z)%", "1 2  -"},
		{"%RESP(:STATUS)% %RESP(none)% %TRAILER(grpc-status)%", "503 - -"},
		{"%START_TIME%", "2026-03-07T09:05:03.042Z"},
		{"%START_TIME(%Y/%m/%dT%H:%M:%S.%3f%z %s.%6f %f %1f)%", "2026/03/07T09:05:03.042+0000 1772874303.042109 042109007 0"},
		{
			"%START_TIME(%E4Y %E3S %E*S %E*f %Ez %y %j %a %b %e %I %p %T %F %u %w %V %%)%",
			"2026 03.042 03.042109007 042109007 +00:00 26 066 Sat Mar  7 09 AM 09:05:03 2026-03-07 6 6 10 %",
		},
		{"%PROTOCOL% %UPSTREAM_PROTOCOL%", "HTTP/1.1 HTTP/2"},
		{
			"%RESPONSE_CODE% %RESPONSE_CODE_DETAILS% %RESPONSE_FLAGS% %RESPONSE_FLAGS_LONG%",
			"503 via_upstream UF,URX UpstreamConnectionFailure,UpstreamRetryLimitExceeded",
		},
		{"%BYTES_RECEIVED% %BYTES_SENT% %DOWNSTREAM_WIRE_BYTES_SENT% %UPSTREAM_REQUEST_ATTEMPT_COUNT%", "10 20 99 2"},
		{"%UPSTREAM_WIRE_BYTES_RECEIVED% %UPSTREAM_WIRE_BYTES_SENT%", "77 88"},
		{"%DURATION% %REQUEST_DURATION% %RESPONSE_DURATION% %RESPONSE_TX_DURATION%", "1234 3 20 1214"},
		{"%COMMON_DURATION(DS_RX_BEG:DS_RX_END:us)% %COMMON_DURATION(DS_RX_BEG:US_RX_END)%", "3000 -"},
		{"%CONNECTION_TERMINATION_DETAILS% %UPSTREAM_TRANSPORT_FAILURE_REASON% %DOWNSTREAM_TRANSPORT_FAILURE_REASON%", "- delayed connect error: 111 tls error"},
		{"%FILTER_CHAIN_NAME%", "chain"},
		{"%UPSTREAM_HOST% %UPSTREAM_CLUSTER% %UPSTREAM_CLUSTER_RAW% %ROUTE_NAME%", "10.1.1.1:80 alt outbound|80||x r1"},
		{"%UPSTREAM_LOCAL_ADDRESS% %UPSTREAM_REMOTE_ADDRESS_WITHOUT_PORT% %UPSTREAM_REMOTE_PORT%", "10.0.0.1:41000 10.1.1.1 80"},
		{"%DOWNSTREAM_LOCAL_ADDRESS% %DOWNSTREAM_LOCAL_ADDRESS_WITHOUT_PORT% %DOWNSTREAM_LOCAL_PORT%", "10.0.0.1:8080 10.0.0.1 8080"},
		{"%DOWNSTREAM_REMOTE_ADDRESS% %DOWNSTREAM_DIRECT_REMOTE_ADDRESS% %DOWNSTREAM_DIRECT_REMOTE_ADDRESS_WITHOUT_PORT%", "10.0.0.9:5555 [fd00::1]:6666 fd00::1"},
		{"%CONNECTION_ID% %STREAM_ID% %TRACE_ID% %REQUESTED_SERVER_NAME% %REQUESTED_SERVER_NAME(HOST_FIRST)%", "7 id-1 abc sni.example host.example:80"},
		{"%DOWNSTREAM_PEER_URI_SAN% %DOWNSTREAM_LOCAL_URI_SAN% %DOWNSTREAM_PEER_DNS_SAN%", "spiffe://td/ns/a/sa/b,spiffe://td/x spiffe://td/me -"},
		{"%DOWNSTREAM_PEER_SUBJECT% %DOWNSTREAM_PEER_ISSUER% %DOWNSTREAM_PEER_SERIAL% %DOWNSTREAM_PEER_FINGERPRINT_256%", "CN=a CN=ca 0a ff00"},
		{"%DOWNSTREAM_TLS_VERSION% %DOWNSTREAM_TLS_CIPHER% %UPSTREAM_TLS_VERSION%", "TLSv1.3 TLS_AES_128_GCM_SHA256 -"},
		{"%DOWNSTREAM_PEER_CERT_V_START% %DOWNSTREAM_PEER_CERT_V_START(%F)% %DOWNSTREAM_PEER_CERT_V_END%", "2026-01-02T03:04:05.000Z 2026-01-02 -"},
		{"%DOWNSTREAM_PEER_CERT%", "-----BEGIN%20C-----%0Aab%2B%2F%3D%0A"},
		{"%FILTER_STATE(plain:PLAIN)% %FILTER_STATE(plain)% %FILTER_STATE(conn:PLAIN)% %FILTER_STATE(nope:PLAIN)%", `v"1 "v\"1" c1 -`},
		{"%FILTER_STATE(downstream_peer:FIELD:workload)% %FILTER_STATE(downstream_peer:FIELD:bad)% %FILTER_STATE(plain:PLAIN):2%", `w1 - v"`},
		{"%FILTER_STATE(downstream_peer)%", `{"labels":{"k":"v"},"namespace":"ns1","service":"svc","workload":"w1"}`},
		{
			"%DYNAMIC_METADATA(ns:s)% %DYNAMIC_METADATA(ns:n)% %DYNAMIC_METADATA(ns:deep)% %DYNAMIC_METADATA(ns:deep:b)% %DYNAMIC_METADATA(x)%",
			`te"xt 3 {"a":null,"b":true} true -`,
		},
		{
			"%METADATA(ROUTE:ns:kind)% %METADATA(VIRTUAL_HOST:ns:kind)% %METADATA(LISTENER:ns:kind)% %METADATA(LISTENER_FILTER_CHAIN:ns:kind)%",
			"route host listener chain",
		},
		{"%METADATA(LISTENER:ns:deep)% %METADATA(LISTENER:ns:none)% %METADATA(LISTENER_FILTER_CHAIN:none)%", `{"n":1} - -`},
		{"%METADATA(CLUSTER:istio)% %CLUSTER_METADATA(istio:services)% %METADATA(ROUTE:a:b)%", `{"services":[{"n":1.5,"name":"s"}]} [{"n":1.5,"name":"s"}] -`},
		{"%GRPC_STATUS% %GRPC_STATUS(SNAKE_STRING)% %GRPC_STATUS_NUMBER%", "Unavailable UNAVAILABLE 14"},
		{"%ENVIRONMENT(FORMAT_TEST)% %ENVIRONMENT(FORMAT_TEST):3% %ENVIRONMENT(FORMAT_TEST_NOT)% %HOSTNAME%", "env-value env - " + hostname},
		{"%LOCAL_REPLY_BODY% %ACCESS_LOG_TYPE% %VIRTUAL_CLUSTER_NAME% %VIRTUAL_HOST_NAME%", "no healthy\nupstream NotSet - vh"},
		{"%CEL(connection.mtls)% %CEL(request.headers['user-agent'])% %CEL(response.code + 1)% %CEL(request.headers['none'])%", "true curl/8 504 -"},
		{"%CEL((1 + 2) * 2)% %CEL('x' in filter_state ? filter_state['x']: r'10.96.7.1:9080')% %CEL(filter_state['conn'])%", "6 10.96.7.1:9080 c1"},
		{"%CEL(duration('1500ms'))% %CEL(timestamp('2020-01-01T00:00:00Z'))% %CEL(2.50)%", "1.5s 2020-01-01T00:00:00Z 2.5"},
		{istioDefault, `[2026-03-07T09:05:03.042Z] "GET /a/b?x=1%202&y HTTP/1.1" 503 UF,URX via_upstream - "delayed connect error: 111" 10 20 1234 17 "-" "curl/8" "id-1" "host.example:80" "10.1.1.1:80" outbound|80||x 10.0.0.1:41000 10.0.0.1:8080 10.0.0.9:5555 sni.example r1` + "\n"},
	} {
		s, err := format.Compile(c.src)
		if err != nil {
			t.Errorf("%s: %v", c.src, err)
			continue
		}
		if got := string(s.Append(nil, sample())); got != c.want {
			t.Errorf("%s\n got %q\nwant %q", c.src, got, c.want)
		}
	}
}

func TestWhyAConnectionWasClosedHere(t *testing.T) {
	f, err := format.Compile("%DOWNSTREAM_LOCAL_CLOSE_REASON%")
	if err != nil {
		t.Fatal(err)
	}
	// Envoy 1.40's words, by what its TCP proxy did.
	for _, c := range []struct {
		info streaminfo.Info
		want string
	}{
		{streaminfo.Info{}, "-"},
		{streaminfo.Info{LocalClose: "tcp_session_idle_timeout"}, "tcp_session_idle_timeout"},
		{streaminfo.Info{LocalClose: "max_connection_duration_reached", Flags: streaminfo.DurationTimeout}, "max_connection_duration_reached"},
		{streaminfo.Info{Flags: streaminfo.UpstreamConnectionFailure | streaminfo.UpstreamRetryLimitExceeded}, "tcp_initializion_failure:0"},
		{streaminfo.Info{Flags: streaminfo.NoHealthyUpstream}, "tcp_initializion_failure:1"},
		{streaminfo.Info{Flags: streaminfo.UpstreamOverflow}, "tcp_initializion_failure:2"},
		{streaminfo.Info{Flags: streaminfo.NoClusterFound}, "tcp_initializion_failure:3"},
		{streaminfo.Info{Flags: streaminfo.NoHealthyUpstream, Protocol: message.HTTP11}, "-"}, // a request
	} {
		if got := string(f.Append(nil, &format.Context{Info: &c.info})); got != c.want {
			t.Errorf("%+v: %q, want %q", c.info.Flags, got, c.want)
		}
	}
}

func TestNamesOfUpstreamHosts(t *testing.T) {
	f, err := format.Compile("%UPSTREAM_HOST_NAME% %UPSTREAM_HOST_NAME_WITHOUT_PORT% %UPSTREAM_FILTER_STATE(k:PLAIN)% %UPSTREAM_FILTER_STATE(upstream_peer:FIELD:workload)%")
	if err != nil {
		t.Fatal(err)
	}
	state := &streaminfo.FilterState{}
	state.Set("k", streaminfo.String("v"), streaminfo.SharingNone)
	state.Set("upstream_peer", &streaminfo.Peer{Workload: "w"}, streaminfo.SharingNone)
	for _, c := range []struct {
		u    streaminfo.Upstream
		want string
	}{
		{streaminfo.Upstream{}, "- - - -"},
		{streaminfo.Upstream{HostName: "a.test:81", Host: "10.0.0.1:80", State: state}, "a.test:81 a.test v w"},
		{streaminfo.Upstream{HostName: "a.test", Host: "10.0.0.1:80"}, "a.test a.test - -"},
		{streaminfo.Upstream{Host: "127.31.7.1:19200"}, "127.31.7.1:19200 127.31.7.1 - -"},
		{streaminfo.Upstream{Host: "[::1]:80"}, "[::1]:80 ::1 - -"},
		{streaminfo.Upstream{Host: "envoy://connect_originate/10.0.0.1:80"}, "envoy://connect_originate/10.0.0.1:80 envoy://connect_originate/10.0.0.1:80 - -"},
	} {
		if got := string(f.Append(nil, &format.Context{Info: &streaminfo.Info{Upstream: c.u}})); got != c.want {
			t.Errorf("%+v: %q, want %q", c.u, got, c.want)
		}
	}
}

func TestEmptyContextIsAbsentEverywhere(t *testing.T) {
	for _, src := range []string{
		"%REQ(a)%", "%RESP(a)%", "%TRAILER(a)%", "%PROTOCOL%", "%DURATION%", "%START_TIME%", "%UPSTREAM_HOST%", "%DOWNSTREAM_LOCAL_ADDRESS%",
		"%RESPONSE_CODE_DETAILS%", "%FILTER_STATE(a)%", "%DYNAMIC_METADATA(a:b)%", "%CLUSTER_METADATA(a)%", "%DOWNSTREAM_PEER_URI_SAN%",
		"%UPSTREAM_TLS_CIPHER%", "%GRPC_STATUS%", "%CEL(request.path)%", "%RESPONSE_FLAGS%", "%RESPONSE_CODE%", "%REQUESTED_SERVER_NAME%",
		"%METADATA(ROUTE:a)%", "%METADATA(VIRTUAL_HOST:a)%", "%METADATA(LISTENER:a)%", "%METADATA(LISTENER_FILTER_CHAIN:a)%",
		"%CEL(xds.listener_direction)%", "%CEL(xds.listener_metadata.filter_metadata['a'])%",
	} {
		s, err := format.Compile(src)
		if err != nil {
			t.Fatal(err)
		}
		if got := string(s.Append(nil, &format.Context{})); got != "-" {
			t.Errorf("%s is %q", src, got)
		}
		want := ""
		if src == "%RESPONSE_FLAGS%" {
			want = "-" // Envoy's value for no flag
		}
		if got := s.Render(&format.Context{}); got != want {
			t.Errorf("%s is %q in a header", src, got)
		}
		if got := string(s.OmitEmpty().Append(nil, &format.Context{})); got != want {
			t.Errorf("%s is %q with omit_empty_values", src, got)
		}
	}
}

func TestCompileNamesTheOperatorAndItsColumn(t *testing.T) {
	for _, c := range []struct{ src, want string }{
		{"abc %NOPE%", "column 5: %NOPE%: unknown operator"},
		{"%REQ%", "column 1: %REQ%: wants the name of a header"},
		{"%REQ(a?b?c)%", "more than one alternative"},
		{"x%", "column 2: no operator after %"},
		{"%REQ(a", "the argument has no end"},
		{"%REQ(a)", "has no end"},
		{"%PROTOCOL(x)%", "takes no argument"},
		{"%BYTES_SENT:3%", "takes no length"},
		{"%REQ(a):x%", "has no end"},
		{"%START_TIME(%Q)%", `unknown time specifier "%Q"`},
		{"%FILTER_STATE()%", "wants a key"},
		{"%FILTER_STATE(a:B)%", "unknown form"},
		{"%METADATA(X:y)%", "unknown kind of metadata"},
		{"%CEL(request.)%", "%CEL%: cel:"},
		{"%CEL(nope.x)%", "undeclared reference"},
		{"%CEL(has(xds.node.id) || true)%", "xds.node is not supported"},
		{"%CEL(xds['upstream_host_locality_metadata'])%", "xds.upstream_host_locality_metadata is not supported"},
		{"%GRPC_STATUS(X)%", "unknown form"},
		{"%COMMON_DURATION(A:B)%", "unknown time point"},
		{"%TLS_JA3_FINGERPRINT%", "has no value in Fairlead"},
		{"%req(a)%", "no operator after %"},
		{"%DOWNSTREAM_PEER_SUBJECT(x)%", "takes no argument"},
	} {
		if _, err := format.Compile(c.src); err == nil || !strings.Contains(err.Error(), c.want) {
			t.Errorf("%s: error %v, want %q", c.src, err, c.want)
		}
	}
}

func TestConstantsAreKnown(t *testing.T) {
	s, err := format.Compile("a %% b")
	if err != nil {
		t.Fatal(err)
	}
	if v, ok := s.Constant(); !ok || v != "a % b" {
		t.Errorf("constant %q, %v", v, ok)
	}
	if v, ok := format.Literal("100%").Constant(); !ok || v != "100%" {
		t.Errorf("literal %q, %v", v, ok)
	}
}

func TestJSONKeepsTypesAndSortsKeys(t *testing.T) {
	spec := map[string]any{
		"z_code": "%RESPONSE_CODE%", "a_text": "%REQ(:METHOD)% %RESPONSE_CODE%", "missing": "%REQ(none)%", "const": "x\"y", "dur": "%DURATION%",
		"nested": map[string]any{"peer": "%FILTER_STATE(downstream_peer)%", "n": 1.0, "gone": "%REQ(none)%"},
		"list":   []any{"%BYTES_SENT%", "%REQ(none)%", true},
		"md":     "%DYNAMIC_METADATA(ns:deep)%", "cel": "%CEL(response.code)%", "tcel": "%TYPED_CEL(response.code)%", "esc": "%LOCAL_REPLY_BODY%",
		"mixed": "[%REQ(none)%]",
	}
	for _, c := range []struct {
		omit bool
		want string
	}{
		{false, `{"a_text":"GET 503","cel":"503","const":"x\"y","dur":1234,"esc":"no healthy\nupstream","list":[20,null,true],"md":{"a":null,"b":true},"missing":null,"mixed":"[-]","nested":{"gone":null,"n":1,"peer":{"labels":{"k":"v"},"namespace":"ns1","service":"svc","workload":"w1"}},"tcel":503,"z_code":503}`},
		{true, `{"a_text":"GET 503","cel":"503","const":"x\"y","dur":1234,"esc":"no healthy\nupstream","list":[20,true],"md":{"a":null,"b":true},"mixed":"[]","nested":{"n":1,"peer":{"labels":{"k":"v"},"namespace":"ns1","service":"svc","workload":"w1"}},"tcel":503,"z_code":503}`},
	} {
		j, err := format.CompileJSON(spec, c.omit)
		if err != nil {
			t.Fatal(err)
		}
		got := string(j.Append(nil, sample()))
		if got != c.want {
			t.Errorf("omit %v\n got %s\nwant %s", c.omit, got, c.want)
		}
		if !json.Valid([]byte(got)) {
			t.Error("not JSON")
		}
	}
}

func TestJSONShowsBytesThatAreNoText(t *testing.T) {
	j, err := format.CompileJSON(map[string]any{"a": "%REQ(x)%", "b": "x%REQ(x)%"}, false)
	if err != nil {
		t.Fatal(err)
	}
	got := string(j.Append(nil, &format.Context{Request: header("x", "\xe9\"\\\t\u00e9\x01")}))
	if want := "{\"a\":\"\\u00e9\\\"\\\\\\t\u00e9\\u0001\",\"b\":\"x\\u00e9\\\"\\\\\\t\u00e9\\u0001\"}"; got != want {
		t.Errorf("got %s, want %s", got, want)
	}
}

func TestJSONErrorsNameTheKey(t *testing.T) {
	_, err := format.CompileJSON(map[string]any{"a": map[string]any{"b": []any{"%X%"}}}, false)
	if err == nil || !strings.Contains(err.Error(), "json_format: a: b: [0]: format: column 1: %X%") {
		t.Error(err)
	}
}

func TestCELAttributes(t *testing.T) {
	for _, c := range []struct {
		expr string
		want string
	}{
		{"request.path", "/a/b?x=1%202&y"},
		{"request.url_path + '|' + request.query", "/a/b|x=1%202&y"},
		{"request.host", "host.example:80"},
		{"request.headers['User-Agent']", "curl/8"},
		{"'x' in request.headers", "false"},
		{"has(request.referer)", "false"},
		{"has(request.headers.empty)", "true"},
		{"request.method == 'GET' && request.scheme == 'https'", "true"},
		{"response.code >= 500", "true"},
		{"response.flags == 32800", "true"},
		{"response.code_details", "via_upstream"},
		{"response.grpc_status", "14"},
		{"request.duration > duration('1s')", "true"},
		{"request.time.getFullYear()", "2026"},
		{"request.size + request.total_size > 0", "true"},
		{"source.address", "10.0.0.9:5555"},
		{"source.port", "5555"},
		{"destination.port == 8080", "true"},
		{"connection.uri_san_peer_certificate", "spiffe://td/ns/a/sa/b"},
		{"connection.tls_version", "TLSv1.3"},
		{"upstream.address", "10.1.1.1:80"},
		{"upstream.port", "80"},
		{"metadata.filter_metadata['ns']['s']", `te"xt`},
		{"metadata.filter_metadata.ns.n == 3.0", "true"},
		{"'ns' in metadata.filter_metadata", "true"},
		{"filter_state['plain']", `v"1`},
		{"filter_state.downstream_peer.workload", "w1"},
		{"'downstream_peer' in filter_state && filter_state['downstream_peer'] == 'w1'", "true"},
		{"xds.cluster_name", "outbound|80||x"},
		{"xds.cluster_metadata.filter_metadata['istio']['services'][0]['name']", "s"},
		{"xds.route_name", "r1"},
		{"xds.route_metadata.filter_metadata['ns']['kind'] + xds.virtual_host_metadata.filter_metadata.ns.kind", "routehost"},
		{"xds.listener_metadata.filter_metadata['ns'].deep.n == 1.0 && xds.listener_direction == 2", "true"},
		{"xds.listener_metadata.filter_metadata['none']['kind']", "<none>"},
		{"metadata.filter_metadata['ns']['deep']", `{"a":null,"b":true}`},
		{"[1, 2u, 1.5, 'a', true, null]", `[1,2,1.5,"a",true,null]`},
		{"request.host.matches('^host\\\\.')", "true"},
		{"request.headers.size() > 3", "true"},
		{"request.nope", "<none>"},
		{"response.trailers['x']", "<none>"},
	} {
		e, err := format.CompileCEL(c.expr)
		if err != nil {
			t.Errorf("%s: %v", c.expr, err)
			continue
		}
		b, ok := e.Append(nil, sample())
		got := string(b)
		if !ok {
			got = "<none>"
		}
		if got != c.want {
			t.Errorf("%s is %s, want %s", c.expr, got, c.want)
		}
		if e.Match(sample()) != (c.want == "true") {
			t.Errorf("%s matches %v", c.expr, c.want != "true")
		}
		e.Append(nil, &format.Context{}) // must not panic
	}
}

func TestRenderingAllocatesNothing(t *testing.T) {
	c := sample()
	buf := make([]byte, 0, 4096)
	for _, src := range []string{
		istioDefault, "%DOWNSTREAM_PEER_URI_SAN% %FILTER_STATE(plain:PLAIN)% %FILTER_STATE(downstream_peer:FIELD:workload)% %DYNAMIC_METADATA(ns:s)%",
		"%START_TIME(%Y-%m-%dT%H:%M:%S.%3fZ)% %RESPONSE_FLAGS_LONG% %GRPC_STATUS% %CONNECTION_ID%",
	} {
		s, err := format.Compile(src)
		if err != nil {
			t.Fatal(err)
		}
		if n := testing.AllocsPerRun(100, func() { buf = s.Append(buf[:0], c) }); n != 0 {
			t.Errorf("%s: %v allocations", src, n)
		}
	}
	j, err := format.CompileJSON(map[string]any{"a": "%RESPONSE_CODE%", "b": map[string]any{"c": "%REQ(:PATH)% %DURATION%"}, "d": "%REQ(none)%"}, false)
	if err != nil {
		t.Fatal(err)
	}
	if n := testing.AllocsPerRun(100, func() { buf = j.Append(buf[:0], c) }); n != 0 {
		t.Errorf("JSON: %v allocations", n)
	}
	var h message.Header
	s, _ := format.Compile("%REQ(:PATH)%-%DURATION%")
	if n := testing.AllocsPerRun(100, func() { h.Reset(); h.Add("x", s.Intern(&h, c)) }); n != 0 {
		t.Errorf("Intern: %v allocations", n)
	}
}

// FuzzCompile: a format keeps its source, appends to what is there, renders
// constants as it says, and is valid JSON in JSON.
func FuzzCompile(f *testing.F) {
	for _, s := range []string{
		istioDefault, "%REQ(a?b):12%", "%START_TIME(%s.%3f %E*S)%", "%CEL(a ? 'b)%' : c)%", "%%%", "%FILTER_STATE(a:FIELD:b):2%",
		"%COMMON_DURATION(DS_RX_BEG:DS_TX_END:ns)%", "%REQ()%%", "%QUERY_PARAM(x)%",
	} {
		f.Add(s)
	}
	c := sample()
	f.Fuzz(sweep.Around(f, func(t *testing.T, src string) {
		s, err := format.Compile(src)
		if err != nil {
			return
		}
		sweep.Accepted()
		if s.Source() != src {
			t.Error("source changed")
		}
		full := s.Append(nil, c)
		if s.Append([]byte("p"), c)[0] != 'p' {
			t.Error("prefix lost")
		}
		empty := s.Append(nil, &format.Context{})
		if v, ok := s.Constant(); ok && (v != string(full) || v != string(empty)) {
			t.Errorf("constant %q renders %q and %q", v, full, empty)
		}
		j, err := format.CompileJSON(map[string]any{"k": src}, false)
		if err != nil {
			t.Fatal(err)
		}
		if out := j.Append(nil, c); !json.Valid(out) {
			t.Errorf("%q gives %s", src, out)
		}
	}))
}

func BenchmarkIstioDefaultLine(b *testing.B) {
	c := sample()
	s, err := format.Compile(istioDefault)
	if err != nil {
		b.Fatal(err)
	}
	b.ReportAllocs()
	var buf []byte
	for b.Loop() {
		buf = s.Append(buf[:0], c)
	}
}

// TestIstiosJSONAccessLogRenders is the format of accessLogEncoding: JSON.
func TestIstiosJSONAccessLogRenders(t *testing.T) {
	spec := map[string]any{}
	for k, v := range map[string]string{
		"start_time": "START_TIME", "route_name": "ROUTE_NAME", "method": "REQ(:METHOD)", "path": "REQ(X-ENVOY-ORIGINAL-PATH?:PATH)", "protocol": "PROTOCOL",
		"response_code": "RESPONSE_CODE", "response_flags": "RESPONSE_FLAGS", "response_code_details": "RESPONSE_CODE_DETAILS",
		"connection_termination_details": "CONNECTION_TERMINATION_DETAILS", "bytes_received": "BYTES_RECEIVED", "bytes_sent": "BYTES_SENT", "duration": "DURATION",
		"upstream_service_time": "RESP(X-ENVOY-UPSTREAM-SERVICE-TIME)", "x_forwarded_for": "REQ(X-FORWARDED-FOR)", "user_agent": "REQ(USER-AGENT)",
		"request_id": "REQ(X-REQUEST-ID)", "authority": "REQ(:AUTHORITY)", "upstream_host": "UPSTREAM_HOST", "upstream_cluster": "UPSTREAM_CLUSTER_RAW",
		"upstream_local_address": "UPSTREAM_LOCAL_ADDRESS", "downstream_local_address": "DOWNSTREAM_LOCAL_ADDRESS",
		"downstream_remote_address": "DOWNSTREAM_REMOTE_ADDRESS", "requested_server_name": "REQUESTED_SERVER_NAME",
		"upstream_transport_failure_reason": "UPSTREAM_TRANSPORT_FAILURE_REASON",
	} {
		spec[k] = "%" + v + "%"
	}
	j, err := format.CompileJSON(spec, false)
	if err != nil {
		t.Fatal(err)
	}
	const want = `{"authority":"host.example:80","bytes_received":10,"bytes_sent":20,"connection_termination_details":null,"downstream_local_address":"10.0.0.1:8080",` +
		`"downstream_remote_address":"10.0.0.9:5555","duration":1234,"method":"GET","path":"/a/b?x=1%202&y","protocol":"HTTP/1.1","request_id":"id-1",` +
		`"requested_server_name":"sni.example","response_code":503,"response_code_details":"via_upstream","response_flags":"UF,URX","route_name":"r1",` +
		`"start_time":"2026-03-07T09:05:03.042Z","upstream_cluster":"outbound|80||x","upstream_host":"10.1.1.1:80","upstream_local_address":"10.0.0.1:41000",` +
		`"upstream_service_time":"17","upstream_transport_failure_reason":"delayed connect error: 111","user_agent":"curl/8","x_forwarded_for":null}`
	if got := string(j.Append(nil, sample())); got != want {
		t.Errorf("got  %s\nwant %s", got, want)
	}
}
