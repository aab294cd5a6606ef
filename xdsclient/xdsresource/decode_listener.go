package xdsresource

import (
	"strings"
	"time"

	corev3pb "github.com/envoyproxy/go-control-plane/envoy/config/core/v3"
	listenerv3pb "github.com/envoyproxy/go-control-plane/envoy/config/listener/v3"
	hcmv3pb "github.com/envoyproxy/go-control-plane/envoy/extensions/filters/network/http_connection_manager/v3"
	"google.golang.org/protobuf/encoding/protowire"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/reflect/protoreflect"

	"github.com/fairlead-mesh/fairlead/internal/matcher"
)

const (
	defaultBufferLimit            = 1 << 20
	defaultListenerFiltersTimeout = 15 * time.Second
)

func (s *scope) listener(m *listenerv3pb.Listener) *Listener {
	s.classify(m)
	l := &Listener{
		Resource:                 Resource{Name: m.GetName()},
		Internal:                 m.GetInternalListener() != nil,
		FreeBind:                 m.GetFreebind().GetValue(),
		Transparent:              m.GetTransparent().GetValue(),
		ReusePort:                boolean(m.GetEnableReusePort(), true),
		BindToPort:               boolean(m.GetBindToPort(), true),
		StatPrefix:               m.GetStatPrefix(),
		ListenerFiltersTimeout:   s.duration("listener_filters_timeout", m.GetListenerFiltersTimeout(), defaultListenerFiltersTimeout),
		PerConnectionBufferLimit: u32(m.GetPerConnectionBufferLimitBytes(), defaultBufferLimit),
		Metadata:                 s.metadata(m.GetMetadata()),
		TCPBacklog:               int(m.GetTcpBacklogSize().GetValue()),
	}
	if v1 := m.GetDeprecatedV1(); v1 != nil {
		l.BindToPort = boolean(v1.GetBindToPort(), l.BindToPort)
	}
	switch m.GetTrafficDirection() {
	case corev3pb.TrafficDirection_INBOUND:
		l.Direction = "inbound"
	case corev3pb.TrafficDirection_OUTBOUND:
		l.Direction = "outbound"
	case corev3pb.TrafficDirection_UNSPECIFIED:
	}
	s.listenerAddresses(l, m)
	if l.Name == "" && len(l.Addresses) > 0 {
		l.Name = l.Addresses[0].String()
	}
	l.ListenerFilters = mapEach(m.GetListenerFilters(), func(i int, f *listenerv3pb.ListenerFilter) ListenerFilter {
		s.pushIndex("listener_filters", i)
		defer s.pop()
		return s.listenerFilter(f)
	})
	l.AccessLogs = s.accessLogs("access_log", m.GetAccessLog())
	s.filterChains(l, m)
	if reason := s.takeClosed(0); reason != "" {
		for _, c := range l.FilterChains {
			c.breakBecause(reason)
		}
		if l.DefaultFilterChain != nil {
			l.DefaultFilterChain.breakBecause(reason)
		}
	}
	return l
}

func (s *scope) listenerAddresses(l *Listener, m *listenerv3pb.Listener) {
	if l.Internal {
		if m.GetAddress() != nil {
			s.errorf("address", "an internal listener has no address")
		}
		return
	}
	add := func(field string, a *corev3pb.Address) {
		s.push(field)
		defer s.pop()
		sa := a.GetSocketAddress()
		if sa == nil {
			s.errorf("", "only socket_address is supported")
			return
		}
		l.Addresses = append(l.Addresses, s.addrPort("socket_address", sa, ": a listener binds to addresses"))
		l.IPv4Compat = l.IPv4Compat || sa.GetIpv4Compat()
	}
	if m.GetAddress() == nil {
		s.errorf("address", "is missing: set it, or internal_listener")
		return
	}
	add("address", m.GetAddress())
	for i, a := range m.GetAdditionalAddresses() {
		s.pushIndex("additional_addresses", i)
		add("address", a.GetAddress())
		s.pop()
	}
}

