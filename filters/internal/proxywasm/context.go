package proxywasm

import (
	"sync/atomic"
	"time"

	"github.com/fairlead-mesh/fairlead/filters"
	"github.com/fairlead-mesh/fairlead/internal/message"
	"github.com/fairlead-mesh/fairlead/internal/streaminfo"
	"github.com/fairlead-mesh/fairlead/internal/timer"
)

// guestContext is a context of the ABI: the VM's own, a plugin's root, or a
// stream's. It is under its VM's lock.
type guestContext struct {
	vm     *vm
	id     uint32
	plugin *Plugin // nil for the VM's own
	root   *guestContext
	// configuring is set while the plugin's configuration can be read.
	configuring bool

	// Of a stream.
	stream *filters.Stream
	// What the guest may see now; nil otherwise. readOnly is set at the end.
	request, requestTrailers, response, responseTrailers *message.Header
	requestBody, responseBody                            *buffer
	readOnly                                             bool
	// Who waits for the guest, for either direction: only then may others, acting
	// for it, touch the stream.
	requestWaiter, responseWaiter waiter
	// wrapped: the guest stands before the body. passed: the request has gone on,
	// so that its body may be pulled by another goroutine than the stream's, which
	// sees copied instead of the request. pumping: that is what is going on.
	wrapped, passed, pumping bool
	copied                   *message.Header
	noted                    *streaminfo.Info
	// What the guest wants.
	goRequest, goResponse, closed, rerouted bool
	local                                   *localReply
	// replied: it is too late for another answer. failed: the VM failed while it
	// was called for this stream.
	replied, failed bool
	// touched are the request headers that the guest set or removed.
	touched []string
	// properties are those that the guest set, until they are published as filter
	// state.
	properties [][2]string
	sets       int

	// Of a root.
	period     time.Duration
	ticker     timer.Timer
	due        time.Time // of the next tick
	onTick     func()
	answer     *answer
	statusCode uint32
	statusText string
	// finishing: the guest wants to say when it is done.
	finishing bool
}

// Serialize implements streaminfo.Object, which is how a context accompanies
// its stream.
func (*guestContext) Serialize() string { return "" }

// Field implements streaminfo.Object.
func (*guestContext) Field(string) (string, bool) { return "", false }

// signal wakes who waits.
func (c *guestContext) signal() {
	c.requestWaiter.signal()
	c.responseWaiter.signal()
}

// accessible reports whether the guest may touch c's stream now, as far as
// pointers of c lead to it.
func (c *guestContext) accessible() bool {
	return c.stream != nil && (c.vm.current == c || c.requestWaiter.waiting || c.responseWaiter.waiting)
}

// recorded reports whether the guest may look at the stream's record.
func (c *guestContext) recorded() bool {
	switch {
	case c.stream == nil:
		return false
	case c.vm.current == c:
		return !c.pumping
	}
	return c.responseWaiter.waiting || c.requestWaiter.waiting && !c.passed
}

// waiter is a goroutine that waits for the guest.
type waiter struct {
	ch      chan struct{}
	waiting bool
	stopped atomic.Pointer[error]
}

func (w *waiter) signal() {
	if w.ch == nil {
		return
	}
	select {
	case w.ch <- struct{}{}:
	default:
	}
}

// Interrupt implements filters.Interrupter. It is called between Guard and
// Unguard only.
func (w *waiter) Interrupt(error) { w.signal() }

func (c *guestContext) stopTicks() {
	if c.period > 0 {
		c.period = 0
		c.ticker.Stop()
	}
}

func (v *vm) setTickPeriod(a []uint64) Status {
	c := v.acting().root
	if c == nil {
		return StatusBadArgument
	}
	c.stopTicks()
	if ms := uint32(a[0]); ms > 0 {
		c.period = time.Duration(ms) * time.Millisecond
		if c.onTick == nil {
			c.onTick = func() { go c.tick() }
		}
		c.armTick()
	}
	return StatusOK
}

