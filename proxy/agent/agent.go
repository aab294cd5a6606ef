// Package agent reads what istiod's pod templates hand to a proxy: the
// arguments and environment of "pilot-agent proxy", the pod's labels and
// annotations, tokens and roots. The result is plain data, and constructors
// for the xDS client's configuration and the workload's identity.
package agent

import (
	"errors"
	"fmt"
	"io/fs"
	"net"
	"net/netip"
	"os"
	"path"
	"slices"
	"strings"
	"time"

	"github.com/fairlead-mesh/fairlead/internal/identity"
	"github.com/fairlead-mesh/fairlead/internal/wasmmodule"
	"github.com/fairlead-mesh/fairlead/xdsclient"
)

// DefaultIstioVersion is what istiod is told unless ISTIO_META_ISTIO_VERSION
// says otherwise: the newest whose configuration is known to work.
const DefaultIstioVersion = "1.32.0"

// Input is what Parse reads. Nil functions mean the process's own.
type Input struct {
	// Args follow "proxy": the role and flags.
	Args []string
	// Env is in the form of os.Environ.
	Env []string
	// ReadFile reads a file by its absolute path.
	ReadFile func(path string) ([]byte, error)
	// Interfaces returns the addresses of the host, without loopback.
	Interfaces func() []netip.Addr
	// IstioVersion replaces DefaultIstioVersion.
	IstioVersion string
}

// Role is the kind of proxy.
type Role string

// Roles.
const (
	Waypoint Role = "waypoint"
	Router   Role = "router"
)

// Config is everything that was read. It is not modified afterwards.
type Config struct {
	Role Role
	Node xdsclient.Node
	// ID is this workload's identity.
	ID             identity.ID
	PodName        string
	ClusterID      string
	Network        string
	WorkloadName   string
	Labels         map[string]string
	InstanceIPs    []netip.Addr
	Domain         string // <namespace>.svc.<cluster domain>
	IstioVersion   string
	OutlierLogPath string

	XDS, CA Endpoint
	// Secrets says where this workload's certificate comes from.
	Secrets Secrets
	Ports   Ports
	Drain   Drain
	Log     Log
	// Concurrency is the number of processors to use, 0 for all.
	Concurrency int
	// Modules says how WebAssembly modules are fetched and kept.
	Modules wasmmodule.Options
	// ProxyConfig is the effective ProxyConfig as JSON values.
	ProxyConfig map[string]any
	// Warnings list what was given and has no effect here, for the log.
	Warnings []string
}

// Endpoint is a server of the control plane.
type Endpoint struct {
	Address string // host:port
	// Plaintext is set if the control plane's policy is NONE.
	Plaintext bool
	// Roots is a PEM file, "" for the system's roots.
	Roots string
	// ServerName is what its certificate is verified for.
	ServerName string
	// TokenFile, "" for none.
	TokenFile string
	// ClientChain and ClientKey are files of a client certificate, "" for none.
	ClientChain, ClientKey string
	// Headers are sent with each call; keys are lower case.
	Headers map[string]string
}

// Secrets is where this workload's certificate comes from: files if Chain is
// set, else the certificate authority.
type Secrets struct {
	Chain, Key, Roots string
	TTL               time.Duration
	// Fraction and Jitter of the lifetime after which it is renewed.
	Fraction, Jitter float64
	RSABits          int // 0: ECDSA P-256
	CertSigner       string
}

// Ports of this proxy's own listeners.
type Ports struct {
	// HBONE is where tunnels arrive; istiod's listener says so, too.
	HBONE uint16
	// Agent serves merged metrics, /drain and /quitquitquit; Status
	// /healthz/ready; Prometheus the proxy's metrics; Admin is on loopback.
	Agent, Status, Prometheus, Admin uint16
}

// Drain is how the proxy ends.
type Drain struct {
	// Duration is how long listeners drain after a change of configuration,
	// Termination how long after SIGTERM.
	Duration, Termination time.Duration
	// ExitOnZero waits for the last connection instead of Termination, but at
	// least Minimum.
	ExitOnZero bool
	Minimum    time.Duration
}

// Parse reads a pod's configuration. An error says what the operator should
// look at.
func Parse(in Input) (*Config, error) {
	if in.ReadFile == nil {
		in.ReadFile = os.ReadFile
	}
	if in.Interfaces == nil {
		in.Interfaces = hostAddresses
	}
	if in.IstioVersion == "" {
		in.IstioVersion = DefaultIstioVersion
	}
	f, err := parseFlags(in.Args)
	if err != nil {
		return nil, err
	}
	p := &parser{in: in, env: newEnv(in.Env), flags: f}
	c := &Config{Role: f.role, OutlierLogPath: f.outlierLogPath, Log: f.log, Warnings: f.warnings}
	for _, step := range []func(*Config) error{p.pod, p.proxyConfig, p.settings, p.endpoints, p.secrets, p.node} {
		if err := step(c); err != nil {
			return nil, err
		}
	}
	c.Warnings = append(c.Warnings, p.env.warnings...)
	return c, nil
}

