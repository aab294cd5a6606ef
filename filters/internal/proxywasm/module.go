package proxywasm

import (
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"runtime"
	"slices"
	"strings"
	"sync"

	"github.com/tetratelabs/wazero"
	"github.com/tetratelabs/wazero/api"
	"github.com/tetratelabs/wazero/experimental"
	"github.com/tetratelabs/wazero/imports/wasi_snapshot_preview1"

	"github.com/fairlead-mesh/fairlead/filters"
)

// ABI is a version of the Proxy-Wasm ABI.
type ABI uint8

// The versions that are known; they differ in a few functions.
const (
	ABI010 ABI = iota + 1
	ABI020
	ABI021
)

const abiPrefix = "proxy_abi_version_"

// String returns the version as the specification writes it.
func (a ABI) String() string {
	return [...]string{"unknown", "0.1.0", "0.2.0", "0.2.1"}[a]
}

// module is compiled code with the host functions that it may call, shared by
// all VMs that run it.
type module struct {
	once  sync.Once
	err   error
	allow allowed

	abi      ABI
	runtime  wazero.Runtime
	compiled wazero.CompiledModule
	has      map[string]bool // functions that the guest exports and may be called
	// properties: the guest may ask for some.
	properties bool
}

// moduleKey is the content of a module and what it may call.
type moduleKey struct{ code, capabilities [sha256.Size]byte }

// Close implements io.Closer: no VM runs any more.
func (m *module) Close() error {
	if m.runtime == nil {
		return nil
	}
	return m.runtime.Close(context.Background())
}

// acquireModule returns the module, compiled on first use. Equal modules are
// compiled once.
func acquireModule(ctx context.Context, shared *filters.Shared, c *Config, code []byte) (*module, func(), error) {
	key := moduleKey{sha256.Sum256(code), sha256.Sum256([]byte(strings.Join(c.Capabilities, "\x00")))}
	for {
		v, release, err := shared.Acquire(key, func() (any, error) { return &module{allow: newAllowed(c.Capabilities)}, nil })
		if err != nil {
			return nil, nil, err
		}
		m, _ := v.(*module)
		m.once.Do(func() { m.err = m.compile(ctx, code) })
		if m.err == nil {
			return m, release, nil
		}
		release()
		if ctx.Err() != nil || !errors.Is(m.err, context.Canceled) {
			return nil, nil, m.err
		} // else somebody began who doesn't want it any more
	}
}

// allowed are the capabilities that a VM has; nil are all.
type allowed map[string]bool

func newAllowed(names []string) allowed {
	if names == nil {
		return nil
	}
	a := allowed{}
	for _, n := range names {
		a[n] = true
	}
	return a
}

func (a allowed) has(name string) bool { return a == nil || a[name] }

// compile takes the module apart, checks that it can run here, and compiles it.
func (m *module) compile(ctx context.Context, code []byte) error {
	if len(code) > MaxModule {
		return fmt.Errorf("the module has %d bytes, more than %d", len(code), MaxModule)
	}
	metered, err := meter(code)
	if err != nil {
		return err
	}
	if err := ctx.Err(); err != nil {
		return err
	}
	m.runtime = wazero.NewRuntimeWithConfig(ctx, wazero.NewRuntimeConfig().
		WithCoreFeatures(api.CoreFeaturesV2).WithMemoryLimitPages(MaxMemory/65536).WithDebugInfoEnabled(false))
	err = m.build(ctx, metered)
	if err != nil {
		_ = m.runtime.Close(context.Background())
		m.runtime = nil
	}
	return err
}

func (m *module) build(ctx context.Context, code []byte) error {
	var err error
	workers := max(2, runtime.GOMAXPROCS(0)) // one alone would not look at ctx
	if m.compiled, err = m.runtime.CompileModule(experimental.WithCompilationWorkers(ctx, workers), code); err != nil {
		if e := ctx.Err(); e != nil {
			return e
		}
		return fmt.Errorf("%w: %w", errModule, err)
	}
	exported := m.compiled.ExportedFunctions()
	if m.abi, err = findABI(exported); err != nil {
		return err
	}
	if err := m.checkExports(exported); err != nil {
		return err
	}
	return m.link(ctx)
}

