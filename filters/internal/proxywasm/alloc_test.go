//go:build !race

package proxywasm

import (
	"testing"

	"github.com/fairlead-mesh/fairlead/filters"
)

// A request through a guest costs its context, and what the guest's changes of
// the head grow the head's memory by, now and then.
func TestARequestThroughAGuestAllocatesItsContextOnly(t *testing.T) {
	p := benchPlugin(t, "header")
	s := newStream("", nil)
	chain := []filters.HTTPFilter{p, answering{}}
	if n := testing.AllocsPerRun(1000, func() {
		if st := serveOnce(p, s, chain); st != "200" {
			t.Error(st)
		}
	}); n > 1 {
		t.Errorf("%v allocations", n)
	}
}
