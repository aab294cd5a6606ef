// Package builtin lists the filters that are compiled into Fairlead.
package builtin

import (
	"github.com/fairlead-mesh/fairlead/filters"
	"github.com/fairlead-mesh/fairlead/filters/http/adaptiveconcurrency"
	"github.com/fairlead-mesh/fairlead/filters/http/alpn"
	"github.com/fairlead-mesh/fairlead/filters/http/cors"
	"github.com/fairlead-mesh/fairlead/filters/http/dlp"
	"github.com/fairlead-mesh/fairlead/filters/http/dynamicforwardproxy"
	"github.com/fairlead-mesh/fairlead/filters/http/extauthz"
	"github.com/fairlead-mesh/fairlead/filters/http/fault"
	"github.com/fairlead-mesh/fairlead/filters/http/grpcstats"
	"github.com/fairlead-mesh/fairlead/filters/http/grpcweb"
	"github.com/fairlead-mesh/fairlead/filters/http/headermutation"
	"github.com/fairlead-mesh/fairlead/filters/http/istiostats"
	"github.com/fairlead-mesh/fairlead/filters/http/jwtauthn"
	"github.com/fairlead-mesh/fairlead/filters/http/localratelimit"
	"github.com/fairlead-mesh/fairlead/filters/http/peermetadata"
	"github.com/fairlead-mesh/fairlead/filters/http/ratelimit"
	"github.com/fairlead-mesh/fairlead/filters/http/rbac"
	"github.com/fairlead-mesh/fairlead/filters/http/rego"
	"github.com/fairlead-mesh/fairlead/filters/http/setfilterstate"
	"github.com/fairlead-mesh/fairlead/filters/http/wasm"
	listenerhttpinspector "github.com/fairlead-mesh/fairlead/filters/listener/httpinspector"
	listeneroriginaldst "github.com/fairlead-mesh/fairlead/filters/listener/originaldst"
	listenerproxyprotocol "github.com/fairlead-mesh/fairlead/filters/listener/proxyprotocol"
	listenertlsinspector "github.com/fairlead-mesh/fairlead/filters/listener/tlsinspector"
	networkextauthz "github.com/fairlead-mesh/fairlead/filters/network/extauthz"
	networkistiostats "github.com/fairlead-mesh/fairlead/filters/network/istiostats"
	networkmetadataexchange "github.com/fairlead-mesh/fairlead/filters/network/metadataexchange"
	networkmongoproxy "github.com/fairlead-mesh/fairlead/filters/network/mongoproxy"
	networkpeermetadata "github.com/fairlead-mesh/fairlead/filters/network/peermetadata"
	networkrbac "github.com/fairlead-mesh/fairlead/filters/network/rbac"
	networksetfilterstate "github.com/fairlead-mesh/fairlead/filters/network/setfilterstate"
	networksnidynamicforwardproxy "github.com/fairlead-mesh/fairlead/filters/network/snidynamicforwardproxy"
)

// Registry returns a registry with every built-in filter. HTTP connection
// manager, router and tcp_proxy are core and are added by package proxy.
func Registry() *filters.Registry {
	r := &filters.Registry{}
	r.RegisterHTTP(rego.Factory{})
	r.RegisterHTTP(adaptiveconcurrency.Factory{})
	r.RegisterHTTP(dlp.Factory{})
	r.RegisterHTTP(rbac.Factory{})
	r.RegisterNetwork(networkrbac.Factory{})
	r.RegisterHTTP(setfilterstate.Factory{})
	r.RegisterNetwork(networksetfilterstate.Factory{})
	r.RegisterListener(listeneroriginaldst.Factory{})
	r.RegisterListener(listenerhttpinspector.Factory{})
	r.RegisterListener(listenertlsinspector.Factory{})
	r.RegisterListener(listenerproxyprotocol.Factory{})
	r.RegisterHTTP(peermetadata.Factory{})
	r.RegisterNetwork(networkmetadataexchange.Factory{})
	r.RegisterUpstream(networkmetadataexchange.Factory{})
	r.RegisterHTTP(istiostats.Factory{})
	r.RegisterNetwork(networkistiostats.Factory{})
	r.RegisterHTTP(grpcstats.Factory{})
	r.RegisterHTTP(fault.Factory{})
	r.RegisterHTTP(cors.Factory{})
	r.RegisterHTTP(alpn.Factory{})
	r.RegisterHTTP(jwtauthn.Factory{})
	r.RegisterHTTP(headermutation.Factory{})
	r.RegisterHTTP(localratelimit.Factory{})
	r.RegisterHTTP(ratelimit.Factory{})
	r.RegisterHTTP(extauthz.Factory{})
	r.RegisterNetwork(networkextauthz.Factory{})
	r.RegisterHTTP(dynamicforwardproxy.Factory{})
	r.RegisterHTTP(grpcweb.Factory{})
	r.RegisterHTTP(wasm.Factory{})
	r.RegisterNetwork(networksnidynamicforwardproxy.Factory{})
	r.RegisterNetwork(networkpeermetadata.Factory{})
	r.RegisterUpstream(networkpeermetadata.UpstreamFactory{})
	r.RegisterNetwork(networkmongoproxy.Factory{})
	return r
}
