package proxy

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"os"
	"slices"
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
	files *filesource.Source
	// fixed are what the bootstrap wants from files.
	fixed []filesource.Ref
	// applied, if not nil, is told of each configuration that was put in force.
	applied func(error)

	mu     sync.Mutex // one Apply at a time
	client *xdsclient.Client
	view   *xdsclient.View // nil before the first
	asked  []xdsclient.Key
	wanted []filesource.Ref
	eds    map[string]*xdsresource.ClusterLoadAssignment
	hold   *time.Timer // runs while files wait for the control plane
	closed bool
}

func newSources(s *Server, dec *xdsresource.Decoder, sc *stats.Scope, log *slog.Logger) *sources {
	c := &sources{s: s, eds: map[string]*xdsresource.ClusterLoadAssignment{}}
	decoders := map[string]xdsclient.Decoder{}
	for _, t := range s.XDSTypes(dec) {
		decoders[t.TypeURL] = t.Decode
	}
	c.files = filesource.New(filesource.Config{Decode: decoders, OnChange: c.onFiles, Logger: log, Stats: sc})
	return c
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

// start reads the files of refs; Run watches them.
func (c *sources) start(refs []filesource.Ref) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.fixed = refs
	c.wantLocked(&Resources{})
	c.asked = c.files.ADS()
}

// run watches files until ctx ends.
func (c *sources) run(ctx context.Context) {
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
	c.applyLocked()
}

// onFiles applies a change of files.
func (c *sources) onFiles() {
	c.mu.Lock()
	defer c.mu.Unlock()
	res := c.wantLocked(c.fromADS())
	wait := time.Duration(0)
	if c.client != nil {
		before := c.asked
		c.asked = c.files.ADS()
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
	c.applyLocked()
}

func (c *sources) fromADS() *Resources {
	if c.view == nil {
		return &Resources{}
	}
	return resourcesOf(c.view)
}

func (c *sources) applyLocked() {
	ads := c.fromADS()
	res := c.wantLocked(ads)
	if asked := c.files.ADS(); c.client != nil && !slices.Equal(asked, c.asked) {
		c.asked = asked
		c.client.SetNames(asked)
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
	if err != nil {
		c.s.log.Error("applying configuration", "error", err)
	}
	if c.applied != nil {
		c.applied(err)
	}
}

// wantLocked tells the files what the configuration refers to, which what they
// hold may extend, and returns ads with what is in the files; a resource of a
// file wins over one of the same name.
func (c *sources) wantLocked(ads *Resources) *Resources {
	base := slices.Clone(c.fixed)
	if c.s.refersToFiles.Load() {
		for _, x := range ads.Clusters {
			base = append(base, fileReferences(x)...)
		}
		for _, x := range ads.Listeners {
			base = append(base, fileReferences(x)...)
		}
	}
	if len(base) == 0 && len(c.wanted) == 0 {
		return ads
	}
	for {
		held := c.files.Resources()
		refs := slices.Clone(base)
		for _, t := range []string{xdsresource.ClusterType, xdsresource.ListenerType} {
			for _, r := range held[t] {
				refs = append(refs, fileReferences(r.Value)...)
			}
		}
		slices.SortFunc(refs, filesource.Compare)
		refs = slices.Compact(refs)
		if slices.Equal(refs, c.wanted) {
			own := resourcesFrom(held)
			out := merge(own, ads)
			out.fileEndpoints = own.Endpoints
			return out
		}
		c.wanted = refs
		c.files.Want(refs)
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
	return len(c.wanted) > 0
}

// problems lists what is wrong with files, for operators.
func (c *sources) problems() []Diagnostic {
	var out []Diagnostic
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
