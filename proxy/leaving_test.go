package proxy_test

import (
	"context"
	"strings"
	"testing"
	"time"

	"github.com/fairlead-mesh/fairlead/proxy"
)

// What a listener serves that was removed before the end of the process has the time
// that others have.
func TestShutdownWaitsForListenersThatWereRemoved(t *testing.T) {
	for _, kind := range longStreams {
		t.Run(kind.name, func(t *testing.T) {
			o := newOutlivingWith(t, proxy.Options{DrainTime: time.Hour})
			o.push(0, false)
			st := kind.open(o)
			eventually(t, "the stream is on its way", func() bool { return o.w.all[0].used.Load() >= 4 })
			delete(o.res.Listeners, "l")
			o.mustApply()
			if o.Active() == 0 {
				t.Error("nothing is active")
			}
			ended := make(chan error, 1)
			go func() { ended <- o.Shutdown(context.Background()) }()
			eventually(t, "it drains", o.Draining)
			select {
			case err := <-ended:
				t.Fatal("it did not wait", err)
			case <-time.After(200 * time.Millisecond):
			}
			st.more()
			st.end()
			if err := <-ended; err != nil {
				t.Error(err)
			}
		})
	}
}

func TestShutdownWaitsForListenersThatWereRemovedNoLongerThanForOthers(t *testing.T) {
	o := newOutlivingWith(t, proxy.Options{DrainTime: time.Hour})
	o.push(0, false)
	st := longStreams[0].open(o)
	delete(o.res.Listeners, "l")
	o.mustApply()
	ctx, cancel := context.WithTimeout(t.Context(), 100*time.Millisecond)
	defer cancel()
	if err := o.Shutdown(ctx); err == nil || !strings.Contains(err.Error(), "1 connections were cut") {
		t.Error(err)
	}
	if n := o.Active(); n != 0 {
		t.Errorf("%d are active", n)
	}
	st.end()
}
