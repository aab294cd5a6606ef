package proxy

import (
	"slices"
	"time"

	"github.com/fairlead-mesh/fairlead/internal/admin"
	"github.com/fairlead-mesh/fairlead/internal/stats"
	"github.com/fairlead-mesh/fairlead/proxy/upstream"
	"github.com/fairlead-mesh/fairlead/xdsclient"
	"github.com/fairlead-mesh/fairlead/xdsclient/configdump"
	"github.com/fairlead-mesh/fairlead/xdsclient/xdsresource"
)

// adminHandler is the admin interface of p.
func (p *Process) adminHandler() *admin.Handler {
	src := admin.Source{
		Info: p.info, ConfigDump: p.configDump, Clusters: p.clusterDump, Listeners: p.listenerDump,
		Certs: p.certs, Unsupported: p.unsupported, Memory: p.memoryUse, Stats: p.registry,
		Explain:    p.explain,
		Drain:      p.drain,
		FailHealth: func(fail bool) { p.failed.Store(fail) }, Quit: p.Exit,
	}
	if p.opt.Level != nil {
		src.Logging = admin.LevelVar{V: p.opt.Level}
	}
	return admin.New(src)
}

// drain is /drain_listeners.
func (p *Process) drain(inboundOnly, graceful bool) {
	if inboundOnly {
		p.server.DrainInbound(graceful)
		return
	}
	p.server.DrainListeners(graceful)
}

func (p *Process) info() admin.ServerInfo {
	st := admin.Live
	switch {
	case p.server.Draining():
		st = admin.Draining
	case !p.ready.Load():
		st = admin.Initializing
	}
	reason := ""
	if err := p.Ready(); err != nil {
		reason = err.Error()
	}
	return admin.ServerInfo{Reason: reason, Version: "fairlead/" + p.opt.Version, State: st, Start: p.start, Node: map[string]any{"id": p.node.ID, "cluster": p.node.Cluster, "metadata": p.node.Metadata}}
}

// certificate is one line of /certs: what an operator checks, no key and no PEM.
type certificate struct {
	Name     string     `json:"name"`
	Subject  string     `json:"subject,omitempty"`
	URIs     []string   `json:"uri_sans,omitempty"`
	DNS      []string   `json:"dns_sans,omitempty"`
	Serial   string     `json:"serial_number,omitempty"`
	From     *time.Time `json:"valid_from,omitempty"`
	To       *time.Time `json:"expiration_time,omitempty"`
	DaysLeft *int       `json:"days_until_expiration,omitempty"`
	Error    string     `json:"error,omitempty"`
}

// certs lists the workload's certificate and the secrets in use.
func (p *Process) certs() any {
	out := []certificate{}
	for _, st := range p.server.secrets.States() {
		c := certificate{Name: st.Name}
		if st.Err != nil {
			c.Error = st.Err.Error()
		}
		if l := st.Leaf; l != nil {
			days := int(time.Until(l.NotAfter).Hours() / 24)
			c.Subject, c.DNS, c.Serial, c.From, c.To, c.DaysLeft = l.Subject.String(), l.DNSNames, l.SerialNumber.Text(16), &l.NotBefore, &l.NotAfter, &days
			for _, u := range l.URIs {
				c.URIs = append(c.URIs, u.String())
			}
		}
		out = append(out, c)
	}
	return map[string]any{"certificates": out}
}

// unsupported lists what is configured and not executed as given.
func (p *Process) unsupported() any {
	snap := p.server.Snapshot()
	if snap == nil {
		return []Diagnostic{}
	}
	out := append([]Diagnostic{}, snap.Diagnostics...)
	out = append(out, snap.Resources.IgnoredFields()...)
	out = append(out, p.sources.problems()...)
	if p.client != nil {
		for _, t := range p.client.Status().Types {
			for _, r := range t.Rejected {
				out = append(out, Diagnostic{Resource: t.TypeURL + " " + r.Name, Severity: "error", Message: "rejected: " + r.Err.Error()})
			}
		}
	}
	return out
}

// configDump is the configuration in force, as it was received.
func (p *Process) configDump(eds bool) []any {
	c := configdump.Config{Bootstrap: p.bootstrap, Start: p.start, Dynamic: map[string][]configdump.Resource{}}
	if p.client != nil {
		view := p.client.View()
		for _, t := range p.client.Status().Types {
			rs := []configdump.Resource{}
			for _, r := range view.Sorted(t.TypeURL) {
				rs = append(rs, configdump.Resource{Name: r.Name, Version: r.Version, Raw: r.Raw, Updated: r.Updated})
			}
			for _, r := range t.Rejected {
				rs = failed(rs, r)
			}
			c.Dynamic[t.TypeURL] = rs
		}
	}
	p.sources.dump(c.Dynamic)
	var out []any
	for _, m := range configdump.Build(&c, configdump.Options{Endpoints: eds}) {
		out = append(out, m)
	}
	return out
}

