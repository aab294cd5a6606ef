package grpcstats

import (
	"errors"

	grpc_statsv3pb "github.com/envoyproxy/go-control-plane/envoy/extensions/filters/http/grpc_stats/v3"

	"github.com/fairlead-mesh/fairlead/filters"
	"github.com/fairlead-mesh/fairlead/filters/internal/decode"
)

const typeURL = "type.googleapis.com/envoy.extensions.filters.http.grpc_stats.v3.FilterConfig"

// Config is the filter's configuration.
type Config struct{ EmitFilterState bool }

// Decode implements filters.HTTPFactory.
func (Factory) Decode(a filters.Any, d *filters.Decoding) (filters.Config, error) {
	m := &grpc_statsv3pb.FilterConfig{}
	if err := decode.Into(a, m, d); err != nil {
		return nil, err
	}
	if m.GetStatsForAllMethods().GetValue() {
		d.Ignore("stats_for_all_methods", "messages are counted per cluster, not per method")
	}
	if m.GetIndividualMethodStatsAllowlist() != nil {
		d.Ignore("individual_method_stats_allowlist", "messages are counted per cluster, not per method")
	}
	if m.GetEnableUpstreamStats() {
		d.Ignore("enable_upstream_stats", "upstream service times are not reported")
	}
	decode.IgnoreSet(d, m, "messages are counted per cluster, not per service", "replace_dots_in_grpc_service_name")
	return &Config{EmitFilterState: m.GetEmitFilterState()}, nil
}

// DecodeOverride implements filters.HTTPFactory.
func (Factory) DecodeOverride(filters.Any, *filters.Decoding) (filters.Config, error) {
	return nil, errors.New("grpc_stats has no per-route configuration")
}
