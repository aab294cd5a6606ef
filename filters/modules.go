package filters

import (
	"context"
	"errors"
	"io"
	"time"
)

// ModuleRef says which WebAssembly module a filter runs and how it is got from
// elsewhere. It is comparable: equal references mean the same module.
type ModuleRef struct {
	// URL is "https://…", "http://…" or "oci://…", as configured. Local files
	// and bytes that came with the configuration are not asked for.
	URL string
	// SHA256 is the lower-case hex digest that the module, or the OCI image's
	// manifest, must have; "" if any is right.
	SHA256 string
	// Cluster is the cluster that serves URL; "" or "_" (Istio) if the proxy
	// itself must resolve and call its host.
	Cluster string
	// PullSecret is a docker configuration in JSON, "" for none. It must not be
	// logged.
	PullSecret string
	// PullPolicy is "", "IfNotPresent" or "Always", ResourceVersion that of
	// Istio's resource: with Always another version is another pull.
	PullPolicy, ResourceVersion string
	// Timeout is that of one attempt, 0 for the default.
	Timeout time.Duration
	// Retries is how often a failed attempt is repeated at once, -1 if the
	// configuration doesn't say; Base and Max bound the pauses, 0 for the
	// defaults.
	Retries   int
	Base, Max time.Duration
}

// Modules gets WebAssembly modules from elsewhere.
type Modules interface {
	// Module returns the module, which must not be modified. It does not block
	// and is cheap: the first call begins to fetch, and until the bytes are
	// there the error is, or wraps, ErrModulePending. Any other error is that of
	// the last attempt. Either may be asked again at any time, by anybody.
	Module(ref ModuleRef) ([]byte, error)
}

// ModuleUser is implemented by a Config whose filter runs modules that come
// from elsewhere, so that they can be fetched before it is compiled.
type ModuleUser interface {
	// Modules lists them.
	Modules() []ModuleRef
}

// Preparer is implemented by an HTTPFactory whose filters take long to make: that
// is done ahead, beside what serves.
type Preparer interface {
	// Prepare does what takes long about Compile with the same configuration and no
	// override. The result is handed to Compile as Env.Prepared, any number of times,
	// and closed when nobody will compile with it any more: what was compiled
	// goes on. An error is that of Compile. It returns soon after ctx ends.
	Prepare(ctx context.Context, env *Env, base Config) (io.Closer, error)
	// StandIn returns what is in a filter's place as long as its module is not here,
	// or it is not prepared, or if a module that came from elsewhere can't be
	// prepared: why says which, ErrModulePending for the first two. Nil leaves the
	// filter out.
	StandIn(env *Env, base Config, why error) HTTPFilter
}

// ErrModulePending says that a module is still being fetched.
var ErrModulePending = errors.New("the module is still being fetched")
