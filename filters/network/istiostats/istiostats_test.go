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

// reporting is a filter, and the value of the first series of a metric.
func reporting(t *testing.T, doc, direction string) (f any, value func(name string, labels ...string) string) {
	t.Helper()
	reg := &stats.Registry{}
	cfg, err := Factory{}.Decode(jsonAny(doc), nil)
	if err != nil {
		t.Fatal(err)
	}
	if f, err = (Factory{}).Compile(&filters.Env{Stats: reg.Scope(""), Direction: direction}, cfg); err != nil {
		t.Fatal(err)
	}
	return f, func(name string, labels ...string) string {
		var b strings.Builder
		if err := reg.WritePrometheus(&b); err != nil {
			t.Fatal(err)
		}
		for line := range strings.SplitSeq(b.String(), "\n") {
			if strings.HasPrefix(line, name+"{") && strings.Contains(line, strings.Join(labels, "")) {
				return line[strings.LastIndexByte(line, ' ')+1:]
			}
		}
		return ""
	}
}

func TestLongConnectionsAreReportedWhileTheyLast(t *testing.T) {
	f, value := reporting(t, `{"reporter":"SERVER_GATEWAY"}`, "")
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

func TestRefusedConnectionsAreOpenedAndClosed(t *testing.T) {
	f, value := reporting(t, `{"reporter":"SERVER_GATEWAY"}`, "")
	c := &filters.Connection{Info: &streaminfo.Info{Conn: &streaminfo.Conn{}}}
	f.(filters.RefusalWitness).OnConnectionRefused(c)
	for name, want := range map[string]string{"istio_tcp_connections_opened_total": "1", "istio_tcp_connections_closed_total": "1", "istio_tcp_sent_bytes_total": "0", "istio_tcp_received_bytes_total": "0"} {
		if got := value(name); got != want {
			t.Errorf("%s is %q, want %q", name, got, want)
		}
	}
}

// TestReportsWaitForThePeer: one that tells who it is over the connection, which
// a report would call unknown.
func TestReportsWaitForThePeer(t *testing.T) {
	for _, tc := range []struct {
		direction string
		label     string
		await     func(*streaminfo.Info, *streaminfo.Awaited)
	}{
		{"inbound", `source_workload="w"`, func(i *streaminfo.Info, a *streaminfo.Awaited) {
			i.Conn.FilterState.SetStatic("downstream_peer", a, streaminfo.SharingNone)
		}},
		{"outbound", `destination_workload="w"`, func(i *streaminfo.Info, a *streaminfo.Awaited) {
			i.Upstream.State = &streaminfo.FilterState{}
			i.Upstream.State.SetStatic("upstream_peer", a, streaminfo.SharingNone)
		}},
	} {
		for _, come := range []bool{true, false} {
			f, value := reporting(t, `{}`, tc.direction)
			a := &streaminfo.Awaited{}
			c := &filters.Connection{Info: &streaminfo.Info{Conn: &streaminfo.Conn{}}}
			c.Info.FilterState.Reset(&c.Info.Conn.FilterState)
			tc.await(c.Info, a)
			if err := f.(filters.NetworkFilter).OnNewConnection(c); err != nil {
				t.Fatal(err)
			}
			c.Progress()
			if got := value("istio_tcp_connections_opened_total"); got != "" {
				t.Errorf("%s: reported %q before the peer is known", tc.direction, got)
			}
			if come {
				a.Arrive(&streaminfo.Peer{Workload: "w"})
				c.Progress()
			} else {
				f.(filters.ConnectionEnder).OnConnectionEnd(c) // nobody told
			}
			if got := value("istio_tcp_connections_opened_total"); got != "1" {
				t.Errorf("%s, peer known %v: opened %q", tc.direction, come, got)
			}
			if got := value("istio_tcp_connections_opened_total", tc.label); come != (got == "1") {
				t.Errorf("%s, peer known %v: with the peer's label %q", tc.direction, come, got)
			}
		}
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
