package contender

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/fairlead-mesh/fairlead/internal/identity"
)

// certificates returns a directory with what contenders need.
func certificates(t *testing.T) string {
	t.Helper()
	ca, err := identity.NewDevCA("cluster.local")
	if err != nil {
		t.Fatal(err)
	}
	cert, err := ca.Issue(identity.Leaf{URIs: []string{"spiffe://cluster.local/ns/app/sa/waypoint"}})
	if err != nil {
		t.Fatal(err)
	}
	dir := t.TempDir()
	if err := WriteCertificates(dir, ca.RootsPEM(), cert); err != nil {
		t.Fatal(err)
	}
	return dir
}

// here sets $FAIRLEAD_BIN to the binary of this checkout.
func here(t *testing.T) {
	t.Helper()
	bin, err := filepath.Abs(filepath.Join("..", "..", "bin", "fairlead"))
	if err != nil {
		t.Fatal(err)
	}
	if os.Getenv("FAIRLEAD_BIN") == "" {
		t.Setenv("FAIRLEAD_BIN", bin)
	}
	if !isFile(fairlead()) {
		t.Skip("no Fairlead binary: make build")
	}
}

// The bootstrap must be one that Fairlead accepts whole, or the figures are
// those of something else.
func TestTheBootstrapIsValid(t *testing.T) {
	here(t)
	dir := certificates(t)
	for _, istio := range []bool{false, true} {
		doc, err := render("waypoint.yaml", "x", &Spec{Ports: Ports{1, 2, 3, 4, 5, 6, 7, 8, 9, 10}, Dir: dir, Routes: 3}, istio)
		if err != nil {
			t.Fatal(err)
		}
		if strings.Contains(doc, "{{") || strings.Contains(doc, "istio.stats") != istio || strings.Count(doc, "/svc/2/") != 1 || strings.Contains(doc, "/svc/3/") {
			t.Fatal(doc)
		}
		file := filepath.Join(t.TempDir(), "waypoint.yaml")
		if err := os.WriteFile(file, []byte(doc), 0o600); err != nil {
			t.Fatal(err)
		}
		out, err := exec.Command(fairlead(), "config", "validate", file).CombinedOutput()
		if err != nil || !strings.Contains(string(out), " 0 ignored fields") {
			t.Errorf("istio %t: %v\n%s", istio, err, out)
		}
	}
}

func TestWhatIsNotInstalledIsMissing(t *testing.T) {
	nothing := filepath.Join(t.TempDir(), "nothing")
	for _, env := range []string{"FAIRLEAD_BIN", "HAPROXY_BIN", "NGINX_BIN", "ENVOY_BIN"} {
		t.Setenv(env, nothing)
	}
	t.Chdir(t.TempDir())
	for _, name := range []string{"fairlead", "fairlead+istio", "ztunnel", "envoy", "haproxy", "nginx", "naive", "floor", "/no/such/fairlead", "base=/no/such"} {
		_, err := Start(context.Background(), name, Spec{Dir: t.TempDir(), CPU: -1})
		if m, ok := errors.AsType[*Missing](err); !ok || m.What == "" {
			t.Errorf("%s: %v", name, err)
		}
	}
	if _, err := Start(context.Background(), "squid", Spec{Dir: t.TempDir(), CPU: -1}); err == nil || err.Error() != `unknown contender "squid"` {
		t.Errorf("%v", err)
	}
}

