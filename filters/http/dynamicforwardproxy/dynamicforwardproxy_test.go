package dynamicforwardproxy

import (
	"strings"
	"testing"

	"github.com/fairlead-mesh/fairlead/filters"
	"github.com/fairlead-mesh/fairlead/filters/internal/decodetest"
)

func any(doc string) filters.Any { return filters.Any{JSON: true, Value: []byte(doc)} }

func TestOnlyWhatLeadsElsewhereIsRefused(t *testing.T) {
	for name, c := range map[string]struct{ doc, err string }{
		"istiod's":                    {`{"dnsCacheConfig": {"dnsLookupFamily": "V4_ONLY", "name": "n"}}`, ""},
		"without a cache":             {`{}`, "dns_cache_config.name"},
		"clusters below":              {`{"subClusterConfig": {}}`, "sub_cluster_config"},
		"hosts from the filter state": {`{"dnsCacheConfig": {"name": "n"}, "allowDynamicHostFromFilterState": true}`, "allow_dynamic_host"},
	} {
		var d filters.Decoding
		cfg, err := Factory{}.Decode(any(c.doc), &d)
		if (err == nil) != (c.err == "") || err != nil && !strings.Contains(err.Error(), c.err) {
			t.Errorf("%s: %v", name, err)
		}
		if err != nil {
			continue
		}
		if f, err := (Factory{}).Compile(nil, cfg, nil); f != nil || err != nil {
			t.Errorf("%s: %v, %v", name, f, err)
		}
	}
}

func TestRoutesMayRewriteTheAuthority(t *testing.T) {
	for name, c := range map[string]struct{ doc, want string }{
		"literal":           {`{"hostRewriteLiteral": "other.example"}`, "other.example"},
		"from a header":     {`{"hostRewriteHeader": "x-host"}`, "third.example"},
		"an absent header":  {`{"hostRewriteHeader": "x-none"}`, "first.example"},
		"nothing to change": {`{}`, ""},
	} {
		t.Run(name, func(t *testing.T) {
			o, err := Factory{}.DecodeOverride(any(c.doc), nil)
			if err != nil {
				t.Fatal(err)
			}
			f, err := Factory{}.Compile(nil, &Config{}, o)
			if err != nil {
				t.Fatal(err)
			}
			if (f == nil) != (c.want == "") {
				t.Fatalf("compiled %v", f)
			}
			if f == nil {
				return
			}
			stream := func() *filters.Stream {
				s := &filters.Stream{}
				s.Request.Add(":authority", "first.example")
				s.Request.Add("x-host", "third.example")
				return s
			}
			s := stream()
			_, _ = f.Do(s, filters.Next{}) // there is no next filter
			if got := s.Request.Get(":authority"); got != c.want {
				t.Errorf("%q, want %q", got, c.want)
			}
			s = stream()
			x := f.(interface {
				Explain(s *filters.Stream) filters.Explanation
			}).Explain(s)
			if got := s.Request.Get(":authority"); got != c.want || (len(x.Text) > 0) != (c.want != "first.example") {
				t.Errorf("explained: %v, %q", x, got)
			}
		})
	}
}

// FuzzDecode: both forms of a configuration and of an override give the same,
// what is no message is refused, and what is accepted compiles.
func FuzzDecode(f *testing.F) {
	f.Add([]byte(`{"dnsCacheConfig": {"name": "n"}}`), true)
	f.Add([]byte(`{"hostRewriteHeader": "x"}`), true)
	f.Fuzz(func(t *testing.T, b []byte, isJSON bool) {
		o, oerr := decodetest.Forms(t, filters.Any{TypeURL: perRouteTypeURL, JSON: isJSON, Value: b}, Factory{}.DecodeOverride)
		if oerr != nil {
			o = nil
		}
		c, err := decodetest.Forms(t, filters.Any{TypeURL: typeURL, JSON: isJSON, Value: b}, Factory{}.Decode)
		if err != nil {
			c = &Config{}
		}
		if _, err := (Factory{}).Compile(nil, c, o); err != nil {
			t.Fatal(err)
		}
	})
}
