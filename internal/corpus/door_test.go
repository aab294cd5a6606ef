package corpus

import (
	"fmt"
	"net/netip"
	"slices"
	"strings"
	"testing"

	xdscorev3pb "github.com/cncf/xds/go/xds/core/v3"
	xdsmatcherv3pb "github.com/cncf/xds/go/xds/type/matcher/v3"
	clusterv3pb "github.com/envoyproxy/go-control-plane/envoy/config/cluster/v3"
	corev3pb "github.com/envoyproxy/go-control-plane/envoy/config/core/v3"
	listenerv3pb "github.com/envoyproxy/go-control-plane/envoy/config/listener/v3"
	networkinputsv3pb "github.com/envoyproxy/go-control-plane/envoy/extensions/matching/common_inputs/network/v3"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/anypb"
	"google.golang.org/protobuf/types/known/wrapperspb"
)

// door is a way to a filter chain, as the matchers of its listener say.
type door struct {
	listener string // with the socket
	chain    string
	// What an HBONE client asks for: the authority of its CONNECT, the headers
	// it sends along, and the protocol inside: "http/1.1", "h2c", "tcp", or ""
	// for what the chain speaks.
	authority string
	source    string
	protocol  string
	// What a TLS client asks for.
	sni  string
	alpn []string
	// terminated is TLS that ends at the listener.
	terminated bool
}

func (d door) String() string {
	return strings.Join(strings.Fields(fmt.Sprint(d.listener, " ", d.authority, " ", d.source, " ", d.protocol, " ", d.sni, " ", strings.Join(d.alpn, ","))), " ")
}

// terminates is the listener at which tunnels end.
const terminates, inside = "connect_terminate", "main_internal"

// doors lists the ways to the chains of all listeners with a socket, and of the
// listener behind the tunnels.
func (s *scenario) doors(t *testing.T) []door {
	t.Helper()
	var out []door
	for _, l := range s.listeners {
		switch {
		case l.GetName() == inside:
			w := walker{t: t, emit: func(d door) { out = append(out, d) }}
			w.matcher(l.GetFilterChainMatcher(), door{listener: terminates}, "", "")
		case l.GetInternalListener() != nil, l.GetName() == terminates:
		default:
			for _, fc := range l.GetFilterChains() {
				out = append(out, classic(t, l.GetName(), fc)...)
			}
		}
	}
	return out
}

// classic are the ways that a filter_chain_match describes.
func classic(t *testing.T, listener string, fc *listenerv3pb.FilterChain) []door {
	t.Helper()
	m := proto.CloneOf(fc.GetFilterChainMatch())
	d := door{listener: listener, chain: fc.GetName(), alpn: m.GetApplicationProtocols(), terminated: fc.GetTransportSocket() != nil}
	names := m.GetServerNames()
	if m != nil {
		m.ServerNames, m.ApplicationProtocols = nil, nil
	}
	if proto.Size(m) != 0 {
		t.Fatalf("%s %s: the match has more than names and protocols: %v", listener, fc.GetName(), m)
	}
	if len(names) == 0 {
		return []door{d}
	}
	var out []door
	for _, n := range names {
		d.sni = strings.Replace(n, "*", "any", 1)
		out = append(out, d)
	}
	return out
}

// walker visits the leaves of a matcher tree.
type walker struct {
	t    *testing.T
	emit func(door)
}

func (w walker) matcher(m *xdsmatcherv3pb.Matcher, d door, ip, port string) {
	tree := m.GetMatcherTree()
	if tree == nil {
		w.t.Fatalf("a matcher that is not a tree: %v", m)
	}
	input, err := tree.GetInput().GetTypedConfig().UnmarshalNew()
	if err != nil {
		w.t.Fatal(err)
	}
	if c := tree.GetCustomMatch(); c != nil {
		if _, ok := input.(*networkinputsv3pb.DestinationIPInput); !ok {
			w.t.Fatalf("custom match of %T", input)
		}
		for _, rm := range ipMatcher(w.t, c).GetRangeMatchers() {
			for _, r := range rm.GetRanges() {
				w.onMatch(rm.GetOnMatch(), d, r.GetAddressPrefix(), port)
			}
		}
	}
	keys := tree.GetExactMatchMap().GetMap()
	for _, k := range sortedKeys(keys) {
		next, i, p := d, ip, port
		switch in := input.(type) {
		case *networkinputsv3pb.DestinationPortInput:
			p = k
		case *networkinputsv3pb.ApplicationProtocolInput:
			next.protocol = strings.Trim(k, "'")
		case *networkinputsv3pb.FilterStateInput:
			switch in.GetKey() {
			case "io.istio.connect_authority":
				next.authority = k
			case "io.istio.source":
				next.source = k
			default:
				w.t.Fatalf("filter state %q", in.GetKey())
			}
		default:
			w.t.Fatalf("input %T", input)
		}
		w.onMatch(keys[k], next, i, p)
	}
	if m.GetOnNoMatch() != nil {
		if _, ok := input.(*networkinputsv3pb.ApplicationProtocolInput); ok {
			d.protocol = "tcp"
		}
		w.onMatch(m.GetOnNoMatch(), d, ip, port)
	}
}

