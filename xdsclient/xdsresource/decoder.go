package xdsresource

import (
	"crypto/sha256"
	"errors"
	"fmt"
	"os"
	"runtime/debug"

	clusterv3pb "github.com/envoyproxy/go-control-plane/envoy/config/cluster/v3"
	corev3pb "github.com/envoyproxy/go-control-plane/envoy/config/core/v3"
	endpointv3pb "github.com/envoyproxy/go-control-plane/envoy/config/endpoint/v3"
	listenerv3pb "github.com/envoyproxy/go-control-plane/envoy/config/listener/v3"
	routev3pb "github.com/envoyproxy/go-control-plane/envoy/config/route/v3"
	tlsv3pb "github.com/envoyproxy/go-control-plane/envoy/extensions/transport_sockets/tls/v3"
	"google.golang.org/protobuf/proto"

	"github.com/fairlead-mesh/fairlead/filters"
)

// Type URLs of the resources that a Decoder knows.
const (
	ListenerType        = "type.googleapis.com/envoy.config.listener.v3.Listener"
	RouteType           = "type.googleapis.com/envoy.config.route.v3.RouteConfiguration"
	ClusterType         = "type.googleapis.com/envoy.config.cluster.v3.Cluster"
	EndpointsType       = "type.googleapis.com/envoy.config.endpoint.v3.ClusterLoadAssignment"
	SecretType          = "type.googleapis.com/envoy.extensions.transport_sockets.tls.v3.Secret"
	ExtensionConfigType = "type.googleapis.com/envoy.config.core.v3.TypedExtensionConfig"
)

// Options adapt a Decoder to its surroundings. The zero Options are good.
type Options struct {
	// ReadFile reads what a DataSource names; nil: os.ReadFile.
	ReadFile func(path string) ([]byte, error)
	// LookupEnv reads environment variables; nil: os.LookupEnv.
	LookupEnv func(name string) (string, bool)
}

// Decoder decodes resources. It is immutable and safe for concurrent use. A
// decoded value is independent of the bytes it came from.
//
// An error means that Envoy would reject the resource, too, or that it asks
// for something without which the whole resource is meaningless; it lists the
// problems, each with the field's path. What is valid but can't be executed
// here makes the smallest part that holds it fail closed (Unknown, Broken) or,
// if nothing depends on it, is listed in Resource.Ignored.
type Decoder struct {
	registry *filters.Registry
	opts     Options
}

// NewDecoder returns a Decoder that asks r for filters; r must not change any
// more. HTTP connection manager, router and tcp_proxy need not be in r.
func NewDecoder(r *filters.Registry, o Options) *Decoder {
	if o.ReadFile == nil {
		o.ReadFile = os.ReadFile
	}
	if o.LookupEnv == nil {
		o.LookupEnv = os.LookupEnv
	}
	if r == nil {
		r = &filters.Registry{}
	}
	return &Decoder{registry: r, opts: o}
}

// Decode decodes the wire form of a resource of one of the types above. The
// value is a *Listener, *RouteConfiguration, *Cluster, *ClusterLoadAssignment,
// *Secret or *ExtensionConfig.
func (d *Decoder) Decode(typeURL string, b []byte) (any, error) {
	m := newMessage(typeURL)
	if m == nil {
		return nil, fmt.Errorf("resource type %q is not supported", typeURL)
	}
	if err := proto.Unmarshal(b, m); err != nil {
		return nil, fmt.Errorf("not a valid %s: %w", m.ProtoReflect().Descriptor().Name(), err)
	}
	return d.Message(m)
}

// newMessage returns an empty message, nil for an unknown type.
func newMessage(typeURL string) proto.Message {
	switch typeURL {
	case ListenerType:
		return &listenerv3pb.Listener{}
	case RouteType:
		return &routev3pb.RouteConfiguration{}
	case ClusterType:
		return &clusterv3pb.Cluster{}
	case EndpointsType:
		return &endpointv3pb.ClusterLoadAssignment{}
	case SecretType:
		return &tlsv3pb.Secret{}
	case ExtensionConfigType:
		return &corev3pb.TypedExtensionConfig{}
	}
	return nil
}

