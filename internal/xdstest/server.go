// Package xdstest is a control plane for tests and demonstrations: a delta ADS
// server inside the process that behaves like istiod where that differs from
// others (unknown types end the stream, a second subscription of a name is not
// answered, missing secrets are silence), records what clients say, and can be
// made to misbehave.
package xdstest

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"fmt"
	"net"
	"sync"
	"time"

	discoveryv3pb "github.com/envoyproxy/go-control-plane/envoy/service/discovery/v3"
	"google.golang.org/grpc"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/anypb"
)

// Type URLs that a Server answers by default.
const (
	prefix       = "type.googleapis.com/"
	Cluster      = prefix + "envoy.config.cluster.v3.Cluster"
	Endpoints    = prefix + "envoy.config.endpoint.v3.ClusterLoadAssignment"
	Listener     = prefix + "envoy.config.listener.v3.Listener"
	Route        = prefix + "envoy.config.route.v3.RouteConfiguration"
	ExtensionCfg = prefix + "envoy.config.core.v3.TypedExtensionConfig"
	Secret       = prefix + "envoy.extensions.transport_sockets.tls.v3.Secret"
	Workload     = prefix + "istio.workload.Workload"
	Address      = prefix + "istio.workload.Address"
	Authz        = prefix + "istio.security.Authorization"
)

// Options configure a Server; the zero value listens on loopback in plaintext.
type Options struct {
	// Addr to listen on, "127.0.0.1:0" by default.
	Addr string
	// Types that are known besides the default ones.
	Types []string
	// Server options, for TLS and the like.
	GRPC []grpc.ServerOption
	// Register may add services, such as a certificate authority.
	Register func(*grpc.Server)
	// OnRequest, if not nil, is given each request, which Requests then does not
	// keep: for runs of hours.
	OnRequest func(Request)
	// OnResponse, if not nil, is given each response before it is sent, and the
	// stream that it is for.
	OnResponse func(stream int, r *discoveryv3pb.DeltaDiscoveryResponse)
}

// Request is a request as a client sent it.
type Request struct {
	// Stream counts streams from 1.
	Stream int
	*discoveryv3pb.DeltaDiscoveryRequest
}

// IsNACK reports whether the request refuses a response.
func (r Request) IsNACK() bool { return r.GetErrorDetail() != nil }

// IsACK reports whether the request accepts a response.
func (r Request) IsACK() bool { return r.GetErrorDetail() == nil && r.GetResponseNonce() != "" }

type resource struct {
	version string
	any     *anypb.Any
}

// Server is a delta ADS server. Its methods are safe for concurrent use.
type Server struct {
	discoveryv3pb.UnimplementedAggregatedDiscoveryServiceServer
	opts Options
	addr string

	mu       sync.Mutex
	grpc     *grpc.Server
	known    map[string]bool
	types    map[string]map[string]resource
	streams  map[*conn]struct{}
	started  int
	requests []Request
	changed  chan struct{} // closed and replaced when requests grows
	delay    time.Duration
	mute     bool
	refuse   error
	nonce    int
}

// Start listens and serves until Close.
func Start(o Options) (*Server, error) {
	if o.Addr == "" {
		o.Addr = "127.0.0.1:0"
	}
	s := &Server{
		opts: o, types: map[string]map[string]resource{}, streams: map[*conn]struct{}{}, changed: make(chan struct{}),
		known: map[string]bool{
			Cluster: true, Endpoints: true, Listener: true, Route: true, ExtensionCfg: true, Secret: true,
			Workload: true, Address: true, Authz: true,
		},
	}
	for _, t := range o.Types {
		s.known[t] = true
	}
	if err := s.listen(o.Addr); err != nil {
		return nil, err
	}
	return s, nil
}

// TB is the part of testing.TB that New uses.
type TB interface {
	Helper()
	Fatal(args ...any)
	Cleanup(func())
}

// New is Start for a test; the server ends with it.
func New(t TB, o Options) *Server {
	t.Helper()
	s, err := Start(o)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(s.Close)
	return s
}

func (s *Server) listen(addr string) error {
	l, err := (&net.ListenConfig{}).Listen(context.Background(), "tcp", addr)
	if err != nil {
		return fmt.Errorf("test control plane: %w", err)
	}
	g := grpc.NewServer(s.opts.GRPC...)
	discoveryv3pb.RegisterAggregatedDiscoveryServiceServer(g, s)
	if s.opts.Register != nil {
		s.opts.Register(g)
	}
	s.mu.Lock()
	s.grpc, s.addr = g, l.Addr().String()
	s.mu.Unlock()
	go func() { _ = g.Serve(l) }()
	return nil
}

// Addr is the address, "127.0.0.1:port".
func (s *Server) Addr() string {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.addr
}

// Close ends all streams and stops listening.
func (s *Server) Close() {
	s.mu.Lock()
	g := s.grpc
	s.mu.Unlock()
	g.Stop()
}

