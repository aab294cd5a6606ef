package xdsresource_test

import (
	"errors"
	"fmt"
	"slices"
	"strings"
	"testing"
	"time"

	routev3pb "github.com/envoyproxy/go-control-plane/envoy/config/route/v3"
	"google.golang.org/protobuf/proto"

	"github.com/fairlead-mesh/fairlead/filters"
	"github.com/fairlead-mesh/fairlead/proxy/transport"
	"github.com/fairlead-mesh/fairlead/xdsclient/xdsresource"
)

// echo is a filter whose configuration is what arrived.
type echo struct{}

func (echo) TypeURLs() []string {
	return []string{"type.googleapis.com/fairlead.echo.v1.Config", "type.googleapis.com/google.protobuf.Duration"}
}

func (echo) Decode(a filters.Any, d *filters.Decoding) (filters.Config, error) {
	if strings.Contains(string(a.Value), "fail") {
		return nil, errors.New("mode: fail is not a mode")
	}
	if strings.Contains(string(a.Value), "odd") {
		d.Ignore("odd", "odd has no effect")
	}
	return fmt.Sprintf("%s json=%v %s", a.TypeURL, a.JSON, a.Value), nil
}

func (e echo) DecodeOverride(a filters.Any, d *filters.Decoding) (filters.Config, error) {
	c, err := e.Decode(a, d)
	return fmt.Sprint("override ", c), err
}

func (echo) Compile(*filters.Env, filters.Config, filters.Config) (filters.HTTPFilter, error) {
	return nil, nil
}

// networkEcho is echo as a network filter.
type networkEcho struct{}

func (networkEcho) TypeURLs() []string {
	return []string{"type.googleapis.com/fairlead.echo.v1.Config", "type.googleapis.com/fairlead.netecho.v1.Config"}
}

func (networkEcho) Decode(a filters.Any, _ *filters.Decoding) (filters.Config, error) {
	return "network " + string(a.Value), nil
}

func (networkEcho) Compile(*filters.Env, filters.Config) (any, error) { return nil, nil }

// upstreamEcho is echo as a filter of a cluster.
type upstreamEcho struct{}

func (upstreamEcho) TypeURLs() []string {
	return []string{"type.googleapis.com/fairlead.upecho.v1.Config"}
}

func (upstreamEcho) Decode(a filters.Any, d *filters.Decoding) (filters.Config, error) {
	if strings.Contains(string(a.Value), "odd") {
		d.Ignore("odd", "odd has no effect")
	}
	return "upstream " + string(a.Value), nil
}

func (upstreamEcho) CompileUpstream(*filters.Env, filters.Config) (filters.UpstreamFilter, error) {
	return nil, nil
}

func newDecoder() *xdsresource.Decoder {
	r := &filters.Registry{}
	r.RegisterHTTP(echo{})
	r.RegisterNetwork(networkEcho{})
	r.RegisterUpstream(upstreamEcho{})
	return xdsresource.NewDecoder(r, xdsresource.Options{
		ReadFile: func(p string) ([]byte, error) {
			if p == "/ca.pem" {
				return []byte("PEM"), nil
			}
			return nil, errors.New("no such file")
		},
		LookupEnv: func(string) (string, bool) { return "from env", true },
	})
}

func decode[T any](t *testing.T, typeURL, doc string) T {
	t.Helper()
	v, err := newDecoder().FromYAML(typeURL, []byte(doc))
	if err != nil {
		t.Fatal(err)
	}
	return v.(T)
}

func wantError(t *testing.T, typeURL, doc, want string) {
	t.Helper()
	_, err := newDecoder().FromYAML(typeURL, []byte(doc))
	if err == nil || !strings.Contains(err.Error(), want) {
		t.Errorf("error %v, want one with %q", err, want)
	}
}

// listenerWith is a listener whose HCM has further fields and filters.
func listenerWith(hcm, httpFilters string) string {
	return `{name: l, address: {socket_address: {address: 127.0.0.1, port_value: 80}}, filter_chains: [{filters: [{name: hcm, typed_config: {
"@type": type.googleapis.com/envoy.extensions.filters.network.http_connection_manager.v3.HttpConnectionManager, stat_prefix: s, ` + hcm + `,
http_filters: [` + httpFilters + `{name: router, typed_config: {"@type": type.googleapis.com/envoy.extensions.filters.http.router.v3.Router}}]}}]}]}`
}

