package proxy

import (
	"cmp"
	"context"
	"fmt"
	"log/slog"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/fairlead-mesh/fairlead/internal/stats"
	"github.com/fairlead-mesh/fairlead/xdsclient"
	"github.com/fairlead-mesh/fairlead/xdsclient/xdsresource"
)

// apiRef is what somebody wants from a server of api_config_source: one resource,
// or with an empty name all of the type.
type apiRef struct {
	key    xdsclient.Key
	server xdsresource.APIServer
}

func compareRefs(a, b apiRef) int {
	return cmp.Or(
		strings.Compare(a.key.TypeURL, b.key.TypeURL), strings.Compare(a.key.Name, b.key.Name), strings.Compare(a.server.Cluster, b.server.Cluster),
		strings.Compare(a.server.Metadata, b.server.Metadata), compareBool(a.server.StateOfTheWorld, b.server.StateOfTheWorld),
	)
}

func compareBool(a, b bool) int {
	switch {
	case a == b:
		return 0
	case b:
		return -1
	}
	return 1
}

// apiMethods are the gRPC methods of one stream for one type: state of the world,
// delta.
var apiMethods = map[string][2]string{
	xdsresource.ClusterType:         {"/envoy.service.cluster.v3.ClusterDiscoveryService/StreamClusters", "/envoy.service.cluster.v3.ClusterDiscoveryService/DeltaClusters"},
	xdsresource.EndpointsType:       {"/envoy.service.endpoint.v3.EndpointDiscoveryService/StreamEndpoints", "/envoy.service.endpoint.v3.EndpointDiscoveryService/DeltaEndpoints"},
	xdsresource.ListenerType:        {"/envoy.service.listener.v3.ListenerDiscoveryService/StreamListeners", "/envoy.service.listener.v3.ListenerDiscoveryService/DeltaListeners"},
	xdsresource.RouteType:           {"/envoy.service.route.v3.RouteDiscoveryService/StreamRoutes", "/envoy.service.route.v3.RouteDiscoveryService/DeltaRoutes"},
	xdsresource.ExtensionConfigType: {"/envoy.service.extension.v3.ExtensionConfigDiscoveryService/StreamExtensionConfigs", "/envoy.service.extension.v3.ExtensionConfigDiscoveryService/DeltaExtensionConfigs"},
	xdsresource.SecretType:          {"/envoy.service.secret.v3.SecretDiscoveryService/StreamSecrets", "/envoy.service.secret.v3.SecretDiscoveryService/DeltaSecrets"},
}

// apis follows the servers of api_config_source, over a stream for each server
// and type, and for each secret: an agent ends a stream if one of the secrets that
// it is asked for there can't be had.
type apis struct {
	types map[string]xdsclient.ResourceType
	// connect says how a server is reached.
	connect func(xdsresource.APIServer) (xdsclient.Config, error)
	// changed is told of each change of what resources returns.
	changed func()
	log     *slog.Logger
	stats   *stats.Registry

	mu      sync.Mutex
	streams map[apiKey]*apiStream
	run     context.Context //nolint:containedctx // nil before follow
	wg      sync.WaitGroup
}

type apiKey struct {
	server  xdsresource.APIServer
	typeURL string
	secret  string
}

func (k apiKey) String() string { return k.server.Cluster + " " + k.typeURL + " " + k.secret }

// apiStream is one stream, by a client of its own.
type apiStream struct {
	client *xdsclient.Client
	err    error // why there is no client
	stop   context.CancelFunc
	all    bool
	names  []string // sorted
	since  map[string]time.Time
	view   *xdsclient.View // nil before the first
}

// want replaces what is wanted. A server is asked from follow on.
func (a *apis) want(refs []apiRef) {
	a.mu.Lock()
	defer a.mu.Unlock()
	wanted := map[apiKey][]string{}
	for _, r := range refs {
		k := apiKey{server: r.server, typeURL: r.key.TypeURL}
		if k.typeURL == xdsresource.SecretType {
			k.secret = r.key.Name
		}
		wanted[k] = append(wanted[k], r.key.Name)
	}
	for k, s := range a.streams {
		if wanted[k] == nil {
			if s.stop != nil {
				s.stop()
			}
			delete(a.streams, k)
		}
	}
	for k, names := range wanted {
		slices.Sort(names)
		names = slices.Compact(names)
		s := a.streams[k]
		if s == nil {
			s = a.openLocked(k, names[0] == "")
			a.streams[k] = s
		}
		a.askLocked(k, s, names)
	}
}

