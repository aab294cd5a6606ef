package proxy_test

import (
	"crypto/sha256"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/fairlead-mesh/fairlead/filters"
	"github.com/fairlead-mesh/fairlead/filters/builtin"
	"github.com/fairlead-mesh/fairlead/internal/wasmmodule"
	"github.com/fairlead-mesh/fairlead/proxy"
	"github.com/fairlead-mesh/fairlead/xdsclient/xdsresource"
)

const guestType = "type.googleapis.com/test.Guest"

// guestConfig is that of a filter which answers with the end of its module.
type guestConfig struct{ URL, Cluster string }

func (c *guestConfig) Modules() []filters.ModuleRef {
	return []filters.ModuleRef{{URL: c.URL, Cluster: c.Cluster, Retries: -1, Base: time.Millisecond, Max: 5 * time.Millisecond}}
}

type guestFactory struct{}

func (guestFactory) TypeURLs() []string { return []string{guestType} }

func (guestFactory) Decode(a filters.Any, _ *filters.Decoding) (filters.Config, error) {
	c := &guestConfig{}
	return c, json.Unmarshal(a.Value, c)
}

func (guestFactory) DecodeOverride(filters.Any, *filters.Decoding) (filters.Config, error) {
	return nil, errors.New("there is none")
}

func (guestFactory) Compile(env *filters.Env, base, _ filters.Config) (filters.HTTPFilter, error) {
	m, err := env.Modules.Module(base.(*guestConfig).Modules()[0])
	if errors.Is(err, filters.ErrModulePending) && strings.Contains(base.(*guestConfig).URL, "patient") {
		return guest("waiting"), nil
	}
	if err != nil && strings.Contains(base.(*guestConfig).URL, "tardy") {
		time.Sleep(50 * time.Millisecond) // it arrives now
	}
	if err != nil {
		return nil, err
	}
	return guest(m[len("\x00asm\x01\x00\x00\x00"):]), nil
}

type guest string

func (g guest) Do(s *filters.Stream, next filters.Next) (*filters.Response, error) {
	r, err := next.Do(s)
	if err == nil {
		r.Header.Add("x-guest", string(g))
	}
	return r, err
}

// moduleServer serves modules by their path; those that are not allowed yet are
// answered 503.
type moduleServer struct {
	*httptest.Server
	ready atomic.Pointer[string] // a prefix of paths
	asked atomic.Int64
	hang  chan struct{} // what is asked for is not answered
}

func newModuleServer(t *testing.T, ready string) *moduleServer {
	t.Helper()
	m := &moduleServer{hang: make(chan struct{})}
	m.ready.Store(&ready)
	m.Server = httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		m.asked.Add(1)
		if strings.HasPrefix(r.URL.Path, "/hang") {
			select {
			case <-m.hang:
			case <-r.Context().Done():
			}
			return
		}
		if !strings.HasPrefix(r.URL.Path, *m.ready.Load()) {
			w.WriteHeader(http.StatusServiceUnavailable)
			return
		}
		fmt.Fprintf(w, "\x00asm\x01\x00\x00\x00%s", r.URL.Path[1:])
	}))
	t.Cleanup(func() { close(m.hang); m.Close() })
	return m
}

// moduleWorld is a world whose filters run modules.
func moduleWorld(t *testing.T, o wasmmodule.Options) *world {
	t.Helper()
	reg := builtin.Registry()
	reg.RegisterHTTP(guestFactory{})
	o.LaterPause = 5 * time.Millisecond
	return newWorldWith(t, proxy.Options{Registry: reg, Modules: o})
}

// guestPlugin is an ECDS resource of a guest.
func guestPlugin(url string, open bool) *xdsresource.ExtensionConfig {
	c := &guestConfig{URL: url}
	e := &xdsresource.ExtensionConfig{Resource: xdsresource.Resource{Name: "p"}}
	e.TypedConfig = xdsresource.TypedConfig{Name: "p", TypeURL: guestType, Config: c, FailOpen: open}
	sum := sha256.Sum256(fmt.Append(nil, url, open))
	copy(e.TypedConfig.Digest[:], sum[:])
	return e
}

const plugged = `{name: p, config_discovery: {config_source: {ads: {}}, type_urls: [` + guestType + `]}},`

// get sends a request on an open connection and returns status and x-guest.
func (c *client) guest(t *testing.T) string {
	t.Helper()
	if _, err := fmt.Fprint(c, "GET / HTTP/1.1\r\nhost: a\r\n\r\n"); err != nil {
		return err.Error()
	}
	r, err := http.ReadResponse(c.br, nil)
	if err != nil {
		return err.Error()
	}
	_, _ = io.Copy(io.Discard, r.Body)
	_ = r.Body.Close()
	return strings.TrimSpace(fmt.Sprint(r.StatusCode, " ", r.Header.Get("X-Guest")))
}

