package hamt

import (
	"fmt"
	"maps"
	"math/rand/v2"
	"testing"
)

type change struct{ was, is int }

// differences tells what differs between two maps of values other than 0.
func differences(a, b map[string]int) map[string]change {
	out := map[string]change{}
	for k, v := range b {
		if a[k] != v {
			out[k] = change{a[k], v}
		}
	}
	for k, v := range a {
		if b[k] == 0 {
			out[k] = change{v, 0}
		}
	}
	return out
}

func diffOf(t *testing.T, a, b Snapshot[int]) map[string]change {
	t.Helper()
	out := map[string]change{}
	Diff(a, b, func(key string, was, is int) {
		if _, twice := out[key]; twice || was == is {
			t.Fatalf("%s: told twice, or of no change: %d, %d", key, was, is)
		}
		out[key] = change{was, is}
	})
	return out
}

// keep is a Snapshot and what it has to hold.
type keep struct {
	s    Snapshot[int]
	want map[string]int
}

func (k keep) check(t *testing.T, at string) {
	t.Helper()
	if got := maps.Collect(k.s.All()); !maps.Equal(got, k.want) {
		t.Fatalf("%s: %d keys, want %d: %v, want %v", at, len(got), len(k.want), got, k.want)
	}
	if k.s.Len() != len(k.want) {
		t.Fatalf("%s: Len is %d, want %d", at, k.s.Len(), len(k.want))
	}
	for key, v := range k.want {
		if got, ok := k.s.Get(key); !ok || got != v {
			t.Fatalf("%s: %s is %d, %v, want %d", at, key, got, ok, v)
		}
	}
}

// A Map does what a map of Go does, its Snapshots stay what they were, and Diff
// finds what differs between any two of them.
func TestAMapAndItsSnapshotsAgainstMapsOfGo(t *testing.T) {
	rnd := rand.New(rand.NewPCG(1, 2))
	for _, keys := range []int{1, 3, 40, 3000} {
		var m Map[int]
		want := map[string]int{}
		kept := []keep{{m.Snapshot(), map[string]int{}}}
		for i := range 60 {
			for range 1 + rnd.IntN(keys) {
				key := fmt.Sprint(rnd.IntN(keys))
				if rnd.IntN(3) == 0 {
					_, had := want[key]
					delete(want, key)
					if m.Delete(key) != had {
						t.Fatalf("%d keys, step %d: Delete(%s) is not %v", keys, i, key, had)
					}
					continue
				}
				want[key] = 1 + rnd.IntN(4)
				m.Set(key, want[key])
			}
			keep{m.s, want}.check(t, fmt.Sprintf("%d keys, step %d", keys, i))
			if rnd.IntN(2) == 0 {
				kept = append(kept, keep{m.Snapshot(), maps.Clone(want)})
			}
		}
		for i, a := range kept {
			a.check(t, fmt.Sprintf("%d keys, snapshot %d", keys, i))
			b := kept[rnd.IntN(len(kept))]
			if got, want := diffOf(t, a.s, b.s), differences(a.want, b.want); !maps.Equal(got, want) {
				t.Fatalf("%d keys, snapshot %d: the difference is %v, want %v", keys, i, got, want)
			}
		}
		for key := range want {
			m.Delete(key)
		}
		if m.Len() != 0 || m.s.root != nil {
			t.Fatalf("%d keys: %d are left, root %v", keys, m.Len(), m.s.root)
		}
	}
}

// Keys whose hashes are the same, in all bits or in the lower ones, are told apart.
func TestKeysWithOneHash(t *testing.T) {
	for _, hashes := range [][3]uint64{{7, 7, 7}, {7, 7, 7 | 1<<63}, {7, 7 | 1<<60, 7 | 1<<5}, {0, 1 << 59, 1 << 62}} {
		var m Map[int]
		m.edit()
		put := func(i, v int) {
			m.edit()
			m.s.root = m.set(m.s.root, 0, &leaf[int]{hashes[i], fmt.Sprint(i), v})
		}
		all := func() map[string]int { return maps.Collect(m.All()) }
		for i := range 3 {
			put(i, i+1)
			put(i, i+1)
		}
		full, was := m.Snapshot(), map[string]int{"0": 1, "1": 2, "2": 3}
		if got := all(); !maps.Equal(got, was) || m.Len() != 3 {
			t.Fatalf("%x: %v, %d", hashes, got, m.Len())
		}
		put(1, 9)
		changed := m.Snapshot()
		if got := diffOf(t, full, changed); !maps.Equal(got, map[string]change{"1": {2, 9}}) {
			t.Errorf("%x: the difference is %v", hashes, got)
		}
		for i := range 3 {
			m.edit()
			m.s.root = m.remove(m.s.root, 0, hashes[i], fmt.Sprint(i))
			m.s.n--
			if got := all(); len(got) != 2-i || got[fmt.Sprint(i)] != 0 {
				t.Fatalf("%x: without %d: %v", hashes, i, got)
			}
			left := differences(was, all())
			if got := diffOf(t, full, m.Snapshot()); !maps.Equal(got, left) {
				t.Errorf("%x: without %d the difference is %v, want %v", hashes, i, got, left)
			}
		}
		if m.s.root != nil {
			t.Errorf("%x: the root is left", hashes)
		}
		if got := maps.Collect(full.All()); !maps.Equal(got, was) {
			t.Errorf("%x: the snapshot is %v", hashes, got)
		}
	}
}

func ofSize(n int) *Map[int] {
	m := &Map[int]{}
	for i := range n {
		m.Set(fmt.Sprintf("outbound|80||service-%d.app.svc.cluster.local", i), 1)
	}
	return m
}

// What a change, a Snapshot and its comparison cost does not grow with the Map.
func TestAChangeCostsWhatItChanges(t *testing.T) {
	m := ofSize(20000)
	before, v := m.Snapshot(), 1
	const key = "outbound|80||service-7.app.svc.cluster.local"
	changes := 0
	allocs := testing.AllocsPerRun(100, func() {
		v++
		m.Set(key, v)
		after := m.Snapshot()
		Diff(before, after, func(string, int, int) { changes++ })
		before = after
	})
	if allocs > 16 || changes != 101 {
		t.Errorf("%v allocations for a change, %d changes found, want at most 16, and 101", allocs, changes)
	}
	if allocs := testing.AllocsPerRun(100, func() { before.Get(key) }); allocs != 0 {
		t.Errorf("%v allocations for a look", allocs)
	}
}

func TestAllStopsWhenItIsToldTo(t *testing.T) {
	n := 0
	for range ofSize(100).All() {
		if n++; n == 3 {
			break
		}
	}
	if n != 3 {
		t.Errorf("%d", n)
	}
}

func BenchmarkGetOf10000(b *testing.B) {
	s := ofSize(10000).Snapshot()
	for b.Loop() {
		if _, ok := s.Get("outbound|80||service-7.app.svc.cluster.local"); !ok {
			b.Fatal("it is not there")
		}
	}
}

func BenchmarkChangeOneOf10000(b *testing.B) {
	m := ofSize(10000)
	before := m.Snapshot()
	b.ReportAllocs()
	for i := 0; b.Loop(); i++ {
		m.Set("outbound|80||service-7.app.svc.cluster.local", i)
		after := m.Snapshot()
		Diff(before, after, func(string, int, int) {})
		before = after
	}
}