const rds = `rds: {route_config_name: r, config_source: {ads: {}}}`

func hcmOf(t *testing.T, doc string) (*xdsresource.FilterChain, *xdsresource.HTTPConnectionManager) {
	t.Helper()
	c := decode[*xdsresource.Listener](t, xdsresource.ListenerType, doc).FilterChains[0]
	return c, c.Filters[0].HCM
}

func TestListenerDefaultsAreEnvoys(t *testing.T) {
	l := decode[*xdsresource.Listener](t, xdsresource.ListenerType, listenerWith(rds, ""))
	if !l.BindToPort || !l.ReusePort || l.ListenerFiltersTimeout != 15*time.Second || l.PerConnectionBufferLimit != 1<<20 {
		t.Errorf("listener %+v", l)
	}
	h := l.FilterChains[0].Filters[0].HCM
	s := h.Server
	if h.StreamIdleTimeout != 5*time.Minute || h.RequestTimeout != 0 || !h.GenerateRequestID || h.UseRemoteAddress || h.NormalizePath ||
		h.ServerName != "envoy" || !h.UseRequestIDForTraceSampling || !h.PackTraceReason {
		t.Errorf("hcm %+v", h)
	}
	if s.MaxHeaderBytes != 60<<10 || s.MaxHeaders != 100 || s.IdleTimeout != time.Hour || !s.AllowAbsoluteURL ||
		s.MaxOutboundFrames != 10000 || s.MaxOutboundControlFrames != 1000 || s.InitialStreamWindow == 0 {
		t.Errorf("server %+v", s)
	}
}

func TestExplicitZeroIdleTimeoutIsOff(t *testing.T) {
	_, h := hcmOf(t, listenerWith(rds+`, common_http_protocol_options: {idle_timeout: 0s}, stream_idle_timeout: 0s`, ""))
	if h.Server.IdleTimeout >= 0 || h.StreamIdleTimeout != 0 {
		t.Errorf("idle %v, stream idle %v", h.Server.IdleTimeout, h.StreamIdleTimeout)
	}
}

func TestNamesOfHeadersKeepTheirCaseIfAskedFor(t *testing.T) {
	_, h := hcmOf(t, listenerWith(rds+`, http_protocol_options: {header_key_format: {stateful_formatter: {name: f, typed_config: {
"@type": type.googleapis.com/envoy.extensions.http.header_formatters.preserve_case.v3.PreserveCaseFormatterConfig}}}}`, ""))
	if h.Server.Case != transport.KeepCase {
		t.Errorf("got %v", h.Server.Case)
	}
}

