package upstream

import (
	"encoding/binary"
	"fmt"
	"math/rand/v2"
	"runtime"
	"slices"
	"testing"
	"time"

	"github.com/fairlead-mesh/fairlead/xdsclient/xdsresource"
)

func eds(name, service string, version uint64) *xdsresource.Cluster {
	c := cluster(name)
	c.Discovery, c.EDSServiceName = xdsresource.DiscoveryEDS, service
	binary.BigEndian.PutUint64(c.Digest[:], version)
	return c
}

// updates are a Manager, and what it has to be.
type updates struct {
	t     *testing.T
	m     *Manager
	specs map[string]*xdsresource.Cluster
	// asked are endpoints that came while a cluster asked for them, and were not
	// removed since.
	asked map[string]bool
}

func (u *updates) wanted(service string) bool {
	for _, c := range u.specs {
		if c.EDSServiceName == service {
			return true
		}
	}
	return false
}

// check compares all that the manager keeps beside the clusters with what follows
// from these.
func (u *updates) check(step int) {
	u.t.Helper()
	m := u.m
	m.mu.Lock()
	defer m.mu.Unlock()
	users, alts := map[string]int{}, map[string]int{}
	for name, spec := range u.specs {
		sl, ok := m.slots.Load().Get(name)
		if !ok || sl.spec != spec {
			u.t.Fatalf("step %d: %s is %v", step, name, sl)
		}
		cur, warm := sl.Load(), m.warming[name]
		for _, c := range []*Cluster{cur, warm} {
			if c == nil {
				continue
			}
			if users[c.edsName()]++; !slices.Contains(m.byEDS[c.edsName()], c) || c.closed {
				u.t.Fatalf("step %d: %s does not get its endpoints", step, name)
			}
		}
		newest := warm
		if newest == nil {
			newest = cur
		}
		if newest == nil || newest.spec.Digest != spec.Digest {
			u.t.Fatalf("step %d: %s is not there in its version", step, name)
		}
		if (warm == nil) != (newest.assignment != nil) {
			u.t.Fatalf("step %d: %s: warming: %v, endpoints: %v", step, name, warm != nil, newest.assignment)
		}
		if spec.AltStatName != "" {
			alts[spec.AltStatName]++
		}
	}
	if n := m.slots.Load().Len(); n != len(u.specs) {
		u.t.Fatalf("step %d: %d clusters, want %d", step, n, len(u.specs))
	}
	for service, n := range users {
		if len(m.byEDS[service]) != n {
			u.t.Fatalf("step %d: %d ask for %s, want %d", step, len(m.byEDS[service]), service, n)
		}
	}
	if len(m.byEDS) != len(users) || fmt.Sprint(m.statNames) != fmt.Sprint(alts) {
		u.t.Fatalf("step %d: asked for are %v, want %v; names %v, want %v", step, m.byEDS, users, m.statNames, alts)
	}
	for service := range m.assignments {
		if _, idle := m.unasked[service]; idle != (m.byEDS[service] == nil) {
			u.t.Fatalf("step %d: %s is said to be asked for by nobody: %v", step, service, idle)
		}
	}
	for service := range u.asked {
		if m.assignments[service] == nil {
			u.t.Fatalf("step %d: the endpoints %s are forgotten", step, service)
		}
	}
}

// After any sequence of changes a Manager is what one is that was given the result.
func TestUpdatesAddUp(t *testing.T) {
	rnd := rand.New(rand.NewPCG(3, 4))
	u := &updates{t: t, m: newTestManager(t, &origin{}, func(o *Options) { o.WarmTimeout = time.Hour }), specs: map[string]*xdsresource.Cluster{}, asked: map[string]bool{}}
	for step := range 3000 {
		service := fmt.Sprint("s", rnd.IntN(6))
		switch rnd.IntN(4) {
		case 0: // endpoints come, or go
			if rnd.IntN(4) == 0 {
				u.m.UpdateEndpoints(service, nil)
				delete(u.asked, service)
				continue // a cluster may have them that was warm before
			}
			u.m.UpdateEndpoints(service, assignment(fmt.Sprintf("10.0.0.%d:80", 1+rnd.IntN(9))))
			if u.wanted(service) {
				u.asked[service] = true
			}
		case 1: // all is given
			var all []*xdsresource.Cluster
			for name := range u.specs {
				if rnd.IntN(3) == 0 {
					delete(u.specs, name)
					continue
				}
				all = append(all, u.specs[name])
			}
			u.m.Apply(all)
		default:
			var set []*xdsresource.Cluster
			var remove []string
			for i := range 4 {
				name := fmt.Sprint("c", 2*i+rnd.IntN(2))
				if rnd.IntN(2) == 0 {
					c := eds(name, service, uint64(rnd.IntN(3)))
					binary.BigEndian.PutUint16(c.Digest[8:], uint16(service[1])) // another service is another content
					if rnd.IntN(3) == 0 {
						c.AltStatName = fmt.Sprint("alt", rnd.IntN(3))
						binary.BigEndian.PutUint16(c.Digest[10:], uint16(c.AltStatName[3]))
					}
					set, u.specs[name] = append(set, c), c
				} else {
					remove = append(remove, name, "none")
					delete(u.specs, name)
				}
			}
			u.m.Update(set, remove)
		}
		for service := range u.asked {
			if !u.wanted(service) {
				delete(u.asked, service)
			}
		}
		if step%7 == 0 { // as the server does for what was forgotten
			for _, n := range u.m.MissingEndpoints() {
				u.m.UpdateEndpoints(n, assignment("10.0.0.1:80"))
				u.asked[n] = true
			}
		}
		u.check(step)
	}
}

// What a change of one cluster costs does not depend on how many there are: a copy
// of a map of 10,000 is 400 KiB.
func TestAChangeOfOneClusterOf10000CostsWhatItChanges(t *testing.T) {
	m := newTestManager(t, &origin{}, func(o *Options) { o.WarmTimeout = time.Hour })
	var all []*xdsresource.Cluster
	for i := range 10000 {
		name := fmt.Sprint("c", i)
		all = append(all, eds(name, name, 1))
	}
	m.Update(all, nil)
	for _, c := range all {
		m.UpdateEndpoints(c.Name, assignment("10.0.0.1:80"))
	}
	var before, after runtime.MemStats
	runtime.ReadMemStats(&before)
	const runs = 100
	for i := range runs {
		name := fmt.Sprint("new", i)
		m.Update([]*xdsresource.Cluster{eds("c7", "c7", uint64(2+i)), eds(name, name, 1)}, []string{fmt.Sprint("c", 100+i)})
		m.UpdateEndpoints(name, assignment("10.0.0.1:80"))
	}
	runtime.ReadMemStats(&after)
	if got := (after.TotalAlloc - before.TotalAlloc) / runs; got > 64<<10 {
		t.Errorf("one that comes, one that changes and one that goes take %d bytes, want at most 64 KiB", got)
	}
	if n := m.slots.Load().Len(); n != 10000 {
		t.Errorf("there are %d", n)
	}
}
