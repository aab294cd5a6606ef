package matcher

import (
	"fmt"

	xdsmatcherv3pb "github.com/cncf/xds/go/xds/type/matcher/v3"
	networkinputsv3pb "github.com/envoyproxy/go-control-plane/envoy/extensions/matching/common_inputs/network/v3"
	sslinputsv3pb "github.com/envoyproxy/go-control-plane/envoy/extensions/matching/common_inputs/ssl/v3"
	ipv3pb "github.com/envoyproxy/go-control-plane/envoy/extensions/matching/input_matchers/ip/v3"
	"google.golang.org/protobuf/types/known/anypb"
	"google.golang.org/protobuf/types/known/wrapperspb"
)

// TreeFromProto compiles an xDS matcher over connection inputs whose actions
// are names of filter chains (google.protobuf.StringValue).
func TreeFromProto(m *xdsmatcherv3pb.Matcher) (*Tree, error) {
	s, err := treeSpec(m, 0)
	if err != nil {
		return nil, err
	}
	return CompileTree(s)
}

func treeSpec(m *xdsmatcherv3pb.Matcher, depth int) (*TreeSpec, error) {
	if depth > maxTreeDepth {
		return nil, fmt.Errorf("nested more than %d deep", maxTreeDepth)
	}
	s := &TreeSpec{}
	if m.GetOnNoMatch() != nil {
		o, err := onMatchFromProto(m.GetOnNoMatch(), depth)
		if err != nil {
			return nil, within("on_no_match", err)
		}
		s.OnNoMatch = &o
	}
	var err error
	switch p := m.GetMatcherType().(type) {
	case nil:
	case *xdsmatcherv3pb.Matcher_MatcherList_:
		for i, f := range p.MatcherList.GetMatchers() {
			var fm FieldMatch
			if fm.Predicate, err = predicateFromProto(f.GetPredicate(), 0); err != nil {
				return nil, within(fmt.Sprintf("matcher_list.matchers[%d].predicate", i), err)
			}
			if fm.OnMatch, err = onMatchFromProto(f.GetOnMatch(), depth); err != nil {
				return nil, within(fmt.Sprintf("matcher_list.matchers[%d].on_match", i), err)
			}
			s.List = append(s.List, fm)
		}
	case *xdsmatcherv3pb.Matcher_MatcherTree_:
		err = within("matcher_tree", branchesFromProto(s, p.MatcherTree, depth))
	}
	return s, err
}

func branchesFromProto(s *TreeSpec, m *xdsmatcherv3pb.Matcher_MatcherTree, depth int) error {
	var err error
	if s.Input, err = inputFromProto(m.GetInput().GetTypedConfig()); err != nil {
		return within("input", err)
	}
	switch t := m.GetTreeType().(type) {
	case *xdsmatcherv3pb.Matcher_MatcherTree_ExactMatchMap:
		s.Exact, err = matchMap(t.ExactMatchMap, depth)
		return within("exact_match_map", err)
	case *xdsmatcherv3pb.Matcher_MatcherTree_PrefixMatchMap:
		s.Prefix, err = matchMap(t.PrefixMatchMap, depth)
		return within("prefix_match_map", err)
	case *xdsmatcherv3pb.Matcher_MatcherTree_CustomMatch:
		var ip xdsmatcherv3pb.IPMatcher
		if err := unpack(t.CustomMatch.GetTypedConfig(), &ip); err != nil {
			return within("custom_match.typed_config", err)
		}
		s.IP = []IPRange{}
		for i, r := range ip.GetRangeMatchers() {
			at := fmt.Sprintf("custom_match.typed_config.range_matchers[%d]", i)
			out := IPRange{Exclusive: r.GetExclusive()}
			if out.Ranges, err = each(r.GetRanges(), xdsCIDR); err != nil {
				return within(at+".ranges", err)
			}
			if out.OnMatch, err = onMatchFromProto(r.GetOnMatch(), depth); err != nil {
				return within(at+".on_match", err)
			}
			s.IP = append(s.IP, out)
		}
		return nil
	}
	return unsupported("tree_type", "none is set or it is not supported")
}

func matchMap(m *xdsmatcherv3pb.Matcher_MatcherTree_MatchMap, depth int) (map[string]OnMatch, error) {
	out := make(map[string]OnMatch, len(m.GetMap()))
	for k, v := range m.GetMap() {
		o, err := onMatchFromProto(v, depth)
		if err != nil {
			return nil, within(fmt.Sprintf("map[%q]", k), err)
		}
		out[k] = o
	}
	return out, nil
}

func onMatchFromProto(m *xdsmatcherv3pb.Matcher_OnMatch, depth int) (OnMatch, error) {
	if m.GetKeepMatching() {
		return OnMatch{}, unsupported("keep_matching", "is not supported")
	}
	switch p := m.GetOnMatch().(type) {
	case *xdsmatcherv3pb.Matcher_OnMatch_Matcher:
		s, err := treeSpec(p.Matcher, depth+1)
		return OnMatch{Tree: s}, within("matcher", err)
	case *xdsmatcherv3pb.Matcher_OnMatch_Action:
		var name wrapperspb.StringValue
		if err := unpack(p.Action.GetTypedConfig(), &name); err != nil {
			return OnMatch{}, within("action.typed_config", err)
		}
		if name.GetValue() == "" {
			return OnMatch{}, badField("action.typed_config.value", "is empty")
		}
		return OnMatch{Action: name.GetValue()}, nil
	}
	return OnMatch{}, badField("on_match", "none is set")
}

