package upstream

import (
	"context"
	"errors"
	"net/netip"
	"strings"
	"sync"
	"sync/atomic"
	"time"
)

// nameCache are the names that a dynamic_forward_proxy cluster was asked for.
// Each is resolved again when its TTL is over, for as long as it is used; what it
// was goes on until there is a new answer.
type nameCache struct {
	c *Cluster

	mu     sync.RWMutex
	closed bool
	names  map[string]*cachedName
}

// cachedName is a name that is or was resolved. Its timer runs one resolution at
// a time.
type cachedName struct {
	name  string
	used  atomic.Int64  // Unix time in nanoseconds
	first chan struct{} // closed when the first resolution is over
	timer *time.Timer
	pause pause

	// Guarded by nameCache.mu.
	addr netip.Addr
	err  error // while there is no address
}

func newNameCache(c *Cluster) *nameCache {
	n := &nameCache{c: c, names: map[string]*cachedName{}}
	if !c.m.opt.Offline {
		n.mu.Lock()
		defer n.mu.Unlock()
		for _, name := range c.spec.DNS.Cache.Preresolve {
			_, _ = n.addLocked(strings.ToLower(name))
		}
	}
	return n
}

func (n *nameCache) close() {
	n.mu.Lock()
	defer n.mu.Unlock()
	n.closed = true
	for _, e := range n.names {
		if e.timer.Stop() {
			e.abandon()
		}
	}
}

// abandon lets those go who wait for the first resolution, which won't be made. The
// caller holds nameCache.mu, and has stopped the timer.
func (e *cachedName) abandon() {
	select {
	case <-e.first:
	default:
		e.err = errNamesClosed
		close(e.first)
	}
}

// defaultMaxNames is max_hosts of Envoy's DNS cache.
const defaultMaxNames = 1024

var (
	errNamesOverflow = errors.New("dns cache overflow")
	errNoAddress     = errors.New("the name has no address")
	errNamesClosed   = errors.New("the cluster was removed")
)

// addLocked begins to resolve a name, unless that is done. The caller holds n.mu.
func (n *nameCache) addLocked(name string) (*cachedName, error) {
	if e := n.names[name]; e != nil {
		return e, nil
	}
	limit := int(n.c.spec.DNS.Cache.MaxHosts)
	if limit == 0 {
		limit = defaultMaxNames
	}
	switch {
	case n.closed:
		return nil, errNamesClosed
	case len(n.names) >= limit:
		return nil, errNamesOverflow
	}
	e := &cachedName{name: strings.Clone(name), first: make(chan struct{}), pause: pause{d: &n.c.spec.DNS}}
	e.used.Store(time.Now().UnixNano())
	n.names[e.name] = e
	e.timer = time.AfterFunc(0, func() { n.run(e) })
	return e, nil
}

// resolve returns the address of name. It blocks while the name is resolved for
// the first time.
func (n *nameCache) resolve(ctx context.Context, name string) (netip.Addr, error) {
	n.mu.RLock()
	e := n.names[name]
	n.mu.RUnlock()
	if e == nil {
		var err error
		n.mu.Lock()
		e, err = n.addLocked(name)
		n.mu.Unlock()
		if err != nil {
			return netip.Addr{}, err
		}
	}
	e.used.Store(time.Now().UnixNano())
	select {
	case <-e.first:
	case <-ctx.Done():
		return netip.Addr{}, context.Cause(ctx)
	}
	n.mu.RLock()
	defer n.mu.RUnlock()
	return e.addr, e.err
}

// run resolves a name, and schedules the next time or forgets it.
func (n *nameCache) run(e *cachedName) {
	d := &n.c.spec.DNS
	first := false
	select {
	case <-e.first:
	default:
		first = true
	}
	keep := d.Cache.HostTTL
	if keep <= 0 {
		keep = 5 * time.Minute
	}
	if !first && time.Since(time.Unix(0, e.used.Load())) > keep {
		n.forget(e)
		return
	}
	a, err := n.c.m.lookup(n.c.ctx, e.name, d, d.Cache.QueryTimeout)
	next := e.pause.failed()
	if err == nil {
		next = e.pause.answered(len(a.Addrs) > 0, a.TTL)
	}
	n.mu.Lock()
	switch {
	case len(a.Addrs) > 0:
		e.addr, e.err = a.Addrs[0], nil
	case e.addr.IsValid(): // as it was
	case err != nil:
		e.err = err
	default:
		e.err = errNoAddress
	}
	drop := err != nil && d.Cache.ForgetFailures && !e.addr.IsValid()
	switch {
	case drop:
		delete(n.names, e.name)
	case !n.closed:
		e.timer.Reset(next)
	}
	n.mu.Unlock()
	if first {
		close(e.first)
	}
}

func (n *nameCache) forget(e *cachedName) {
	n.mu.Lock()
	defer n.mu.Unlock()
	delete(n.names, e.name)
}
