package adaptiveconcurrency

import (
	"errors"
	"fmt"
	"time"

	adaptiveconcurrencyv3pb "github.com/envoyproxy/go-control-plane/envoy/extensions/filters/http/adaptive_concurrency/v3"
	typev3pb "github.com/envoyproxy/go-control-plane/envoy/type/v3"
	"google.golang.org/protobuf/types/known/durationpb"
	"google.golang.org/protobuf/types/known/wrapperspb"

	"github.com/fairlead-mesh/fairlead/filters"
	"github.com/fairlead-mesh/fairlead/filters/internal/decode"
)

const typeURL = "type.googleapis.com/envoy.extensions.filters.http.adaptive_concurrency.v3.AdaptiveConcurrency"

// Config is AdaptiveConcurrency.
type Config struct {
	// Disabled lets all requests pass, unseen.
	Disabled bool
	// Status answers what is over the limit.
	Status   int
	Gradient Gradient
}

// Gradient is GradientControllerConfig.
type Gradient struct {
	// Percentile, 0 to 1, stands for the latencies of a window.
	Percentile float64
	// Update is how long a window is. Min and Max bound the limit that comes of it;
	// where Min is greater, it counts.
	Update   time.Duration
	Min, Max uint32
	// Fixed, if not 0, is what a request takes without load. Else it is measured each
	// Interval, which is up to Jitter (a share of it) longer, by the next Requests
	// of them, of which there are at most Probe at once.
	Fixed           time.Duration
	Interval        time.Duration
	Jitter          float64
	Requests, Probe uint32
	// Buffer is the share by which latency may be greater than without load.
	Buffer float64
}

// Decode implements filters.HTTPFactory.
func (Factory) Decode(a filters.Any, d *filters.Decoding) (filters.Config, error) {
	m := &adaptiveconcurrencyv3pb.AdaptiveConcurrency{}
	if err := decode.Into(a, m, d); err != nil {
		return nil, err
	}
	c := &Config{Status: 503}
	if s := m.GetConcurrencyLimitExceededStatus().GetCode(); s >= 400 {
		c.Status = int(s)
	}
	if e := m.GetEnabled(); e != nil {
		c.Disabled = !e.GetDefaultValue().GetValue()
		if e.GetRuntimeKey() != "" {
			d.Ignore("enabled.runtime_key", "there is no runtime; the default value counts")
		}
	}
	g := m.GetGradientControllerConfig()
	if g == nil {
		return nil, errors.New("gradient_controller_config: must be set")
	}
	if err := c.Gradient.decode(g); err != nil {
		return nil, fmt.Errorf("gradient_controller_config.%w", err)
	}
	return c, nil
}

// DecodeOverride implements filters.HTTPFactory: Envoy has no such configuration.
func (Factory) DecodeOverride(filters.Any, *filters.Decoding) (filters.Config, error) {
	return nil, errors.New("adaptive_concurrency has no per-route configuration, only FilterConfig with disabled")
}

func (c *Gradient) decode(m *adaptiveconcurrencyv3pb.GradientControllerConfig) (err error) {
	if c.Percentile, err = percent(m.GetSampleAggregatePercentile(), 50); err != nil {
		return fmt.Errorf("sample_aggregate_percentile: %w", err)
	}
	if m.GetMinRttCalcParams() == nil {
		return errors.New("min_rtt_calc_params: must be set")
	}
	if err = c.decodeMinimum(m.GetMinRttCalcParams()); err != nil {
		return fmt.Errorf("min_rtt_calc_params.%w", err)
	}
	l := m.GetConcurrencyLimitParams()
	if l == nil {
		return errors.New("concurrency_limit_params: must be set")
	}
	if err = c.decodeLimit(l); err != nil {
		return fmt.Errorf("concurrency_limit_params.%w", err)
	}
	return nil
}

func (c *Gradient) decodeMinimum(m *adaptiveconcurrencyv3pb.GradientControllerConfig_MinimumRTTCalculationParams) (err error) {
	if c.Interval, err = atLeast(m.GetInterval(), time.Millisecond); err != nil {
		return fmt.Errorf("interval: %w", err)
	}
	if c.Fixed, err = atLeast(m.GetFixedValue(), time.Millisecond); err != nil {
		return fmt.Errorf("fixed_value: %w", err)
	}
	if c.Interval == 0 && c.Fixed == 0 {
		return errors.New("interval: must be set, or fixed_value")
	}
	if c.Requests, err = positive(m.GetRequestCount(), 50); err != nil {
		return fmt.Errorf("request_count: %w", err)
	}
	if c.Jitter, err = percent(m.GetJitter(), 15); err != nil {
		return fmt.Errorf("jitter: %w", err)
	}
	if c.Probe, err = positive(m.GetMinConcurrency(), 3); err != nil {
		return fmt.Errorf("min_concurrency: %w", err)
	}
	if c.Buffer, err = percent(m.GetBuffer(), 25); err != nil {
		return fmt.Errorf("buffer: %w", err)
	}
	return nil
}

func (c *Gradient) decodeLimit(m *adaptiveconcurrencyv3pb.GradientControllerConfig_ConcurrencyLimitCalculationParams) (err error) {
	if c.Update, err = atLeast(m.GetConcurrencyUpdateInterval(), time.Nanosecond); err != nil {
		return fmt.Errorf("concurrency_update_interval: %w", err)
	}
	if c.Update == 0 {
		return errors.New("concurrency_update_interval: must be set")
	}
	if c.Max, err = positive(m.GetMaxConcurrencyLimit(), 1000); err != nil {
		return fmt.Errorf("max_concurrency_limit: %w", err)
	}
	if c.Min, err = positive(m.GetMinConcurrencyLimit(), c.Probe); err != nil {
		return fmt.Errorf("min_concurrency_limit: %w", err)
	}
	return nil
}

// atLeast converts a duration; nil is 0.
func atLeast(m *durationpb.Duration, least time.Duration) (time.Duration, error) {
	d, err := decode.Duration(m, 0)
	if err == nil && m != nil && d < least {
		return 0, fmt.Errorf("%s is less than %s", d, least)
	}
	return d, err
}

// percent converts to a share of 1; nil is def.
func percent(m *typev3pb.Percent, def float64) (float64, error) {
	v := def
	if m != nil {
		v = m.GetValue()
	}
	if !(v >= 0 && v <= 100) { // NaN
		return 0, fmt.Errorf("%g is not between 0 and 100", v)
	}
	return v / 100, nil
}

func positive(m *wrapperspb.UInt32Value, def uint32) (uint32, error) {
	if m == nil {
		return def, nil
	}
	if m.GetValue() == 0 {
		return 0, errors.New("must be positive")
	}
	return m.GetValue(), nil
}
