package istiostats

import (
	"strings"
	"testing"

	"github.com/fairlead-mesh/fairlead/filters"
	"github.com/fairlead-mesh/fairlead/filters/internal/decodetest"
	"github.com/fairlead-mesh/fairlead/filters/internal/istio/istiometrics"
	"github.com/fairlead-mesh/fairlead/internal/message"
	"github.com/fairlead-mesh/fairlead/internal/stats"
	"github.com/fairlead-mesh/fairlead/internal/streaminfo"
)

func jsonAny(s string) filters.Any {
	return filters.Any{TypeURL: istiometrics.TypeURL, JSON: true, Value: []byte(s)}
}

// deny refuses before istio.stats runs.
type deny struct{}

func (deny) Do(s *filters.Stream, _ filters.Next) (*filters.Response, error) {
	return s.LocalReply(403, "no", "denied", 0), nil
}

func TestRequestsRefusedByEarlierFiltersCount(t *testing.T) {
	reg := &stats.Registry{}
	c, err := Factory{}.Decode(jsonAny(`{"reporter":"SERVER_GATEWAY"}`), nil)
	if err != nil {
		t.Fatal(err)
	}
	f, err := Factory{}.Compile(&filters.Env{Stats: reg.Scope("")}, c, nil)
	if err != nil {
		t.Fatal(err)
	}
	s := &filters.Stream{}
	s.Reset()
	s.Info.Conn = &streaminfo.Conn{}
	s.Request.Add(message.Method, "GET")
	s.SetChain([]filters.HTTPFilter{deny{}, f})
	r, err := filters.Start(s)
	if err != nil {
		t.Fatal(err)
	}
	f.(filters.StreamEnder).OnStreamEnd(s, r)
	var b strings.Builder
	if err := reg.WritePrometheus(&b); err != nil {
		t.Fatal(err)
	}
	if !strings.Contains(b.String(), `response_code="403"`) {
		t.Error("the refused request is not counted")
	}
}

// FuzzDecode: both forms of a configuration give the same, what is no message is
// refused, and what is accepted compiles.
func FuzzDecode(f *testing.F) {
	f.Add([]byte(`{"reporter":"SERVER_GATEWAY"}`))
	f.Fuzz(func(t *testing.T, b []byte) {
		c, err := decodetest.Forms(t, jsonAny(string(b)), Factory{}.Decode)
		if err != nil {
			return
		}
		if _, err := (Factory{}).Compile(&filters.Env{}, c, nil); err != nil {
			t.Fatal(err)
		}
	})
}
