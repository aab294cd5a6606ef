package ratelimit

import (
	"errors"
	"fmt"
	"net/netip"
	"strings"

	routev3pb "github.com/envoyproxy/go-control-plane/envoy/config/route/v3"
	exprv3pb "github.com/envoyproxy/go-control-plane/envoy/extensions/rate_limit_descriptors/expr/v3"
	matcherv3pb "github.com/envoyproxy/go-control-plane/envoy/type/matcher/v3"
	metadatav3pb "github.com/envoyproxy/go-control-plane/envoy/type/metadata/v3"
	"google.golang.org/protobuf/types/known/anypb"

	"github.com/fairlead-mesh/fairlead/internal/format"
	"github.com/fairlead-mesh/fairlead/internal/matcher"
)

// FromProto converts a RateLimit. What can't be executed is an error whose text
// starts with the field's path; disable_key and x_ratelimit_option, which limit
// nothing, are left to the caller to report.
func FromProto(m *routev3pb.RateLimit) (*Limit, error) {
	l := &Limit{Stage: m.GetStage().GetValue(), OnDone: m.GetApplyOnStreamDone()}
	switch o := m.GetLimit().GetOverrideSpecifier().(type) {
	case *routev3pb.RateLimit_Override_DynamicMetadata_:
		k, err := metadataKey(o.DynamicMetadata.GetMetadataKey())
		if err != nil {
			return nil, fmt.Errorf("limit.dynamic_metadata.metadata_key: %w", err)
		}
		l.OverrideFrom = &k
	case *routev3pb.RateLimit_Override_RateLimit:
		l.Override = &Override{Requests: o.RateLimit.GetRequestsPerUnit(), Unit: Unit(o.RateLimit.GetUnit())}
	}
	if h := m.GetHitsAddend(); h != nil {
		l.Hits = &Hits{Negative: h.GetIsNegativeHits()}
		if h.GetNumber() != nil {
			n := h.GetNumber().GetValue()
			l.Hits.Number = &n
		}
		if f := h.GetFormat(); f != "" {
			var err error
			if l.Hits.Format, err = format.Compile(f); err != nil {
				return nil, fmt.Errorf("hits_addend.format: %w", err)
			}
		}
	}
	for i, a := range m.GetActions() {
		x, err := actionFromProto(a)
		if err != nil {
			return nil, fmt.Errorf("actions[%d].%w", i, err)
		}
		l.Actions = append(l.Actions, x)
	}
	return l, nil
}

func metadataKey(m *metadatav3pb.MetadataKey) (k MetadataKey, err error) {
	k.Namespace, k.Path, err = matcher.MetadataKeyFromProto(m)
	return k, err
}

func actionFromProto(m *routev3pb.RateLimit_Action) (a Action, err error) {
	in := func(field string) error {
		if err != nil {
			err = fmt.Errorf("%s.%w", field, err)
		}
		return err
	}
	switch x := m.GetActionSpecifier().(type) {
	case *routev3pb.RateLimit_Action_SourceCluster_:
		a = Action{Kind: SourceCluster, Key: "source_cluster"}
	case *routev3pb.RateLimit_Action_DestinationCluster_:
		a = Action{Kind: DestinationCluster, Key: "destination_cluster"}
	case *routev3pb.RateLimit_Action_RemoteAddress_:
		a = Action{Kind: RemoteAddress, Key: "remote_address"}
	case *routev3pb.RateLimit_Action_RequestHeaders_:
		h := x.RequestHeaders
		a = Action{Kind: RequestHeader, Key: h.GetDescriptorKey(), Name: strings.ToLower(h.GetHeaderName()), SkipIfAbsent: h.GetSkipIfAbsent()}
	case *routev3pb.RateLimit_Action_QueryParameters_:
		q := x.QueryParameters
		a = Action{Kind: QueryValue, Key: q.GetDescriptorKey(), Name: q.GetQueryParameterName(), SkipIfAbsent: q.GetSkipIfAbsent()}
	case *routev3pb.RateLimit_Action_MaskedRemoteAddress_:
		a = Action{Kind: MaskedAddress, Key: "masked_remote_address", Mask4: 32, Mask6: 128}
		if v := x.MaskedRemoteAddress.GetV4PrefixMaskLen(); v != nil {
			a.Mask4 = int(v.GetValue())
		}
		if v := x.MaskedRemoteAddress.GetV6PrefixMaskLen(); v != nil {
			a.Mask6 = int(v.GetValue())
		}
	case *routev3pb.RateLimit_Action_GenericKey_:
		a = valueAction(Fixed, x.GenericKey, "generic_key", &err)
		return a, in("generic_key")
	case *routev3pb.RateLimit_Action_HeaderValueMatch_:
		h := x.HeaderValueMatch
		a = valueAction(HeaderMatch, h, "header_match", &err)
		a.Expect = h.GetExpectMatch() == nil || h.GetExpectMatch().GetValue()
		if err == nil {
			a.Headers, err = matcher.HeadersFromProto(h.GetHeaders())
		}
		return a, in("header_value_match")
	case *routev3pb.RateLimit_Action_QueryParameterValueMatch_:
		q := x.QueryParameterValueMatch
		a = valueAction(QueryMatch, q, "query_match", &err)
		a.Expect = q.GetExpectMatch() == nil || q.GetExpectMatch().GetValue()
		if err == nil {
			a.Query, err = matcher.QueryParametersFromProto(q.GetQueryParameters())
		}
		return a, in("query_parameter_value_match")
	case *routev3pb.RateLimit_Action_RemoteAddressMatch_:
		r := x.RemoteAddressMatch
		a = valueAction(AddressMatch, r, "remote_address_match", &err)
		a.Expect = !r.GetAddressMatcher().GetInvertMatch()
		if err == nil {
			a.Ranges, err = ranges(r.GetAddressMatcher())
		}
		return a, in("remote_address_match")
	case *routev3pb.RateLimit_Action_Metadata, *routev3pb.RateLimit_Action_DynamicMetadata:
		return metadataActionFromProto(m)
	case *routev3pb.RateLimit_Action_Extension:
		a, err = expressionFromProto(x.Extension.GetTypedConfig())
		return a, in("extension.typed_config")
	default:
		return a, errors.New("action_specifier: is not supported")
	}
	return a, nil
}

