package agent

import (
	"context"
	"encoding/json"
	"errors"
	"io/fs"
	"log/slog"
	"maps"
	"net/netip"
	"os"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/google/go-cmp/cmp/cmpopts"
	"go.uber.org/goleak"

	"github.com/fairlead-mesh/fairlead/internal/identity"
	"github.com/fairlead-mesh/fairlead/internal/wasmmodule"
	"github.com/fairlead-mesh/fairlead/internal/workload"
	"github.com/fairlead-mesh/fairlead/internal/workload/workloadpb"
	"github.com/fairlead-mesh/fairlead/internal/xdstest"
	"github.com/fairlead-mesh/fairlead/xdsclient"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

const proxyConfig = `{
  "binaryPath": "/usr/local/bin/envoy", "configPath": "etc/istio/proxy", "discoveryAddress": "istiod.istio-system.svc:15012",
  "proxyBootstrapTemplatePath": "istio/tools/packaging/common/envoy_bootstrap.json",
  "proxyMetadata": {"ISTIO_META_ENABLE_HBONE": "true"}
}`

// podEnv is the environment that the waypoint template gives a pod.
func podEnv(more ...string) []string {
	return append([]string{
		"ISTIO_META_SERVICE_ACCOUNT=waypoint", "ISTIO_META_NODE_NAME=node-1", "PILOT_CERT_PROVIDER=istiod",
		"CA_ADDR=istiod.istio-system.svc:15012", "POD_NAME=waypoint-6b7d9", "POD_NAMESPACE=app", "INSTANCE_IP=10.244.0.50",
		"SERVICE_ACCOUNT=waypoint", "HOST_IP=10.0.0.1", "ISTIO_CPU_LIMIT=2", "PROXY_CONFIG=" + proxyConfig + "\n",
		"ISTIO_META_ENABLE_HBONE=true", "ISTIO_META_CLUSTER_ID=Kubernetes", "ISTIO_META_NETWORK=network-1",
		"ISTIO_META_INTERCEPTION_MODE=REDIRECT", "ISTIO_META_WORKLOAD_NAME=waypoint",
		"ISTIO_META_OWNER=kubernetes://apis/apps/v1/namespaces/app/deployments/waypoint",
		"ISTIO_META_MESH_ID=cluster.local", "TRUST_DOMAIN=cluster.local", "PATH=/bin",
	}, more...)
}

var podFiles = map[string]string{
	"/etc/istio/pod/labels": `gateway.istio.io/managed="istio.io-mesh-controller"
gateway.networking.k8s.io/gateway-class-name="istio-waypoint"
gateway.networking.k8s.io/gateway-name="waypoint"
istio.io/dataplane-mode="none"
pod-template-hash="6b7d9"
service.istio.io/canonical-name="waypoint"
service.istio.io/canonical-revision="latest"
sidecar.istio.io/inject="false"
topology.istio.io/network="network-1"`,
	"/etc/istio/pod/annotations": `istio.io/rev="default"
prometheus.io/path="/stats/prometheus"
prometheus.io/port="15020"
prometheus.io/scrape="true"
`,
	"/var/run/secrets/tokens/istio-token": "t", "/var/run/secrets/istio/root-cert.pem": "r",
}

// templateArgs are the arguments of the waypoint template.
func templateArgs(role string, more ...string) []string {
	return append([]string{
		role, "--domain", "app.svc.cluster.local", "--serviceCluster", "waypoint.app", "--proxyLogLevel", "warning",
		"--proxyComponentLogLevel", "misc:error", "--log_output_level", "default:info",
	}, more...)
}

func input(role string, env []string, files map[string]string) Input {
	return Input{
		Args: templateArgs(role), Env: env, IstioVersion: "unknown",
		Interfaces: func() []netip.Addr { return []netip.Addr{netip.MustParseAddr("10.244.0.50")} },
		ReadFile: func(name string) ([]byte, error) {
			if s, ok := files[name]; ok {
				if s == "socket" {
					return nil, errors.New("no such device or address")
				}
				return []byte(s), nil
			}
			return nil, fs.ErrNotExist
		},
	}
}

func mustParse(t *testing.T, in Input) *Config {
	t.Helper()
	c, err := Parse(in)
	if err != nil {
		t.Fatal(err)
	}
	return c
}

func TestTheNodeIsThatOfPilotAgent(t *testing.T) {
	for role, file := range map[string]string{"waypoint": "waypoint_node.json", "router": "gateway_node.json"} {
		c := mustParse(t, input(role, podEnv(), podFiles))
		b, err := os.ReadFile("testdata/" + file)
		if err != nil {
			t.Fatal(err)
		}
		var want map[string]any
		if err := json.Unmarshal(b, &want); err != nil {
			t.Fatal(err)
		}
		got := map[string]any{"id": c.Node.ID, "cluster": c.Node.Cluster, "locality": map[string]any{}, "metadata": c.Node.Metadata}
		if d := cmp.Diff(want, got); d != "" {
			t.Errorf("%s (-want +got):\n%s", role, d)
		}
		if c.Node.Region != "" || len(c.Warnings) != 0 {
			t.Errorf("%s: region %q, warnings %q", role, c.Node.Region, c.Warnings)
		}
	}
}

func TestReadsTheRestOfThePodsConfiguration(t *testing.T) {
	c := mustParse(t, input("waypoint", podEnv(), podFiles))
	if c.ID != (identity.ID{TrustDomain: "cluster.local", Namespace: "app", ServiceAccount: "waypoint"}) || c.Role != Waypoint {
		t.Errorf("identity %v, role %s", c.ID, c.Role)
	}
	if c.Ports != (Ports{HBONE: 15008, Agent: 15020, Status: 15021, Prometheus: 15090, Admin: 15000}) {
		t.Errorf("ports = %+v", c.Ports)
	}
	if c.Drain != (Drain{Duration: 45 * time.Second, Termination: 5 * time.Second, Minimum: 5 * time.Second}) || c.Concurrency != 2 {
		t.Errorf("drain = %+v, concurrency %d", c.Drain, c.Concurrency)
	}
	want := Endpoint{
		Address: "istiod.istio-system.svc:15012", ServerName: "istiod.istio-system.svc", Roots: istiodRoot, TokenFile: tokenFile,
		Headers: map[string]string{"clusterid": "Kubernetes"},
	}
	if d := cmp.Diff(want, c.XDS) + cmp.Diff(want, c.CA); d != "" {
		t.Error(d)
	}
	if c.Secrets != (Secrets{TTL: 24 * time.Hour, Fraction: 0.5, Jitter: 0.01}) {
		t.Errorf("secrets = %+v", c.Secrets)
	}
	if c.Log.Level != slog.LevelWarn || c.Log.Agent != slog.LevelInfo || c.Log.Events != slog.LevelInfo || c.Log.Components["misc"] != slog.LevelError || c.Log.JSON {
		t.Errorf("log = %+v", c.Log)
	}
	n := c.FilterNode()
	if n.ID != c.Node.ID || n.Namespace != "app" || n.Network != "network-1" || n.Labels["gateway.networking.k8s.io/gateway-name"] != "waypoint" || n.IstioVersion != "unknown" {
		t.Errorf("node = %+v", n)
	}
}

func TestVariations(t *testing.T) {
	with := func(kv ...string) map[string]string {
		m := map[string]string{}
		maps.Copy(m, podFiles)
		for i := 0; i < len(kv); i += 2 {
			m[kv[i]] = kv[i+1]
		}
		return m
	}
	const annotations = "/etc/istio/pod/annotations"
	for name, c := range map[string]struct {
		env   []string
		files map[string]string
		args  []string
		check func(*Config) bool
	}{
		"explicit roots": {env: []string{"XDS_ROOT_CA=SYSTEM", "CA_ROOT_CA=/x.pem"}, check: func(c *Config) bool { return c.XDS.Roots == "" && c.CA.Roots == "/x.pem" }},
		"other SAN":      {env: []string{"ISTIOD_SAN=istiod.x"}, check: func(c *Config) bool { return c.XDS.ServerName == "istiod.x" && c.CA.ServerName == "istiod.x" }},
		"other CA":       {env: []string{"CA_ADDR=ca.y:1"}, check: func(c *Config) bool { return c.CA.Address == "ca.y:1" && c.CA.ServerName == "ca.y" }},
		"headers":        {env: []string{"XDS_HEADER_X-A=1", "CA_HEADER_b=2"}, check: func(c *Config) bool { return c.XDS.Headers["x-a"] == "1" && c.CA.Headers["b"] == "2" }},
		"port forward": {env: []string{`PROXY_CONFIG={"discoveryAddress":"localhost:15012"}`}, check: func(c *Config) bool {
			return c.XDS.ServerName == "istiod.istio-system.svc" && c.XDS.Address == "localhost:15012"
		}},
		"plaintext": {env: []string{`PROXY_CONFIG={"controlPlaneAuthPolicy":"NONE","discoveryAddress":"istiod:15010"}`}, check: func(c *Config) bool {
			return c.XDS.Plaintext && c.XDS.TokenFile == "" && c.CA.TokenFile != "" && c.Node.Metadata["PILOT_SAN"] == nil
		}},
		"drain": {env: []string{"EXIT_ON_ZERO_ACTIVE_CONNECTIONS=true", "MINIMUM_DRAIN_DURATION=7s", `PROXY_CONFIG={"terminationDrainDuration":"20s","drain_duration":"1s"}`}, check: func(c *Config) bool {
			return c.Drain == Drain{Duration: time.Second, Termination: 20 * time.Second, ExitOnZero: true, Minimum: 7 * time.Second} && c.Node.Metadata["EXIT_ON_ZERO_ACTIVE_CONNECTIONS"] == "true"
		}},
		"annotations win": {files: with(annotations, `proxy.istio.io/config="concurrency: 5\nproxyMetadata:\n  ISTIO_META_X: 7\n"`+"\n"+`status.sidecar.istio.io/port="15099"`+"\n"), check: func(c *Config) bool {
			md, _ := c.ProxyConfig["proxyMetadata"].(map[string]any)
			return c.Concurrency == 5 && c.Ports.Agent == 15099 && c.Node.Metadata["X"] == "7" && md["ISTIO_META_ENABLE_HBONE"] == "true"
		}},
		"mounted mesh configuration": {files: with("/etc/istio/config/mesh", "defaultConfig:\n  proxyAdminPort: 1234\n"), check: func(c *Config) bool { return c.Ports.Admin == 1234 }},
		"concurrency flag":           {args: []string{"--concurrency=3"}, check: func(c *Config) bool { return c.Concurrency == 3 }},
		"a level for events": {args: []string{"--log_output_level=default:error,events:warning"}, check: func(c *Config) bool {
			return c.Log.Agent == slog.LevelError && c.Log.Events == slog.LevelWarn
		}},
		"log flags": {args: []string{"--log_as_json", "--proxyLogLevel=debug,upstream:trace", "--log_output_level=all:error,xds:debug", "--outlierLogPath=/dev/stdout"}, check: func(c *Config) bool {
			return c.Log.JSON && c.Log.Level == slog.LevelDebug && c.Log.Components["upstream"] == LevelTrace && c.Log.Agent == slog.LevelError && c.Log.Events == slog.LevelError && c.OutlierLogPath == "/dev/stdout"
		}},
		"unknown flag": {args: []string{"--new-thing", "x", "--other=1"}, check: func(c *Config) bool { return len(c.Warnings) == 2 && c.Role == Waypoint }},
		"locality": {files: with("/etc/istio/pod/labels", `topology.istio.io/locality="r1.z1.s1"`), check: func(c *Config) bool {
			return c.Node.Region == "r1" && c.Node.Zone == "z1" && c.Node.SubZone == "s1" && c.Labels["istio-locality"] == "r1/z1/s1"
		}},
		"labels from the environment": {env: []string{`ISTIO_METAJSON_LABELS={"a":"b","istio.io/dataplane-mode":"x"}`}, check: func(c *Config) bool {
			return c.Labels["a"] == "b" && c.Labels["istio.io/dataplane-mode"] == "none" && c.Node.Metadata["STATIC_LABELS"] != nil
		}},
		"version":        {env: []string{"ISTIO_META_ISTIO_VERSION=1.30.1"}, check: func(c *Config) bool { return c.IstioVersion == "1.30.1" }},
		"mounted files":  {env: []string{"FILE_MOUNTED_CERTS=true"}, check: func(c *Config) bool { return c.Secrets.Chain == "/etc/certs/cert-chain.pem" }},
		"workload files": {files: with(spiffeCerts+"/cert-chain.pem", "x", spiffeCerts+"/key.pem", "y"), check: func(c *Config) bool { return c.Secrets.Key == spiffeCerts+"/key.pem" }},
		"SPIRE socket":   {files: with(spiffeUDS+"/socket", "socket"), check: func(c *Config) bool { return len(c.Warnings) == 1 && strings.Contains(c.Warnings[0], "SPIRE") }},
		"RSA":            {env: []string{"WORKLOAD_RSA_KEY_SIZE=4096"}, check: func(c *Config) bool { return c.Secrets.RSABits == 4096 }},
		"provisioned": {env: []string{"PROV_CERT=/p"}, check: func(c *Config) bool {
			return c.CA.ClientChain == "/p/cert-chain.pem" && c.XDS.Roots == "/p/root-cert.pem"
		}},
		"unreadable values": {env: []string{"SECRET_TTL=soon", "ENVOY_STATUS_PORT=x"}, check: func(c *Config) bool { return len(c.Warnings) == 2 && c.Ports.Status == 15021 }},
		"canonical cluster": {env: []string{`PROXY_CONFIG={"tracingServiceName":"CANONICAL_NAME_AND_NAMESPACE"}`}, check: func(c *Config) bool { return c.Node.Cluster == "waypoint.app" }},
		"further roots": {env: []string{"ISTIO_MULTIROOT_MESH=true"}, check: func(c *Config) bool {
			return len(c.Warnings) == 1 && strings.Contains(c.Warnings[0], "PCDS")
		}},
		"WebAssembly modules": {env: []string{"WASM_INSECURE_REGISTRIES=a.example, b.example:5000", "WASM_MODULE_EXPIRY=1h", "WASM_PURGE_INTERVAL=1m", "WASM_HTTP_REQUEST_TIMEOUT=2s", "WASM_HTTP_REQUEST_MAX_RETRIES=3", "ISTIO_WASM_MAX_BINARY_SIZE_BYTES=1000"}, check: func(c *Config) bool {
			return cmp.Equal(c.Modules, wasmmodule.Options{Dir: modulesDir, Insecure: []string{"a.example", "b.example:5000"}, Expiry: time.Hour, PurgeInterval: time.Minute, Timeout: 2 * time.Second, Attempts: 3, MaxModule: 1000}, cmpopts.IgnoreFields(wasmmodule.Options{}, "Upstreams", "Logger", "Stats", "OnChange"))
		}},
		"WebAssembly modules, unreadable": {env: []string{"WASM_MODULE_EXPIRY=1d", "ISTIO_WASM_MAX_BINARY_SIZE_BYTES=1MB"}, check: func(c *Config) bool {
			return len(c.Warnings) == 2 && c.Modules.MaxModule == wasmmodule.DefaultMaxModule && c.Modules.Expiry == wasmmodule.DefaultExpiry
		}},
		"DNS": {env: []string{"ISTIO_META_DNS_CAPTURE=true"}, check: func(c *Config) bool { return len(c.Warnings) == 1 }},
	} {
		files := c.files
		if files == nil {
			files = podFiles
		}
		in := input("waypoint", podEnv(c.env...), files)
		in.Args = append(in.Args, c.args...)
		if got := mustParse(t, in); !c.check(got) {
			t.Errorf("%s: %+v", name, got)
		}
	}
}

func TestSaysWhatIsWrong(t *testing.T) {
	for name, c := range map[string]struct {
		env  []string
		args []string
		want string
	}{
		"no role":        {args: []string{}, want: "role"},
		"sidecar":        {args: []string{"sidecar"}, want: "not supported"},
		"bad flag value": {args: []string{"waypoint", "--concurrency=x"}, want: "concurrency"},
		"no pod name":    {env: []string{"POD_NAMESPACE=a"}, want: "POD_NAME"},
		"bad IP":         {env: podEnv("INSTANCE_IP=x"), want: "INSTANCE_IP"},
		"bad config":     {env: podEnv("PROXY_CONFIG={"), want: "PROXY_CONFIG"},
		"bad address":    {env: podEnv(`PROXY_CONFIG={"discoveryAddress":"x"}`), want: "discoveryAddress"},
		"bad CA address": {env: podEnv("CA_ADDR=x"), want: "CA_ADDR"},
		"bad duration":   {env: podEnv(`PROXY_CONFIG={"drainDuration":"x"}`), want: "drainDuration"},
		"bad port":       {env: podEnv(`PROXY_CONFIG={"statusPort":70000}`), want: "statusPort"},
		"other CA":       {env: podEnv("CA_PROVIDER=GoogleCA"), want: "CA_PROVIDER"},
		"other fetcher":  {env: podEnv("CREDENTIAL_FETCHER_TYPE=GoogleComputeEngine"), want: "CREDENTIAL_FETCHER_TYPE"},
	} {
		in := input("waypoint", c.env, podFiles)
		if c.env == nil {
			in.Env = podEnv()
		}
		if c.args != nil {
			in.Args = c.args
		}
		if _, err := Parse(in); err == nil || !strings.Contains(err.Error(), c.want) {
			t.Errorf("%s: %v, want %q", name, err, c.want)
		}
	}
}

// FuzzParse: there is a configuration with a role or an error, and the same
// input gives the same.
func FuzzParse(f *testing.F) {
	f.Add("waypoint --concurrency 1", proxyConfig, podFiles["/etc/istio/pod/labels"])
	f.Add("router --proxyLogLevel=a:b,c", "a_b: {c: 1}", "x=\"\\u00e9\"\n=\"\"")
	f.Fuzz(func(t *testing.T, args, config, labels string) {
		in := input("waypoint", podEnv("PROXY_CONFIG="+config), map[string]string{"/etc/istio/pod/labels": labels})
		in.Args = strings.Fields(args)
		c, err := Parse(in)
		if (c == nil) == (err == nil) {
			t.Fatalf("config %v, error %v", c, err)
		}
		again, err2 := Parse(in)
		if (err == nil) != (err2 == nil) {
			t.Fatalf("%v, then %v", err, err2)
		}
		if err != nil {
			return
		}
		if c.Role == "" || c.Role != again.Role || !slices.Equal(c.Warnings, again.Warnings) {
			t.Fatalf("%+v, then %+v", c, again)
		}
	})
}

func TestAWorkloadTableFollowsTheControlPlane(t *testing.T) {
	srv := xdstest.New(t, xdstest.Options{})
	put := func(uid string, ip byte) {
		if err := srv.Set(xdstest.Workload, uid, &workloadpb.Workload{Uid: uid, Name: uid, Addresses: [][]byte{{10, 0, 0, ip}}}); err != nil {
			t.Fatal(err)
		}
	}
	put("a", 1)
	var tab workload.Table
	in := input("waypoint", podEnv(`PROXY_CONFIG={"controlPlaneAuthPolicy":"NONE","discoveryAddress":"`+srv.Addr()+`"}`), podFiles)
	cfg := mustParse(t, in).XDSConfig()
	cfg.Types = []xdsclient.ResourceType{WorkloadType(&tab)}
	client, err := xdsclient.New(cfg)
	if err != nil {
		t.Fatal(err)
	}
	ctx, done := t.Context(), make(chan struct{})
	run, cancel := context.WithCancel(ctx)
	go func() { defer close(done); _ = client.Run(run) }()
	defer func() { cancel(); <-done }()
	until := func(what string, ok func() bool) {
		t.Helper()
		for end := time.Now().Add(10 * time.Second); !ok(); time.Sleep(time.Millisecond) {
			if time.Now().After(end) {
				t.Fatalf("no %s in time", what)
			}
		}
	}
	known := func(ip byte) bool { return tab.Peer(netip.AddrFrom4([4]byte{10, 0, 0, ip})) != nil }
	until("first workload", func() bool { return known(1) })
	put("b", 2)
	srv.Remove(xdstest.Workload, "a")
	until("change", func() bool { return known(2) && !known(1) })
	rs := srv.Requests()
	if id := rs[0].GetNode().GetId(); id != "waypoint~10.244.0.50~waypoint-6b7d9.app~app.svc.cluster.local" {
		t.Errorf("node ID = %s", id)
	}
	if md := rs[0].GetNode().GetMetadata().AsMap(); md["NAMESPACE"] != "app" || rs[0].GetNode().GetUserAgentName() != "fairlead" {
		t.Errorf("metadata = %v", md)
	}
	if slices.ContainsFunc(rs, func(r xdstest.Request) bool { return r.IsNACK() }) {
		t.Error("a NACK")
	}
}
