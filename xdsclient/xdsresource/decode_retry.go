package xdsresource

import (
	"strings"
	"time"

	routev3pb "github.com/envoyproxy/go-control-plane/envoy/config/route/v3"
	prioritiesv3pb "github.com/envoyproxy/go-control-plane/envoy/extensions/retry/priority/previous_priorities/v3"

	"github.com/fairlead-mesh/fairlead/internal/matcher"
)

const (
	defaultRetryInterval  = 25 * time.Millisecond
	defaultRateLimitedMax = 300 * time.Second
)

// retryConditions are the names of retry_on, HTTP and gRPC.
var retryConditions = map[string]RetryOn{
	"5xx":                        Retry5xx,
	"gateway-error":              RetryGatewayError,
	"reset":                      RetryReset,
	"reset-before-request":       RetryResetBeforeRequest,
	"connect-failure":            RetryConnectFailure,
	"envoy-ratelimited":          RetryEnvoyRateLimited,
	"retriable-4xx":              RetryRetriable4xx,
	"refused-stream":             RetryRefusedStream,
	"retriable-status-codes":     RetryRetriableStatusCodes,
	"retriable-headers":          RetryRetriableHeaders,
	"http3-post-connect-failure": RetryHTTP3PostConnectFailure,
	"cancelled":                  RetryGRPCCancelled,
	"deadline-exceeded":          RetryGRPCDeadlineExceeded,
	"internal":                   RetryGRPCInternal,
	"resource-exhausted":         RetryGRPCResourceExhausted,
	"unavailable":                RetryGRPCUnavailable,
}

// ParseRetryOn returns the conditions named in list, which is separated by
// commas, and the first name that is unknown ("" if none).
func ParseRetryOn(list string) (on RetryOn, unknown string) {
	for name := range strings.SplitSeq(list, ",") {
		name = strings.TrimSpace(name)
		if name == "" {
			continue
		}
		bit, ok := retryConditions[name]
		if !ok && unknown == "" {
			unknown = name
		}
		on |= bit
	}
	return on, unknown
}

func (s *scope) retryPolicy(m *routev3pb.RetryPolicy) *RetryPolicy {
	on, unknown := ParseRetryOn(m.GetRetryOn())
	if unknown != "" {
		s.ignore("retry_on", "condition "+unknown+" is unknown; the others apply")
	}
	p := &RetryPolicy{
		On:                    on,
		NumRetries:            u32(m.GetNumRetries(), 1),
		PerTryTimeout:         s.duration("per_try_timeout", m.GetPerTryTimeout(), 0),
		PerTryIdleTimeout:     s.duration("per_try_idle_timeout", m.GetPerTryIdleTimeout(), 0),
		BaseInterval:          defaultRetryInterval,
		RateLimitedMax:        defaultRateLimitedMax,
		HostSelectionAttempts: int(min(m.GetHostSelectionRetryMaxAttempts(), 1000)),
	}
	if p.HostSelectionAttempts <= 0 {
		p.HostSelectionAttempts = 1
	}
	for _, c := range m.GetRetriableStatusCodes() {
		p.StatusCodes = append(p.StatusCodes, int(c))
	}
	var err error
	p.RetriableHeaders, err = matcher.HeadersFromProto(m.GetRetriableHeaders())
	s.matcherErr("retriable_headers", err)
	p.RetriableRequestHeaders, err = matcher.HeadersFromProto(m.GetRetriableRequestHeaders())
	s.matcherErr("retriable_request_headers", err)
	s.retryBackOff(p, m)
	s.retryHosts(p, m)
	return p
}

func (s *scope) retryBackOff(p *RetryPolicy, m *routev3pb.RetryPolicy) {
	if b := m.GetRetryBackOff(); b != nil {
		p.BaseInterval = max(s.duration("retry_back_off.base_interval", b.GetBaseInterval(), defaultRetryInterval), time.Millisecond)
		p.MaxInterval = s.duration("retry_back_off.max_interval", b.GetMaxInterval(), 0)
		if b.GetMaxInterval() != nil {
			p.MaxInterval = max(p.MaxInterval, time.Millisecond)
			if p.MaxInterval < p.BaseInterval {
				s.errorf("retry_back_off.max_interval", "must be at least base_interval")
			}
		}
	}
	if p.MaxInterval == 0 {
		p.MaxInterval = 10 * p.BaseInterval
	}
	if b := m.GetRateLimitedRetryBackOff(); b != nil {
		p.RateLimitedMax = s.duration("rate_limited_retry_back_off.max_interval", b.GetMaxInterval(), defaultRateLimitedMax)
		for _, h := range b.GetResetHeaders() {
			p.RateLimitedReset = append(p.RateLimitedReset, RateLimitedReset{
				Name:          strings.ToLower(h.GetName()),
				UnixTimestamp: h.GetFormat() == routev3pb.RetryPolicy_UNIX_TIMESTAMP,
			})
		}
	}
}

func (s *scope) retryHosts(p *RetryPolicy, m *routev3pb.RetryPolicy) {
	for i, h := range m.GetRetryHostPredicate() {
		s.pushIndex("retry_host_predicate", i)
		switch {
		case ExtensionType(h.GetTypedConfig()) == "envoy.extensions.retry.host.previous_hosts.v3.PreviousHostsPredicate",
			h.GetTypedConfig() == nil && h.GetName() == "envoy.retry_host_predicates.previous_hosts":
			p.PreviousHosts = true
		case ExtensionType(h.GetTypedConfig()) == "envoy.extensions.retry.host.omit_canary_hosts.v3.OmitCanaryHostsPredicate",
			h.GetTypedConfig() == nil && h.GetName() == "envoy.retry_host_predicates.omit_canary_hosts":
			p.OmitCanary = true
		default:
			s.ignore("", "predicate "+h.GetName()+" is not supported; a retry may choose any host")
		}
		s.pop()
	}
	if pr := m.GetRetryPriority(); pr != nil {
		s.push("retry_priority")
		var c prioritiesv3pb.PreviousPrioritiesConfig
		if s.unpackStruct(pr.GetTypedConfig(), &c) {
			p.PreviousPriorities = int(max(c.GetUpdateFrequency(), 1))
		} else {
			s.ignore("", "retry priority "+pr.GetName()+" is not supported; retries use the ordinary priorities")
		}
		s.pop()
	}
}
