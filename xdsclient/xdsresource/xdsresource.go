// Package xdsresource is the edge of configuration: it turns the bytes of
// Envoy's xDS resources into plain, validated structs, or into an error that
// names the field. Nothing behind it sees a proto message.
//
// All structs are immutable once decoded. Slices keep the configured order.
// Optional durations are pointers only where "unset" and zero differ.
package xdsresource

import (
	"github.com/fairlead-mesh/fairlead/filters"
	"github.com/fairlead-mesh/fairlead/internal/streaminfo"
)

// Digest identifies a part of the configuration by content: equal bytes, equal
// Digest. Build reuses compiled parts whose Digest is unchanged.
type Digest [16]byte

// Resource is what all decoded resources have in common.
type Resource struct {
	Name   string
	Digest Digest
	// Ignored lists fields that were accepted and are not executed.
	Ignored []filters.Ignored
}

// TypedConfig is a decoded extension.
type TypedConfig struct {
	Name    string
	TypeURL string
	Config  filters.Config
	Digest  Digest
	// Wrapper is the type URL that the configuration arrived as if that was a
	// Wasm plugin standing for a native filter, else "". It is what
	// ExtensionConfigSource.TypeURLs names.
	Wrapper string
	// Unknown is set when no factory knows TypeURL or its configuration could
	// not be decoded: the reason. The chain that holds it must fail closed
	// unless the extension is marked optional, or FailOpen is set.
	Unknown string
	// FailOpen is set if the configuration arrived as a Wasm plugin whose
	// failure_policy is FAIL_OPEN (an Istio resource's failStrategy): if the
	// filter can't be built, it is left out. How a running filter fails is said
	// by its own configuration.
	FailOpen bool
}

// ConfigSource says where a named resource comes from.
type ConfigSource struct {
	// ADS, or Self; else Path names a watched file, or Cluster a server of
	// api_config_source.
	ADS  bool
	Path string
	APIServer
	// Watch, with Path, is a directory in which a move means that the file may
	// be another one; "" is the file's own.
	Watch string
}

// APIServer is api_config_source: where one type comes from, over a stream of its
// own. It is comparable.
type APIServer struct {
	// Cluster is a static one.
	Cluster string
	// StateOfTheWorld is set for api_type GRPC; else it is delta xDS.
	StateOfTheWorld bool
	// Metadata are headers of the stream: names in lower case and values, each
	// followed by a line feed.
	Metadata string
}

// Metadata is static metadata of a listener, route, cluster or endpoint.
type Metadata = streaminfo.Metadata