// dump adds what servers of api_config_source and files hold.
func (c *sources) dump(out map[string][]configdump.Resource) {
	add := func(held map[string]map[string]xdsclient.Resource) {
		for t, rs := range held {
			for _, r := range rs {
				out[t] = append(out[t], configdump.Resource{Name: r.Name, Version: r.Version, Raw: r.Raw, Updated: r.Updated})
			}
		}
	}
	refused := func(t string, rs []xdsclient.Rejected) {
		for _, r := range rs {
			out[t] = failed(out[t], r)
		}
	}
	if c.apis != nil {
		add(c.apis.resources())
		for _, st := range c.apis.states() {
			for _, t := range st.status.Types {
				refused(t.TypeURL, t.Rejected)
			}
		}
	}
	add(c.files.Resources())
	for _, f := range c.files.Files() {
		refused(f.TypeURL, f.Rejected)
	}
}

// failed notes that the newest version of a resource was rejected.
func failed(rs []configdump.Resource, r xdsclient.Rejected) []configdump.Resource {
	i := slices.IndexFunc(rs, func(x configdump.Resource) bool { return x.Name == r.Name })
	if i < 0 {
		i = len(rs)
		rs = append(rs, configdump.Resource{Name: r.Name})
	}
	rs[i].Error, rs[i].FailedVersion, rs[i].Failed = r.Err.Error(), r.Version, r.At
	return rs
}

var discoveryNames = map[xdsresource.Discovery]string{
	xdsresource.DiscoveryStatic: "STATIC", xdsresource.DiscoveryEDS: "EDS", xdsresource.DiscoveryStrictDNS: "STRICT_DNS",
	xdsresource.DiscoveryLogicalDNS: "LOGICAL_DNS", xdsresource.DiscoveryOriginalDst: "ORIGINAL_DST", xdsresource.DiscoveryDynamicForwardProxy: "DYNAMIC_FORWARD_PROXY",
}

func (p *Process) clusterDump() []admin.Cluster {
	snap := p.server.Snapshot()
	var out []admin.Cluster
	for _, c := range p.server.clusters.Clusters() {
		ac := admin.Cluster{Name: c.Name, ObservabilityName: c.ObservabilityName, AddedViaAPI: p.server.opt.Static.Clusters[c.Name] == nil, Default: limits(c.Breakers[0]), High: limits(c.Breakers[1])}
		if snap != nil {
			if spec := snap.Resources.Cluster(c.Name); spec != nil {
				ac.Type, ac.EDSServiceName = discoveryNames[spec.Discovery], spec.EDSServiceName
			}
		}
		for _, h := range c.Hosts {
			ah := admin.Host{
				Address: h.Address, Hostname: h.Hostname, Weight: h.Weight, Priority: h.Priority, Region: h.Region, Zone: h.Zone, SubZone: h.SubZone, SuccessRate: h.SuccessRate,
				Stats: admin.HostStats{CxActive: uint64(max(h.CxActive, 0)), CxConnectFail: h.CxConnectFail, CxTotal: h.CxTotal, RqActive: uint64(max(h.RqActive, 0)), RqError: h.RqError, RqSuccess: h.RqSuccess, RqTimeout: h.RqTimeout, RqTotal: h.RqTotal},
			}
			if h.Health != "healthy" && h.Health != "" {
				ah.Health = []string{h.Health}
			}
			ac.Hosts = append(ac.Hosts, ah)
		}
		out = append(out, ac)
	}
	return out
}

func (p *Process) listenerDump() []admin.Listener {
	var out []admin.Listener
	m := *p.server.byName.Load()
	for _, n := range sortedKeys(m) {
		l := admin.Listener{Name: n}
		for _, a := range m[n].Addresses() {
			l.Addresses = append(l.Addresses, a.String())
		}
		out = append(out, l)
	}
	return out
}

// reporter counts what the control plane client sees.
type reporter struct {
	// Seconds since 1970: a configuration is as old as the last response while
	// the control plane is gone.
	connected, lastResponse, goneSince    *stats.Gauge
	streams, failures, responses, rejects *stats.Counter
	gone                                  bool // of the client's goroutine
}

func newReporter(sc *stats.Scope) xdsclient.Reporter {
	return &reporter{
		connected: sc.Gauge("connected"), lastResponse: sc.Gauge("last_response_timestamp_seconds"), goneSince: sc.Gauge("disconnected_since_timestamp_seconds"), streams: sc.Counter("streams_total"), failures: sc.Counter("stream_failures_total"),
		responses: sc.Counter("responses_total"), rejects: sc.Counter("rejected_resources_total"),
	}
}

// Stream implements xdsclient.Reporter.
func (r *reporter) Stream(connected bool, _ error) {
	if connected {
		r.connected.Set(1)
		r.goneSince.Set(0)
		r.gone = false
		r.streams.Inc()
		return
	}
	r.connected.Set(0)
	if !r.gone { // each failed attempt reports, too
		r.gone = true
		r.goneSince.Set(time.Now().Unix())
	}
	r.failures.Inc()
}

// Response implements xdsclient.Reporter.
func (r *reporter) Response(_ string, _, _, rejected int) {
	r.responses.Inc()
	r.lastResponse.Set(time.Now().Unix())
	r.rejects.Add(uint64(rejected))
}

func limits(b upstream.BreakerStatus) admin.Limits {
	return admin.Limits{MaxConnections: b.MaxConnections, MaxPendingRequests: b.MaxPending, MaxRequests: b.MaxRequests, MaxRetries: b.MaxRetries}
}
