package xdstest

import (
	"encoding/json"
	"errors"
	"fmt"
	"strings"

	// What resources hold in Any fields must be linked in to be read.
	_ "github.com/cncf/xds/go/udpa/type/v1"
	_ "github.com/cncf/xds/go/xds/type/matcher/v3"
	_ "github.com/cncf/xds/go/xds/type/v3"
	_ "github.com/envoyproxy/go-control-plane/envoy/config/cluster/v3"
	_ "github.com/envoyproxy/go-control-plane/envoy/config/endpoint/v3"
	_ "github.com/envoyproxy/go-control-plane/envoy/config/listener/v3"
	_ "github.com/envoyproxy/go-control-plane/envoy/config/route/v3"
	_ "github.com/envoyproxy/go-control-plane/envoy/extensions/access_loggers/file/v3"
	_ "github.com/envoyproxy/go-control-plane/envoy/extensions/access_loggers/filters/cel/v3"
	_ "github.com/envoyproxy/go-control-plane/envoy/extensions/access_loggers/stream/v3"
	_ "github.com/envoyproxy/go-control-plane/envoy/extensions/clusters/dynamic_forward_proxy/v3"
	_ "github.com/envoyproxy/go-control-plane/envoy/extensions/filters/http/adaptive_concurrency/v3"
	_ "github.com/envoyproxy/go-control-plane/envoy/extensions/filters/http/cors/v3"
	_ "github.com/envoyproxy/go-control-plane/envoy/extensions/filters/http/dynamic_forward_proxy/v3"
	_ "github.com/envoyproxy/go-control-plane/envoy/extensions/filters/http/ext_authz/v3"
	_ "github.com/envoyproxy/go-control-plane/envoy/extensions/filters/http/fault/v3"
	_ "github.com/envoyproxy/go-control-plane/envoy/extensions/filters/http/grpc_stats/v3"
	_ "github.com/envoyproxy/go-control-plane/envoy/extensions/filters/http/header_mutation/v3"
	_ "github.com/envoyproxy/go-control-plane/envoy/extensions/filters/http/jwt_authn/v3"
	_ "github.com/envoyproxy/go-control-plane/envoy/extensions/filters/http/local_ratelimit/v3"
	_ "github.com/envoyproxy/go-control-plane/envoy/extensions/filters/http/ratelimit/v3"
	_ "github.com/envoyproxy/go-control-plane/envoy/extensions/filters/http/rbac/v3"
	_ "github.com/envoyproxy/go-control-plane/envoy/extensions/filters/http/router/v3"
	_ "github.com/envoyproxy/go-control-plane/envoy/extensions/filters/http/set_filter_state/v3"
	_ "github.com/envoyproxy/go-control-plane/envoy/extensions/filters/http/wasm/v3"
	_ "github.com/envoyproxy/go-control-plane/envoy/extensions/filters/listener/http_inspector/v3"
	_ "github.com/envoyproxy/go-control-plane/envoy/extensions/filters/listener/original_dst/v3"
	_ "github.com/envoyproxy/go-control-plane/envoy/extensions/filters/listener/proxy_protocol/v3"
	_ "github.com/envoyproxy/go-control-plane/envoy/extensions/filters/listener/tls_inspector/v3"
	_ "github.com/envoyproxy/go-control-plane/envoy/extensions/filters/network/http_connection_manager/v3"
	_ "github.com/envoyproxy/go-control-plane/envoy/extensions/filters/network/rbac/v3"
	_ "github.com/envoyproxy/go-control-plane/envoy/extensions/filters/network/set_filter_state/v3"
	_ "github.com/envoyproxy/go-control-plane/envoy/extensions/filters/network/tcp_proxy/v3"
	_ "github.com/envoyproxy/go-control-plane/envoy/extensions/matching/common_inputs/network/v3"
	_ "github.com/envoyproxy/go-control-plane/envoy/extensions/path/match/uri_template/v3"
	_ "github.com/envoyproxy/go-control-plane/envoy/extensions/request_id/uuid/v3"
	_ "github.com/envoyproxy/go-control-plane/envoy/extensions/retry/host/previous_hosts/v3"
	_ "github.com/envoyproxy/go-control-plane/envoy/extensions/transport_sockets/internal_upstream/v3"
	_ "github.com/envoyproxy/go-control-plane/envoy/extensions/transport_sockets/proxy_protocol/v3"
	_ "github.com/envoyproxy/go-control-plane/envoy/extensions/transport_sockets/raw_buffer/v3"
	_ "github.com/envoyproxy/go-control-plane/envoy/extensions/transport_sockets/tls/v3"
	_ "github.com/envoyproxy/go-control-plane/envoy/extensions/upstreams/http/v3"
	"google.golang.org/protobuf/encoding/protojson"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/reflect/protoreflect"
	"google.golang.org/protobuf/reflect/protoregistry"
	"google.golang.org/protobuf/types/known/anypb"
	_ "istio.io/api/envoy/extensions/stats"
	"sigs.k8s.io/yaml"
)

