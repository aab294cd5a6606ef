package istiostats

import (
	"strings"
	"testing"

	"github.com/fairlead-mesh/fairlead/filters"
	"github.com/fairlead-mesh/fairlead/filters/internal/decodetest"
	"github.com/fairlead-mesh/fairlead/filters/internal/istio/istiometrics"
	"github.com/fairlead-mesh/fairlead/internal/stats"
	"github.com/fairlead-mesh/fairlead/internal/streaminfo"
)

func jsonAny(s string) filters.Any {
	return filters.Any{TypeURL: istiometrics.TypeURL, JSON: true, Value: []byte(s)}
}

func TestLongConnectionsAreReportedWhileTheyLast(t *testing.T) {
	reg := &stats.Registry{}
	cfg, err := Factory{}.Decode(jsonAny(`{"reporter":"SERVER_GATEWAY"}`), nil)
	if err != nil {
		t.Fatal(err)
	}
	f, err := Factory{}.Compile(&filters.Env{Stats: reg.Scope("")}, cfg)
	if err != nil {
		t.Fatal(err)
	}
	value := func(name string) string {
		var b strings.Builder
		if err := reg.WritePrometheus(&b); err != nil {
			t.Fatal(err)
		}
		for line := range strings.SplitSeq(b.String(), "\n") {
			if strings.HasPrefix(line, name+"{") {
				return line[strings.LastIndexByte(line, ' ')+1:]
			}
		}
		return ""
	}
	c := &filters.Connection{Info: &streaminfo.Info{Conn: &streaminfo.Conn{}}}
	if err := f.(filters.NetworkFilter).OnNewConnection(c); err != nil {
		t.Fatal(err)
	}
	if !c.Observed() || value("istio_tcp_connections_opened_total") != "" {
		t.Error("counted before anything is known about the upstream")
	}
	c.Info.BytesSent = 5
	c.Progress()
	if value("istio_tcp_connections_opened_total") != "1" || value("istio_tcp_sent_bytes_total") != "5" || value("istio_tcp_connections_closed_total") == "1" {
		t.Error("progress is not reported")
	}
	c.Info.BytesSent = 9
	f.(filters.ConnectionEnder).OnConnectionEnd(c)
	if value("istio_tcp_connections_closed_total") != "1" || value("istio_tcp_sent_bytes_total") != "9" || value("istio_tcp_connections_opened_total") != "1" {
		t.Error("the end is not reported")
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
		if _, err := (Factory{}).Compile(&filters.Env{}, c); err != nil {
			t.Fatal(err)
		}
	})
}
