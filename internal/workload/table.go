// Package workload knows the mesh's workloads by address, as istiod's workload
// discovery describes them: who a peer is, for telemetry and policy. It also
// decodes the messages that a ztunnel needs (services, policies) into plain
// structs.
package workload

import (
	"maps"
	"net/netip"
	"slices"
	"strings"
	"sync"
	"sync/atomic"

	"github.com/fairlead-mesh/fairlead/internal/streaminfo"
)

// shards of a Table. An update copies the shards it touches, a lookup reads
// one pointer.
const shards = 256

// Table finds peers by address. The zero Table is empty and ready. Lookups
// don't lock or allocate, and may run while the table changes.
type Table struct {
	shard [shards]atomic.Pointer[map[netip.Addr]*streaminfo.Peer]
	size  atomic.Int64

	mu      sync.Mutex // guards changes and what follows
	records map[string]*Record
	// claims lists the records of addresses that several workloads claim,
	// best first.
	claims map[netip.Addr][]*Record
	owner  map[netip.Addr]*Record
}

// Record is one workload in a Table.
type Record struct {
	// Peer is never nil. It must not change once the record is in a table.
	Peer *streaminfo.Peer
	// Addresses that identify the workload: none for one that shares its
	// node's.
	Addresses []netip.Addr
	// rank decides between workloads that claim one address: the higher wins,
	// then the smaller uid.
	rank int
	uid  string
}

// Change is one step of an update: Record is nil to remove the name.
type Change struct {
	Name   string
	Record *Record
}

// Peer returns the workload that owns addr, nil if unknown.
func (t *Table) Peer(addr netip.Addr) *streaminfo.Peer {
	addr = addr.Unmap().WithZone("")
	if m := t.shard[shardOf(addr)].Load(); m != nil {
		return (*m)[addr]
	}
	return nil
}

// Len is the number of workloads, also of those without an address.
func (t *Table) Len() int { return int(t.size.Load()) }

func shardOf(a netip.Addr) uint8 {
	b := a.As16()
	return b[15] ^ b[14]*31 ^ b[13]*17 ^ b[7]
}

// Update applies changes in order.
func (t *Table) Update(changes []Change) {
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.records == nil {
		t.records, t.owner, t.claims = map[string]*Record{}, map[netip.Addr]*Record{}, map[netip.Addr][]*Record{}
	}
	dirty := map[netip.Addr]struct{}{}
	for _, c := range changes {
		old := t.records[c.Name]
		if old != nil && c.Record != nil && samePeer(old.Peer, c.Record.Peer) {
			// Metric caches know the old Peer: keep it.
			r := *c.Record
			r.Peer = old.Peer
			c.Record = &r
		}
		if old != nil {
			delete(t.records, c.Name)
			for _, a := range old.Addresses {
				t.unclaim(a, old)
				dirty[a] = struct{}{}
			}
		}
		if c.Record != nil {
			t.records[c.Name] = c.Record
			for _, a := range c.Record.Addresses {
				t.claim(a, c.Record)
				dirty[a] = struct{}{}
			}
		}
	}
	t.size.Store(int64(len(t.records)))
	t.publish(dirty)
}

func (t *Table) claim(a netip.Addr, r *Record) {
	cur := t.owner[a]
	if cur == nil {
		t.owner[a] = r
		return
	}
	all := t.claims[a]
	if all == nil {
		all = []*Record{cur}
	}
	all = append(all, r)
	slices.SortFunc(all, func(x, y *Record) int {
		if x.rank != y.rank {
			return y.rank - x.rank
		}
		return strings.Compare(x.uid, y.uid)
	})
	t.claims[a], t.owner[a] = all, all[0]
}

func (t *Table) unclaim(a netip.Addr, r *Record) {
	all := t.claims[a]
	if all == nil {
		if t.owner[a] == r {
			delete(t.owner, a)
		}
		return
	}
	if i := slices.Index(all, r); i >= 0 {
		all = slices.Delete(all, i, i+1)
	}
	t.owner[a] = all[0]
	if len(all) > 1 {
		t.claims[a] = all
	} else {
		delete(t.claims, a)
	}
}

// publish makes what owners there are now of the given addresses visible.
func (t *Table) publish(dirty map[netip.Addr]struct{}) {
	var next [shards]map[netip.Addr]*streaminfo.Peer
	for a := range dirty {
		i := shardOf(a)
		var cur map[netip.Addr]*streaminfo.Peer
		if p := t.shard[i].Load(); p != nil {
			cur = *p
		}
		var want *streaminfo.Peer
		if r := t.owner[a]; r != nil {
			want = r.Peer
		}
		if next[i] == nil {
			if cur[a] == want {
				continue
			}
			next[i] = make(map[netip.Addr]*streaminfo.Peer, len(cur)+1)
			maps.Copy(next[i], cur)
		}
		if want != nil {
			next[i][a] = want
		} else {
			delete(next[i], a)
		}
	}
	for i := range next {
		if next[i] != nil {
			t.shard[i].Store(&next[i])
		}
	}
}

// samePeer compares all but DenseID.
func samePeer(a, b *streaminfo.Peer) bool {
	return a.Namespace == b.Namespace && a.Workload == b.Workload && a.WorkloadType == b.WorkloadType &&
		a.CanonicalName == b.CanonicalName && a.CanonicalRevision == b.CanonicalRevision &&
		a.AppName == b.AppName && a.AppVersion == b.AppVersion && a.ClusterID == b.ClusterID &&
		a.InstanceName == b.InstanceName && a.Identity == b.Identity && a.Region == b.Region &&
		a.Zone == b.Zone && a.NetworkID == b.NetworkID && len(a.Labels)+len(b.Labels) == 0
}
