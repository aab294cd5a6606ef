package proxywasm

import (
	"context"
	"crypto/rand"
	"encoding/binary"
	"errors"
	"fmt"
	"log/slog"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/tetratelabs/wazero"
	"github.com/tetratelabs/wazero/api"
)

// callbacks are the guest's functions; those that it has not, or may not be
// called, are nil.
type callbacks struct {
	malloc                                                          api.Function
	contextCreate, vmStart, configure, tick, done, log, del         api.Function
	requestHeaders, requestBody, requestTrailers                    api.Function
	responseHeaders, responseBody, responseTrailers                 api.Function
	httpCallResponse, queueReady                                    api.Function
	grpcInitialMetadata, grpcReceive, grpcTrailingMetadata, grpcEnd api.Function
	// headerArgs is how many parameters the headers callbacks have: two in the
	// oldest version of the ABI.
	requestArgs, responseArgs int
}

// vm is one instance of a module. Everything but failed is under mu, which is
// held while the guest runs. It is the context that guests run in, which is how
// host functions find it.
type vm struct {
	pool   *pool
	mu     sync.Mutex
	mod    api.Module
	mem    api.Memory
	fn     callbacks
	failed atomic.Bool
	closed bool
	err    error // why it failed

	// current is what the guest was called for; effective, if not nil, what it
	// says it acts for.
	current, effective *guestContext
	timeout            time.Duration
	ends               time.Time // zero until the first look at the clock
	// starting, if not nil, ends the guest while it starts.
	starting context.Context //nolint:containedctx // of a part of its life

	contexts map[uint32]*guestContext
	lastID   uint32
	roots    map[pluginKey]*guestContext

	metrics  metricTable
	callouts callouts
	args     [8]uint64
	mallocIO [1]uint64
}

// vm is a context without an end: guests are ended by the meter.
var _ context.Context = (*vm)(nil)

// Deadline implements context.Context.
func (*vm) Deadline() (time.Time, bool) { return time.Time{}, false }

// Done implements context.Context.
func (*vm) Done() <-chan struct{} { return nil }

// Err implements context.Context.
func (*vm) Err() error { return nil }

// Value implements context.Context.
func (*vm) Value(any) any { return nil }

// newVM makes an instance and starts it, until ctx ends. The caller owns it; it is
// not locked. What else starts in it ends with ctx, until started is called.
func newVM(ctx context.Context, p *pool) (*vm, error) {
	v := &vm{pool: p, contexts: map[uint32]*guestContext{}, roots: map[pluginKey]*guestContext{}, timeout: StartTimeout, starting: ctx}
	v.callouts.init()
	v.mu.Lock()
	defer v.mu.Unlock()
	v.current = &guestContext{vm: v} // the VM's own
	v.contexts[0] = v.current
	cfg := wazero.NewModuleConfig().WithName("").WithStartFunctions().WithRandSource(rand.Reader).WithSysWalltime().WithSysNanotime().
		WithStdout(&output{v, slog.LevelInfo}).WithStderr(&output{v, slog.LevelError})
	for _, e := range p.cfg.Env {
		k, val, _ := strings.Cut(e, "=")
		cfg = cfg.WithEnv(k, val)
	}
	mod, err := p.module.runtime.InstantiateModule(v, p.module.compiled, cfg)
	if err != nil {
		return nil, fmt.Errorf("instantiating the module: %w", cause(err))
	}
	v.mod, v.mem = mod, mod.Memory()
	v.export()
	if err := v.begin(); err != nil {
		_ = mod.Close(v)
		return nil, err
	}
	p.created.Inc()
	p.active.Add(1)
	return v, nil
}

