package proxy

import (
	"fmt"
	"slices"
	"testing"

	"github.com/fairlead-mesh/fairlead/filters/builtin"
	"github.com/fairlead-mesh/fairlead/xdsclient"
	"github.com/fairlead-mesh/fairlead/xdsclient/xdsresource"
)

func TestReferencesAreWhatAResourceNeedsFromTheControlPlane(t *testing.T) {
	dec := xdsresource.NewDecoder(builtin.Registry(), xdsresource.Options{})
	for _, c := range []struct {
		name, typeURL, doc string
		want               []xdsclient.Key
	}{
		{"endpoints by the cluster's name", xdsresource.ClusterType, `{name: c, type: EDS, eds_cluster_config: {eds_config: {ads: {}}}}`, []xdsclient.Key{{TypeURL: xdsresource.EndpointsType, Name: "c"}}},
		{"endpoints by their own name", xdsresource.ClusterType, `{name: c, type: EDS, eds_cluster_config: {eds_config: {ads: {}}, service_name: s}}`, []xdsclient.Key{{TypeURL: xdsresource.EndpointsType, Name: "s"}}},
		{"a static cluster needs nothing", xdsresource.ClusterType, `{name: c, type: STATIC}`, nil},
		{
			"extensions of a listener", xdsresource.ListenerType, `{name: l, internal_listener: {}, filter_chains: [{}], listener_filters: [
			{name: e, config_discovery: {config_source: {ads: {}}, type_urls: [type.googleapis.com/envoy.extensions.filters.listener.tls_inspector.v3.TlsInspector]}}]}`,
			[]xdsclient.Key{{TypeURL: xdsresource.ExtensionConfigType, Name: "e"}},
		},
		{
			"secrets of the agent are not asked from the control plane", xdsresource.ClusterType, `{name: c, type: STATIC, transport_socket: {name: tls, typed_config: {"@type": type.googleapis.com/envoy.extensions.transport_sockets.tls.v3.UpstreamTlsContext, common_tls_context: {
			tls_certificate_sds_secret_configs: [{name: default, sds_config: {api_config_source: {api_type: GRPC, transport_api_version: V3, grpc_services: [{envoy_grpc: {cluster_name: sds-grpc}}]}}}, {name: "kubernetes://x", sds_config: {ads: {}}}]}}}}`,
			[]xdsclient.Key{{TypeURL: xdsresource.SecretType, Name: "kubernetes://x"}},
		},
		{
			"routes and extensions of a connection manager", xdsresource.ListenerType, `{name: l, address: {socket_address: {address: 127.0.0.1, port_value: 1}}, filter_chains: [{filters: [{name: hcm, typed_config: {
			"@type": type.googleapis.com/envoy.extensions.filters.network.http_connection_manager.v3.HttpConnectionManager, stat_prefix: x, rds: {route_config_name: r, config_source: {ads: {}}}, http_filters: [
			{name: e, config_discovery: {config_source: {ads: {}}, type_urls: [type.googleapis.com/envoy.extensions.filters.http.rbac.v3.RBAC]}},
			{name: router, typed_config: {"@type": type.googleapis.com/envoy.extensions.filters.http.router.v3.Router}}]}}]}]}`,
			[]xdsclient.Key{{TypeURL: xdsresource.RouteType, Name: "r"}, {TypeURL: xdsresource.ExtensionConfigType, Name: "e"}},
		},
	} {
		t.Run(c.name, func(t *testing.T) {
			v, err := dec.FromYAML(c.typeURL, []byte(c.doc))
			if err != nil {
				t.Fatal(err)
			}
			if got := references(v); !slices.Equal(got, c.want) {
				t.Errorf("got %v, want %v", got, c.want)
			}
		})
	}
}

// A NACK leaves the former configuration in force. One that fails open and has
// no former one must not be refused: its filter would answer 500 for want of any.
func TestABrokenExtensionIsRefusedIfThatIsSafer(t *testing.T) {
	s, err := New(Options{Registry: builtin.Registry()})
	if err != nil {
		t.Fatal(err)
	}
	defer s.Close()
	dec := xdsresource.NewDecoder(builtin.Registry(), xdsresource.Options{})
	plugin := func(filter, policy, config string) *xdsresource.ExtensionConfig {
		v, err := dec.FromYAML(xdsresource.ExtensionConfigType, fmt.Appendf(nil, `{name: p, typed_config: {"@type": type.googleapis.com/envoy.extensions.filters.http.wasm.v3.Wasm,
config: {failure_policy: %s, vm_config: {code: {local: {filename: /go-native/%s}}}, configuration: {"@type": type.googleapis.com/google.protobuf.StringValue, value: '%s'}}}}`, policy, filter, config))
		if err != nil {
			t.Fatal(err)
		}
		return v.(*xdsresource.ExtensionConfig)
	}
	const good = `{"rules": [{"name": "mail", "info_types": ["EMAIL_ADDRESS"], "action": "REPORT"}]}`
	for _, former := range []bool{false, true} {
		if former {
			if err := s.Apply(&Resources{Extensions: map[string]*xdsresource.ExtensionConfig{"p": plugin("dlp", "FAIL_OPEN", good)}}); err != nil {
				t.Fatal(err)
			}
		}
		for _, c := range []struct {
			filter, policy, config string
			refused                bool
		}{
			{"dlp", "FAIL_CLOSED", good, false},
			{"dlp", "FAIL_OPEN", good, false},
			{"dlp", "FAIL_CLOSED", `{"x": 1}`, true},
			{"dlp", "FAIL_OPEN", `{"x": 1}`, former},
			{"nosuch", "FAIL_CLOSED", good, false}, // accepted: its filter answers 403
			{"nosuch", "FAIL_OPEN", good, former},
		} {
			if err := s.executable(plugin(c.filter, c.policy, c.config)); (err != nil) != c.refused {
				t.Errorf("%s, %s, %s, with a former one %t: %v", c.filter, c.policy, c.config, former, err)
			}
		}
	}
}

func TestADiscoveredTypeOfSeveralKindsIsOfTheKindOfItsPlace(t *testing.T) {
	http, network := xdsresource.TypedConfig{TypeURL: "t", Config: 1}, xdsresource.TypedConfig{TypeURL: "t", Config: 2}
	res := &Resources{Extensions: map[string]*xdsresource.ExtensionConfig{"e": {TypedConfig: http, Network: &network}}}
	own := &xdsresource.TypedConfig{Name: "e"}
	for name, c := range map[string]struct {
		as   func(*xdsresource.ExtensionConfig) *xdsresource.TypedConfig
		want any
	}{
		"HTTP": {asHTTP, 1}, "network": {asNetwork, 2},
		"listener, as which it is not known": {asListener, 1},
	} {
		tc := resolveDiscovery(res, own, &xdsresource.ExtensionConfigSource{TypeURLs: []string{"t"}}, c.as)
		if tc == nil || tc.Config != c.want {
			t.Errorf("%s: %+v", name, tc)
		}
	}
}
