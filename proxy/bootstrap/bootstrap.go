// Package bootstrap reads Envoy v3 bootstrap files, YAML or JSON, into plain
// structs: who this proxy is, its static resources, where dynamic ones come
// from, and the admin address.
package bootstrap

import (
	"errors"
	"fmt"
	"io/fs"
	"net/netip"
	"slices"
	"sort"

	bootstrapv3pb "github.com/envoyproxy/go-control-plane/envoy/config/bootstrap/v3"
	corev3pb "github.com/envoyproxy/go-control-plane/envoy/config/core/v3"
	"google.golang.org/protobuf/proto"

	"github.com/fairlead-mesh/fairlead/filters"
	"github.com/fairlead-mesh/fairlead/internal/dns"
	"github.com/fairlead-mesh/fairlead/xdsclient/xdsresource"
)

// Config is a decoded bootstrap. It is immutable.
type Config struct {
	Node     filters.Node
	Locality Locality

	// Static resources, in the order of the file.
	Listeners []*xdsresource.Listener
	Clusters  []*xdsresource.Cluster
	Secrets   []*xdsresource.Secret

	// ADS is nil without ads_config. LDS and CDS are nil if not configured,
	// else ADS or Path is set.
	ADS      *ADS
	LDS, CDS *xdsresource.ConfigSource

	// DNS is how names are resolved for clusters that don't say; nil is the
	// system's way.
	DNS *dns.Config

	// Admin is where the admin interface listens; both are zero if nowhere.
	Admin Admin

	// Ignored lists what the file sets outside of static resources without
	// effect; those have lists of their own.
	Ignored []filters.Ignored

	// Raw is the file as a serialized envoy.config.bootstrap.v3.Bootstrap.
	Raw []byte

	doc *xdsresource.Document
}

// Line returns the line of the file where the field at path is, or the nearest
// part of the path that exists; 0 if that is unknown.
func (c *Config) Line(path string) int {
	if c.doc == nil {
		return 0
	}
	return c.doc.Line(path)
}

// Locality is where this proxy runs.
type Locality struct{ Region, Zone, SubZone string }

// Admin is the address of the admin interface: an IP address, or a Unix
// socket's path.
type Admin struct {
	Address netip.AddrPort
	Pipe    string
	// Mode are the permissions of Pipe, 0 for what the umask leaves.
	Mode fs.FileMode
}

// ADS is how to reach the control plane. Either Cluster or Target is set.
type ADS struct {
	// StateOfTheWorld is set for api_type GRPC; else it is delta xDS.
	StateOfTheWorld bool
	// Cluster names one of Config.Clusters.
	Cluster string
	// Target is a gRPC target.
	Target string
	// Plaintext is true for local_credentials, or none, with Target.
	Plaintext bool
	// RootCAs, CertChain and PrivateKey are PEM, nil if not configured: the
	// system's CAs, and no client certificate.
	RootCAs, CertChain, PrivateKey []byte
	// Metadata are headers of the stream.
	Metadata [][2]string
}

// Cluster returns the static cluster called name, nil if there is none.
func (c *Config) Cluster(name string) *xdsresource.Cluster {
	for _, cl := range c.Clusters {
		if cl.Name == name {
			return cl
		}
	}
	return nil
}

// Parse decodes doc; dec decodes the static resources. If the error is a
// *xdsresource.ParseError, it lists everything that is wrong, with paths and
// lines.
func Parse(doc []byte, dec *xdsresource.Decoder) (*Config, error) {
	d, err := xdsresource.ParseDocument(doc)
	if err != nil {
		return nil, err
	}
	var m bootstrapv3pb.Bootstrap
	if err := d.Into(&m); err != nil {
		return nil, err
	}
	p := parser{dec: dec, doc: d, cfg: &Config{doc: d}}
	if p.cfg.Raw, err = proto.Marshal(&m); err != nil {
		return nil, err
	}
	ignored, err := xdsresource.Classify(&m)
	p.fail("", err)
	p.cfg.Ignored = ignored
	p.resolver(&m)
	p.node(m.GetNode())
	p.static(m.GetStaticResources())
	p.admin(m.GetAdmin())
	p.dynamic(m.GetDynamicResources())
	p.extensions(m.GetBootstrapExtensions())
	if len(p.problems) > 0 {
		sort.SliceStable(p.problems, func(i, j int) bool { return p.problems[i].Line < p.problems[j].Line })
		return nil, &xdsresource.ParseError{Problems: p.problems}
	}
	return p.cfg, nil
}