func (s *scope) listenerFilter(f *listenerv3pb.ListenerFilter) ListenerFilter {
	var out ListenerFilter
	if d := f.GetConfigDiscovery(); d != nil {
		out.TypedConfig = TypedConfig{Name: f.GetName()}
		out.ConfigDiscovery = s.discovery(f.GetName(), d, listenerPlugin)
	} else {
		out.TypedConfig = s.plugin(f.GetName(), f.GetTypedConfig(), listenerPlugin)
	}
	if f.GetFilterDisabled() != nil {
		s.push("filter_disabled")
		out.Disabled = s.predicate(f.GetFilterDisabled())
		s.pop()
	}
	return out
}

func (s *scope) predicate(p *listenerv3pb.ListenerFilterChainMatchPredicate) *ListenerFilterPredicate {
	out := &ListenerFilterPredicate{}
	set := func(field string, m *listenerv3pb.ListenerFilterChainMatchPredicate_MatchSet) []*ListenerFilterPredicate {
		s.push(field)
		defer s.pop()
		return mapEach(m.GetRules(), func(i int, r *listenerv3pb.ListenerFilterChainMatchPredicate) *ListenerFilterPredicate {
			s.pushIndex("rules", i)
			defer s.pop()
			return s.predicate(r)
		})
	}
	switch r := p.GetRule().(type) {
	case *listenerv3pb.ListenerFilterChainMatchPredicate_OrMatch:
		out.Or = set("or_match", r.OrMatch)
	case *listenerv3pb.ListenerFilterChainMatchPredicate_AndMatch:
		out.And = set("and_match", r.AndMatch)
	case *listenerv3pb.ListenerFilterChainMatchPredicate_NotMatch:
		s.push("not_match")
		out.Not = s.predicate(r.NotMatch)
		s.pop()
	case *listenerv3pb.ListenerFilterChainMatchPredicate_AnyMatch:
		out.Any = true
	case *listenerv3pb.ListenerFilterChainMatchPredicate_DestinationPortRange:
		start, end := r.DestinationPortRange.GetStart(), r.DestinationPortRange.GetEnd()
		if start < 0 || end <= start || end > 1<<16 {
			s.errorf("destination_port_range", "[%d, %d) is no range of ports", start, end)
			return out
		}
		out.PortStart, out.PortEnd = uint32(start), uint32(end)
	}
	return out
}

func (s *scope) filterChains(l *Listener, m *listenerv3pb.Listener) {
	byMatcher := m.GetFilterChainMatcher() != nil
	seen := map[string]string{}
	names := map[string]bool{}
	l.FilterChains = mapEach(m.GetFilterChains(), func(i int, c *listenerv3pb.FilterChain) *FilterChain {
		s.pushIndex("filter_chains", i)
		defer s.pop()
		if byMatcher {
			if c.GetName() == "" {
				s.errorf("name", "is required with filter_chain_matcher")
			} else if names[c.GetName()] {
				s.errorf("name", "%q is used twice", c.GetName())
			}
		} else {
			key := string(marshal(c.GetFilterChainMatch()))
			if first, dup := seen[key]; dup {
				s.errorf("filter_chain_match", "the same as that of %s", first)
			}
			seen[key] = s.at("")
		}
		names[c.GetName()] = true
		return s.filterChain(c, byMatcher)
	})
	if c := m.GetDefaultFilterChain(); c != nil {
		s.push("default_filter_chain")
		l.DefaultFilterChain = s.filterChain(c, true)
		s.pop()
	}
	if byMatcher {
		t, err := matcher.TreeFromProto(m.GetFilterChainMatcher())
		s.matcherErr("filter_chain_matcher", err)
		l.FilterChainMatcher = t
		if t == nil {
			return
		}
		for _, a := range t.Actions() {
			if !names[a] {
				s.ignore("filter_chain_matcher", "names a filter chain that isn't there; its connections are closed")
			}
		}
	}
	if len(m.GetFilterChains()) == 0 && m.GetDefaultFilterChain() == nil {
		s.errorf("filter_chains", "no filter chain, and no default_filter_chain either")
	}
}

func marshal(m proto.Message) []byte {
	b, _ := proto.MarshalOptions{Deterministic: true}.Marshal(m)
	return b
}

