package hcm

import (
	"time"

	"github.com/fairlead-mesh/fairlead/routing"
)

// armTimers starts what counts from the request head on.
func (st *stream) armTimers() {
	spec := st.m.spec
	if spec.RequestTimeout > 0 && !st.in.complete.Load() && st.in.b != nil {
		st.request.Arm(spec.RequestTimeout, st.onRequestTimeout)
	}
	if spec.MaxStreamDuration > 0 {
		st.duration.Arm(spec.MaxStreamDuration, st.onDurationReached)
	}
	st.setIdle(spec.StreamIdleTimeout, st.s.Info.Start)
}

// applyRouteTimeouts lets the route override the idle timeout and the maximum
// duration.
func (st *stream) applyRouteTimeouts() {
	r, ok := st.s.Route.(*routing.Route)
	if !ok || r.Config == nil || r.Config.Action == nil {
		return
	}
	a := r.Config.Action
	if a.IdleTimeout != nil {
		st.setIdle(*a.IdleTimeout, st.s.Info.Now())
	}
}

func (st *stream) setIdle(d time.Duration, now time.Time) {
	if d <= 0 {
		st.idle.Stop()
		st.idleTimeout = 0
		return
	}
	st.idleTimeout = d
	st.touchAt(now)
	st.idle.ArmAt(now, d, st.onIdle)
}

// touch notes activity. Re-arming happens when the timer fires, so that a chunk
// costs one store.
func (st *stream) touch() {
	if st.idleTimeout > 0 {
		st.lastActivity.Store(int64(time.Since(st.s.Info.Start)))
	}
}

// touchAt is touch for who knows the time.
func (st *stream) touchAt(now time.Time) {
	if st.idleTimeout > 0 {
		st.lastActivity.Store(int64(now.Sub(st.s.Info.Start)))
	}
}

func (st *stream) idleExpired() {
	d := st.idleTimeout
	if d <= 0 {
		return
	}
	if rest := d - (time.Since(st.s.Info.Start) - time.Duration(st.lastActivity.Load())); rest > 0 {
		st.idle.Arm(rest, st.onIdle)
		return
	}
	st.interrupt(errStreamIdle)
}