func findABI(exported map[string]api.FunctionDefinition) (ABI, error) {
	var unknown []string
	for name := range exported {
		v, ok := strings.CutPrefix(name, abiPrefix)
		if !ok {
			continue
		}
		switch v {
		case "0_1_0":
			return ABI010, nil
		case "0_2_0":
			return ABI020, nil
		case "0_2_1":
			return ABI021, nil
		}
		unknown = append(unknown, strings.ReplaceAll(v, "_", "."))
	}
	if unknown == nil {
		return 0, errors.New("the module exports no function " + abiPrefix + "…: it is not made for Proxy-Wasm")
	}
	slices.Sort(unknown)
	return 0, fmt.Errorf("the module is made for version %s of the Proxy-Wasm ABI; 0.1.0, 0.2.0 and 0.2.1 can be run", strings.Join(unknown, ", "))
}

// checkExports notes which callbacks are there and that they have the types of
// the ABI.
func (m *module) checkExports(exported map[string]api.FunctionDefinition) error {
	if exported["malloc"] == nil && exported["proxy_on_memory_allocate"] == nil {
		return errors.New("the module exports neither malloc nor proxy_on_memory_allocate")
	}
	m.has = map[string]bool{}
	for name, f := range exported {
		want, ok := callbackTypes[name]
		if !ok || strings.HasPrefix(name, "proxy_on_") && name != "proxy_on_memory_allocate" && !m.allow.has(name) {
			continue
		}
		params, results := len(f.ParamTypes()), len(f.ResultTypes())
		if m.abi == ABI010 && (name == "proxy_on_request_headers" || name == "proxy_on_response_headers") && params == 2 {
			want.params = 2
		}
		for _, t := range slices.Concat(f.ParamTypes(), f.ResultTypes()) {
			if t != api.ValueTypeI32 {
				params = -1
			}
		}
		if params != want.params || results != want.results {
			return fmt.Errorf("the module exports %s with %v → %v: want %d parameters and %d results, all i32",
				name, valueNames(f.ParamTypes()), valueNames(f.ResultTypes()), want.params, want.results)
		}
		m.has[name] = true
	}
	if len(m.compiled.ExportedMemories()) == 0 {
		return errors.New("the module exports no memory")
	}
	return nil
}

func valueNames(ts []api.ValueType) []string {
	out := make([]string, len(ts))
	for i, t := range ts {
		out[i] = api.ValueTypeName(t)
	}
	return out
}

// link makes the host modules that the guest imports from.
func (m *module) link(ctx context.Context) error {
	imports := map[string][]api.FunctionDefinition{}
	for _, f := range m.compiled.ImportedFunctions() {
		module, _, _ := f.Import()
		imports[module] = append(imports[module], f)
	}
	for name, fs := range imports {
		b := m.runtime.NewHostModuleBuilder(name)
		switch name {
		case meterModule:
			b.NewFunctionBuilder().WithGoModuleFunction(api.GoModuleFunc(tick), nil, nil).Export(meterName)
		case "env":
			for _, f := range fs {
				_, name, _ := f.Import()
				m.properties = m.properties || name == "proxy_get_property"
				if err := m.exportHost(b, f); err != nil {
					return err
				}
			}
		case wasi_snapshot_preview1.ModuleName, "wasi_unstable":
			wasi_snapshot_preview1.NewFunctionExporter().ExportFunctions(b)
			for _, f := range fs {
				m.exportWASI(b, f)
			}
		default:
			_, f, _ := fs[0].Import()
			return fmt.Errorf("the module imports %s.%s, which is not part of the ABI", name, f)
		}
		if _, err := b.Instantiate(ctx); err != nil {
			return fmt.Errorf("host functions of %s: %w", name, err)
		}
	}
	return nil
}

