package xdstest

import (
	"context"
	"errors"
	"net"
	"slices"
	"strconv"
	"strings"
	"sync"

	discoveryv3pb "github.com/envoyproxy/go-control-plane/envoy/service/discovery/v3"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/metadata"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/types/known/anypb"
)

// Single is a server of streams for one type each, delta and state of the world:
// what api_config_source names. Like pilot-agent it ends a stream on which a
// secret is asked for that it doesn't have. Its methods are safe for concurrent
// use.
type Single struct {
	grpc *grpc.Server
	addr string

	mu        sync.Mutex
	resources []Resource
	version   int
	streams   map[*singleStream]struct{}
	opened    []string
	rejected  []string
}

type singleStream struct {
	method, typeURL string
	delta           bool
	names           []string // none: all
	sent            map[string]bool
	wake            chan struct{}
}

// StartSingle serves at an address: "127.0.0.1:0" of tcp, or a path of unix.
func StartSingle(network, addr string) (*Single, error) {
	l, err := (&net.ListenConfig{}).Listen(context.Background(), network, addr)
	if err != nil {
		return nil, err
	}
	s := &Single{addr: l.Addr().String(), streams: map[*singleStream]struct{}{}}
	s.grpc = grpc.NewServer(grpc.UnknownServiceHandler(s.serve))
	go func() { _ = s.grpc.Serve(l) }()
	return s, nil
}

// Addr is where it listens.
func (s *Single) Addr() string { return s.addr }

// Close ends all streams.
func (s *Single) Close() { s.grpc.Stop() }

// Set replaces what the server has, and sends it to who asked for it.
func (s *Single) Set(rs []Resource) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.resources, s.version = rs, s.version+1
	for st := range s.streams {
		select {
		case st.wake <- struct{}{}:
		default:
		}
	}
}

// Opened lists the streams that were opened: method, node id, and names of the
// first request.
func (s *Single) Opened() []string {
	s.mu.Lock()
	defer s.mu.Unlock()
	return slices.Sorted(slices.Values(s.opened))
}

// Rejected lists the details of NACKs.
func (s *Single) Rejected() []string {
	s.mu.Lock()
	defer s.mu.Unlock()
	return slices.Clone(s.rejected)
}

var singleTypes = map[string]string{
	"Clusters": Cluster, "Endpoints": Endpoints, "Listeners": Listener, "Routes": Route, "ExtensionConfigs": ExtensionCfg, "Secrets": Secret,
}

// ask is what both kinds of requests say.
type ask struct {
	node, nack  string
	first       bool
	subscribe   []string
	unsubscribe []string
	whole       bool // subscribe are all names
}

func (s *Single) serve(_ any, ss grpc.ServerStream) error {
	full, _ := grpc.MethodFromServerStream(ss)
	method := full[strings.LastIndexByte(full, '/')+1:]
	kind, delta := strings.CutPrefix(method, "Delta")
	if !delta {
		kind = strings.TrimPrefix(method, "Stream")
	}
	st := &singleStream{method: method, delta: delta, typeURL: singleTypes[kind], sent: map[string]bool{}, wake: make(chan struct{}, 1)}
	if st.typeURL == "" {
		return status.Error(codes.Unimplemented, full)
	}
	s.mu.Lock()
	s.streams[st] = struct{}{}
	s.mu.Unlock()
	defer func() { s.mu.Lock(); delete(s.streams, st); s.mu.Unlock() }()
	asks, failed := make(chan ask), make(chan error, 1)
	go func() { failed <- receiveSingle(ss, delta, asks) }()
	for first := true; ; {
		select {
		case a := <-asks:
			a.first, first = first, false
			if !s.take(ss.Context(), st, a) {
				continue
			}
		case <-st.wake:
			if first {
				continue
			}
		case err := <-failed:
			return err
		}
		if err := s.send(ss, st); err != nil {
			return err
		}
	}
}

func receiveSingle(ss grpc.ServerStream, delta bool, asks chan<- ask) error {
	for {
		var a ask
		if delta {
			var r discoveryv3pb.DeltaDiscoveryRequest
			if err := ss.RecvMsg(&r); err != nil {
				return err
			}
			a = ask{node: r.GetNode().GetId(), nack: r.GetErrorDetail().GetMessage(), subscribe: r.GetResourceNamesSubscribe(), unsubscribe: r.GetResourceNamesUnsubscribe()}
		} else {
			var r discoveryv3pb.DiscoveryRequest
			if err := ss.RecvMsg(&r); err != nil {
				return err
			}
			a = ask{node: r.GetNode().GetId(), nack: r.GetErrorDetail().GetMessage(), subscribe: r.GetResourceNames(), whole: true}
		}
		select {
		case asks <- a:
		case <-ss.Context().Done():
			return ss.Context().Err()
		}
	}
}

// take notes a request and reports whether it asks for something new.
func (s *Single) take(ctx context.Context, st *singleStream, a ask) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	if a.nack != "" {
		s.rejected = append(s.rejected, a.nack)
	}
	names := slices.Clone(st.names)
	if a.whole {
		names = nil
	}
	for _, n := range a.subscribe {
		if !slices.Contains(names, n) {
			names = append(names, n)
		}
	}
	names = slices.DeleteFunc(names, func(n string) bool { return slices.Contains(a.unsubscribe, n) })
	slices.Sort(names)
	changed := a.first || !slices.Equal(names, st.names)
	st.names = names
	if a.first {
		md, _ := metadata.FromIncomingContext(ctx)
		line := strings.TrimSpace(st.method + " " + a.node + " " + strings.Join(names, ","))
		if v := md.Get("x-token"); len(v) > 0 {
			line += " token " + v[0]
		}
		s.opened = append(s.opened, line)
	}
	return changed
}

func (s *Single) send(ss grpc.ServerStream, st *singleStream) error {
	s.mu.Lock()
	var out []Resource
	have := map[string]bool{}
	for _, r := range s.resources {
		if r.TypeURL == st.typeURL && (len(st.names) == 0 || slices.Contains(st.names, r.Name)) {
			out = append(out, r)
			have[r.Name] = true
		}
	}
	version := strconv.Itoa(s.version)
	names := st.names
	s.mu.Unlock()
	if st.typeURL == Secret {
		for _, n := range names {
			if !have[n] {
				return errors.New("no such secret: " + n)
			}
		}
	}
	if !st.delta {
		d := &discoveryv3pb.DiscoveryResponse{TypeUrl: st.typeURL, VersionInfo: version, Nonce: version}
		for _, r := range out {
			d.Resources = append(d.Resources, &anypb.Any{TypeUrl: r.TypeURL, Value: r.Value})
		}
		return ss.SendMsg(d)
	}
	d := &discoveryv3pb.DeltaDiscoveryResponse{TypeUrl: st.typeURL, SystemVersionInfo: version, Nonce: version}
	for _, r := range out {
		d.Resources = append(d.Resources, &discoveryv3pb.Resource{Name: r.Name, Version: version, Resource: &anypb.Any{TypeUrl: r.TypeURL, Value: r.Value}})
	}
	for n := range st.sent {
		if !have[n] {
			d.RemovedResources = append(d.RemovedResources, n)
		}
	}
	st.sent = have
	return ss.SendMsg(d)
}