func TestHTTPFilterWrappersAreRemoved(t *testing.T) {
	const native = `"@type": type.googleapis.com/envoy.extensions.filters.http.wasm.v3.Wasm, config: {configuration: {
"@type": type.googleapis.com/google.protobuf.StringValue, value: '{"a":1}'}, vm_config: {code: {local: {filename: %s}}}}`
	for _, tc := range []struct{ name, config, url, want, unknown string }{
		{
			"udpa TypedStruct", `"@type": type.googleapis.com/udpa.type.v1.TypedStruct, type_url: type.googleapis.com/fairlead.echo.v1.Config, value: {a: 1}`,
			"fairlead.echo.v1.Config", `json=true {"a":1}`, "",
		},
		{
			"xds TypedStruct", `"@type": type.googleapis.com/xds.type.v3.TypedStruct, type_url: type.googleapis.com/fairlead.echo.v1.Config, value: {a: 1}`,
			"fairlead.echo.v1.Config", `json=true {"a":1}`, "",
		},
		{
			"TypedStruct without value", `"@type": type.googleapis.com/xds.type.v3.TypedStruct, type_url: type.googleapis.com/fairlead.echo.v1.Config`,
			"fairlead.echo.v1.Config", `json=true {}`, "",
		},
		{
			"TypedStruct of a linked message that does not fit keeps its type",
			`"@type": type.googleapis.com/xds.type.v3.TypedStruct, type_url: type.googleapis.com/envoy.extensions.request_id.uuid.v3.UuidRequestIdConfig, value: {no_such_field: true}`,
			"envoy.extensions.request_id.uuid.v3.UuidRequestIdConfig", "", "no_such_field",
		},
		{"plain fields of a type that has no proto", `"@type": type.googleapis.com/fairlead.echo.v1.Config, a: 1`, "fairlead.echo.v1.Config", `json=true {"a":1}`, ""},
		{
			"TypedStruct of a linked message becomes that message",
			`"@type": type.googleapis.com/xds.type.v3.TypedStruct, type_url: type.googleapis.com/envoy.extensions.request_id.uuid.v3.UuidRequestIdConfig, value: {pack_trace_reason: true}`,
			"envoy.extensions.request_id.uuid.v3.UuidRequestIdConfig", "", "is not supported",
		},
		{"native Wasm", fmt.Sprintf(native, "/go-native/echo"), "fairlead.echo.v1.Config", `json=true {"a":1}`, ""},
		{
			"native Wasm without pluginConfig, as istiod sends it",
			`"@type": type.googleapis.com/envoy.extensions.filters.http.wasm.v3.Wasm, config: {configuration: {}, vm_config: {code: {local: {filename: /go-native/echo}}}}`,
			"fairlead.echo.v1.Config", `json=true {}`, "",
		},
		{"native Wasm with a bad name", fmt.Sprintf(native, "/go-native/../x"), "", "", "is not the name of a native filter"},
		{"unknown native Wasm", fmt.Sprintf(native, "/go-native/nope"), "fairlead.nope.v1.Config", "", "type type.googleapis.com/fairlead.nope.v1.Config is not supported"},
		{"a Wasm module", fmt.Sprintf(native, "/plugin.wasm"), "envoy.extensions.filters.http.wasm.v3.Wasm", "", "type type.googleapis.com/envoy.extensions.filters.http.wasm.v3.Wasm is not supported"},
		{"unknown type", `"@type": type.googleapis.com/acme.v1.X`, "acme.v1.X", "", "type type.googleapis.com/acme.v1.X is not supported"},
		{"the factory's error", `"@type": type.googleapis.com/fairlead.echo.v1.Config, mode: fail`, "fairlead.echo.v1.Config", "", "mode: fail is not a mode"},
	} {
		t.Run(tc.name, func(t *testing.T) {
			v, err := newDecoder().FromYAML(xdsresource.ListenerType, []byte(listenerWith(rds, "{name: f, typed_config: {"+tc.config+"}},")))
			if err != nil {
				t.Fatal(err)
			}
			f := v.(*xdsresource.Listener).FilterChains[0].Filters[0].HCM.HTTPFilters[0]
			if !strings.Contains(f.Unknown, tc.unknown) || (tc.unknown == "") != (f.Unknown == "") {
				t.Errorf("Unknown = %q", f.Unknown)
			}
			if tc.url != "" && f.TypeURL != "type.googleapis.com/"+tc.url {
				t.Errorf("TypeURL = %q", f.TypeURL)
			}
			if got, _ := f.Config.(string); !strings.HasSuffix(got, tc.want) || (tc.want == "") != (got == "") {
				t.Errorf("Config = %q", got)
			}
			if strings.Contains(tc.config, "go-native") != (f.Wrapper != "") {
				t.Errorf("Wrapper = %q", f.Wrapper)
			}
		})
	}
}

