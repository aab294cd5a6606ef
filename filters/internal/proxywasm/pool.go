package proxywasm

import (
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"log/slog"
	"math/rand/v2"
	"runtime"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"cel.dev/cel-go/common/types/ref"

	"github.com/fairlead-mesh/fairlead/filters"
	"github.com/fairlead-mesh/fairlead/internal/stats"
	"github.com/fairlead-mesh/fairlead/internal/timer"
)

// lingerTime is how long a VM lives on for a guest that said it is not done.
const lingerTime = 10 * time.Second

// poolKey is what plugins that share VMs have in common.
type poolKey struct {
	vmID                       string
	code, config, capabilities [sha256.Size]byte
	environment                [sha256.Size]byte
}

// pool is the VMs of one module and configuration, shared by the plugins that
// name it.
type pool struct {
	id            poolKey
	cfg           *Config // of the plugin that came first: its VM part is everybody's
	env           filters.Env
	logger        *slog.Logger
	shared        *sharedState
	releaseShared func()

	once    sync.Once
	err     error
	module  *module
	release func()
	// ctx ends guests that start when the pool does.
	ctx  context.Context //nolint:containedctx // the life of the pool
	stop context.CancelFunc

	mu      sync.Mutex // of changes
	plugins map[pluginKey]*pluginRef
	vms     atomic.Pointer[[]*vm]
	turn    atomic.Uint32
	growing atomic.Bool
	// most is how many VMs there may be.
	most    atomic.Int32
	closing atomic.Bool
	linger  timer.Timer
	// started is when the last VM was.
	started time.Time

	nodeOnce  sync.Once
	nodeValue ref.Val

	created  *stats.Counter
	active   *stats.Gauge
	failures *stats.CounterFamily
	reloads  *stats.CounterFamily
}

// pluginKey is what root contexts are told apart by.
type pluginKey struct {
	name, rootID, direction string
	config                  [sha256.Size]byte
	allowStop               bool
}

type pluginRef struct {
	p    *Plugin
	refs int
}

func newPool(env *filters.Env, cfg *Config, id poolKey, logger *slog.Logger) *pool {
	p := &pool{id: id, cfg: cfg, env: *env, logger: logger, plugins: map[pluginKey]*pluginRef{}}
	p.ctx, p.stop = context.WithCancel(context.Background())
	p.vms.Store(&[]*vm{})
	name := "envoy_wasm_" + strings.ReplaceAll(cfg.Runtime, ".", "_")
	p.created = env.Stats.Counter(name + "_created")
	p.active = env.Stats.Gauge(name + "_active")
	p.failures = env.Stats.CounterFamily("fairlead_wasm_failures_total", "Guests that trapped or ran for too long.", "plugin", "reason")
	p.reloads = env.Stats.CounterFamily("fairlead_wasm_reloads_total", "VMs that were to replace failed ones.", "plugin", "result")
	return p
}

// begin takes what the pool has in common with others.
func (p *pool) begin(ctx context.Context, shared *filters.Shared, code []byte) error {
	var err error
	if p.module, p.release, err = acquireModule(ctx, shared, p.cfg, code); err != nil {
		p.release = nil
		return err
	}
	if p.shared, p.releaseShared, err = acquireState(shared, p.cfg.VMID); err != nil {
		p.release()
		p.release = nil
	}
	return err
}

// Close implements io.Closer for the pool: its last plugin is gone.
func (p *pool) Close() error {
	p.closing.Store(true)
	p.stop() // who starts a VM holds the lock
	p.mu.Lock()
	defer p.mu.Unlock()
	open := 0
	for _, v := range *p.vms.Load() {
		v.mu.Lock()
		waits := false
		for _, c := range v.contexts {
			waits = waits || c.finishing
		}
		if waits && !v.failed.Load() && !v.closed {
			open++
		} else {
			v.close()
		}
		v.mu.Unlock()
	}
	if open > 0 {
		p.linger.Arm(lingerTime, func() { go p.end() })
		return nil
	}
	p.finish()
	return nil
}

// lingered ends v, for which the pool was waiting.
func (p *pool) lingered(v *vm) {
	v.mu.Lock()
	v.close()
	v.mu.Unlock()
	p.mu.Lock()
	defer p.mu.Unlock()
	for _, o := range *p.vms.Load() {
		o.mu.Lock()
		open := !o.closed
		o.mu.Unlock()
		if open {
			return
		}
	}
	p.linger.Stop()
	p.finish()
}

// end closes what is left.
func (p *pool) end() {
	p.mu.Lock()
	defer p.mu.Unlock()
	for _, v := range *p.vms.Load() {
		v.mu.Lock()
		v.close()
		v.mu.Unlock()
	}
	p.finish()
}

// finish releases what the pool shares with others. p is locked.
func (p *pool) finish() {
	if p.release != nil {
		p.release()
		p.releaseShared()
		p.release = nil
	}
}

