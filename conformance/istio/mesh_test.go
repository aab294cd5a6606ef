package istio

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"time"

	networkingv1 "istio.io/client-go/pkg/apis/networking/v1"
	"istio.io/istio/pkg/config"
	corev1 "k8s.io/api/core/v1"
	discoveryv1 "k8s.io/api/discovery/v1"
	"k8s.io/apimachinery/pkg/runtime"
)

// mesh is what stays over all scenarios: applications, ztunnels and
// identities. Each scenario has an istiod and a waypoint of its own.
type mesh struct {
	dir, fairlead string
	base          []runtime.Object
	configs       []config.Config // those of base that are Istio's own
	ca            *authority
	web1, web2    *app
	external      *app // outside of the mesh
	db            *tcpApp
	// shop and stranger are clients of these service accounts.
	shop, stranger *client
	procs          []*process
}

// binary returns a statically linked Fairlead: FAIRLEAD_BIN, or one built now.
func binary(dir string) (string, error) {
	if b := os.Getenv("FAIRLEAD_BIN"); b != "" {
		return filepath.Abs(b)
	}
	out := filepath.Join(dir, "fairlead")
	cmd := exec.Command("go", "build", "-trimpath", "-o", out, "./cmd/fairlead")
	cmd.Dir, cmd.Env = "../..", append(os.Environ(), "CGO_ENABLED=0", "GOFLAGS=")
	if msg, err := cmd.CombinedOutput(); err != nil {
		return "", fmt.Errorf("building fairlead: %w\n%s", err, msg)
	}
	return out, nil
}

// startMesh returns a mesh, to be stopped also after an error.
func startMesh() (m *mesh, err error) {
	m = &mesh{}
	if m.dir, err = os.MkdirTemp("", "istio"); err != nil {
		return m, err
	}
	if m.fairlead, err = binary(m.dir); err != nil {
		return m, err
	}
	doc, err := os.ReadFile("testdata/mesh.yaml")
	if err != nil {
		return m, err
	}
	if m.base, err = decode(string(doc)); err != nil {
		return m, fmt.Errorf("testdata/mesh.yaml: %w", err)
	}
	if m.configs, err = istioConfigs(string(doc)); err != nil {
		return m, fmt.Errorf("testdata/mesh.yaml: %w", err)
	}
	if m.ca, err = newAuthority(); err != nil {
		return m, err
	}
	if m.external, err = startApp("external", "127.16.0.99", "8080"); err != nil {
		return m, err
	}
	for _, o := range m.base {
		if p, ok := o.(*corev1.Pod); ok {
			if err := m.startPod(p); err != nil {
				return m, fmt.Errorf("pod %s: %w", p.Name, err)
			}
		}
	}
	return m, nil
}

// startPod starts a pod's application and ztunnel, or prepares its files if it
// is the waypoint's.
func (m *mesh) startPod(p *corev1.Pod) (err error) {
	certs := filepath.Join(m.dir, p.Name)
	ip := p.Status.PodIP
	listeners := "hbone: '" + ip + ":15008', reusePort: true"
	ready := ip + ":15008"
	switch p.Name {
	case "waypoint-0":
		return m.proxyRoot(p)
	case "web-1":
		m.web1, err = startApp(p.Name, ip, "8080", "8081")
	case "web-2":
		m.web2, err = startApp(p.Name, ip, "8080", "8081")
	case "db-1":
		m.db, err = startTCPApp(ip, "5432", "5433")
	default:
		ready = ip + ":15081"
		listeners = "connect: '" + ready + "'"
		c := newClient(ready)
		if p.Spec.ServiceAccountName == "shop" {
			m.shop = c
		} else {
			m.stranger = c
		}
	}
	if err != nil {
		return err
	}
	if err := m.ca.issue(certs, p.Namespace, p.Spec.ServiceAccountName); err != nil {
		return err
	}
	file := filepath.Join(certs, "ztunnel.yaml")
	if err := os.WriteFile(file, []byte(ztunnelConfig(m.base, p, certs, listeners)), 0o600); err != nil {
		return err
	}
	z, err := start(exec.Command(m.fairlead, "ztunnel", "--config", file, "--log-level", "info"))
	if err != nil {
		return err
	}
	m.procs = append(m.procs, z)
	return z.await("its listener", time.Minute, func() bool {
		c, err := net.Dial("tcp", ready)
		if err == nil {
			_ = c.Close()
		}
		return err == nil
	})
}

