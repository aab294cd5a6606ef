package proxy

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"maps"
	"os"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/fairlead-mesh/fairlead/internal/stats"
	"github.com/fairlead-mesh/fairlead/proxy/bootstrap"
	"github.com/fairlead-mesh/fairlead/xdsclient"
	"github.com/fairlead-mesh/fairlead/xdsclient/filesource"
	"github.com/fairlead-mesh/fairlead/xdsclient/xdsresource"
)

// How long what files configure waits for what it needs from the control plane:
// the first configuration, and a reference that is new.
const (
	holdFirst = 15 * time.Second
	holdNew   = 2 * time.Second
)

// sources brings together what the control plane and watched files configure:
// both may refer to resources of the other.
type sources struct {
	s     *Server
	types []xdsclient.ResourceType
	files *filesource.Source
	apis  *apis // nil: there are no servers to ask
	// fixed are what the bootstrap wants from files, fixedAPIs from servers.
	fixed     []filesource.Ref
	fixedAPIs []apiRef
	// applied, if not nil, is told of each configuration that was put in force.
	applied func(error)

	mu     sync.Mutex // one Apply at a time
	client *xdsclient.Client
	view   *xdsclient.View // nil before the first
	ads    *Resources      // of a View, nil before the first
	other  elsewhere       // what ads refers to
	asked  []xdsclient.Key
	wanted []filesource.Ref
	asks   []apiRef // of servers
	eds    map[string]*xdsresource.ClusterLoadAssignment
	hold   *time.Timer // runs while files wait for the control plane, or all for a server
	closed bool
}

func newSources(s *Server, dec *xdsresource.Decoder, sc *stats.Scope, log *slog.Logger) *sources {
	c := &sources{s: s, eds: map[string]*xdsresource.ClusterLoadAssignment{}}
	decoders := map[string]xdsclient.Decoder{}
	c.types = s.XDSTypes(dec)
	for _, t := range c.types {
		decoders[t.TypeURL] = t.Decode
	}
	c.files = filesource.New(filesource.Config{Decode: decoders, OnChange: c.onFiles, Logger: log, Stats: sc})
	return c
}

// serve lets servers of api_config_source be asked, which connect reaches.
func (c *sources) serve(connect func(xdsresource.APIServer) (xdsclient.Config, error), reg *stats.Registry) {
	c.apis = &apis{types: map[string]xdsclient.ResourceType{}, connect: connect, changed: c.onServers, log: c.s.log, stats: reg, streams: map[apiKey]*apiStream{}}
	for _, t := range c.types {
		c.apis.types[t.TypeURL] = t
	}
}

// fromFiles lists what a bootstrap wants from files.
func fromFiles(cfg *bootstrap.Config) []filesource.Ref {
	var refs []filesource.Ref
	for typeURL, src := range map[string]*xdsresource.ConfigSource{xdsresource.ListenerType: cfg.LDS, xdsresource.ClusterType: cfg.CDS} {
		if src != nil && src.Path != "" {
			refs = append(refs, filesource.Ref{Key: xdsclient.Key{TypeURL: typeURL}, Path: src.Path, Watch: src.Watch})
		}
	}
	for _, c := range cfg.Clusters {
		refs = append(refs, fileReferences(c)...)
	}
	for _, l := range cfg.Listeners {
		refs = append(refs, fileReferences(l)...)
	}
	return refs
}

// fromServers lists what a bootstrap wants from servers of api_config_source.
func fromServers(cfg *bootstrap.Config) []apiRef {
	var refs []apiRef
	for typeURL, src := range map[string]*xdsresource.ConfigSource{xdsresource.ListenerType: cfg.LDS, xdsresource.ClusterType: cfg.CDS} {
		if src != nil && src.Cluster != "" {
			refs = append(refs, apiRef{xdsclient.Key{TypeURL: typeURL}, src.APIServer})
		}
	}
	for _, c := range cfg.Clusters {
		refs = append(refs, apiReferences(c)...)
	}
	for _, l := range cfg.Listeners {
		refs = append(refs, apiReferences(l)...)
	}
	return refs
}

// missingFiles refuses files of the bootstrap that aren't there: nothing would
// ever be served, and whoever wrote it is there to read why.
func missingFiles(cfg *bootstrap.Config) error {
	var errs []error
	for field, src := range map[string]*xdsresource.ConfigSource{"lds_config": cfg.LDS, "cds_config": cfg.CDS} {
		if src == nil || src.Path == "" {
			continue
		}
		if _, err := os.Stat(src.Path); errors.Is(err, fs.ErrNotExist) {
			errs = append(errs, fmt.Errorf("dynamic_resources.%s: path_config_source: the file %s does not exist", field, src.Path))
		}
	}
	return errors.Join(errs...)
}

// start reads the files that cfg refers to; run watches them, and asks servers.
func (c *sources) start(cfg *bootstrap.Config) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.fixed, c.fixedAPIs = fromFiles(cfg), fromServers(cfg)
	c.wantLocked(&Resources{})
	c.asked = c.adsNames()
}

