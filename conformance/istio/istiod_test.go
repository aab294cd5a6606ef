package istio

import (
	"bufio"
	"cmp"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	meshconfig "istio.io/api/mesh/v1alpha1"
	"istio.io/istio/pilot/pkg/config/kube/crd"
	"istio.io/istio/pilot/test/xds"
	"istio.io/istio/pkg/config"
	istiomesh "istio.io/istio/pkg/config/mesh"
	kubelib "istio.io/istio/pkg/kube"
	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/meta"
	"k8s.io/apimachinery/pkg/runtime"
	utilyaml "k8s.io/apimachinery/pkg/util/yaml"
	metadatafake "k8s.io/client-go/metadata/fake"
	clienttesting "k8s.io/client-go/testing"
	gatewayv1 "sigs.k8s.io/gateway-api/apis/v1"
	"sigs.k8s.io/gateway-api/pkg/consts"
)

// documents splits a YAML stream.
func documents(stream string) ([]string, error) {
	var out []string
	r := utilyaml.NewYAMLReader(bufio.NewReader(strings.NewReader(stream)))
	for {
		doc, err := r.Read()
		if errors.Is(err, io.EOF) {
			return out, nil
		}
		if err != nil {
			return nil, err
		}
		if strings.TrimSpace(string(doc)) != "" {
			out = append(out, string(doc))
		}
	}
}

// decode reads objects of any kind that istiod knows.
func decode(stream string) ([]runtime.Object, error) {
	docs, err := documents(stream)
	if err != nil {
		return nil, err
	}
	var out []runtime.Object
	for _, doc := range docs {
		o, _, err := kubelib.IstioCodec.UniversalDeserializer().Decode([]byte(doc), nil, nil)
		if err != nil {
			return nil, fmt.Errorf("%w in\n%s", err, doc)
		}
		if r, ok := o.(*gatewayv1.HTTPRoute); ok {
			setDefaults(r)
		}
		out = append(out, o)
	}
	return out, nil
}

// istioConfigs reads the objects of Istio's own kinds as istiod's
// configuration store has them, validated by istiod's rules.
func istioConfigs(stream string) ([]config.Config, error) {
	docs, err := documents(stream)
	if err != nil {
		return nil, err
	}
	var out []config.Config
	for _, doc := range docs {
		if !strings.Contains(doc, "istio.io/v") {
			continue
		}
		cs, unknown, err := crd.ParseInputs(doc)
		if err == nil && len(unknown) > 0 {
			err = fmt.Errorf("unknown kind %v", unknown)
		}
		if err != nil {
			return nil, fmt.Errorf("%w in\n%s", err, doc)
		}
		out = append(out, cs...)
	}
	return out, nil
}

// scenario is an istiod and the waypoint that it programs.
type scenario struct {
	*mesh
	istiod   *xds.FakeDiscoveryServer
	relay    *relay
	waypoint *process // or the gateway
	drain    time.Duration
	objects  []runtime.Object // of this scenario
}

// scenarios counts by name the scenarios that ran.
var scenarios = map[string]int{}

// begin starts istiod with the mesh and the objects in testdata/<name>, and a
// waypoint under it. edit may change the YAML.
func begin(t *testing.T, name string, edit ...string) *scenario {
	t.Helper()
	return beginFor(t, name, 20*time.Millisecond, edit...)
}

// beginFor is begin with how long the waypoint lives on after SIGTERM.
func beginFor(t *testing.T, name string, drain time.Duration, edit ...string) *scenario {
	t.Helper()
	began := time.Now()
	s := control(t, name, drain, edit...)
	if err := s.startWaypoint(t); err != nil {
		t.Fatal(err)
	}
	t.Logf("the waypoint is ready after %v", time.Since(began).Round(time.Millisecond))
	return s
}

// beginIngress is begin with an ingress gateway in place of the waypoint.
func beginIngress(t *testing.T, name string, edit ...string) *scenario {
	t.Helper()
	s := control(t, name, 20*time.Millisecond, edit...)
	for _, o := range s.objects {
		if p, ok := o.(*corev1.Pod); ok && p.Name == "ingress-0" {
			if err := s.proxyRoot(p); err != nil {
				t.Fatal(err)
			}
		}
	}
	if err := s.startProxy(t, "router", "ingress", "ingress-0", "127.16.0.40"); err != nil {
		t.Fatal(err)
	}
	return s
}

// control starts istiod with the mesh and the objects in testdata/<name>.
func control(t *testing.T, name string, drain time.Duration, edit ...string) *scenario {
	t.Helper()
	scenarios[name]++
	files, err := filepath.Glob(filepath.Join("testdata", name, "*.yaml"))
	if err != nil || len(files) == 0 {
		t.Fatalf("testdata/%s has no YAML file: %v", name, err)
	}
	var stream strings.Builder
	for _, f := range files {
		b, err := os.ReadFile(f)
		if err != nil {
			t.Fatal(err)
		}
		stream.WriteString(strings.NewReplacer(edit...).Replace(string(b)) + "\n---\n")
	}
	objects, err := decode(stream.String())
	if err != nil {
		t.Fatal(err)
	}
	configs, err := istioConfigs(stream.String())
	if err != nil {
		t.Fatal(err)
	}
	s := &scenario{mesh: world, drain: drain, objects: objects}
	s.web1.reset(nil)
	s.web2.reset(nil)
	s.external.reset(nil)
	s.db.reset()
	began := time.Now()
	s.istiod = xds.NewFakeDiscoveryServer(t, xds.FakeOptions{
		KubernetesObjects: merge(s.base, objects), Configs: append(slices.Clone(s.configs), configs...), MeshConfig: meshConfig(t, objects),
		DebounceTime: 10 * time.Millisecond, KubeClientModifier: bundleVersion,
		ListenerBuilder: func() (net.Listener, error) { return net.Listen("tcp", "127.0.0.1:0") },
	})
	s.relay = newRelay(t, s.istiod.Listener.Addr().String())
	t.Logf("istiod is ready after %v", time.Since(began).Round(time.Millisecond))
	return s
}

