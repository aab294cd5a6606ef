package charttest

import (
	"bufio"
	"bytes"
	"errors"
	"flag"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"helm.sh/helm/v4/pkg/chart/common"
	"helm.sh/helm/v4/pkg/chart/common/util"
	chart "helm.sh/helm/v4/pkg/chart/v2"
	"helm.sh/helm/v4/pkg/chart/v2/lint"
	"helm.sh/helm/v4/pkg/chart/v2/lint/support"
	"helm.sh/helm/v4/pkg/chart/v2/loader"
	"helm.sh/helm/v4/pkg/engine"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/runtime/serializer"
	utilyaml "k8s.io/apimachinery/pkg/util/yaml"
	"k8s.io/client-go/kubernetes/scheme"
	"sigs.k8s.io/yaml"
)

var update = flag.Bool("update", false, "write the golden files")

const dir = "../../charts/fairlead"

// values are those of a role, with more given as YAML.
func values(t *testing.T, role, more string) map[string]any {
	t.Helper()
	v := map[string]any{}
	if err := yaml.Unmarshal([]byte(more), &v); err != nil {
		t.Fatal(err)
	}
	if _, ok := v["role"]; !ok {
		v["role"] = role
	}
	return v
}

func load(t *testing.T) *chart.Chart {
	t.Helper()
	c, err := loader.Load(dir)
	if err != nil {
		t.Fatal(err)
	}
	return c
}

// render does what helm template does: values over the chart's, the schema,
// the engine. It returns the non-empty manifests in the order of their files,
// and NOTES.txt.
func render(t *testing.T, v map[string]any) (manifests, notes string, err error) {
	t.Helper()
	c := load(t)
	release := common.ReleaseOptions{Name: "gate", Namespace: "app", Revision: 1, IsInstall: true}
	all, err := util.ToRenderValues(c, v, release, nil)
	if err != nil {
		return "", "", err
	}
	files, err := engine.Render(c, all)
	if err != nil {
		return "", "", err
	}
	names := make([]string, 0, len(files))
	for n := range files {
		names = append(names, n)
	}
	slices.Sort(names)
	var b strings.Builder
	for _, n := range names {
		text := strings.TrimSpace(files[n])
		switch {
		case strings.HasSuffix(n, "NOTES.txt"):
			notes = text
		case text != "" && !strings.HasPrefix(filepath.Base(n), "_"):
			fmt.Fprintf(&b, "---\n# Source: %s\n%s\n", n, text)
		}
	}
	return b.String(), notes, nil
}

// decode reads manifests strictly: unknown and duplicate fields are errors.
func decode(manifests string) ([]runtime.Object, error) {
	d := serializer.NewCodecFactory(scheme.Scheme, serializer.EnableStrict).UniversalDeserializer()
	r := utilyaml.NewYAMLReader(bufio.NewReader(strings.NewReader(manifests)))
	var out []runtime.Object
	for {
		doc, err := r.Read()
		if errors.Is(err, io.EOF) {
			return out, nil
		}
		if err != nil {
			return nil, err
		}
		if len(bytes.TrimSpace(doc)) == 0 {
			continue
		}
		o, _, err := d.Decode(doc, nil, nil)
		if err != nil {
			return nil, fmt.Errorf("not a Kubernetes object: %w\n%s", err, doc)
		}
		out = append(out, o)
	}
}

func TestDecodingIsStrict(t *testing.T) {
	const head = "apiVersion: v1\nkind: Service\nmetadata: {name: a}\n"
	for _, bad := range []string{
		"spec: {portz: []}", "spec: {type: ClusterIP, type: NodePort}", "spec: {ports: [{port: x}]}", "kind: Service", "status: {a: b}",
	} {
		if _, err := decode(head + bad); err == nil {
			t.Errorf("%q was accepted", bad)
		}
	}
	if o, err := decode("---\n" + head + "---\n" + head); err != nil || len(o) != 2 {
		t.Errorf("%v, %v", o, err)
	}
}

func TestHelmFindsNothingToComplainAbout(t *testing.T) {
	for _, role := range roles {
		for _, m := range lint.RunAll(dir, values(t, role, ""), "app").Messages {
			if m.Severity > support.InfoSev {
				t.Errorf("%s: %v", role, m)
			}
		}
	}
}

func TestEachRoleRendersAsItsGoldenFile(t *testing.T) {
	for _, role := range roles {
		t.Run(role, func(t *testing.T) {
			got, _, err := render(t, values(t, role, ""))
			if err != nil {
				t.Fatal(err)
			}
			file := filepath.Join(dir, "testdata", "golden", role+".yaml")
			if *update {
				if err := os.WriteFile(file, []byte(got), 0o644); err != nil {
					t.Fatal(err)
				}
			}
			want, err := os.ReadFile(file)
			if err != nil {
				t.Fatal(err)
			}
			if d := cmp.Diff(string(want), got); d != "" {
				t.Errorf("-want +got (go test ./charttest -update, if it is meant):\n%s", d)
			}
		})
	}
}