// openLocked makes the client of a stream.
func (a *apis) openLocked(k apiKey, all bool) *apiStream {
	s := &apiStream{all: all, since: map[string]time.Time{}}
	cfg, err := a.connect(k.server)
	if err != nil {
		s.err = err
		a.log.Error("a server of api_config_source can't be asked", "cluster", k.server.Cluster, "type", k.typeURL, "error", err)
		return s
	}
	t := a.types[k.typeURL]
	t.Wildcard, t.Names, t.After, t.OnChange = all, nil, nil, nil
	decode := t.Decode
	t.Decode = func(name string, b []byte) (any, []xdsclient.Key, error) {
		v, _, err := decode(name, b) // sources follows references
		return v, nil, err
	}
	cfg.Types = []xdsclient.ResourceType{t}
	cfg.Method = apiMethods[k.typeURL][1]
	if cfg.StateOfTheWorld = k.server.StateOfTheWorld; cfg.StateOfTheWorld {
		cfg.Method = apiMethods[k.typeURL][0]
	}
	_, short, _ := strings.Cut(k.typeURL, "/")
	cfg.Logger = a.log
	cfg.Reporter = newReporter(a.stats.Scope("fairlead_xds_api_", stats.Label{Name: "cluster", Value: k.server.Cluster}, stats.Label{Name: "type", Value: short}))
	cfg.OnView = func(v *xdsclient.View) {
		a.mu.Lock()
		s.view = v
		current := a.streams[k] == s
		a.mu.Unlock()
		if current {
			a.changed()
		}
	}
	if s.client, s.err = xdsclient.New(cfg); s.err == nil {
		a.startLocked(s)
	}
	return s
}

func (a *apis) startLocked(s *apiStream) {
	if a.run == nil || s.client == nil || s.stop != nil || a.run.Err() != nil {
		return
	}
	ctx, cancel := context.WithCancel(a.run)
	s.stop = cancel
	a.wg.Go(func() { _ = s.client.Run(ctx) })
}

func (a *apis) askLocked(k apiKey, s *apiStream, names []string) {
	for _, n := range names {
		if s.since[n].IsZero() {
			s.since[n] = time.Now()
		}
	}
	if slices.Equal(names, s.names) {
		return
	}
	s.names = names
	if s.client == nil || s.all {
		return
	}
	keys := make([]xdsclient.Key, len(names))
	for i, n := range names {
		keys[i] = xdsclient.Key{TypeURL: k.typeURL, Name: n}
	}
	s.client.SetNames(keys)
}

// follow asks the servers until ctx ends.
func (a *apis) follow(ctx context.Context) {
	a.mu.Lock()
	a.run = ctx
	for _, s := range a.streams {
		a.startLocked(s)
	}
	a.mu.Unlock()
	<-ctx.Done()
	a.mu.Lock()   // no stream begins from now on
	a.mu.Unlock() //nolint:staticcheck // the section is empty on purpose
	a.wg.Wait()
}

// resources returns what has arrived, by type and name. If two servers have sent
// the same, that of the server whose cluster sorts first is it.
func (a *apis) resources() map[string]map[string]xdsclient.Resource {
	a.mu.Lock()
	defer a.mu.Unlock()
	out := map[string]map[string]xdsclient.Resource{}
	for _, k := range a.sortedLocked() {
		s := a.streams[k]
		if s.view == nil {
			continue
		}
		m := out[k.typeURL]
		if m == nil {
			m = map[string]xdsclient.Resource{}
			out[k.typeURL] = m
		}
		for r := range s.view.All(k.typeURL) {
			if _, taken := m[r.Name]; !taken {
				m[r.Name] = r
			}
		}
	}
	return out
}

func (a *apis) sortedLocked() []apiKey {
	keys := make([]apiKey, 0, len(a.streams))
	for k := range a.streams {
		keys = append(keys, k)
	}
	slices.SortFunc(keys, func(x, y apiKey) int { return strings.Compare(x.String(), y.String()) })
	return keys
}

// awaited is for how long what is wanted and has not arrived is to be waited for:
// the given time since it is wanted.
func (a *apis) awaited(limit time.Duration) time.Duration {
	a.mu.Lock()
	defer a.mu.Unlock()
	rest := time.Duration(0)
	for k, s := range a.streams {
		if s.client == nil {
			continue
		}
		for _, n := range s.names {
			arrived := s.view != nil && s.all
			if s.view != nil && !arrived {
				_, arrived = s.view.Get(k.typeURL, n)
			}
			if !arrived {
				rest = max(rest, limit-time.Since(s.since[n]))
			}
		}
	}
	return rest
}

// apiState is the condition of one stream, for operators.
type apiState struct {
	key    apiKey
	status xdsclient.Status
	err    error
}

func (a *apis) states() []apiState {
	a.mu.Lock()
	defer a.mu.Unlock()
	var out []apiState
	for _, k := range a.sortedLocked() {
		s := a.streams[k]
		st := apiState{key: k, err: s.err}
		if s.client != nil {
			st.status = s.client.Status()
		}
		out = append(out, st)
	}
	return out
}

// problems lists what is wrong with servers, for operators.
func (a *apis) problems() []Diagnostic {
	var out []Diagnostic
	for _, st := range a.states() {
		d := Diagnostic{Resource: st.key.typeURL, Path: "api_config_source of " + st.key.server.Cluster, Severity: "error"}
		switch {
		case st.err != nil:
			d.Message = st.err.Error()
			out = append(out, d)
		case st.status.State != xdsclient.StateConnected && st.status.Err != nil:
			d.Message = fmt.Sprintf("the server can't be reached: %v", st.status.Err)
			out = append(out, d)
		}
		for _, t := range st.status.Types {
			for _, r := range t.Rejected {
				out = append(out, Diagnostic{Resource: t.TypeURL + " " + r.Name, Path: d.Path, Severity: "error", Message: "rejected: " + r.Err.Error()})
			}
		}
	}
	return out
}
