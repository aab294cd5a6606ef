package xdsclient_test

import (
	"fmt"
	"slices"
	"syscall"
	"testing"
	"time"

	"github.com/fairlead-mesh/fairlead/internal/xdstest"
	"github.com/fairlead-mesh/fairlead/xdsclient"
)

func TestABadFirstResponseIsRefusedAndNothingOfItHeld(t *testing.T) {
	h := start(t, map[string]string{"cds/a": "bad", "lds/l": "L"}, nil)
	h.wantView("lds/l=L")
	h.await("nack", func(rs []xdstest.Request) bool {
		return slices.Contains(script(rs, false), "cds nack(a: field x: out of range)")
	})
	if st := h.client.Status().Types[0]; len(st.Rejected) != 1 || st.Rejected[0].Serving || st.Nacks != 1 {
		t.Errorf("status = %+v", st)
	}
	h.set("cds/a", "A")
	h.wantView("cds/a=A lds/l=L")
}

// A marker behind the pushes shows that all of them have arrived.
func TestContradictingPushesEndInTheLast(t *testing.T) {
	h := start(t, map[string]string{"cds/a": "A -> eds/a", "eds/a": "1", "lds/l": "0"}, nil)
	h.wantView("cds/a=A eds/a=1 lds/l=0")
	const pushes = 500
	for i := range pushes {
		h.set("cds/a", []string{"A -> eds/a", "B"}[i%2])
	}
	h.set("lds/l", "1")
	v := h.wantView("cds/a=B lds/l=1")
	if v.Generation >= pushes {
		t.Errorf("%d pushes made %d views: they do not coalesce", pushes, v.Generation)
	}
	if st := h.client.Status(); st.Streams != 1 || st.Err != nil {
		t.Errorf("status = %+v", st)
	}
}

// All clusters and endpoints are there in five seconds, and a change of one among
// them is told at once and makes no view.
// processors is the time that the process had processors so far: others may need
// them, too.
func processors(t *testing.T) time.Duration {
	t.Helper()
	var r syscall.Rusage
	if err := syscall.Getrusage(syscall.RUSAGE_SELF, &r); err != nil {
		t.Fatal(err)
	}
	return time.Duration(r.Utime.Nano() + r.Stime.Nano())
}

func TestTenThousandClustersAndAChangeOfOne(t *testing.T) {
	if testing.Short() {
		t.Skip("20,000 resources")
	}
	n := 10_000
	if raced { // which makes it ten times as long
		n = 1000
	}
	seed := map[string]string{"lds/l": "L"}
	for i := range n {
		seed[fmt.Sprint("cds/", i)], seed[fmt.Sprint("eds/", i)] = fmt.Sprint("C -> eds/", i), "1"
	}
	began := processors(t)
	h := start(t, seed, nil)
	var v *xdsclient.View
	h.until("a view of all", func() bool {
		if len(h.views) > 0 {
			v = h.views[len(h.views)-1]
		}
		return v != nil && len(v.Sorted(xdstest.Cluster)) == n && len(v.Sorted(xdstest.Endpoints)) == n
	})
	all := processors(t) - began
	if all > 5*time.Second {
		t.Errorf("%d clusters took %v", n, all)
	}
	began = processors(t)
	h.set("eds/42", "2")
	h.until("the change", func() bool { return slices.Contains(h.eds, "42=2") })
	one := processors(t) - began
	if one > time.Second {
		t.Errorf("one change took %v", one)
	}
	if g := h.client.View().Generation; g != v.Generation {
		t.Errorf("the change of an endpoint made view %d after %d", g, v.Generation)
	}
	t.Logf("%d clusters after %v, one change after %v", n, all.Round(time.Millisecond), one.Round(100*time.Microsecond))
}
