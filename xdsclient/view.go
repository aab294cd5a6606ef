package xdsclient

import (
	"context"
	"iter"
	"maps"
	"slices"
	"strings"
	"time"

	"github.com/fairlead-mesh/fairlead/internal/hamt"
)

// View is everything that is held at one moment. It is immutable and safe for
// concurrent use.
type View struct {
	// Generation is 1 for the first View and grows by one.
	Generation uint64
	types      map[string]hamt.Snapshot[*held]
	missing    []Key
}

// Get returns one resource.
func (v *View) Get(typeURL, name string) (Resource, bool) {
	h, ok := v.types[typeURL].Get(name)
	if !ok {
		return Resource{}, false
	}
	return h.Resource, true
}

// Len is how many resources of a type there are.
func (v *View) Len(typeURL string) int { return v.types[typeURL].Len() }

// All yields the resources of a type in no particular order.
func (v *View) All(typeURL string) iter.Seq[Resource] {
	return func(yield func(Resource) bool) {
		for _, h := range v.types[typeURL].All() {
			if !yield(h.Resource) {
				return
			}
		}
	}
}

// Same reports whether the resources of a type are known to be those of o, without
// a look at each. A nil View has none.
func (v *View) Same(o *View, typeURL string) bool {
	return v.snapshot(typeURL).Same(o.snapshot(typeURL))
}

// Diff calls f for each resource of a type that differs between two Views, by its
// name, in no particular order; the value of one that is not there is nil. A nil
// View has none. One that came anew differs, whatever it holds. It takes the time of
// what differs, if both are of one Client.
func Diff(a, b *View, typeURL string, f func(name string, was, is any)) {
	value := func(h *held) any {
		if h == nil {
			return nil
		}
		return h.Value
	}
	hamt.Diff(a.snapshot(typeURL), b.snapshot(typeURL), func(name string, was, is *held) { f(name, value(was), value(is)) })
}

func (v *View) snapshot(typeURL string) hamt.Snapshot[*held] {
	if v == nil {
		return hamt.Snapshot[*held]{}
	}
	return v.types[typeURL]
}

// Sorted returns the resources of a type by name.
func (v *View) Sorted(typeURL string) []Resource {
	return slices.SortedFunc(v.All(typeURL), func(a, b Resource) int { return strings.Compare(a.Name, b.Name) })
}

// Missing lists resources that held ones refer to and that have not arrived,
// sorted. The slice must not be modified.
func (v *View) Missing() []Key { return v.missing }

// View returns the last View that was handed to OnView (or is being handed);
// before the first it is empty, never nil.
func (c *Client) View() *View {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.view
}

// markDirtyLocked notes a change that needs a View. alone: it goes with no other
// that is still to come.
func (c *Client) markDirtyLocked(alone bool) {
	now := time.Now()
	if !c.dirty {
		c.dirty, c.firstDirty = true, now
		c.prompt = true
	}
	c.prompt = c.prompt && alone
	c.lastDirty = now
}

// completeLocked reports whether all that was referred to has been asked for and
// answered, what a View does not wait for included: that may be about to arrive.
func (c *Client) completeLocked() bool {
	if len(c.pending) > 0 {
		return false
	}
	for _, t := range c.types {
		if t.unsynced && (t.Wildcard || len(t.wanted) > 0) {
			return false
		}
	}
	return true
}

func (c *Client) wakePublisher() {
	select {
	case c.wake <- struct{}{}:
	default:
	}
}

// publish hands Views to OnView until ctx ends.
func (c *Client) publish(ctx context.Context) {
	timer := time.NewTimer(time.Hour)
	defer timer.Stop()
	for {
		wait := c.publishIn()
		if wait == 0 {
			begin := time.Now()
			v := c.makeView()
			if c.cfg.OnView != nil {
				c.cfg.OnView(v)
			}
			c.rest(time.Since(begin))
			continue
		}
		timer.Reset(wait)
		select {
		case <-ctx.Done():
			return
		case <-c.wake:
		case <-timer.C:
		}
	}
}

// rest notes that a View was handed over, which took d.
func (c *Client) rest(d time.Duration) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.rested = time.Now().Add(d)
}

// publishIn returns after how long to look again, 0 for a View that is due.
func (c *Client) publishIn() time.Duration {
	c.mu.Lock()
	defer c.mu.Unlock()
	if !c.dirty {
		return time.Hour
	}
	if c.generation > 0 && c.up && slices.ContainsFunc(c.types, func(t *typeState) bool { return t.opened && t.unsynced }) {
		return time.Hour // what a response refers to is about to be asked for
	}
	now := time.Now()
	due := c.lastDirty.Add(c.cfg.Quiet)
	if last := c.firstDirty.Add(10 * c.cfg.Quiet); due.After(last) {
		due = last
	}
	switch {
	case c.generation == 0 && c.completeLocked():
		due = now
	case c.prompt && c.rested.Before(due):
		due = c.rested
	}
	for k, until := range c.pending {
		t := c.byURL[k.TypeURL]
		if t.NoWait || t.Omit {
			continue
		}
		if !c.up && c.generation > 0 {
			return time.Hour // the control plane went away in the middle of a push
		}
		if until.After(due) {
			due = until
		}
	}
	return max(0, due.Sub(now))
}

// passedTime is how long it is known that a resource came and went between Views.
const passedTime = time.Minute

// makeView makes the next View, in a time that doesn't grow with what is held.
func (c *Client) makeView() *View {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.dirty = false
	c.generation++
	c.viewed = c.seq
	now := time.Now()
	if len(c.pending) == 0 {
		c.pending = map[Key]time.Time{} // it may have been large, and is looked through often
	}
	v := &View{Generation: c.generation, types: make(map[string]hamt.Snapshot[*held], len(c.types))}
	for _, t := range c.types {
		if t.Omit {
			continue
		}
		maps.DeleteFunc(t.passed, func(_ string, at time.Time) bool { return now.Sub(at) > passedTime })
		v.types[t.TypeURL] = t.held.Snapshot()
		if len(t.missing) == 0 {
			t.missing = map[string]struct{}{} // as above
		}
		for n := range t.missing {
			v.missing = append(v.missing, Key{t.TypeURL, n})
		}
	}
	slices.SortFunc(v.missing, compareKeys)
	c.view = v
	return v
}