func (c *guestContext) armTick() {
	now := time.Now()
	c.due = now.Add(c.period)
	c.ticker.ArmAt(now, c.period, c.onTick)
}

// tick calls the guest and schedules the next one.
func (c *guestContext) tick() {
	v := c.vm
	v.mu.Lock()
	defer v.mu.Unlock()
	if v.closed || v.failed.Load() || c.period == 0 || v.contexts[c.id] != c || time.Now().Before(c.due) {
		return // or it is that of a former period, which was on its way
	}
	if v.fn.tick != nil {
		v.call(v.fn.tick, c, uint64(c.id))
	}
	if c.period > 0 {
		c.armTick()
	}
}

// startRoot makes p's root context in v and has the guest configure it.
func (v *vm) startRoot(p *Plugin) error {
	v.timeout = StartTimeout
	defer func() { v.timeout = CallTimeout }()
	c := &guestContext{vm: v, id: v.newID(), plugin: p}
	c.root = c
	v.contexts[c.id] = c
	if err := v.configure(c, p); err != nil {
		c.stopTicks()
		delete(v.contexts, c.id)
		return err
	}
	v.roots[p.key] = c
	return nil
}

func (v *vm) configure(c *guestContext, p *Plugin) error {
	if f := v.fn.contextCreate; f != nil {
		c.configuring = true
		_, ok := v.call(f, c, uint64(c.id), 0)
		c.configuring = false
		if !ok {
			return v.startError("proxy_on_context_create")
		}
	}
	if f := v.fn.vmStart; f != nil {
		done, ok := v.call(f, c, uint64(c.id), uint64(len(v.pool.cfg.VMConfig)))
		if !ok {
			return v.startError("proxy_on_vm_start")
		}
		if done == 0 {
			return refused("proxy_on_vm_start")
		}
	}
	if f := v.fn.configure; f != nil {
		c.configuring = true
		done, ok := v.call(f, c, uint64(c.id), uint64(len(p.cfg.PluginConfig)))
		c.configuring = false
		if !ok {
			return v.startError("proxy_on_configure")
		}
		if done == 0 {
			return refused("proxy_on_configure")
		}
	}
	return nil
}

// finishRoot tells the guest that a plugin is done with. It reports whether the
// guest is done too.
func (v *vm) finishRoot(k pluginKey) bool {
	c := v.roots[k]
	if c == nil || v.closed || v.failed.Load() {
		return true
	}
	delete(v.roots, k)
	if f := v.fn.done; f != nil {
		if done, ok := v.call(f, c, uint64(c.id)); ok && done == 0 {
			c.finishing = true
			return false
		}
	}
	v.deleteContext(c)
	return true
}

// guestDone ends a context whose proxy_on_done put it off.
func (v *vm) guestDone([]uint64) Status {
	c := v.acting()
	if !c.finishing {
		return StatusNotFound
	}
	c.finishing = false
	go v.finished(c)
	return StatusOK
}

// finished deletes a context from which the guest called proxy_done.
func (v *vm) finished(c *guestContext) {
	v.mu.Lock()
	v.deleteContext(c)
	last := v.lingering()
	v.mu.Unlock()
	if last {
		v.pool.lingered(v)
	}
}

// lingering reports whether v has been waiting for its guest only, which is done.
func (v *vm) lingering() bool {
	if !v.pool.closing.Load() || v.closed {
		return false
	}
	for _, c := range v.contexts {
		if c.finishing {
			return false
		}
	}
	return true
}

func (v *vm) deleteContext(c *guestContext) {
	if v.contexts[c.id] != c {
		return
	}
	c.stopTicks()
	if f := v.fn.del; f != nil {
		v.call(f, c, uint64(c.id))
	}
	delete(v.contexts, c.id)
	if c.root == c {
		v.callouts.cancelOf(c)
	}
}