// Load reads resources from YAML or JSON: a list (or a "resources" list) of
// objects with "@type" and the fields of the resource. The name is the
// resource's own (name, cluster_name). "${KEY}" is replaced from vars first.
func Load(doc []byte, vars map[string]string) ([]Resource, error) {
	var old []string
	for k, v := range vars {
		old = append(old, "${"+k+"}", v)
	}
	j, err := yaml.YAMLToJSON([]byte(strings.NewReplacer(old...).Replace(string(doc))))
	if err != nil {
		return nil, err
	}
	var list []json.RawMessage
	if err := json.Unmarshal(j, &list); err != nil {
		var obj struct{ Resources []json.RawMessage }
		if err := json.Unmarshal(j, &obj); err != nil {
			return nil, err
		}
		list = obj.Resources
	}
	var rs []Resource
	for i, raw := range list {
		a := new(anypb.Any)
		if err := protojson.Unmarshal(raw, a); err != nil {
			return nil, fmt.Errorf("resource %d: %w", i, err)
		}
		m, err := a.UnmarshalNew()
		if err != nil {
			return nil, fmt.Errorf("resource %d: %w", i, err)
		}
		name := nameOf(m)
		if name == "" {
			return nil, fmt.Errorf("resource %d: a %s without a name", i, a.GetTypeUrl())
		}
		rs = append(rs, Resource{TypeURL: a.GetTypeUrl(), Name: name, Value: a.GetValue()})
	}
	return rs, nil
}

// LoadNamed reads a list of {"name": …, "resource": …} objects in JSON, the
// form in which dumps of a control plane are kept, as resources of one type.
func LoadNamed(typeURL string, doc []byte) ([]Resource, error) {
	var list []struct {
		Name     string
		Resource json.RawMessage
	}
	if err := json.Unmarshal(doc, &list); err != nil {
		return nil, err
	}
	mt, err := protoregistry.GlobalTypes.FindMessageByURL(typeURL)
	if err != nil {
		return nil, fmt.Errorf("%s: %w", typeURL, err)
	}
	var rs []Resource
	for _, e := range list {
		m := mt.New().Interface()
		if err := protojson.Unmarshal(e.Resource, m); err != nil {
			return nil, fmt.Errorf("%s: %w", e.Name, err)
		}
		b, err := proto.MarshalOptions{Deterministic: true}.Marshal(m)
		if err != nil {
			return nil, fmt.Errorf("%s: %w", e.Name, err)
		}
		rs = append(rs, Resource{TypeURL: typeURL, Name: e.Name, Value: b})
	}
	if len(rs) == 0 {
		return nil, errors.New("no resources")
	}
	return rs, nil
}

func nameOf(m proto.Message) string {
	r := m.ProtoReflect()
	for _, f := range []protoreflect.Name{"name", "cluster_name"} {
		if fd := r.Descriptor().Fields().ByName(f); fd != nil && fd.Kind() == protoreflect.StringKind {
			return r.Get(fd).String()
		}
	}
	return ""
}
