package xdsresource_test

import (
	"testing"

	clusterv3pb "github.com/envoyproxy/go-control-plane/envoy/config/cluster/v3"
	corev3pb "github.com/envoyproxy/go-control-plane/envoy/config/core/v3"
	endpointv3pb "github.com/envoyproxy/go-control-plane/envoy/config/endpoint/v3"
	listenerv3pb "github.com/envoyproxy/go-control-plane/envoy/config/listener/v3"
	routev3pb "github.com/envoyproxy/go-control-plane/envoy/config/route/v3"
	tlsv3pb "github.com/envoyproxy/go-control-plane/envoy/extensions/transport_sockets/tls/v3"
	"google.golang.org/protobuf/encoding/protojson"
	"google.golang.org/protobuf/encoding/protowire"
	"google.golang.org/protobuf/proto"

	"github.com/fairlead-mesh/fairlead/filters/builtin"
	"github.com/fairlead-mesh/fairlead/internal/sweep"
	"github.com/fairlead-mesh/fairlead/xdsclient/xdsresource"
)

// fuzzTypes are the resource types with an empty message of each.
var fuzzTypes = []struct {
	url string
	new func() proto.Message
}{
	{xdsresource.ListenerType, func() proto.Message { return &listenerv3pb.Listener{} }},
	{xdsresource.RouteType, func() proto.Message { return &routev3pb.RouteConfiguration{} }},
	{xdsresource.ClusterType, func() proto.Message { return &clusterv3pb.Cluster{} }},
	{xdsresource.EndpointsType, func() proto.Message { return &endpointv3pb.ClusterLoadAssignment{} }},
	{xdsresource.SecretType, func() proto.Message { return &tlsv3pb.Secret{} }},
	{xdsresource.ExtensionConfigType, func() proto.Message { return &corev3pb.TypedExtensionConfig{} }},
}

// noFiles keeps the fuzzer from reading files.
var noFiles = xdsresource.Options{
	ReadFile:  func(string) ([]byte, error) { return []byte("file"), nil },
	LookupEnv: func(string) (string, bool) { return "", false },
}

func check(t *testing.T, v any, err error) {
	t.Helper()
	if (v == nil) == (err == nil) {
		t.Fatalf("value %v, error %v", v, err)
	}
	if err != nil && err.Error() == "" {
		t.Fatal("an error without text")
	}
}

// decodes reports whether js is accepted as a message without what JSON can't
// say, which are unknown fields: a chain is closed for one of TLS, not refused.
func decodes(d *xdsresource.Decoder, url string, m proto.Message, js []byte) bool {
	if protojson.Unmarshal(js, m) != nil {
		return true
	}
	b, err := proto.Marshal(m)
	if err == nil {
		_, err = d.Decode(url, b)
	}
	return err == nil
}

// FuzzDecode: a resource of each type is decoded or refused, always the same;
// what is no message is refused, and what is accepted is accepted as JSON.
func FuzzDecode(f *testing.F) {
	for i, ft := range fuzzTypes {
		for kind, url := range dumpTypes {
			if url != ft.url {
				continue
			}
			for _, sc := range []string{"waypoint-minimal", "egress"} {
				for _, r := range readDump(f, sc, kind) {
					m := ft.new()
					if err := xdsresource.Unmarshal(r.Resource, m); err != nil {
						f.Fatal(err)
					}
					b, err := proto.Marshal(m)
					if err != nil {
						f.Fatal(err)
					}
					f.Add(byte(i), b)
				}
			}
		}
	}
	f.Add(byte(0), protowire.AppendTag(nil, 4000, protowire.Fixed32Type))
	d := xdsresource.NewDecoder(builtin.Registry(), noFiles)
	f.Fuzz(sweep.Around(f, func(t *testing.T, kind byte, b []byte) {
		ft := fuzzTypes[int(kind)%len(fuzzTypes)]
		v, err := d.Decode(ft.url, b)
		check(t, v, err)
		again, err2 := d.Decode(ft.url, b)
		if (err == nil) != (err2 == nil) || (v == nil) != (again == nil) {
			t.Fatalf("not deterministic: %v, %v", err, err2)
		}
		m := ft.new()
		if proto.Unmarshal(b, m) != nil {
			if err == nil {
				t.Fatal("accepts what is no message")
			}
			return
		}
		js, jerr := protojson.Marshal(m)
		if jerr != nil || err != nil {
			return // an extension that is not linked, or already refused
		}
		sweep.Accepted()
		if _, err := d.FromYAML(ft.url, js); err != nil && decodes(d, ft.url, ft.new(), js) {
			t.Fatalf("%s is accepted, but in JSON %v", js, err)
		}
	}))
}

// FuzzYAML: there is a resource or an error with a text, whatever the document.
func FuzzYAML(f *testing.F) {
	f.Add(byte(0), []byte(listenerWith(rds, "")))
	f.Add(byte(1), []byte(`{name: r, virtual_hosts: [{name: v, domains: ["*"], routes: [{match: {prefix: /}, route: {cluster: c}}]}]}`))
	f.Add(byte(2), []byte(`{name: c, type: EDS, eds_cluster_config: {eds_config: {ads: {}}}}`))
	f.Add(byte(3), []byte(`{cluster_name: c, endpoints: [{lb_endpoints: [{endpoint: {address: {pipe: {path: /x}}}}]}]}`))
	f.Add(byte(4), []byte("name: s\ngeneric_secret: {secret: {inline_string: x}}"))
	f.Add(byte(5), []byte(`{"name": "e", "typed_config": {"@type": "type.googleapis.com/acme.X", "a": [1, null, 1e400]}}`))
	f.Add(byte(5), []byte("name: &a [*a]\n? [x]\n: y"))
	d := xdsresource.NewDecoder(builtin.Registry(), noFiles)
	f.Fuzz(func(t *testing.T, kind byte, doc []byte) {
		v, err := d.FromYAML(fuzzTypes[int(kind)%len(fuzzTypes)].url, doc)
		check(t, v, err)
	})
}
