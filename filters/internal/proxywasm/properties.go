package proxywasm

import (
	"encoding/binary"
	"math"
	"strconv"
	"strings"

	"cel.dev/cel-go/common/types"
	"cel.dev/cel-go/common/types/ref"
	"cel.dev/cel-go/common/types/traits"

	"github.com/fairlead-mesh/fairlead/filters"
	"github.com/fairlead-mesh/fairlead/internal/format"
	"github.com/fairlead-mesh/fairlead/internal/streaminfo"
)

// statePrefix begins the keys of filter state that guests set.
const statePrefix = "wasm."

// maxProperties bounds what a guest sets for one stream.
const maxProperties = 256

// aliases are properties that stand for an attribute.
var aliases = map[string][2]string{
	"route_name":             {"xds", "route_name"},
	"route_metadata":         {"xds", "route_metadata"},
	"cluster_metadata":       {"xds", "cluster_metadata"},
	"upstream_host_metadata": {"xds", "upstream_host_metadata"},
	"listener_metadata":      {"xds", "listener_metadata"},
	"listener_direction":     {"xds", "listener_direction"},
	"connection_id":          {"connection", "id"},
}

func (v *vm) getProperty(a []uint64) Status {
	b, ok := v.read(a[0], a[1])
	if !ok {
		return StatusInvalidMemoryAccess
	}
	c := v.acting()
	root, rest, more := strings.Cut(string(b), "\x00")
	val := c.property(root)
	for more && val != nil {
		var part string
		if part, rest, more = strings.Cut(rest, "\x00"); part == "" && !more {
			break // a path may end with its separator
		}
		val = below(val, part)
	}
	if val == nil {
		return StatusNotFound
	}
	out, ok := appendValue(nil, val)
	if !ok {
		return StatusSerializationFailure
	}
	return v.give(out, a[2], a[3])
}

// property is the value of a root name, nil if there is none.
func (c *guestContext) property(name string) ref.Val {
	v := c.vm
	switch name {
	case "plugin_name":
		return ofPlugin(c, func(cfg *Config) string { return cfg.Name })
	case "plugin_root_id":
		return ofPlugin(c, func(cfg *Config) string { return cfg.RootID })
	case "plugin_vm_id":
		return types.String(v.pool.cfg.VMID)
	case "node":
		return v.pool.node()
	}
	if c.stream == nil {
		return nil
	}
	x := c.attributes()
	if x == nil {
		return nil
	}
	if name == "cluster_name" {
		return c.clusterName(x)
	}
	if to, ok := aliases[name]; ok {
		if m := format.Attribute(x, to[0]); m != nil {
			return below(m, to[1])
		}
		return nil
	}
	if val := format.Attribute(x, name); val != nil {
		return val
	}
	for _, kv := range c.properties {
		if kv[0] == name {
			return types.String(kv[1])
		}
	}
	state := format.Attribute(x, "filter_state")
	if val := below(state, statePrefix+name); val != nil {
		return val
	}
	if name == "upstream_peer" || name == "downstream_peer" {
		return below(state, name)
	}
	return nil
}

func ofPlugin(c *guestContext, f func(*Config) string) ref.Val {
	if c.plugin == nil {
		return nil
	}
	return types.String(f(c.plugin.cfg))
}

func (c *guestContext) clusterName(x *format.Context) ref.Val {
	if n := x.Info.Upstream.ClusterRaw; n != "" {
		return types.String(n)
	}
	if c.recorded() && c.stream.Route != nil && c.stream.Route.ClusterName() != "" {
		return types.String(c.stream.Route.ClusterName())
	}
	return nil
}

// attributes is what attributes are read from: the stream, or, while others work
// on it, what was noted when the request went on.
func (c *guestContext) attributes() *format.Context {
	switch {
	case c.recorded():
		x := &format.Context{Info: &c.stream.Info, Request: &c.stream.Request, Response: c.response, Trailers: c.responseTrailers}
		if x.Response == nil && c.stream.Response != nil {
			x.Response = &c.stream.Response.Header
		}
		return x
	case c.noted != nil && c.accessible():
		return &format.Context{Info: c.noted, Request: c.copied}
	}
	return nil
}