// Restart listens again on the same address after Close.
func (s *Server) Restart() error { return s.listen(s.Addr()) }

// Set adds or replaces a resource; its version is a digest of its content.
func (s *Server) Set(typeURL, name string, m proto.Message) error {
	b, err := proto.MarshalOptions{Deterministic: true}.Marshal(m)
	if err != nil {
		return err
	}
	s.SetBytes(typeURL, name, "", b)
	return nil
}

// SetBytes adds or replaces a resource of serialized form b, which need not be
// valid; "" makes the version a digest.
func (s *Server) SetBytes(typeURL, name, version string, b []byte) {
	s.Update([]Resource{{TypeURL: typeURL, Name: name, Version: version, Value: b}}, nil)
}

// Remove removes resources by name.
func (s *Server) Remove(typeURL string, names ...string) {
	keys := make([]Key, len(names))
	for i, n := range names {
		keys[i] = Key{typeURL, n}
	}
	s.Update(nil, keys)
}

// Resource is one resource to serve.
type Resource struct {
	TypeURL, Name, Version string
	Value                  []byte
}

// Key names a resource.
type Key struct{ TypeURL, Name string }

// Update sets and removes resources at once; clients get one response for each
// type.
func (s *Server) Update(set []Resource, remove []Key) {
	s.mu.Lock()
	for _, r := range set {
		if s.types[r.TypeURL] == nil {
			s.types[r.TypeURL] = map[string]resource{}
		}
		if r.Version == "" {
			d := sha256.Sum256(r.Value)
			r.Version = hex.EncodeToString(d[:8])
		}
		s.types[r.TypeURL][r.Name] = resource{r.Version, &anypb.Any{TypeUrl: r.TypeURL, Value: r.Value}}
	}
	for _, k := range remove {
		delete(s.types[k.TypeURL], k.Name)
	}
	s.mu.Unlock()
	// To look at everything would take milliseconds of processor for each change if
	// there is much, which those feel who measure beside it.
	changed := map[string][]string{}
	for _, r := range set {
		changed[r.TypeURL] = append(changed[r.TypeURL], r.Name)
	}
	for _, k := range remove {
		changed[k.TypeURL] = append(changed[k.TypeURL], k.Name)
	}
	for _, c := range s.conns() {
		c.push(changed)
	}
}

// Replace makes set the whole content.
func (s *Server) Replace(set []Resource) {
	stays := map[Key]bool{}
	for _, r := range set {
		stays[Key{r.TypeURL, r.Name}] = true
	}
	s.mu.Lock()
	var gone []Key
	for t, m := range s.types {
		for n := range m {
			if k := (Key{t, n}); !stays[k] {
				gone = append(gone, k)
			}
		}
	}
	s.mu.Unlock()
	s.Update(set, gone)
}

// Resend sends all subscribed resources of a type again, changed or not, as
// istiod does for clusters and listeners.
func (s *Server) Resend(typeURL string) {
	for _, c := range s.conns() {
		c.resend(typeURL)
	}
}

func (s *Server) conns() []*conn {
	s.mu.Lock()
	defer s.mu.Unlock()
	var cs []*conn
	for c := range s.streams {
		cs = append(cs, c)
	}
	return cs
}

// DropStreams ends all streams with err (nil: in order); clients may come back.
func (s *Server) DropStreams(err error) {
	for _, c := range s.conns() {
		c.end(err)
	}
}

// Refuse makes new streams fail with err; nil admits them again.
func (s *Server) Refuse(err error) {
	s.mu.Lock()
	s.refuse = err
	s.mu.Unlock()
}

// Delay makes every response wait.
func (s *Server) Delay(d time.Duration) {
	s.mu.Lock()
	s.delay = d
	s.mu.Unlock()
}

// Mute makes the server accept everything and answer nothing.
func (s *Server) Mute(on bool) {
	s.mu.Lock()
	s.mute = on
	s.mu.Unlock()
}

// Requests returns what clients have sent so far.
func (s *Server) Requests() []Request {
	s.mu.Lock()
	defer s.mu.Unlock()
	return append([]Request(nil), s.requests...)
}

// Streams is how many streams were opened so far; Open how many are open.
func (s *Server) Streams() int {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.started
}

// Open is the number of open streams.
func (s *Server) Open() int {
	s.mu.Lock()
	defer s.mu.Unlock()
	return len(s.streams)
}

// Await waits up to d until ok accepts the list of requests, and reports
// whether it did.
func (s *Server) Await(d time.Duration, ok func([]Request) bool) bool {
	end := time.NewTimer(d)
	defer end.Stop()
	for {
		s.mu.Lock()
		rs, ch := append([]Request(nil), s.requests...), s.changed
		s.mu.Unlock()
		if ok(rs) {
			return true
		}
		select {
		case <-ch:
		case <-end.C:
			return false
		}
	}
}
