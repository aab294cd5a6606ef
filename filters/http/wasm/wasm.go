// Package wasm is the Wasm HTTP filter: it runs a WebAssembly module that is
// written for the Proxy-Wasm ABI. See package proxywasm for how.
package wasm

import (
	"errors"
	"fmt"
	"io"
	"os"
	"slices"
	"strings"
	"sync"
	"sync/atomic"

	"github.com/fairlead-mesh/fairlead/filters"
	"github.com/fairlead-mesh/fairlead/filters/internal/proxywasm"
	"github.com/fairlead-mesh/fairlead/internal/streaminfo"
)

// Factory makes Wasm filters.
type Factory struct{}

// TypeURLs implements filters.HTTPFactory.
func (Factory) TypeURLs() []string { return []string{typeURL} }

// Compile implements filters.HTTPFactory. It loads, compiles and starts the
// module, unless an equal one runs already; the error says why that can't be. A
// module that is still being fetched is started by the first request after it
// arrived.
func (Factory) Compile(env *filters.Env, base, override filters.Config) (filters.HTTPFilter, error) {
	c, ok := base.(*Config)
	if !ok || override != nil {
		return nil, fmt.Errorf("wasm: configuration is a %T, override a %T", base, override)
	}
	f := &filter{c: c, env: env, plugin: c.Plugin}
	f.plugin.Env = slices.Clone(c.Plugin.Env)
	for _, k := range c.HostEnv {
		if v, ok := os.LookupEnv(k); ok {
			f.plugin.Env = append(f.plugin.Env, k+"="+v)
		}
	}
	slices.Sort(f.plugin.Env)
	switch err := f.start(); {
	case errors.Is(err, filters.ErrModulePending):
		return f, nil
	case err != nil:
		return nil, fmt.Errorf("wasm: plugin %q: %w", c.Plugin.Name, err)
	}
	return f, nil
}

// filter runs a plugin, once its module is there.
type filter struct {
	c      *Config
	env    *filters.Env
	plugin proxywasm.Config

	starting sync.Mutex
	closed   bool // under starting
	running  atomic.Pointer[proxywasm.Plugin]
	failure  atomic.Pointer[error] // why a module that arrived late can't run
}

var _ io.Closer = (*filter)(nil)

// start gets the module and runs it.
func (f *filter) start() error {
	f.starting.Lock()
	defer f.starting.Unlock()
	if f.closed || f.running.Load() != nil {
		return nil
	}
	code, err := f.load()
	if err != nil {
		return err
	}
	p, err := proxywasm.Start(f.env, &f.plugin, code)
	if err != nil {
		return err
	}
	f.running.Store(p)
	return nil
}

// load returns the module's bytes.
func (f *filter) load() ([]byte, error) {
	c := f.c
	switch {
	case c.Remote != nil:
		if f.env.Modules == nil {
			return nil, fmt.Errorf("nothing here fetches modules: %s", c.Remote.URL)
		}
		return f.env.Modules.Module(*c.Remote)
	case c.File != "":
		return readFile(c.File)
	case c.Variable != "":
		v, ok := os.LookupEnv(c.Variable)
		if !ok {
			return nil, fmt.Errorf("the environment variable %s is not set", c.Variable)
		}
		return []byte(v), nil
	}
	return c.Inline, nil
}

func readFile(name string) ([]byte, error) {
	file, err := os.Open(name)
	if err != nil {
		return nil, err
	}
	defer func() { _ = file.Close() }()
	b, err := io.ReadAll(io.LimitReader(file, proxywasm.MaxModule+1))
	if err != nil {
		return nil, fmt.Errorf("%s: %w", name, err)
	}
	if len(b) > proxywasm.MaxModule {
		return nil, fmt.Errorf("%s has more than %d bytes", name, proxywasm.MaxModule)
	}
	return b, nil
}

// Close ends the plugin, and its VMs if nobody else uses them.
func (f *filter) Close() error {
	f.starting.Lock()
	defer f.starting.Unlock()
	f.closed = true
	if p := f.running.Swap(nil); p != nil {
		return p.Close()
	}
	return nil
}

// Do implements filters.HTTPFilter.
func (f *filter) Do(s *filters.Stream, next filters.Next) (*filters.Response, error) {
	p := f.running.Load()
	if p == nil {
		if p = f.late(); p == nil {
			return f.refuse(s, next)
		}
	}
	return p.Do(s, next)
}

// late starts a module that has arrived since.
func (f *filter) late() *proxywasm.Plugin {
	if f.failure.Load() != nil {
		return nil
	}
	if _, err := f.load(); err != nil {
		return nil // not yet, or not this time
	}
	if err := f.start(); err != nil && !errors.Is(err, filters.ErrModulePending) {
		f.failure.Store(&err)
		if f.env.Logger != nil {
			f.env.Logger.Error("wasm: the module can't run", "plugin", f.c.Plugin.Name, "error", err)
		}
	}
	return f.running.Load()
}

// refuse is what becomes of requests without the module.
func (f *filter) refuse(s *filters.Stream, next filters.Next) (*filters.Response, error) {
	if f.plugin.Policy == proxywasm.FailOpen {
		return next.Do(s)
	}
	d := streaminfo.Decision{Filter: "wasm", Policy: f.c.Plugin.Name, Reason: "module_pending", Why: f.why}
	return s.Deny(503, "", "wasm_fail_stream", 0, d), nil
}

func (f *filter) why() string {
	if err := f.failure.Load(); err != nil {
		return (*err).Error()
	}
	if _, err := f.load(); err != nil {
		return err.Error()
	}
	return "the module has just arrived"
}

// OnStreamEnd implements filters.StreamEnder.
func (f *filter) OnStreamEnd(s *filters.Stream, r *filters.Response) {
	if p := f.running.Load(); p != nil {
		p.OnStreamEnd(s, r)
	}
}

// Explain says that what the guest does can't be told without doing it.
func (f *filter) Explain(*filters.Stream) filters.Explanation {
	text := []string{"runs code: the plugin " + f.c.Plugin.Name + " is not asked, what it does may depend on anything"}
	if f.running.Load() == nil {
		text = append(text, "it doesn't run now: "+strings.TrimSpace(f.why()))
	}
	return filters.Explanation{Verdict: filters.VerdictUnknown, Text: text}
}