func (m *module) exportHost(b wazero.HostModuleBuilder, f api.FunctionDefinition) error {
	_, name, _ := f.Import()
	h, ok := hostFunctions[name]
	if !ok || h.abi != 0 && h.abi>>m.abi&1 == 0 {
		return fmt.Errorf("the module imports env.%s, which version %s of the ABI does not have", name, m.abi)
	}
	params := make([]api.ValueType, len(h.params))
	for i, c := range h.params {
		params[i] = api.ValueTypeI32
		if c == 'l' {
			params[i] = api.ValueTypeI64
		}
	}
	call := h.call
	if strings.HasPrefix(name, "proxy_") && !m.allow.has(name) {
		call = func(v *vm, _ []uint64) Status {
			v.restricted(name)
			return StatusInternalFailure
		}
	}
	results := []api.ValueType{api.ValueTypeI32}
	if h.void {
		results = nil
	}
	void := h.void
	b.NewFunctionBuilder().WithGoModuleFunction(api.GoModuleFunc(func(ctx context.Context, _ api.Module, stack []uint64) {
		v, _ := ctx.(*vm)
		for i, t := range params {
			if t == api.ValueTypeI32 {
				stack[i] = uint64(uint32(stack[i]))
			}
		}
		status := call(v, stack)
		if !void {
			stack[0] = uint64(status)
		}
	}), params, results).Export(name)
	return nil
}

const wasiNotCapable = 76

// exportWASI replaces functions of WASI that have another meaning here.
func (m *module) exportWASI(b wazero.HostModuleBuilder, f api.FunctionDefinition) {
	_, name, _ := f.Import()
	switch {
	case !m.allow.has(name):
		results := len(f.ResultTypes())
		b.NewFunctionBuilder().WithGoModuleFunction(api.GoModuleFunc(func(ctx context.Context, _ api.Module, stack []uint64) {
			v, _ := ctx.(*vm)
			v.restricted(name)
			if results > 0 {
				stack[0] = wasiNotCapable
			}
		}), f.ParamTypes(), f.ResultTypes()).Export(name)
	case name == "proc_exit":
		b.NewFunctionBuilder().WithGoModuleFunction(api.GoModuleFunc(func(_ context.Context, _ api.Module, stack []uint64) {
			panic(exited(uint32(stack[0])))
		}), f.ParamTypes(), f.ResultTypes()).Export(name)
	}
}

// exited is what a guest that calls proc_exit panics with.
type exited uint32

// Error implements error.
func (e exited) Error() string { return fmt.Sprintf("the guest called proc_exit(%d)", uint32(e)) }

// callbackType is the number of parameters and results of a callback, all i32.
type callbackType struct{ params, results int }

var callbackTypes = map[string]callbackType{
	"malloc": {1, 1}, "proxy_on_memory_allocate": {1, 1},
	"_initialize": {}, "_start": {}, "main": {2, 1}, "__main_void": {0, 1},
	"proxy_on_vm_start": {2, 1}, "proxy_on_configure": {2, 1}, "proxy_validate_configuration": {2, 1}, "proxy_on_tick": {1, 0},
	"proxy_on_context_create": {2, 0}, "proxy_on_done": {1, 1}, "proxy_on_log": {1, 0}, "proxy_on_delete": {1, 0},
	"proxy_on_request_headers": {3, 1}, "proxy_on_request_body": {3, 1}, "proxy_on_request_trailers": {2, 1},
	"proxy_on_response_headers": {3, 1}, "proxy_on_response_body": {3, 1}, "proxy_on_response_trailers": {2, 1},
	"proxy_on_http_call_response": {5, 0}, "proxy_on_queue_ready": {2, 0},
	"proxy_on_grpc_receive_initial_metadata": {3, 0}, "proxy_on_grpc_receive": {3, 0},
	"proxy_on_grpc_receive_trailing_metadata": {3, 0}, "proxy_on_grpc_close": {3, 0},
}
