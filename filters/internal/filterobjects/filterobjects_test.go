package filterobjects

import (
	"testing"

	set_filter_statev3pb "github.com/envoyproxy/go-control-plane/envoy/extensions/filters/common/set_filter_state/v3"
	"google.golang.org/protobuf/encoding/protojson"

	"github.com/fairlead-mesh/fairlead/internal/format"
	"github.com/fairlead-mesh/fairlead/internal/message"
	"github.com/fairlead-mesh/fairlead/internal/streaminfo"
)

func value(t *testing.T, s string) []Value {
	t.Helper()
	m := &set_filter_statev3pb.FilterStateValue{}
	if err := protojson.Unmarshal([]byte(s), m); err != nil {
		t.Fatal(err)
	}
	v, err := Decode([]*set_filter_statev3pb.FilterStateValue{m}, "values")
	if err != nil {
		t.Fatal(err)
	}
	return v
}

func TestApply(t *testing.T) {
	const text = `"factoryKey":"istio.hashable_string","formatString":{"textFormatSource":{"inlineString":`
	for _, tc := range []struct {
		name, config, key, want string
	}{
		{"an address is kept in canonical form", `{"objectKey":"envoy.filters.listener.original_dst.local_ip","formatString":{"textFormatSource":{"inlineString":"%REQ(:AUTHORITY)%"}}}`, OriginalDstLocal, "10.0.0.1:80"},
		{"a host name is no address", `{"objectKey":"envoy.filters.listener.original_dst.local_ip","formatString":{"textFormatSource":{"inlineString":"host:80"}}}`, OriginalDstLocal, "<absent>"},
		{"text of any key with its factory", `{"objectKey":"k",` + text + `"%REQ(x)%"}}}`, "k", "v"},
		{"an absent value is a dash", `{"objectKey":"k",` + text + `"%REQ(absent)%"}}}`, "k", "-"},
		{"a dash is not empty", `{"objectKey":"k","skipIfEmpty":true,` + text + `"%REQ(absent)%"}}}`, "k", "-"},
		{"an empty value is set", `{"objectKey":"k",` + text + `"%REQ(empty)%"}}}`, "k", ""},
		{"an empty value is skipped", `{"objectKey":"k","skipIfEmpty":true,` + text + `"%REQ(empty)%"}}}`, "k", "<absent>"},
		{"an absent value can be empty", `{"objectKey":"k","factoryKey":"envoy.string","formatString":{"omitEmptyValues":true,"textFormatSource":{"inlineString":"%REQ(absent)%"}}}`, "k", ""},
		{"an absent value can be skipped", `{"objectKey":"k","factoryKey":"envoy.string","skipIfEmpty":true,"formatString":{"omitEmptyValues":true,"textFormatSource":{"inlineString":"%REQ(absent)%"}}}`, "k", "<absent>"},
		{"an absent address sets nothing", `{"objectKey":"envoy.filters.listener.original_dst.local_ip","formatString":{"textFormatSource":{"inlineString":"%REQ(absent)%"}}}`, OriginalDstLocal, "<absent>"},
		{"an absent principal sets nothing", `{"objectKey":"io.istio.peer_principal",` + text + `"%DOWNSTREAM_PEER_URI_SAN%"}}}`, PeerPrincipal, "<absent>"},
		{"an empty principal sets nothing", `{"objectKey":"io.istio.local_principal",` + text + `"%REQ(empty)%"}}}`, LocalPrincipal, "<absent>"},
		{"an absent part of a longer text is a dash", `{"objectKey":"k",` + text + `"a/%REQ(absent)%"}}}`, "k", "a/-"},
		{"an absent part can be empty", `{"objectKey":"k","factoryKey":"envoy.string","formatString":{"omitEmptyValues":true,"textFormatSource":{"inlineString":"a/%REQ(absent)%"}}}`, "k", "a/"},
		{"a literal", `{"objectKey":"k",` + text + `"lit"}}}`, "k", "lit"},
	} {
		t.Run(tc.name, func(t *testing.T) {
			h := &message.Header{}
			h.Add(message.Authority, "10.0.0.1:80")
			h.Add("x", "v")
			h.Add("empty", "")
			info := &streaminfo.Info{Conn: &streaminfo.Conn{}}
			Apply(value(t, tc.config), &info.FilterState, &format.Context{Info: info, Request: h})
			got := "<absent>"
			if o := info.FilterState.Get(tc.key); o != nil {
				got = o.Serialize()
			}
			if got != tc.want {
				t.Errorf("got %q, want %q", got, tc.want)
			}
		})
	}
}

