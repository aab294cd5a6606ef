package filters

import (
	"context"
	"io"
	"log/slog"
	"net/netip"
	"sync"
	"time"

	"github.com/fairlead-mesh/fairlead/internal/message"
	"github.com/fairlead-mesh/fairlead/internal/stats"
	"github.com/fairlead-mesh/fairlead/internal/streaminfo"
)

// Env is what a filter may take from its surroundings while compiling. Fields
// may be nil in tests; a filter that needs one says so with an error.
type Env struct {
	// Name is the configured filter name.
	Name string
	// Direction is the listener's traffic_direction: "inbound", "outbound", "".
	Direction string
	Stats     *stats.Scope
	// HTTPStats is for Envoy's statistics of HTTP filters ("envoy_http_…"): Stats
	// with the connection manager's stat_prefix as label. Nil elsewhere, which
	// discards.
	HTTPStats *stats.Scope
	Logger    *slog.Logger
	// Events is where a filter tells what it found in a message, Logger if nil.
	// Refusals are told by who ends the stream.
	Events *slog.Logger
	// Upstreams calls clusters by name: ext_authz, JWKS, bundles.
	Upstreams Upstreams
	// Workloads looks up peers by address.
	Workloads Workloads
	// Node is this proxy's own identity in the mesh.
	Node *Node
	// Shared keeps state that must outlive one snapshot.
	Shared *Shared
	// Logs writes log files: decision logs.
	Logs LogFiles
	// Modules gets WebAssembly modules from elsewhere.
	Modules Modules
	// Prepared is what a Preparer has made for the filter that is compiled, nil if it
	// was not asked. It stays the caller's.
	Prepared io.Closer
}

// LogFiles are the log files of the process: whoever names the same path
// writes to the same file, which is reopened with the others.
type LogFiles interface {
	// Lines opens path for appending (/dev/stdout and /dev/stderr are the
	// standard streams) and returns what writes whole lines: it copies p, does
	// not wait for the disk, may be called by anybody, and reports false if p
	// was dropped because the file takes no more.
	Lines(path string) (write func(p []byte) bool, err error)
}

// Upstreams lets a filter call a cluster. TLS, load balancing and circuit
// breakers are the ordinary ones of that cluster.
type Upstreams interface {
	// RoundTrip sends one request and reads the whole response body, up to
	// limit bytes (more is an error). It fails at once, without a call, while
	// the cluster's circuit breaker for callouts is open.
	RoundTrip(ctx context.Context, cluster string, req *Callout, limit int64) (*CalloutResponse, error)
}

// Callout is a request that a filter makes.
type Callout struct {
	Header  message.Header // pseudo-headers included
	Body    []byte
	Timeout time.Duration // of all attempts; 0: none
	// Retry, if not nil, says how often the request is sent again when it
	// failed, or was answered by a 5xx or gRPC's UNAVAILABLE.
	Retry *Retry
	// HTTP2 forces HTTP/2 (gRPC) whatever the cluster's protocol options say.
	HTTP2 bool
}

// Retry says how a callout is repeated. It is immutable.
type Retry struct {
	// Times is how often at most, beside the first attempt.
	Times int
	// Base is the longest pause before the first repetition; it doubles with
	// each, up to Max. Pauses are random.
	Base, Max time.Duration
}

// CalloutResponse is what came back.
type CalloutResponse struct {
	Status   int
	Header   message.Header
	Body     []byte
	Trailers message.Header
}

// Workloads is the mesh's table of workloads (WDS).
type Workloads interface {
	// Peer returns the workload that owns addr, nil if unknown.
	Peer(addr netip.Addr) *streaminfo.Peer
}

// Node is what this proxy tells its control plane about itself.
type Node struct {
	ID, Cluster, Namespace, WorkloadName, ClusterID, Network, ServiceAccount, TrustDomain string
	IstioVersion                                                                          string
	// Region and Zone are the locality's.
	Region, Zone string
	Labels       map[string]string
	Metadata     map[string]any
}

// Shared keeps values that must outlive one snapshot (rate-limit buckets, DNS
// caches, compiled policies), reference counted: a value lives while any
// holder has not released it. The zero Shared is ready; it is safe for
// concurrent use.
type Shared struct {
	mu sync.Mutex
	m  map[any]*sharedEntry
}

type sharedEntry struct {
	v    any
	refs int
}

// Acquire returns the value under key, made by create on first use, and a
// function that releases it; the last release closes an io.Closer. key must be
// a comparable struct type of the caller's package. create runs under a lock
// and must not block.
func (s *Shared) Acquire(key any, create func() (any, error)) (v any, release func(), err error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.m == nil {
		s.m = map[any]*sharedEntry{}
	}
	e := s.m[key]
	if e == nil {
		v, err := create()
		if err != nil {
			return nil, nil, err
		}
		e = &sharedEntry{v: v}
		s.m[key] = e
	}
	e.refs++
	return e.v, sync.OnceFunc(func() { s.release(key, e) }), nil
}

// Finish calls the Finish method of values that have one, while what they work
// with is still there: the process is about to end.
func (s *Shared) Finish() {
	s.mu.Lock()
	var vs []interface{ Finish() }
	for _, e := range s.m {
		if f, ok := e.v.(interface{ Finish() }); ok {
			vs = append(vs, f)
		}
	}
	s.mu.Unlock()
	var all sync.WaitGroup
	for _, v := range vs {
		all.Go(v.Finish)
	}
	all.Wait()
}

func (s *Shared) release(key any, e *sharedEntry) {
	s.mu.Lock()
	e.refs--
	last := e.refs == 0
	if last {
		delete(s.m, key)
	}
	s.mu.Unlock()
	if c, ok := e.v.(io.Closer); ok && last {
		_ = c.Close()
	}
}
