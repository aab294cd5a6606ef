package proxy

import (
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
