package xdsclient

import (
	"context"
	"fmt"
	"sync"
	"time"

	discoveryv3pb "github.com/envoyproxy/go-control-plane/envoy/service/discovery/v3"
)

// Proof finds out whether a decoded value can be used, which may take long. It
// returns soon after ctx ends, which it does when the value is not wanted any
// more; what it returns is without effect then. A panic is treated as an error. It
// is called once.
type Proof func(ctx context.Context) error

// proof is one that runs, of the newest version of a resource.
type proof struct {
	t       *typeState
	v       verdict
	stop    context.CancelFunc
	err     error
	dropped bool // its result is of no interest
	// of are the responses that brought the value and are answered after it.
	of []*unanswered
}

// unanswered is a response that is not answered yet: one of its resources is
// being proven, or one of an earlier response of its type.
type unanswered struct {
	r                  *discoveryv3pb.DeltaDiscoveryResponse
	resources, removed int
	bad                []string
	open               int // proofs
}

// provers are the proofs of one stream.
type provers struct {
	ctx  context.Context //nolint:containedctx // of the stream
	wg   sync.WaitGroup
	done chan *proof
}

// proveLocked takes up v, which has to be proven, of o.
func (c *Client) proveLocked(t *typeState, v *verdict, o *unanswered) {
	k := Key{t.TypeURL, v.name}
	delete(c.pending, k)
	if c.generation == 0 { // nothing to fall back on
		c.pending[k] = time.Now().Add(c.cfg.InitialFetchTimeout)
	}
	o.open++
	if p := t.proofs[v.name]; p != nil && p.v.digest == v.digest {
		p.v.version = v.version
		p.of = append(p.of, o)
		if !v.joins { // the response holds the resource twice
			over, stop := context.WithCancel(c.provers.ctx)
			stop()
			c.provers.wg.Go(func() { _ = prove(over, v.proof) })
		}
		return
	}
	t.dropLocked(v.name)
	p := &proof{t: t, v: *v, of: []*unanswered{o}}
	t.proofs[v.name] = p
	pv := c.provers
	ctx, stop := context.WithCancel(pv.ctx)
	p.stop = stop
	pv.wg.Go(func() {
		defer stop()
		p.err = prove(ctx, p.v.proof)
		select {
		case pv.done <- p:
		case <-ctx.Done():
		}
	})
}

func prove(ctx context.Context, f Proof) (err error) {
	defer func() {
		if p := recover(); p != nil {
			err = fmt.Errorf("its proof panicked: %v", p)
		}
	}()
	return f(ctx)
}

// dropLocked gives up the proof of a resource: there is a newer version, or
// nobody wants it.
func (t *typeState) dropLocked(name string) {
	p := t.proofs[name]
	if p == nil {
		return
	}
	delete(t.proofs, name)
	p.dropped = true
	p.stop()
	for _, o := range p.of {
		o.open--
	}
}

// concluded applies the result of p.
func (c *Client) concluded(p *proof, ch changes) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if p.dropped {
		return
	}
	t := p.t
	delete(t.proofs, p.v.name)
	p.v.proof, p.v.proven, p.v.err = nil, true, p.err
	bad := c.takeLocked(t, &p.v, time.Now(), ch)
	for _, o := range p.of {
		o.open--
		if bad != "" {
			o.bad = append(o.bad, bad)
		}
	}
}

// readyLocked takes out the responses of t that can be answered, in their order.
func (t *typeState) readyLocked() []*unanswered {
	n := 0
	for n < len(t.open) && t.open[n].open == 0 {
		if len(t.open[n].bad) > 0 {
			t.nacks++
		}
		n++
	}
	ready := t.open[:n:n]
	t.open = t.open[n:]
	return ready
}

// answers tells of responses and returns their answers.
func (c *Client) answers(ready []*unanswered) []*discoveryv3pb.DeltaDiscoveryRequest {
	out := make([]*discoveryv3pb.DeltaDiscoveryRequest, len(ready))
	for i, o := range ready {
		url := o.r.GetTypeUrl()
		for _, b := range o.bad {
			c.log.Error("xds resource rejected", "type", url, "resource", b)
		}
		c.cfg.Reporter.Response(url, o.resources-len(o.bad), o.removed, len(o.bad))
		out[i] = answer(o.r, o.bad)
	}
	return out
}
