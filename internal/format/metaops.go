package format

import (
	"errors"
	"fmt"
	"strings"

	"github.com/fairlead-mesh/fairlead/internal/streaminfo"
)

type metadataFunc func(*Context) *streaminfo.Metadata

func dynamicMetadata(x *Context) *streaminfo.Metadata {
	if x.Info == nil {
		return nil
	}
	return &x.Info.Metadata
}

func clusterMetadata(x *Context) *streaminfo.Metadata {
	if x.Info == nil {
		return nil
	}
	return x.Info.Upstream.ClusterMetadata
}

func hostMetadata(x *Context) *streaminfo.Metadata {
	if x.Info == nil {
		return nil
	}
	return x.Info.Upstream.HostMetadata
}

func routeMetadata(x *Context) *streaminfo.Metadata {
	if x.Info == nil {
		return nil
	}
	return x.Info.RouteMetadata
}

func virtualHostMetadata(x *Context) *streaminfo.Metadata {
	if x.Info == nil {
		return nil
	}
	return x.Info.VirtualHostMetadata
}

func listenerMetadata(x *Context) *streaminfo.Metadata {
	if x.Info == nil || x.Info.Conn == nil {
		return nil
	}
	return x.Info.Conn.ListenerMetadata
}

func filterChainMetadata(x *Context) *streaminfo.Metadata {
	if x.Info == nil || x.Info.Conn == nil {
		return nil
	}
	return x.Info.Conn.FilterChainMetadata
}

// metadataOp is %DYNAMIC_METADATA(namespace:key:…):length%.
func metadataOp(of metadataFunc) func(command) (op, error) {
	return func(c command) (op, error) {
		parts := strings.Split(c.sub, ":")
		if parts[0] == "" {
			return op{}, fmt.Errorf("wants a namespace, %s(NAMESPACE:KEY…)", c.name)
		}
		return c.metadata(of, parts[0], parts[1:]), nil
	}
}

func (c command) metadata(of metadataFunc, ns string, path []string) op {
	get := func(x *Context) (any, bool) {
		md := of(x)
		if len(path) > 0 {
			return md.Lookup(ns, path...)
		}
		m := md.Namespace(ns)
		return m, m != nil
	}
	o := c.truncated(func(dst []byte, x *Context) ([]byte, bool) {
		v, ok := get(x)
		if !ok {
			return dst, false
		}
		if s, isString := v.(string); isString {
			return append(dst, s...), true
		}
		return AppendJSON(dst, v), true
	})
	if c.max < 0 {
		o.json = func(dst []byte, x *Context) ([]byte, bool) {
			v, ok := get(x)
			if !ok {
				return dst, false
			}
			return AppendJSON(dst, v), true
		}
	}
	return o
}

// anyMetadataOp is %METADATA(TYPE:namespace:key…):length%.
func anyMetadataOp(c command) (op, error) {
	kind, rest, _ := strings.Cut(c.sub, ":")
	var of metadataFunc
	switch kind {
	case "DYNAMIC":
		of = dynamicMetadata
	case "CLUSTER":
		of = clusterMetadata
	case "UPSTREAM_HOST":
		of = hostMetadata
	case "ROUTE":
		of = routeMetadata
	case "VIRTUAL_HOST":
		of = virtualHostMetadata
	case "LISTENER":
		of = listenerMetadata
	case "LISTENER_FILTER_CHAIN":
		of = filterChainMetadata
	default:
		return op{}, fmt.Errorf("unknown kind of metadata %q: want DYNAMIC, CLUSTER, ROUTE, VIRTUAL_HOST, UPSTREAM_HOST, LISTENER or LISTENER_FILTER_CHAIN", kind)
	}
	parts := strings.Split(rest, ":")
	if parts[0] == "" {
		return op{}, fmt.Errorf("wants a namespace, METADATA(%s:NAMESPACE:KEY…)", kind)
	}
	return c.metadata(of, parts[0], parts[1:]), nil
}

// filterStateOp is %FILTER_STATE(key:PLAIN|TYPED|FIELD:field):length%. TYPED,
// the default, is JSON. UPSTREAM_FILTER_STATE reads what the connection to upstream
// knows.
func filterStateOp(upstream bool) func(c command) (op, error) {
	return func(c command) (op, error) { return c.filterState(upstream) }
}

func (c command) filterState(upstream bool) (op, error) {
	parts := strings.Split(c.sub, ":")
	key, form := parts[0], "TYPED"
	if key == "" {
		return op{}, errors.New("wants a key, FILTER_STATE(KEY)")
	}
	if len(parts) > 1 {
		form = parts[1]
	}
	get := func(x *Context) streaminfo.Object {
		if x.Info == nil {
			return nil
		}
		if upstream {
			return x.Info.Upstream.State.Get(key)
		}
		if o := x.Info.FilterState.Get(key); o != nil || x.Info.Conn == nil {
			return o
		}
		return x.Info.Conn.FilterState.Get(key)
	}
	switch {
	case form == "PLAIN" && len(parts) == 2:
		return c.truncated(func(dst []byte, x *Context) ([]byte, bool) {
			switch o := get(x).(type) {
			case nil:
				return dst, false
			case streaminfo.String:
				return append(dst, o...), true
			default:
				return append(dst, o.Serialize()...), true
			}
		}), nil
	case form == "TYPED" && len(parts) <= 2:
		f := func(dst []byte, x *Context) ([]byte, bool) {
			o := get(x)
			if o == nil {
				return dst, false
			}
			return appendObject(dst, o), true
		}
		o := c.truncated(f)
		if c.max < 0 {
			o.json = f
		}
		return o, nil
	case form == "FIELD" && len(parts) == 3 && parts[2] != "":
		return c.truncated(func(dst []byte, x *Context) ([]byte, bool) {
			o := get(x)
			if o == nil {
				return dst, false
			}
			v, ok := o.Field(parts[2])
			return append(dst, v...), ok
		}), nil
	}
	return op{}, fmt.Errorf("unknown form in %q: want PLAIN, TYPED or FIELD:NAME after the key", c.sub)
}

// jsonAppender is implemented by filter-state objects with a structure.
type jsonAppender interface {
	AppendJSON(dst []byte) []byte
}

func appendObject(dst []byte, o streaminfo.Object) []byte {
	switch o := o.(type) {
	case jsonAppender:
		return o.AppendJSON(dst)
	case *streaminfo.Peer:
		return appendPeer(dst, o)
	}
	return AppendJSONString(dst, o.Serialize())
}

// peerFields are the fields of a peer in alphabetical order.
var peerFields = [...]string{"app", "cluster", "identity", "name", "namespace", "revision", "service", "type", "version", "workload"}

// appendPeer writes a peer as Istio's WorkloadMetadataObject serializes to a
// Struct: fields that are set, and labels.
func appendPeer(dst []byte, p *streaminfo.Peer) []byte {
	dst = append(dst, '{')
	first := true
	add := func(name string) {
		if !first {
			dst = append(dst, ',')
		}
		first = false
		dst = append(AppendJSONString(dst, name), ':')
	}
	for _, name := range peerFields {
		if name == "name" && len(p.Labels) > 0 {
			add("labels")
			dst = appendLabels(dst, p.Labels)
		}
		if v, ok := p.Field(name); ok && v != "" {
			add(name)
			dst = AppendJSONString(dst, v)
		}
	}
	return append(dst, '}')
}

func appendLabels(dst []byte, labels map[string]string) []byte {
	m := make(map[string]any, len(labels))
	for k, v := range labels {
		m[k] = v
	}
	return AppendJSON(dst, m)
}
