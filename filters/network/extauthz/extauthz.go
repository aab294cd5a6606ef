// Package extauthz is the ext_authz network filter: it asks a gRPC service
// whether a connection may pass.
package extauthz

import (
	"context"
	"fmt"
	"strings"
	"time"

	"github.com/fairlead-mesh/fairlead/filters"
	"github.com/fairlead-mesh/fairlead/filters/internal/authcheck"
	"github.com/fairlead-mesh/fairlead/filters/internal/authz"
	"github.com/fairlead-mesh/fairlead/internal/format"
	"github.com/fairlead-mesh/fairlead/internal/message"
	"github.com/fairlead-mesh/fairlead/internal/stats"
	"github.com/fairlead-mesh/fairlead/internal/streaminfo"
)

// metadataNamespace is where dynamic metadata of answers goes.
const metadataNamespace = "envoy.filters.network.ext_authz"

// Factory makes network ext_authz filters.
type Factory struct{}

// TypeURLs implements filters.NetworkFactory.
func (Factory) TypeURLs() []string { return []string{typeURL} }

// Compile implements filters.NetworkFactory.
func (Factory) Compile(env *filters.Env, cfg filters.Config) (any, error) {
	c, ok := cfg.(*Config)
	if !ok {
		return nil, fmt.Errorf("ext_authz: configuration is a %T", cfg)
	}
	f := &filter{c: c, tell: c.Tell}
	if c.Enabled != nil {
		m, err := authz.MatchMetadata(*c.Enabled)
		if err != nil {
			return nil, fmt.Errorf("ext_authz: filter_enabled_metadata: %w", err)
		}
		f.concerns = m
	}
	if env != nil {
		f.upstreams = env.Upstreams
		f.tell.Labels = authcheck.Labels(env.Node, c.LabelsKey)
		prefix := "envoy_ext_authz_" + metricName(c.StatPrefix) + "_"
		count := func(name string) *stats.Counter { return env.Stats.Counter(prefix + name) }
		f.total, f.ok, f.denied, f.failed = count("total"), count("ok"), count("denied"), count("error")
		f.failedAllowed, f.disabled, f.closed = count("failure_mode_allowed"), count("disabled"), count("cx_closed")
		f.active = env.Stats.Gauge(prefix + "active")
	}
	return f, nil
}

type filter struct {
	c         *Config
	tell      authcheck.Telling
	concerns  func(in authz.Input) bool // nil: every connection
	upstreams filters.Upstreams

	total, ok, denied, failed, failedAllowed, disabled, closed *stats.Counter
	active                                                     *stats.Gauge
}

// OnNewConnection implements filters.NetworkFilter.
func (f *filter) OnNewConnection(c *filters.Connection) error {
	if f.concerns != nil && !f.concerns(authz.Input{Info: c.Info}) {
		f.disabled.Inc()
		return nil
	}
	f.total.Inc()
	f.active.Add(1)
	start := time.Now()
	question := f.tell.AppendConnection(make([]byte, 0, 512), c.Info)
	a, err := f.c.Service.Check(context.Background(), f.upstreams, question, &format.Context{Info: c.Info, Request: &message.Header{}})
	f.active.Add(-1)
	if err != nil {
		a = &authcheck.Answer{Kind: authcheck.Failed}
	}
	for k, v := range a.Metadata {
		c.Info.Metadata.Set(metadataNamespace, k, v)
	}
	reason := "error"
	switch a.Kind {
	case authcheck.OK:
		f.ok.Inc()
		c.Info.Metadata.Set(metadataNamespace, "ext_authz_duration", float64(time.Since(start).Milliseconds()))
		return nil
	case authcheck.Denied:
		f.denied.Inc()
		reason = "denied"
	case authcheck.Failed:
		f.failed.Inc()
		if f.c.AllowOnError {
			f.failedAllowed.Inc()
			return nil
		}
	}
	f.closed.Inc()
	d := &streaminfo.Decision{Filter: "ext_authz", Policy: f.c.Service.Cluster, Reason: reason}
	if err != nil {
		d.Why = err.Error
	}
	c.Info.Details = "ext_authz_" + reason
	return &filters.Denied{Details: c.Info.Details, Flag: streaminfo.UnauthorizedExternalService, Decision: d}
}

// Explain says whether the service would be asked about c. It is not asked.
func (f *filter) Explain(c *filters.Connection) filters.Explanation {
	if f.concerns != nil && !f.concerns(authz.Input{Info: c.Info}) {
		return filters.Explanation{Verdict: filters.VerdictPass, Text: []string{"filter_enabled_metadata does not match: the service is not asked"}}
	}
	return filters.Explanation{
		Verdict: filters.VerdictUnknown,
		Text:    []string{"the service behind cluster " + f.c.Service.Cluster + " would be asked; it is not asked here"},
	}
}

// metricName writes a stat prefix as Envoy's Prometheus output does.
func metricName(prefix string) string {
	return strings.Map(func(r rune) rune {
		if r >= '0' && r <= '9' || r >= 'a' && r <= 'z' || r >= 'A' && r <= 'Z' || r == '_' {
			return r
		}
		return '_'
	}, prefix)
}
