package proxy

import (
	"crypto/tls"
	"fmt"
	"slices"
	"strings"

	"github.com/fairlead-mesh/fairlead/proxy/bootstrap"
	"github.com/fairlead-mesh/fairlead/proxy/tlscontext"
	"github.com/fairlead-mesh/fairlead/xdsclient"
	"github.com/fairlead-mesh/fairlead/xdsclient/xdsresource"
)

func byName[T any](in []T, name func(T) string) map[string]T {
	out := make(map[string]T, len(in))
	for _, v := range in {
		out[name(v)] = v
	}
	return out
}

// dynamic prepares the control plane client of a bootstrap.
func (p *Process) dynamic(cfg *bootstrap.Config) error {
	if err := missingFiles(cfg); err != nil {
		return err
	}
	p.sources.start(cfg)
	if cfg.ADS == nil {
		return nil
	}
	xc, err := p.controlPlane(cfg, "dynamic_resources.ads_config", cfg.ADS)
	if err != nil {
		return err
	}
	return p.connect(xc, demand{
		clusters: cfg.CDS != nil && cfg.CDS.ADS, listeners: cfg.LDS != nil && cfg.LDS.ADS, names: staticReferences(cfg),
	})
}

// apiServer is how a server of api_config_source is reached.
func (p *Process) apiServer(cfg *bootstrap.Config, s xdsresource.APIServer) (xdsclient.Config, error) {
	a := &bootstrap.ADS{Cluster: s.Cluster, StateOfTheWorld: s.StateOfTheWorld}
	kv := strings.Split(s.Metadata, "\n")
	for i := 0; i+1 < len(kv); i += 2 {
		a.Metadata = append(a.Metadata, [2]string{kv[i], kv[i+1]})
	}
	return p.controlPlane(cfg, "api_config_source", a)
}

// controlPlane is how an xDS server is reached; at names the field.
func (p *Process) controlPlane(cfg *bootstrap.Config, at string, a *bootstrap.ADS) (xdsclient.Config, error) {
	target, spec, err := grpcTarget(cfg, at, a)
	if err != nil {
		return xdsclient.Config{}, err
	}
	xc := xdsclient.Config{
		Target:          target,
		StateOfTheWorld: a.StateOfTheWorld,
		Transport:       xdsclient.Transport{Metadata: map[string]string{}},
		Node: xdsclient.Node{
			ID: cfg.Node.ID, Cluster: cfg.Node.Cluster, UserAgent: "fairlead", UserAgentVersion: p.opt.Version, Metadata: cfg.Node.Metadata,
			Region: cfg.Locality.Region, Zone: cfg.Locality.Zone, SubZone: cfg.Locality.SubZone,
		},
	}
	for _, kv := range a.Metadata {
		xc.Transport.Metadata[kv[0]] = kv[1]
	}
	if a.Target != "" && !a.Plaintext {
		xc.Transport.TLS = &xdsclient.TLS{RootsPEM: a.RootCAs}
		if a.CertChain != nil {
			crt, err := tls.X509KeyPair(a.CertChain, a.PrivateKey)
			if err != nil {
				return xc, fmt.Errorf("%s: ssl_credentials: cert_chain and private_key: %w", at, err)
			}
			xc.Transport.TLS.ClientCertificate = func() *tls.Certificate { return &crt }
		}
	}
	if spec != nil {
		client, err := tlscontext.NewClient(spec, p.server.secrets)
		if err != nil {
			return xc, fmt.Errorf("%s: cluster %q: %w", at, a.Cluster, err)
		}
		xc.Transport.TLS = &xdsclient.TLS{ServerName: spec.SNI, Config: func() *tls.Config { return client.Config(tlscontext.Options{ALPN: []string{"h2"}}).Clone() }}
	}
	return xc, nil
}

// demand is what a process asks of its control plane beside what received
// resources refer to.
type demand struct {
	clusters, listeners bool // all of them
	names               []xdsclient.Key
}

// staticReferences lists what static resources need from the control plane.
func staticReferences(cfg *bootstrap.Config) []xdsclient.Key {
	var keys []xdsclient.Key
	for _, c := range cfg.Clusters {
		keys = append(keys, references(c)...)
	}
	for _, l := range cfg.Listeners {
		keys = append(keys, references(l)...)
	}
	return keys
}

// apply narrows the types to what is asked for.
func (d demand) apply(types []xdsclient.ResourceType) {
	for i := range types {
		t := &types[i]
		switch t.TypeURL {
		case xdsresource.ClusterType:
			t.Wildcard = d.clusters
		case xdsresource.ListenerType:
			t.Wildcard = d.listeners
		}
		for _, k := range d.names {
			if k.TypeURL == t.TypeURL && !slices.Contains(t.Names, k.Name) {
				t.Names = append(t.Names, k.Name)
			}
		}
	}
}

// grpcTarget is the gRPC target of an xDS server: its own, or the first endpoint of
// a static cluster, with the cluster's TLS context.
func grpcTarget(cfg *bootstrap.Config, at string, a *bootstrap.ADS) (string, *xdsresource.UpstreamTLS, error) {
	if a.Target != "" {
		return a.Target, nil, nil
	}
	c := cfg.Cluster(a.Cluster)
	if c == nil || c.Assignment == nil || len(c.Assignment.Localities) == 0 || len(c.Assignment.Localities[0].Endpoints) == 0 {
		return "", nil, fmt.Errorf("%s: cluster %q is missing in static_resources or has no endpoints", at, a.Cluster)
	}
	spec := c.TransportSocket.TLS
	if spec == nil && (c.TransportSocket.Unknown != "" || len(c.Matches) > 0 || c.TransportSocket.ProxyProtocol != 0) {
		return "", nil, fmt.Errorf("%s: cluster %q: only tls and raw_buffer are supported as transport socket of a control plane", at, a.Cluster)
	}
	switch e := c.Assignment.Localities[0].Endpoints[0]; {
	case e.Pipe != "":
		return "unix:" + e.Pipe, spec, nil // also a relative path
	case e.Address.IsValid():
		return e.Address.String(), spec, nil
	default:
		return fmt.Sprintf("dns:///%s:%d", e.HostName, e.Port), spec, nil
	}
}
