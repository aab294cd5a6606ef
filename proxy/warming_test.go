package proxy_test

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/fairlead-mesh/fairlead/filters"
	"github.com/fairlead-mesh/fairlead/filters/builtin"
	"github.com/fairlead-mesh/fairlead/internal/xdstest"
	"github.com/fairlead-mesh/fairlead/proxy"
	"github.com/fairlead-mesh/fairlead/xdsclient/xdsresource"
)

const slowType = "type.googleapis.com/test.Slow"

// slow makes filters that answer with their name, once somebody lets them be
// prepared. Those whose name begins with "bad" can't be.
type slow struct {
	mu                          sync.Mutex
	gates                       map[string]chan struct{}
	begun, given                []string
	running, most, made, gone   int
	t                           *testing.T
	withoutPreparation, standIn int
}

type slowConfig struct{ Name string }

func newSlow(t *testing.T) *slow {
	t.Helper()
	return &slow{t: t, gates: map[string]chan struct{}{}}
}

func (*slow) TypeURLs() []string { return []string{slowType} }

func (*slow) Decode(a filters.Any, _ *filters.Decoding) (filters.Config, error) {
	c := &slowConfig{}
	return c, json.Unmarshal(a.Value, c)
}

func (*slow) DecodeOverride(filters.Any, *filters.Decoding) (filters.Config, error) {
	return nil, errors.New("there is none")
}

// gate is closed when the filters called name may be prepared.
func (f *slow) gate(name string) chan struct{} {
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.gates[name] == nil {
		f.gates[name] = make(chan struct{})
	}
	return f.gates[name]
}

func (f *slow) open(names ...string) {
	for _, n := range names {
		close(f.gate(n))
	}
}

type slowMade struct{ f *slow }

func (m slowMade) Close() error {
	m.f.mu.Lock()
	defer m.f.mu.Unlock()
	m.f.gone++
	return nil
}

func (f *slow) Prepare(ctx context.Context, _ *filters.Env, base filters.Config) (io.Closer, error) {
	name := base.(*slowConfig).Name
	f.mu.Lock()
	f.begun = append(f.begun, name)
	f.running++
	f.most = max(f.most, f.running)
	f.mu.Unlock()
	var err error
	select {
	case <-f.gate(name):
	case <-ctx.Done():
		err = ctx.Err()
	}
	f.mu.Lock()
	defer f.mu.Unlock()
	f.running--
	if err != nil {
		f.given = append(f.given, name)
		return nil, err
	}
	if strings.HasPrefix(name, "bad") {
		return nil, errors.New(name + " has no heart")
	}
	f.made++
	return slowMade{f}, nil
}

func (f *slow) StandIn(*filters.Env, filters.Config, error) filters.HTTPFilter {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.standIn++
	return guest("standing in")
}

func (f *slow) Compile(env *filters.Env, base, _ filters.Config) (filters.HTTPFilter, error) {
	if env.Prepared == nil {
		f.mu.Lock()
		defer f.mu.Unlock()
		f.withoutPreparation++
		return nil, errors.New("it was not prepared")
	}
	return guest(base.(*slowConfig).Name), nil
}

// awaitBegun waits until filters called so are being prepared, or were.
func (f *slow) awaitBegun(names ...string) {
	f.t.Helper()
	within(f.t, "preparing "+strings.Join(names, ", "), func() bool {
		f.mu.Lock()
		defer f.mu.Unlock()
		return !slices.ContainsFunc(names, func(n string) bool { return !slices.Contains(f.begun, n) })
	})
}

// check looks, after everything has ended, whether all was given back.
func (f *slow) check() {
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.made != f.gone || f.running != 0 || f.most > 1 || f.withoutPreparation > 0 {
		f.t.Errorf("made %d, closed %d, running %d, at once %d, compiled without %d", f.made, f.gone, f.running, f.most, f.withoutPreparation)
	}
}

