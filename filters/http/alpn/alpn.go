// Package alpn is Istio's alpn filter: it replaces what TLS to upstream offers
// by ALPN, so that sidecars see by the first bytes of a connection that the peer
// is in the mesh, and which HTTP it speaks.
package alpn

import (
	"fmt"

	"github.com/fairlead-mesh/fairlead/filters"
	"github.com/fairlead-mesh/fairlead/filters/internal/filterobjects"
	"github.com/fairlead-mesh/fairlead/internal/message"
	"github.com/fairlead-mesh/fairlead/internal/streaminfo"
)

// Factory makes alpn filters.
type Factory struct{}

// TypeURLs implements filters.HTTPFactory.
func (Factory) TypeURLs() []string { return []string{typeURL} }

// Compile implements filters.HTTPFactory.
func (Factory) Compile(env *filters.Env, base, override filters.Config) (filters.HTTPFilter, error) {
	c, ok := base.(*Config)
	if !ok || override != nil {
		return nil, fmt.Errorf("istio.alpn: configuration is a %T, override a %T", base, override)
	}
	f := &filter{}
	if env != nil {
		f.clusters, _ = env.Upstreams.(clusters)
	}
	if f.clusters == nil || c.HTTP1 == "" && c.HTTP2 == "" {
		return nil, nil //nolint:nilnil // the documented "nothing to do"
	}
	// As objects once, so that a request allocates nothing.
	if c.HTTP1 != "" {
		f.http1 = streaminfo.String(c.HTTP1)
	}
	if c.HTTP2 != "" {
		f.http2 = streaminfo.String(c.HTTP2)
	}
	return f, nil
}

// clusters is what the caller of clusters knows about them.
type clusters interface {
	// ClusterMetadata returns the static metadata of a cluster, nil if unknown.
	ClusterMetadata(name string) *streaminfo.Metadata
	// HTTPVersion returns the version that a cluster is spoken to for a request
	// that came as v, 0 if unknown.
	HTTPVersion(name string, v message.Version) message.Version
}

type filter struct {
	clusters     clusters
	http1, http2 streaminfo.Object // nil: not replaced
}

// Do implements filters.HTTPFilter.
func (f *filter) Do(s *filters.Stream, next filters.Next) (*filters.Response, error) {
	f.replace(s)
	return next.Do(s)
}

// Explain does what Do does before it calls next.
func (f *filter) Explain(s *filters.Stream) filters.Explanation {
	x := filters.Explanation{Verdict: filters.VerdictPass}
	if o := f.replace(s); o != nil {
		x.Text = []string{"TLS to upstream offers " + o.Serialize()}
	}
	return x
}

// replace returns what is offered, nil for what the cluster says.
func (f *filter) replace(s *filters.Stream) streaminfo.Object {
	if s.Route == nil {
		return nil
	}
	name := s.Route.ClusterName()
	if name == "" {
		return nil
	}
	var offer streaminfo.Object
	switch f.clusters.HTTPVersion(name, s.Info.Protocol) {
	case message.HTTP11:
		offer = f.http1
	case message.HTTP2:
		offer = f.http2
	case message.HTTP10: // is not sent
	}
	if offer == nil || f.clusters.ClusterMetadata(name).Namespace("istio")["alpn_override"] == "false" {
		return nil
	}
	s.Info.FilterState.SetStatic(filterobjects.ApplicationProtocols, offer, streaminfo.SharingNone)
	return offer
}
