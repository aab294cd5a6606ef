package streaminfo

import (
	"slices"
	"strings"
	"sync/atomic"
)

// Sharing says whether a filter-state object crosses to the next hop, as in
// Envoy's StreamInfo::FilterState::StreamSharing.
type Sharing uint8

// Sharing modes. Once crosses one internal hop and is then None; Transitive
// crosses every one.
const (
	SharingNone Sharing = iota
	SharingOnce
	SharingTransitive
)

// Object is a filter-state value.
type Object interface {
	// Serialize returns the value as %FILTER_STATE(key:PLAIN)% prints it.
	Serialize() string
	// Field returns a named field as %FILTER_STATE(key:FIELD:name)% prints it.
	Field(name string) (string, bool)
}

// String is the Object behind istio.hashable_string and envoy.string.
type String string

// Serialize returns s.
func (s String) Serialize() string { return string(s) }

// Field reports that a string has no fields.
func (String) Field(string) (string, bool) { return "", false }

// Awaited stands in filter state for an object that may still come, from another
// goroutine: what a peer tells about itself before its first byte. Until Arrive
// readers of the filter state find nothing under its key, and then the object.
// An Awaited is safe for concurrent use; the zero Awaited waits.
type Awaited struct{ v atomic.Pointer[arrived] }

type arrived struct{ o Object }

// Arrive ends the wait, once; o may be nil: nothing will come. Later calls do
// nothing.
func (a *Awaited) Arrive(o Object) { a.v.CompareAndSwap(nil, &arrived{o}) }

// Object returns what has arrived, nil if nothing has, and whether the wait is
// over.
func (a *Awaited) Object() (o Object, over bool) {
	if v := a.v.Load(); v != nil {
		return v.o, true
	}
	return nil, false
}

// Serialize returns "": FilterState hands out what has arrived instead.
func (*Awaited) Serialize() string { return "" }

// Field reports that there is none.
func (*Awaited) Field(string) (string, bool) { return "", false }

// present returns what readers find.
func present(o Object) Object {
	if a, ok := o.(*Awaited); ok {
		o, _ = a.Object()
	}
	return o
}

type entry struct {
	key     string
	value   Object
	sharing Sharing
}

// FilterState is a small set of named objects. The zero FilterState is empty.
// It is written by one goroutine; a parent is only read.
type FilterState struct {
	parent  *FilterState
	entries []entry
}

// Reset empties f and makes reads fall through to parent, which may be nil.
func (f *FilterState) Reset(parent *FilterState) {
	clear(f.entries)
	f.entries = f.entries[:0]
	f.parent = parent
}

// Snapshot returns what f holds now; it has the same parent. Later Sets on f don't
// reach it.
func (f *FilterState) Snapshot() FilterState {
	return FilterState{parent: f.parent, entries: slices.Clone(f.entries)}
}

// Empty reports whether f itself, without its parents, holds nothing.
func (f *FilterState) Empty() bool { return len(f.entries) == 0 }

// Get returns the object stored under key here or in a parent, or nil.
func (f *FilterState) Get(key string) Object { return present(f.raw(key)) }

func (f *FilterState) raw(key string) Object {
	for s := f; s != nil; s = s.parent {
		for i := range s.entries {
			if s.entries[i].key == key {
				return s.entries[i].value
			}
		}
	}
	return nil
}

// Awaits reports whether what is stored under key has not arrived yet. f may be
// nil.
func (f *FilterState) Awaits(key string) bool {
	a, ok := f.raw(key).(*Awaited)
	if !ok {
		return false
	}
	_, over := a.Object()
	return !over
}

// Arrive ends the wait for what is stored under key, if there is one; o may be
// nil: nothing comes.
func (f *FilterState) Arrive(key string, o Object) {
	if a, ok := f.raw(key).(*Awaited); ok {
		a.Arrive(o)
	}
}

// Adopt stores under the static key what from holds under it, arrived or not,
// unless there is an object already. from may be nil. The object crosses no
// further hop.
func (f *FilterState) Adopt(key string, from *FilterState) {
	if o := from.raw(key); o != nil && f.Get(key) == nil {
		f.SetStatic(key, o, SharingNone)
	}
}