func TestReadOnlyObjectsStay(t *testing.T) {
	info := &streaminfo.Info{Conn: &streaminfo.Conn{}}
	set := func(text, more string) {
		Apply(value(t, `{"objectKey":"k","factoryKey":"envoy.string"`+more+`,"formatString":{"textFormatSource":{"inlineString":"`+text+`"}}}`), &info.FilterState, &format.Context{Info: info})
	}
	set("one", "")
	set("two", `,"readOnly":true`)
	set("three", "")
	if got := info.FilterState.GetString("k"); got != "two" {
		t.Errorf("got %q", got)
	}
}

func TestSharing(t *testing.T) {
	info := &streaminfo.Info{Conn: &streaminfo.Conn{}}
	for k, mode := range map[string]string{"a": "NONE", "b": "ONCE", "c": "TRANSITIVE"} {
		Apply(value(t, `{"objectKey":"`+k+`","factoryKey":"envoy.string","sharedWithUpstream":"`+mode+`","formatString":{"textFormatSource":{"inlineString":"x"}}}`), &info.FilterState, &format.Context{Info: info})
	}
	var hop, next streaminfo.FilterState
	info.FilterState.ShareInto(&hop)
	hop.ShareInto(&next)
	if hop.Get("a") != nil || hop.Get("b") == nil || hop.Get("c") == nil || next.Get("b") != nil || next.Get("c") == nil {
		t.Error("sharing modes are not kept")
	}
}

func TestRefuses(t *testing.T) {
	const f = `"formatString":{"textFormatSource":{"inlineString":"x"}}`
	for name, s := range map[string]string{
		"no key":              `{"factoryKey":"envoy.string",` + f + `}`,
		"unknown factory":     `{"objectKey":"k","factoryKey":"acme.object",` + f + `}`,
		"key without factory": `{"objectKey":"k",` + f + `}`,
		"no format":           `{"objectKey":"k","factoryKey":"envoy.string"}`,
		"unknown operator":    `{"objectKey":"k","factoryKey":"envoy.string","formatString":{"textFormatSource":{"inlineString":"%NOPE%"}}}`,
		"json format":         `{"objectKey":"k","factoryKey":"envoy.string","formatString":{"jsonFormat":{}}}`,
		"file":                `{"objectKey":"k","factoryKey":"envoy.string","formatString":{"textFormatSource":{"filename":"x"}}}`,
		"unknown formatter":   `{"objectKey":"k","factoryKey":"envoy.string","formatString":{"formatters":[{"name":"x"}],"textFormatSource":{"inlineString":"x"}}}`,
	} {
		m := &set_filter_statev3pb.FilterStateValue{}
		if err := protojson.Unmarshal([]byte(s), m); err != nil {
			t.Fatal(err)
		}
		if _, err := Decode([]*set_filter_statev3pb.FilterStateValue{m}, "values"); err == nil {
			t.Errorf("%s: accepted", name)
		}
	}
}

// FuzzParseAddress: an address that is read and written is read as the same.
func FuzzParseAddress(f *testing.F) {
	for _, s := range []string{"1.2.3.4:5", "[::1]:80", "[::ffff:1.2.3.4]:1", "host:80", "[fe80::1%25eth0]:80", ""} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, s string) {
		a, ok := ParseAddress(s)
		if !ok {
			return
		}
		b, ok := ParseAddress(a.String())
		if !ok || a != b {
			t.Errorf("%q is not stable: %v, %v", s, a, b)
		}
	})
}
