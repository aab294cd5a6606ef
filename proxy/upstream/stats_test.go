package upstream

import (
	"context"
	"errors"
	"io"
	"net/netip"
	"strings"
	"testing"

	"github.com/fairlead-mesh/fairlead/internal/netio"
	"github.com/fairlead-mesh/fairlead/internal/stats"
	"github.com/fairlead-mesh/fairlead/proxy/transport"
	"github.com/fairlead-mesh/fairlead/xdsclient/xdsresource"
)

// counted is a cluster, and the value of a series of it.
func counted(t *testing.T, edit func(*Options)) (*Cluster, func(series string) string) {
	t.Helper()
	reg := &stats.Registry{}
	m := newTestManager(t, &origin{}, func(o *Options) {
		o.Stats = reg.Scope("")
		if edit != nil {
			edit(o)
		}
	})
	m.Apply([]*xdsresource.Cluster{cluster("a", "10.0.0.1:80")})
	return m.Cluster("a"), func(series string) string {
		name, label, _ := strings.Cut(series, " ")
		var b strings.Builder
		if err := reg.WritePrometheus(&b); err != nil {
			t.Fatal(err)
		}
		for line := range strings.Lines(b.String()) {
			if strings.HasPrefix(line, "envoy_cluster_"+name+"{") && strings.Contains(line, label) {
				return strings.TrimSpace(line[strings.LastIndexByte(line, ' '):])
			}
		}
		return ""
	}
}

func TestResponsesAreCountedByWhereTheRequestCameFrom(t *testing.T) {
	c, value := counted(t, nil)
	for range 2 {
		c.CountCode(200, false)
		c.CountCode(503, true)
	}
	c.CountCode(204, false)
	c.CountCode(42, false) // no status
	for series, want := range map[string]string{
		"upstream_rq_completed": "6", `upstream_rq_xx class="2"`: "3", `upstream_rq code="200"`: "2", `upstream_rq code="503"`: "2",
		"external_upstream_rq_completed": "3", `external_upstream_rq_xx class="2"`: "3", `external_upstream_rq_xx class="5"`: "0", `external_upstream_rq code="204"`: "1",
		"internal_upstream_rq_completed": "2", `internal_upstream_rq_xx class="5"`: "2", `internal_upstream_rq code="503"`: "2", `internal_upstream_rq code="200"`: "",
	} {
		if got := value(series); got != want {
			t.Errorf("%s is %q, want %q", series, got, want)
		}
	}
	if a := testing.AllocsPerRun(100, func() { c.CountCode(200, false) }); a != 0 {
		t.Errorf("%v allocations", a)
	}
}

func TestTheSideThatEndsAConnectionIsCounted(t *testing.T) {
	var far netio.Conn
	var fail error
	c, value := counted(t, func(o *Options) {
		o.Dial = func(context.Context, netip.AddrPort, netio.DialOptions) (netio.Conn, error) {
			if fail != nil {
				return nil, fail
			}
			var near netio.Conn
			near, far = netio.Pipe(netip.AddrPort{}, netip.AddrPort{})
			return near, nil
		}
	})
	for _, byUpstream := range []bool{true, false, false} {
		conn, err := c.Connect(context.Background(), pick(t, c), &ConnectOptions{})
		if err != nil {
			t.Fatal(err)
		}
		if byUpstream {
			_ = far.Close()
		}
		_ = conn.Close()
		_ = far.Close()
	}
	fail = errors.New("refused")
	if _, err := c.Connect(context.Background(), pick(t, c), &ConnectOptions{}); err == nil {
		t.Fatal("connected")
	}
	for series, want := range map[string]string{
		"upstream_cx_destroy": "4", "upstream_cx_destroy_local": "2", "upstream_cx_destroy_remote": "2",
		"upstream_cx_destroy_with_active_rq": "0", "upstream_cx_destroy_local_with_active_rq": "0",
	} {
		if got := value(series); got != want {
			t.Errorf("%s is %q, want %q", series, got, want)
		}
	}
	for _, tc := range []struct {
		err  error
		peer bool
	}{
		{nil, false},
		{netio.ErrClosed, false},
		{io.EOF, true},
		{netio.ErrReset, true},
		{&transport.ResetError{Reason: transport.ConnectionTermination}, true},
		{&transport.ResetError{Reason: transport.RemoteReset}, true},
		{&transport.ResetError{Reason: transport.LocalReset}, false},
		{&transport.ResetError{Reason: transport.ProtocolError}, false},
	} {
		if got := byPeer(tc.err); got != tc.peer {
			t.Errorf("%v: by the peer %v", tc.err, got)
		}
	}
}

// In a mesh that changes, what is gone must not be counted for ever.
func TestTheMetricsOfAClusterEndWithIt(t *testing.T) {
	c, value := counted(t, nil)
	c.CountCode(200, false)
	named := cluster("b", "10.0.0.2:80")
	named.AltStatName = "a"
	for _, step := range []struct {
		what     string
		clusters []*xdsresource.Cluster
		want     string
	}{
		{"another has its name", []*xdsresource.Cluster{named}, "1"},
		{"it came back", []*xdsresource.Cluster{cluster("a", "10.0.0.1:80")}, "1"},
		{"it is gone", nil, ""},
		{"it is new", []*xdsresource.Cluster{cluster("a", "10.0.0.1:80")}, "1"},
	} {
		c.m.Apply(step.clusters)
		for _, spec := range step.clusters {
			c.m.Cluster(spec.Name).CountCode(404, false)
		}
		if got := value(`upstream_rq code="200"`); step.want == "1" && step.what != "it is new" && got != "1" || step.want == "" && got != "" {
			t.Errorf("%s: %q", step.what, got)
		}
		if got := value(`upstream_rq code="404"`); (got == "") != (step.want == "") {
			t.Errorf("%s: %q answers of 404", step.what, got)
		}
	}
	if got := value(`upstream_rq code="404"`); got != "1" {
		t.Errorf("a new cluster begins with %q answers", got)
	}
}
