package xdsresource

import (
	"errors"
	"fmt"
	"strings"

	udpav1pb "github.com/cncf/xds/go/udpa/type/v1"
	xdstypev3pb "github.com/cncf/xds/go/xds/type/v3"
	corev3pb "github.com/envoyproxy/go-control-plane/envoy/config/core/v3"
	httpwasmv3pb "github.com/envoyproxy/go-control-plane/envoy/extensions/filters/http/wasm/v3"
	networkwasmv3pb "github.com/envoyproxy/go-control-plane/envoy/extensions/filters/network/wasm/v3"
	wasmv3pb "github.com/envoyproxy/go-control-plane/envoy/extensions/wasm/v3"
	"google.golang.org/protobuf/encoding/protojson"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/reflect/protoregistry"
	"google.golang.org/protobuf/types/known/anypb"
	"google.golang.org/protobuf/types/known/structpb"
	"google.golang.org/protobuf/types/known/wrapperspb"

	"github.com/fairlead-mesh/fairlead/filters"
)

const typePrefix = "type.googleapis.com/"

// nativePath marks a Wasm module that is built in: file:///go-native/<name>
// selects the filter fairlead.<name>.v1.Config, whose JSON configuration is
// the plugin's. It lets a WasmPlugin resource configure a native filter.
const nativePath = "/go-native/"

// isType reports whether a holds a message of m's type.
func isType(a *anypb.Any, m proto.Message) bool {
	return a.MessageName() == m.ProtoReflect().Descriptor().FullName()
}

// ExtensionType returns the full name of the message that a holds, inside a
// TypedStruct if it is one.
func ExtensionType(a *anypb.Any) string {
	url := a.GetTypeUrl()
	if inner, _, err := typedStruct(a); err == nil && inner != "" {
		url = inner
	}
	return url[strings.LastIndexByte(url, '/')+1:]
}

// unpack decodes a into m and validates it. It returns false, without an
// error, if a holds another type.
func (s *scope) unpack(a *anypb.Any, m proto.Message) bool {
	if !isType(a, m) {
		return false
	}
	if err := proto.Unmarshal(a.GetValue(), m); err != nil {
		s.reject("", err)
		return false
	}
	s.validate(m)
	return true
}

// unpackStruct is unpack for an extension that may come in a TypedStruct.
func (s *scope) unpackStruct(a *anypb.Any, m proto.Message) bool {
	inner, err := unwrapStruct(a)
	s.reject("", err)
	return err == nil && s.unpack(inner, m)
}

// unwrapStruct replaces a TypedStruct around a message that is linked in by
// that message, as Envoy does, so that wrapped core extensions decode as usual.
// Other TypedStructs stay.
func unwrapStruct(a *anypb.Any) (*anypb.Any, error) {
	typeURL, v, err := typedStruct(a)
	if err != nil || typeURL == "" {
		return a, err
	}
	mt, err := protoregistry.GlobalTypes.FindMessageByURL(typeURL)
	if err != nil {
		return a, nil //nolint:nilerr // unknown types keep their JSON form
	}
	j, err := v.MarshalJSON()
	if err != nil {
		return nil, err
	}
	m := mt.New().Interface()
	if err := protojson.Unmarshal(j, m); err != nil {
		return nil, fmt.Errorf("%s: %w", typeURL, err)
	}
	b, err := proto.MarshalOptions{Deterministic: true}.Marshal(m)
	return &anypb.Any{TypeUrl: typeURL, Value: b}, err
}

// typedStruct returns the content of a TypedStruct, "" if a is none.
func typedStruct(a *anypb.Any) (string, *structpb.Struct, error) {
	var typeURL string
	var v *structpb.Struct
	switch {
	case isType(a, (*udpav1pb.TypedStruct)(nil)):
		var t udpav1pb.TypedStruct
		if err := proto.Unmarshal(a.GetValue(), &t); err != nil {
			return "", nil, err
		}
		typeURL, v = t.GetTypeUrl(), t.GetValue()
	case isType(a, (*xdstypev3pb.TypedStruct)(nil)):
		var t xdstypev3pb.TypedStruct
		if err := proto.Unmarshal(a.GetValue(), &t); err != nil {
			return "", nil, err
		}
		typeURL, v = t.GetTypeUrl(), t.GetValue()
	default:
		return "", nil, nil
	}
	if typeURL == "" {
		return "", nil, errors.New("a TypedStruct without type_url")
	}
	if v == nil {
		v = &structpb.Struct{}
	}
	return typeURL, v, nil
}