// awaitGuest sends requests on new connections until one is answered like that.
func awaitGuest(t *testing.T, port int, want string) {
	t.Helper()
	within(t, want, func() bool {
		c, err := connect(t, port)
		if err != nil {
			return false
		}
		defer c.Close()
		return c.guest(t) == want
	})
}

func TestAChainStaysAsItWasUntilTheModuleOfANewFilterIsHere(t *testing.T) {
	m := newModuleServer(t, "/none")
	w := moduleWorld(t, wasmmodule.Options{Attempts: 1000})
	port := freePort(t)
	w.listen("l", port, "", chainYAML("c", "{}", "", direct("ok")), chainYAML("other", "{destination_port: 9}", "", direct("ok")))
	w.mustApply()
	c := dial(t, port)
	defer c.Close()
	other := w.Listener("l").Config().Chains[1]
	w.listen("l", port, "", chainYAML("c", "{}", plugged, direct("ok")), chainYAML("other", "{destination_port: 9}", "", direct("ok")))
	w.res.Extensions["p"] = guestPlugin(m.URL+"/a/guest", false)
	w.mustApply()
	for range 20 {
		if got := c.guest(t); got != "200" {
			t.Fatalf("while it is fetched: %s", got)
		}
		time.Sleep(time.Millisecond)
	}
	// Whatever else comes does not wait.
	w.listen("m", freePort(t), "", chainYAML("c", "{}", "", direct("new")))
	w.mustApply()
	if w.Listener("m") == nil {
		t.Error("another listener waits, too")
	}
	if !w.diagnosed("warning", "listener l: filter chain c: filters: the chain stays as it was") || len(w.Snapshot().Diagnostics) != 1 {
		t.Error(w.Snapshot().Diagnostics)
	}
	ready := "/a"
	m.ready.Store(&ready)
	awaitGuest(t, port, "200 a/guest")
	if w.Listener("l").Config().Chains[1] != other {
		t.Error("the other chain was replaced")
	}
}

func TestAModuleThatDoesNotComeIsAMatterOfTheFailurePolicy(t *testing.T) {
	for _, c := range []struct {
		name, path string
		open       bool
		want       string
		severity   string
	}{
		{"it can't be had", "/a/", false, "403", "error"},
		{"it can't be had, and fails open", "/a/", true, "200", "warning"},
		{"it takes too long", "/hang/", false, "403", "error"},
		{"it takes too long, and fails open", "/hang/", true, "200", "warning"},
		{"it takes too long for a filter that waits by itself", "/hang/patient/", false, "200 waiting", "error"},
	} {
		t.Run(c.name, func(t *testing.T) {
			m := newModuleServer(t, "/none")
			w := moduleWorld(t, wasmmodule.Options{Attempts: 1, Wait: 50 * time.Millisecond})
			port := freePort(t)
			w.listen("l", port, "", chainYAML("c", "{}", "", direct("ok")))
			w.mustApply()
			w.listen("l", port, "", chainYAML("c", "{}", plugged, direct("ok")))
			url := m.URL + c.path + "guest"
			w.res.Extensions["p"] = guestPlugin(url, c.open)
			w.mustApply()
			within(t, "the new chain", func() bool { return w.diagnosed(c.severity, "http_filters[p]") && w.diagnosed(c.severity, url) })
			awaitGuest(t, port, c.want)
			client := dial(t, port)
			defer client.Close()
			if got := client.guest(t); got != c.want {
				t.Errorf("%s, want %s", got, c.want)
			}
			if strings.HasPrefix(c.path, "/hang/") {
				return
			}
			chain := w.Listener("l").Config().Chains[0]
			ready := "/a"
			m.ready.Store(&ready)
			within(t, "it is taken up on the open connection", func() bool { return client.guest(t) == "200 a/guest" })
			if w.Listener("l").Config().Chains[0] != chain {
				t.Error("the chain was replaced")
			}
			within(t, "nothing is left to say", func() bool { return len(w.Snapshot().Diagnostics) == 0 }) // filters change first
		})
	}
}

