package mongoproxy

import (
	"testing"

	"github.com/fairlead-mesh/fairlead/filters"
	"github.com/fairlead-mesh/fairlead/filters/internal/decodetest"
)

func TestWhatWouldChangeTrafficIsRefusedTheRestReported(t *testing.T) {
	for doc, ignored := range map[string]int{
		`{"statPrefix": "m"}`:                                    1,
		`{"statPrefix": "m", "accessLog": "/dev/stdout"}`:        2,
		`{"statPrefix": "m", "emitDynamicMetadata": true}`:       -1,
		`{"statPrefix": "m", "delay": {"fixedDelay": "0.001s"}}`: -1,
	} {
		var d filters.Decoding
		cfg, err := Factory{}.Decode(filters.Any{JSON: true, Value: []byte(doc)}, &d)
		if (err != nil) != (ignored < 0) {
			t.Errorf("%s: %v", doc, err)
		}
		if err != nil {
			continue
		}
		if len(d.Ignored()) != ignored {
			t.Errorf("%s: ignored %v", doc, d.Ignored())
		}
		f, err := Factory{}.Compile(nil, cfg)
		if err != nil {
			t.Fatal(err)
		}
		if err := f.(filters.NetworkFilter).OnNewConnection(nil); err != nil {
			t.Error(err)
		}
	}
}

// FuzzDecode: both forms of a configuration give the same, what is no message is
// refused, and what is accepted compiles.
func FuzzDecode(f *testing.F) {
	f.Add([]byte(`{"statPrefix": "m"}`), true)
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