// ztunnelConfig describes the mesh for the ztunnel of pod self. Pods of
// services with a waypoint accept nobody else, so that nothing gets to the
// applications past it.
func ztunnelConfig(objects []runtime.Object, self *corev1.Pod, certs, listeners string) string {
	var b strings.Builder
	fmt.Fprintf(&b, "workload: {namespace: %s, name: %s, serviceAccount: %s}\n", self.Namespace, self.Name, self.Spec.ServiceAccountName)
	fmt.Fprintf(&b, "identity: {certificate: %[1]s/cert-chain.pem, key: %[1]s/key.pem, roots: %[1]s/root-cert.pem}\n", certs)
	fmt.Fprintf(&b, "listeners: {%s}\ndrainTime: 1s\n", listeners)
	b.WriteString("policies:\n- {name: waypoint-only, namespace: app, scope: WorkloadSelector, action: Allow, rules: [[[{principals: [!Exact cluster.local/ns/app/sa/waypoint, !Exact cluster.local/ns/app/sa/ingress]}]]]}\n")
	b.WriteString("services:\n")
	endpoints := map[string][]string{} // services by pod
	for _, o := range objects {
		switch o := o.(type) {
		case *corev1.Service:
			host := o.Name + "." + o.Namespace + ".svc.cluster.local"
			ports, waypoint := "", ""
			for _, p := range o.Spec.Ports {
				ports += fmt.Sprintf("%d: %d, ", p.Port, max(p.TargetPort.IntVal, 0))
			}
			if o.Name != "waypoint" {
				waypoint = ", waypoint: {destination: app/waypoint.app.svc.cluster.local}"
			} else {
				ports = "15008: 15008, "
			}
			fmt.Fprintf(&b, "- {name: %s, namespace: %s, hostname: %s, vips: [/%s], ports: {%s}%s}\n", o.Name, o.Namespace, host, o.Spec.ClusterIP, strings.TrimSuffix(ports, ", "), waypoint)
		case *networkingv1.ServiceEntry:
			p := o.Spec.Ports[0]
			fmt.Fprintf(&b, "- {name: %s, namespace: %s, hostname: %s, vips: [/%s], ports: {%d: %d}, waypoint: {destination: app/waypoint.app.svc.cluster.local}}\n",
				o.Name, o.Namespace, o.Spec.Hosts[0], o.Spec.Addresses[0], p.Number, p.TargetPort)
		case *discoveryv1.EndpointSlice:
			svc := o.Labels[discoveryv1.LabelServiceName]
			for _, e := range o.Endpoints {
				endpoints[e.TargetRef.Name] = append(endpoints[e.TargetRef.Name], o.Namespace+"/"+svc+"."+o.Namespace+".svc.cluster.local: {}")
			}
		}
	}
	b.WriteString("workloads:\n")
	for _, o := range objects {
		p, ok := o.(*corev1.Pod)
		if !ok {
			continue
		}
		more := ""
		if p.Namespace == "app" && p.Name != "waypoint-0" {
			more = ", authorizationPolicies: [app/waypoint-only], waypoint: {destination: app/waypoint.app.svc.cluster.local}"
		}
		fmt.Fprintf(&b, "- {name: %s, namespace: %s, serviceAccount: %s, workloadIps: [%s], protocol: HBONE, services: {%s}%s}\n",
			p.Name, p.Namespace, p.Spec.ServiceAccountName, p.Status.PodIP, strings.Join(endpoints[p.Name], ", "), more)
	}
	return b.String()
}

// credentials is where a pod has its certificate as a volume.
const credentials = "var/run/secrets/workload-spiffe-credentials"

