package istio

import (
	"archive/tar"
	"bytes"
	"compress/gzip"
	"crypto/sha256"
	"encoding/base64"
	"fmt"
	"net"
	"net/http"
	"strings"
	"sync"
	"testing"
	"time"

	"istio.io/istio/pilot/pkg/model"
	"istio.io/istio/pkg/config/schema/gvk"
	"istio.io/istio/pkg/config/schema/kind"
	"istio.io/istio/pkg/security"
	istiosets "istio.io/istio/pkg/util/sets"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
)

// guest is a module, put together by hand, that gives requests the header
// x-guest with a value of its own. Its ABI is 0.2.1.
func guest(value string) []byte {
	const at = 1024 // of the header's name in memory, and of the value behind it
	const header = "x-guest"
	leb := func(n int) []byte { // also a signed one, below 2^20
		return []byte{byte(n)&0x7f | 0x80, byte(n>>7)&0x7f | 0x80, byte(n>>14) & 0x3f}
	}
	text := func(s string) []byte { return append(leb(len(s)), s...) }
	vector := func(items ...[]byte) []byte { return append(leb(len(items)), bytes.Join(items, nil)...) }
	section := func(id byte, content []byte) []byte {
		return append(append([]byte{id}, leb(len(content))...), content...)
	}
	constant := func(n int) []byte { return append([]byte{0x41}, leb(n)...) }
	body := func(code ...[]byte) []byte {
		b := append([]byte{0}, bytes.Join(code, nil)...) // no locals
		b = append(b, 0x0b)
		return append(leb(len(b)), b...)
	}
	function := func(params, results int) []byte {
		return bytes.Join([][]byte{{0x60}, leb(params), bytes.Repeat([]byte{0x7f}, params), leb(results), bytes.Repeat([]byte{0x7f}, results)}, nil)
	}
	exports := [][]byte{append(text("memory"), 2, 0)}
	for i, name := range []string{"proxy_abi_version_0_2_1", "proxy_on_memory_allocate", "proxy_on_context_create", "proxy_on_request_headers", "proxy_on_vm_start", "proxy_on_configure"} {
		exports = append(exports, append(text(name), 0, byte(i+1)))
	}
	return bytes.Join([][]byte{
		[]byte("\x00asm\x01\x00\x00\x00"),
		section(1, vector(function(5, 1), function(0, 0), function(1, 1), function(2, 0), function(3, 1), function(2, 1))),
		section(2, vector(append(append(text("env"), text("proxy_add_header_map_value")...), 0, 0))),
		section(3, []byte{6, 1, 2, 3, 4, 5, 5}),
		section(5, []byte{1, 0, 1}),
		section(7, vector(exports...)),
		section(10, vector(
			body(), body(constant(32768)), body(),
			body(constant(0), constant(at), constant(len(header)), constant(at+len(header)), constant(len(value)), []byte{0x10, 0, 0x1a}, constant(0)),
			body(constant(1)), body(constant(1)),
		)),
		section(11, vector(bytes.Join([][]byte{{0}, constant(at), {0x0b}, text(header + value)}, nil))),
	}, nil)
}

const moduleAddress = "127.16.0.98:8099"

// moduleServer serves guests as files and in images: /<value>.wasm, and
// <moduleAddress>/team/<value>.
type moduleServer struct {
	mu   sync.Mutex
	hold time.Duration
	// password, if not "", is what images are given for, to user; pulls counts
	// manifests by the password that they were given for.
	password string
	pulls    map[string]int
}

const registryUser = "puller"

// demand makes the registry give images for a password only.
func (m *moduleServer) demand(password string) {
	m.mu.Lock()
	m.password = password
	m.mu.Unlock()
}

func (m *moduleServer) pulled(password string) int {
	m.mu.Lock()
	defer m.mu.Unlock()
	return m.pulls[password]
}

// admits tells whether a request to the registry is in order.
func (m *moduleServer) admits(w http.ResponseWriter, r *http.Request) bool {
	m.mu.Lock()
	defer m.mu.Unlock()
	user, password, _ := r.BasicAuth()
	if m.password != "" && (user != registryUser || password != m.password) {
		w.Header().Set("www-authenticate", `Basic realm="modules"`)
		w.WriteHeader(http.StatusUnauthorized)
		return false
	}
	if strings.Contains(r.URL.Path, "/manifests/") {
		m.pulls[password]++
	}
	return true
}

