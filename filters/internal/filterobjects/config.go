package filterobjects

import (
	"errors"
	"fmt"

	corev3pb "github.com/envoyproxy/go-control-plane/envoy/config/core/v3"
	set_filter_statev3pb "github.com/envoyproxy/go-control-plane/envoy/extensions/filters/common/set_filter_state/v3"
	_ "github.com/envoyproxy/go-control-plane/envoy/extensions/formatter/cel/v3"               // resolved in JSON form
	_ "github.com/envoyproxy/go-control-plane/envoy/extensions/formatter/metadata/v3"          // resolved in JSON form
	_ "github.com/envoyproxy/go-control-plane/envoy/extensions/formatter/req_without_query/v3" // resolved in JSON form

	"github.com/fairlead-mesh/fairlead/internal/format"
	"github.com/fairlead-mesh/fairlead/internal/streaminfo"
)

// kinds maps factory keys, and object keys that are their own factory.
var kinds = map[string]Kind{
	"istio.hashable_string": Text,
	"envoy.hashable_string": Text,
	"envoy.string":          Text,
	OriginalDstLocal:        Address,
	OriginalDstRemote:       Address,
	TransportOriginalDst:    Address,
	ApplicationProtocols:    Text,
}

// formatters are formatter extensions whose operators are built in.
var formatters = map[string]bool{
	"type.googleapis.com/envoy.extensions.formatter.cel.v3.Cel":                           true,
	"type.googleapis.com/envoy.extensions.formatter.metadata.v3.Metadata":                 true,
	"type.googleapis.com/envoy.extensions.formatter.req_without_query.v3.ReqWithoutQuery": true,
}

// Decode validates a list of values; path is their proto path.
func Decode(ms []*set_filter_statev3pb.FilterStateValue, path string) ([]Value, error) {
	out := make([]Value, 0, len(ms))
	for i, m := range ms {
		v, err := decode(m)
		if err != nil {
			return nil, fmt.Errorf("%s[%d].%w", path, i, err)
		}
		out = append(out, v)
	}
	return out, nil
}

func decode(m *set_filter_statev3pb.FilterStateValue) (Value, error) {
	v := Value{Key: m.GetObjectKey(), SkipIfEmpty: m.GetSkipIfEmpty(), ReadOnly: m.GetReadOnly()}
	v.Identity = v.Key == PeerPrincipal || v.Key == LocalPrincipal
	if v.Key == "" {
		return v, errors.New("object_key: must not be empty")
	}
	factory := m.GetFactoryKey()
	if factory == "" {
		factory = v.Key
	}
	var ok bool
	if v.Kind, ok = kinds[factory]; !ok {
		return v, fmt.Errorf("factory_key: no object factory is called %q", factory)
	}
	switch m.GetSharedWithUpstream() {
	case set_filter_statev3pb.FilterStateValue_NONE:
	case set_filter_statev3pb.FilterStateValue_ONCE:
		v.Sharing = streaminfo.SharingOnce
	case set_filter_statev3pb.FilterStateValue_TRANSITIVE:
		v.Sharing = streaminfo.SharingTransitive
	default:
		return v, fmt.Errorf("shared_with_upstream: %d is not supported", m.GetSharedWithUpstream())
	}
	src, err := decodeFormat(m.GetFormatString())
	if err != nil {
		return v, fmt.Errorf("format_string.%w", err)
	}
	if v.Format, err = format.Compile(src); err != nil {
		return v, fmt.Errorf("format_string: %w", err)
	}
	if m.GetFormatString().GetOmitEmptyValues() {
		v.Format = v.Format.OmitEmpty()
	}
	return v, nil
}

func decodeFormat(m *corev3pb.SubstitutionFormatString) (string, error) {
	for i, f := range m.GetFormatters() {
		if u := f.GetTypedConfig().GetTypeUrl(); !formatters[u] {
			return "", fmt.Errorf("formatters[%d]: formatter %s is not supported", i, u)
		}
	}
	switch x := m.GetFormat().(type) {
	case *corev3pb.SubstitutionFormatString_TextFormat:
		return x.TextFormat, nil
	case *corev3pb.SubstitutionFormatString_TextFormatSource:
		switch s := x.TextFormatSource.GetSpecifier().(type) {
		case *corev3pb.DataSource_InlineString:
			return s.InlineString, nil
		case *corev3pb.DataSource_InlineBytes:
			return string(s.InlineBytes), nil
		}
		return "", errors.New("text_format_source: only inline strings are supported")
	}
	return "", fmt.Errorf("format: %T is not supported", m.GetFormat())
}
