package proxywasm

import (
	"context"
	"errors"
	"runtime"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/fairlead-mesh/fairlead/filters"
)

// A tick that is on its way when the guest sets another period is none of the new
// one's.
func TestATickOfAFormerPeriodIsLost(t *testing.T) {
	w := newWorld(t, Config{PluginConfig: "tick"})
	v := (*w.p.pool.vms.Load())[0]
	v.mu.Lock()
	c := v.roots[w.p.key]
	c.stopTicks()
	v.current = c
	if st := v.setTickPeriod([]uint64{uint64(time.Hour / time.Millisecond)}); st != StatusOK {
		t.Error(st)
	}
	v.current = nil
	v.mu.Unlock()
	w.log.take()
	c.tick()
	if got := w.log.take(); len(got) > 0 {
		t.Error(got)
	}
	v.mu.Lock()
	c.due = time.Now()
	v.mu.Unlock()
	c.tick()
	if got := w.log.take(); len(got) == 0 {
		t.Error("a tick in time is lost")
	}
}

// Nobody waits for the answers of calls that a plugin made which is gone.
func TestCallsOfAPluginEndWithIt(t *testing.T) {
	id := t.Name()
	w := newWorld(t, Config{VMID: id})
	ended := make(chan struct{})
	w.call = func(string, *filters.Callout) (*filters.CalloutResponse, error) { return nil, errors.New("none") }
	other, err := Start(context.Background(), w.env, &Config{Name: "other", VMID: id}, guest(t, "probe"))
	if err != nil {
		t.Fatal(err)
	}
	v := (*w.p.pool.vms.Load())[0]
	v.mu.Lock()
	v.callouts.open[calloutKey{token: 1}] = callout{func() { close(ended) }, v.roots[other.key]}
	v.callouts.open[calloutKey{token: 2}] = callout{func() { t.Error("another's call ends") }, v.roots[w.p.key]}
	v.mu.Unlock()
	_ = other.Close()
	select {
	case <-ended:
	default:
		t.Error("the call goes on")
	}
	v.mu.Lock()
	defer v.mu.Unlock()
	if len(v.callouts.open) != 1 {
		t.Errorf("%d calls are open", len(v.callouts.open))
	}
	delete(v.callouts.open, calloutKey{token: 2})
}

// A body that somebody still pulls when its stream has ended is not shown.
func TestABodyIsNotShownAfterItsStream(t *testing.T) {
	w := newWorld(t, Config{})
	s := newStream("body", &chunks{parts: []string{"one", "two"}})
	s.SetChain([]filters.HTTPFilter{w.p, origin{w}})
	w.early = true
	r, err := filters.Start(s)
	if err != nil {
		t.Fatal(err)
	}
	w.p.OnStreamEnd(s, r)
	w.log.take()
	for {
		_, last, err := s.Body.Next()
		if errors.Is(err, errAnswered) {
			break
		}
		if err != nil || last {
			t.Fatalf("%v: the body goes on", err)
		}
	}
	if got := w.log.take(); len(got) > 0 {
		t.Error(got)
	}
}

func TestAStartEndsWithItsContext(t *testing.T) {
	var shared filters.Shared
	env := &filters.Env{Shared: &shared}
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	code := guest(t, "probe")
	if _, err := Start(ctx, env, &Config{}, code); !errors.Is(err, context.Canceled) {
		t.Errorf("before it is compiled: %v", err)
	}
	ctx, cancel = context.WithCancel(t.Context())
	time.AfterFunc(50*time.Millisecond, cancel)
	if _, err := Start(ctx, env, &Config{}, guest(t, "spin")); !errors.Is(err, context.Canceled) {
		t.Errorf("while the guest spins: %v", err)
	}
	p, err := Start(t.Context(), env, &Config{}, code)
	if err != nil {
		t.Fatal(err)
	}
	_ = p.Close()
}

// Who wants a plugin does not fail because another gave it up.
func TestAStartThatIsGivenUpIsNobodyElses(t *testing.T) {
	var shared filters.Shared
	env := &filters.Env{Shared: &shared}
	code := guest(t, "probe")
	var all sync.WaitGroup
	for i := range 12 {
		all.Go(func() {
			ctx, cancel := context.WithCancel(t.Context())
			defer cancel()
			if i%2 == 0 {
				time.AfterFunc(time.Duration(i)*time.Millisecond, cancel)
			}
			p, err := Start(ctx, env, &Config{Name: "p"}, code)
			if err == nil {
				_ = p.Close()
			} else if i%2 == 1 {
				t.Error(err)
			}
		})
	}
	all.Wait()
}

func TestAPluginOnceMore(t *testing.T) {
	w := newWorld(t, Config{})
	w.log.take()
	o, err := w.p.Another()
	if err != nil {
		t.Fatal(err)
	}
	if got := w.log.take(); len(got) > 0 {
		t.Errorf("the guest was asked again: %q", got)
	}
	if o.stateKey == w.p.stateKey {
		t.Error("a stream can't pass through both")
	}
	if err := w.p.Close(); err != nil {
		t.Error(err)
	}
	w.p = o
	if r := w.ask(""); r.status != "200" {
		t.Errorf("%+v", r)
	}
	_ = o.Close()
	if _, err := o.Another(); !errors.Is(err, errClosed) {
		t.Errorf("of one that is closed: %v", err)
	}
}

// A pool whose further VMs can't start doesn't try that for each stream.
func TestAPoolThatCantGrowStaysAsItIs(t *testing.T) {
	if runtime.GOMAXPROCS(0) < 2 {
		defer runtime.GOMAXPROCS(runtime.GOMAXPROCS(2))
	}
	w := newWorld(t, Config{VMID: "static " + t.Name()})
	p := w.p.pool
	p.mu.Lock()
	broken := *w.p
	cfg := *w.p.cfg
	cfg.PluginConfig = "refuse"
	broken.cfg, broken.key.name = &cfg, "broken"
	p.plugins[broken.key] = &pluginRef{&broken, 1}
	p.mu.Unlock()
	p.growing.Store(true)
	p.grow()
	if n := len(*p.vms.Load()); n != 1 || p.most.Load() != 1 || !strings.Contains(strings.Join(w.log.other, " "), "no further VM") {
		t.Errorf("%d VMs, at most %d", n, p.most.Load())
	}
	p.mu.Lock()
	delete(p.plugins, broken.key)
	p.mu.Unlock()
}
