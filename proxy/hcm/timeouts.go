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
	st.idle.ArmAt(now, d, st.onIdle)
}

// touch notes activity.
func (st *stream) touch() {
	if st.idleTimeout > 0 {
		st.touchAt(st.s.Info.Now())
	}
}

// touchAt is touch for who knows the time.
func (st *stream) touchAt(now time.Time) {
	if st.idleTimeout > 0 {
		st.idle.ArmAt(now, st.idleTimeout, st.onIdle)
	}
}
