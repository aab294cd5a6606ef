package proxy

import (
	"crypto/sha256"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"slices"
	"strings"

	"github.com/fairlead-mesh/fairlead/filters"
	"github.com/fairlead-mesh/fairlead/internal/streaminfo"
	"github.com/fairlead-mesh/fairlead/xdsclient/xdsresource"
)

// filterKey identifies a compiled filter by content: equal configuration, the
// same object, whatever chain it stands in.
type filterKey struct {
	name, typeURL, direction string
	manager                  string // its stat_prefix
	base, override           xdsresource.Digest
	modules                  string // the condition that it is in
}

// filterRef is an interned filter with the number of its holders.
type filterRef struct {
	key    filterKey
	filter filters.HTTPFilter
	refs   int
}

// filterPool interns compiled HTTP filters. It belongs to the goroutine that
// applies configuration.
type filterPool struct {
	m map[filterKey]*filterRef
}

func (p *filterPool) acquire(k filterKey, compile func() (filters.HTTPFilter, error)) (*filterRef, error) {
	if r := p.m[k]; r != nil {
		r.refs++
		return r, nil
	}
	f, err := compile()
	if err != nil {
		return nil, err
	}
	if p.m == nil {
		p.m = map[filterKey]*filterRef{}
	}
	r := &filterRef{key: k, filter: f, refs: 1}
	p.m[k] = r
	return r, nil
}

// release drops one hold and closes the filter with the last one.
func (p *filterPool) release(refs []*filterRef, log *slog.Logger) {
	for _, r := range refs {
		if r.refs--; r.refs > 0 {
			continue
		}
		delete(p.m, r.key)
		if c, ok := r.filter.(io.Closer); ok {
			closeFilter(log, r.key.name, c)
		}
	}
}

// chainBuilder compiles the HTTP filter chains of one connection manager.
type chainBuilder struct {
	// b is the builder at work, nil in between: it knows the former snapshot, which
	// would live as long as the manager, and all that came before it.
	b         *builder
	where     string // "listener x: filter chain y"
	at        string // the same by indexes
	direction string
	manager   string // its stat_prefix
	specs     []xdsresource.HTTPFilter
	terminal  filters.HTTPFilter
	// extensions are the ECDS configurations that config_discovery resolved to.
	resolved []*xdsresource.TypedConfig
	chains   map[string][]filters.HTTPFilter
	// base are holds of the filters in the chain without overrides, which all route
	// tables have in common; refs of those in the chains that were compiled since
	// renew.
	base, refs []*filterRef
}

// begin lets b use cb until end is called.
func (cb *chainBuilder) begin(b *builder) (end func()) {
	cb.b = b
	return func() { cb.b = nil }
}

// renew starts chains anew and returns the holds of those that were compiled since
// the last time.
func (cb *chainBuilder) renew() []*filterRef {
	held := cb.refs
	cb.refs, cb.chains = nil, nil
	return held
}

// resolve links config_discovery filters; it returns the digests that the chain
// depends on beside its own.
func (cb *chainBuilder) resolve(res *Resources) {
	cb.resolved = make([]*xdsresource.TypedConfig, len(cb.specs))
	for i := range cb.specs {
		cb.resolved[i] = resolveDiscovery(res, &cb.specs[i].TypedConfig, cb.specs[i].ConfigDiscovery, asHTTP)
	}
}

// The forms of an extension configuration, whose type may be known as several
// kinds of filter.
func asHTTP(e *xdsresource.ExtensionConfig) *xdsresource.TypedConfig     { return &e.TypedConfig }
func asNetwork(e *xdsresource.ExtensionConfig) *xdsresource.TypedConfig  { return e.Network }
func asListener(e *xdsresource.ExtensionConfig) *xdsresource.TypedConfig { return e.Listener }

// resolveDiscovery returns what a filter is configured with: its own
// typed_config, the ECDS resource of its name, or the default; nil if none has
// arrived. as picks the form of the resource.
func resolveDiscovery(
	res *Resources, own *xdsresource.TypedConfig, d *xdsresource.ExtensionConfigSource, as func(*xdsresource.ExtensionConfig) *xdsresource.TypedConfig,
) *xdsresource.TypedConfig {
	if d == nil {
		return own
	}
	ext := res.Extensions[own.Name]
	if ext == nil {
		return d.Default
	}
	if len(d.TypeURLs) > 0 && !slices.Contains(d.TypeURLs, ext.TypeURL) && !slices.Contains(d.TypeURLs, ext.Wrapper) {
		refused := ext.TypedConfig
		refused.Config, refused.FailOpen, refused.Unknown = nil, false, "its type "+ext.TypeURL+" is not among the type_urls that the filter allows"
		return &refused
	}
	if tc := as(ext); tc != nil {
		return tc
	}
	return &ext.TypedConfig // of another kind: there is no factory for it
}