// slowWorld is a proxy under a control plane, with filters of f.
func slowWorld(t *testing.T, f *slow) (*xdstest.Server, *proxy.Process) {
	t.Helper()
	t.Cleanup(f.check)
	cp := xdstest.New(t, xdstest.Options{})
	reg := builtin.Registry()
	reg.RegisterHTTP(f)
	return cp, startProxyWith(t, adsYAML(cp), proxy.ProcessOptions{Registry: reg})
}

// adsYAML takes listeners from cp, and all that they refer to.
func adsYAML(cp *xdstest.Server) string {
	return fmt.Sprintf(`
node: {id: edge, cluster: edge}
dynamic_resources:
  lds_config: {ads: {}}
  ads_config: {api_type: DELTA_GRPC, grpc_services: [{envoy_grpc: {cluster_name: cp}}]}
static_resources:
  clusters:
  - {name: cp, type: STATIC, load_assignment: {cluster_name: cp, endpoints: [{lb_endpoints: [{endpoint: {address: {socket_address: {address: 127.0.0.1, port_value: %s}}}}]}]}}
`, portOf(cp))
}

func slowConfigYAML(name string) string {
	return fmt.Sprintf(`{"@type": type.googleapis.com/xds.type.v3.TypedStruct, type_url: %s, value: {name: %s}}`, slowType, name)
}

// inline is an HTTP filter with a configuration of its own, discovered one whose
// configuration is the resource p.
func inline(config string) string { return fmt.Sprintf(`{name: p, typed_config: %s},`, config) }

const slowPlugged = `{name: p, config_discovery: {config_source: {ads: {}}, type_urls: [` + slowType + `]}},`

func listenerYAML(name string, port int, chains ...string) string {
	return fmt.Sprintf(`- {"@type": type.googleapis.com/envoy.config.listener.v3.Listener, name: %s, address: {socket_address: {address: 127.0.0.1, port_value: %d}}, filter_chains: [%s]}`+"\n",
		name, port, strings.Join(chains, ", "))
}

func pluginYAML(config string) string {
	return fmt.Sprintf(`- {"@type": type.googleapis.com/envoy.config.core.v3.TypedExtensionConfig, name: p, typed_config: %s}`+"\n", config)
}

// awaitNACK waits until cp was told that a resource is refused, and why.
func awaitNACK(t *testing.T, cp *xdstest.Server, typeURL string, want ...string) {
	t.Helper()
	if !cp.Await(20*time.Second, func(rs []xdstest.Request) bool {
		return slices.ContainsFunc(rs, func(r xdstest.Request) bool {
			return r.IsNACK() && r.GetTypeUrl() == typeURL && !slices.ContainsFunc(want, func(w string) bool { return !strings.Contains(r.GetErrorDetail().GetMessage(), w) })
		})
	}) {
		t.Fatalf("%s: no refusal that names %q", typeURL, want)
	}
}

// answered counts the answers to responses of a type.
func answered(cp *xdstest.Server, typeURL string) (n int) {
	for _, r := range cp.Requests() {
		if r.GetTypeUrl() == typeURL && r.GetResponseNonce() != "" {
			n++
		}
	}
	return n
}

const onRDS = `rds: {route_config_name: r, config_source: {ads: {}}}`

func routesYAML(body string) string {
	return fmt.Sprintf(`- {"@type": type.googleapis.com/envoy.config.route.v3.RouteConfiguration, name: r, virtual_hosts: [{name: v, domains: ["*"], routes: [{match: {prefix: /}, direct_response: {status: 200, body: {inline_string: %q}}}]}]}`+"\n", body)
}