// dockerConfig is a pull secret's content for the registry.
func dockerConfig(password string) []byte {
	return fmt.Appendf(nil, `{"auths": {%q: {"username": %q, "password": %q}}}`, moduleAddress, registryUser, password)
}

// serveModules starts a module server.
func serveModules(t *testing.T) *moduleServer {
	t.Helper()
	m := &moduleServer{pulls: map[string]int{}}
	var lc net.ListenConfig
	l, err := lc.Listen(t.Context(), "tcp", moduleAddress)
	if err != nil {
		t.Fatal(err)
	}
	srv := &http.Server{Handler: m, ReadHeaderTimeout: time.Second}
	done := make(chan struct{})
	go func() { defer close(done); _ = srv.Serve(l) }()
	t.Cleanup(func() { _ = srv.Close(); <-done })
	return m
}

// slow makes later answers take d.
func (m *moduleServer) slow(d time.Duration) {
	m.mu.Lock()
	m.hold = d
	m.mu.Unlock()
}

func digest(b []byte) string { return fmt.Sprintf("%x", sha256.Sum256(b)) }

// layer is the last one of an image.
func layer(value string) []byte {
	var b bytes.Buffer
	z := gzip.NewWriter(&b)
	w := tar.NewWriter(z)
	g := guest(value)
	_ = w.WriteHeader(&tar.Header{Name: "plugin.wasm", Mode: 0o644, Size: int64(len(g))})
	_, _ = w.Write(g)
	_ = w.Close()
	_ = z.Close()
	return b.Bytes()
}

func (m *moduleServer) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	m.mu.Lock()
	hold := m.hold
	m.mu.Unlock()
	time.Sleep(hold)
	if value, ok := strings.CutSuffix(strings.TrimPrefix(r.URL.Path, "/"), ".wasm"); ok {
		_, _ = w.Write(guest(value))
		return
	}
	parts := strings.Split(r.URL.Path, "/") // "", v2, team, value, manifests or blobs, reference
	if len(parts) != 6 || parts[1] != "v2" {
		http.NotFound(w, r)
		return
	}
	if !m.admits(w, r) {
		return
	}
	l := layer(parts[3])
	if parts[4] == "blobs" {
		_, _ = w.Write(l)
		return
	}
	const manifest = "application/vnd.docker.distribution.manifest.v2+json"
	w.Header().Set("content-type", manifest)
	fmt.Fprintf(w, `{"schemaVersion": 2, "mediaType": %q, "config": {"mediaType": "application/vnd.docker.container.image.v1+json", "digest": "sha256:%064d", "size": 2},
		"layers": [{"mediaType": "application/vnd.docker.image.rootfs.diff.tar.gzip", "digest": "sha256:%s", "size": %d}]}`, manifest, 0, digest(l), len(l))
}

// showGuest makes the applications answer with x-guest.
func (s *scenario) showGuest() {
	echo := func(w http.ResponseWriter, r *http.Request) {
		w.Header().Set("x-more", strings.Join(r.Header.Values("x-guest"), ","))
		fmt.Fprint(w, r.Header.Get("x-guest"))
	}
	s.web1.reset(echo)
	s.web2.reset(echo)
}

// beginWasm is begin for a scenario with modules.
func beginWasm(t *testing.T, name string, edit ...string) *scenario {
	t.Helper()
	s := begin(t, name, append(edit, "${MODULES}", moduleAddress, "${SHA256}", digest(guest("pinned")))...)
	s.showGuest()
	return s
}

func TestModulesAreFetchedAndRun(t *testing.T) {
	serveModules(t)
	s := beginWasm(t, "wasm")
	for url, want := range map[string]string{
		web + "/":                                     "web-0",
		"http://web-v1.app.svc.cluster.local/":        "image",
		"http://web-v2.app.svc.cluster.local/":        "pinned",
		"http://web-v2.app.svc.cluster.local/?again=": "pinned",
	} {
		if a := s.shop.get(t, url); a.Status != 200 || a.Body != want {
			t.Errorf("%s: %+v, want %s", url, a, want)
		}
	}
}