// adsNames lists what files and servers hold and refers to the control plane.
func (c *sources) adsNames() []xdsclient.Key {
	out := c.files.ADS()
	if c.apis != nil {
		for _, m := range c.apis.resources() {
			for _, r := range m {
				out = append(out, references(r.Value)...)
			}
		}
		slices.SortFunc(out, func(a, b xdsclient.Key) int {
			return cmp.Or(strings.Compare(a.TypeURL, b.TypeURL), strings.Compare(a.Name, b.Name))
		})
		out = slices.Compact(out)
	}
	return out
}

// run watches files and asks servers until ctx ends.
func (c *sources) run(ctx context.Context) {
	if c.apis != nil {
		var wg sync.WaitGroup
		wg.Go(func() { c.apis.follow(ctx) })
		defer wg.Wait()
	}
	c.files.Run(ctx)
	c.mu.Lock()
	defer c.mu.Unlock()
	c.closed = true
	if c.hold != nil {
		c.hold.Stop()
	}
}

// onView applies a view of the control plane's resources, with the files'.
func (c *sources) onView(v *xdsclient.View) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.view = v
	if c.hold != nil {
		c.hold.Stop()
		c.hold = nil
	}
	c.applyLocked(true)
}

// onServers applies what a server of api_config_source has sent. Secrets are given
// out at once: the connection to the control plane may need them.
func (c *sources) onServers() {
	c.mu.Lock()
	defer c.mu.Unlock()
	res := c.wantLocked(c.fromADS())
	c.s.secrets.SetADS(res.Secrets)
	if c.client != nil && c.view == nil {
		return // the first configuration waits for the control plane, or for its time
	}
	if c.hold != nil {
		if c.apis.awaited(c.limit()) > 0 {
			return
		}
		c.hold.Stop()
		c.hold = nil
	}
	c.applyLocked(true)
}

// limit is how long something new is waited for.
func (c *sources) limit() time.Duration {
	if c.s.Snapshot() == nil || !c.s.serving() {
		return holdFirst
	}
	return holdNew
}

// onFiles applies a change of files.
func (c *sources) onFiles() {
	c.mu.Lock()
	defer c.mu.Unlock()
	res := c.wantLocked(c.fromADS())
	wait := time.Duration(0)
	if c.apis != nil {
		wait = c.apis.awaited(c.limit())
	}
	if c.client != nil {
		before := c.asked
		c.asked = c.adsNames()
		if !slices.Equal(before, c.asked) {
			c.client.SetNames(c.asked)
		}
		for _, k := range c.asked {
			if !slices.Contains(before, k) {
				wait = holdNew
			}
		}
		if c.view == nil {
			wait = holdFirst
		}
	}
	switch {
	case c.hold != nil: // it applies what is there then
	case wait > 0:
		c.hold = time.AfterFunc(wait, c.release)
	default:
		c.putLocked(res)
	}
}

// release applies files although the control plane has not answered.
func (c *sources) release() {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.hold = nil
	c.applyLocked(false)
}

func (c *sources) fromADS() *Resources {
	if c.view == nil {
		return &Resources{}
	}
	if c.ads == nil || c.ads.view != c.view {
		c.ads = resourcesOf(c.view, c.ads)
	}
	return c.ads
}

// elsewhere counts who of a View refers to files and servers.
type elsewhere struct {
	view  *xdsclient.View
	files map[filesource.Ref]int
	apis  map[apiRef]int
}

// follow takes up what differs in v.
func (e *elsewhere) follow(v *xdsclient.View) {
	if e.files == nil {
		e.files, e.apis = map[filesource.Ref]int{}, map[apiRef]int{}
	}
	for _, t := range []string{xdsresource.ClusterType, xdsresource.ListenerType} {
		xdsclient.Diff(e.view, v, t, func(_ string, was, is any) {
			e.count(refsOf(was), -1)
			e.count(refsOf(is), 1)
		})
	}
	e.view = v
}

func (e *elsewhere) count(r *refs, by int) {
	for _, f := range r.files {
		if e.files[f] += by; e.files[f] == 0 {
			delete(e.files, f)
		}
	}
	for _, a := range r.apis {
		if e.apis[a] += by; e.apis[a] == 0 {
			delete(e.apis, a)
		}
	}
}

// applyLocked puts in force what there is, unless wait is set and a server is to
// bring something first.
func (c *sources) applyLocked(wait bool) {
	ads := c.fromADS()
	res := c.wantLocked(ads)
	if asked := c.adsNames(); c.client != nil && !slices.Equal(asked, c.asked) {
		c.asked = asked
		c.client.SetNames(asked)
	}
	if wait && c.apis != nil {
		if d := c.apis.awaited(c.limit()); d > 0 {
			if c.hold == nil {
				c.hold = time.AfterFunc(d, c.release)
			}
			return
		}
	}
	c.putLocked(res)
}

