package examples

import (
	"net/http"
	"os"
	"strings"
	"testing"
)

func TestTheEgressGuardExample(t *testing.T) {
	w := newWorld(t)
	bank, stats := w.origin("bank", 21, 8443, "bank"), w.origin("stats", 22, 8443, "stats")
	for _, f := range []string{"payments", "reports", "sandbox"} {
		w.ztunnel("egress/" + f + ".yaml")
	}
	w.proxy("egress-guard/guard.yaml")
	payments, reports, sandbox := w.viaZtunnel(3), w.viaZtunnel(4), w.viaZtunnel(5)

	t.Run("each namespace reaches its own hosts, by TLS", func(t *testing.T) {
		for _, c := range []struct {
			client     *http.Client
			host, says string
			origin     *origin
		}{{payments, "api.bank.example", "", bank}, {payments, "api.bank.example", "API.Bank.example", bank}, {reports, "api.stats.example", "", stats}} {
			var h []string
			if c.says != "" {
				h = []string{"host", c.says}
			}
			status, body := send(t, c.client, "GET", "http://"+c.host+"/x", nil, h...)
			r := c.origin.take()
			if status != 200 || body != c.origin.name+" GET /x" || len(r) != 1 || r[0].TLS.ServerName != c.host {
				t.Errorf("%s: %d %q, %+v", c.host, status, body, r)
			}
		}
	})

	t.Run("everything else is denied and does not leave", func(t *testing.T) {
		for _, c := range []struct {
			name         string
			client       *http.Client
			path, host   string
			says, header string
			cluster      string
		}{
			{"a host of another namespace", payments, "/1", "api.stats.example", "", "", "stats"},
			{"and the other way round", reports, "/2", "api.bank.example", "", "", "bank"},
			{"a host that nobody may reach", payments, "/3", "api.bank.example", "evil.example", "", "-"},
			{"another namespace's host behind an own address", payments, "/4", "api.bank.example", "api.stats.example", "", "stats"},
			{"a namespace that may reach nothing", sandbox, "/5", "api.bank.example", "", "", "bank"},
			{"an identity that only the client claims", sandbox, "/6", "api.bank.example", "", "URI=spiffe://cluster.local/ns/payments/sa/payments", "bank"},
		} {
			var h []string
			if c.says != "" {
				h = append(h, "host", c.says)
			}
			if c.header != "" {
				h = append(h, "x-forwarded-client-cert", c.header)
			}
			if status, body := send(t, c.client, "GET", "http://"+c.host+c.path, nil, h...); status != 403 {
				t.Errorf("%s: %d %q", c.name, status, body)
			}
			w.logged(`"GET `+c.path+` HTTP/1.1" 403 UAEX rego_denied{policy}`, `"-" `+c.cluster+` -`)
		}
		if n := len(bank.take()) + len(stats.take()); n != 0 {
			t.Errorf("%d requests left", n)
		}
	})

	t.Run("cards and keys leave masked", func(t *testing.T) {
		const key, stars = "AKIA" + "QYLPMN5HHHFPZAM2", "********************"
		status, _ := send(t, payments, "POST", "http://api.bank.example/pay?key="+key, strings.NewReader("card 4111 1111 1111 1111, key "+key+", thanks"), "content-type", "text/plain", "x-note", key)
		r := bank.take()
		if status != 200 || len(r) != 1 {
			t.Fatalf("%d, %d requests", status, len(r))
		}
		if want := "card **** **** **** 1111, key " + stars + ", thanks"; r[0].body != want {
			t.Errorf("the server got %q", r[0].body)
		}
		if strings.Contains(r[0].RequestURI, key) || strings.Contains(r[0].Header.Get("x-note"), key) {
			t.Errorf("the server got %s and %q", r[0].RequestURI, r[0].Header.Get("x-note"))
		}
	})
	w.checkLog()
}

// The plugins for Istio hold the policy that the test above has run.
func TestTheEgressGuardHasOnePolicy(t *testing.T) {
	policy, err := os.ReadFile("egress-guard/policy.rego")
	if err != nil {
		t.Fatal(err)
	}
	plugins, err := os.ReadFile("egress-guard/plugins.yaml")
	if err != nil {
		t.Fatal(err)
	}
	var indented strings.Builder
	for line := range strings.Lines(string(policy)) {
		if line != "\n" {
			indented.WriteString("          ")
		}
		indented.WriteString(line)
	}
	if !strings.Contains(string(plugins), indented.String()) {
		t.Error("plugins.yaml holds another policy than policy.rego")
	}
}