func (s *scope) filterChain(m *listenerv3pb.FilterChain, byMatcher bool) *FilterChain {
	mark := len(s.closed)
	s.classify(m)
	c := &FilterChain{
		Name:                   m.GetName(),
		Digest:                 digest(m),
		Frame:                  frame(m),
		TransportSocketTimeout: s.duration("transport_socket_connect_timeout", m.GetTransportSocketConnectTimeout(), 0),
		Metadata:               s.metadata(m.GetMetadata()),
	}
	if !byMatcher {
		s.push("filter_chain_match")
		c.Match = s.chainMatch(m.GetFilterChainMatch())
		s.pop()
	}
	if ts := m.GetTransportSocket(); ts != nil {
		s.push("transport_socket")
		c.TransportSocket = s.downstreamSocket(ts)
		s.pop()
	}
	for i, f := range m.GetFilters() {
		s.pushIndex("filters", i)
		nf := s.networkFilter(f)
		if last := i == len(m.GetFilters())-1; !last && (nf.HCM != nil || nf.TCPProxy != nil) {
			s.errorf("", "terminal filter %q must be the last one", f.GetName())
		}
		c.Filters = append(c.Filters, nf)
		s.pop()
	}
	c.Broken = s.takeClosed(mark)
	return c
}

// frame is the digest of m without the routes that its connection managers
// hold inline.
func frame(m *listenerv3pb.FilterChain) Digest {
	rest := &listenerv3pb.FilterChain{}
	m.ProtoReflect().Range(func(fd protoreflect.FieldDescriptor, v protoreflect.Value) bool {
		if fd.Name() != "filters" {
			rest.ProtoReflect().Set(fd, v)
		}
		return true
	})
	b := marshal(rest)
	add := func(part []byte) {
		b = protowire.AppendVarint(b, uint64(len(part)))
		b = append(b, part...)
	}
	for _, f := range m.GetFilters() {
		if a := f.GetTypedConfig(); a.MessageIs((*hcmv3pb.HttpConnectionManager)(nil)) {
			add([]byte(f.GetName()))
			add(withoutRoutes(a.GetValue()))
		} else {
			add(marshal(f))
		}
	}
	return hash("frame", b)
}

// withoutRoutes leaves route_config out of a serialized connection manager. What
// isn't well-formed is returned as it is.
func withoutRoutes(b []byte) []byte {
	const routeConfig = 4
	var out []byte
	for rest := b; len(rest) > 0; {
		num, _, n := protowire.ConsumeField(rest)
		if n < 0 {
			return b
		}
		if num != routeConfig {
			out = append(out, rest[:n]...)
		}
		rest = rest[n:]
	}
	return out
}

func (c *FilterChain) breakBecause(reason string) {
	if c.Broken == "" {
		c.Broken = reason
	}
}

func (s *scope) chainMatch(m *listenerv3pb.FilterChainMatch) *FilterChainMatch {
	if m == nil {
		return &FilterChainMatch{}
	}
	out := &FilterChainMatch{
		DestinationPort:      m.GetDestinationPort().GetValue(),
		PrefixRanges:         s.prefixes("prefix_ranges", m.GetPrefixRanges()),
		TransportProtocol:    m.GetTransportProtocol(),
		ApplicationProtocols: m.GetApplicationProtocols(),
		DirectSourceRanges:   s.prefixes("direct_source_prefix_ranges", m.GetDirectSourcePrefixRanges()),
		SourceRanges:         s.prefixes("source_prefix_ranges", m.GetSourcePrefixRanges()),
		SourcePorts:          m.GetSourcePorts(),
	}
	switch m.GetSourceType() {
	case listenerv3pb.FilterChainMatch_ANY:
	case listenerv3pb.FilterChainMatch_SAME_IP_OR_LOOPBACK:
		out.SourceType = SourceSameIPOrLoopback
	case listenerv3pb.FilterChainMatch_EXTERNAL:
		out.SourceType = SourceExternal
	}
	for i, n := range m.GetServerNames() {
		if strings.Contains(strings.TrimPrefix(n, "*."), "*") {
			s.pushIndex("server_names", i)
			s.errorf("", "%q: partial wildcards are not supported", n)
			s.pop()
		}
		out.ServerNames = append(out.ServerNames, strings.ToLower(n))
	}
	return out
}
