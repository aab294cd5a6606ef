// Package wasm is the Wasm HTTP filter: it runs a WebAssembly module that is
// written for the Proxy-Wasm ABI. See package proxywasm for how.
package wasm

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"slices"

	"github.com/fairlead-mesh/fairlead/filters"
	"github.com/fairlead-mesh/fairlead/filters/internal/proxywasm"
	"github.com/fairlead-mesh/fairlead/internal/streaminfo"
)

// Factory makes Wasm filters.
type Factory struct{}

var _ filters.Preparer = Factory{}

// TypeURLs implements filters.HTTPFactory.
func (Factory) TypeURLs() []string { return []string{typeURL} }

// Prepare implements filters.Preparer: it loads, compiles and starts the module,
// unless an equal one runs already. The error says why that can't be.
func (Factory) Prepare(ctx context.Context, env *filters.Env, base filters.Config) (io.Closer, error) {
	c, ok := base.(*Config)
	if !ok {
		return nil, fmt.Errorf("wasm: configuration is a %T", base)
	}
	plugin := c.Plugin
	plugin.Env = slices.Clone(c.Plugin.Env)
	for _, k := range c.HostEnv {
		if v, ok := os.LookupEnv(k); ok {
			plugin.Env = append(plugin.Env, k+"="+v)
		}
	}
	slices.Sort(plugin.Env)
	code, err := c.load(env)
	if err != nil {
		return nil, fmt.Errorf("wasm: plugin %q: %w", plugin.Name, err)
	}
	p, err := proxywasm.Start(ctx, env, &plugin, code)
	if err != nil {
		return nil, fmt.Errorf("wasm: plugin %q: %w", plugin.Name, err)
	}
	return p, nil
}

// Compile implements filters.HTTPFactory.
func (f Factory) Compile(env *filters.Env, base, override filters.Config) (filters.HTTPFilter, error) {
	if override != nil {
		return nil, fmt.Errorf("wasm: override is a %T", override)
	}
	if p, ok := env.Prepared.(*proxywasm.Plugin); ok {
		p, err := p.Another()
		if err != nil {
			return nil, fmt.Errorf("wasm: %w", err)
		}
		return &filter{p}, nil
	}
	v, err := f.Prepare(context.Background(), env, base)
	if err != nil {
		return nil, err
	}
	p, _ := v.(*proxywasm.Plugin)
	return &filter{p}, nil
}

// StandIn implements filters.Preparer: what becomes of requests without the module
// says the failure policy.
func (Factory) StandIn(_ *filters.Env, base filters.Config, why error) filters.HTTPFilter {
	d := streaminfo.Decision{Filter: "wasm", Reason: "vm_failed", Why: why.Error}
	if c, ok := base.(*Config); ok {
		if c.Plugin.Policy == proxywasm.FailOpen {
			return nil
		}
		d.Policy = c.Plugin.Name
	}
	if errors.Is(why, filters.ErrModulePending) {
		d.Reason = "module_pending"
	}
	return standIn{d}
}

// standIn refuses requests in place of a module.
type standIn struct{ d streaminfo.Decision }

// Do implements filters.HTTPFilter.
func (f standIn) Do(s *filters.Stream, _ filters.Next) (*filters.Response, error) {
	return s.Deny(503, "", "wasm_fail_stream", 0, f.d), nil
}

// Explain says that nothing passes.
func (f standIn) Explain(*filters.Stream) filters.Explanation {
	return filters.Explanation{
		Verdict: filters.VerdictDeny, Status: 503, Details: "wasm_fail_stream",
		Text: []string{"the plugin " + f.d.Policy + " doesn't run now: " + f.d.Why()},
	}
}

// filter runs a plugin.
type filter struct{ *proxywasm.Plugin }

var _ io.Closer = (*filter)(nil)

// load returns the module's bytes.
func (c *Config) load(env *filters.Env) ([]byte, error) {
	switch {
	case c.Remote != nil:
		if env.Modules == nil {
			return nil, fmt.Errorf("nothing here fetches modules: %s", c.Remote.URL)
		}
		return env.Modules.Module(*c.Remote)
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
	file, err := os.Open(name) //nolint:gosec // the configuration says which
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

// Explain says that what the guest does can't be told without doing it.
func (f *filter) Explain(*filters.Stream) filters.Explanation {
	return filters.Explanation{Verdict: filters.VerdictUnknown, Text: []string{
		"runs code: the plugin " + f.Name() + " is not asked, what it does may depend on anything",
	}}
}
