package ratelimit

import (
	"fmt"
	"strings"
	"testing"

	routev3pb "github.com/envoyproxy/go-control-plane/envoy/config/route/v3"
	"google.golang.org/protobuf/encoding/protojson"

	"github.com/fairlead-mesh/fairlead/internal/message"
	"github.com/fairlead-mesh/fairlead/internal/streaminfo"
)

const expression = `{"extension":{"name":"e","typedConfig":{"@type":"type.googleapis.com/envoy.extensions.rate_limit_descriptors.expr.v3.Descriptor",`

func TestFromProto(t *testing.T) {
	h := &message.Header{}
	h.Add(message.Path, "/p?q=one")
	h.Add("x-user", "me")
	info := &streaminfo.Info{Conn: &streaminfo.Conn{}}
	info.Metadata.Set("ns", "k", "gold")
	in := &Input{Info: info, Request: h, Cluster: "c", Node: "n"}
	const key = `"metadataKey":{"key":"ns","path":[{"key":"k"}]}`
	for _, c := range []struct{ name, json, want string }{
		{"clusters", `{"actions":[{"sourceCluster":{}},{"destinationCluster":{}}]}`, "source_cluster=n destination_cluster=c"},
		{"a header, whatever its case", `{"actions":[{"requestHeaders":{"headerName":"X-User","descriptorKey":"u"}}]}`, "u=me"},
		{"a generic key", `{"actions":[{"genericKey":{"descriptorValue":"v"}}]}`, "generic_key=v"},
		{"a generic key of a name", `{"actions":[{"genericKey":{"descriptorKey":"k","descriptorValue":"%REQ(x-user)%"}}]}`, "k=me"},
		{"a header that matches", `{"actions":[{"headerValueMatch":{"descriptorValue":"v","headers":[{"name":"x-user","stringMatch":{"exact":"me"}}]}}]}`, "header_match=v"},
		{"a header that must not match", `{"actions":[{"headerValueMatch":{"descriptorValue":"v","expectMatch":false,"headers":[{"name":"x-user","stringMatch":{"exact":"me"}}]}}]}`, "none"},
		{"a query parameter", `{"actions":[{"queryParameters":{"queryParameterName":"q","descriptorKey":"k"}}]}`, "k=one"},
		{"a query parameter that must not match", `{"actions":[{"queryParameterValueMatch":{"descriptorValue":"v","expectMatch":false,"queryParameters":[{"name":"q","stringMatch":{"exact":"two"}}]}}]}`, "query_match=v"},
		{"metadata", `{"actions":[{"metadata":{"descriptorKey":"m",` + key + `}}]}`, "m=gold"},
		{"dynamic metadata", `{"actions":[{"dynamicMetadata":{"descriptorKey":"m",` + key + `}}]}`, "m=gold"},
		{"metadata of the route", `{"actions":[{"metadata":{"descriptorKey":"m","source":"ROUTE_ENTRY","defaultValue":"d",` + key + `}}]}`, "m=d"},
		{"an override and hits", `{"actions":[{"sourceCluster":{}}],"limit":{"rateLimit":{"requestsPerUnit":3,"unit":"HOUR"}},"hitsAddend":{"number":4}}`, "source_cluster=n 3/3 +4"},
		{"on completion", `{"applyOnStreamDone":true,"actions":[{"sourceCluster":{}}]}`, "source_cluster=n"},
		{"no action", `{"actions":[{"sourceCluster":{}},{}]}`, "actions[1].action_specifier: "},
		{"an extension", `{"actions":[{"extension":{"name":"x"}}]}`, "actions[0].extension.typed_config.type_url: "},
		{"an expression", `{"actions":[` + expression + `"descriptorKey":"k","text":"request.path"}}}]}`, "k=/p?q=one"},
		{"an expression that is no string", `{"actions":[` + expression + `"descriptorKey":"k","text":"1 + 2"}}}]}`, "k=3"},
		{"an expression that fails", `{"actions":[{"remoteAddress":{}},` + expression + `"descriptorKey":"k","text":"request.headers['none']"}}}]}`, "none"},
		{"an expression that may fail", `{"actions":[{"genericKey":{"descriptorValue":"g"}},` + expression + `"descriptorKey":"k","skipIfError":true,"text":"request.headers['none']"}}}]}`, "generic_key=g"},
		{"a broken expression", `{"actions":[` + expression + `"descriptorKey":"k","text":"("}}}]}`, "actions[0].extension.typed_config.text: "},
		{"an expression without a key", `{"actions":[` + expression + `"text":"1"}}}]}`, "actions[0].extension.typed_config.descriptor_key: "},
		{"a broken format of hits", `{"hitsAddend":{"format":"%NONSENSE%"}}`, "hits_addend.format: "},
		{"a broken value", `{"actions":[{"genericKey":{"descriptorValue":"%NONSENSE%"}}]}`, "actions[0].generic_key.descriptor_value: "},
		{"a broken range", `{"actions":[{"remoteAddressMatch":{"addressMatcher":{"ranges":[{"addressPrefix":"x"}]}}}]}`, "actions[0].remote_address_match.address_matcher.ranges[0].address_prefix: "},
	} {
		t.Run(c.name, func(t *testing.T) {
			m := &routev3pb.RateLimit{}
			if err := protojson.Unmarshal([]byte(c.json), m); err != nil {
				t.Fatal(err)
			}
			l, err := FromProto(m)
			got := "none"
			if err != nil {
				got = err.Error()
			} else if d, ok := l.Describe(in); ok {
				var parts []string
				for _, e := range d.Entries {
					parts = append(parts, e.Key+"="+e.Value)
				}
				if o := d.Override; o != nil {
					parts = append(parts, fmt.Sprintf("%d/%d", o.Requests, o.Unit))
				}
				if d.Hits != nil {
					parts = append(parts, fmt.Sprintf("+%d", *d.Hits))
				}
				got = strings.Join(parts, " ")
			}
			if got != c.want && (err == nil || !strings.HasPrefix(got, c.want)) {
				t.Errorf("%q, want %q", got, c.want)
			}
		})
	}
}
