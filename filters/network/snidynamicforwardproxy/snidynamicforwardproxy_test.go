package snidynamicforwardproxy

import (
	"testing"

	"github.com/fairlead-mesh/fairlead/filters"
	"github.com/fairlead-mesh/fairlead/filters/internal/decodetest"
	"github.com/fairlead-mesh/fairlead/internal/streaminfo"
)

func TestSaysThePortForTheNamedHost(t *testing.T) {
	for name, c := range map[string]struct{ doc, sni, earlier, want string }{
		"istiod's":                  {`{"dnsCacheConfig": {"name": "n"}, "portValue": 8443}`, "a.example", "", "8443"},
		"by default":                {`{"dnsCacheConfig": {"name": "n"}}`, "a.example", "", "443"},
		"not if it was said before": {`{"dnsCacheConfig": {"name": "n"}}`, "a.example", "9443", "9443"},
		"without SNI":               {`{"dnsCacheConfig": {"name": "n"}}`, "", "", ""},
	} {
		cfg, err := Factory{}.Decode(filters.Any{JSON: true, Value: []byte(c.doc)}, nil)
		if err != nil {
			t.Fatal(err)
		}
		f, err := Factory{}.Compile(nil, cfg)
		if err != nil {
			t.Fatal(err)
		}
		conn := &filters.Connection{Info: &streaminfo.Info{Conn: &streaminfo.Conn{RequestedServerName: c.sni}}}
		if c.earlier != "" {
			conn.Info.Conn.FilterState.Set(portKey, streaminfo.String(c.earlier), streaminfo.SharingNone)
		}
		if err := f.(filters.NetworkFilter).OnNewConnection(conn); (err == nil) != (c.sni != "") {
			t.Errorf("%s: %v", name, err)
		}
		if got := conn.Info.Conn.FilterState.GetString(portKey); got != c.want {
			t.Errorf("%s: port %q, want %q", name, got, c.want)
		}
	}
}

func TestAConfigurationThatCannotWorkIsRefused(t *testing.T) {
	for _, doc := range []string{`{}`, `{"dnsCacheConfig": {"name": "n"}, "portValue": 65536}`} {
		if _, err := (Factory{}).Decode(filters.Any{JSON: true, Value: []byte(doc)}, nil); err == nil {
			t.Errorf("%s is accepted", doc)
		}
	}
}

// FuzzDecode: both forms of a configuration give the same, what is no message is
// refused, and what is accepted compiles.
func FuzzDecode(f *testing.F) {
	f.Add([]byte(`{"dnsCacheConfig": {"name": "n"}, "portValue": 443}`), true)
	f.Fuzz(func(t *testing.T, b []byte, isJSON bool) {
		c, err := decodetest.Forms(t, filters.Any{TypeURL: typeURL, JSON: isJSON, Value: b}, Factory{}.Decode)
		if err != nil {
			return
		}
		if _, err := (Factory{}).Compile(nil, c); err != nil {
			t.Fatal(err)
		}
	})
}