func TestTheFormerConfigurationStaysUntilTheModuleOfANewOneIsHere(t *testing.T) {
	for _, open := range []bool{false, true} {
		t.Run(fmt.Sprint("fails open: ", open), func(t *testing.T) {
			m := newModuleServer(t, "/a")
			w := moduleWorld(t, wasmmodule.Options{Attempts: 1, Wait: 20 * time.Millisecond})
			port := freePort(t)
			w.listen("l", port, "", chainYAML("c", "{}", plugged, direct("ok")))
			w.res.Extensions["p"] = guestPlugin(m.URL+"/a/guest", open)
			w.mustApply()
			awaitGuest(t, port, "200 a/guest")
			client := dial(t, port)
			defer client.Close()
			chain := w.Listener("l").Config().Chains[0]
			for range 2 { // the second is of the same resources
				w.res.Extensions["p"] = guestPlugin(m.URL+"/b/guest", open)
				w.mustApply()
				within(t, "it is told", func() bool { return w.diagnosed("warning", "503") && w.diagnosed("warning", "/b/") })
				if got := client.guest(t); got != "200 a/guest" {
					t.Fatalf("while it can't be had: %s", got)
				}
			}
			ready := "/b"
			m.ready.Store(&ready)
			within(t, "the new one", func() bool { return client.guest(t) == "200 b/guest" })
			if w.Listener("l").Config().Chains[0] != chain {
				t.Error("the chain was replaced")
			}
			delete(w.res.Extensions, "p")
			w.mustApply()
			if got := client.guest(t); got != "500" {
				t.Errorf("without a configuration: %s", got)
			}
			within(t, "nobody asks for it any more", func() bool { // one may be on its way
				n := m.asked.Load()
				time.Sleep(100 * time.Millisecond)
				return m.asked.Load() == n
			})
		})
	}
}

func TestAModuleThatArrivesWhileItsFilterIsCompiledIsTakenUp(t *testing.T) {
	m := newModuleServer(t, "/tardy")
	w := moduleWorld(t, wasmmodule.Options{Wait: time.Nanosecond})
	port := freePort(t)
	w.listen("l", port, "", chainYAML("c", "{}", plugged, `route_config: {name: r, virtual_hosts: [{name: v, domains: [b], routes: [{match: {prefix: /}, direct_response: {status: 200}}]}]}`))
	// Requests that no route matches run the filters, too.
	for _, name := range []string{"tardy-one", "tardy-two"} { // of a new chain, and of one that is there
		w.res.Extensions["p"] = guestPlugin(m.URL+"/"+name, false)
		w.mustApply()
		awaitGuest(t, port, "404 "+name)
		w.res.Extensions["p"] = guestPlugin(m.URL+"/none", true)
		w.mustApply()
		delete(w.res.Extensions, "p")
		w.mustApply()
	}
}

func TestTheFirstConfigurationWaitsForItsModules(t *testing.T) {
	for _, c := range []struct{ path, want string }{{"/a/", "200 a/guest"}, {"/hang/", "403"}} {
		m := newModuleServer(t, "/a")
		reg := builtin.Registry()
		reg.RegisterHTTP(guestFactory{})
		w := newWorldWith(t, proxy.Options{Registry: reg, AwaitClusters: true, Modules: wasmmodule.Options{Wait: 100 * time.Millisecond}})
		port := freePort(t)
		w.listen("l", port, "", chainYAML("c", "{}", plugged, direct("ok")))
		w.res.Extensions["p"] = guestPlugin(m.URL+c.path+"guest", false)
		w.mustApply()
		client := dial(t, port)
		defer client.Close()
		if got := client.guest(t); got != c.want {
			t.Errorf("%s: the first request: %s, want %s", c.path, got, c.want)
		}
	}
}

func TestAModuleOfAClusterIsFetchedByIt(t *testing.T) {
	m := newModuleServer(t, "/a")
	w := moduleWorld(t, wasmmodule.Options{LaterPause: time.Hour, Attempts: 1})
	port := freePort(t)
	w.listen("l", port, "", chainYAML("c", "{}", plugged, direct("ok")))
	w.res.Clusters["modules"] = decode[*xdsresource.Cluster](t, xdsresource.ClusterType, strings.Replace(httpCluster("modules", urlPort(m.URL), "http_protocol_options: {}"), "- name", "  name", 1))
	e := guestPlugin("http://modules.example/a/guest", false)
	e.Config = &guestConfig{URL: "http://modules.example/a/guest", Cluster: "modules"}
	w.res.Extensions["p"] = e
	w.mustApply()
	awaitGuest(t, port, "200 a/guest")
}

// What is told about a module while the first configuration waits for it must not
// bring the former one back, which doesn't need it.
func TestAWaitForModulesIsNotBegunAgain(t *testing.T) {
	m := newModuleServer(t, "/a")
	reg := builtin.Registry()
	reg.RegisterHTTP(guestFactory{})
	w := newWorldWith(t, proxy.Options{Registry: reg, AwaitClusters: true, Modules: wasmmodule.Options{Attempts: 1, LaterPause: time.Hour}})
	w.mustApply()
	const times = 30
	for i := range times {
		w.res.Extensions["p"] = guestPlugin(fmt.Sprintf("%s/none/%d", m.URL, i), false)
		w.mustApply()
		delete(w.res.Extensions, "p")
		w.mustApply()
	}
	if n := m.asked.Load(); n != times {
		t.Errorf("%d requests for %d modules", n, times)
	}
}
