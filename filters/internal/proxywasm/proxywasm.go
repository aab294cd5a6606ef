// Package proxywasm runs WebAssembly modules that are written for the
// Proxy-Wasm ABI, versions 0.1.0, 0.2.0 and 0.2.1, as filters of HTTP streams:
// https://github.com/proxy-wasm/spec. What a guest sees is what Envoy shows it.
//
// A guest is single-threaded: everything that touches a VM holds its lock. A
// plugin runs in a pool of VMs that grows when a stream finds them busy, up to
// one for each processor; a stream stays with its VM.
package proxywasm

import (
	"errors"
	"time"
)

// Status is what a host function returns, proxy_status_t.
type Status uint32

// Statuses.
const (
	StatusOK Status = iota
	StatusNotFound
	StatusBadArgument
	StatusSerializationFailure
	StatusParseFailure
	StatusBadExpression
	StatusInvalidMemoryAccess
	StatusEmpty
	StatusCASMismatch
	StatusResultMismatch
	StatusInternalFailure
	StatusBrokenConnection
	StatusUnimplemented
)

// Bounds of what guests may use. Envoy has the memory limit (1 GiB there) and
// those of header lists only.
const (
	// MaxMemory is the memory of one VM, bytes.
	MaxMemory = 256 << 20
	// CallTimeout ends a guest that is called for a stream, a timer or an answer;
	// StartTimeout one that starts or is configured.
	CallTimeout  = time.Second
	StartTimeout = 30 * time.Second
	// MaxModule is the size of a module.
	MaxModule = 64 << 20

	maxPairs        = 1024
	maxPairsBytes   = 1 << 20
	maxCalloutBody  = 16 << 20
	maxCallouts     = 1024 // in flight, of one VM
	maxLog          = 16 << 10
	maxSharedBytes  = 64 << 20 // of one vm_id, data and queues
	maxMetrics      = 10_000   // of one VM
	maxEffective    = 10 * time.Second
	defaultBodySize = 1 << 20 // per_connection_buffer_limit_bytes
)

// Policy says what becomes of streams whose VM has failed.
type Policy uint8

// Policies. FailReload is FailClosed until a new VM is made.
const (
	FailClosed Policy = iota
	FailOpen
	FailReload
)

// Config is a plugin and its VM. It is immutable.
type Config struct {
	// Name and RootID are the plugin's, VMID that of its VM: plugins with the
	// same VMID, module and VM configuration share VMs.
	Name, RootID, VMID string
	// Runtime is the configured one, for the names of metrics.
	Runtime string
	// VMConfig and PluginConfig are what the guest reads as its configuration.
	VMConfig, PluginConfig string
	// Env are the environment variables, "NAME=value", sorted.
	Env []string
	// Capabilities are the functions that may be called, on either side, sorted;
	// nil are all.
	Capabilities []string
	Policy       Policy
	// ReloadBase is the pause from the start of a VM to that of one in its place; up
	// to half of it is added.
	ReloadBase time.Duration
	// AllowStopIteration lets a guest that pauses in its headers callback see the
	// body all the same.
	AllowStopIteration bool
}

// Errors of a VM.
var (
	errFailed  = errors.New("the VM has failed")
	errTimeout = errors.New("the guest ran for too long")
	errClosed  = errors.New("the VM is closed")
)
