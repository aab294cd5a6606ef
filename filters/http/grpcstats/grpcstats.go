// Package grpcstats is the grpc_stats HTTP filter: it counts the messages of
// gRPC streams, for Istio's message metrics and per cluster.
package grpcstats

import (
	"fmt"

	"github.com/fairlead-mesh/fairlead/filters"
	"github.com/fairlead-mesh/fairlead/filters/internal/grpccount"
	"github.com/fairlead-mesh/fairlead/internal/message"
	"github.com/fairlead-mesh/fairlead/internal/stats"
	"github.com/fairlead-mesh/fairlead/internal/streaminfo"
)

// Factory makes grpc_stats filters.
type Factory struct{}

// TypeURLs implements filters.HTTPFactory.
func (Factory) TypeURLs() []string { return []string{typeURL} }

// Compile implements filters.HTTPFactory.
func (Factory) Compile(env *filters.Env, base, override filters.Config) (filters.HTTPFilter, error) {
	c, ok := base.(*Config)
	if !ok || override != nil {
		return nil, fmt.Errorf("grpc_stats: configuration is a %T, override a %T", base, override)
	}
	f := &filter{emit: c.EmitFilterState}
	if env != nil {
		family := func(name, help string) *stats.CounterFamily {
			return env.Stats.CounterFamily("envoy_cluster_grpc_"+name, help, "envoy_cluster_name")
		}
		f.total, f.success, f.failure = family("total", "gRPC streams that ended."), family("success", "gRPC streams with status 0."), family("failure", "gRPC streams with another status.")
		f.requests, f.responses = family("request_message_count", "Messages from clients."), family("response_message_count", "Messages to clients.")
	}
	return f, nil
}

type filter struct {
	emit                    bool
	total, success, failure *stats.CounterFamily
	requests, responses     *stats.CounterFamily
	clusters                stats.Cache[string, handles]
}

type handles struct{ total, success, failure, requests, responses *stats.Counter }

// counted is everything that one gRPC stream needs, in one allocation.
type counted struct {
	grpccount.Counts
	request, response body
}

// body counts the messages that pass.
type body struct {
	message.Body
	parser grpccount.Parser
	count  interface{ Add(uint64) uint64 }
}

// Next implements message.Body.
func (b *body) Next() ([]byte, bool, error) {
	p, last, err := b.Body.Next()
	if n := b.parser.Count(p); n > 0 {
		b.count.Add(n)
	}
	return p, last, err
}

// Do implements filters.HTTPFilter.
func (f *filter) Do(s *filters.Stream, next filters.Next) (*filters.Response, error) {
	if !s.Info.IsGRPC {
		return next.Do(s)
	}
	c := &counted{}
	if s.Body != message.NoBody {
		c.request = body{Body: s.Body, count: &c.Request}
		s.Body = filters.Interruptible(&c.request, s.Body)
	}
	// Without emit_filter_state the counts are kept under the filter's own key.
	key := grpccount.Key
	if !f.emit {
		key = privateKey
	}
	s.Info.FilterState.SetStatic(key, &c.Counts, streaminfo.SharingNone)
	r, err := next.Do(s)
	if err != nil || r == nil {
		return r, err
	}
	if r.Body != message.NoBody {
		c.response = body{Body: r.Body, count: &c.Response}
		r.Body = &c.response
	}
	return r, nil
}

const privateKey = "grpc_stats counts"

// OnStreamEnd implements filters.StreamEnder.
func (f *filter) OnStreamEnd(s *filters.Stream, r *filters.Response) {
	if !s.Info.IsGRPC || s.Info.Upstream.ClusterRaw == "" {
		return
	}
	h := f.clusters.Get(s.Info.Upstream.ClusterRaw, func(name string) *handles {
		return &handles{f.total.With(name), f.success.With(name), f.failure.With(name), f.requests.With(name), f.responses.With(name)}
	})
	h.total.Inc()
	if succeeded(r) {
		h.success.Inc()
	} else {
		h.failure.Inc()
	}
	c := grpccount.Of(&s.Info.FilterState)
	if c == nil {
		c, _ = s.Info.FilterState.Get(privateKey).(*grpccount.Counts)
	}
	if c != nil {
		h.requests.Add(c.Request.Load())
		h.responses.Add(c.Response.Load())
	}
}

func succeeded(r *filters.Response) bool {
	if r == nil {
		return false
	}
	if t := r.Body.Trailers(); t != nil {
		if v, ok := t.Lookup("grpc-status"); ok {
			return v == "0"
		}
	}
	return r.Header.Get("grpc-status") == "0"
}

// Explain says nothing about a request: it only counts.
func (f *filter) Explain(*filters.Stream) filters.Explanation {
	return filters.Explanation{Verdict: filters.VerdictPass}
}
