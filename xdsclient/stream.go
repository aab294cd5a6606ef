package xdsclient

import (
	"context"
	"errors"
	"fmt"
	"io"
	"sync"
	"time"

	corev3pb "github.com/envoyproxy/go-control-plane/envoy/config/core/v3"
	discoveryv3pb "github.com/envoyproxy/go-control-plane/envoy/service/discovery/v3"
)

// maxQueued bounds requests that the server has not taken. A healthy server
// never lets it come to that: there is one for each response and name change.
const maxQueued = 4096

// stream is the part of a gRPC stream that is used.
type stream interface {
	Send(*discoveryv3pb.DeltaDiscoveryRequest) error
	Recv() (*discoveryv3pb.DeltaDiscoveryResponse, error)
}

// session runs one stream to its end. got tells whether anything arrived.
func (c *Client) session(ctx context.Context) (got bool, err error) {
	c.setConn(StateConnecting, nil)
	ctx, cancel := context.WithCancel(ctx)
	s, closer, err := c.cfg.connect(ctx)
	if err != nil {
		cancel()
		return false, err
	}
	c.setConn(StateConnected, nil)
	c.cfg.Reporter.Stream(true, nil)
	c.log.Info("xds stream is up", "target", c.cfg.Target)

	out := &outbox{ready: make(chan struct{}, 1)}
	in := make(chan *discoveryv3pb.DeltaDiscoveryResponse)
	failed := make(chan error, 2)
	var wg sync.WaitGroup
	wg.Go(func() { out.run(ctx, s, failed) })
	wg.Go(func() { receive(ctx, s, in, failed) })
	defer wg.Wait()
	defer closer()
	defer cancel()

	again := time.NewTimer(time.Hour)
	defer again.Stop()
	step := func(ch changes, first ...*discoveryv3pb.DeltaDiscoveryRequest) error {
		reqs, wait := c.advance(ch)
		if wait > 0 {
			again.Reset(wait)
		}
		return out.push(append(first, reqs...))
	}
	pv := &provers{ctx: ctx, done: make(chan *proof)}
	defer pv.wg.Wait()
	defer cancel()
	c.mu.Lock()
	c.provers = pv
	c.beginLocked(time.Now())
	c.mu.Unlock()
	if out.node, err = c.cfg.Node.proto(); err != nil {
		return false, err
	}
	if err := step(changes{}); err != nil {
		return false, err
	}
	c.setUp(true)
	defer c.setUp(false)
	for {
		select {
		case r := <-in:
			got = true
			ch := changes{}
			ack := c.handle(r, ch)
			if err := step(ch, ack...); err != nil {
				return got, err
			}
		case p := <-pv.done:
			ch := changes{}
			c.concluded(p, ch)
			if err := step(ch); err != nil {
				return got, err
			}
		case <-c.renamed:
			if err := step(changes{}); err != nil {
				return got, err
			}
		case <-again.C:
			if err := step(changes{}); err != nil {
				return got, err
			}
		case err := <-failed:
			return got, err
		}
	}
}

// setUp notes whether what is missing can be asked for.
func (c *Client) setUp(up bool) {
	c.mu.Lock()
	c.up = up
	c.mu.Unlock()
	c.wakePublisher()
}

// handle judges and applies one response and returns its answer, unless that has
// to wait.
func (c *Client) handle(r *discoveryv3pb.DeltaDiscoveryResponse, ch changes) []*discoveryv3pb.DeltaDiscoveryRequest {
	t := c.byURL[r.GetTypeUrl()]
	if t == nil || !t.opened {
		c.log.Warn("xds: ignoring a response of a type that was not asked for", "type", r.GetTypeUrl())
		return nil
	}
	vs := make([]verdict, 0, len(r.GetResources()))
	for _, res := range r.GetResources() {
		vs = append(vs, t.judge(res))
	}
	c.mu.Lock()
	o := &unanswered{r: r, resources: len(vs), removed: len(r.GetRemovedResources())}
	t.open = append(t.open, o)
	c.applyLocked(t, vs, r.GetRemovedResources(), o, ch)
	now := time.Now()
	if t.answered.IsZero() {
		t.answered = now
		if t.OnChange == nil || c.generation == 0 {
			c.markDirtyLocked(false) // also an empty answer makes a View
		}
	}
	delete(c.pending, Key{TypeURL: t.TypeURL})
	t.responses++
	c.conn.lastResponse = now
	if id := r.GetControlPlane().GetIdentifier(); id != "" {
		c.conn.controlPlane = id
	}
	ready := t.readyLocked()
	c.mu.Unlock()
	return c.answers(ready)
}

// advance settles subscriptions after a change, tells the OnChange hooks, and
// wakes the publisher.
func (c *Client) advance(ch changes) ([]*discoveryv3pb.DeltaDiscoveryRequest, time.Duration) {
	c.mu.Lock()
	c.renameLocked()
	c.sweepLocked(ch)
	reqs, wait := c.syncLocked(time.Now())
	var ready []*unanswered
	for _, t := range c.types {
		ready = append(ready, t.readyLocked()...)
	}
	c.mu.Unlock()
	reqs = append(c.answers(ready), reqs...)
	for _, t := range c.types {
		if l := ch[t]; len(l) > 0 {
			t.OnChange(l)
		}
	}
	c.wakePublisher()
	return reqs, wait
}

func receive(ctx context.Context, s stream, in chan<- *discoveryv3pb.DeltaDiscoveryResponse, failed chan<- error) {
	for {
		r, err := s.Recv()
		if err != nil {
			if errors.Is(err, io.EOF) {
				err = errors.New("the control plane closed the stream")
			}
			failed <- err
			return
		}
		select {
		case in <- r:
		case <-ctx.Done():
			failed <- ctx.Err()
			return
		}
	}
}

// outbox sends requests in order from a goroutine of its own, so that a server
// that is slow to read never keeps us from reading.
type outbox struct {
	node  *corev3pb.Node // goes with the first request, then nil
	ready chan struct{}

	mu    sync.Mutex
	queue []*discoveryv3pb.DeltaDiscoveryRequest
}

func (o *outbox) push(rs []*discoveryv3pb.DeltaDiscoveryRequest) error {
	if len(rs) == 0 {
		return nil
	}
	if o.node != nil {
		rs[0].Node, o.node = o.node, nil
	}
	o.mu.Lock()
	o.queue = append(o.queue, rs...)
	n := len(o.queue)
	o.mu.Unlock()
	if n > maxQueued {
		return fmt.Errorf("the control plane does not read: %d requests are queued", n)
	}
	select {
	case o.ready <- struct{}{}:
	default:
	}
	return nil
}

func (o *outbox) run(ctx context.Context, s stream, failed chan<- error) {
	for {
		select {
		case <-ctx.Done():
			return
		case <-o.ready:
		}
		o.mu.Lock()
		rs := o.queue
		o.queue = nil
		o.mu.Unlock()
		for _, r := range rs {
			if err := s.Send(r); err != nil {
				if !errors.Is(err, io.EOF) { // io.EOF: Recv tells the reason
					failed <- err
				}
				return
			}
		}
	}
}
