package corpus

import (
	"net/http"
	"slices"
	"strings"
	"testing"

	hcmv3pb "github.com/envoyproxy/go-control-plane/envoy/extensions/filters/network/http_connection_manager/v3"
)

// What isn't executed closes the chains that hold it, no others, and is
// reported by name with the chain.
func TestAFilterThatIsNotExecutedClosesItsChain(t *testing.T) {
	for name, want := range map[string]int{"waypoint-rich": 30, "ingress": 5, "ingress-multinetwork": 5} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			w := start(t, name, nil)
			w.callers = expectations[name].callers
			seen := map[string]bool{}
			for _, d := range w.doors(t) {
				if seen[d.chain] {
					continue
				}
				seen[d.chain] = true
				filters := w.notExecuted(d.chain, expectations[name].taken)
				if len(filters) == 0 {
					continue
				}
				want--
				for _, f := range filters {
					if !w.reported(d.chain, f) {
						t.Errorf("%s of %s is not reported", f, d.chain)
					}
				}
				w.closed(d, filters)
			}
			if want != 0 {
				t.Errorf("%d chains more than expected are open", want)
			}
		})
	}
}

// notExecuted lists the filters of a chain that are known to be none of ours.
func (w *world) notExecuted(chain string, outs []*taken) []string {
	var out []string
	is := func(filter string) bool {
		for _, k := range outs {
			if k.why == notExecuted && k.is(chain, filter) {
				return true
			}
		}
		return false
	}
	for _, f := range w.chain(chain).GetFilters() {
		if is(f.GetName()) {
			out = append(out, f.GetName())
		}
		var hcm hcmv3pb.HttpConnectionManager
		if a := f.GetTypedConfig(); a == nil || !unpack(w.t, a, &hcm) {
			continue
		}
		for _, h := range hcm.GetHttpFilters() {
			if is(h.GetName()) {
				out = append(out, h.GetName())
			}
		}
	}
	return out
}

func (w *world) reported(chain, filter string) bool {
	for _, d := range w.proxy.Server().Snapshot().Diagnostics {
		s := d.String()
		if strings.Contains(s, chain) && strings.Contains(s, filter) {
			return true
		}
	}
	return false
}

// closed asks for something through d, which must be refused: as forbidden, or as
// Envoy refuses where a filter did not come, because its resource was refused.
func (w *world) closed(d door, filters []string) {
	hcm, _ := terminal(w.t, w.chain(d.chain))
	if hcm == nil {
		w.refused(d)
		return
	}
	vh := w.table(hcm).GetVirtualHosts()[0]
	r := vh.GetRoutes()[len(vh.GetRoutes())-1]
	q := satisfying(w.t, vh.GetDomains()[0], r)
	want := []int{http.StatusForbidden}
	if slices.ContainsFunc(filters, func(f string) bool { return strings.HasPrefix(f, "extensions.istio.io/") }) {
		want = append(want, http.StatusInternalServerError)
	}
	if got := w.send(d, q, r.GetName()); got != nil && !slices.Contains(want, got.status) && vh.GetRequireTls() == 0 {
		w.t.Errorf("%v %s: status %d, want one of %d", d, q.path, got.status, want)
	}
}
