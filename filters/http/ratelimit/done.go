package ratelimit

import (
	"context"
	"time"

	"github.com/fairlead-mesh/fairlead/filters"
	"github.com/fairlead-mesh/fairlead/internal/format"
	"github.com/fairlead-mesh/fairlead/internal/message"
	"github.com/fairlead-mesh/fairlead/internal/ratelimit"
)

const (
	// maxLate bounds the calls about requests that have ended, of one filter; what is
	// more is not counted by the service.
	maxLate = 256
	// lateTimeout bounds such a call if the configuration doesn't.
	lateTimeout = 10 * time.Second
)

// OnStreamEnd implements filters.StreamEnder: it tells the service of requests that
// have limits with apply_on_stream_done. Nothing hangs on its answer.
func (f *filter) OnStreamEnd(s *filters.Stream, r *filters.Response) {
	if s.Route == nil || s.Info.FilterState.GetString(f.mark) == "" {
		return
	}
	var answer *message.Header
	if r != nil {
		answer = &r.Header
	}
	ds := f.descriptors(s, ratelimit.OnDone, answer)
	if len(ds) == 0 {
		return
	}
	q, err := question(f.domain, ds)
	if err != nil {
		return
	}
	select {
	case f.late <- struct{}{}:
	default:
		f.count(s.Route.ClusterName()).failed.Inc()
		return
	}
	c := f.c.Service.Prepare(path, q, &format.Context{Info: &s.Info, Request: &s.Request, Response: answer})
	go func() {
		defer func() { <-f.late }()
		ctx, cancel := context.WithTimeout(context.Background(), lateTimeout)
		defer cancel()
		_, _ = f.c.Service.Send(ctx, f.upstreams, "ratelimit", c)
	}()
}