func (w walker) onMatch(o *xdsmatcherv3pb.Matcher_OnMatch, d door, ip, port string) {
	if m := o.GetMatcher(); m != nil {
		w.matcher(m, d, ip, port)
		return
	}
	var name wrapperspb.StringValue
	if err := o.GetAction().GetTypedConfig().UnmarshalTo(&name); err != nil {
		w.t.Fatal(err)
	}
	d.chain = name.GetValue()
	if d.authority == "" {
		if port == "" {
			port = "8080" // any does
		}
		a, err := netip.ParseAddrPort(joinHost(ip, port))
		if err != nil {
			w.t.Fatalf("%s: %v", d.chain, err)
		}
		d.authority = a.String()
	}
	w.emit(d)
}

func joinHost(ip, port string) string {
	if strings.Contains(ip, ":") {
		return "[" + ip + "]:" + port
	}
	return ip + ":" + port
}

func ipMatcher(t *testing.T, c *xdscorev3pb.TypedExtensionConfig) *xdsmatcherv3pb.IPMatcher {
	t.Helper()
	var m xdsmatcherv3pb.IPMatcher
	if err := c.GetTypedConfig().UnmarshalTo(&m); err != nil {
		t.Fatal(err)
	}
	return &m
}

func sortedKeys[V any](m map[string]V) []string {
	var out []string
	for k := range m {
		out = append(out, k)
	}
	slices.Sort(out)
	return out
}

// reachable moves the addresses by which chains are chosen to loopback where
// the proxy connects to that very address: workloads, and services without load
// balancing.
func (s *scenario) reachable(t *testing.T, o *origins) {
	t.Helper()
	for _, l := range s.listeners {
		if l.GetName() != inside {
			continue
		}
		m := l.GetFilterChainMatcher()
		for m.GetMatcherTree().GetCustomMatch() == nil {
			m = m.GetOnNoMatch().GetMatcher()
		}
		ips := ipMatcher(t, m.GetMatcherTree().GetCustomMatch())
		for _, rm := range ips.GetRangeMatchers() {
			for _, r := range rm.GetRanges() {
				s.moveRange(t, o, l, rm, r)
			}
		}
		a, err := anypb.New(ips)
		if err != nil {
			t.Fatal(err)
		}
		m.GetMatcherTree().GetCustomMatch().TypedConfig = a
	}
}

func (s *scenario) moveRange(t *testing.T, o *origins, l *listenerv3pb.Listener, rm *xdsmatcherv3pb.IPMatcher_IPRangeMatcher, r *xdscorev3pb.CidrRange) {
	t.Helper()
	w := walker{t: t, emit: func(d door) {
		for _, fc := range l.GetFilterChains() {
			if fc.GetName() != d.chain {
				continue
			}
			for _, c := range s.clustersOf(t, fc) {
				switch {
				case c == "encap":
					r.AddressPrefix = o.tunnelled("encap")
				case s.clusters[c].GetType() == clusterv3pb.Cluster_ORIGINAL_DST:
					port := netip.MustParseAddrPort(d.authority).Port()
					r.AddressPrefix = o.listen(c, int(port)).IP.String()
				default:
					continue
				}
				r.PrefixLen = wrapperspb.UInt32(32)
			}
		}
	}}
	w.onMatch(rm.GetOnMatch(), door{}, r.GetAddressPrefix(), "")
}

// bind gives every listener with a socket a loopback address of its own.
func (s *scenario) bind(t *testing.T, o *origins) map[string]netip.AddrPort {
	t.Helper()
	addrs := map[string]netip.AddrPort{}
	for _, l := range s.listeners {
		sa := l.GetAddress().GetSocketAddress()
		if sa == nil {
			continue
		}
		a := o.free()
		addrs[l.GetName()] = a
		sa.Address = a.Addr().String()
		sa.PortSpecifier = &corev3pb.SocketAddress_PortValue{PortValue: uint32(a.Port())}
		l.AdditionalAddresses = nil
	}
	return addrs
}
