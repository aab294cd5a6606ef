package alpn

import (
	"testing"

	"github.com/fairlead-mesh/fairlead/filters"
	"github.com/fairlead-mesh/fairlead/filters/internal/decodetest"
)

// config is what istiod sends to a gateway.
const config = `{"alpnOverride":[{"alpnOverride":["istio-http/1.0","istio","http/1.0"]},{"alpnOverride":["istio-h2","istio","h2"],"upstreamProtocol":"HTTP2"}]}`

func TestIsAcceptedAndReported(t *testing.T) {
	d := &filters.Decoding{}
	c, err := Factory{}.Decode(filters.Any{TypeURL: typeURL, JSON: true, Value: []byte(config)}, d)
	if err != nil || len(d.Ignored()) != 1 {
		t.Fatalf("%v %v", err, d.Ignored())
	}
	if f, err := (Factory{}).Compile(nil, c, nil); f != nil || err != nil {
		t.Errorf("%v %v", f, err)
	}
}

// FuzzDecode: both forms of a configuration give the same, and what is no
// message is refused.
func FuzzDecode(f *testing.F) {
	f.Add([]byte(config), true)
	f.Fuzz(func(t *testing.T, b []byte, isJSON bool) {
		_, _ = decodetest.Forms(t, filters.Any{TypeURL: typeURL, JSON: isJSON, Value: b}, Factory{}.Decode)
	})
}
