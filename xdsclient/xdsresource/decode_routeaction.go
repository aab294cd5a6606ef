package xdsresource

import (
	"fmt"
	"math"
	"strings"
	"time"

	corev3pb "github.com/envoyproxy/go-control-plane/envoy/config/core/v3"
	routev3pb "github.com/envoyproxy/go-control-plane/envoy/config/route/v3"
	matcherv3pb "github.com/envoyproxy/go-control-plane/envoy/type/matcher/v3"

	"github.com/fairlead-mesh/fairlead/internal/matcher"
)

const defaultRouteTimeout = 15 * time.Second

func (s *scope) routeAction(m *routev3pb.RouteAction, r *Route) *RouteAction {
	a := &RouteAction{
		PrefixRewrite:        m.GetPrefixRewrite(),
		RegexRewrite:         s.regexRewrite("regex_rewrite", m.GetRegexRewrite()),
		AppendXForwardedHost: m.GetAppendXForwardedHost(),
		Timeout:              s.duration("timeout", m.GetTimeout(), defaultRouteTimeout),
		IdleTimeout:          s.durationPtr("idle_timeout", m.GetIdleTimeout()),
		Mirrors:              s.mirrors(m.GetRequestMirrorPolicies()),
		HighPriority:         m.GetPriority() == corev3pb.RoutingPriority_HIGH,
		RateLimits:           s.rateLimits(m.GetRateLimits()),

		IncludeVirtualHostLimits: m.GetIncludeVhRateLimits().GetValue(),
	}
	s.routeCluster(a, m)
	switch m.GetClusterNotFoundResponseCode() {
	case routev3pb.RouteAction_SERVICE_UNAVAILABLE:
		a.ClusterNotFoundStatus = 503
	case routev3pb.RouteAction_NOT_FOUND:
		a.ClusterNotFoundStatus = 404
	case routev3pb.RouteAction_INTERNAL_SERVER_ERROR:
		a.ClusterNotFoundStatus = 500
	}
	s.pathRewrite(a, m, r)
	s.hostRewrite(a, m)
	s.streamLimits(a, m)
	if m.GetRetryPolicy() != nil {
		s.push("retry_policy")
		a.Retry = s.retryPolicy(m.GetRetryPolicy())
		s.pop()
	}
	a.HashPolicy = s.hashPolicies(m.GetHashPolicy())
	a.Upgrades = mapEach(m.GetUpgradeConfigs(), func(i int, u *routev3pb.RouteAction_UpgradeConfig) Upgrade {
		s.pushIndex("upgrade_configs", i)
		defer s.pop()
		out := Upgrade{
			Type: strings.ToLower(u.GetUpgradeType()), Enabled: boolean(u.GetEnabled(), true),
			Connect: u.GetConnectConfig() != nil,
		}
		if out.Connect && out.Type != "connect" {
			s.errorf("connect_config", "non-CONNECT upgrade type %q has it", u.GetUpgradeType())
		}
		return out
	})
	return a
}

func (s *scope) routeCluster(a *RouteAction, m *routev3pb.RouteAction) {
	switch c := m.GetClusterSpecifier().(type) {
	case *routev3pb.RouteAction_Cluster:
		a.Cluster = c.Cluster
	case *routev3pb.RouteAction_ClusterHeader:
		a.ClusterHeader = strings.ToLower(c.ClusterHeader)
	case *routev3pb.RouteAction_WeightedClusters:
		s.push("weighted_clusters")
		s.weightedClusters(a, c.WeightedClusters)
		s.pop()
	}
}

func (s *scope) weightedClusters(a *RouteAction, m *routev3pb.WeightedCluster) {
	a.WeightedRandomHeader = strings.ToLower(m.GetHeaderName())
	var total uint64
	for i, c := range m.GetClusters() {
		s.pushIndex("clusters", i)
		if (c.GetName() == "") == (c.GetClusterHeader() == "") {
			s.errorf("", "exactly one of name and cluster_header must be set")
		}
		a.Weighted = append(a.Weighted, WeightedCluster{
			Name:            c.GetName(),
			ClusterHeader:   strings.ToLower(c.GetClusterHeader()),
			Weight:          c.GetWeight().GetValue(),
			RequestHeaders:  s.headerMutations("request_headers", c.GetRequestHeadersToAdd(), c.GetRequestHeadersToRemove()),
			ResponseHeaders: s.headerMutations("response_headers", c.GetResponseHeadersToAdd(), c.GetResponseHeadersToRemove()),
			Overrides:       s.overrides(c.GetTypedPerFilterConfig()),
			HostRewrite:     c.GetHostRewriteLiteral(),
		})
		total += uint64(c.GetWeight().GetValue())
		s.pop()
	}
	switch {
	case total == 0:
		s.errorf("", "the sum of weights must be greater than 0")
	case total > math.MaxUint32:
		s.errorf("", "the sum of weights must be at most %d", uint32(math.MaxUint32))
	}
}

func (s *scope) regexRewrite(field string, m *matcherv3pb.RegexMatchAndSubstitute) *RegexRewrite {
	if m == nil {
		return nil
	}
	if _, err := matcher.RegexFromProto(m.GetPattern()); err != nil {
		s.reject(field+".pattern", err)
		return nil
	}
	sub, err := matcher.SubstitutionFromProto(m)
	s.unsupportedErr(field, err) // Envoy finds out with the first request
	return &RegexRewrite{Pattern: sub}
}