// export finds the guest's functions.
func (v *vm) export() {
	f := func(name string) api.Function {
		if !v.pool.module.has[name] {
			return nil
		}
		return v.mod.ExportedFunction(name)
	}
	c := &v.fn
	if c.malloc = f("malloc"); c.malloc == nil {
		c.malloc = f("proxy_on_memory_allocate")
	}
	c.contextCreate, c.vmStart, c.configure, c.tick = f("proxy_on_context_create"), f("proxy_on_vm_start"), f("proxy_on_configure"), f("proxy_on_tick")
	c.done, c.log, c.del = f("proxy_on_done"), f("proxy_on_log"), f("proxy_on_delete")
	c.requestHeaders, c.requestBody, c.requestTrailers = f("proxy_on_request_headers"), f("proxy_on_request_body"), f("proxy_on_request_trailers")
	c.responseHeaders, c.responseBody, c.responseTrailers = f("proxy_on_response_headers"), f("proxy_on_response_body"), f("proxy_on_response_trailers")
	c.httpCallResponse, c.queueReady = f("proxy_on_http_call_response"), f("proxy_on_queue_ready")
	c.grpcInitialMetadata, c.grpcReceive = f("proxy_on_grpc_receive_initial_metadata"), f("proxy_on_grpc_receive")
	c.grpcTrailingMetadata, c.grpcEnd = f("proxy_on_grpc_receive_trailing_metadata"), f("proxy_on_grpc_close")
	if c.requestHeaders != nil {
		c.requestArgs = len(c.requestHeaders.Definition().ParamTypes())
	}
	if c.responseHeaders != nil {
		c.responseArgs = len(c.responseHeaders.Definition().ParamTypes())
	}
}

// begin runs what a module does first: a reactor's _initialize and main, or a
// command's _start.
func (v *vm) begin() error {
	has := v.pool.module.has
	run := func(name string, args ...uint64) error {
		if !has[name] {
			return nil
		}
		f := v.mod.ExportedFunction(name)
		copy(v.args[:], args)
		err := f.CallWithStack(v, v.args[:max(len(f.Definition().ParamTypes()), len(f.Definition().ResultTypes()))])
		var code exited
		if errors.As(err, &code) && code == 0 {
			return nil
		}
		if err != nil {
			return fmt.Errorf("%s: %w", name, cause(err))
		}
		return nil
	}
	v.ends = time.Time{}
	if !has["_initialize"] {
		return run("_start")
	}
	if err := run("_initialize"); err != nil {
		return err
	}
	if has["main"] {
		return run("main", 0, 0)
	}
	return run("__main_void")
}

// call runs a callback of the guest for c and returns its result. It reports
// false if the guest trapped, ran too long or had failed before: then there is
// no result, and the VM is of no use any more.
func (v *vm) call(f api.Function, c *guestContext, a ...uint64) (uint32, bool) {
	if v.failed.Load() || v.closed {
		return 0, false
	}
	before, effective := v.current, v.effective
	v.current, v.effective = c, nil
	v.ends = time.Time{}
	n := copy(v.args[:], a)
	err := f.CallWithStack(v, v.args[:max(n, 1)])
	v.current, v.effective = before, effective
	if err != nil {
		v.fail(c, err)
		return 0, false
	}
	return uint32(v.args[0]), true
}

// tick is what guests call now and then, see meter.
func tick(ctx context.Context, _ api.Module, _ []uint64) {
	v, _ := ctx.(*vm)
	now := time.Now()
	switch {
	case v.starting != nil && v.starting.Err() != nil:
		panic(v.starting.Err())
	case v.ends.IsZero():
		v.ends = now.Add(v.timeout)
	case now.After(v.ends):
		panic(errTimeout)
	}
}

// started ends a part of v's life that a context could end.
func (v *vm) started() { v.starting = nil }

// fail gives the VM up. Streams that wait in it are woken; what becomes of them
// is their plugins' policy.
func (v *vm) fail(c *guestContext, err error) {
	v.err = cause(err)
	v.failed.Store(true)
	v.pool.active.Add(-1)
	reason := "trap"
	if errors.Is(err, errTimeout) {
		reason = "timeout"
	}
	plugin := ""
	if c.plugin != nil {
		plugin = c.plugin.cfg.Name
	}
	if v.starting == nil || v.starting.Err() == nil {
		v.pool.failures.With(plugin, reason).Inc()
		v.pool.logger.Error("wasm: the guest failed", "plugin", plugin, "error", err)
	}
	if c.stream != nil {
		c.failed = true
	}
	for _, o := range v.contexts {
		o.stopTicks()
		o.signal()
	}
	v.callouts.cancelAll()
	v.release()
}