func TestAModuleIsReplacedUnderLoad(t *testing.T) {
	m := serveModules(t)
	s := beginWasm(t, "wasm")
	const connections, edits = 4, 5
	l := startLoad(t, s.shop, connections)
	l.await(t, "the load", func(a *answer) bool { return a.Body == "web-0" })
	m.slow(200 * time.Millisecond)
	for i := 1; i <= edits; i++ {
		value := fmt.Sprintf("web-%d", i)
		url := fmt.Sprintf("http://%s/%s.wasm", moduleAddress, value)
		if i%2 == 0 {
			url = fmt.Sprintf("oci://%s/team/%s:v1", moduleAddress, value)
		}
		s.put(t, plugin("web", url, "FAIL_CLOSE", "{}"))
		l.await(t, url, func(a *answer) bool { return a.Body == value })
	}
	// A further plugin is new to its chain, which stays as it was until the module is here.
	s.put(t, plugin("more", fmt.Sprintf("http://%s/more.wasm", moduleAddress), "FAIL_CLOSE", "{}"))
	l.await(t, "a further plugin", func(a *answer) bool { return strings.Contains(a.Header.Get("x-more"), "more") })
	// One whose module can't be had leaves the former one in force.
	s.put(t, plugin("web", "http://"+moduleAddress+"/nowhere", "FAIL_CLOSE", "{}"))
	for end := time.Now().Add(20 * time.Second); !strings.Contains(unsupported(t), "the former configuration stays in force"); time.Sleep(10 * time.Millisecond) {
		if time.Now().After(end) {
			t.Fatal(unsupported(t))
		}
	}
	time.Sleep(300 * time.Millisecond)
	if err := s.istiod.Store().Delete(gvk.WasmPlugin, "more", "app", nil); err != nil {
		t.Fatal(err)
	}
	l.await(t, "its end", func(a *answer) bool { return a.Header.Get("x-more") == fmt.Sprintf("web-%d", edits) })
	l.stop()
	l.workers.Wait()
	if n := l.failed.Load(); n > 0 {
		t.Errorf("%d of %d requests failed: %s", n, l.sent.Load(), strings.Join(l.errs[:min(len(l.errs), 5)], "; "))
	}
	// A further plugin is a change of the chain, which drains, and so is its end; a module is none.
	if n := l.opened.Load(); n > 3*connections {
		t.Errorf("%d connections were opened for %d workers: modules drained some", n, connections)
	}
	t.Logf("%d requests over %d modules, %d connections for %d workers", l.sent.Load(), edits, l.opened.Load(), connections)
}

// A registry that is down is a matter of failStrategy, and its module is taken
// up when it is back, without a word of istiod.
func TestARegistryThatIsDown(t *testing.T) {
	for _, c := range []struct {
		strategy, name string
		status         int
		body           string
	}{
		{"FAIL_CLOSE", "error", 403, "filter not executable"},
		{"FAIL_OPEN", "warning", 200, ""},
	} {
		t.Run(c.strategy, func(t *testing.T) {
			s := beginWasm(t, "wasm-down", "${STRATEGY}", c.strategy)
			if a := s.shop.get(t, web+"/"); a.Status != c.status || !strings.HasPrefix(a.Body, c.body) || c.body == "" && a.Body != "" {
				t.Errorf("%+v", a)
			}
			if c.status == 403 {
				s.event(t, `msg="request denied"`, "response_code_details=filter_not_executable{extensions.istio.io/trafficextension/app.web~istio-translated-wasmplugin}")
			}
			if a := s.shop.get(t, "http://web-v1.app.svc.cluster.local/"); a.Status != 200 {
				t.Errorf("another service: %+v", a)
			}
			if u := unsupported(t); !strings.Contains(u, "app.web~istio-translated-wasmplugin") || !strings.Contains(u, c.name) || !strings.Contains(u, "connection refused") {
				t.Errorf("/debug/unsupported: %s", u)
			}
			serveModules(t)
			began := time.Now()
			for ; s.shop.get(t, web+"/").Body != "web"; time.Sleep(20 * time.Millisecond) {
				if time.Since(began) > 30*time.Second {
					t.Fatal("the module is not taken up")
				}
			}
			t.Logf("taken up after %v", time.Since(began).Round(10*time.Millisecond))
		})
	}
}