// meshConfig is that of the ConfigMap "istio" if there is one, else istiod's
// default.
func meshConfig(t *testing.T, objects []runtime.Object) *meshconfig.MeshConfig {
	for _, o := range objects {
		if c, ok := o.(*corev1.ConfigMap); ok && c.Name == "istio" {
			m, err := istiomesh.ApplyMeshConfigDefaults(c.Data["mesh"])
			if err != nil {
				t.Fatal(err)
			}
			return m
		}
	}
	return istiomesh.DefaultMeshConfig()
}

// bundleVersion gives the Gateway API's kinds the annotation of their release,
// without which istiod leaves the newer ones alone.
func bundleVersion(c kubelib.Client) {
	c.Metadata().(*metadatafake.FakeMetadataClient).PrependReactor("*", "customresourcedefinitions", func(a clienttesting.Action) (bool, runtime.Object, error) {
		if w, ok := a.(interface{ GetObject() runtime.Object }); ok {
			if m, err := meta.Accessor(w.GetObject()); err == nil {
				m.SetAnnotations(map[string]string{consts.BundleVersionAnnotation: consts.BundleVersion})
			}
		}
		return false, nil, nil
	})
}

// merge returns a copy of base with more; an object of the same kind and name
// replaces that of base.
func merge(base, more []runtime.Object) []runtime.Object {
	key := func(o runtime.Object) string {
		m, err := meta.Accessor(o)
		if err != nil {
			return ""
		}
		return o.GetObjectKind().GroupVersionKind().String() + " " + m.GetNamespace() + "/" + m.GetName()
	}
	replaced := map[string]bool{}
	for _, o := range more {
		replaced[key(o)] = true
	}
	out := slices.Clone(more)
	for _, o := range base {
		if !replaced[key(o)] {
			out = append(out, o.DeepCopyObject())
		}
	}
	return out
}

// startWaypoint starts the waypoint.
func (s *scenario) startWaypoint(t *testing.T) error {
	return s.startProxy(t, "waypoint", "waypoint", "waypoint-0", "127.16.0.20")
}

// startProxy starts a proxy as istiod's pod template does, in the container's
// root directory. name is that of its service account and its Deployment.
func (s *scenario) startProxy(t *testing.T, role, name, pod, ip string) error {
	cmd := exec.Command("/fairlead", "proxy", role, "--domain", "app.svc.cluster.local", "--serviceCluster", name+".app",
		"--proxyLogLevel", cmp.Or(os.Getenv("WAYPOINT_LOG_LEVEL"), "warning"), "--proxyComponentLogLevel", "misc:error", "--log_output_level", "default:info")
	cmd.Dir, cmd.SysProcAttr = "/", &syscall.SysProcAttr{Chroot: s.root(pod)}
	cmd.Env = []string{
		"ISTIO_META_SERVICE_ACCOUNT=" + name, "ISTIO_META_NODE_NAME=node-1", "PILOT_CERT_PROVIDER=istiod", "CA_ADDR=istiod.istio-system.svc:15012",
		"POD_NAME=" + pod, "POD_NAMESPACE=app", "INSTANCE_IP=" + ip, "SERVICE_ACCOUNT=" + name, "HOST_IP=10.99.0.1", "ISTIO_CPU_LIMIT=2",
		`PROXY_CONFIG={"controlPlaneAuthPolicy":"NONE","terminationDrainDuration":"` + s.drain.String() + `","discoveryAddress":"` + s.relay.l.Addr().String() + `"}`,
		"ISTIO_META_CLUSTER_ID=Kubernetes", "ISTIO_META_INTERCEPTION_MODE=REDIRECT", "ISTIO_META_WORKLOAD_NAME=" + name,
		"ISTIO_META_OWNER=kubernetes://apis/apps/v1/namespaces/app/deployments/" + name, "ISTIO_META_MESH_ID=cluster.local", "TRUST_DOMAIN=cluster.local",
		"WASM_HTTP_REQUEST_MAX_RETRIES=2",
	}
	p, err := start(cmd)
	if err != nil {
		return err
	}
	s.waypoint = p
	t.Cleanup(func() {
		s.shop.http.CloseIdleConnections()
		s.stranger.http.CloseIdleConnections()
		if err := p.end(); err != nil {
			t.Error(err)
		}
		if t.Failed() {
			t.Log("the waypoint's log:\n" + p.output())
		}
	})
	probe := http.Client{Timeout: time.Second, Transport: &http.Transport{DisableKeepAlives: true}}
	return p.await("readiness", time.Minute, func() bool {
		resp, err := probe.Get("http://127.0.0.1:15021/healthz/ready")
		if err != nil {
			return false
		}
		_ = resp.Body.Close()
		return resp.StatusCode == http.StatusOK
	})
}
