package proxy

import (
	"errors"
	"fmt"

	"github.com/fairlead-mesh/fairlead/filters"
	"github.com/fairlead-mesh/fairlead/proxy/listener"
	"github.com/fairlead-mesh/fairlead/xdsclient/xdsresource"
)

// networkFilter adds f to lc. What decides about connections becomes part of lc's
// Policy.
func (b *builder) networkFilter(lc *listener.Chain, where, direction string, f *xdsresource.NetworkFilter, path string, broken func(path, why string)) {
	tc := resolveDiscovery(b.res, &f.TypedConfig, f.ConfigDiscovery, asNetwork)
	if tc == nil {
		broken(path, "its configuration (ECDS) has not arrived")
		b.diags[len(b.diags)-1].late = true
		return
	}
	v, err := b.compileNetwork(direction, f.Name, tc)
	if err != nil && tc.FailOpen {
		b.diag(where, path, "warning", leftOut+err.Error())
		return
	}
	if err != nil {
		broken(path, err.Error())
		if !errors.Is(err, filters.ErrModulePending) {
			lc.Refuses = notExecutable(f.Name)
			lc.Policy += fmt.Sprintf("!%s %s %x;", f.Name, tc.TypeURL, tc.Digest)
		}
		return
	}
	if _, ok := v.(filters.Reviewer); ok {
		lc.Policy += fmt.Sprintf("%s %s %x;", f.Name, tc.TypeURL, tc.Digest)
	}
	switch v := v.(type) {
	case nil:
	case filters.TerminalFilter:
		lc.Terminal = v
	case filters.NetworkFilter:
		lc.Network = append(lc.Network, v)
	default:
		broken(path, fmt.Sprintf("%T is no network filter", v))
	}
}

func (b *builder) compileNetwork(direction, name string, tc *xdsresource.TypedConfig) (any, error) {
	if tc.Unknown != "" {
		return nil, errors.New(tc.Unknown)
	}
	fac := b.s.opt.Registry.Network(tc.TypeURL)
	if fac == nil {
		return nil, errors.New("no network filter is registered for " + tc.TypeURL)
	}
	return contained(b.s.log, name, func() (any, error) { return fac.Compile(b.s.env(name, direction), tc.Config) })
}