type parser struct {
	in          Input
	env         *env
	flags       *flags
	labels      map[string]string
	annotations map[string]string
}

// pod reads who and where we are.
func (p *parser) pod(c *Config) error {
	c.PodName = p.env.str("POD_NAME", "")
	c.ID = identity.ID{
		TrustDomain: p.env.str("TRUST_DOMAIN", "cluster.local"), Namespace: p.env.str("POD_NAMESPACE", ""),
		ServiceAccount: p.env.str("SERVICE_ACCOUNT", ""),
	}
	if c.PodName == "" || c.ID.Namespace == "" {
		return errors.New("POD_NAME and POD_NAMESPACE must be set (is this run by istiod's pod template?)")
	}
	if c.ID.ServiceAccount == "" {
		c.ID.ServiceAccount = p.env.str("ISTIO_META_SERVICE_ACCOUNT", "default")
	}
	c.Domain = p.flags.domain
	if c.Domain == "" {
		c.Domain = c.ID.Namespace + ".svc.cluster.local"
	}
	var err error
	if p.labels, err = p.podInfo("labels"); err != nil {
		return err
	}
	if p.annotations, err = p.podInfo("annotations"); err != nil {
		return err
	}
	if ip := p.env.str("INSTANCE_IP", ""); ip != "" {
		a, err := netip.ParseAddr(ip)
		if err != nil {
			return fmt.Errorf("INSTANCE_IP: %w", err)
		}
		c.InstanceIPs = append(c.InstanceIPs, a)
	}
	more := p.in.Interfaces()
	if len(more) == 0 {
		more = []netip.Addr{netip.AddrFrom4([4]byte{127, 0, 0, 1}), netip.IPv6Loopback()}
	}
	for _, a := range more {
		if !slices.Contains(c.InstanceIPs, a) {
			c.InstanceIPs = append(c.InstanceIPs, a)
		}
	}
	return nil
}

// settings reads ports, drain and concurrency.
func (p *parser) settings(c *Config) error {
	e, pc := p.env, c.ProxyConfig
	c.ClusterID = e.str("ISTIO_META_CLUSTER_ID", "Kubernetes")
	c.Network, c.WorkloadName = e.str("ISTIO_META_NETWORK", ""), e.str("ISTIO_META_WORKLOAD_NAME", "")
	c.Ports = Ports{
		HBONE: 15008, Status: uint16(e.integer("ENVOY_STATUS_PORT", 15021)), Prometheus: uint16(e.integer("ENVOY_PROMETHEUS_PORT", 15090)),
		Agent: uint16(number(pc, "statusPort")), Admin: uint16(number(pc, "proxyAdminPort")),
	}
	c.Drain = Drain{
		ExitOnZero: e.boolean("EXIT_ON_ZERO_ACTIVE_CONNECTIONS"), Minimum: e.duration("MINIMUM_DRAIN_DURATION", 5*time.Second),
	}
	var err error
	if c.Drain.Duration, err = duration(pc, "drainDuration"); err != nil {
		return err
	}
	if c.Drain.Termination, err = duration(pc, "terminationDrainDuration"); err != nil {
		return err
	}
	c.Modules = modules(e)
	c.Modules.Dir = modulesDir
	c.Concurrency = p.flags.concurrency
	if c.Concurrency == 0 {
		c.Concurrency = number(pc, "concurrency")
	}
	if _, set := pc["concurrency"]; !set && c.Concurrency == 0 {
		c.Concurrency = e.integer("ISTIO_CPU_LIMIT", 0)
	}
	for _, k := range []string{"ISTIO_META_DNS_CAPTURE", "ISTIO_META_ENABLE_DNS_SERVER"} {
		if e.boolean(k) {
			c.warn("%s: there is no DNS server in this proxy", k)
		}
	}
	if e.boolean("ISTIO_MULTIROOT_MESH") {
		c.warn("ISTIO_MULTIROOT_MESH: further roots (PCDS) are not subscribed to; peers are verified with those of istiod's CA")
	}
	if e.str("OUTPUT_CERTS", "") != "" {
		c.warn("OUTPUT_CERTS: certificates are kept in memory only")
	}
	return nil
}

func (c *Config) warn(format string, args ...any) {
	c.Warnings = append(c.Warnings, fmt.Sprintf(format, args...))
}

// Places in the pod, as istiod's templates mount them.
const (
	tokenFile   = "/var/run/secrets/tokens/istio-token"
	istiodRoot  = "/var/run/secrets/istio/root-cert.pem"
	customCerts = "/etc/certs"
	spiffeCerts = "/var/run/secrets/workload-spiffe-credentials"
	spiffeUDS   = "/var/run/secrets/workload-spiffe-uds"
	podInfoDir  = "/etc/istio/pod"
)

func (p *parser) exists(name string) bool {
	_, err := p.in.ReadFile(name)
	return err == nil
}