func TestTheFailureStrategyOfANativePluginIsKept(t *testing.T) {
	for policy, open := range map[string]bool{
		"": false, "failure_policy: FAIL_CLOSED,": false, "failure_policy: FAIL_RELOAD,": false, "failure_policy: FAIL_OPEN,": true,
		"fail_open: true,": true, "fail_open: true, failure_policy: FAIL_CLOSED,": false,
	} {
		for name, unknown := range map[string]bool{"echo": false, "nope": true} {
			f := decode[*xdsresource.Listener](t, xdsresource.ListenerType, listenerWith(rds, fmt.Sprintf(
				`{name: f, typed_config: {"@type": type.googleapis.com/envoy.extensions.filters.http.wasm.v3.Wasm, config: {%s vm_config: {code: {local: {filename: /go-native/%s}}}}}},`, policy, name))).
				FilterChains[0].Filters[0].HCM.HTTPFilters[0]
			if f.FailOpen != open || (f.Unknown != "") != unknown {
				t.Errorf("%q, filter %s: FailOpen %t, Unknown %q", policy, name, f.FailOpen, f.Unknown)
			}
		}
	}
}

func TestIgnoredFieldsOfAFilterHaveTheirPath(t *testing.T) {
	l := decode[*xdsresource.Listener](t, xdsresource.ListenerType,
		listenerWith(rds, `{name: f, typed_config: {"@type": type.googleapis.com/fairlead.echo.v1.Config, odd: 1}},`))
	want := filters.Ignored{Path: "filter_chains[0].filters[0].typed_config.http_filters[0].typed_config.odd", Reason: "odd has no effect"}
	if len(l.Ignored) != 1 || l.Ignored[0] != want {
		t.Errorf("ignored %+v", l.Ignored)
	}
}

func TestInvalidListenersAreRejectedWithPath(t *testing.T) {
	const at = "filter_chains[0].filters[0].typed_config."
	for _, tc := range []struct{ name, doc, want string }{
		{"no filter chain", `{name: l, address: {socket_address: {address: 0.0.0.0, port_value: 1}}}`, "filter_chains: no filter chain"},
		{"no address", `{name: l, filter_chains: [{}]}`, "address: is missing"},
		{"a name as address", `{name: l, address: {socket_address: {address: x, port_value: 1}}, filter_chains: [{}]}`, `address.socket_address.address: "x" is not an IP address`},
		{"UDP", `{name: l, address: {socket_address: {protocol: UDP, address: 0.0.0.0, port_value: 1}}, filter_chains: [{}]}`, "UDP is not supported"},
		{"use_original_dst", `{name: l, use_original_dst: true, internal_listener: {}, filter_chains: [{}]}`, "use_original_dst: handing"},
		{"the same match twice", `{name: l, internal_listener: {}, filter_chains: [{}, {}]}`, "filter_chains[1].filter_chain_match: the same as that of filter_chains[0]"},
		{"partial wildcard", `{name: l, internal_listener: {}, filter_chains: [{filter_chain_match: {server_names: [a.*]}}]}`, "server_names[0]: "},
		{
			"chains without names", `{name: l, internal_listener: {}, filter_chains: [{}], filter_chain_matcher: {on_no_match: {action: {name: a, typed_config: {"@type": type.googleapis.com/google.protobuf.StringValue, value: x}}}}}`,
			"filter_chains[0].name: is required",
		},
		{"stat_prefix", listenerWith(`stat_prefix: "", `+rds, ""), "is set twice"},
		{"HCM without routes", listenerWith(`via: x`, ""), at + "route_specifier: value is required"},
		{
			"route constraint", listenerWith(`route_config: {virtual_hosts: [{name: v, domains: ["*"], routes: [{match: {prefix: /}, route: {cluster: c}}, {match: {prefix: /}, direct_response: {status: 99}}]}]}`, ""),
			at + "route_config.virtual_hosts[0].routes[1].direct_response.status: value must be inside range",
		},
		{
			"router in the middle", listenerWith(rds, `{name: r, typed_config: {"@type": type.googleapis.com/envoy.extensions.filters.http.router.v3.Router}},`),
			at + `http_filters[0]: terminal filter "r" must be the last one`,
		},
		{"no typed_config", listenerWith(rds, `{name: f},`), at + "http_filters[0].typed_config: is missing"},
		{"HTTP/3", listenerWith(rds+`, codec_type: HTTP3`, ""), at + "codec_type: HTTP3 is not supported"},
		{"negative timeout", listenerWith(rds+`, request_timeout: -1s`, ""), at + "request_timeout: must not be negative"},
		{"both ways to strip the port", listenerWith(rds+`, strip_matching_host_port: true, strip_any_host_port: true`, ""), at + "strip_any_host_port"},
	} {
		t.Run(tc.name, func(t *testing.T) { wantError(t, xdsresource.ListenerType, tc.doc, tc.want) })
	}
}