// expressionFromProto converts the one extension that Envoy has, a CEL expression.
func expressionFromProto(m *anypb.Any) (Action, error) {
	var d exprv3pb.Descriptor
	if !m.MessageIs(&d) {
		return Action{}, fmt.Errorf("type_url: descriptors by %q are not supported", m.GetTypeUrl())
	}
	if err := m.UnmarshalTo(&d); err != nil {
		return Action{}, fmt.Errorf("value: %w", err)
	}
	switch {
	case d.GetDescriptorKey() == "":
		return Action{}, errors.New("descriptor_key: must not be empty")
	case d.GetParsed() != nil:
		return Action{}, errors.New("parsed: is not supported, use text")
	}
	e, err := format.CompileCEL(d.GetText())
	if err != nil {
		return Action{}, fmt.Errorf("text: %w", err)
	}
	return Action{Kind: Expression, Key: d.GetDescriptorKey(), Expr: e, SkipIfAbsent: d.GetSkipIfError()}, nil
}

func metadataActionFromProto(m *routev3pb.RateLimit_Action) (Action, error) {
	field, key := "dynamic_metadata", m.GetDynamicMetadata().GetMetadataKey()
	a := Action{Kind: MetadataValue, Key: m.GetDynamicMetadata().GetDescriptorKey(), Default: m.GetDynamicMetadata().GetDefaultValue()}
	if d := m.GetMetadata(); d != nil {
		field, key = "metadata", d.GetMetadataKey()
		a.Key, a.Default, a.SkipIfAbsent = d.GetDescriptorKey(), d.GetDefaultValue(), d.GetSkipIfAbsent()
		a.FromRoute = d.GetSource() == routev3pb.RateLimit_Action_MetaData_ROUTE_ENTRY
	}
	var err error
	if a.Metadata, err = metadataKey(key); err != nil {
		err = fmt.Errorf("%s.metadata_key: %w", field, err)
	}
	return a, err
}

func ranges(m *matcherv3pb.AddressMatcher) ([]netip.Prefix, error) {
	var out []netip.Prefix
	for i, r := range m.GetRanges() {
		a, err := netip.ParseAddr(r.GetAddressPrefix())
		if err != nil {
			return nil, fmt.Errorf("address_matcher.ranges[%d].address_prefix: %w", i, err)
		}
		p, err := a.Prefix(int(r.GetPrefixLen().GetValue()))
		if err != nil {
			return nil, fmt.Errorf("address_matcher.ranges[%d].prefix_len: %w", i, err)
		}
		out = append(out, p)
	}
	return out, nil
}

// valueAction is an action with a value that is rendered.
func valueAction(kind Kind, m interface {
	GetDescriptorKey() string
	GetDescriptorValue() string
	GetDefaultValue() string
}, key string, err *error,
) Action {
	a := Action{Kind: kind, Key: key, Default: m.GetDefaultValue()}
	if k := m.GetDescriptorKey(); k != "" {
		a.Key = k
	}
	if a.Value, *err = format.Compile(m.GetDescriptorValue()); *err != nil {
		*err = fmt.Errorf("descriptor_value: %w", *err)
	}
	return a
}