func predicateFromProto(m *xdsmatcherv3pb.Matcher_MatcherList_Predicate, depth int) (Predicate, error) {
	if depth > maxTreeDepth {
		return Predicate{}, fmt.Errorf("nested more than %d deep", maxTreeDepth)
	}
	list := func(l *xdsmatcherv3pb.Matcher_MatcherList_Predicate_PredicateList) ([]Predicate, error) {
		return each(l.GetPredicate(), func(p *xdsmatcherv3pb.Matcher_MatcherList_Predicate) (Predicate, error) {
			return predicateFromProto(p, depth+1)
		})
	}
	var out Predicate
	var err error
	switch p := m.GetMatchType().(type) {
	case *xdsmatcherv3pb.Matcher_MatcherList_Predicate_AndMatcher:
		out.And, err = list(p.AndMatcher)
		return out, within("and_matcher.predicate", err)
	case *xdsmatcherv3pb.Matcher_MatcherList_Predicate_OrMatcher:
		out.Or, err = list(p.OrMatcher)
		return out, within("or_matcher.predicate", err)
	case *xdsmatcherv3pb.Matcher_MatcherList_Predicate_NotMatcher:
		n, err := predicateFromProto(p.NotMatcher, depth+1)
		out.Not = &n
		return out, within("not_matcher", err)
	case *xdsmatcherv3pb.Matcher_MatcherList_Predicate_SinglePredicate_:
		err = singlePredicate(&out, p.SinglePredicate)
		return out, within("single_predicate", err)
	}
	return out, badField("match_type", "none is set")
}

func singlePredicate(out *Predicate, m *xdsmatcherv3pb.Matcher_MatcherList_Predicate_SinglePredicate) error {
	var err error
	if out.Input, err = inputFromProto(m.GetInput().GetTypedConfig()); err != nil {
		return within("input", err)
	}
	switch p := m.GetMatcher().(type) {
	case *xdsmatcherv3pb.Matcher_MatcherList_Predicate_SinglePredicate_ValueMatch:
		s, err := stringFromProto(p.ValueMatch, p.ValueMatch.GetSafeRegex().GetRegex())
		out.Value = &s
		return within("value_match", err)
	case *xdsmatcherv3pb.Matcher_MatcherList_Predicate_SinglePredicate_CustomMatch:
		var ip ipv3pb.Ip
		if err := unpack(p.CustomMatch.GetTypedConfig(), &ip); err != nil {
			return within("custom_match.typed_config", err)
		}
		ps, err := CIDRsFromProto(ip.GetCidrRanges())
		out.IPs = NewCIDRSet(ps)
		return within("custom_match.typed_config.cidr_ranges", err)
	}
	return badField("matcher", "none is set")
}

// connInputs are the connection inputs by message name.
var connInputs = map[string]InputKind{
	name(&networkinputsv3pb.DestinationIPInput{}):       InputDestinationIP,
	name(&networkinputsv3pb.DestinationPortInput{}):     InputDestinationPort,
	name(&networkinputsv3pb.SourceIPInput{}):            InputSourceIP,
	name(&networkinputsv3pb.SourcePortInput{}):          InputSourcePort,
	name(&networkinputsv3pb.DirectSourceIPInput{}):      InputDirectSourceIP,
	name(&networkinputsv3pb.SourceTypeInput{}):          InputSourceType,
	name(&networkinputsv3pb.ServerNameInput{}):          InputServerName,
	name(&networkinputsv3pb.TransportProtocolInput{}):   InputTransportProtocol,
	name(&networkinputsv3pb.ApplicationProtocolInput{}): InputApplicationProtocol,
	name(&networkinputsv3pb.FilterStateInput{}):         InputFilterState,
	name(&sslinputsv3pb.UriSanInput{}):                  InputURISAN,
	name(&sslinputsv3pb.DnsSanInput{}):                  InputDNSSAN,
	name(&sslinputsv3pb.SubjectInput{}):                 InputSubject,
}

func inputFromProto(a *anypb.Any) (Input, error) {
	k, ok := connInputs[string(a.MessageName())]
	if !ok {
		return Input{}, unsupported("typed_config", "input %q is not supported", a.GetTypeUrl())
	}
	in := Input{Kind: k}
	if k == InputFilterState {
		var fs networkinputsv3pb.FilterStateInput
		if err := unpack(a, &fs); err != nil {
			return Input{}, within("typed_config", err)
		}
		if fs.GetKey() == "" {
			return Input{}, badField("typed_config.key", "is empty")
		}
		in.Key, in.Field = fs.GetKey(), fs.GetField()
	}
	return in, nil
}
