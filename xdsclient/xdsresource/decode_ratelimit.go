package xdsresource

import (
	routev3pb "github.com/envoyproxy/go-control-plane/envoy/config/route/v3"

	"github.com/fairlead-mesh/fairlead/internal/ratelimit"
)

// rateLimits converts the rate_limits of a route or virtual host. What can't be
// executed closes it: its requests would pass uncounted.
func (s *scope) rateLimits(ms []*routev3pb.RateLimit) []*ratelimit.Limit {
	var out []*ratelimit.Limit
	for i, m := range ms {
		s.pushIndex("rate_limits", i)
		if m.GetDisableKey() != "" {
			s.ignore("disable_key", noRuntime)
		}
		if m.GetXRatelimitOption() != routev3pb.RateLimit_UNSPECIFIED {
			s.ignore("x_ratelimit_option", "enable_x_ratelimit_headers of the filter applies")
		}
		l, err := ratelimit.FromProto(m)
		if err != nil {
			s.unsupportedErr("", err)
		} else {
			out = append(out, l)
		}
		s.pop()
	}
	return out
}
