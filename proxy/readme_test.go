package proxy_test

import (
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/fairlead-mesh/fairlead/filters/builtin"
	"github.com/fairlead-mesh/fairlead/proxy"
)

// examplesOf returns the YAML blocks of a README's examples.
func examplesOf(t *testing.T, file string) (blocks []string) {
	t.Helper()
	b, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	_, rest, _ := strings.Cut(string(b), "\n## Examples\n")
	for {
		_, after, ok := strings.Cut(rest, "```yaml\n")
		if !ok {
			return blocks
		}
		block, tail, _ := strings.Cut(after, "```")
		blocks, rest = append(blocks, block), tail
	}
}

func indent(s, by string) string {
	return strings.TrimRight(by+strings.ReplaceAll(s, "\n", "\n"+by), " \n") + "\n"
}

// asItem makes a list item of a mapping.
func asItem(block, by string) string {
	return by + "- " + strings.TrimLeft(indent(block, by+"  "), " ")
}

// Each example of a filter's README is put where it belongs, and must be
// executable as it is.
func TestTheExamplesOfTheFiltersAreExecutable(t *testing.T) {
	files, err := filepath.Glob("../filters/*/*/README.md")
	if err != nil {
		t.Fatal(err)
	}
	policies := t.TempDir()
	for name, text := range map[string]string{"authz.rego": "package shop.authz\n\ndecision := true\n", "roles.yaml": "roles: {}\n"} {
		if err := os.WriteFile(filepath.Join(policies, name), []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	moved := strings.NewReplacer("/etc/fairlead/policy", policies, "/var/log/fairlead", t.TempDir())
	n := 0
	for _, file := range files {
		kind := filepath.Base(filepath.Dir(filepath.Dir(file)))
		if kind == "internal" {
			continue
		}
		for i, block := range examplesOf(t, file) {
			if !strings.HasPrefix(block, "name:") {
				continue // a route's part, or a resource of Kubernetes
			}
			n++
			t.Run(fmt.Sprintf("%s/%d", filepath.Base(filepath.Dir(file)), i), func(t *testing.T) {
				doc := exampleBootstrap(kind, moved.Replace(block))
				_, _, err := proxy.Validate([]byte(doc), proxy.ProcessOptions{Registry: builtin.Registry(), Logger: slog.New(slog.DiscardHandler)})
				if err != nil {
					t.Errorf("%s: %v\n%s", file, err, block)
				}
			})
		}
	}
	t.Logf("%d examples in %d READMEs", n, len(files))
	if n < 20 {
		t.Errorf("only %d examples", n)
	}
}

func exampleBootstrap(kind, block string) string {
	http, network, listener := "", "", ""
	switch kind {
	case "http":
		http = asItem(block, "          ")
	case "network":
		network = asItem(block, "      ")
	case "listener":
		listener = "    listener_filters:\n" + asItem(block, "    ")
	}
	doc := "node: {id: a, cluster: a}\nstatic_resources:\n  listeners:\n  - name: main\n    address: {socket_address: {address: 127.0.0.1, port_value: 1}}\n" +
		listener + "    filter_chains:\n    - filters:\n" + network
	if !strings.Contains(network, "TcpProxy") {
		doc += `      - name: hcm
        typed_config:
          "@type": type.googleapis.com/envoy.extensions.filters.network.http_connection_manager.v3.HttpConnectionManager
          stat_prefix: main
          route_config: {virtual_hosts: [{name: all, domains: ["*"], routes: [{match: {prefix: /}, route: {cluster: app}}]}]}
          http_filters:
` + http + `          - {name: router, typed_config: {"@type": type.googleapis.com/envoy.extensions.filters.http.router.v3.Router}}
`
	}
	doc += "  clusters:\n"
	for _, c := range []string{"app", "authz", "idp"} {
		doc += "  - {name: " + c + ", type: STATIC}\n"
	}
	return doc
}
