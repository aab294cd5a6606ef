package configdump

import (
	"encoding/json"
	"strings"
	"testing"
	"time"

	adminv3pb "github.com/envoyproxy/go-control-plane/envoy/admin/v3"
	bootstrapv3pb "github.com/envoyproxy/go-control-plane/envoy/config/bootstrap/v3"
	corev3pb "github.com/envoyproxy/go-control-plane/envoy/config/core/v3"
	listenerv3pb "github.com/envoyproxy/go-control-plane/envoy/config/listener/v3"
	hcmv3pb "github.com/envoyproxy/go-control-plane/envoy/extensions/filters/network/http_connection_manager/v3"
	"google.golang.org/protobuf/encoding/protojson"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/anypb"

	"github.com/fairlead-mesh/fairlead/xdsclient/xdsresource"
)

// raw is m, given as JSON, serialized.
func raw(t *testing.T, m proto.Message, text string) []byte {
	t.Helper()
	if err := protojson.Unmarshal([]byte(text), m); err != nil {
		t.Fatal(err)
	}
	b, err := proto.Marshal(m)
	if err != nil {
		t.Fatal(err)
	}
	return b
}

// dump parses what Build made, as istioctl does.
func dump(t *testing.T, c *Config, o Options) (all string, sections map[string]proto.Message) {
	t.Helper()
	text, err := json.Marshal(map[string]any{"configs": Build(c, o)})
	if err != nil {
		t.Fatal(err)
	}
	var d adminv3pb.ConfigDump
	if err := protojson.Unmarshal(text, &d); err != nil {
		t.Fatalf("%v\n%s", err, text)
	}
	sections = map[string]proto.Message{}
	for _, a := range d.GetConfigs() {
		m, err := a.UnmarshalNew()
		if err != nil {
			t.Fatal(err)
		}
		sections[string(m.ProtoReflect().Descriptor().Name())] = m
	}
	return string(text), sections
}

const secretBootstrap = `{
 "static_resources": {
  "clusters": [{"name": "c", "transport_socket": {"name": "tls", "typed_config": {
    "@type": "type.googleapis.com/envoy.extensions.transport_sockets.tls.v3.UpstreamTlsContext",
    "common_tls_context": {"tls_certificates": [{
      "certificate_chain": {"inline_string": "PUBLIC"}, "private_key": {"inline_string": "HUSH-1"}, "password": {"inline_string": "HUSH-2"}}]}}}}],
  "listeners": [{"name": "l", "filter_chains": [{"filters": [{"name": "hcm", "typed_config": {
    "@type": "type.googleapis.com/envoy.extensions.filters.network.http_connection_manager.v3.HttpConnectionManager",
    "route_config": {"name": "inline"},
    "http_filters": [
      {"name": "own", "typed_config": {"@type": "type.googleapis.com/xds.type.v3.TypedStruct", "type_url": "x", "value": {"hash_key": "HUSH-3", "mode": "PUBLIC", "more": [{"password": "HUSH-4"}]}}}
    ]}}]}]}],
  "secrets": [{"name": "s", "generic_secret": {"secret": {"inline_bytes": "SFVTSC01"}}}, {"name": "t", "session_ticket_keys": {"keys": [{"inline_string": "HUSH-6"}]}}]
 }
}`

func TestSecretsAreRedacted(t *testing.T) {
	text, sections := dump(t, &Config{Bootstrap: raw(t, &bootstrapv3pb.Bootstrap{}, secretBootstrap), Start: time.Unix(1, 0)}, Options{Endpoints: true})
	for _, s := range []string{"HUSH", "SFVTSC"} {
		if i := strings.Index(text, s); i >= 0 {
			t.Errorf("a secret is shown: %s", text[max(0, i-80):i+20])
		}
	}
	if n := strings.Count(text, "PUBLIC"); n != 4 { // in the bootstrap, and in cluster and listener
		t.Errorf("%d of 4 public values are shown", n)
	}
	if len(sections) != 6 {
		t.Errorf("%d sections", len(sections))
	}
	rs, _ := sections["RoutesConfigDump"].(*adminv3pb.RoutesConfigDump)
	if len(rs.GetStaticRouteConfigs()) != 1 {
		t.Errorf("static routes: %v", rs)
	}
}

