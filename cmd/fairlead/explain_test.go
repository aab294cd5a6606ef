package main

import (
	"encoding/json"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"testing"

	"github.com/fairlead-mesh/fairlead/examples"
	"github.com/fairlead-mesh/fairlead/internal/explain"
)

// inExamples changes to a copy of the examples with certificates.
func inExamples(t *testing.T) {
	t.Helper()
	dir := t.TempDir()
	if err := os.CopyFS(dir, os.DirFS("../../examples")); err != nil {
		t.Fatal(err)
	}
	if err := examples.WriteCertificates(filepath.Join(dir, "certs")); err != nil {
		t.Fatal(err)
	}
	t.Chdir(dir)
}

// TestTheExampleOfTheDocumentation runs the commands in docs/explain.md and
// compares what they print with what stands there.
func TestTheExampleOfTheDocumentation(t *testing.T) {
	doc, err := os.ReadFile("../../docs/explain.md")
	if err != nil {
		t.Fatal(err)
	}
	inExamples(t)
	n := 0
	for _, block := range strings.Split(string(doc), "```")[1:] {
		cmdline, want, ok := strings.Cut(strings.TrimPrefix(block, "console\n"), "\n")
		args, is := strings.CutPrefix(cmdline, "$ fairlead explain ")
		if !ok || !is {
			continue
		}
		n++
		got, err := fairlead(t, append([]string{"explain"}, strings.Fields(args)...)...)
		if err != nil {
			t.Errorf("%s: %v\n%s", cmdline, err, got)
		} else if got != want {
			t.Errorf("%s prints\n%s\nand the documentation says\n%s", cmdline, got, want)
		}
	}
	if n != 2 {
		t.Errorf("%d commands in docs/explain.md, want 2", n)
	}
}