// trusted stands for the TLS with a workload's certificate that the connection to
// istiod has elsewhere: istiod gives secrets to proxies that it knows only.
type trusted struct{ identity string }

func (trusted) AuthenticatorType() string { return "trusted" }

func (a trusted) Authenticate(security.AuthContext) (*security.Caller, error) {
	return &security.Caller{AuthSource: security.AuthSourceClientCertificate, Identities: []string{a.identity}}, nil
}

// istiod puts an image's pull secret into the configuration itself; the proxy pulls
// with it, tells nobody, and takes up another.
func TestImagesArePulledWithTheirSecret(t *testing.T) {
	m := serveModules(t)
	m.demand("first-word")
	s := control(t, "wasm-pull-secret", 20*time.Millisecond, "${MODULES}", moduleAddress, "${DOCKERCONFIG}", base64.StdEncoding.EncodeToString(dockerConfig("first-word")))
	s.istiod.Discovery.Authenticators = []security.Authenticator{trusted{"spiffe://cluster.local/ns/app/sa/waypoint"}}
	security.AuthPlaintext = true
	t.Cleanup(func() { security.AuthPlaintext = false })
	if err := s.startWaypoint(t); err != nil {
		t.Fatal(err)
	}
	s.showGuest()
	if a := s.shop.get(t, web+"/"); a.Status != 200 || a.Body != "private" {
		t.Errorf("%+v", a)
	}
	if a := s.shop.get(t, "http://web-v1.app.svc.cluster.local/"); a.Status != 403 || !strings.HasPrefix(a.Body, "filter not executable") {
		t.Errorf("without a secret: %+v", a)
	}
	if u := unsupported(t); !strings.Contains(u, "app.stranger~") || !strings.Contains(u, "the registry wants a password") || strings.Contains(u, "app.web~") {
		t.Errorf("/debug/unsupported: %s", u)
	}
	m.demand("second-word")
	secret := &corev1.Secret{
		ObjectMeta: metav1.ObjectMeta{Name: "registry", Namespace: "app"}, Type: corev1.SecretTypeDockerConfigJson,
		Data: map[string][]byte{corev1.DockerConfigJsonKey: dockerConfig("second-word")},
	}
	if _, err := s.istiod.KubeClient().Kube().CoreV1().Secrets("app").Update(t.Context(), secret, metav1.UpdateOptions{}); err != nil {
		t.Fatal(err)
	}
	s.istiod.Discovery.ConfigUpdate(&model.PushRequest{ // istiod's bootstrap watches Secrets
		ConfigsUpdated: istiosets.New(model.ConfigKey{Kind: kind.Secret, Name: "registry", Namespace: "app"}), Reason: model.NewReasonStats(model.SecretTrigger),
	})
	for end := time.Now().Add(20 * time.Second); m.pulled("second-word") == 0; time.Sleep(10 * time.Millisecond) {
		if a := s.shop.get(t, web+"/"); a.Status != 200 || a.Body != "private" {
			t.Fatalf("while the secret changes: %+v", a)
		}
		if time.Now().After(end) {
			t.Fatal("the new secret is not taken up")
		}
	}
	if a := s.shop.get(t, web+"/"); a.Status != 200 || a.Body != "private" {
		t.Errorf("with the new secret: %+v", a)
	}
	if m.pulled("first-word") == 0 || m.pulled("") > 0 {
		t.Errorf("pulls by password: %v", m.pulls)
	}
	for what, text := range map[string]string{"the log": s.waypoint.output(), "/config_dump": operator(t, "/config_dump"), "/debug/unsupported": unsupported(t)} {
		if strings.Contains(text, "first-word") || strings.Contains(text, "second-word") || strings.Contains(text, base64.StdEncoding.EncodeToString(dockerConfig("second-word"))) {
			t.Errorf("%s tells the secret", what)
		}
	}
}