// GetString returns the serialized object under key, "" if there is none.
func (f *FilterState) GetString(key string) string {
	switch o := f.Get(key).(type) {
	case nil:
		return ""
	case String:
		return string(o)
	default:
		return o.Serialize()
	}
}

// Set stores v under key, replacing an earlier value.
func (f *FilterState) Set(key string, v Object, sharing Sharing) {
	for i := range f.entries {
		if f.entries[i].key == key {
			f.entries[i].value, f.entries[i].sharing = v, sharing
			return
		}
	}
	f.entries = append(f.entries, entry{strings.Clone(key), v, sharing})
}

// SetStatic is Set for a key that lives as long as the program: it is not
// copied, so nothing is allocated.
func (f *FilterState) SetStatic(key string, v Object, sharing Sharing) {
	for i := range f.entries {
		if f.entries[i].key == key {
			f.entries[i].value, f.entries[i].sharing = v, sharing
			return
		}
	}
	f.entries = append(f.entries, entry{key, v, sharing})
}

// ShareInto copies what crosses an internal hop from f (and its parents) into
// dst: Once objects arrive as None, Transitive ones stay so.
func (f *FilterState) ShareInto(dst *FilterState) {
	if f.parent != nil {
		f.parent.ShareInto(dst)
	}
	for _, e := range f.entries {
		switch e.sharing {
		case SharingOnce:
			dst.Set(e.key, e.value, SharingNone)
		case SharingTransitive:
			dst.Set(e.key, e.value, SharingTransitive)
		case SharingNone:
		}
	}
}

// Shared returns a copy of what would cross an internal hop, with the sharing
// modes as they are now, or nil if nothing would. It does not depend on f
// afterwards.
func (f *FilterState) Shared() *FilterState {
	var out *FilterState
	for s := f; s != nil; s = s.parent {
		for _, e := range s.entries {
			if e.sharing == SharingNone {
				continue
			}
			if out == nil {
				out = &FilterState{}
			}
			if out.Get(e.key) == nil {
				out.entries = append(out.entries, e)
			}
		}
	}
	return out
}

// All calls yield for every object visible in f, nearest first.
func (f *FilterState) All(yield func(key string, v Object) bool) {
	for s := f; s != nil; s = s.parent {
		for i := range s.entries {
			if o := present(s.entries[i].value); o != nil && !yield(s.entries[i].key, o) {
				return
			}
		}
	}
}

// Metadata is Envoy's dynamic (or static) metadata: namespace → key → value,
// where a value is nil, bool, float64, string, []any or map[string]any. The
// zero Metadata is empty.
type Metadata struct {
	m map[string]map[string]any
}

// MetadataFrom wraps m without copying; m must not change afterwards.
func MetadataFrom(m map[string]map[string]any) Metadata { return Metadata{m} }

// Empty reports whether m holds nothing.
func (m *Metadata) Empty() bool { return m == nil || len(m.m) == 0 }

// Reset empties m.
func (m *Metadata) Reset() { clear(m.m) }

// Namespace returns the values of one namespace, nil if there are none. The
// map must not be modified.
func (m *Metadata) Namespace(ns string) map[string]any {
	if m == nil {
		return nil
	}
	return m.m[ns]
}

// Set stores a value.
func (m *Metadata) Set(ns, key string, v any) {
	if m.m == nil {
		m.m = map[string]map[string]any{}
	}
	s := m.m[ns]
	if s == nil {
		s = map[string]any{}
		m.m[ns] = s
	}
	s[key] = v
}

// Lookup follows path inside namespace ns; the boolean tells whether the value
// is there.
func (m *Metadata) Lookup(ns string, path ...string) (any, bool) {
	if m == nil {
		return nil, false
	}
	var v any = m.m[ns]
	for _, p := range path {
		s, ok := v.(map[string]any)
		if !ok {
			return nil, false
		}
		if v, ok = s[p]; !ok {
			return nil, false
		}
	}
	return v, len(path) > 0 || v != nil
}

// Namespaces returns the underlying map, which must not be modified.
func (m *Metadata) Namespaces() map[string]map[string]any {
	if m == nil {
		return nil
	}
	return m.m
}