func TestUnsupportedPartsOfAListenerCloseTheChain(t *testing.T) {
	for _, tc := range []struct{ name, hcm, want string }{
		{"scoped routes", `scoped_routes: {name: s, scope_key_builder: {fragments: [{header_value_extractor: {name: h}}]}, rds_config_source: {ads: {}}, scoped_rds: {scoped_rds_config_source: {ads: {}}}}`, "scoped_routes: "},
		{"original IP detection", rds + `, original_ip_detection_extensions: [{name: x, typed_config: {"@type": type.googleapis.com/google.protobuf.Empty}}]`, "original_ip_detection_extensions: "},
		{"a broken range", rds + `, internal_address_config: {cidr_ranges: [{address_prefix: 10.0.0.0, prefix_len: 99}]}`, "internal_address_config.cidr_ranges[0].prefix_len"},
		{"XFCC as JSON", rds + `, set_current_client_cert_details: {format: JSON}`, "set_current_client_cert_details.format: "},
	} {
		t.Run(tc.name, func(t *testing.T) {
			c, _ := hcmOf(t, listenerWith(tc.hcm, ""))
			if !strings.Contains(c.Broken, tc.want) {
				t.Errorf("Broken = %q", c.Broken)
			}
		})
	}
	l := decode[*xdsresource.Listener](t, xdsresource.ListenerType,
		`{name: l, internal_listener: {}, filter_chains: [{name: a, use_proxy_proto: true}, {name: b, filter_chain_match: {destination_port: 1}}]}`)
	if l.FilterChains[0].Broken == "" || l.FilterChains[1].Broken != "" {
		t.Errorf("broken: %q, %q", l.FilterChains[0].Broken, l.FilterChains[1].Broken)
	}
}

func TestSourcesAndMetadataWithoutEffectAreReported(t *testing.T) {
	l := decode[*xdsresource.Listener](t, xdsresource.ListenerType, listenerWith(`route_config: {name: r, metadata: {filter_metadata: {a: {b: c}}}, virtual_hosts: []}`,
		`{name: f, config_discovery: {config_source: {ads: {}}, apply_default_config_without_warming: true, default_config: {"@type": type.googleapis.com/fairlead.echo.v1.Config}, type_urls: [type.googleapis.com/fairlead.echo.v1.Config]}},`))
	const at = "filter_chains[0].filters[0].typed_config."
	var got []string
	for _, ig := range l.Ignored {
		got = append(got, ig.Path)
	}
	if want := []string{at + "http_filters[0].config_discovery.apply_default_config_without_warming", at + "route_config.metadata"}; !slices.Equal(slices.Sorted(slices.Values(got)), want) {
		t.Errorf("ignored %q, want %q", got, want)
	}
}

const routeDoc = `{name: r, virtual_hosts: [{name: v, domains: ["A.b"], routes: [%s]}]}`

func route(t *testing.T, r string) *xdsresource.Route {
	t.Helper()
	return decode[*xdsresource.RouteConfiguration](t, xdsresource.RouteType, fmt.Sprintf(routeDoc, r)).VirtualHosts[0].Routes[0]
}

func TestRouteDefaultsAreEnvoys(t *testing.T) {
	r := route(t, `{match: {prefix: /}, route: {cluster: c, retry_policy: {retry_on: "5xx,unavailable"}}}`)
	a := r.Action
	if a.Timeout != 15*time.Second || a.ClusterNotFoundStatus != 503 || a.GRPCTimeoutMax != nil || r.Match.IgnoreCase || r.Match.RuntimeFraction >= 0 {
		t.Errorf("route %+v, action %+v", r, a)
	}
	p := a.Retry
	if p.On != xdsresource.Retry5xx|xdsresource.RetryGRPCUnavailable || p.NumRetries != 1 || p.BaseInterval != 25*time.Millisecond ||
		p.MaxInterval != 250*time.Millisecond || p.HostSelectionAttempts != 1 {
		t.Errorf("retry %+v", p)
	}
}

