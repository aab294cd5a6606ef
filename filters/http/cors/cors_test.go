package cors

import (
	"strings"
	"testing"

	"github.com/fairlead-mesh/fairlead/filters"
	"github.com/fairlead-mesh/fairlead/filters/internal/decodetest"
	"github.com/fairlead-mesh/fairlead/filters/internal/explaintest"
	"github.com/fairlead-mesh/fairlead/internal/message"
	"github.com/fairlead-mesh/fairlead/internal/streaminfo"
)

// policy is what istiod makes of a corsPolicy.
const policy = `{"allowCredentials":true,"allowHeaders":"x-h","allowMethods":"GET,POST","allowOriginStringMatch":[{"exact":"https://a.example.com"},{"safeRegex":{"regex":"^https://.*\\.example\\.com$"}}],"exposeHeaders":"x-e","filterEnabled":{"defaultValue":{"numerator":100}},"forwardNotMatchingPreflights":false,"maxAge":"60"}`

type upstream struct{}

func (upstream) Do(s *filters.Stream, _ filters.Next) (*filters.Response, error) {
	r := s.NewResponse()
	r.Header.Add(message.Status, "204")
	r.Header.Add("access-control-allow-origin", "*")
	return r, nil
}

func run(t *testing.T, config, method string, headers ...string) string {
	t.Helper()
	o, err := Factory{}.DecodeOverride(filters.Any{TypeURL: typeURLPolicy, JSON: true, Value: []byte(config)}, nil)
	if err != nil {
		t.Fatal(err)
	}
	f, err := Factory{}.Compile(nil, &Config{}, o)
	if err != nil {
		t.Fatal(err)
	}
	s := &filters.Stream{}
	s.Reset()
	s.Info.Conn = &streaminfo.Conn{}
	s.Request.Add(message.Method, method)
	for i := 0; i < len(headers); i += 2 {
		s.Request.Add(headers[i], headers[i+1])
	}
	q := explaintest.Ask(t, f, s)
	s.SetChain([]filters.HTTPFilter{f, upstream{}})
	r, err := filters.Start(s)
	if err != nil {
		t.Fatal(err)
	}
	q.Agrees(t, s, !r.Local, nil)
	var b strings.Builder
	for i := range r.Header.Len() {
		h := r.Header.At(i)
		b.WriteString(strings.TrimPrefix(h.Name, "access-control-") + "=" + h.Value + " ")
	}
	return strings.TrimSpace(b.String())
}

func TestCORS(t *testing.T) {
	preflight := []string{"origin", "https://a.example.com", "access-control-request-method", "POST"}
	for _, tc := range []struct {
		name, config, method string
		headers              []string
		want                 string
	}{
		{"preflight of an allowed origin", policy, "OPTIONS", preflight, ":status=200 allow-origin=https://a.example.com allow-credentials=true allow-methods=GET,POST allow-headers=x-h max-age=60"},
		{"preflight of an origin by regex", policy, "OPTIONS", []string{"origin", "https://b.example.com", "access-control-request-method", "GET"}, ":status=200 allow-origin=https://b.example.com allow-credentials=true allow-methods=GET,POST allow-headers=x-h max-age=60"},
		{"preflight of a foreign origin", policy, "OPTIONS", []string{"origin", "https://evil.com", "access-control-request-method", "GET"}, ":status=200"},
		{"preflight of a foreign origin, forwarded", strings.Replace(policy, `"forwardNotMatchingPreflights":false,`, "", 1), "OPTIONS", []string{"origin", "https://evil.com", "access-control-request-method", "GET"}, ":status=204 allow-origin=*"},
		{"OPTIONS without a method is no preflight", policy, "OPTIONS", []string{"origin", "https://a.example.com"}, ":status=204 allow-origin=https://a.example.com allow-credentials=true expose-headers=x-e"},
		{"a request of an allowed origin", policy, "GET", []string{"origin", "https://a.example.com"}, ":status=204 allow-origin=https://a.example.com allow-credentials=true expose-headers=x-e"},
		{"a request of a foreign origin passes unchanged", policy, "GET", []string{"origin", "https://evil.com"}, ":status=204 allow-origin=*"},
		{"a regex must match all of the origin", policy, "GET", []string{"origin", "https://x.example.com.evil.com"}, ":status=204 allow-origin=*"},
		{"no origin", policy, "GET", nil, ":status=204 allow-origin=*"},
		{"shadow mode changes nothing", `{"allowOriginStringMatch":[{"exact":"*"}],"filterEnabled":{"defaultValue":{}},"shadowEnabled":{"defaultValue":{"numerator":100}}}`, "OPTIONS", preflight, ":status=204 allow-origin=*"},
		{"any origin", `{"allowOriginStringMatch":[{"exact":"*"}]}`, "GET", []string{"origin", "null"}, ":status=204 allow-origin=null"},
		{"private network", `{"allowOriginStringMatch":[{"exact":"*"}],"allowPrivateNetworkAccess":true}`, "OPTIONS", append(preflight, "access-control-request-private-network", "true"), ":status=200 allow-origin=https://a.example.com allow-private-network=true"},
	} {
		t.Run(tc.name, func(t *testing.T) {
			if got := run(t, tc.config, tc.method, tc.headers...); got != tc.want {
				t.Errorf("got  %s\nwant %s", got, tc.want)
			}
		})
	}
}

func TestWithoutAPolicyThereIsNothingToDo(t *testing.T) {
	c, err := Factory{}.Decode(filters.Any{TypeURL: typeURL, JSON: true, Value: []byte(`{}`)}, nil)
	if err != nil {
		t.Fatal(err)
	}
	if f, err := (Factory{}).Compile(nil, c, nil); f != nil || err != nil {
		t.Errorf("%v %v", f, err)
	}
}

// FuzzDecode: both forms of a policy give the same, and with any of them the
// only origin that the filter allows is the one that asked.
func FuzzDecode(f *testing.F) {
	f.Add([]byte(policy), true, "https://a.example.com")
	f.Fuzz(func(t *testing.T, b []byte, isJSON bool, origin string) {
		o, err := decodetest.Forms(t, filters.Any{TypeURL: typeURLPolicy, JSON: isJSON, Value: b}, Factory{}.DecodeOverride)
		if err != nil {
			return
		}
		fl, err := Factory{}.Compile(nil, &Config{}, o)
		if err != nil {
			t.Fatal(err)
		}
		if fl == nil {
			return
		}
		s := &filters.Stream{}
		s.Reset()
		s.Info.Conn = &streaminfo.Conn{}
		s.Request.Add("origin", origin)
		s.SetChain([]filters.HTTPFilter{fl, upstream{}})
		r, err := filters.Start(s)
		if err != nil {
			t.Fatal(err)
		}
		if v, ok := r.Header.Lookup("access-control-allow-origin"); ok && v != "*" && (v != origin || !fl.(*filter).allowed(origin)) { // "*" is upstream's
			t.Fatalf("%q allows %q", origin, v)
		}
	})
}