// parser collects problems while it fills cfg.
type parser struct {
	dec      *xdsresource.Decoder
	doc      *xdsresource.Document
	cfg      *Config
	problems []xdsresource.Problem
}

func (p *parser) fail(path string, err error) {
	for _, pr := range p.doc.Problems(path, err) {
		if !p.reported(pr) {
			p.problems = append(p.problems, pr)
		}
	}
}

// reported tells whether the same problem was found before: the constraints of
// the whole file include those of its resources.
func (p *parser) reported(pr xdsresource.Problem) bool {
	return slices.Contains(p.problems, pr)
}

func (p *parser) failf(path, format string, args ...any) { p.fail(path, fmt.Errorf(format, args...)) }

func (p *parser) resolver(m *bootstrapv3pb.Bootstrap) {
	c, ignored, err := xdsresource.DNSResolver(m.GetTypedDnsResolverConfig(), m.GetDnsResolutionConfig(), m.GetUseTcpForDnsLookups())
	p.fail("", err)
	p.cfg.DNS, p.cfg.Ignored = c, append(p.cfg.Ignored, ignored...)
}

func (p *parser) node(n *corev3pb.Node) {
	md := n.GetMetadata().AsMap()
	text := func(key string) string {
		s, _ := md[key].(string)
		return s
	}
	out := &p.cfg.Node
	out.ID, out.Cluster, out.Metadata = n.GetId(), n.GetCluster(), md
	out.Namespace = text("NAMESPACE")
	out.WorkloadName = text("WORKLOAD_NAME")
	out.ClusterID = text("CLUSTER_ID")
	out.Network = text("NETWORK")
	out.ServiceAccount = text("SERVICE_ACCOUNT")
	out.TrustDomain = text("TRUST_DOMAIN")
	out.IstioVersion = text("ISTIO_VERSION")
	if labels, ok := md["LABELS"].(map[string]any); ok {
		out.Labels = make(map[string]string, len(labels))
		for k, v := range labels {
			if s, ok := v.(string); ok {
				out.Labels[k] = s
			}
		}
	}
	l := n.GetLocality()
	out.Region, out.Zone = l.GetRegion(), l.GetZone()
	p.cfg.Locality = Locality{Region: l.GetRegion(), Zone: l.GetZone(), SubZone: l.GetSubZone()}
}

func (p *parser) static(m *bootstrapv3pb.Bootstrap_StaticResources) {
	for i, c := range m.GetClusters() {
		add(p, "clusters", i, c, &p.cfg.Clusters, func(c *xdsresource.Cluster) string { return c.Name })
	}
	for i, l := range m.GetListeners() {
		add(p, "listeners", i, l, &p.cfg.Listeners, func(l *xdsresource.Listener) string { return l.Name })
	}
	for i, s := range m.GetSecrets() {
		add(p, "secrets", i, s, &p.cfg.Secrets, func(s *xdsresource.Secret) string { return s.Name })
	}
}

func add[T any](p *parser, field string, i int, m proto.Message, to *[]T, name func(T) string) {
	path := fmt.Sprintf("static_resources.%s[%d]", field, i)
	v, err := p.dec.Message(m)
	if err != nil {
		p.fail(path, err)
		return
	}
	t, ok := v.(T)
	if !ok {
		p.failf(path, "decoded as %T", v)
		return
	}
	for _, other := range *to {
		if name(other) == name(t) {
			p.failf(path, "name %q is used twice", name(t))
		}
	}
	*to = append(*to, t)
}

func (p *parser) admin(m *bootstrapv3pb.Admin) {
	switch a := m.GetAddress().GetAddress().(type) {
	case *corev3pb.Address_SocketAddress:
		ip, err := netip.ParseAddr(a.SocketAddress.GetAddress())
		if err != nil {
			p.failf("admin.address.socket_address.address", "%q is not an IP address", a.SocketAddress.GetAddress())
			return
		}
		port := a.SocketAddress.GetPortValue()
		if port > 65535 {
			p.failf("admin.address.socket_address.port_value", "must be at most 65535")
			return
		}
		p.cfg.Admin.Address = netip.AddrPortFrom(ip, uint16(port))
	case *corev3pb.Address_Pipe:
		p.cfg.Admin.Pipe, p.cfg.Admin.Mode = a.Pipe.GetPath(), fs.FileMode(a.Pipe.GetMode())
	case *corev3pb.Address_EnvoyInternalAddress:
		p.fail("admin.address", errors.New("must be a socket_address or pipe"))
	}
}