func (s *scope) pathRewrite(a *RouteAction, m *routev3pb.RouteAction, r *Route) {
	n := 0
	for _, set := range []bool{m.GetPrefixRewrite() != "", m.GetRegexRewrite() != nil, m.GetPathRewritePolicy() != nil, m.GetPathRewrite() != ""} {
		if set {
			n++
		}
	}
	if n > 1 {
		s.errorf("", "specify only one of prefix_rewrite, regex_rewrite, path_rewrite_policy and path_rewrite")
	}
	if p := m.GetPathRewritePolicy(); p != nil {
		rw, err := matcher.URITemplateRewriteFromProto(p, r.Match.Template)
		s.matcherErr("path_rewrite_policy", err)
		a.PathTemplateRewrite = rw
	}
	if f := m.GetPathRewrite(); f != "" {
		a.PathRewriteFormat = s.format("path_rewrite", f)
	}
}

func (s *scope) hostRewrite(a *RouteAction, m *routev3pb.RouteAction) {
	switch h := m.GetHostRewriteSpecifier().(type) {
	case nil:
	case *routev3pb.RouteAction_HostRewriteLiteral:
		a.HostRewrite.Literal = h.HostRewriteLiteral
	case *routev3pb.RouteAction_AutoHostRewrite:
		a.HostRewrite.Auto = h.AutoHostRewrite.GetValue()
	case *routev3pb.RouteAction_HostRewriteHeader:
		a.HostRewrite.Header = strings.ToLower(h.HostRewriteHeader)
	case *routev3pb.RouteAction_HostRewritePathRegex:
		a.HostRewrite.PathRegex = s.regexRewrite("host_rewrite_path_regex", h.HostRewritePathRegex)
	}
}

func (s *scope) streamLimits(a *RouteAction, m *routev3pb.RouteAction) {
	a.GRPCTimeoutMax = s.durationPtr("max_grpc_timeout", m.GetMaxGrpcTimeout())

	a.GRPCTimeoutOffset = s.duration("grpc_timeout_offset", m.GetGrpcTimeoutOffset(), 0)
	d := m.GetMaxStreamDuration()
	if d == nil {
		return
	}
	s.push("max_stream_duration")
	defer s.pop()
	a.MaxStreamDuration = s.durationPtr("max_stream_duration", d.GetMaxStreamDuration())
	if d.GetGrpcTimeoutHeaderMax() != nil {
		a.GRPCTimeoutMax = s.durationPtr("grpc_timeout_header_max", d.GetGrpcTimeoutHeaderMax())
		a.GRPCTimeoutOffset = s.duration("grpc_timeout_header_offset", d.GetGrpcTimeoutHeaderOffset(), 0)
	}
}

func (s *scope) mirrors(ms []*routev3pb.RouteAction_RequestMirrorPolicy) []Mirror {
	return mapEach(ms, func(i int, m *routev3pb.RouteAction_RequestMirrorPolicy) Mirror {
		s.pushIndex("request_mirror_policies", i)
		defer s.pop()
		if (m.GetCluster() == "") == (m.GetClusterHeader() == "") {
			s.errorf("", "exactly one of cluster and cluster_header must be set")
		}
		return Mirror{
			Cluster:                 m.GetCluster(),
			ClusterHeader:           strings.ToLower(m.GetClusterHeader()),
			Fraction:                s.runtimeFraction(m.GetRuntimeFraction(), 1),
			DisableShadowHostSuffix: m.GetDisableShadowHostSuffixAppend(),
		}
	})
}

func (s *scope) hashPolicies(ms []*routev3pb.RouteAction_HashPolicy) []HashPolicy {
	var out []HashPolicy
	for i, m := range ms {
		s.pushIndex("hash_policy", i)
		h := HashPolicy{Terminal: m.GetTerminal()}
		ok := true
		switch p := m.GetPolicySpecifier().(type) {
		case *routev3pb.RouteAction_HashPolicy_Header_:
			h.Header = strings.ToLower(p.Header.GetHeaderName())
			h.HeaderRegex = s.regexRewrite("header.regex_rewrite", p.Header.GetRegexRewrite())
		case *routev3pb.RouteAction_HashPolicy_Cookie_:
			h.Cookie = &HashCookie{Name: p.Cookie.GetName(), Path: p.Cookie.GetPath(), TTL: s.durationPtr("cookie.ttl", p.Cookie.GetTtl())}
			for _, a := range p.Cookie.GetAttributes() {
				h.Cookie.Attributes = append(h.Cookie.Attributes, [2]string{a.GetName(), a.GetValue()})
			}
		case *routev3pb.RouteAction_HashPolicy_ConnectionProperties_:
			h.SourceIP = p.ConnectionProperties.GetSourceIp()
			ok = h.SourceIP
		case *routev3pb.RouteAction_HashPolicy_QueryParameter_:
			h.QueryParameter = p.QueryParameter.GetName()
		case *routev3pb.RouteAction_HashPolicy_FilterState_:
			h.FilterState = p.FilterState.GetKey()
		default:
			ok = false
			s.ignore("policy_specifier", fmt.Sprintf("%T is not supported; the others decide", p))
		}
		if ok {
			out = append(out, h)
		}
		s.pop()
	}
	return out
}
