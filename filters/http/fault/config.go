package fault

import (
	"fmt"
	"time"

	commonfaultv3pb "github.com/envoyproxy/go-control-plane/envoy/extensions/filters/common/fault/v3"
	faultv3pb "github.com/envoyproxy/go-control-plane/envoy/extensions/filters/http/fault/v3"

	"github.com/fairlead-mesh/fairlead/filters"
	"github.com/fairlead-mesh/fairlead/filters/internal/decode"
	"github.com/fairlead-mesh/fairlead/internal/matcher"
)

const typeURL = "type.googleapis.com/envoy.extensions.filters.http.fault.v3.HTTPFault"

// Config is HTTPFault, of the filter or of a route.
type Config struct {
	// Delay holds DelayPPM of a million requests for that long.
	Delay    time.Duration
	DelayPPM uint32
	// HTTPStatus or, if AbortGRPC, GRPCStatus answers AbortPPM of a million.
	HTTPStatus int
	GRPCStatus int
	AbortGRPC  bool
	AbortPPM   uint32
	// Body of the answer.
	Body string
	// Headers, Cluster and Nodes restrict the faults.
	Headers []matcher.Header
	Cluster string
	Nodes   []string
	// MaxActive bounds faults in progress; 0 means no bound.
	MaxActive uint32
}

// Decode implements filters.HTTPFactory.
func (Factory) Decode(a filters.Any, d *filters.Decoding) (filters.Config, error) {
	m := &faultv3pb.HTTPFault{}
	if err := decode.Into(a, m, d); err != nil {
		return nil, err
	}
	c := &Config{Cluster: m.GetUpstreamCluster(), Nodes: m.GetDownstreamNodes(), MaxActive: m.GetMaxActiveFaults().GetValue()}
	if err := c.delay(m.GetDelay(), d); err != nil {
		return nil, fmt.Errorf("delay.%w", err)
	}
	if err := c.abort(m.GetAbort(), d); err != nil {
		return nil, fmt.Errorf("abort.%w", err)
	}
	var err error
	if c.Headers, err = matcher.HeadersFromProto(m.GetHeaders()); err != nil {
		return nil, fmt.Errorf("headers%w", err)
	}
	if m.GetResponseRateLimit() != nil {
		d.Ignore("response_rate_limit", "responses are not slowed down")
	}
	decode.IgnoreSet(d, m, "there is no runtime; the configured values are used", "delay_percent_runtime", "abort_percent_runtime", "delay_duration_runtime",
		"abort_http_status_runtime", "abort_grpc_status_runtime", "max_active_faults_runtime", "response_rate_limit_percent_runtime")
	decode.IgnoreSet(d, m, "faults are not counted by downstream cluster", "disable_downstream_cluster_stats")
	decode.IgnoreSet(d, m, "nothing of the filter reads it", "filter_metadata")
	return c, nil
}

// DecodeOverride implements filters.HTTPFactory: the same message, which
// replaces the filter's configuration.
func (f Factory) DecodeOverride(a filters.Any, d *filters.Decoding) (filters.Config, error) {
	return f.Decode(a, d)
}

func (c *Config) delay(m *commonfaultv3pb.FaultDelay, d *filters.Decoding) error {
	if m == nil {
		return nil
	}
	if m.GetHeaderDelay() != nil {
		d.Ignore("delay.header_delay", "delays chosen by request headers are not injected")
		return nil
	}
	var err error
	if c.Delay, err = decode.Duration(m.GetFixedDelay(), 0); err != nil {
		return fmt.Errorf("fixed_delay: %w", err)
	}
	if c.DelayPPM, err = decode.PartsPerMillion(m.GetPercentage(), 0); err != nil {
		return fmt.Errorf("percentage: %w", err)
	}
	return nil
}

func (c *Config) abort(m *faultv3pb.FaultAbort, d *filters.Decoding) error {
	switch x := m.GetErrorType().(type) {
	case nil:
		return nil
	case *faultv3pb.FaultAbort_HttpStatus:
		if x.HttpStatus < 200 || x.HttpStatus > 599 {
			return fmt.Errorf("http_status: %d is not between 200 and 599", x.HttpStatus)
		}
		c.HTTPStatus = int(x.HttpStatus)
	case *faultv3pb.FaultAbort_GrpcStatus:
		c.GRPCStatus, c.AbortGRPC = int(x.GrpcStatus), true
	default:
		d.Ignore("abort.header_abort", "aborts chosen by request headers are not injected")
		return nil
	}
	var err error
	if c.Body = m.GetResponseBody(); c.Body == "" {
		c.Body = "fault filter abort"
	}
	if c.AbortPPM, err = decode.PartsPerMillion(m.GetPercentage(), 0); err != nil {
		return fmt.Errorf("percentage: %w", err)
	}
	return nil
}
