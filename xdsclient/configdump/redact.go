package configdump

import (
	"encoding/base64"
	"slices"
	"strings"

	"github.com/cncf/xds/go/udpa/annotations"
	xdstypev3pb "github.com/cncf/xds/go/xds/type/v3"
	bootstrapv3pb "github.com/envoyproxy/go-control-plane/envoy/config/bootstrap/v3"
	listenerv3pb "github.com/envoyproxy/go-control-plane/envoy/config/listener/v3"
	routev3pb "github.com/envoyproxy/go-control-plane/envoy/config/route/v3"
	hcmv3pb "github.com/envoyproxy/go-control-plane/envoy/extensions/filters/network/http_connection_manager/v3"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/reflect/protoreflect"
	"google.golang.org/protobuf/types/known/anypb"
	"google.golang.org/protobuf/types/known/structpb"
)

// Redacted stands for what must not be seen, as in Envoy.
const Redacted = "[redacted]"

// secretNames are fields that hold secrets and have no annotation, because they
// are Fairlead's own or come as a TypedStruct.
var secretNames = map[string]bool{
	"hash_key": true, "hashKey": true, "private_key": true, "privateKey": true, "password": true, "token": true, "secret": true,
	"hmac_key": true, "hmacKey": true, "client_secret": true, "clientSecret": true, pullSecret: true,
}

// pullSecret is the variable in which istiod gives a Wasm plugin's
// imagePullSecret to whoever fetches the module.
const pullSecret = "ISTIO_META_WASM_IMAGE_PULL_SECRET"

// redact replaces secrets in m, and messages in it whose type is unknown by
// something that can be rendered. all makes every value a secret.
func redact(m protoreflect.Message, all bool) {
	switch v := m.Interface().(type) {
	case *anypb.Any:
		redactAny(v, all)
		return
	case *structpb.Struct:
		redactStruct(v, all)
		return
	}
	m.Range(func(f protoreflect.FieldDescriptor, v protoreflect.Value) bool {
		secret := all || sensitive(f)
		switch {
		case f.IsMap():
			v.Map().Range(func(k protoreflect.MapKey, e protoreflect.Value) bool {
				if f.MapValue().Message() != nil {
					redact(e.Message(), secret)
				} else if secret || k.String() == pullSecret {
					v.Map().Set(k, hidden(f.MapValue()))
				}
				return true
			})
		case f.IsList():
			for i := range v.List().Len() {
				if f.Message() != nil {
					redact(v.List().Get(i).Message(), secret)
				} else if secret {
					v.List().Set(i, hidden(f))
				}
			}
		case f.Message() != nil:
			redact(v.Message(), secret)
		case secret:
			if f.Kind() == protoreflect.StringKind || f.Kind() == protoreflect.BytesKind {
				m.Set(f, hidden(f))
			} else {
				m.Clear(f)
			}
		}
		return true
	})
}

func hidden(f protoreflect.FieldDescriptor) protoreflect.Value {
	switch f.Kind() {
	case protoreflect.StringKind:
		return protoreflect.ValueOfString(Redacted)
	case protoreflect.BytesKind:
		return protoreflect.ValueOfBytes([]byte(Redacted))
	default:
		return f.Default()
	}
}

func sensitive(f protoreflect.FieldDescriptor) bool {
	if strings.HasPrefix(string(f.ParentFile().Package()), "fairlead.") && secretNames[string(f.Name())] {
		return true
	}
	o := f.Options()
	if o == nil {
		return false
	}
	s, _ := proto.GetExtension(o, annotations.E_Sensitive).(bool)
	return s
}

func redactAny(a *anypb.Any, all bool) {
	m, err := a.UnmarshalNew()
	if err != nil {
		unknown(a, all)
		return
	}
	redact(m.ProtoReflect(), all)
	if b, err := proto.Marshal(m); err == nil {
		a.Value = b
	}
}

// unknown makes of a message that this binary can't read a TypedStruct that
// holds its bytes.
func unknown(a *anypb.Any, all bool) {
	text := base64.StdEncoding.EncodeToString(a.GetValue())
	if all {
		text = Redacted
	}
	s, err := structpb.NewStruct(map[string]any{"unknown_type_bytes": text})
	if err != nil {
		return
	}
	if b, err := proto.Marshal(&xdstypev3pb.TypedStruct{TypeUrl: a.GetTypeUrl(), Value: s}); err == nil {
		a.TypeUrl, a.Value = "type.googleapis.com/xds.type.v3.TypedStruct", b
	}
}

func redactStruct(s *structpb.Struct, all bool) {
	for k, v := range s.GetFields() {
		redactValue(v, all || secretNames[k])
	}
}

func redactValue(v *structpb.Value, all bool) {
	switch k := v.GetKind().(type) {
	case *structpb.Value_StructValue:
		redactStruct(k.StructValue, all)
	case *structpb.Value_ListValue:
		for _, e := range k.ListValue.GetValues() {
			redactValue(e, all)
		}
	case *structpb.Value_StringValue:
		if all {
			k.StringValue = Redacted
		}
	}
}

// inlineRoutes returns the route configurations inside of static listeners,
// which Envoy lists as static ones.
func inlineRoutes(b *bootstrapv3pb.Bootstrap) []*routev3pb.RouteConfiguration {
	var out []*routev3pb.RouteConfiguration
	for _, l := range b.GetStaticResources().GetListeners() {
		out = append(out, inListener(l)...)
	}
	return out
}

// routesOf returns those of a serialized listener.
func routesOf(raw []byte) []*routev3pb.RouteConfiguration {
	var l listenerv3pb.Listener
	if raw == nil || proto.Unmarshal(raw, &l) != nil {
		return nil
	}
	return inListener(&l)
}

func inListener(l *listenerv3pb.Listener) []*routev3pb.RouteConfiguration {
	var out []*routev3pb.RouteConfiguration
	chains := l.GetFilterChains()
	if d := l.GetDefaultFilterChain(); d != nil {
		chains = append(slices.Clip(chains), d)
	}
	for _, c := range chains {
		for _, f := range c.GetFilters() {
			var m hcmv3pb.HttpConnectionManager
			if f.GetTypedConfig().MessageIs(&m) && f.GetTypedConfig().UnmarshalTo(&m) == nil && m.GetRouteConfig() != nil {
				out = append(out, m.GetRouteConfig())
			}
		}
	}
	return out
}