// endpoints reads how to reach the control plane.
func (p *parser) endpoints(c *Config) error {
	e, pc := p.env, c.ProxyConfig
	addr, _ := pc["discoveryAddress"].(string)
	host, _, err := net.SplitHostPort(addr)
	if err != nil {
		return fmt.Errorf("discoveryAddress of the proxy configuration: %w", err)
	}
	san := e.str("ISTIOD_SAN", "")
	if san == "" {
		san = host
	}
	if san == "localhost" { // a port forward to istiod
		san = "istiod.istio-system.svc"
	}
	prov := e.str("PROV_CERT", "")
	c.XDS = Endpoint{
		Address: addr, ServerName: san, Plaintext: pc["controlPlaneAuthPolicy"] == "NONE",
		Headers: e.prefixed("XDS_HEADER_", "clusterid", c.ClusterID),
	}
	c.CA = Endpoint{
		Address: e.str("CA_ADDR", addr), Headers: e.prefixed("CA_HEADER_", "clusterid", c.ClusterID),
	}
	if c.CA.Address == addr {
		c.CA.ServerName = san
	} else if c.CA.ServerName, _, err = net.SplitHostPort(c.CA.Address); err != nil {
		return fmt.Errorf("CA_ADDR: %w", err)
	}
	provider := e.str("PILOT_CERT_PROVIDER", "istiod")
	c.XDS.Roots = p.roots(e.str("XDS_ROOT_CA", ""), prov, p.exists(customCerts+"/root-cert.pem"))
	c.CA.Roots = p.roots(e.str("CA_ROOT_CA", ""), prov, provider == "custom")
	for _, ep := range []*Endpoint{&c.XDS, &c.CA} {
		if prov != "" {
			ep.ClientChain, ep.ClientKey = path.Join(prov, "cert-chain.pem"), path.Join(prov, "key.pem")
		}
		if !ep.Plaintext {
			ep.TokenFile = tokenFile
		}
	}
	if prov != "" && !p.exists(tokenFile) {
		c.XDS.TokenFile, c.CA.TokenFile = "", ""
	}
	return nil
}

// roots picks the file with the control plane's root.
func (p *parser) roots(explicit, prov string, custom bool) string {
	switch {
	case explicit == "SYSTEM":
		return ""
	case explicit != "":
		return explicit
	case custom:
		return customCerts + "/root-cert.pem"
	case prov != "":
		return path.Join(prov, "root-cert.pem")
	}
	return istiodRoot
}

// secrets reads where the workload's own certificate comes from.
func (p *parser) secrets(c *Config) error {
	e := p.env
	c.Secrets = Secrets{
		TTL: e.duration("SECRET_TTL", 24*time.Hour), Fraction: 1 - e.float("SECRET_GRACE_PERIOD_RATIO", 0.5),
		Jitter: e.float("SECRET_GRACE_PERIOD_RATIO_JITTER", 0.01), CertSigner: e.str("ISTIO_META_CERT_SIGNER", ""),
	}
	if n := e.integer("WORKLOAD_RSA_KEY_SIZE", 0); n > 0 && e.str("ECC_SIGNATURE_ALGORITHM", "") == "" {
		c.Secrets.RSABits = max(n, 2048)
	}
	switch ca := e.str("CA_PROVIDER", "Citadel"); {
	case ca == "GkeWorkloadCertificate":
		c.Secrets.use(spiffeCerts, "certificates.pem", "private_key.pem", "ca_certificates.pem")
		return nil
	case ca != "Citadel":
		return fmt.Errorf("CA_PROVIDER %q is not supported, only istiod's own (Citadel)", ca)
	}
	switch {
	case e.boolean("FILE_MOUNTED_CERTS"):
		c.Secrets.use(customCerts, "cert-chain.pem", "key.pem", "root-cert.pem")
	case p.exists(spiffeCerts+"/cert-chain.pem") && p.exists(spiffeCerts+"/key.pem"):
		c.Secrets.use(spiffeCerts, "cert-chain.pem", "key.pem", "root-cert.pem")
	}
	socket := path.Join(spiffeUDS, e.str("WORKLOAD_IDENTITY_SOCKET_FILE", "socket"))
	if _, err := p.in.ReadFile(socket); err != nil && !errors.Is(err, fs.ErrNotExist) {
		c.warn("%s: certificates from an SDS socket (SPIRE) are not supported; istiod's are used", socket)
	}
	if t := strings.ToLower(e.str("CREDENTIAL_FETCHER_TYPE", "jwt")); t != "jwt" {
		return fmt.Errorf("CREDENTIAL_FETCHER_TYPE %q is not supported, only the service account token (JWT)", t)
	}
	return nil
}

func (s *Secrets) use(dir, chain, key, roots string) {
	s.Chain, s.Key, s.Roots = path.Join(dir, chain), path.Join(dir, key), path.Join(dir, roots)
}

// hostAddresses are the global unicast addresses of the host's interfaces.
func hostAddresses() []netip.Addr {
	as, err := net.InterfaceAddrs()
	if err != nil {
		return nil
	}
	var out []netip.Addr
	for _, a := range as {
		n, ok := a.(*net.IPNet)
		if !ok {
			continue
		}
		if ip, ok := netip.AddrFromSlice(n.IP); ok && ip.Unmap().IsGlobalUnicast() {
			out = append(out, ip.Unmap())
		}
	}
	return out
}