// Two binaries of one name are two contenders with files of their own.
func TestTwoBinariesOfOneNameDoNotCollide(t *testing.T) {
	here(t)
	spec := Spec{Dir: certificates(t), CPU: -1}
	var all []*Contender
	for _, name := range []string{fairlead(), "base=" + fairlead()} {
		if err := spec.Ports.Listen(); err != nil {
			t.Fatal(err)
		}
		c, err := Start(t.Context(), name, spec)
		if err != nil {
			t.Fatal(err)
		}
		defer c.Stop()
		all = append(all, c)
	}
	a, b := all[0], all[1]
	if a.log == b.log || a.accessLog == b.accessLog || a.Name == b.Name || b.Name != "base" || !a.Profiles() || !b.Profiles() || a.StartTime <= 0 {
		t.Errorf("%+v\n%+v", a, b)
	}
	u, err := b.Usage()
	if err != nil || u.RSS < 1<<20 || u.CPU <= 0 || u.CPU > time.Minute {
		t.Errorf("%+v, %v", u, err)
	}
}

// Each contender that is installed starts with its generated configuration.
func TestInstalledContendersStart(t *testing.T) {
	dir := certificates(t)
	for _, name := range []string{"envoy", "haproxy", "nginx", "ztunnel"} {
		t.Run(name, func(t *testing.T) {
			if name == "ztunnel" {
				here(t)
			}
			s := Spec{Dir: dir, CPU: -1, Routes: 20, Ports: Ports{OriginPlain: 1, OriginHBONE: 1, OriginGRPC: 1}}
			if err := s.Ports.Listen(); err != nil {
				t.Fatal(err)
			}
			c, err := Start(t.Context(), name, s)
			if m, ok := errors.AsType[*Missing](err); ok {
				t.Skip(m)
			}
			if err != nil {
				t.Fatal(err)
			}
			c.TrimLogs()
			c.Stop()
		})
	}
}

func TestShapes(t *testing.T) {
	for name, want := range map[string]string{
		"fairlead": "11111", "fairlead+istio": "11111", "envoy": "11111", "naive": "11111", "b=/x": "11111", "/x": "11111",
		"haproxy": "00111", "nginx": "00111", "floor": "11100", "ztunnel": "10000", "squid": "00000",
	} {
		got := ""
		for _, s := range allShapes {
			got += fmt.Sprint(map[bool]int{false: 0, true: 1}[Supports(name, s)])
		}
		if got != want {
			t.Errorf("%s: %s, want %s", name, got, want)
		}
	}
	if !SupportsADS("envoy") || SupportsADS("nginx") || !SupportsRoutes("nginx") || SupportsRoutes("ztunnel") || Label("a=/b") != "a" {
		t.Error("ADS, routes or labels")
	}
}

func TestStat(t *testing.T) {
	const line = "42 (a) b) S 1 2 3 4 5 6 7 8 9 10 250 50 0 0 20 0 9 0 100 1000 300 x"
	u, err := parseStat([]byte(line))
	if err != nil || u.CPU != 3*time.Second || u.RSS != 300*uint64(os.Getpagesize()) {
		t.Errorf("%+v, %v", u, err)
	}
	for _, bad := range []string{"", "1 (x) S 1 2", strings.Replace(line, "250", "x", 1)} {
		if _, err := parseStat([]byte(bad)); err == nil {
			t.Errorf("%q was accepted", bad)
		}
	}
}

func TestParseRuntime(t *testing.T) {
	const profile = "heap profile: 1: 2 [3: 4] @ heap/1048576\n\n# runtime.MemStats\n# Alloc = 7\n# Mallocs = 1234\n# Frees = 1\n" +
		"# PauseNs = [1000 0 500]\n# PauseEnd = [1 2 3]\n# NumGC = 2\n# NumForced = 1\n"
	got, err := parseRuntime([]byte(profile))
	if want := (Runtime{Mallocs: 1234, Collections: 2, Stopped: 1500}); err != nil || got != want {
		t.Errorf("%+v, %v", got, err)
	}
	for _, bad := range []string{"", strings.Replace(profile, "NumGC", "Num", 1), strings.Replace(profile, "1234", "x", 1), strings.Replace(profile, "500", "-", 1)} {
		if r, err := parseRuntime([]byte(bad)); err == nil {
			t.Errorf("%q: %+v", bad, r)
		}
	}
}
