package linked

import (
	"math/rand/v2"
	"slices"
	"testing"
	"unsafe"
)

type item struct {
	Node[item]
	id int
}

type items = List[item, *item]

func ids(l *items) []int {
	out := []int{}
	for e := range l.All() {
		out = append(out, e.id)
	}
	return out
}

// check compares l with what it should hold, in every way to look at it.
func check(t *testing.T, l *items, want []int) {
	t.Helper()
	if got := ids(l); !slices.Equal(got, want) {
		t.Fatalf("All: %v, want %v", got, want)
	}
	var back []int
	if f := l.Front(); f != nil {
		for e := f.prev; ; e = e.prev {
			back = append(back, e.id)
			if e == f {
				break
			}
		}
	}
	slices.Reverse(back)
	if !slices.Equal(back, want) {
		t.Fatalf("backwards: %v, want %v", back, want)
	}
	shot := l.Snapshot()
	if l.Len() != len(want) || len(shot) != len(want) {
		t.Fatalf("Len %d, Snapshot of %d, want %d", l.Len(), len(shot), len(want))
	}
	for i, e := range shot {
		if e.id != want[i] || !e.Linked() {
			t.Fatalf("Snapshot[%d] is %d, linked %v", i, e.id, e.Linked())
		}
	}
	if (l.Front() == nil) != (len(want) == 0) || len(want) > 0 && l.Front().id != want[0] {
		t.Fatalf("Front %v, want %v", l.Front(), want)
	}
}

func TestAListHoldsWhatASliceWould(t *testing.T) {
	for seed := range uint64(50) {
		r := rand.New(rand.NewPCG(seed, 0))
		var l items
		all := make([]item, 8)
		for i := range all {
			all[i].id = i
		}
		want := []int{}
		for range 200 {
			e := &all[r.IntN(len(all))]
			at := slices.Index(want, e.id)
			switch r.IntN(4) {
			case 0:
				if at < 0 {
					l.PushFront(e)
					want = slices.Insert(want, 0, e.id)
				}
			case 1:
				if at < 0 {
					l.PushBack(e)
					want = append(want, e.id)
				}
			case 2:
				if was := l.Remove(e); was != (at >= 0) || e.Linked() {
					t.Fatalf("Remove says %v of an element at %d; linked %v", was, at, e.Linked())
				}
				if at >= 0 {
					want = slices.Delete(want, at, at+1)
				}
			case 3:
				got := l.PopFront()
				if (got == nil) != (len(want) == 0) || got != nil && (got.id != want[0] || got.Linked()) {
					t.Fatalf("PopFront %v of %v", got, want)
				}
				if got != nil {
					want = want[1:]
				}
			}
			check(t, &l, want)
		}
	}
}

func TestAnElementIsInOneListOnly(t *testing.T) {
	for name, push := range map[string]func(*items, *item){"front": (*items).PushFront, "back": (*items).PushBack} {
		t.Run(name, func(t *testing.T) {
			var a, b items
			e := &item{}
			a.PushBack(e)
			defer func() {
				if recover() == nil {
					t.Error("a second list took it")
				}
			}()
			push(&b, e)
		})
	}
}

func TestARangeMayEndEarly(t *testing.T) {
	var l items
	for i := range 3 {
		l.PushBack(&item{id: i})
	}
	n := 0
	for e := range l.All() {
		if n++; e.id == 1 {
			break
		}
	}
	if n != 2 {
		t.Errorf("%d elements", n)
	}
}

func TestToBeInAListCostsTwoPointersAndNoAllocation(t *testing.T) {
	if got, want := unsafe.Sizeof(Node[item]{}), 2*unsafe.Sizeof(uintptr(0)); got != want {
		t.Errorf("a node has %d bytes, want %d", got, want)
	}
	var l items
	all := make([]item, 4)
	if n := testing.AllocsPerRun(100, func() {
		for i := range all {
			l.PushFront(&all[i])
		}
		for range l.All() {
			continue
		}
		for i := range all {
			l.Remove(&all[i])
		}
	}); n != 0 {
		t.Errorf("%v allocations", n)
	}
}

func BenchmarkPushFrontRemove(b *testing.B) {
	var l items
	l.PushBack(&item{})
	e := &item{}
	for b.Loop() {
		l.PushFront(e)
		l.Remove(e)
	}
}
