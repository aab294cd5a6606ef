package proxy

import (
	"fmt"
	"strings"

	"github.com/fairlead-mesh/fairlead/xdsclient/xdsresource"
)

// ecdsDigests stands for what network filters get by discovery, and for the
// modules of all of them.
func (b *builder) ecdsDigests(fc *xdsresource.FilterChain) string {
	var out strings.Builder
	for i := range fc.Filters {
		if f := &fc.Filters[i]; f.HCM == nil {
			out.WriteString(b.discovered(&f.TypedConfig, f.ConfigDiscovery, ""))
		}
	}
	return out.String()
}

// httpDigests is ecdsDigests for HTTP filters.
func (b *builder) httpDigests(specs []xdsresource.HTTPFilter, direction string) string {
	var out strings.Builder
	for i := range specs {
		f := &specs[i]
		out.WriteString(b.discovered(&f.TypedConfig, f.ConfigDiscovery, direction))
	}
	return out.String()
}

// listenerECDS is ecdsDigests for listener filters.
func (b *builder) listenerECDS(l *xdsresource.Listener) string {
	var out strings.Builder
	for i := range l.ListenerFilters {
		f := &l.ListenerFilters[i]
		out.WriteString(b.discovered(&f.TypedConfig, f.ConfigDiscovery, ""))
	}
	return out.String()
}

func (b *builder) discovered(own *xdsresource.TypedConfig, d *xdsresource.ExtensionConfigSource, direction string) string {
	tc := resolveDiscovery(b.res, own, d, asHTTP) // any form has the digest
	switch {
	case tc == nil:
		return "-;"
	case d == nil:
		return b.s.moduleState(tc, direction)
	}
	return fmt.Sprintf("%x;", tc.Digest) + b.s.moduleState(tc, direction)
}
