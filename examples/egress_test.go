package examples

import (
	"fmt"
	"io"
	"net/http"
	"strings"
	"testing"
)

func TestTheEgressExample(t *testing.T) {
	w := newWorld(t)
	bank, stats := w.origin("bank", 21, 8443, "bank"), w.origin("stats", 22, 8443, "stats")
	impostor := w.origin("impostor", 23, 8443, "impostor")
	for _, f := range []string{"payments", "reports", "sandbox"} {
		w.ztunnel("egress/" + f + ".yaml")
	}
	w.proxy("egress/egress.yaml")
	payments, reports, sandbox := w.viaZtunnel(3), w.viaZtunnel(4), w.viaZtunnel(5)
	arrived := func() int { return len(bank.take()) + len(stats.take()) + len(impostor.take()) }

	t.Run("each namespace reaches its own hosts, by TLS", func(t *testing.T) {
		for _, c := range []struct {
			client *http.Client
			host   string
			origin *origin
		}{{payments, "api.bank.example", bank}, {reports, "api.stats.example", stats}} {
			status, body := send(t, c.client, "GET", "http://"+c.host+"/x", nil)
			r := c.origin.take()
			if status != 200 || body != c.origin.name+" GET /x" || len(r) != 1 {
				t.Fatalf("%s: %d %q", c.host, status, body)
			}
			if s := r[0].TLS; s == nil || s.ServerName != c.host || r[0].Host != c.host {
				t.Errorf("%s: the server saw the host %q, TLS %+v", c.host, r[0].Host, s)
			}
			w.logged(`"GET /x HTTP/1.1" 200 - via_upstream`, `"`+c.host+`"`, " "+c.origin.name+"\n")
		}
	})

	t.Run("everything else is denied and does not leave", func(t *testing.T) {
		for _, c := range []struct {
			name       string
			client     *http.Client
			url        string
			host       string // in place of the URL's
			by, result string
			cluster    string
		}{
			{"a host of another namespace", payments, "http://api.stats.example/1", "", "none", "/1", "stats"},
			{"and the other way round", reports, "http://api.bank.example/2", "", "none", "/2", "bank"},
			{"a host that nobody may reach", payments, "http://api.bank.example/3", "evil.example", "none", "/3", "-"},
			{"another namespace's host behind an own address", payments, "http://api.bank.example/4", "api.stats.example", "none", "/4", "stats"},
			{"in capitals", payments, "http://api.bank.example/5", "API.STATS.EXAMPLE", "none", "/5", "stats"},
			{"with a dot at the end", payments, "http://api.bank.example/6", "api.stats.example.", "none", "/6", "stats"},
			{"denied to the namespace, although allowed", sandbox, "http://api.stats.example/7", "", "sandbox", "/7", "stats"},
		} {
			var h []string
			if c.host != "" {
				h = []string{"host", c.host}
			}
			if status, body := send(t, c.client, "GET", c.url, nil, h...); status != 403 || body != "RBAC: access denied" {
				t.Errorf("%s: %d %q", c.name, status, body)
			}
			w.logged(`"GET `+c.result+` HTTP/1.1" 403 - rbac_access_denied_matched_policy[`+c.by+"]", `"-" `+c.cluster+` -`)
		}
		if n := arrived(); n != 0 {
			t.Errorf("%d requests left", n)
		}
	})

	t.Run("a port that is not served is closed", func(t *testing.T) {
		req, err := http.NewRequestWithContext(t.Context(), http.MethodGet, "http://api.bank.example:8000/", nil)
		if err != nil {
			t.Fatal(err)
		}
		if resp, err := payments.Do(req); err == nil {
			_ = resp.Body.Close()
			t.Errorf("%d", resp.StatusCode)
		}
	})

	t.Run("a server with another name in its certificate gets nothing", func(t *testing.T) {
		status, body := send(t, payments, "GET", "http://api.partner.example/p", nil)
		if status != 503 {
			t.Errorf("%d %q", status, body)
		}
		w.logged(`"GET /p HTTP/1.1" 503 UF `, "somebody-else.example", "matches_none_of_the_expected_names")
		if n := arrived(); n != 0 {
			t.Errorf("%d requests arrived", n)
		}
	})

	t.Run("a card number leaves masked, in a body that streams", func(t *testing.T) {
		half := make(chan struct{})
		bank.progress = func(n int) {
			if n > 100_000 && half != nil {
				close(half)
				half = nil
			}
		}
		wait := half
		pad := strings.Repeat("all is well. ", 20_000) // 260 kB
		pr, pw := io.Pipe()
		done := make(chan struct{})
		go func() {
			defer close(done)
			_, _ = io.WriteString(pw, pad)
			<-wait // the server has a part before the client is done
			_, _ = io.WriteString(pw, "card 4111 1111 ")
			_, _ = io.WriteString(pw, "1111 1111, thanks")
			_ = pw.Close()
		}()
		status, body := send(t, payments, "POST", "http://api.bank.example/pay", pr, "content-type", "text/plain")
		<-done
		r := bank.take()
		if status != 200 || len(r) != 1 {
			t.Fatalf("%d %q", status, body)
		}
		if want := pad + "card **** **** **** 1111, thanks"; r[0].body != want {
			t.Errorf("the server got %d bytes that end in %q", len(r[0].body), r[0].body[max(0, len(r[0].body)-60):])
		}
	})

	t.Run("a cloud key does not leave", func(t *testing.T) {
		body := fmt.Sprintf("aws_access_key_id = %s\naws_secret_access_key = %s\n", "AKIA"+"QYLPMN5HHHFPZAM2", "wJalrXUtnFEMI/K7MDENG/bPxRfiCYzaBcDeFgHi")
		status, reply := send(t, payments, "POST", "http://api.bank.example/backup", strings.NewReader(body), "content-type", "text/plain")
		if status != 403 || strings.Contains(reply, "AKIA") {
			t.Errorf("%d %q", status, reply)
		}
		w.logged(`"POST /backup HTTP/1.1" 403 `, "dlp_blocked{AWS_CREDENTIALS}")
		if n := arrived(); n != 0 {
			t.Errorf("%d requests left", n)
		}
	})
	w.checkLog()
}
