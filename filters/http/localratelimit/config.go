package localratelimit

import (
	"errors"
	"fmt"
	"time"

	local_ratelimitv3pb "github.com/envoyproxy/go-control-plane/envoy/extensions/filters/http/local_ratelimit/v3"
	typev3pb "github.com/envoyproxy/go-control-plane/envoy/type/v3"

	"github.com/fairlead-mesh/fairlead/filters"
	"github.com/fairlead-mesh/fairlead/filters/internal/decode"
	"github.com/fairlead-mesh/fairlead/filters/internal/headeredit"
)

const typeURL = "type.googleapis.com/envoy.extensions.filters.http.local_ratelimit.v3.LocalRateLimit"

// Config is LocalRateLimit, of the filter or of a route.
type Config struct {
	StatPrefix string
	// Status answers what is limited, 429 by default.
	Status int
	// Bucket is the token bucket; the zero Bucket limits nothing.
	Bucket Bucket
	// EnabledPPM and EnforcedPPM are parts of a million of the requests.
	EnabledPPM, EnforcedPPM uint32
	// RequestHeaders are added when a limit is hit and not enforced,
	// ResponseHeaders to limited responses.
	RequestHeaders, ResponseHeaders []headeredit.Edit
	PerConnection                   bool
	XRateLimit                      bool // x-ratelimit-* headers
	RetryAfter                      bool
	ResourceExhausted               bool // gRPC status 8 instead of 14
}

// Bucket holds at most Max tokens; Fill are added every Interval.
type Bucket struct {
	Max, Fill uint32
	Interval  time.Duration
}

// Decode implements filters.HTTPFactory.
func (Factory) Decode(a filters.Any, d *filters.Decoding) (filters.Config, error) {
	m := &local_ratelimitv3pb.LocalRateLimit{}
	if err := decode.Into(a, m, d); err != nil {
		return nil, err
	}
	if m.GetStatPrefix() == "" {
		return nil, errors.New("stat_prefix: must not be empty")
	}
	c := &Config{
		StatPrefix: m.GetStatPrefix(), Status: 429, PerConnection: m.GetLocalRateLimitPerDownstreamConnection(),
		RetryAfter: m.GetEnableRetryAfterHeader(), ResourceExhausted: m.GetRateLimitedAsResourceExhausted(), XRateLimit: m.GetEnableXRatelimitHeaders() != 0,
	}
	if s := m.GetStatus().GetCode(); s >= 400 {
		c.Status = int(s)
	}
	var err error
	if m.GetTokenBucket() != nil {
		if c.Bucket, err = decodeBucket(m.GetTokenBucket()); err != nil {
			return nil, fmt.Errorf("token_bucket.%w", err)
		}
	}
	if c.EnabledPPM, err = decode.RuntimePartsPerMillion(m.GetFilterEnabled(), 0, "filter_enabled", d); err != nil {
		return nil, fmt.Errorf("filter_enabled.default_value: %w", err)
	}
	if c.EnforcedPPM, err = decode.RuntimePartsPerMillion(m.GetFilterEnforced(), 0, "filter_enforced", d); err != nil {
		return nil, fmt.Errorf("filter_enforced.default_value: %w", err)
	}
	if c.RequestHeaders, err = headeredit.DecodeOptions(m.GetRequestHeadersToAddWhenNotEnforced(), "request_headers_to_add_when_not_enforced"); err != nil {
		return nil, err
	}
	if c.ResponseHeaders, err = headeredit.DecodeOptions(m.GetResponseHeadersToAdd(), "response_headers_to_add"); err != nil {
		return nil, err
	}
	report(m, d)
	return c, nil
}

// DecodeOverride implements filters.HTTPFactory: the same message, which
// replaces the filter's configuration.
func (f Factory) DecodeOverride(a filters.Any, d *filters.Decoding) (filters.Config, error) {
	return f.Decode(a, d)
}

func decodeBucket(m *typev3pb.TokenBucket) (Bucket, error) {
	b := Bucket{Max: m.GetMaxTokens(), Fill: 1}
	if b.Max == 0 {
		return b, errors.New("max_tokens: must be positive")
	}
	if f := m.GetTokensPerFill(); f != nil {
		if b.Fill = f.GetValue(); b.Fill == 0 {
			return b, errors.New("tokens_per_fill: must be positive")
		}
	}
	var err error
	if b.Interval, err = decode.Duration(m.GetFillInterval(), 0); err != nil {
		return b, fmt.Errorf("fill_interval: %w", err)
	}
	if b.Interval < 50*time.Millisecond {
		return b, fmt.Errorf("fill_interval: %s is less than 50ms", b.Interval)
	}
	return b, nil
}

// report names what is not executed. The plain bucket limits all requests, so
// nothing passes that Envoy would stop by it.
func report(m *local_ratelimitv3pb.LocalRateLimit, d *filters.Decoding) {
	if len(m.GetDescriptors()) > 0 {
		d.Ignore("descriptors", "requests are not told apart; token_bucket limits all of them")
	}
	if len(m.GetRateLimits()) > 0 {
		d.Ignore("rate_limits", "requests are not told apart; token_bucket limits all of them")
	}
	if m.GetLocalClusterRateLimit() != nil {
		d.Ignore("local_cluster_rate_limit", "the limit is not shared among replicas; each has all of it")
	}
}