// Listener decodes the wire form of a Listener.
func (d *Decoder) Listener(b []byte) (*Listener, error) { return typed[*Listener](d, ListenerType, b) }

// RouteConfiguration decodes the wire form of a RouteConfiguration.
func (d *Decoder) RouteConfiguration(b []byte) (*RouteConfiguration, error) {
	return typed[*RouteConfiguration](d, RouteType, b)
}

// Cluster decodes the wire form of a Cluster.
func (d *Decoder) Cluster(b []byte) (*Cluster, error) { return typed[*Cluster](d, ClusterType, b) }

// ClusterLoadAssignment decodes the wire form of a ClusterLoadAssignment.
func (d *Decoder) ClusterLoadAssignment(b []byte) (*ClusterLoadAssignment, error) {
	return typed[*ClusterLoadAssignment](d, EndpointsType, b)
}

// Secret decodes the wire form of a Secret.
func (d *Decoder) Secret(b []byte) (*Secret, error) { return typed[*Secret](d, SecretType, b) }

// ExtensionConfig decodes the wire form of a TypedExtensionConfig.
func (d *Decoder) ExtensionConfig(b []byte) (*ExtensionConfig, error) {
	return typed[*ExtensionConfig](d, ExtensionConfigType, b)
}

func typed[T any](d *Decoder, typeURL string, b []byte) (T, error) {
	v, err := d.Decode(typeURL, b)
	if err != nil {
		var zero T
		return zero, err
	}
	return v.(T), nil //nolint:errcheck // Decode promises the type
}

// Message decodes a resource message. It does not change m and keeps nothing
// of it.
func (d *Decoder) Message(m proto.Message) (v any, err error) {
	s := &scope{d: d}
	defer func() {
		if r := recover(); r != nil {
			v, err = nil, fmt.Errorf("%s: decoder panicked: %v\n%s", s.at(""), r, debug.Stack())
		}
	}()
	s.validate(m)
	if len(s.errs) > 0 {
		return nil, errors.Join(s.errs...)
	}
	v, common := s.resource(m)
	if v == nil {
		return nil, fmt.Errorf("resource type %q is not supported", m.ProtoReflect().Descriptor().FullName())
	}
	if len(s.errs) > 0 {
		return nil, errors.Join(s.errs...)
	}
	common.Digest = digest(m)
	common.Ignored = s.ignored.Ignored()
	return v, nil
}

func (s *scope) resource(m proto.Message) (any, *Resource) {
	switch m := m.(type) {
	case *listenerv3pb.Listener:
		l := s.listener(m)
		return l, &l.Resource
	case *routev3pb.RouteConfiguration:
		rc := s.routeConfiguration(m)
		return rc, &rc.Resource
	case *clusterv3pb.Cluster:
		c := s.cluster(m)
		return c, &c.Resource
	case *endpointv3pb.ClusterLoadAssignment:
		a := s.assignment(m, true)
		return a, &a.Resource
	case *tlsv3pb.Secret:
		x := s.secret(m)
		return x, &x.Resource
	case *corev3pb.TypedExtensionConfig:
		x := s.extensionConfig(m)
		return x, &x.Resource
	}
	return nil, nil
}

// digest hashes the deterministic form of m.
func digest(m proto.Message) Digest {
	b, err := proto.MarshalOptions{Deterministic: true}.Marshal(m)
	if err != nil { // an Any or string that was valid a moment ago
		b = []byte(err.Error())
	}
	return hash(string(m.ProtoReflect().Descriptor().FullName()), b)
}

func hash(kind string, b []byte) Digest {
	h := sha256.New()
	h.Write([]byte(kind))
	h.Write([]byte{0})
	h.Write(b)
	var sum [sha256.Size]byte
	var d Digest
	copy(d[:], h.Sum(sum[:0]))
	return d
}
