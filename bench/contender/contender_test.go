package contender

import (
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"github.com/fairlead-mesh/fairlead/internal/identity"
)

// The bootstrap must be one that Fairlead accepts whole, or the figures are
// those of something else.
func TestTheBootstrapIsValid(t *testing.T) {
	bin := fairlead()
	if _, err := os.Stat(bin); err != nil {
		if bin = filepath.Join("..", bin); func() error { _, err := os.Stat(bin); return err }() != nil {
			t.Skip("no Fairlead binary: make build")
		}
	}
	raw, err := os.ReadFile(filepath.Join("..", "testdata", "waypoint.yaml"))
	if err != nil {
		t.Fatal(err)
	}
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
	for _, istio := range []bool{false, true} {
		doc := Render(string(raw), "x", Spec{Ports: Ports{1, 2, 3, 4, 5, 6}, Dir: dir}, istio)
		if strings.Contains(doc, "{{") || strings.Contains(doc, "istio.stats") != istio {
			t.Fatal(doc)
		}
		file := filepath.Join(t.TempDir(), "waypoint.yaml")
		if err := os.WriteFile(file, []byte(doc), 0o600); err != nil {
			t.Fatal(err)
		}
		out, err := exec.Command(bin, "config", "validate", file).CombinedOutput()
		if err != nil || !strings.Contains(string(out), " 0 ignored fields") {
			t.Errorf("istio %t: %v\n%s", istio, err, out)
		}
	}
}

func TestWhatIsNotInstalledIsMissing(t *testing.T) {
	t.Setenv("FAIRLEAD_BIN", filepath.Join(t.TempDir(), "nothing"))
	for _, name := range []string{"fairlead", "naive", "/no/such/fairlead"} {
		_, err := command(name, "f", Spec{})
		if _, ok := err.(*Missing); !ok { //nolint:errorlint // as it is
			t.Errorf("%s: %v", name, err)
		}
	}
}
