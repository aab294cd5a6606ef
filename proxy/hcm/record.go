package hcm

import (
	"github.com/fairlead-mesh/fairlead/internal/message"
	"github.com/fairlead-mesh/fairlead/internal/refusal"
	"github.com/fairlead-mesh/fairlead/routing"
)

// hide takes out of the heads, which have been sent, what logs must not hold.
func (st *stream) hide() {
	s := &st.s
	heads := []*message.Header{&s.Request}
	if s.Response != nil {
		heads = append(heads, &s.Response.Header, s.Response.Body.Trailers())
	}
	for _, h := range heads {
		for i := 0; h != nil && i < h.Len(); i++ {
			if v := h.At(i).Value; v != "" {
				h.SetAt(i, s.Info.Show(v))
			}
		}
	}
}

// nameCluster records where a request would have gone that was answered before
// the router: as in Envoy, logs and metrics name its cluster.
func (st *stream) nameCluster() {
	info, r := &st.s.Info, st.s.Route
	if info.Upstream.ClusterRaw != "" || r == nil || st.m.cfg.Clusters == nil {
		return
	}
	name := r.ClusterName()
	if rt, ok := r.(*routing.Route); ok && name == "" {
		name = rt.Cluster(&st.s)
	}
	if name != "" {
		st.m.cfg.Clusters.DescribeCluster(name, &info.Upstream)
	}
}

// refused records a stream that was answered here. It runs before the filters
// and the logs, which may change the record, and only then.
func (st *stream) refused(local bool) {
	defer st.contain()
	if !refusal.Wanted(&st.s.Info, local) {
		return
	}
	var h *message.Header
	if st.s.Response != nil {
		h = &st.s.Response.Header
	}
	cluster := ""
	if r := st.s.Route; r != nil {
		cluster = r.ClusterName()
	}
	st.m.cfg.Refusals.HTTP(&refusal.Stream{Info: &st.s.Info, Request: &st.s.Request, Response: h, Local: local, Cluster: cluster})
}

// code counts a response by its status; 0 is none.
func (t *managerStats) code(status int) {
	if class := status / 100; class > 0 && class < len(t.rqClass) {
		t.rqCompleted.Inc()
		t.rqClass[class].Inc()
	}
}