// Whatever else arrives does not wait for a filter that is being prepared: neither
// routes, nor other listeners, nor the answers to them.
func TestOnlyWhatNeedsItWaitsForAFilterThatTakesLong(t *testing.T) {
	f := newSlow(t)
	cp, _ := slowWorld(t, f)
	ports := freePorts(t, 2)
	port, other := ports[0], ports[1]
	f.open("first")
	serve(t, cp, listenerYAML("l", port, chainYAML("c", "{}", slowPlugged, onRDS))+routesYAML("one")+pluginYAML(slowConfigYAML("first")))
	awaitGuest(t, port, "200 first")
	client := dial(t, port)
	defer client.Close()
	accepted := answered(cp, xdstest.ExtensionCfg)

	serve(t, cp, pluginYAML(slowConfigYAML("second")))
	f.awaitBegun("second")
	serve(t, cp, routesYAML("two")+listenerYAML("m", other, chainYAML("c", "{}", "", direct("other"))))
	within(t, "routes", func() bool { _, body := client.get("/"); return body == "two" })
	within(t, "another listener", func() bool { c, err := connect(t, other); return err == nil && c.Close() == nil })
	if got := client.guest(t); got != "200 first" {
		t.Errorf("while the second is prepared: %s", got)
	}
	if n := answered(cp, xdstest.ExtensionCfg); n != accepted {
		t.Errorf("what is being prepared was answered: %d answers", n)
	}
	f.open("second")
	within(t, "the second, on the open connection", func() bool { return client.guest(t) == "200 second" })
	within(t, "its answer", func() bool { return answered(cp, xdstest.ExtensionCfg) == accepted+1 })
}

// A configuration whose filter can't be prepared is refused by name, and the former
// one goes on, on open connections too.
func TestAFilterThatCantBePreparedIsRefused(t *testing.T) {
	f := newSlow(t)
	cp, p := slowWorld(t, f)
	f.open("good", "bad", "bad-inline", "better")
	ports := freePorts(t, 3)
	discoveredAt, inlineAt := ports[0], ports[1]
	serve(t, cp, listenerYAML("d", discoveredAt, chainYAML("c", "{}", slowPlugged, direct("ok")))+pluginYAML(slowConfigYAML("bad")))
	awaitNACK(t, cp, xdstest.ExtensionCfg, "p: filter p: bad has no heart")
	awaitGuest(t, discoveredAt, "500")
	serve(t, cp, pluginYAML(slowConfigYAML("good"))+listenerYAML("i", inlineAt, chainYAML("c", "{}", inline(slowConfigYAML("good")), direct("ok"))))
	awaitGuest(t, discoveredAt, "200 good")
	awaitGuest(t, inlineAt, "200 good")
	client := dial(t, inlineAt)
	defer client.Close()
	chain := p.Server().Listener("i").Config().Chains[0]

	serve(t, cp, listenerYAML("i", inlineAt, chainYAML("c", "{}", inline(slowConfigYAML("bad-inline")), direct("ok")))+
		listenerYAML("m", ports[2], chainYAML("c", "{}", "", direct("ok"))))
	awaitNACK(t, cp, xdstest.Listener, "i: filter p: bad-inline has no heart")
	within(t, "the other listener of the same response", func() bool { return p.Server().Listener("m") != nil })
	if got := client.guest(t); got != "200 good" || p.Server().Listener("i").Config().Chains[0] != chain {
		t.Errorf("after a refused listener: %s", got)
	}
	serve(t, cp, pluginYAML(slowConfigYAML("bad")))
	awaitGuest(t, discoveredAt, "200 good")
	serve(t, cp, pluginYAML(slowConfigYAML("better")))
	awaitGuest(t, discoveredAt, "200 better")
}

// A listener that is new is not bound, and a chain that is new to one is left out,
// until their filters are ready; then nothing is refused meanwhile.
func TestWhatIsNewServesOnceItsFiltersAreReady(t *testing.T) {
	f := newSlow(t)
	cp, p := slowWorld(t, f)
	ports := freePorts(t, 2)
	port := ports[0]
	chain := chainYAML("c", "{}", slowPlugged, direct("ok"))
	serve(t, cp, listenerYAML("l", port, chain)+pluginYAML(slowConfigYAML("a")))
	f.awaitBegun("a")
	serve(t, cp, listenerYAML("m", ports[1], chainYAML("c", "{}", "", direct("ok"))))
	within(t, "another listener", func() bool { return p.Server().Listener("m") != nil })
	if p.Server().Listener("l") != nil {
		t.Error("a listener whose filter isn't ready serves")
	}
	f.open("a")
	within(t, "the listener", func() bool { return p.Server().Listener("l") != nil })
	client := dial(t, port)
	defer client.Close()
	if got := client.guest(t); got != "200 a" {
		t.Errorf("the first request: %s", got)
	}
	serve(t, cp, listenerYAML("l", port, chain, chainYAML("more", "{destination_port: 9}", inline(slowConfigYAML("b")), direct("ok"))))
	f.awaitBegun("b")
	if n := len(p.Server().Listener("l").Config().Chains); n != 1 {
		t.Errorf("%d chains", n)
	}
	f.open("b")
	within(t, "the chain", func() bool { return len(p.Server().Listener("l").Config().Chains) == 2 })
	if got := client.guest(t); got != "200 a" {
		t.Errorf("on the open connection: %s", got)
	}
}