// release lets go of the guest's memory. Contexts stay, for their streams.
func (v *vm) release() {
	if v.mod != nil {
		_ = v.mod.Close(context.Background())
	}
	v.mod, v.mem, v.fn = nil, nil, callbacks{}
}

// close ends the VM. It is locked.
func (v *vm) close() {
	if v.closed {
		return
	}
	v.closed = true
	if !v.failed.Load() {
		v.pool.active.Add(-1)
	}
	for _, c := range v.contexts {
		c.stopTicks()
		c.signal()
	}
	v.callouts.cancelAll()
	v.release()
}

// cause is what an operator wants to know of an error of the runtime.
func cause(err error) error {
	for _, e := range []error{errTimeout, context.Canceled} {
		if errors.Is(err, e) {
			return e
		}
	}
	return err
}

// acting is the context that the guest acts for.
func (v *vm) acting() *guestContext {
	if v.effective != nil {
		return v.effective
	}
	return v.current
}

// newID returns an identifier that is not in use.
func (v *vm) newID() uint32 {
	for {
		v.lastID++
		if _, taken := v.contexts[v.lastID]; !taken && v.lastID != 0 {
			return v.lastID
		}
	}
}

// read returns n bytes of the guest's memory, valid until the guest runs.
func (v *vm) read(p, n uint64) ([]byte, bool) {
	return v.mem.Read(uint32(p), uint32(n))
}

// put writes a number to the guest's memory.
func (v *vm) put(p uint64, n uint32) bool { return v.mem.WriteUint32Le(uint32(p), n) }

// give copies b to memory that the guest allocates, and where it is to the two
// pointers.
func (v *vm) give(b []byte, ptr, size uint64) Status {
	p, ok := v.alloc(len(b))
	if !ok || !v.mem.Write(p, b) {
		return StatusInvalidMemoryAccess
	}
	return v.point(p, len(b), ptr, size)
}

func (v *vm) giveString(s string, ptr, size uint64) Status {
	p, ok := v.alloc(len(s))
	if !ok || !v.mem.WriteString(p, s) {
		return StatusInvalidMemoryAccess
	}
	return v.point(p, len(s), ptr, size)
}

func (v *vm) point(p uint32, n int, ptr, size uint64) Status {
	if !v.put(ptr, p) || !v.put(size, uint32(n)) {
		return StatusInvalidMemoryAccess
	}
	return StatusOK
}

// alloc has the guest allocate n bytes; none need no memory.
func (v *vm) alloc(n int) (uint32, bool) {
	if n == 0 {
		return 0, true
	}
	v.mallocIO[0] = uint64(n)
	if err := v.fn.malloc.CallWithStack(v, v.mallocIO[:]); err != nil {
		panic(err) // ends the call that led here
	}
	p := uint32(v.mallocIO[0])
	return p, p != 0
}

// restricted is told when the guest calls what it may not.
func (v *vm) restricted(name string) {
	v.logger().Warn("wasm: the guest called a function that its capability restrictions forbid", "function", name)
}

func (v *vm) logger() *slog.Logger {
	if c := v.acting(); c != nil && c.plugin != nil {
		return c.plugin.logger
	}
	return v.pool.logger
}

// output is the guest's standard output or error, a log line for each write.
type output struct {
	v     *vm
	level slog.Level
}

// Write implements io.Writer.
func (o *output) Write(p []byte) (int, error) {
	o.v.guestLog(o.level, string(p[:min(len(p), maxLog)]))
	return len(p), nil
}

func (v *vm) guestLog(level slog.Level, text string) {
	l := v.logger()
	if l.Enabled(context.Background(), level) {
		l.Log(context.Background(), level, "wasm log", "text", strings.TrimSuffix(text, "\n"))
	}
}

// le appends a little-endian number.
func le(b []byte, n int) []byte { return binary.LittleEndian.AppendUint32(b, uint32(n)) }