// chain implements routing.Options.Chain. It never fails: what can't be executed
// refuses requests in its place.
//

func (cb *chainBuilder) chain(overrides []xdsresource.Overrides) ([]filters.HTTPFilter, error) {
	var key strings.Builder
	picked := make([]*xdsresource.Override, len(cb.specs))
	for i := range cb.specs {
		if o := cb.override(i, overrides); o != nil {
			picked[i] = o
			fmt.Fprintf(&key, "%d:%x:%t;", i, o.Digest, o.Disabled)
		}
	}
	if c, ok := cb.chains[key.String()]; ok {
		return c, nil
	}
	out := make([]filters.HTTPFilter, len(cb.specs))
	for i := range cb.specs {
		out[i] = cb.filter(i, picked[i])
	}
	if cb.chains == nil {
		cb.chains = map[string][]filters.HTTPFilter{}
	}
	cb.chains[key.String()] = out
	return out, nil
}

// override returns what position i is overridden with: the nearest to the route,
// or all of them merged if the filter wants that.
func (cb *chainBuilder) override(i int, overrides []xdsresource.Overrides) *xdsresource.Override {
	name := cb.specs[i].Name
	o := mostSpecific(overrides, name)
	if o == nil || o.Disabled || o.Config == nil || cb.resolved[i] == nil {
		return o
	}
	merger, ok := cb.b.s.opt.Registry.HTTP(cb.resolved[i].TypeURL).(filters.OverrideMerger)
	if !ok {
		return o
	}
	var sum *xdsresource.Override
	for _, level := range overrides {
		next, ok := level[name]
		switch {
		case !ok || next.Disabled || next.Config == nil && next.Unknown == "":
		case next.Unknown != "":
			return &next
		case sum == nil:
			sum = &next
		default:
			digest := sha256.Sum256(append(sum.Digest[:], next.Digest[:]...))
			next.Config = merger.MergeOverrides(sum.Config, next.Config)
			copy(next.Digest[:], digest[:])
			sum = &next
		}
	}
	return sum
}

// mostSpecific returns the override of a filter that is nearest to the route. One
// that is optional and unknown is as good as not there: it must not take the
// filter with it.
func mostSpecific(overrides []xdsresource.Overrides, name string) *xdsresource.Override {
	for _, override := range slices.Backward(overrides) {
		if o, ok := override[name]; ok && (o.Unknown == "" || !o.Optional || o.Disabled) {
			return &o
		}
	}
	return nil
}

// filter compiles position i. What can't be compiled fails closed: a filter
// that answers 403 takes its place.
func (cb *chainBuilder) filter(i int, o *xdsresource.Override) filters.HTTPFilter {
	spec := &cb.specs[i]
	if spec.Router != nil {
		return cb.terminal
	}
	if o != nil && o.Disabled || o == nil && spec.Disabled {
		return nil
	}
	path := cb.where + ": http filter " + spec.Name
	defer func(at string) { cb.b.at = at }(cb.b.at)
	cb.b.at = fmt.Sprintf("%s.http_filters[%d]", cb.at, i)
	tc := cb.resolved[i]
	if tc == nil {
		cb.b.diagLate(cb.where, "http_filters["+spec.Name+"]", "error", "its configuration (ECDS) has not arrived; requests are answered 500")
		return missingConfig{}
	}
	if tc.Unknown != "" || o != nil && o.Unknown != "" {
		why := tc.Unknown
		if why == "" {
			why = o.Unknown
		}
		if tc.Unknown != "" && spec.Optional {
			cb.b.diag(cb.where, "http_filters["+spec.Name+"]", "warning", "optional filter is left out: "+why)
			return nil
		}
		if tc.Unknown != "" && tc.FailOpen {
			return cb.leaveOut(spec.Name, why)
		}
		cb.b.diag(cb.where, "http_filters["+spec.Name+"]", "error", "not executable, requests are answered 403: "+why)
		return refuse{name: spec.Name}
	}
	cond := cb.b.s.condition(tc, cb.direction)
	if cond.err != nil && cb.b.s.preparer(tc) != nil {
		return cb.unready(i, tc, &cond)
	}
	k := filterKey{
		name: spec.Name, typeURL: tc.TypeURL, direction: cb.direction, manager: cb.manager, base: tc.Digest,
		modules: cb.b.s.moduleState(tc, cb.direction),
	}
	var override filters.Config
	if o != nil {
		k.override, override = o.Digest, o.Config
	}
	ref, err := cb.b.s.filters.acquire(k, func() (filters.HTTPFilter, error) {
		fac := cb.b.s.opt.Registry.HTTP(tc.TypeURL)
		if fac == nil {
			return nil, fmt.Errorf("no filter is registered for %s", tc.TypeURL)
		}
		return contained(cb.b.s.log, spec.Name, func() (filters.HTTPFilter, error) {
			env := cb.b.s.env(spec.Name, cb.direction)
			env.HTTPStats = cb.b.s.managerStats("", cb.manager)
			env.Prepared = cond.prepared
			return fac.Compile(env, tc.Config, override)
		})
	})
	if err != nil && tc.FailOpen && override == nil {
		return cb.leaveOut(spec.Name, err.Error())
	}
	if errors.Is(err, filters.ErrModulePending) {
		cb.b.diagLate(cb.where, "http_filters["+spec.Name+"]", "error", "not executable, requests are answered 403: "+err.Error())
		return refuse{name: spec.Name, late: true}
	}
	if err != nil {
		cb.b.diag(cb.where, "http_filters["+spec.Name+"]", "error", "not executable, requests are answered 403: "+err.Error())
		cb.b.s.log.Error("http filter can't be compiled; its requests are refused", "where", path, "error", err)
		return refuse{name: spec.Name}
	}
	if cond.err != nil {
		cb.policyDecides(i, tc, cond.err)
	}
	cb.refs = append(cb.refs, ref)
	return ref.filter
}