func TestBrokenRoutesAnswerInsteadOfFallingThrough(t *testing.T) {
	for _, tc := range []struct{ name, route, want string }{
		{"path policy", `{match: {path_match_policy: {name: x, typed_config: {"@type": type.googleapis.com/google.protobuf.Empty}}}, route: {cluster: c}}`, "match.path_match_policy"},
		{"string matcher extension", `{match: {prefix: /, headers: [{name: h, string_match: {custom: {name: x, typed_config: {"@type": type.googleapis.com/google.protobuf.Empty}}}}]}, route: {cluster: c}}`, "match.headers[0].string_match.custom"},
		{"format operator", `{match: {prefix: /}, route: {cluster: c}, request_headers_to_add: [{header: {key: a, value: "%NOPE%"}}]}`, "request_headers_to_add[0].header.value"},
		{"filter_action", `{match: {prefix: /}, filter_action: {}}`, "filter_action"},
		{"cluster specifier plugin", `{match: {prefix: /}, route: {cluster_specifier_plugin: p}}`, "route.cluster_specifier_plugin"},
	} {
		t.Run(tc.name, func(t *testing.T) {
			r := route(t, tc.route)
			if !strings.Contains(r.Broken, tc.want) || r.Action != nil {
				t.Errorf("Broken = %q, Action = %v", r.Broken, r.Action)
			}
		})
	}
}

func TestWhatBreaksAVirtualHostBreaksItsRoutesOnly(t *testing.T) {
	rc := decode[*xdsresource.RouteConfiguration](t, xdsresource.RouteType, `{name: r, virtual_hosts: [
{name: a, domains: [a], routes: [{match: {prefix: /}, route: {cluster: c}}], retry_policy_typed_config: {"@type": type.googleapis.com/google.protobuf.Empty}},
{name: b, domains: [b], routes: [{match: {prefix: /}, route: {cluster: c}}]}]}`)
	if rc.VirtualHosts[0].Routes[0].Broken == "" || rc.VirtualHosts[1].Routes[0].Broken != "" {
		t.Errorf("%q, %q", rc.VirtualHosts[0].Routes[0].Broken, rc.VirtualHosts[1].Routes[0].Broken)
	}
}

func TestInvalidRoutesAreRejectedWithPath(t *testing.T) {
	for _, tc := range []struct{ name, doc, want string }{
		{"regex", fmt.Sprintf(routeDoc, `{match: {safe_regex: {regex: "("}}, route: {cluster: c}}`), "virtual_hosts[0].routes[0].match.safe_regex"},
		{"regex of a header", fmt.Sprintf(routeDoc, `{match: {prefix: /, headers: [{name: h, string_match: {safe_regex: {regex: "("}}}]}, route: {cluster: c}}`), "virtual_hosts[0].routes[0].match.headers"},
		{"domain twice", `{virtual_hosts: [{name: a, domains: [x]}, {name: b, domains: [X]}]}`, `virtual_hosts[1].domains: only unique values`},
		{"weights", fmt.Sprintf(routeDoc, `{match: {prefix: /}, route: {weighted_clusters: {clusters: [{name: a, weight: 0}]}}}`), "the sum of weights must be greater than 0"},
		{"two rewrites", fmt.Sprintf(routeDoc, `{match: {prefix: /}, route: {cluster: c, prefix_rewrite: /a, regex_rewrite: {pattern: {regex: a}, substitution: b}}}`), "specify only one of"},
		{"host header", fmt.Sprintf(routeDoc, `{match: {prefix: /}, route: {cluster: c}, request_headers_to_add: [{header: {key: Host, value: x}}]}`), "headers may not be modified"},
		{"body too large", `{max_direct_response_body_size_bytes: 2, virtual_hosts: [{name: v, domains: [x], routes: [{match: {prefix: /}, direct_response: {status: 200, body: {inline_string: abc}}}]}]}`, "response body size is 3 bytes; maximum is 2"},
		{"intervals", fmt.Sprintf(routeDoc, `{match: {prefix: /}, route: {cluster: c, retry_policy: {retry_back_off: {base_interval: 2s, max_interval: 1s}}}}`), "max_interval: must be at least base_interval"},
		{"disabled nothing", fmt.Sprintf(routeDoc, `{match: {prefix: /}, route: {cluster: c}, typed_per_filter_config: {f: {"@type": type.googleapis.com/envoy.config.route.v3.FilterConfig}}}`), `typed_per_filter_config["f"].config: is missing`},
	} {
		t.Run(tc.name, func(t *testing.T) { wantError(t, xdsresource.RouteType, tc.doc, tc.want) })
	}
}

