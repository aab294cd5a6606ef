package format

import (
	"errors"
	"fmt"
	"reflect"
	"slices"

	"cel.dev/cel-go/common/types"
	"cel.dev/cel-go/common/types/ref"
	"cel.dev/cel-go/common/types/traits"

	"github.com/fairlead-mesh/fairlead/internal/message"
	"github.com/fairlead-mesh/fairlead/internal/streaminfo"
)

// lazyMap is a CEL map whose values are made when they are asked for.
type lazyMap struct {
	// find returns nil if there is no such key.
	find func(key string) ref.Val
	// keys lists what iteration and size() see.
	keys func() []string
}

var (
	_ traits.Mapper = lazyMap{}
	_ traits.Mapper = object{}
)

var errNoConversion = errors.New("cel: no such conversion")

func (lazyMap) ConvertToNative(reflect.Type) (any, error) { return nil, errNoConversion }

func (m lazyMap) ConvertToType(t ref.Type) ref.Val {
	switch t {
	case types.MapType:
		return m
	case types.TypeType:
		return types.MapType
	}
	return types.NewErr("cel: a map is no %s", t.TypeName())
}

func (m lazyMap) Equal(other ref.Val) ref.Val {
	o, ok := other.(traits.Mapper)
	if !ok || o.Size() != m.Size() {
		return types.False
	}
	for _, k := range m.keys() {
		v, ok := o.Find(types.String(k))
		if !ok || m.find(k).Equal(v) != types.True {
			return types.False
		}
	}
	return types.True
}

func (lazyMap) Type() ref.Type { return types.MapType }

func (m lazyMap) Value() any { return m }

func (m lazyMap) Contains(key ref.Val) ref.Val {
	_, ok := m.Find(key)
	return types.Bool(ok)
}

func (m lazyMap) Get(key ref.Val) ref.Val {
	v, ok := m.Find(key)
	if !ok {
		return types.NewErr("no such key: %v", key)
	}
	return v
}

func (m lazyMap) Find(key ref.Val) (ref.Val, bool) {
	k, ok := key.(types.String)
	if !ok {
		return nil, false
	}
	v := m.find(string(k))
	return v, v != nil
}

func (m lazyMap) Iterator() traits.Iterator {
	keys := m.keys()
	return types.DefaultTypeAdapter.NativeToValue(keys).(traits.Lister).Iterator() //nolint:errcheck,forcetypeassert // a []string is a list
}

func (m lazyMap) Size() ref.Val { return types.Int(len(m.keys())) }

// attributes is the map of a root name's attributes.
func attributes(c *Context, fields map[string]func(*Context) ref.Val) ref.Val {
	return lazyMap{
		find: func(k string) ref.Val {
			if f := fields[k]; f != nil {
				return f(c)
			}
			return nil
		},
		keys: func() []string {
			var ks []string
			for k, f := range fields {
				if f(c) != nil {
					ks = append(ks, k)
				}
			}
			slices.Sort(ks)
			return ks
		},
	}
}

// headerMap shows headers by lower-case name; repeated values are joined.
func headerMap(h *message.Header) ref.Val {
	return lazyMap{
		find: func(k string) ref.Val {
			if h == nil {
				return nil
			}
			if v, ok := h.Joined(headerAlias(lowerASCII(k))); ok {
				return types.String(v)
			}
			return nil
		},
		keys: func() []string {
			var ks []string
			if h == nil {
				return ks
			}
			for i := range h.Len() {
				ks = append(ks, h.At(i).Name)
			}
			slices.Sort(ks)
			return slices.Compact(ks)
		},
	}
}

func lowerASCII(s string) string {
	for i := range len(s) {
		if 'A' <= s[i] && s[i] <= 'Z' {
			b := []byte(s)
			for k, c := range b {
				if 'A' <= c && c <= 'Z' {
					b[k] = c + 'a' - 'A'
				}
			}
			return string(b)
		}
	}
	return s
}

// filterStateMap shows filter state: strings as strings, other objects as
// values with fields.
func filterStateMap(c *Context) ref.Val {
	if c.Info == nil {
		return lazyMap{find: func(string) ref.Val { return nil }, keys: func() []string { return nil }}
	}
	fs := &c.Info.FilterState
	conn := c.Info.Conn
	return lazyMap{
		find: func(k string) ref.Val {
			o := fs.Get(k)
			if o == nil && conn != nil {
				o = conn.FilterState.Get(k)
			}
			switch o := o.(type) {
			case nil:
				return nil
			case streaminfo.String:
				return types.String(o)
			default:
				return object{lazyMap{find: func(f string) ref.Val { return objectField(o, f) }, keys: fieldsOf(o)}, o}
			}
		},
		keys: func() []string {
			var ks []string
			fs.All(func(k string, _ streaminfo.Object) bool { ks = append(ks, k); return true })
			slices.Sort(ks)
			return slices.Compact(ks)
		},
	}
}

func stringOrNil(v string, ok bool) ref.Val {
	if !ok {
		return nil
	}
	return types.String(v)
}

// objectField is a field of a filter-state object; a peer also has labels,
// filter_state.upstream_peer.labels['app'].
func objectField(o streaminfo.Object, name string) ref.Val {
	if p, isPeer := o.(*streaminfo.Peer); isPeer && name == "labels" {
		return types.NewStringStringMap(types.DefaultTypeAdapter, p.Labels)
	}
	return stringOrNil(o.Field(name))
}

func fieldsOf(o streaminfo.Object) func() []string {
	return func() []string {
		var ks []string
		for _, f := range peerFields {
			if v, ok := o.Field(f); ok && v != "" {
				ks = append(ks, f)
			}
		}
		return ks
	}
}

// object is a filter-state object: it has fields, and compares and converts as
// its text.
type object struct {
	lazyMap
	o streaminfo.Object
}

func (o object) Equal(other ref.Val) ref.Val {
	if s, ok := other.(types.String); ok {
		return types.Bool(string(s) == o.o.Serialize())
	}
	return o.lazyMap.Equal(other)
}

func (o object) ConvertToType(t ref.Type) ref.Val {
	if t == types.StringType {
		return types.String(o.o.Serialize())
	}
	return o.lazyMap.ConvertToType(t)
}

// metadataMap is Envoy's Metadata message: filter_metadata[namespace][key].
func metadataMap(md *streaminfo.Metadata) ref.Val {
	return lazyMap{
		find: func(k string) ref.Val {
			if k != "filter_metadata" {
				return nil
			}
			return lazyMap{
				find: func(ns string) ref.Val {
					if m := md.Namespace(ns); m != nil {
						return native(m)
					}
					return nil
				},
				keys: func() []string {
					var ks []string
					for k := range md.Namespaces() {
						ks = append(ks, k)
					}
					slices.Sort(ks)
					return ks
				},
			}
		},
		keys: func() []string { return []string{"filter_metadata"} },
	}
}

func native(v any) ref.Val {
	if v == nil {
		return types.NullValue
	}
	return types.DefaultTypeAdapter.NativeToValue(v)
}

// String is for messages about values of the wrong type.
func (m lazyMap) String() string { return fmt.Sprint(m.keys()) }