// add configures p's guest in all VMs, until ctx ends.
func (p *pool) add(ctx context.Context, pl *Plugin) error {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.most.Store(int32(runtime.GOMAXPROCS(0)))
	if r := p.plugins[pl.key]; r != nil {
		r.refs++
		return nil
	}
	vms := *p.vms.Load()
	if len(p.plugins) > 0 { // a guest that fails must not take those of others with it
		v, err := newVM(ctx, p)
		if err == nil {
			v.mu.Lock()
			err = v.startRoot(pl)
			v.close()
			v.mu.Unlock()
		}
		if err != nil {
			return err
		}
	}
	healthy := 0
	for _, v := range vms {
		v.mu.Lock()
		var err error
		if !v.failed.Load() {
			healthy++
			err = v.startRoot(pl)
		}
		v.mu.Unlock()
		if err != nil {
			p.forget(pl.key)
			return err
		}
	}
	if healthy == 0 { // the first plugin, or a new chance for those that failed
		v, err := p.start(ctx, pl)
		if err != nil {
			return err
		}
		p.vms.Store(&[]*vm{v})
	}
	p.plugins[pl.key] = &pluginRef{pl, 1}
	return nil
}

// start makes a VM with all plugins and extra, unless ctx ends before it is there.
func (p *pool) start(ctx context.Context, extra *Plugin) (*vm, error) {
	v, err := newVM(ctx, p)
	if err != nil {
		return nil, err
	}
	v.mu.Lock()
	defer v.mu.Unlock()
	begin := func(pl *Plugin) {
		if err == nil && v.roots[pl.key] == nil {
			err = v.startRoot(pl)
		}
	}
	for _, r := range p.plugins {
		begin(r.p)
	}
	if extra != nil {
		begin(extra)
	}
	if err != nil {
		v.close()
		return nil, err
	}
	v.started()
	p.started = time.Now()
	return v, nil
}

// forget ends a plugin's root contexts.
func (p *pool) forget(k pluginKey) {
	for _, v := range *p.vms.Load() {
		v.mu.Lock()
		v.finishRoot(k)
		v.mu.Unlock()
	}
}

// lock returns a VM, locked: one that is idle, if there is. It returns nil if
// all have failed and none can be made now.
func (p *pool) lock() *vm {
	if v := p.healthy(); v != nil {
		return v
	}
	return p.reload()
}

// healthy is lock without making a VM.
func (p *pool) healthy() *vm {
	for {
		vms := *p.vms.Load()
		n := len(vms)
		start := 0
		if n > 1 {
			start = int(p.turn.Add(1)) % n
		}
		var busy *vm
		for i := range n {
			v := vms[(start+i)%n]
			switch {
			case v.failed.Load():
			case v.mu.TryLock():
				if !v.failed.Load() && !v.closed {
					return v
				}
				v.mu.Unlock()
			case busy == nil:
				busy = v
			}
		}
		if busy == nil {
			return nil
		}
		if n < int(p.most.Load()) && p.growing.CompareAndSwap(false, true) {
			go p.grow()
		}
		busy.mu.Lock()
		switch {
		case busy.closed:
			busy.mu.Unlock()
			return nil
		case !busy.failed.Load():
			return busy
		}
		busy.mu.Unlock() // another may do
	}
}

// grow adds a VM: a stream found all of them busy.
func (p *pool) grow() {
	p.mu.Lock()
	defer p.mu.Unlock()
	defer p.growing.Store(false)
	vms := *p.vms.Load()
	if p.closing.Load() || len(p.plugins) == 0 || len(vms) >= int(p.most.Load()) {
		return
	}
	v, err := p.start(p.ctx, nil)
	if err != nil && p.closing.Load() {
		return
	}
	if err != nil {
		p.most.Store(int32(len(vms))) // until there is another plugin
		p.logger.Error("wasm: no further VM can be started", "error", err)
		return
	}
	p.vms.Store(new(append(slices.Clip(vms), v)))
}

// reload replaces failed VMs by a new one, if the policy says so and the last
// one was not started just now. It returns it locked, or nil.
func (p *pool) reload() *vm {
	if !p.mu.TryLock() {
		return nil // somebody is about it
	}
	defer p.mu.Unlock()
	var by *Plugin
	for _, r := range p.plugins {
		if r.p.cfg.Policy == FailReload {
			by = r.p
		}
	}
	if by == nil || p.closing.Load() {
		return nil
	}
	base := by.cfg.ReloadBase
	if time.Since(p.started) < base+rand.N(base/2+1) {
		p.reloads.With(by.cfg.Name, "backoff").Inc()
		return nil
	}
	v, err := p.start(p.ctx, nil)
	if err != nil {
		p.started = time.Now()
		p.reloads.With(by.cfg.Name, "failure").Inc()
		p.logger.Error("wasm: a new VM can't be started", "error", err)
		return nil
	}
	p.reloads.With(by.cfg.Name, "success").Inc()
	kept := []*vm{v}
	for _, o := range *p.vms.Load() {
		if !o.failed.Load() {
			kept = append(kept, o)
		}
	}
	p.vms.Store(&kept)
	v.mu.Lock()
	return v
}

// why says why streams fail.
func (p *pool) why() string {
	for _, v := range *p.vms.Load() {
		v.mu.Lock()
		err := v.err
		v.mu.Unlock()
		if err != nil {
			return err.Error()
		}
	}
	return "a new VM is not to be started yet"
}

func refused(callback string) error {
	return fmt.Errorf("the guest refuses its configuration: %s returned false", callback)
}

// startError is a failure of a guest that starts.
func (v *vm) startError(callback string) error {
	if v.err == nil {
		return fmt.Errorf("%s: %w", callback, errors.Join(errFailed, errClosed))
	}
	return fmt.Errorf("%s: %w", callback, v.err)
}