// What is replaced while it is prepared is given up, and its answer is that of a
// configuration which never was in force.
func TestWhatIsReplacedIsNotPreparedAnyLonger(t *testing.T) {
	f := newSlow(t)
	cp, _ := slowWorld(t, f)
	port := freePort(t)
	f.open("a", "d")
	serve(t, cp, listenerYAML("l", port, chainYAML("c", "{}", slowPlugged, direct("ok")))+pluginYAML(slowConfigYAML("a")))
	awaitGuest(t, port, "200 a")
	accepted := answered(cp, xdstest.ExtensionCfg)
	for _, name := range []string{"b", "c"} {
		serve(t, cp, pluginYAML(slowConfigYAML(name)))
		f.awaitBegun(name)
	}
	serve(t, cp, pluginYAML(slowConfigYAML("d")))
	awaitGuest(t, port, "200 d")
	within(t, "all answers", func() bool { return answered(cp, xdstest.ExtensionCfg) == accepted+3 })
	within(t, "giving up", func() bool {
		f.mu.Lock()
		defer f.mu.Unlock()
		return slices.Equal(f.given, []string{"b", "c"})
	})
	for _, r := range cp.Requests() {
		if r.IsNACK() {
			t.Error(r)
		}
	}
	// A stream that ends ends proofs; what is sent again on the next is proven again.
	serve(t, cp, pluginYAML(slowConfigYAML("e")))
	f.awaitBegun("e")
	cp.DropStreams(nil)
	f.open("e")
	awaitGuest(t, port, "200 e")
}

// A configuration that can't be refused, as of files, leaves the former one in
// force, and is named.
func TestAFilterThatCantBePreparedIsNotTakenUpFromElsewhereEither(t *testing.T) {
	f := newSlow(t)
	f.open("good", "bad")
	reg := builtin.Registry()
	reg.RegisterHTTP(f)
	w := newWorldWith(t, proxy.Options{Registry: reg})
	plugin := func(name string, digest byte) *xdsresource.ExtensionConfig {
		e := &xdsresource.ExtensionConfig{Resource: xdsresource.Resource{Name: "p"}}
		e.TypedConfig = xdsresource.TypedConfig{Name: "p", TypeURL: slowType, Config: &slowConfig{name}, Digest: xdsresource.Digest{digest}}
		return e
	}
	ports := freePorts(t, 2)
	port := ports[0]
	w.listen("l", port, "", chainYAML("c", "{}", slowPlugged, direct("ok")))
	w.res.Extensions["p"] = plugin("good", 1)
	w.mustApply()
	client := dial(t, port)
	defer client.Close()
	if got := client.guest(t); got != "200 good" {
		t.Errorf("the first configuration: %s", got)
	}
	w.res.Extensions["p"] = plugin("bad", 2)
	w.mustApply()
	within(t, "it is told", func() bool { return w.diagnosed("warning", "bad has no heart") })
	if got := client.guest(t); got != "200 good" {
		t.Errorf("after an edit that can't run: %s", got)
	}
	w.res.Extensions["q"] = plugin("good", 1)
	w.listen("m", ports[1], "", chainYAML("c", "{}", strings.Replace(slowPlugged, "name: p", "name: q", 1), direct("ok")))
	w.mustApply()
	w.res.Extensions["q"] = plugin("bad", 2)
	w.mustApply()
	within(t, "the other, too", func() bool { return w.diagnosed("warning", "extension_config q") })
	w.Close()
	f.check()
}
