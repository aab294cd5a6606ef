package ratelimit

import (
	"encoding/binary"
	"errors"
	"fmt"
	"math"
	"strings"
	"time"

	ratelimitcommonv3pb "github.com/envoyproxy/go-control-plane/envoy/extensions/common/ratelimit/v3"
	ratelimitv3pb "github.com/envoyproxy/go-control-plane/envoy/extensions/filters/http/ratelimit/v3"
	rlsv3pb "github.com/envoyproxy/go-control-plane/envoy/service/ratelimit/v3"
	typev3pb "github.com/envoyproxy/go-control-plane/envoy/type/v3"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/wrapperspb"

	"github.com/fairlead-mesh/fairlead/filters"
	"github.com/fairlead-mesh/fairlead/filters/internal/authcheck"
	"github.com/fairlead-mesh/fairlead/filters/internal/decode"
	"github.com/fairlead-mesh/fairlead/filters/internal/headeredit"
	"github.com/fairlead-mesh/fairlead/internal/ratelimit"
)

const (
	typeURL         = "type.googleapis.com/envoy.extensions.filters.http.ratelimit.v3.RateLimit"
	typeURLPerRoute = "type.googleapis.com/envoy.extensions.filters.http.ratelimit.v3.RateLimitPerRoute"
)

// Config is RateLimit.
type Config struct {
	Domain string
	Stage  uint32
	// Internal and External are the requests that are limited.
	Internal, External bool
	Service            *authcheck.Service
	// DenyPPM are the requests that are denied if the service fails.
	DenyPPM    uint32
	RetryAfter bool // retry-after
	// Own are rate_limits, nil for those of routes and virtual hosts.
	Own               *ratelimit.Policy
	ResourceExhausted bool
	XRateLimit        bool // x-ratelimit-* headers
	NoLimitedHeader   bool // x-envoy-ratelimited
	// Status answers what is limited, StatusOnError what fails and is denied.
	Status, StatusOnError int
	ResponseHeaders       []headeredit.Edit
	StatPrefix            string
	// MetadataNamespace is where dynamic metadata of answers goes.
	MetadataNamespace       string
	EnabledPPM, EnforcedPPM uint32
}

// Override is RateLimitPerRoute.
type Override struct {
	VirtualHost ratelimit.VirtualHostLimits
	Domain      string
	Own         *ratelimit.Policy // nil: the filter's, or those of routes
}