func TestTheExamplesAreExplained(t *testing.T) {
	inExamples(t)
	token, err := os.ReadFile("ingress/expired.jwt")
	if err != nil {
		t.Fatal(err)
	}
	expired := strings.TrimSpace(string(token))
	rows := map[string]struct {
		args                      string
		outcome, decider, details string
		route, cluster            string
		status                    int
		// text is said by some filter of the last hop.
		text string
	}{
		"waypoint: the client reads": {
			args: "-c waypoint/waypoint.yaml -s spiffe://cluster.local/ns/app/sa/client -d 10.96.0.10:9080 -p /reviews", outcome: explain.Forward, route: "split", cluster: "reviews-v1",
		},
		"waypoint: by the name of the chain": {
			args: "-c waypoint/waypoint.yaml -s spiffe://cluster.local/ns/app/sa/client -H x-version:v2 http://reviews:9080/", outcome: explain.Forward, route: "canary-on-demand", cluster: "reviews-v2",
		},
		"waypoint: a deny policy wins": {
			args:    "-c waypoint/waypoint.yaml -s spiffe://cluster.local/ns/app/sa/client -d 10.96.0.10:9080 -p /x/../internal/y",
			outcome: explain.Deny, decider: "envoy.filters.http.rbac", details: "rbac_access_denied_matched_policy[ns[app]-policy[no-internal]-rule[0]]", status: 403, route: "split", cluster: "reviews-v1",
		},
		"waypoint: nobody else": {
			args:    "-c waypoint/waypoint.yaml -s spiffe://cluster.local/ns/other/sa/stranger -d 10.96.0.10:9080",
			outcome: explain.Deny, decider: "envoy.filters.http.rbac", details: "rbac_access_denied_matched_policy[none]", status: 403, route: "split", cluster: "reviews-v1",
		},
		"waypoint: Rego reads the body": {
			args:    `-c waypoint/waypoint.yaml -s spiffe://cluster.local/ns/app/sa/client -d 10.96.0.10:9080 -X POST -H content-type:application/json --data {"rating":9}`,
			outcome: explain.Deny, decider: "fairlead.rego", details: "rego_denied{policy}", status: 422, route: "split", cluster: "reviews-v1", text: `answers "a rating is a number from 1 to 5\n"`,
		},
		"waypoint: and is content": {
			args:    `-c waypoint/waypoint.yaml -s spiffe://cluster.local/ns/app/sa/client -d 10.96.0.10:9080 -X POST -H content-type:application/json --data {"rating":4}`,
			outcome: explain.Forward, route: "split", cluster: "reviews-v1", text: "policy reviews answers: allowed",
		},
		"egress: a card number is masked": {
			args:    `-c egress/egress.yaml -s spiffe://cluster.local/ns/payments/sa/payments -d 240.240.0.1:80 --host api.bank.example -X POST -H content-type:application/json --data {"card":"4111-1111-1111-1111"}`,
			outcome: explain.Forward, route: "bank", cluster: "bank", text: "1 × CREDIT_CARD_NUMBER in body: mask (rule cards, likelihood VERY_LIKELY)",
		},
		"dlp: a card number in the response": {
			args:    `-c dlp/dlp.yaml -d 127.0.0.2:8080 --host shop.example --response-header content-type:application/json --response-body {"card":"4111-1111-1111-1111"}`,
			outcome: explain.Forward, route: "shop", cluster: "shop", text: "1 × CREDIT_CARD_NUMBER in body: mask (rule cards, likelihood VERY_LIKELY)",
		},
		"egress: a host for others": {
			args:    "-c egress/egress.yaml -s spiffe://cluster.local/ns/reports/sa/reports -d 240.240.0.1:80 --host api.bank.example",
			outcome: explain.Deny, decider: "envoy.filters.http.rbac", details: "rbac_access_denied_matched_policy[none]", status: 403, route: "bank", cluster: "bank",
		},
		"ingress: to TLS": {
			args: "-c ingress/ingress.yaml http://shop.example.com:8080/x", outcome: explain.Answer, decider: "router", details: "direct_response", status: 301,
		},
		"ingress: no token": {
			args:    "-c ingress/ingress.yaml https://shop.example.com:8443/account",
			outcome: explain.Deny, decider: "envoy.filters.http.jwt_authn", details: "jwt_authn_access_denied{Jwt_is_missing}", status: 401,
			text: "provider login (issuer https://login.example.com): Jwt is missing",
		},
		"ingress: an expired token": {
			args:    "-c ingress/ingress.yaml https://shop.example.com:8443/account -H authorization:BearerEXPIRED",
			outcome: explain.Deny, decider: "envoy.filters.http.jwt_authn", details: "jwt_authn_access_denied{Jwt_is_expired}", status: 401,
		},
		"ingress: by server name": {
			args: "-c ingress/ingress.yaml https://admin.example.com:8443/", outcome: explain.Forward, cluster: "admin",
		},
		"waypoint: another mesh": {
			args: "-c waypoint/waypoint.yaml -s spiffe://other.mesh/ns/app/sa/client -d 10.96.0.10:9080", outcome: explain.Close, decider: "TLS handshake",
			text: "TLS handshake with filter chain default: spiffe://other.mesh/ns/app/sa/client matches none of the names",
		},
		"waypoint: no identity": {
			args: "-c waypoint/waypoint.yaml -d 10.96.0.10:9080", outcome: explain.Close, decider: "TLS handshake", text: "a client certificate is required",
		},
		"waypoint: no such service": {
			args: "-c waypoint/waypoint.yaml -s spiffe://cluster.local/ns/app/sa/client -d 10.96.0.99:9080", outcome: explain.Close, decider: "listener main_internal", details: "filter_chain_not_found",
		},
	}
	for name, want := range rows {
		t.Run(name, func(t *testing.T) {
			args := append([]string{"explain", "-o", "json"}, strings.Fields(want.args)...)
			for i := range args {
				args[i] = strings.Replace(args[i], "BearerEXPIRED", "Bearer "+expired, 1)
			}
			out, err := fairlead(t, args...)
			if err != nil {
				t.Fatal(err, out)
			}
			r := &explain.Report{}
			if err := json.Unmarshal([]byte(out), r); err != nil {
				t.Fatal(err)
			}
			if r.Outcome != want.outcome || r.Decider != want.decider || r.Details != want.details || r.Status != want.status {
				t.Errorf("%s by %q: %d %s", r.Outcome, r.Decider, r.Status, r.Details)
			}
			last := r.Hops[len(r.Hops)-1]
			if last.Routing != nil && last.Routing.Route != nil && last.Routing.Route.Name != want.route {
				t.Errorf("route %q, want %q", last.Routing.Route.Name, want.route)
			}
			if want.text != "" && !strings.Contains(out, strings.Trim(strconv.Quote(want.text), `"`)) {
				t.Errorf("nobody says %q in\n%s", want.text, out)
			}
			if last.Upstream != nil && last.Upstream.Cluster != want.cluster {
				t.Errorf("cluster %q, want %q", last.Upstream.Cluster, want.cluster)
			}
		})
	}
}

func TestExplainSaysWhatIsWrongWithTheQuestion(t *testing.T) {
	inExamples(t)
	for args, want := range map[string]string{
		"": "give either a file",
		"-c waypoint/waypoint.yaml --admin 127.0.0.1:1":                   "give either a file",
		"-c waypoint/waypoint.yaml":                                       "destination: an address",
		"-c waypoint/waypoint.yaml -d 10.96.0.10:x":                       "neither ip:port nor name:port",
		"-c waypoint/waypoint.yaml -d 10.96.0.10:1 --source-address here": `"here" is neither an IP address nor ip:port`,
		"-c waypoint/waypoint.yaml -d 10.96.0.10:1 -H novalue":            `"novalue" is not of the form "name: value"`,
		"-c waypoint/waypoint.yaml -d 10.96.0.10:1 --connect-header no":   `connect_headers: "no" is not of the form "name: value"`,
		"-c waypoint/waypoint.yaml -d 10.96.0.10:1 --listener nowhere":    `there is no listener "nowhere"; there are connect_originate, connect_terminate, main_internal`,
		"-c waypoint/waypoint.yaml -d 10.96.0.10:1 -o xml":                `"xml" is neither text nor json`,
		"-c waypoint/waypoint.yaml /path":                                 "is not a URL with a host",
		"-c nowhere.yaml -d 10.96.0.10:1":                                 "nowhere.yaml",
		"--admin 127.0.0.1:1 -d 10.96.0.10:1":                             "is the proxy running",
	} {
		out, err := fairlead(t, append([]string{"explain"}, strings.Fields(args)...)...)
		if err == nil || !strings.Contains(out, want) {
			t.Errorf("%s: %q, want %q", args, out, want)
		}
	}
}
