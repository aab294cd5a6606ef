package proxywasm

import (
	"context"
	"crypto/sha256"
	"errors"
	"log/slog"
	"strconv"
	"strings"
	"sync/atomic"

	"github.com/fairlead-mesh/fairlead/filters"
	"github.com/fairlead-mesh/fairlead/internal/streaminfo"
)

// Plugin is a module with a plugin's configuration, ready to filter streams. It
// is immutable and safe for concurrent use.
type Plugin struct {
	cfg      *Config
	pool     *pool
	key      pluginKey
	stateKey string
	logger   *slog.Logger
	shared   *filters.Shared
	release  func()
}

var (
	stateKeys atomic.Uint64
	_         streaminfo.Object = (*guestContext)(nil)
)

// Start compiles code, unless that was done, starts a VM, unless there is one for
// it, and has the guest configure itself. It may take seconds, and gives up soon
// after ctx ends. The error says why the plugin can't run.
func Start(ctx context.Context, env *filters.Env, cfg *Config, code []byte) (*Plugin, error) {
	shared := env.Shared
	if shared == nil {
		shared = &filters.Shared{}
	}
	logger := env.Logger
	if logger == nil {
		logger = slog.New(slog.DiscardHandler)
	}
	k := poolKey{
		vmID: cfg.VMID, code: sha256.Sum256(code), config: sha256.Sum256([]byte(cfg.VMConfig)),
		capabilities: sum(cfg.Capabilities), environment: sum(cfg.Env),
	}
	for {
		pl, release, err := acquirePool(ctx, shared, k, func() *pool { return newPool(env, cfg, k, logger) }, code)
		if err == nil {
			p := &Plugin{
				cfg: cfg, pool: pl, shared: shared, release: release, stateKey: newStateKey(), logger: logger.With("plugin", cfg.Name),
				key: pluginKey{cfg.Name, cfg.RootID, env.Direction, sha256.Sum256([]byte(cfg.PluginConfig)), cfg.AllowStopIteration},
			}
			if err = pl.add(ctx, p); err == nil {
				return p, nil
			}
			release()
		}
		if ctx.Err() != nil || !errors.Is(err, context.Canceled) {
			return nil, err
		} // else somebody began who doesn't want it any more
	}
}

func acquirePool(ctx context.Context, shared *filters.Shared, k poolKey, create func() *pool, code []byte) (*pool, func(), error) {
	v, release, err := shared.Acquire(k, func() (any, error) { return create(), nil })
	if err != nil {
		return nil, nil, err
	}
	pl, _ := v.(*pool)
	pl.once.Do(func() { pl.err = pl.begin(ctx, shared, code) })
	if pl.err != nil {
		release()
		return nil, nil, pl.err
	}
	return pl, release, nil
}

// Name is the plugin's.
func (p *Plugin) Name() string { return p.cfg.Name }

func newStateKey() string { return "fairlead.wasm." + strconv.FormatUint(stateKeys.Add(1), 10) }

// Another returns the same plugin once more, which takes no time: both must be
// closed. A stream may pass through both.
func (p *Plugin) Another() (*Plugin, error) {
	v, release, err := p.shared.Acquire(p.pool.id, func() (any, error) { return nil, errClosed })
	if err != nil {
		return nil, err
	}
	if v != p.pool {
		release()
		return nil, errClosed
	}
	o := *p
	o.release, o.stateKey = release, newStateKey()
	if err := p.pool.add(context.Background(), &o); err != nil {
		release()
		return nil, err
	}
	return &o, nil
}

func sum(list []string) [sha256.Size]byte {
	if list == nil {
		return [sha256.Size]byte{}
	}
	return sha256.Sum256([]byte(strings.Join(list, "\x00")))
}

// Close ends the plugin, after its last stream.
func (p *Plugin) Close() error {
	pl := p.pool
	pl.mu.Lock()
	if r := pl.plugins[p.key]; r != nil {
		if r.refs--; r.refs == 0 {
			delete(pl.plugins, p.key)
			pl.forget(p.key)
		}
	}
	pl.mu.Unlock()
	p.release()
	return nil
}