// unready is what takes the place of a filter that can't run as it was configured,
// or not yet.
func (cb *chainBuilder) unready(i int, tc *xdsresource.TypedConfig, cond *condition) filters.HTTPFilter {
	name, err := cb.specs[i].Name, cond.err
	pending := errors.Is(err, filters.ErrModulePending)
	if pending || cond.fetched {
		cb.policyDecides(i, tc, err)
		return cb.b.s.preparer(tc).StandIn(cb.b.s.env(name, cb.direction), tc.Config, err)
	}
	if tc.FailOpen {
		return cb.leaveOut(name, err.Error())
	}
	cb.b.diag(cb.where, "http_filters["+name+"]", "error", "not executable, requests are answered 403: "+err.Error())
	return refuse{name: name}
}

// policyDecides notes that a filter does not run.
func (cb *chainBuilder) policyDecides(i int, tc *xdsresource.TypedConfig, why error) {
	severity := "error"
	if tc.FailOpen {
		severity = "warning"
	}
	cb.b.diagLate(cb.where, "http_filters["+cb.specs[i].Name+"]", severity, "the filter does not run, and its failure policy decides about requests: "+why.Error())
}

const leftOut = "not executable and left out, as its failure policy FAIL_OPEN says: "

// leaveOut is what a plugin's failStrategy FAIL_OPEN asks for.
func (cb *chainBuilder) leaveOut(name, why string) filters.HTTPFilter {
	cb.b.diag(cb.where, "http_filters["+name+"]", "warning", leftOut+why)
	return nil
}

// refuse answers 403 in place of a filter that can't be executed: what it would
// have decided is unknown, so nothing passes.
type refuse struct {
	name string
	// late: it may become executable. Until then what is open stays.
	late bool
}

func (r refuse) details() string {
	return "filter_not_executable{" + strings.ReplaceAll(r.name, " ", "_") + "}"
}

// Do implements filters.HTTPFilter.
func (r refuse) Do(s *filters.Stream, _ filters.Next) (*filters.Response, error) {
	return s.Deny(403, "filter not executable: "+r.name, r.details(), streaminfo.UnauthorizedExternalService,
		streaminfo.Decision{Filter: r.name, Reason: "filter_not_executable"}), nil
}

// Review implements filters.RequestReviewer.
func (r refuse) Review(*filters.Stream) *filters.Denied {
	if r.late {
		return nil
	}
	return notExecutable(r.name)
}

// notExecutable is how the filter called name refuses what is open.
func notExecutable(name string) *filters.Denied {
	return &filters.Denied{
		Details: refuse{name: name}.details(), Flag: streaminfo.UnauthorizedExternalService,
		Decision: &streaminfo.Decision{Filter: name, Reason: "filter_not_executable"},
	}
}

// Explain says that nothing passes here.
func (r refuse) Explain(*filters.Stream) filters.Explanation {
	return filters.Explanation{
		Verdict: filters.VerdictDeny, Status: 403, Details: r.details(),
		Text: []string{"the filter can't be executed as configured, so it refuses every request; /debug/unsupported says why"},
	}
}

// missingConfig answers as Envoy does while an ECDS filter has no configuration.
type missingConfig struct{}

// Do implements filters.HTTPFilter.
func (missingConfig) Do(s *filters.Stream, _ filters.Next) (*filters.Response, error) {
	return s.LocalReply(500, "", "no_filter_config_found", streaminfo.NoFilterConfigFound), nil
}

// Explain says that nothing passes until the configuration is here.
func (missingConfig) Explain(*filters.Stream) filters.Explanation {
	return filters.Explanation{
		Verdict: filters.VerdictDeny, Status: 500, Details: "no_filter_config_found",
		Text: []string{"the filter's configuration (ECDS) has not arrived"},
	}
}