// Decode implements filters.HTTPFactory.
func (Factory) Decode(a filters.Any, d *filters.Decoding) (filters.Config, error) {
	m := &ratelimitv3pb.RateLimit{}
	if err := decode.Strict(a, m); err != nil {
		return nil, err
	}
	c := &Config{
		Domain: m.GetDomain(), Stage: m.GetStage(), RetryAfter: m.GetEnableRetryAfterHeader(), ResourceExhausted: m.GetRateLimitedAsResourceExhausted(),
		XRateLimit: m.GetEnableXRatelimitHeaders() != ratelimitv3pb.RateLimit_OFF, NoLimitedHeader: m.GetDisableXEnvoyRatelimitedHeader(),
		Status: 429, StatusOnError: 500, StatPrefix: m.GetStatPrefix(), MetadataNamespace: m.GetMetadataNamespace(),
	}
	if c.MetadataNamespace == "" {
		c.MetadataNamespace = "envoy.filters.http.ratelimit"
	}
	switch {
	case c.Domain == "":
		return nil, errors.New("domain: must not be empty")
	case c.Stage > 10:
		return nil, fmt.Errorf("stage: %d is greater than 10", c.Stage)
	}
	switch m.GetRequestType() {
	case "", "both":
		c.Internal, c.External = true, true
	case "internal":
		c.Internal = true
	case "external":
		c.External = true
	default:
		return nil, fmt.Errorf("request_type: %q is none of internal, external, both", m.GetRequestType())
	}
	if s := int(m.GetRateLimitedStatus().GetCode()); s >= 400 { // Envoy, too, takes no status below
		c.Status = s
	}
	if s := int(m.GetStatusOnError().GetCode()); s != 0 {
		if s < 400 {
			return nil, fmt.Errorf("status_on_error.code: %d does not refuse", s)
		}
		c.StatusOnError = s
	}
	var err error
	if c.Own, err = decode.RateLimits(m.GetRateLimits(), d); err != nil {
		return nil, err
	}
	deny := uint32(0)
	if m.GetFailureModeDeny() {
		deny = 1_000_000
	}
	if c.DenyPPM, err = decode.RuntimePartsPerMillion(m.GetFailureModeDenyPercent(), deny, "failure_mode_deny_percent", d); err != nil {
		return nil, fmt.Errorf("failure_mode_deny_percent.default_value: %w", err)
	}
	if c.ResponseHeaders, err = headeredit.DecodeOptions(m.GetResponseHeadersToAdd(), "response_headers_to_add"); err != nil {
		return nil, err
	}
	if c.EnabledPPM, err = decode.RuntimePartsPerMillion(m.GetFilterEnabled(), 1_000_000, "filter_enabled", d); err != nil {
		return nil, fmt.Errorf("filter_enabled.default_value: %w", err)
	}
	if c.EnforcedPPM, err = decode.RuntimePartsPerMillion(m.GetFilterEnforced(), 1_000_000, "filter_enforced", d); err != nil {
		return nil, fmt.Errorf("filter_enforced.default_value: %w", err)
	}
	rls := m.GetRateLimitService()
	retry, err := decode.GRPCRetry(rls.GetGrpcService(), d)
	if err != nil {
		return nil, fmt.Errorf("rate_limit_service.%w", err)
	}
	if c.Service, err = authcheck.DecodeService(rls.GetGrpcService(), rls.GetTransportApiVersion(), retry); err != nil {
		return nil, fmt.Errorf("rate_limit_service.%w", err)
	}
	if c.Service.Timeout, err = decode.Duration(m.GetTimeout(), 20*time.Millisecond); err != nil {
		return nil, fmt.Errorf("timeout: %w", err)
	}
	return c, nil
}

// DecodeOverride implements filters.HTTPFactory.
func (Factory) DecodeOverride(a filters.Any, d *filters.Decoding) (filters.Config, error) {
	m := &ratelimitv3pb.RateLimitPerRoute{}
	if err := decode.Strict(a, m); err != nil {
		return nil, err
	}
	o := &Override{Domain: m.GetDomain()}
	var err error
	if o.Own, err = decode.RateLimits(m.GetRateLimits(), d); err != nil {
		return nil, err
	}
	if m.GetOverrideOption() != ratelimitv3pb.RateLimitPerRoute_DEFAULT {
		d.Ignore("override_option", "Envoy doesn't execute it either; vh_rate_limits is")
	}
	switch m.GetVhRateLimits() {
	case ratelimitv3pb.RateLimitPerRoute_OVERRIDE:
	case ratelimitv3pb.RateLimitPerRoute_INCLUDE:
		o.VirtualHost = ratelimit.IncludeVirtualHost
	case ratelimitv3pb.RateLimitPerRoute_IGNORE:
		o.VirtualHost = ratelimit.IgnoreVirtualHost
	default:
		return nil, fmt.Errorf("vh_rate_limits: %d is not supported", m.GetVhRateLimits())
	}
	return o, nil
}

