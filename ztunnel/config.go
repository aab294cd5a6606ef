package ztunnel

import (
	"errors"
	"fmt"
	"log/slog"
	"net/netip"
	"strings"
	"time"

	"github.com/fairlead-mesh/fairlead/internal/identity"
	"github.com/fairlead-mesh/fairlead/internal/stats"
	"github.com/fairlead-mesh/fairlead/proxy/hbone"
)

const hbonePort = hbone.Port

// Config is what a ztunnel does and knows. Parse makes it from a file.
type Config struct {
	// Namespace, Name and ServiceAccount name the workload that this ztunnel
	// serves; it must be among the workloads.
	Namespace, Name, ServiceAccount string
	// Network is the network that addresses belong to, "" if there is one only.
	Network string
	// ClusterDomain completes short names, "cluster.local" by default.
	ClusterDomain string
	// Identity is where the certificate comes from. Tests set Source instead.
	Identity IdentityConfig
	// Source, if not nil, replaces Identity; its owner keeps it up to date.
	Source identity.Source
	// HBONE is where tunnels are accepted; the zero AddrPort accepts none.
	HBONE netip.AddrPort
	// ReusePort lets other processes of the same user listen on HBONE's port,
	// too: a successor while this one drains, or a proxy at the wildcard address.
	ReusePort bool
	// SOCKS5 and Connect are loopback addresses of the two proxies for
	// applications; zero: none.
	SOCKS5, Connect netip.AddrPort
	// Forwards are ports that lead to one destination each.
	Forwards []Forward
	// Upstream is the address of the application. The zero Addr means the
	// address that the tunnel's connection was made to. With an address, the
	// authority of a tunnel may also be any of the workload's own addresses.
	Upstream netip.Addr
	// Stats is where metrics are served, zero: nowhere.
	Stats netip.AddrPort
	// DrainTime bounds how long flows go on after Run's context ended, 5 s.
	DrainTime time.Duration
	// IdleTimeout ends a flow that moves no byte, 1 h; negative: never.
	IdleTimeout time.Duration
	// Logger gets the access log and problems; nil discards.
	Logger *slog.Logger
	// Registry gets the metrics; nil: a new one.
	Registry *stats.Registry

	mesh *mesh
}

// IdentityConfig names PEM files, or asks for a development CA inside the
// process, whose certificates nobody else trusts.
type IdentityConfig struct {
	Certificate string `yaml:"certificate"`
	Key         string `yaml:"key"`
	Roots       string `yaml:"roots"`
	DevCA       bool   `yaml:"devCA"`
}

// Forward is a port that leads to one destination.
type Forward struct {
	Listen netip.AddrPort
	// Destination is "host:port" or "ip:port".
	Destination string
}

type localFile struct {
	Workload struct {
		Namespace      string `yaml:"namespace"`
		Name           string `yaml:"name"`
		ServiceAccount string `yaml:"serviceAccount"`
	} `yaml:"workload"`
	Network       string         `yaml:"network"`
	ClusterDomain string         `yaml:"clusterDomain"`
	Identity      IdentityConfig `yaml:"identity"`
	Listeners     struct {
		HBONE     string `yaml:"hbone"`
		ReusePort bool   `yaml:"reusePort"`
		SOCKS5    string `yaml:"socks5"`
		Connect   string `yaml:"connect"`
		Stats     string `yaml:"stats"`
		Forward   []struct {
			Listen      string `yaml:"listen"`
			Destination string `yaml:"destination"`
		} `yaml:"forward"`
	} `yaml:"listeners"`
	Upstream    string          `yaml:"upstream"`
	DrainTime   string          `yaml:"drainTime"`
	IdleTimeout string          `yaml:"idleTimeout"`
	Workloads   []localWorkload `yaml:"workloads"`
	Services    []localService  `yaml:"services"`
	Policies    []localPolicy   `yaml:"policies"`
}

// Parse reads the YAML form: ztunnel's local description of a mesh (workloads,
// services, policies) and this program's own settings. Unknown fields, unknown
// values and references to nothing are errors.
func Parse(data []byte) (*Config, error) {
	var f localFile
	if err := decodeStrict(data, &f); err != nil {
		return nil, fmt.Errorf("ztunnel configuration: %w", err)
	}
	m, err := f.mesh()
	if err != nil {
		return nil, err
	}
	c := &Config{
		Namespace: f.Workload.Namespace, Name: f.Workload.Name, ServiceAccount: orElse(f.Workload.ServiceAccount, "default"),
		Network: f.Network, ClusterDomain: f.ClusterDomain, Identity: f.Identity, mesh: m,
		ReusePort: f.Listeners.ReusePort,
	}
	for _, x := range []struct {
		name, from string
		to         *netip.AddrPort
	}{
		{"hbone", f.Listeners.HBONE, &c.HBONE},
		{"socks5", f.Listeners.SOCKS5, &c.SOCKS5},
		{"connect", f.Listeners.Connect, &c.Connect},
		{"stats", f.Listeners.Stats, &c.Stats},
	} {
		if x.from == "" {
			continue
		}
		if *x.to, err = netip.ParseAddrPort(x.from); err != nil {
			return nil, fmt.Errorf("listeners.%s: %w", x.name, err)
		}
	}
	for i, w := range f.Listeners.Forward {
		a, err := netip.ParseAddrPort(w.Listen)
		if err != nil {
			return nil, fmt.Errorf("listeners.forward[%d].listen: %w", i, err)
		}
		c.Forwards = append(c.Forwards, Forward{Listen: a, Destination: w.Destination})
	}
	if f.Upstream != "" {
		if c.Upstream, err = netip.ParseAddr(f.Upstream); err != nil {
			return nil, fmt.Errorf("upstream: %w", err)
		}
	}
	for _, x := range []struct {
		name, from string
		to         *time.Duration
	}{{"drainTime", f.DrainTime, &c.DrainTime}, {"idleTimeout", f.IdleTimeout, &c.IdleTimeout}} {
		if x.from == "" {
			continue
		}
		if *x.to, err = time.ParseDuration(x.from); err != nil {
			return nil, fmt.Errorf("%s: %w", x.name, err)
		}
	}
	if err := c.check(); err != nil {
		return nil, err
	}
	return c, nil
}

