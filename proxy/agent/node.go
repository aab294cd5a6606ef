package agent

import (
	"fmt"
	"maps"
	"strconv"
	"strings"

	"github.com/fairlead-mesh/fairlead/filters"
	"github.com/fairlead-mesh/fairlead/xdsclient"
)

// userAgent is how this proxy names itself to the control plane.
const userAgent = "fairlead"

// node builds what istiod is told about this proxy.
func (p *parser) node(c *Config) error {
	meta := map[string]any{}
	if pm, ok := c.ProxyConfig["proxyMetadata"].(map[string]any); ok {
		for k, v := range pm {
			if name, ok := strings.CutPrefix(k, "ISTIO_META_"); ok {
				meta[name] = v
			}
		}
	}
	p.env.metadata(meta)
	c.Labels = map[string]string{}
	if static, ok := p.staticLabels(); ok {
		meta["STATIC_LABELS"] = static
		maps.Copy(c.Labels, static)
	}
	for k, v := range p.labels {
		if k != "pod-template-hash" {
			c.Labels[k] = v
		}
	}
	loc := p.locality(c.Labels)
	if len(c.Labels) > 0 {
		meta["LABELS"] = c.Labels
	}
	if len(p.annotations) > 0 {
		meta["ANNOTATIONS"] = p.annotations
	}
	var ips []string
	for _, ip := range c.InstanceIPs {
		ips = append(ips, ip.String())
	}
	set := func(k, v string) {
		if v != "" {
			meta[k] = v
		}
	}
	set("NAME", c.PodName)
	set("NAMESPACE", c.ID.Namespace)
	set("SERVICE_ACCOUNT", c.ID.ServiceAccount)
	set("CLUSTER_ID", c.ClusterID)
	set("INSTANCE_IPS", strings.Join(ips, ","))
	set("OUTLIER_LOG_PATH", c.OutlierLogPath)
	set("WORKLOAD_IDENTITY_SOCKET_FILE", p.env.str("WORKLOAD_IDENTITY_SOCKET_FILE", "socket"))
	if v, _ := meta["ISTIO_VERSION"].(string); v == "" {
		meta["ISTIO_VERSION"] = p.in.IstioVersion
	}
	c.IstioVersion = fmt.Sprint(meta["ISTIO_VERSION"])
	meta["ENVOY_STATUS_PORT"], meta["ENVOY_PROMETHEUS_PORT"] = int(c.Ports.Status), int(c.Ports.Prometheus)
	if !c.XDS.Plaintext {
		meta["PILOT_SAN"] = []any{c.XDS.ServerName}
	}
	if c.Drain.ExitOnZero {
		meta["EXIT_ON_ZERO_ACTIVE_CONNECTIONS"] = "true"
	}
	switch hbone, _ := meta["ENABLE_HBONE"].(string); {
	case c.Role == Waypoint:
		meta["METADATA_DISCOVERY"] = "true"
	case p.env.str("PEER_METADATA_DISCOVERY", "") != "":
		meta["METADATA_DISCOVERY"] = strconv.FormatBool(p.env.boolean("PEER_METADATA_DISCOVERY"))
	default:
		meta["METADATA_DISCOVERY"] = strconv.FormatBool(hbone == "true")
	}
	meta["PROXY_CONFIG"] = c.ProxyConfig

	md, err := clean(meta)
	if err != nil {
		return fmt.Errorf("node metadata: %w", err)
	}
	c.Node = xdsclient.Node{
		ID:      strings.Join([]string{string(c.Role), ips[0], c.PodName + "." + c.ID.Namespace, c.Domain}, "~"),
		Cluster: c.serviceCluster(), UserAgent: userAgent,
		Region: loc[0], Zone: loc[1], SubZone: loc[2], Metadata: md,
	}
	return nil
}

// staticLabels are those of ISTIO_METAJSON_LABELS.
func (p *parser) staticLabels() (map[string]string, bool) {
	v := p.env.str("ISTIO_METAJSON_LABELS", "")
	if v == "" {
		return nil, false
	}
	m := newEnv([]string{"ISTIO_METAJSON_LABELS=" + v})
	all := map[string]any{}
	m.metadata(all)
	out := map[string]string{}
	for k, x := range all {
		if s, ok := x.(string); ok {
			out[k] = s
		}
	}
	return out, len(out) > 0
}

// locality reads region, zone and sub-zone from the labels, where "." stands
// for "/".
func (p *parser) locality(labels map[string]string) (out [3]string) {
	const legacy = "istio-locality"
	l := labels["topology.istio.io/locality"]
	if l == "" {
		l = labels[legacy]
	}
	if l == "" {
		return out
	}
	if !strings.Contains(l, "/") {
		l = strings.ReplaceAll(l, ".", "/")
	}
	labels[legacy] = l
	copy(out[:], strings.SplitN(l, "/", 3))
	return out
}

// serviceCluster is node.cluster, which access logs and traces show.
func (c *Config) serviceCluster() string {
	ns := c.ID.Namespace
	canonical := c.Labels["service.istio.io/canonical-name"]
	if canonical == "" {
		canonical = c.WorkloadName
	}
	switch c.ProxyConfig["tracingServiceName"] {
	case "APP_LABEL_AND_NAMESPACE":
		if app := c.Labels["app"]; app != "" {
			return app + "." + ns
		}
		return "istio-proxy." + ns
	case "CANONICAL_NAME_ONLY":
		return canonical
	case "CANONICAL_NAME_AND_NAMESPACE":
		return canonical + "." + ns
	}
	s, _ := c.ProxyConfig["serviceCluster"].(string)
	return s
}

// FilterNode is what filters may know about this proxy.
func (c *Config) FilterNode() *filters.Node {
	return &filters.Node{
		ID: c.Node.ID, Cluster: c.Node.Cluster, Namespace: c.ID.Namespace, WorkloadName: c.WorkloadName,
		ClusterID: c.ClusterID, Network: c.Network, ServiceAccount: c.ID.ServiceAccount, TrustDomain: c.ID.TrustDomain,
		Region: c.Node.Region, Zone: c.Node.Zone, IstioVersion: c.IstioVersion, Labels: c.Labels, Metadata: c.Node.Metadata,
	}
}
