package upstream

import (
	"slices"
	"strconv"

	"github.com/fairlead-mesh/fairlead/internal/explain"
	"github.com/fairlead-mesh/fairlead/xdsclient/xdsresource"
)

var discoveryNames = map[xdsresource.Discovery]string{
	xdsresource.DiscoveryStatic: "STATIC", xdsresource.DiscoveryEDS: "EDS", xdsresource.DiscoveryStrictDNS: "STRICT_DNS",
	xdsresource.DiscoveryLogicalDNS: "LOGICAL_DNS", xdsresource.DiscoveryOriginalDst: "ORIGINAL_DST",
	xdsresource.DiscoveryDynamicForwardProxy: "DYNAMIC_FORWARD_PROXY",
}

// Explain describes c for out: type, hosts with their health, and what stands in
// the way of a request. It picks nobody and resolves nothing.
func (c *Cluster) Explain(out *explain.Upstream) {
	out.Cluster, out.Type, out.TLS = c.Name(), discoveryNames[c.spec.Discovery], c.spec.TransportSocket.TLS != nil
	hosts := c.status(false).Hosts
	for i := range hosts {
		h := &hosts[i]
		e := explain.Host{Address: h.Address, Hostname: h.Hostname, Health: h.Health, Weight: h.Weight, Priority: h.Priority, Locality: h.Region}
		for _, l := range []string{h.Zone, h.SubZone} {
			if l != "" {
				e.Locality += "/" + l
			}
		}
		out.Hosts = append(out.Hosts, e)
	}
	if c.unresolved() {
		c.explainNames(out)
		return
	}
	able := slices.ContainsFunc(c.allHosts(), (*Host).Healthy)
	switch {
	case c.spec.Broken != "":
		out.Problem = "the cluster can't be used: " + c.spec.Broken
	case c.dynamic != nil: // finds its host when the request comes
	case len(hosts) == 0:
		out.Problem = "the cluster has no endpoints"
	case !able && c.set.Load().lb.Panicking(0):
		out.Problem = "no endpoint is healthy; panic mode takes them all the same"
	case !able:
		out.Problem = "no endpoint is healthy"
	}
}

// unresolved tells that the hosts are names, and that names are not resolved
// here.
func (c *Cluster) unresolved() bool {
	return c.m.opt.Offline && (c.spec.Discovery == xdsresource.DiscoveryStrictDNS || c.spec.Discovery == xdsresource.DiscoveryLogicalDNS)
}

// explainNames lists the names that would be resolved.
func (c *Cluster) explainNames(out *explain.Upstream) {
	if c.spec.Assignment == nil {
		return
	}
	for i := range c.spec.Assignment.Localities {
		for k := range c.spec.Assignment.Localities[i].Endpoints {
			e := &c.spec.Assignment.Localities[i].Endpoints[k]
			a := e.HostName + ":" + strconv.FormatUint(uint64(e.Port), 10)
			if e.Address.IsValid() {
				a = e.Address.String()
			}
			out.Hosts = append(out.Hosts, explain.Host{Address: a, Health: "not resolved here", Weight: max(1, e.Weight), Priority: c.spec.Assignment.Localities[i].Priority})
		}
	}
}

// Usable reports whether a request to c would find a host, as far as that can be
// told without asking a resolver.
func (c *Cluster) Usable() bool {
	if c.spec.Broken != "" {
		return false
	}
	if c.dynamic != nil || c.unresolved() {
		return true
	}
	hosts := c.hosts()
	return slices.ContainsFunc(hosts, (*Host).Healthy) || len(hosts) > 0 && c.set.Load().lb.Panicking(0)
}

// InternalHost returns the first host that is an internal listener, nil if there
// is none, with the options that a hop to it is made with.
func (c *Cluster) InternalHost(o ConnectOptions) (*Host, *ConnectOptions) {
	for _, h := range c.hosts() {
		if h.Internal() == "" {
			continue
		}
		if h.socket.Internal != nil {
			o.Passthrough, o.ClusterMetadata = h.socket.Internal.Passthrough, &c.spec.Metadata
		}
		return h, &o
	}
	return nil, nil
}