// wrapping says what a configuration came in: nothing, unless it is a Wasm
// plugin that stands for a native filter.
type wrapping struct {
	// typeURL is the plugin's type URL.
	typeURL string
	// failOpen is the failure policy of a Wasm plugin of either kind.
	failOpen bool
}

// unwrap removes the wrappers of a filter configuration.
func unwrap(a *anypb.Any) (out filters.Any, w wrapping, err error) {
	out = filters.Any{TypeURL: a.GetTypeUrl(), Value: a.GetValue()}
	inner, err := unwrapStruct(a)
	if err != nil {
		if url, _, err := typedStruct(a); err == nil {
			out.TypeURL = url
		}
		return out, w, err
	}
	a = inner
	out = filters.Any{TypeURL: a.GetTypeUrl(), Value: a.GetValue()}
	typeURL, v, err := typedStruct(a)
	if err != nil {
		return out, w, err
	}
	if typeURL != "" {
		out.TypeURL, out.JSON = typeURL, true
		out.Value, err = v.MarshalJSON()
		return out, w, err
	}
	var plugin *wasmv3pb.PluginConfig
	switch {
	case isType(a, (*httpwasmv3pb.Wasm)(nil)):
		var m httpwasmv3pb.Wasm
		if err = proto.Unmarshal(a.GetValue(), &m); err != nil {
			return out, w, err
		}
		if plugin = m.GetConfig(); !isNative(plugin) { // a module, which is run
			return out, wrapping{failOpen: failOpen(plugin)}, nil
		}
	case isType(a, (*networkwasmv3pb.Wasm)(nil)):
		var m networkwasmv3pb.Wasm
		err = proto.Unmarshal(a.GetValue(), &m)
		plugin = m.GetConfig()
	default:
		return out, w, nil
	}
	if err != nil {
		return out, w, err
	}
	w = wrapping{out.TypeURL, failOpen(plugin)}
	out, err = native(plugin, out)
	return out, w, err
}

// failOpen tells whether requests pass without a plugin that can't be run.
// FAIL_RELOAD is about virtual machines: without one, nothing is to be reloaded.
func failOpen(p *wasmv3pb.PluginConfig) bool {
	if p.GetFailurePolicy() == wasmv3pb.FailurePolicy_UNSPECIFIED {
		return p.GetFailOpen()
	}
	return p.GetFailurePolicy() == wasmv3pb.FailurePolicy_FAIL_OPEN
}

// isNative reports whether plugin stands for a native filter.
func isNative(p *wasmv3pb.PluginConfig) bool {
	return strings.HasPrefix(p.GetVmConfig().GetCode().GetLocal().GetFilename(), nativePath)
}

// native returns the native filter that plugin stands for.
func native(plugin *wasmv3pb.PluginConfig, out filters.Any) (filters.Any, error) {
	file := plugin.GetVmConfig().GetCode().GetLocal().GetFilename()
	name, ok := strings.CutPrefix(file, nativePath)
	if !ok {
		return out, fmt.Errorf("Wasm modules are not run for connections; only file://%s<name> selects a native filter", nativePath) //nolint:staticcheck // a name
	}
	if !validName(name) {
		return out, fmt.Errorf("config.vm_config.code.local.filename: %q is not the name of a native filter", name)
	}
	out = filters.Any{TypeURL: typePrefix + "fairlead." + name + ".v1.Config", Value: []byte("{}"), JSON: true}
	c := plugin.GetConfiguration()
	switch {
	case c.GetTypeUrl() == "" && len(c.GetValue()) == 0: // istiod sends an empty one if there is no pluginConfig
	case isType(c, (*wrapperspb.StringValue)(nil)):
		var v wrapperspb.StringValue
		if err := proto.Unmarshal(c.GetValue(), &v); err != nil {
			return out, fmt.Errorf("config.configuration: %w", err)
		}
		if v.GetValue() != "" {
			out.Value = []byte(v.GetValue())
		}
	case isType(c, (*structpb.Struct)(nil)):
		var v structpb.Struct
		err := proto.Unmarshal(c.GetValue(), &v)
		if err == nil {
			out.Value, err = v.MarshalJSON()
		}
		if err != nil {
			return out, fmt.Errorf("config.configuration: %w", err)
		}
	default:
		return out, fmt.Errorf("config.configuration: type %q is not supported: want a JSON string", c.GetTypeUrl())
	}
	return out, nil
}

func validName(s string) bool {
	for i := range len(s) {
		if c := s[i]; (c < 'a' || c > 'z') && c != '_' && (i == 0 || c < '0' || c > '9') {
			return false
		}
	}
	return s != "" && len(s) <= 64
}