// note keeps what the guest may ask about the request while its body is pulled.
func (c *guestContext) note() {
	i := &c.stream.Info
	c.noted = &streaminfo.Info{
		Conn: i.Conn, Start: i.Start, Protocol: i.Protocol, IsGRPC: i.IsGRPC, RouteName: i.RouteName, VirtualHost: i.VirtualHost,
		RouteMetadata: i.RouteMetadata, VirtualHostMetadata: i.VirtualHostMetadata, RequestID: i.RequestID, TraceID: i.TraceID, SpanID: i.SpanID,
	}
	if i.Conn != nil {
		c.noted.FilterState.Reset(&i.Conn.FilterState)
	}
	if c.stream.Route != nil {
		c.noted.Upstream.ClusterRaw = c.stream.Route.ClusterName()
	}
}

// below is what a map or list has under name, nil if nothing.
func below(val ref.Val, name string) ref.Val {
	switch m := val.(type) {
	case traits.Mapper:
		if e, ok := m.Find(types.String(name)); ok {
			return e
		}
	case traits.Lister:
		i, err := strconv.Atoi(name)
		n, _ := m.Size().(types.Int)
		if err == nil && i >= 0 && i < int(n) {
			return m.Get(types.Int(i))
		}
	}
	return nil
}

// appendValue writes a value as Envoy shows it to guests: numbers in their
// machine form, maps and lists as pairs.
func appendValue(b []byte, val ref.Val) ([]byte, bool) {
	switch v := val.(type) {
	case types.String:
		return append(b, v...), true
	case types.Bytes:
		return append(b, v...), true
	case types.Int:
		return binary.LittleEndian.AppendUint64(b, uint64(v)), true
	case types.Uint:
		return binary.LittleEndian.AppendUint64(b, uint64(v)), true
	case types.Double:
		return binary.LittleEndian.AppendUint64(b, math.Float64bits(float64(v))), true
	case types.Bool:
		if v {
			return append(b, 1), true
		}
		return append(b, 0), true
	case types.Duration:
		return binary.LittleEndian.AppendUint64(b, uint64(v.Nanoseconds())), true
	case types.Timestamp:
		return binary.LittleEndian.AppendUint64(b, uint64(v.UnixNano())), true
	case traits.Mapper:
		if s, ok := v.ConvertToType(types.StringType).(types.String); ok {
			return append(b, s...), true
		}
		return appendCollection(b, v.Iterator(), func(k ref.Val) (ref.Val, ref.Val) { return k, v.Get(k) })
	case traits.Lister:
		return appendCollection(b, v.Iterator(), func(e ref.Val) (ref.Val, ref.Val) { return e, types.String("") })
	}
	return b, false
}

func appendCollection(b []byte, it traits.Iterator, entry func(ref.Val) (ref.Val, ref.Val)) ([]byte, bool) {
	var list [][2]string
	for it.HasNext() == types.True {
		k, e := entry(it.Next())
		key, ok1 := appendValue(nil, k)
		val, ok2 := appendValue(nil, e)
		if !ok1 || !ok2 {
			return b, false
		}
		list = append(list, [2]string{string(key), string(val)})
	}
	return appendPairs(b, len(list), func(i int) (string, string) { return list[i][0], list[i][1] }), true
}

// setProperty keeps a value as filter state of the stream, for the guest and for
// logs.
func (v *vm) setProperty(a []uint64) Status {
	key, ok1 := v.read(a[0], a[1])
	value, ok2 := v.read(a[2], a[3])
	if !ok1 || !ok2 {
		return StatusInvalidMemoryAccess
	}
	c := v.acting()
	switch {
	case c.stream == nil, !c.accessible():
		return StatusNotFound
	case c.sets >= maxProperties || len(value) > maxPairsBytes || len(key) > 1<<10:
		return StatusBadArgument
	}
	c.sets++
	c.properties = append(c.properties, [2]string{strings.TrimSuffix(string(key), "\x00"), string(value)})
	if c.recorded() {
		c.publish()
	}
	return StatusOK
}

// publish makes the properties that the guest set filter state.
func (c *guestContext) publish() {
	if c.stream == nil {
		return
	}
	for _, kv := range c.properties {
		c.stream.Info.FilterState.Set(statePrefix+kv[0], streaminfo.String(kv[1]), streaminfo.SharingNone)
	}
	c.properties = c.properties[:0]
}

// node is the proxy's own description, made once.
func (p *pool) node() ref.Val {
	p.nodeOnce.Do(func() {
		if p.env.Node != nil {
			p.nodeValue = types.DefaultTypeAdapter.NativeToValue(describe(p.env.Node))
		}
	})
	return p.nodeValue
}

func describe(n *filters.Node) map[string]any {
	metadata := n.Metadata
	if metadata == nil {
		metadata = map[string]any{}
	}
	return map[string]any{"id": n.ID, "cluster": n.Cluster, "metadata": metadata, "locality": map[string]any{"zone": n.Zone}}
}
