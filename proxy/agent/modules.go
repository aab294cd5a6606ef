package agent

import (
	"strconv"
	"strings"

	"github.com/fairlead-mesh/fairlead/internal/wasmmodule"
)

// modulesDir is where WebAssembly modules are kept; istiod's pod templates mount
// a volume at the directory that it is in, which outlives a container.
const modulesDir = "/var/lib/istio/data/fairlead-wasm"

// Modules reads how WebAssembly modules are fetched from an environment in the
// form of os.Environ. The variables are istio-agent's. The warnings name values
// that can't be read.
func Modules(environ []string) (o wasmmodule.Options, warnings []string) {
	e := newEnv(environ)
	return modules(e), e.warnings
}

func modules(e *env) wasmmodule.Options {
	o := wasmmodule.Options{
		MaxModule: parse(e, "ISTIO_WASM_MAX_BINARY_SIZE_BYTES", wasmmodule.DefaultMaxModule, func(s string) (int64, error) { return strconv.ParseInt(s, 10, 64) }),
		Expiry:    e.duration("WASM_MODULE_EXPIRY", wasmmodule.DefaultExpiry), PurgeInterval: e.duration("WASM_PURGE_INTERVAL", wasmmodule.DefaultPurgeInterval),
		Timeout: e.duration("WASM_HTTP_REQUEST_TIMEOUT", wasmmodule.DefaultTimeout), Attempts: e.integer("WASM_HTTP_REQUEST_MAX_RETRIES", wasmmodule.DefaultAttempts),
	}
	for host := range strings.SplitSeq(e.str("WASM_INSECURE_REGISTRIES", ""), ",") {
		if host = strings.TrimSpace(host); host != "" {
			o.Insecure = append(o.Insecure, host)
		}
	}
	return o
}