// question is the gRPC frame of a RateLimitRequest.
func question(domain string, ds []ratelimit.Descriptor) ([]byte, error) {
	m := &rlsv3pb.RateLimitRequest{Domain: clean(domain)}
	for i := range ds {
		d := &ds[i]
		x := &ratelimitcommonv3pb.RateLimitDescriptor{IsNegativeHits: d.Negative}
		for _, e := range d.Entries {
			x.Entries = append(x.Entries, &ratelimitcommonv3pb.RateLimitDescriptor_Entry{Key: clean(e.Key), Value: clean(e.Value)})
		}
		if d.Hits != nil {
			x.HitsAddend = wrapperspb.UInt64(*d.Hits)
		}
		if o := d.Override; o != nil {
			x.Limit = &ratelimitcommonv3pb.RateLimitDescriptor_RateLimitOverride{RequestsPerUnit: o.Requests, Unit: typev3pb.RateLimitUnit(o.Unit)}
		}
		m.Descriptors = append(m.Descriptors, x)
	}
	b, err := proto.MarshalOptions{}.MarshalAppend(make([]byte, authcheck.FrameSize, 256), m)
	if err != nil {
		return nil, err
	}
	binary.BigEndian.PutUint32(b[1:], uint32(len(b)-authcheck.FrameSize))
	return b, nil
}

// clean replaces what is no UTF-8.
func clean(s string) string { return strings.ToValidUTF8(s, "\uFFFD") }

// answer is what a service decided.
type answer struct {
	over     bool
	statuses []status
	// request and response are headers to add.
	request, response [][2]string
	body              []byte
	metadata          map[string]any
	// retry is when a descriptor that is over its limit may be asked again, in
	// seconds; 0 if none is.
	retry int64
}

// status is that of one descriptor, if it has a limit.
type status struct {
	name             string
	requests, left   uint32
	window, resetsIn time.Duration
}

var windows = map[rlsv3pb.RateLimitResponse_RateLimit_Unit]time.Duration{
	rlsv3pb.RateLimitResponse_RateLimit_SECOND: time.Second, rlsv3pb.RateLimitResponse_RateLimit_MINUTE: time.Minute,
	rlsv3pb.RateLimitResponse_RateLimit_HOUR: time.Hour, rlsv3pb.RateLimitResponse_RateLimit_DAY: 24 * time.Hour,
	rlsv3pb.RateLimitResponse_RateLimit_WEEK: 7 * 24 * time.Hour, rlsv3pb.RateLimitResponse_RateLimit_MONTH: 30 * 24 * time.Hour,
	rlsv3pb.RateLimitResponse_RateLimit_YEAR: 365 * 24 * time.Hour,
}

func parse(b []byte) (*answer, error) {
	m := &rlsv3pb.RateLimitResponse{}
	if err := proto.Unmarshal(b, m); err != nil {
		return nil, fmt.Errorf("ratelimit: the answer: %w", err)
	}
	a := &answer{over: m.GetOverallCode() == rlsv3pb.RateLimitResponse_OVER_LIMIT, body: m.GetRawBody(), metadata: decode.Struct(m.GetDynamicMetadata())}
	for _, s := range m.GetStatuses() {
		if s.GetCode() == rlsv3pb.RateLimitResponse_OVER_LIMIT {
			a.retry = max(a.retry, 1, s.GetDurationUntilReset().GetSeconds())
		}
		l := s.GetCurrentLimit()
		if l == nil {
			continue
		}
		st := status{name: l.GetName(), requests: l.GetRequestsPerUnit(), left: s.GetLimitRemaining(), window: windows[l.GetUnit()], resetsIn: s.GetDurationUntilReset().AsDuration()}
		if n := time.Duration(l.GetUnitMultiplier().GetValue()); n > 1 {
			st.window = min(st.window, math.MaxInt64/n) * n
		}
		a.statuses = append(a.statuses, st)
	}
	for _, h := range m.GetRequestHeadersToAdd() {
		a.request = appendHeader(a.request, h.GetKey(), h.GetValue(), h.GetRawValue())
	}
	for _, h := range m.GetResponseHeadersToAdd() {
		a.response = appendHeader(a.response, h.GetKey(), h.GetValue(), h.GetRawValue())
	}
	return a, nil
}

func appendHeader(to [][2]string, key, value string, raw []byte) [][2]string {
	if len(raw) > 0 {
		value = string(raw)
	}
	return append(to, [2]string{strings.ToLower(key), value})
}
