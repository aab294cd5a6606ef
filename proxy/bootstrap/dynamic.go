package bootstrap

import (
	"os"
	"strings"

	bootstrapv3pb "github.com/envoyproxy/go-control-plane/envoy/config/bootstrap/v3"
	corev3pb "github.com/envoyproxy/go-control-plane/envoy/config/core/v3"

	"github.com/fairlead-mesh/fairlead/filters"
	"github.com/fairlead-mesh/fairlead/xdsclient/xdsresource"
)

func (p *parser) dynamic(m *bootstrapv3pb.Bootstrap_DynamicResources) {
	const at = "dynamic_resources"
	if c := m.GetAdsConfig(); c != nil {
		if p.cfg.Node.ID == "" {
			p.failf("node.id", "is empty; a control plane needs it")
		}
		p.cfg.ADS = p.ads(at+".ads_config", c)
	}
	p.cfg.LDS = p.source(at+".lds_config", m.GetLdsConfig())
	p.cfg.CDS = p.source(at+".cds_config", m.GetCdsConfig())
}

func (p *parser) ads(at string, c *corev3pb.ApiConfigSource) *ADS {
	sotw := false
	switch c.GetApiType() {
	case corev3pb.ApiConfigSource_DELTA_GRPC, corev3pb.ApiConfigSource_AGGREGATED_DELTA_GRPC:
	case corev3pb.ApiConfigSource_GRPC, corev3pb.ApiConfigSource_AGGREGATED_GRPC:
		sotw = true
	default:
		p.failf(at+".api_type", "%s is not supported: use DELTA_GRPC or GRPC", c.GetApiType())
	}
	if len(c.GetGrpcServices()) != 1 {
		p.failf(at+".grpc_services", "want exactly one, not %d", len(c.GetGrpcServices()))
		return nil
	}
	g := c.GetGrpcServices()[0]
	at += ".grpc_services[0]"
	out := &ADS{StateOfTheWorld: sotw}
	for _, h := range g.GetInitialMetadata() {
		out.Metadata = append(out.Metadata, [2]string{strings.ToLower(h.GetKey()), h.GetValue()})
	}
	switch t := g.GetTargetSpecifier().(type) {
	case *corev3pb.GrpcService_EnvoyGrpc_:
		out.Cluster = t.EnvoyGrpc.GetClusterName()
		if p.cfg.Cluster(out.Cluster) == nil {
			p.failf(at+".envoy_grpc.cluster_name", "there is no static cluster %q", out.Cluster)
		}
	case *corev3pb.GrpcService_GoogleGrpc_:
		out.Target = t.GoogleGrpc.GetTargetUri()
		p.credentials(at+".google_grpc.channel_credentials", out, t.GoogleGrpc.GetChannelCredentials())
	}
	return out
}

func (p *parser) credentials(at string, out *ADS, c *corev3pb.GrpcService_GoogleGrpc_ChannelCredentials) {
	ssl := c.GetSslCredentials()
	if ssl == nil {
		out.Plaintext = true
		return
	}
	at += ".ssl_credentials"
	out.RootCAs = p.data(at+".root_certs", ssl.GetRootCerts())
	out.CertChain = p.data(at+".cert_chain", ssl.GetCertChain())
	out.PrivateKey = p.data(at+".private_key", ssl.GetPrivateKey())
	if (out.CertChain == nil) != (out.PrivateKey == nil) {
		p.failf(at, "cert_chain and private_key must be set together")
	}
}

func (p *parser) data(at string, d *corev3pb.DataSource) []byte {
	switch s := d.GetSpecifier().(type) {
	case *corev3pb.DataSource_InlineBytes:
		return s.InlineBytes
	case *corev3pb.DataSource_InlineString:
		return []byte(s.InlineString)
	case *corev3pb.DataSource_Filename:
		b, err := os.ReadFile(s.Filename)
		p.fail(at+".filename", err)
		return b
	case *corev3pb.DataSource_EnvironmentVariable:
		v, ok := os.LookupEnv(s.EnvironmentVariable)
		if !ok {
			p.failf(at+".environment_variable", "%s is not set", s.EnvironmentVariable)
		}
		return []byte(v)
	}
	return nil
}

// source decodes lds_config or cds_config.
func (p *parser) source(at string, c *corev3pb.ConfigSource) *xdsresource.ConfigSource {
	if c == nil {
		return nil
	}
	out, err := xdsresource.SourceOf(c)
	p.fail(at, err)
	switch {
	case c.GetSelf() != nil, c.GetConfigSourceSpecifier() == nil:
		p.failf(at, "only ads, path_config_source and api_config_source are supported")
	case out.ADS && p.cfg.ADS == nil:
		p.failf(at+".ads", "there is no ads_config")
	case out.Cluster != "" && p.cfg.Cluster(out.Cluster) == nil:
		p.failf(at+".api_config_source.grpc_services[0].envoy_grpc.cluster_name", "there is no static cluster %q", out.Cluster)
	case out.Cluster != "" && p.cfg.Node.ID == "":
		p.failf("node.id", "is empty; a control plane needs it")
	}
	return &out
}

// builtInExtensions are bootstrap extensions whose work is always done.
var builtInExtensions = []string{
	"envoy.extensions.bootstrap.internal_listener.v3.InternalListener",
	"istio.workload.BootstrapExtension",
}

func (p *parser) extensions(ms []*corev3pb.TypedExtensionConfig) {
	for _, m := range ms {
		typ := xdsresource.ExtensionType(m.GetTypedConfig())
		known := false
		for _, b := range builtInExtensions {
			known = known || typ == b
		}
		if !known {
			p.cfg.Ignored = append(p.cfg.Ignored, filters.Ignored{
				Path: "bootstrap_extensions", Reason: "extension " + m.GetName() + " (" + typ + ") is not supported",
			})
		}
	}
}
