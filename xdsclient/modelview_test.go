package xdsclient

import "maps"

// modelView is a View and what it has to hold, by type and name.
type modelView struct {
	v    *View
	want map[string]map[string]int
}

func (m modelView) check(w *world, step int) {
	w.t.Helper()
	for _, typ := range modelTypes {
		got := map[string]int{}
		for r := range m.v.All(typ) {
			got[r.Name], _ = r.Value.(int)
		}
		if !maps.Equal(got, m.want[typ]) || m.v.Len(typ) != len(got) {
			w.fatalf(step, "view %d has %v of %s, want %v", m.v.Generation, got, typ, m.want[typ])
		}
	}
}

// modelViews are some of the Views so far.
type modelViews []modelView

// add takes up the newest View, looks whether the others are what they were, and
// whether Diff finds what is different.
func (l *modelViews) add(w *world, step int, v *View) {
	w.t.Helper()
	now := modelView{v, map[string]map[string]int{}}
	for _, typ := range modelTypes {
		now.want[typ] = maps.Clone(w.good[typ])
	}
	now.check(w, step)
	for _, old := range *l {
		old.check(w, step)
		for _, typ := range modelTypes {
			was := maps.Clone(old.want[typ])
			Diff(old.v, v, typ, func(name string, a, b any) {
				if x, _ := a.(int); x != was[name] {
					w.fatalf(step, "%s/%s was %v, the difference tells %v, %v", typ, name, was[name], a, b)
				}
				if delete(was, name); b != nil {
					was[name], _ = b.(int)
				}
			})
			if !maps.Equal(was, now.want[typ]) {
				w.fatalf(step, "%s: with the difference it is %v, want %v", typ, was, now.want[typ])
			}
			if old.v.Same(v, typ) && !maps.Equal(old.want[typ], now.want[typ]) {
				w.fatalf(step, "%s: the views are said to be the same", typ)
			}
		}
	}
	if *l = append(*l, now); len(*l) > 4 {
		*l = (*l)[1:]
	}
}
