package xdstest

import (
	"cmp"
	"errors"
	"maps"
	"slices"
	"strconv"
	"sync"
	"time"

	corev3pb "github.com/envoyproxy/go-control-plane/envoy/config/core/v3"
	discoveryv3pb "github.com/envoyproxy/go-control-plane/envoy/service/discovery/v3"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
)

// conn is one stream.
type conn struct {
	s      *Server
	id     int // from 1
	stream discoveryv3pb.AggregatedDiscoveryService_DeltaAggregatedResourcesServer
	quit   chan error // capacity 1

	mu   sync.Mutex // guards sending and subs
	subs map[string]*subscription
}

type subscription struct {
	wildcard bool
	names    map[string]bool
	versions map[string]string // what the client holds
	answered bool
}

// DeltaAggregatedResources implements the service.
func (s *Server) DeltaAggregatedResources(st discoveryv3pb.AggregatedDiscoveryService_DeltaAggregatedResourcesServer) error {
	c := &conn{s: s, stream: st, quit: make(chan error, 1), subs: map[string]*subscription{}}
	s.mu.Lock()
	if err := s.refuse; err != nil {
		s.mu.Unlock()
		return err
	}
	s.started++
	c.id = s.started
	s.streams[c] = struct{}{}
	s.mu.Unlock()
	defer func() {
		s.mu.Lock()
		delete(s.streams, c)
		s.mu.Unlock()
	}()
	go c.read()
	select {
	case err := <-c.quit:
		return err
	case <-st.Context().Done():
		return st.Context().Err()
	}
}

func (c *conn) end(err error) {
	select {
	case c.quit <- err:
	default:
	}
}

func (c *conn) read() {
	for first := true; ; first = false {
		r, err := c.stream.Recv()
		if err != nil {
			c.end(err)
			return
		}
		c.s.record(Request{Stream: c.id, DeltaDiscoveryRequest: r})
		switch {
		case first && r.GetNode().GetId() == "":
			err = status.Error(codes.InvalidArgument, "missing node information")
		case !c.s.knows(r.GetTypeUrl()):
			err = status.Error(codes.PermissionDenied, "the api generator is restricted to the control-plane (root) namespace")
		default:
			err = c.request(r)
		}
		if err != nil {
			c.end(err)
			return
		}
	}
}

func (s *Server) record(r Request) {
	if f := s.opts.OnRequest; f != nil {
		f(r)
		return
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	s.requests = append(s.requests, r)
	close(s.changed)
	s.changed = make(chan struct{})
}

func (s *Server) knows(typeURL string) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.known[typeURL]
}

func (c *conn) request(r *discoveryv3pb.DeltaDiscoveryRequest) error {
	c.mu.Lock()
	defer c.mu.Unlock()
	sub := c.subs[r.GetTypeUrl()]
	if r.GetResponseNonce() != "" && sub != nil {
		return nil // ACK or NACK; neither changes what is sent next
	}
	if sub == nil {
		sub = &subscription{names: map[string]bool{}, versions: map[string]string{}}
		sub.wildcard = len(r.GetResourceNamesSubscribe()) == 0
		maps.Copy(sub.versions, r.GetInitialResourceVersions())
		c.subs[r.GetTypeUrl()] = sub
	}
	for _, n := range r.GetResourceNamesSubscribe() {
		if n == "*" {
			sub.wildcard = true
		}
		sub.names[n] = true
	}
	for _, n := range r.GetResourceNamesUnsubscribe() {
		delete(sub.names, n)
		delete(sub.versions, n)
		if n == "*" {
			sub.wildcard = false
		}
	}
	return c.sendLocked(r.GetTypeUrl(), false, nil)
}

// push sends what changed, by type.
func (c *conn) push(changed map[string][]string) {
	c.mu.Lock()
	defer c.mu.Unlock()
	types := slices.SortedFunc(maps.Keys(c.subs), func(a, b string) int {
		return cmp.Or(cmp.Compare(rank(a), rank(b)), cmp.Compare(a, b))
	})
	for _, t := range types {
		if names := changed[t]; len(names) > 0 {
			if err := c.sendLocked(t, false, names); err != nil {
				c.end(err)
			}
		}
	}
}

// resend sends all of a type.
func (c *conn) resend(typeURL string) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.subs[typeURL] == nil {
		return
	}
	if err := c.sendLocked(typeURL, true, nil); err != nil {
		c.end(err)
	}
}

// rank orders types as istiod pushes them.
func rank(typeURL string) int {
	if i := slices.Index([]string{Cluster, Endpoints, Listener, Route, Secret}, typeURL); i >= 0 {
		return i
	}
	return 5
}

// sendLocked sends what the client lacks, or everything if force; of names only,
// unless that is nil.
func (c *conn) sendLocked(typeURL string, force bool, names []string) error {
	sub := c.subs[typeURL]
	c.s.mu.Lock()
	res := &discoveryv3pb.DeltaDiscoveryResponse{
		TypeUrl: typeURL, ControlPlane: &corev3pb.ControlPlane{Identifier: "xdstest"},
	}
	look := func(n string) {
		r, ok := c.s.types[typeURL][n]
		version, held := sub.versions[n]
		switch {
		case !ok && held:
			res.RemovedResources = append(res.RemovedResources, n)
			delete(sub.versions, n)
		case !ok, !sub.wildcard && !sub.names[n], version == r.version && !force:
		default:
			res.Resources = append(res.Resources, &discoveryv3pb.Resource{Name: n, Version: r.version, Resource: r.any})
			sub.versions[n] = r.version
		}
	}
	for _, n := range names {
		look(n)
	}
	if names == nil {
		for n := range c.s.types[typeURL] {
			look(n)
		}
		for n := range sub.versions {
			if _, ok := c.s.types[typeURL][n]; !ok {
				look(n)
			}
		}
	}
	c.s.nonce++
	res.Nonce = strconv.Itoa(c.s.nonce)
	delay, mute := c.s.delay, c.s.mute
	c.s.mu.Unlock()
	slices.SortFunc(res.Resources, func(a, b *discoveryv3pb.Resource) int { return cmp.Compare(a.GetName(), b.GetName()) })
	slices.Sort(res.RemovedResources)
	empty := len(res.Resources)+len(res.RemovedResources) == 0
	if mute || empty && (sub.answered || !sub.wildcard) {
		return nil
	}
	sub.answered = true
	if delay > 0 {
		t := time.NewTimer(delay)
		defer t.Stop()
		select {
		case <-t.C:
		case <-c.stream.Context().Done():
			return errors.New("stream ended")
		}
	}
	if f := c.s.opts.OnResponse; f != nil {
		f(c.id, res)
	}
	return c.stream.Send(res)
}
