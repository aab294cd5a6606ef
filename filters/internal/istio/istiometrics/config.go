package istiometrics

import (
	"fmt"
	"maps"
	"slices"
	"time"

	statspb "istio.io/api/envoy/extensions/stats"

	"github.com/fairlead-mesh/fairlead/filters"
	"github.com/fairlead-mesh/fairlead/filters/internal/decode"
	"github.com/fairlead-mesh/fairlead/internal/format"
)

// TypeURL is the type of the configuration, of the HTTP and the network filter.
const TypeURL = "type.googleapis.com/stats.PluginConfig"

// Config is stats.PluginConfig.
type Config struct {
	// Gateway is reporter SERVER_GATEWAY: a waypoint.
	Gateway             bool
	DisableHostFallback bool
	// Interval is the time between reports on long streams, 5 s by default; 0
	// reports only at the end.
	Interval  time.Duration
	Overrides []Override
}

// Override changes the labels of a metric, or drops it.
type Override struct {
	// Metric is a name without "istio_", "" for all.
	Metric     string
	Drop       bool
	Remove     []string
	Dimensions []Dimension
}

// Dimension is a label whose value is an expression.
type Dimension struct {
	Tag  string
	Expr *format.CEL
}

// Decode decodes PluginConfig.
func Decode(a filters.Any, d *filters.Decoding) (*Config, error) {
	m := &statspb.PluginConfig{}
	if err := decode.Into(a, m, d); err != nil {
		return nil, err
	}
	c := &Config{DisableHostFallback: m.GetDisableHostHeaderFallback()}
	switch m.GetReporter() {
	case statspb.Reporter_UNSPECIFIED:
	case statspb.Reporter_SERVER_GATEWAY:
		c.Gateway = true
	default:
		return nil, fmt.Errorf("reporter: %d is not supported", m.GetReporter())
	}
	var err error
	if c.Interval, err = decode.Duration(m.GetTcpReportingDuration(), 5*time.Second); err != nil {
		return nil, fmt.Errorf("tcp_reporting_duration: %w", err)
	}
	if len(m.GetDefinitions()) > 0 {
		d.Ignore("definitions", "only Istio's standard metrics are reported")
	}
	if m.GetRotationInterval().AsDuration() > 0 {
		d.Ignore("rotation_interval", "series are not expired; their number is bounded")
	}
	for i, o := range m.GetMetrics() {
		path := fmt.Sprintf("metrics[%d]", i)
		out := Override{Metric: o.GetName(), Drop: o.GetDrop(), Remove: o.GetTagsToRemove()}
		if out.Metric != "" && metricIndex(out.Metric) < 0 {
			d.Ignore(path+".name", "no standard metric is called "+out.Metric)
			continue
		}
		if o.GetMatch() != "" {
			d.Ignore(path+".match", "not implemented in Envoy either")
		}
		for _, tag := range slices.Sorted(maps.Keys(o.GetDimensions())) {
			expr, err := format.CompileCEL(o.GetDimensions()[tag])
			if err != nil {
				d.Ignore(path+".dimensions["+tag+"]", "the label is left as it is: "+err.Error())
				continue
			}
			out.Dimensions = append(out.Dimensions, Dimension{tag, expr})
		}
		c.Overrides = append(c.Overrides, out)
	}
	return c, nil
}
