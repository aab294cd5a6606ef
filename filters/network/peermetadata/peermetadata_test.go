package peermetadata

import (
	"strings"
	"testing"

	"github.com/fairlead-mesh/fairlead/filters"
	"github.com/fairlead-mesh/fairlead/filters/internal/decodetest"
	"github.com/fairlead-mesh/fairlead/internal/streaminfo"
)

func TestKeepsTheBaggageOfThisWorkload(t *testing.T) {
	env := &filters.Env{Node: &filters.Node{Namespace: "app", Metadata: map[string]any{"CLUSTER_ID": "c1"}}}
	for doc, key := range map[string]string{`{"baggage_key": "io.istio.baggage"}`: "io.istio.baggage", `{}`: ""} {
		cfg, err := Factory{}.Decode(filters.Any{JSON: true, Value: []byte(doc)}, nil)
		if err != nil {
			t.Fatal(err)
		}
		f, err := Factory{}.Compile(env, cfg)
		if err != nil {
			t.Fatal(err)
		}
		c := &filters.Connection{Info: &streaminfo.Info{Conn: &streaminfo.Conn{}}}
		if err := f.(filters.NetworkFilter).OnNewConnection(c); err != nil {
			t.Fatal(err)
		}
		got := c.Info.Conn.FilterState.GetString("io.istio.baggage")
		if key == "" && got != "" || key != "" && !strings.Contains(got, "k8s.namespace.name=app") {
			t.Errorf("%s: baggage %q", doc, got)
		}
	}
}

func TestUnknownFieldsAreReported(t *testing.T) {
	var d filters.Decoding
	if _, err := (Factory{}).Decode(filters.Any{JSON: true, Value: []byte(`{"new": 1}`)}, &d); err != nil || len(d.Ignored()) != 1 {
		t.Errorf("%v, %v", err, d.Ignored())
	}
	for _, doc := range []string{`[]`, `{"baggage_key": 1}`} {
		if _, err := (Factory{}).Decode(filters.Any{JSON: true, Value: []byte(doc)}, nil); err == nil {
			t.Errorf("%s is accepted", doc)
		}
	}
}

// FuzzDecode: both forms of a configuration give the same, what is no message is
// refused, and what is accepted compiles.
func FuzzDecode(f *testing.F) {
	f.Add([]byte(`{"baggage_key": "io.istio.baggage"}`), true)
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