func TestOverrides(t *testing.T) {
	r := route(t, `{match: {prefix: /}, route: {cluster: c}, typed_per_filter_config: {
plain: {"@type": type.googleapis.com/fairlead.echo.v1.Config, a: 1},
wrapped: {"@type": type.googleapis.com/envoy.config.route.v3.FilterConfig, config: {"@type": type.googleapis.com/fairlead.echo.v1.Config}, is_optional: true},
off: {"@type": type.googleapis.com/envoy.config.route.v3.FilterConfig, disabled: true},
unknown: {"@type": type.googleapis.com/acme.X}}}`)
	o := r.Overrides
	if c, _ := o["plain"].Config.(string); !strings.HasPrefix(c, "override ") {
		t.Errorf("plain %+v", o["plain"])
	}
	if !o["wrapped"].Optional || o["wrapped"].Config == nil || !o["off"].Disabled || o["unknown"].Unknown == "" || r.Broken != "" {
		t.Errorf("overrides %+v, broken %q", o, r.Broken)
	}
}

func TestMirrorsOfTheConfigurationReachEveryHost(t *testing.T) {
	rc := decode[*xdsresource.RouteConfiguration](t, xdsresource.RouteType, `{request_mirror_policies: [{cluster: m}], virtual_hosts: [{name: a, domains: [a]},
{name: b, domains: [b], request_mirror_policies: [{cluster: n}]}]}`)
	if rc.VirtualHosts[0].RequestMirrors[0].Cluster != "m" || rc.VirtualHosts[1].RequestMirrors[0].Cluster != "n" {
		t.Errorf("%+v", rc.VirtualHosts)
	}
}

func TestDigests(t *testing.T) {
	one := decode[*xdsresource.Listener](t, xdsresource.ListenerType, listenerWith(rds, ""))
	same := decode[*xdsresource.Listener](t, xdsresource.ListenerType, listenerWith(rds, ""))
	other := decode[*xdsresource.Listener](t, xdsresource.ListenerType, listenerWith(rds, `{name: f, typed_config: {"@type": type.googleapis.com/fairlead.echo.v1.Config}},`))
	if one.Digest != same.Digest || one.FilterChains[0].Digest != same.FilterChains[0].Digest || one.Digest == (xdsresource.Digest{}) {
		t.Error("equal listeners have different digests")
	}
	if one.Digest == other.Digest || one.FilterChains[0].Digest == other.FilterChains[0].Digest {
		t.Error("different listeners have equal digests")
	}
	r1, r2 := one.FilterChains[0].Filters[0].HCM.HTTPFilters[0], other.FilterChains[0].Filters[0].HCM.HTTPFilters[1]
	if r1.Digest != r2.Digest {
		t.Error("the same router has different digests")
	}
}