func (f *localFile) mesh() (*mesh, error) {
	m := newMesh(f.Network)
	var errs []error
	for i := range f.Policies {
		p, err := f.Policies[i].policy()
		if err == nil && m.policies[p.Key()] != nil {
			err = errors.New("a policy of this name is there already")
		}
		if err != nil {
			errs = append(errs, fmt.Errorf("policies[%d] %s: %w", i, f.Policies[i].Name, err))
			continue
		}
		m.policies[p.Key()] = p
	}
	for i := range f.Services {
		s, err := f.Services[i].service()
		if err == nil && m.services[s.Key()] != nil {
			err = errors.New("a service of this namespace and hostname is there already")
		}
		if err != nil {
			errs = append(errs, fmt.Errorf("services[%d] %s: %w", i, f.Services[i].Name, err))
			continue
		}
		m.addService(s)
	}
	for i := range f.Workloads {
		w, err := f.Workloads[i].workload()
		if err == nil {
			err = m.addWorkload(w)
		}
		if err != nil {
			errs = append(errs, fmt.Errorf("workloads[%d] %s: %w", i, f.Workloads[i].Name, err))
		}
	}
	return m, errors.Join(errs...)
}

// check refuses what would not work or not be safe.
func (c *Config) check() error {
	if c.mesh == nil {
		return errors.New("ztunnel: the configuration comes from Parse")
	}
	self := c.mesh.find(c.Namespace, c.Name, c.ServiceAccount)
	if self == nil {
		return fmt.Errorf("workload: %s/%s with service account %s is not among the workloads", c.Namespace, c.Name, c.ServiceAccount)
	}
	if self.AppTunnel.Proxy || self.AppTunnel.Port != 0 {
		return errors.New("workload: an applicationTunnel of the own workload is not supported")
	}
	id := c.Identity
	files := id.Certificate != "" || id.Key != "" || id.Roots != ""
	switch {
	case c.Source != nil:
	case id.DevCA && files:
		return errors.New("identity: devCA and files exclude each other")
	case !id.DevCA && (id.Certificate == "" || id.Key == "" || id.Roots == ""):
		return errors.New("identity: certificate, key and roots are required, or devCA: true")
	}
	for name, a := range map[string]netip.AddrPort{"socks5": c.SOCKS5, "connect": c.Connect} {
		if a.IsValid() && !a.Addr().IsLoopback() {
			return fmt.Errorf("listeners.%s: %s is not a loopback address: whoever reached it would act as this workload", name, a)
		}
	}
	for i, w := range c.Forwards {
		if !w.Listen.Addr().IsLoopback() {
			return fmt.Errorf("listeners.forward[%d]: %s is not a loopback address: whoever reached it would act as this workload", i, w.Listen)
		}
		if _, _, err := splitAuthority(w.Destination); err != nil {
			return fmt.Errorf("listeners.forward[%d].destination: %w", i, err)
		}
	}
	if c.DrainTime < 0 {
		return errors.New("drainTime: must not be negative")
	}
	return nil
}

// splitAuthority parses "ip:port", "[ip6]:port" or "host:port".
func splitAuthority(s string) (host string, port uint16, err error) {
	if a, err := netip.ParseAddrPort(s); err == nil && a.Addr().Zone() == "" {
		if a.Port() == 0 {
			return "", 0, fmt.Errorf("%q has port 0", s)
		}
		return a.Addr().Unmap().String(), a.Port(), nil
	}
	i := strings.LastIndexByte(s, ':')
	if i <= 0 {
		return "", 0, fmt.Errorf("%q lacks host or port", s)
	}
	host = strings.TrimSuffix(s[:i], ".")
	if host == "" || host[len(host)-1] == '.' || len(host) > 253 || strings.ContainsAny(host, ":[]/@%\\?# \t\r\n\x00\"") {
		return "", 0, fmt.Errorf("%q is not host:port", s)
	}
	for _, d := range []byte(s[i+1:]) {
		if d < '0' || d > '9' || port > 6553 {
			return "", 0, fmt.Errorf("%q has no valid port", s)
		}
		if v := uint32(port)*10 + uint32(d-'0'); v > 65535 {
			return "", 0, fmt.Errorf("%q has no valid port", s)
		}
		port = port*10 + uint16(d-'0')
	}
	if port == 0 {
		return "", 0, fmt.Errorf("%q has no valid port", s)
	}
	return strings.ToLower(host), port, nil
}