func (c *sources) putLocked(res *Resources) {
	if c.closed {
		return
	}
	for name, cla := range c.eds {
		if res.fileEndpoints[name] == nil {
			delete(c.eds, name)
			c.s.UpdateEndpoints(name, nil)
		} else if res.fileEndpoints[name] != cla {
			c.s.UpdateEndpoints(name, res.fileEndpoints[name])
		}
	}
	for name, cla := range res.fileEndpoints {
		if c.eds[name] == nil {
			c.s.UpdateEndpoints(name, cla)
		}
		c.eds[name] = cla
	}
	err := c.s.Apply(res)
	if err != nil && !errors.Is(err, errClosed) { // at the end pushes still come
		c.s.log.Error("applying configuration", "error", err)
	}
	if c.applied != nil {
		c.applied(err)
	}
}

// wantLocked tells files and servers what the configuration refers to, which what
// they hold may extend, and returns ads with what they have; a resource of a file
// wins over one of the same name of a server, and that over one of the control
// plane.
func (c *sources) wantLocked(ads *Resources) *Resources {
	base := refs{files: slices.Clone(c.fixed), apis: slices.Clone(c.fixedAPIs)}
	if c.s.refersElsewhere.Load() {
		c.other.follow(ads.view)
		base.files = slices.AppendSeq(base.files, maps.Keys(c.other.files))
		base.apis = slices.AppendSeq(base.apis, maps.Keys(c.other.apis))
	}
	if len(base.files)+len(base.apis)+len(c.wanted)+len(c.asks) == 0 {
		return ads
	}
	for {
		held := c.files.Resources()
		own := resourcesFrom(held)
		r := refs{files: slices.Clone(base.files), apis: slices.Clone(base.apis)}
		r.held(held)
		if c.apis != nil {
			sent := c.apis.resources()
			r.held(sent)
			own = merge(own, resourcesFrom(sent))
		}
		r.apis = slices.DeleteFunc(r.apis, func(a apiRef) bool { return c.apis == nil || !c.s.asks(a) })
		slices.SortFunc(r.files, filesource.Compare)
		slices.SortFunc(r.apis, compareRefs)
		r.files, r.apis = slices.Compact(r.files), slices.Compact(r.apis)
		if slices.Equal(r.files, c.wanted) && slices.Equal(r.apis, c.asks) {
			out := merge(own, ads)
			out.fileEndpoints = own.Endpoints
			return out
		}
		if !slices.Equal(r.files, c.wanted) {
			c.wanted = r.files
			c.files.Want(r.files)
		}
		if !slices.Equal(r.apis, c.asks) {
			c.asks = r.apis
			c.apis.want(r.apis)
		}
	}
}

// elsewhere adds what v needs from files and servers.
func (r *refs) elsewhere(v any) {
	x := refsOf(v)
	r.files, r.apis = append(r.files, x.files...), append(r.apis, x.apis...)
}

// held adds what clusters and listeners of files or servers need from such.
func (r *refs) held(m map[string]map[string]xdsclient.Resource) {
	for _, t := range []string{xdsresource.ClusterType, xdsresource.ListenerType} {
		for _, x := range m[t] {
			r.elsewhere(x.Value)
		}
	}
}

func resourcesFrom(held map[string]map[string]xdsclient.Resource) *Resources {
	return &Resources{
		Listeners:  values[*xdsresource.Listener](held[xdsresource.ListenerType]),
		Clusters:   values[*xdsresource.Cluster](held[xdsresource.ClusterType]),
		Routes:     values[*xdsresource.RouteConfiguration](held[xdsresource.RouteType]),
		Extensions: values[*xdsresource.ExtensionConfig](held[xdsresource.ExtensionConfigType]),
		Secrets:    values[*xdsresource.Secret](held[xdsresource.SecretType]),
		Endpoints:  values[*xdsresource.ClusterLoadAssignment](held[xdsresource.EndpointsType]),
	}
}

func values[T any](m map[string]xdsclient.Resource) map[string]T {
	out := make(map[string]T, len(m))
	for n, r := range m {
		if t, ok := r.Value.(T); ok {
			out[n] = t
		}
	}
	return out
}

// configured tells whether files hold or are to hold anything.
func (c *sources) configured() bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	return len(c.wanted)+len(c.asks) > 0
}

// problems lists what is wrong with files, for operators.
func (c *sources) problems() []Diagnostic {
	var out []Diagnostic
	if c.apis != nil {
		out = c.apis.problems()
	}
	for _, f := range c.files.Files() {
		if f.Err != nil {
			out = append(out, Diagnostic{Resource: f.TypeURL, Path: f.Path, Severity: "error", Message: "the file can't be used: " + f.Err.Error()})
		}
		for _, r := range f.Rejected {
			out = append(out, Diagnostic{Resource: f.TypeURL + " " + r.Name, Path: f.Path, Severity: "error", Message: "rejected: " + r.Err.Error()})
		}
	}
	return out
}
