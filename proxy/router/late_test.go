package router

import (
	"sync/atomic"
	"testing"
	"time"

	"github.com/fairlead-mesh/fairlead/xdsclient/xdsresource"
)

// A timeout that runs out while the answer is on its way may be about to interrupt
// its request when that has ended: it must not meet the next one.
func TestALateTimeoutDoesNotMeetTheNextRequest(t *testing.T) {
	taken, goOn, interrupted := make(chan struct{}), make(chan struct{}), make(chan struct{})
	w := newWorld(t, &origin{handle: func(x *exchange) answer {
		if x.n == 1 {
			<-taken
		}
		return answer{status: 200}
	}})
	f := w.f.(*Filter)
	made := 0
	f.pool.New = func() any {
		rq := newRequest(f)
		if made++; made == 1 {
			rq.onRoute = func() {
				close(taken)
				<-goOn
				rq.Interrupt(errRouteTimeout)
				close(interrupted)
			}
		} else {
			rq.onRoute = func() {} // a busy machine may need as long for the second request
		}
		return rq
	}
	w.action().Timeout = 20 * time.Millisecond
	for i := range 2 {
		if r := w.do(newStream()); r.status != 200 || r.err != nil {
			t.Fatalf("request %d: %d, %v", i, r.status, r.err)
		}
	}
	close(goOn)
	<-interrupted
	if made != 2 {
		t.Error("the second request got what the first one's timeout is about to interrupt")
	}
	w.idle()
}

// An idle timeout of an attempt may be about to end it when it is over: it must not
// end the next one.
func TestALateIdleTimeoutDoesNotEndTheNextAttempt(t *testing.T) {
	taken, goOn, late := make(chan struct{}), make(chan struct{}), make(chan struct{})
	w := newWorld(t, &origin{handle: func(x *exchange) answer {
		if x.n == 1 {
			<-taken
			return answer{status: 503}
		}
		close(goOn)
		<-late
		return answer{status: 200}
	}})
	f := w.f.(*Filter)
	f.pool.New = func() any {
		rq := newRequest(f)
		var first atomic.Bool
		rq.onIdle = func() {
			if first.Swap(true) {
				return // the next attempt's own
			}
			close(taken)
			<-goOn
			rq.mu.Lock()
			rq.idleEnd = rq.idleEnd.Add(time.Hour) // as if the limit were an hour
			rq.mu.Unlock()
			rq.interruptTry(errPerTryIdle)
			close(late)
		}
		return rq
	}
	w.retry(xdsresource.RetryPolicy{On: xdsresource.Retry5xx, NumRetries: 1, PerTryIdleTimeout: 20 * time.Millisecond, BaseInterval: time.Millisecond})
	if r := w.do(newStream()); r.status != 200 || r.err != nil {
		t.Errorf("%d, %v", r.status, r.err)
	}
	w.idle()
}
