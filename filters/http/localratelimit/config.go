package localratelimit

import (
	"errors"
	"fmt"
	"slices"
	"time"

	ratelimitcommonv3pb "github.com/envoyproxy/go-control-plane/envoy/extensions/common/ratelimit/v3"
	local_ratelimitv3pb "github.com/envoyproxy/go-control-plane/envoy/extensions/filters/http/local_ratelimit/v3"
	typev3pb "github.com/envoyproxy/go-control-plane/envoy/type/v3"

	"github.com/fairlead-mesh/fairlead/filters"
	"github.com/fairlead-mesh/fairlead/filters/internal/decode"
	"github.com/fairlead-mesh/fairlead/filters/internal/headeredit"
	"github.com/fairlead-mesh/fairlead/internal/ratelimit"
)

const typeURL = "type.googleapis.com/envoy.extensions.filters.http.local_ratelimit.v3.LocalRateLimit"

// Config is LocalRateLimit, of the filter or of a route.
type Config struct {
	StatPrefix string
	// Status answers what is limited, 429 by default.
	Status int
	// Bucket is the token bucket; the zero Bucket limits nothing. With
	// AlwaysDefault it counts requests that a descriptor matches, too.
	Bucket        Bucket
	AlwaysDefault bool
	// Descriptors have buckets of their own, those with an empty value MaxDynamic
	// of them, one for each value.
	Descriptors []Descriptor
	MaxDynamic  int
	// Own are rate_limits, whatever Stage and VirtualHost are. If it is nil, those
	// of route and virtual host count that are of this Stage.
	Own         *ratelimit.Policy
	Stage       uint32
	VirtualHost ratelimit.VirtualHostLimits
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

// Descriptor limits requests of which a descriptor has these entries, in this
// order and no others. An empty value matches all. In shadow mode it only counts.
type Descriptor struct {
	Entries []ratelimit.Entry
	Bucket  Bucket
	Shadow  bool
}

// Bucket holds at most Max tokens, none if that is 0; Fill are added every
// Interval.
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
	if err = c.descriptors(m, d); err != nil {
		return nil, err
	}
	if m.GetLocalClusterRateLimit() != nil {
		d.Ignore("local_cluster_rate_limit", "the limit is not shared among replicas; each has all of it")
	}
	return c, nil
}

// DecodeOverride implements filters.HTTPFactory: the same message, which
// replaces the filter's configuration.
func (f Factory) DecodeOverride(a filters.Any, d *filters.Decoding) (filters.Config, error) {
	return f.Decode(a, d)
}

// defaultDynamic is the default of max_dynamic_descriptors.
const defaultDynamic = 20

// descriptors decodes what tells requests apart.
func (c *Config) descriptors(m *local_ratelimitv3pb.LocalRateLimit, d *filters.Decoding) (err error) {
	c.AlwaysDefault = m.GetAlwaysConsumeDefaultTokenBucket() == nil || m.GetAlwaysConsumeDefaultTokenBucket().GetValue()
	if c.Stage = m.GetStage(); c.Stage > 10 {
		return fmt.Errorf("stage: %d is greater than 10", c.Stage)
	}
	switch m.GetVhRateLimits() {
	case ratelimitcommonv3pb.VhRateLimitsOptions_OVERRIDE:
	case ratelimitcommonv3pb.VhRateLimitsOptions_INCLUDE:
		c.VirtualHost = ratelimit.IncludeVirtualHost
	case ratelimitcommonv3pb.VhRateLimitsOptions_IGNORE:
		c.VirtualHost = ratelimit.IgnoreVirtualHost
	default:
		return fmt.Errorf("vh_rate_limits: %d is not supported", m.GetVhRateLimits())
	}
	c.MaxDynamic = defaultDynamic
	if n := m.GetMaxDynamicDescriptors(); n != nil {
		if n.GetValue() == 0 {
			return errors.New("max_dynamic_descriptors: must be positive")
		}
		c.MaxDynamic = int(min(n.GetValue(), maxBuckets))
	}
	for i, x := range m.GetDescriptors() {
		y, err := decodeDescriptor(x)
		if err != nil {
			return fmt.Errorf("descriptors[%d].%w", i, err)
		}
		if slices.ContainsFunc(c.Descriptors, func(o Descriptor) bool { return slices.Equal(o.Entries, y.Entries) }) {
			return fmt.Errorf("descriptors[%d].entries: are those of another descriptor", i)
		}
		c.Descriptors = append(c.Descriptors, y)
	}
	for i, l := range m.GetRateLimits() {
		if l.GetApplyOnStreamDone() {
			d.Ignore(fmt.Sprintf("rate_limits[%d].apply_on_stream_done", i), "tokens are taken before the request goes on, as by Envoy")
		}
	}
	c.Own, err = decode.RateLimits(m.GetRateLimits(), d)
	return err
}

func decodeDescriptor(m *ratelimitcommonv3pb.LocalRateLimitDescriptor) (Descriptor, error) {
	d := Descriptor{Shadow: m.GetShadowMode()}
	if len(m.GetEntries()) == 0 {
		return d, errors.New("entries: must not be empty")
	}
	for i, e := range m.GetEntries() {
		if e.GetKey() == "" {
			return d, fmt.Errorf("entries[%d].key: must not be empty", i)
		}
		d.Entries = append(d.Entries, ratelimit.Entry{Key: e.GetKey(), Value: e.GetValue()})
	}
	if m.GetTokenBucket() == nil {
		return d, errors.New("token_bucket: must be set")
	}
	var err error
	if d.Bucket, err = decodeBucket(m.GetTokenBucket()); err != nil {
		return d, fmt.Errorf("token_bucket.%w", err)
	}
	return d, nil
}

func decodeBucket(m *typev3pb.TokenBucket) (Bucket, error) {
	b := Bucket{Max: m.GetMaxTokens(), Fill: 1}
	if f := m.GetTokensPerFill(); f != nil {
		if b.Fill = f.GetValue(); b.Fill == 0 {
			return b, errors.New("tokens_per_fill: must be positive")
		}
	}
	var err error
	if b.Interval, err = decode.Duration(m.GetFillInterval(), 0); err != nil {
		return b, fmt.Errorf("fill_interval: %w", err)
	}
	if b.Interval <= 0 || b.Max > 0 && b.Interval < 50*time.Millisecond {
		return b, fmt.Errorf("fill_interval: %s is less than 50ms", b.Interval)
	}
	return b, nil
}