func TestFieldsUnknownToThisVersion(t *testing.T) {
	var rc routev3pb.RouteConfiguration
	j := fmt.Sprintf(routeDoc, `{"match": {"prefix": "/"}, "route": {"cluster": "c"}}, {"match": {"prefix": "/"}, "route": {"cluster": "c"}}`)
	if err := xdsresource.Unmarshal([]byte(j), &rc); err != nil {
		t.Fatal(err)
	}
	unknown := []byte{0x82, 0xfa, 0x01, 0x01, 'x'} // field 4000
	rc.GetVirtualHosts()[0].GetRoutes()[0].GetMatch().ProtoReflect().SetUnknown(unknown)
	rc.GetVirtualHosts()[0].GetRoutes()[1].GetRoute().ProtoReflect().SetUnknown(unknown)
	b, err := proto.Marshal(&rc)
	if err != nil {
		t.Fatal(err)
	}
	got, err := newDecoder().RouteConfiguration(b)
	if err != nil {
		t.Fatal(err)
	}
	rs := got.VirtualHosts[0].Routes
	if !strings.Contains(rs[0].Broken, "match.(field 4000)") {
		t.Errorf("a route with a new condition: Broken = %q", rs[0].Broken)
	}
	if rs[1].Broken != "" || len(got.Ignored) != 1 || got.Ignored[0].Path != "virtual_hosts[0].routes[1].route.(field 4000)" {
		t.Errorf("a route with a new option: %q, ignored %+v", rs[1].Broken, got.Ignored)
	}
}

func TestAnyResourceTypeAndGarbage(t *testing.T) {
	d := newDecoder()
	if _, err := d.Decode("type.googleapis.com/envoy.X", nil); err == nil {
		t.Error("unknown type: want an error")
	}
	if _, err := d.Decode(xdsresource.ListenerType, []byte{0xff}); err == nil {
		t.Error("garbage: want an error")
	}
}

func TestExtensionConfig(t *testing.T) {
	x := decode[*xdsresource.ExtensionConfig](t, xdsresource.ExtensionConfigType,
		`{name: e, typed_config: {"@type": type.googleapis.com/fairlead.echo.v1.Config, a: 1}}`)
	if c, _ := x.Config.(string); x.Resource.Name != "e" || !strings.HasPrefix(c, "type.") || x.Network == nil || x.Network.Config != `network {"a":1}` || x.Listener != nil {
		t.Errorf("a type of both kinds: %+v", x)
	}
	x = decode[*xdsresource.ExtensionConfig](t, xdsresource.ExtensionConfigType,
		`{name: e, typed_config: {"@type": type.googleapis.com/fairlead.netecho.v1.Config}}`)
	if x.Config != "network {}" || x.Unknown != "" || x.Network.Config != x.Config {
		t.Errorf("a network filter's type: %+v", x)
	}
	wantError(t, xdsresource.ExtensionConfigType, `{name: e}`, "typed_config")
}

func TestTheFrameOfAChainLeavesOutItsRoutesAndNothingElse(t *testing.T) {
	const hcm = `{name: %s, filters: [{name: hcm, typed_config: {"@type": type.googleapis.com/envoy.extensions.filters.network.http_connection_manager.v3.HttpConnectionManager,
	  stat_prefix: %s, route_config: {name: r, virtual_hosts: [{name: v, domains: ["%s"], routes: [{match: {prefix: /}, direct_response: {status: 200}}]}]},
	  http_filters: [{name: envoy.filters.http.router, typed_config: {"@type": type.googleapis.com/envoy.extensions.filters.http.router.v3.Router, suppress_envoy_headers: %s}}]}}]}`
	chain := func(name, stat, domain, suppress string) *xdsresource.FilterChain {
		v, err := newDecoder().FromYAML(xdsresource.ListenerType, fmt.Appendf(nil, `{name: l, address: {socket_address: {address: 127.0.0.1, port_value: 1}}, filter_chains: [`+hcm+`]}`, name, stat, domain, suppress))
		if err != nil {
			t.Fatal(err)
		}
		return v.(*xdsresource.Listener).FilterChains[0]
	}
	base := chain("a", "b", "c", "true")
	if other := chain("a", "b", "d", "true"); other.Frame != base.Frame || other.Digest == base.Digest {
		t.Error("other routes should change the digest and not the frame")
	}
	for name, other := range map[string]*xdsresource.FilterChain{
		"the name": chain("x", "b", "c", "true"), "the connection manager": chain("a", "x", "c", "true"), "an HTTP filter": chain("a", "b", "c", "false"),
	} {
		if other.Frame == base.Frame {
			t.Error(name, "should change the frame")
		}
	}
}