// decodeFunc is a factory's way to decode one kind of configuration.
type decodeFunc func(filters.Any, *filters.Decoding) (filters.Config, error)

// pluginKind says which of a registry's factories decode a configuration.
type pluginKind uint8

const (
	httpPlugin pluginKind = iota
	overridePlugin
	networkPlugin
	listenerPlugin
	upstreamPlugin
)

// decoder returns nil if there is no factory.
func (s *scope) decoder(kind pluginKind, typeURL string) decodeFunc {
	switch kind {
	case httpPlugin:
		if f := s.d.registry.HTTP(typeURL); f != nil {
			return f.Decode
		}
	case overridePlugin:
		if f := s.d.registry.HTTP(typeURL); f != nil {
			return f.DecodeOverride
		}
	case networkPlugin:
		if f := s.d.registry.Network(typeURL); f != nil {
			return f.Decode
		}
	case listenerPlugin:
		if f := s.d.registry.Listener(typeURL); f != nil {
			return f.Decode
		}
	case upstreamPlugin:
		if f := s.d.registry.Upstream(typeURL); f != nil {
			return f.Decode
		}
	}
	return nil
}

type pluginKey struct {
	kind   pluginKind
	digest Digest
}

// plugged is a decoded extension with what it reports as ignored.
type plugged struct {
	TypedConfig
	ignored []filters.Ignored
}

// plugin decodes an extension by its factory. What can't be decoded is
// Unknown. Equal configurations in one resource share their Config.
func (s *scope) plugin(name string, a *anypb.Any, kind pluginKind) TypedConfig {
	if a == nil {
		return TypedConfig{Name: name, Unknown: "there is no typed_config"}
	}
	key := pluginKey{kind, hash(a.GetTypeUrl(), a.GetValue())}
	p := s.plugins[key]
	if p == nil {
		p = s.decodePlugin(a, kind)
		p.Digest = key.digest
		if s.plugins == nil {
			s.plugins = map[pluginKey]*plugged{}
		}
		s.plugins[key] = p
	}
	for _, ig := range p.ignored {
		s.ignore("typed_config."+ig.Path, ig.Reason)
	}
	t := p.TypedConfig
	t.Name = name
	return t
}

func (s *scope) decodePlugin(a *anypb.Any, kind pluginKind) *plugged {
	p := &plugged{}
	in, w, err := unwrap(a)
	p.TypeURL, p.Wrapper, p.FailOpen = in.TypeURL, w.typeURL, w.failOpen
	if err != nil {
		p.Unknown = err.Error()
		return p
	}
	decode := s.decoder(kind, in.TypeURL)
	if decode == nil {
		p.Unknown = "type " + in.TypeURL + " is not supported"
		return p
	}
	var seen filters.Decoding
	if p.Config, err = decode(in, &seen); err != nil {
		p.Config, p.Unknown = nil, err.Error()
		return p
	}
	p.ignored = seen.Ignored()
	return p
}

// discovery converts config_discovery.
func (s *scope) discovery(name string, c *corev3pb.ExtensionConfigSource, kind pluginKind) *ExtensionConfigSource {
	s.push("config_discovery")
	defer s.pop()
	out := &ExtensionConfigSource{
		Source:   s.configSource("config_source", c.GetConfigSource()),
		TypeURLs: c.GetTypeUrls(),
	}
	if c.GetDefaultConfig() != nil {
		t := s.plugin(name, c.GetDefaultConfig(), kind)
		out.Default = &t
	}
	return out
}

// extensionConfig decodes an ECDS resource. Which kind of filter it configures
// follows from its type; a type that serves several kinds is decoded for each.
func (s *scope) extensionConfig(m *corev3pb.TypedExtensionConfig) *ExtensionConfig {
	x := &ExtensionConfig{Resource: Resource{Name: m.GetName()}}
	if m.GetTypedConfig() == nil {
		s.errorf("typed_config", "is missing")
		return x
	}
	x.TypedConfig = s.plugin(m.GetName(), m.GetTypedConfig(), httpPlugin)
	url := x.TypeURL
	first := s.decoder(httpPlugin, url) != nil
	for kind, to := range map[pluginKind]**TypedConfig{networkPlugin: &x.Network, listenerPlugin: &x.Listener} {
		if s.decoder(kind, url) != nil {
			t := s.plugin(m.GetName(), m.GetTypedConfig(), kind)
			*to = &t
			if !first {
				x.TypedConfig = t
			}
		}
	}
	return x
}
