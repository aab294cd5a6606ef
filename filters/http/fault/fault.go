// Package fault is the fault HTTP filter: it delays requests or answers them
// with errors, for tests of resilience.
package fault

import (
	"fmt"
	"slices"
	"strconv"
	"time"

	"github.com/fairlead-mesh/fairlead/filters"
	"github.com/fairlead-mesh/fairlead/internal/matcher"
	"github.com/fairlead-mesh/fairlead/internal/stats"
	"github.com/fairlead-mesh/fairlead/internal/streaminfo"
)

// Factory makes fault filters.
type Factory struct{}

// TypeURLs implements filters.HTTPFactory.
func (Factory) TypeURLs() []string { return []string{typeURL} }

// Compile implements filters.HTTPFactory.
func (Factory) Compile(env *filters.Env, base, override filters.Config) (filters.HTTPFilter, error) {
	if override != nil {
		base = override
	}
	c, ok := base.(*Config)
	if !ok {
		return nil, fmt.Errorf("fault: configuration is a %T", base)
	}
	if (c.Delay == 0 || c.DelayPPM == 0) && c.AbortPPM == 0 {
		return nil, nil //nolint:nilnil // nothing to do on this route
	}
	f := &filter{c: c}
	if env != nil {
		f.delays, f.aborts = env.HTTPStats.Counter("envoy_http_fault_delays_injected"), env.HTTPStats.Counter("envoy_http_fault_aborts_injected")
		f.overflow, f.active = env.HTTPStats.Counter("envoy_http_fault_faults_overflow"), env.HTTPStats.Gauge("envoy_http_fault_active_faults")
	}
	return f, nil
}

type filter struct {
	c                        *Config
	delays, aborts, overflow *stats.Counter
	active                   *stats.Gauge
}

// Do implements filters.HTTPFilter.
func (f *filter) Do(s *filters.Stream, next filters.Next) (*filters.Response, error) {
	if !f.applies(s) {
		return next.Do(s)
	}
	if f.c.Delay > 0 && filters.Drawn(f.c.DelayPPM) && f.begin() {
		f.delays.Inc()
		s.Info.Flags = s.Info.Flags.With(streaminfo.DelayInjected)
		err := wait(s, f.c.Delay)
		f.active.Add(-1)
		if err != nil {
			return nil, err
		}
	}
	if !filters.Drawn(f.c.AbortPPM) || !f.begin() {
		return next.Do(s)
	}
	f.active.Add(-1)
	f.aborts.Inc()
	return f.abort(s), nil
}

func (f *filter) applies(s *filters.Stream) bool {
	if f.c.Cluster != "" && (s.Route == nil || s.Route.ClusterName() != f.c.Cluster) {
		return false
	}
	if len(f.c.Nodes) > 0 && !slices.Contains(f.c.Nodes, s.Request.Get("x-envoy-downstream-service-node")) {
		return false
	}
	return matcher.MatchHeaders(f.c.Headers, &s.Request)
}

// begin counts a fault in progress unless there are too many.
func (f *filter) begin() bool {
	if f.c.MaxActive > 0 && f.active.Value() >= int64(f.c.MaxActive) {
		f.overflow.Inc()
		return false
	}
	f.active.Add(1)
	return true
}

func wait(s *filters.Stream, d time.Duration) error {
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-t.C:
		return nil
	case <-s.Context().Done():
		return s.Cause()
	}
}

const abortDetails = "fault_filter_abort"

func (f *filter) abort(s *filters.Stream) *filters.Response {
	status := f.c.HTTPStatus
	if f.c.AbortGRPC {
		status = httpFromGRPC(f.c.GRPCStatus)
	}
	r := s.LocalReply(status, f.c.Body, abortDetails, streaminfo.FaultInjected)
	if f.c.AbortGRPC && s.Info.IsGRPC {
		r.Header.Set("grpc-status", strconv.Itoa(f.c.GRPCStatus))
	}
	return r
}

// httpFromGRPC maps a gRPC status to an HTTP one as Envoy does.
func httpFromGRPC(status int) int {
	switch status {
	case 0:
		return 200
	case 1:
		return 499
	case 3, 9, 11:
		return 400
	case 4:
		return 504
	case 5:
		return 404
	case 6, 10:
		return 409
	case 7:
		return 403
	case 8:
		return 429
	case 12:
		return 501
	case 14:
		return 503
	case 16:
		return 401
	}
	return 500
}

// Explain says whether the fault applies to s; how often it does is a matter of
// chance, unless that is always.
func (f *filter) Explain(s *filters.Stream) filters.Explanation {
	if !f.applies(s) {
		return filters.Explanation{Verdict: filters.VerdictPass, Text: []string{"the fault is for other requests"}}
	}
	x := filters.Explanation{Verdict: filters.VerdictAllow}
	if f.c.Delay > 0 && f.c.DelayPPM > 0 {
		x.Text = append(x.Text, fmt.Sprintf("delays %g %% of requests by %s", float64(f.c.DelayPPM)/1e4, f.c.Delay))
	}
	if f.c.AbortPPM == 0 {
		return x
	}
	status := f.c.HTTPStatus
	if f.c.AbortGRPC {
		status = httpFromGRPC(f.c.GRPCStatus)
	}
	x.Text = append(x.Text, fmt.Sprintf("answers %g %% of requests with %d", float64(f.c.AbortPPM)/1e4, status))
	x.Verdict = filters.VerdictUnknown
	if f.c.AbortPPM >= 1_000_000 {
		x.Verdict, x.Status, x.Details = filters.VerdictDeny, status, abortDetails
	}
	return x
}