func TestThePullSecretOfAWasmPluginIsRedacted(t *testing.T) {
	plugin := raw(t, &corev3pb.TypedExtensionConfig{}, `{"name": "p", "typed_config": {"@type": "type.googleapis.com/envoy.extensions.filters.http.wasm.v3.Wasm",
	  "config": {"vm_config": {"environment_variables": {"key_values": {"A": "PUBLIC", "ISTIO_META_WASM_IMAGE_PULL_SECRET": "HUSH"}}}}}}`)
	text, _ := dump(t, &Config{Dynamic: map[string][]Resource{xdsresource.ExtensionConfigType: {{Name: "p", Raw: plugin}}}}, Options{})
	if strings.Contains(text, "HUSH") || !strings.Contains(text, "PUBLIC") {
		t.Error(text)
	}
}

func TestTheOriginalIsNotChanged(t *testing.T) {
	b := raw(t, &bootstrapv3pb.Bootstrap{}, secretBootstrap)
	l := raw(t, &listenerv3pb.Listener{}, `{"name": "l"}`)
	c := &Config{Bootstrap: b, Dynamic: map[string][]Resource{xdsresource.ListenerType: {{Name: "l", Raw: l}}}}
	before := string(b) + string(l)
	for range 2 {
		Build(c, Options{})
	}
	if string(c.Bootstrap)+string(c.Dynamic[xdsresource.ListenerType][0].Raw) != before {
		t.Error("Build changed what it was given")
	}
}

func TestDynamicResourcesHaveTheirVersionsAndErrors(t *testing.T) {
	hcm, err := anypb.New(&hcmv3pb.HttpConnectionManager{StatPrefix: "p"})
	if err != nil {
		t.Fatal(err)
	}
	good, err := proto.Marshal(&listenerv3pb.Listener{Name: "good", FilterChains: []*listenerv3pb.FilterChain{{Filters: []*listenerv3pb.Filter{
		{Name: "hcm", ConfigType: &listenerv3pb.Filter_TypedConfig{TypedConfig: hcm}},
		{Name: "odd", ConfigType: &listenerv3pb.Filter_TypedConfig{TypedConfig: &anypb.Any{TypeUrl: "type.googleapis.com/no.such.Type", Value: []byte{1, 2}}}},
	}}}})
	if err != nil {
		t.Fatal(err)
	}
	text, sections := dump(t, &Config{Dynamic: map[string][]Resource{
		xdsresource.ListenerType: {
			{Name: "new", Error: "no filter chain", FailedVersion: "3", Failed: time.Unix(9, 0)},
			{Name: "good", Version: "1", Raw: good, Updated: time.Unix(5, 0), Error: "worse", FailedVersion: "2", Failed: time.Unix(8, 0)},
		},
		xdsresource.SecretType: {{Name: "default", Version: "7"}},
	}}, Options{})
	ls, _ := sections["ListenersConfigDump"].(*adminv3pb.ListenersConfigDump)
	if len(ls.GetDynamicListeners()) != 2 || ls.GetVersionInfo() != "1" {
		t.Fatal(text)
	}
	g, n := ls.GetDynamicListeners()[0], ls.GetDynamicListeners()[1]
	if g.GetName() != "good" || g.GetActiveState().GetVersionInfo() != "1" || g.GetErrorState().GetDetails() != "worse" || g.GetErrorState().GetVersionInfo() != "2" {
		t.Errorf("good: %v", g)
	}
	if n.GetName() != "new" || n.GetActiveState() != nil || n.GetErrorState().GetDetails() != "no filter chain" {
		t.Errorf("new: %v", n)
	}
	if !strings.Contains(text, `no.such.Type`) || !strings.Contains(text, "AQI=") {
		t.Errorf("what can't be read is not shown: %s", text)
	}
	if _, ok := sections["BootstrapConfigDump"]; ok {
		t.Error("there is no bootstrap")
	}
	sec, _ := sections["SecretsConfigDump"].(*adminv3pb.SecretsConfigDump)
	if len(sec.GetDynamicActiveSecrets()) != 1 || sec.GetDynamicActiveSecrets()[0].GetName() != "default" {
		t.Errorf("secrets: %v", sec)
	}
}