// root is the root directory of a proxy's container.
func (m *mesh) root(pod string) string { return filepath.Join(m.dir, "root-"+pod) }

// proxyRoot makes it: the binary, the pod's labels, and its certificate as a
// volume.
func (m *mesh) proxyRoot(p *corev1.Pod) error {
	root := m.root(p.Name)
	if err := m.ca.issue(filepath.Join(root, credentials), p.Namespace, p.Spec.ServiceAccountName); err != nil {
		return err
	}
	info := filepath.Join(root, "etc/istio/pod")
	if err := os.MkdirAll(info, 0o755); err != nil {
		return err
	}
	var labels strings.Builder
	for k, v := range p.Labels {
		fmt.Fprintf(&labels, "%s=%q\n", k, v)
	}
	if err := os.WriteFile(filepath.Join(info, "labels"), []byte(labels.String()), 0o600); err != nil {
		return err
	}
	if err := os.WriteFile(filepath.Join(info, "annotations"), nil, 0o600); err != nil {
		return err
	}
	bin := filepath.Join(root, "fairlead")
	if _, err := os.Stat(bin); err == nil {
		return nil // of a scenario before
	}
	if os.Link(m.fairlead, bin) == nil {
		return nil
	}
	in, err := os.Open(m.fairlead)
	if err != nil {
		return err
	}
	defer in.Close()
	out, err := os.OpenFile(bin, os.O_CREATE|os.O_WRONLY, 0o755)
	if err != nil {
		return err
	}
	_, err = io.Copy(out, in)
	return errors.Join(err, out.Close())
}

// stop ends everything and reports what did not end in order.
func (m *mesh) stop() error {
	var errs []error
	for _, c := range []*client{m.shop, m.stranger} {
		if c != nil {
			c.http.CloseIdleConnections()
		}
	}
	for _, p := range m.procs {
		errs = append(errs, p.end())
	}
	for _, a := range []*app{m.web1, m.web2, m.external} {
		if a != nil {
			a.stop()
		}
	}
	if m.db != nil {
		m.db.stop()
	}
	return errors.Join(append(errs, os.RemoveAll(m.dir))...)
}

// process is a running Fairlead and its log.
type process struct {
	cmd  *exec.Cmd
	mu   sync.Mutex
	log  bytes.Buffer
	done chan struct{}
	err  error
}

func (p *process) Write(b []byte) (int, error) {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.log.Write(b)
}

func (p *process) output() string {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.log.String()
}

func start(cmd *exec.Cmd) (*process, error) {
	p := &process{cmd: cmd, done: make(chan struct{})}
	if cmd.SysProcAttr == nil {
		cmd.SysProcAttr = &syscall.SysProcAttr{}
	}
	cmd.SysProcAttr.Pdeathsig = syscall.SIGKILL
	cmd.Stdout, cmd.Stderr = p, p
	if err := cmd.Start(); err != nil {
		return nil, err
	}
	go func() { p.err = cmd.Wait(); close(p.done) }()
	return p, nil
}

// end asks p to end and waits for it.
func (p *process) end() error {
	_ = p.cmd.Process.Signal(syscall.SIGTERM)
	ctx, cancel := context.WithTimeout(context.Background(), 30*time.Second)
	defer cancel()
	select {
	case <-p.done:
	case <-ctx.Done():
		_ = p.cmd.Process.Kill()
		<-p.done
	}
	if p.err != nil {
		return fmt.Errorf("%s: %w\n%s", p.cmd, p.err, p.output())
	}
	return nil
}

// await waits for f; it fails at once if the process ends.
func (p *process) await(what string, d time.Duration, f func() bool) error {
	for end := time.Now().Add(d); !f(); time.Sleep(5 * time.Millisecond) {
		select {
		case <-p.done:
			return fmt.Errorf("%s ended: %w\n%s", p.cmd, p.err, p.output())
		default:
		}
		if time.Now().After(end) {
			return fmt.Errorf("waited %s in vain for %s\n%s", d, what, p.output())
		}
	}
	return nil
}
