package examples

import (
	"context"
	"crypto/tls"
	"net"
	"net/http"
	"os"
	"strings"
	"testing"

	"github.com/fairlead-mesh/fairlead/internal/xdstest"
)

// serveRoutes is what the command controlplane does, in the test.
func (w *world) serveRoutes(doc []byte) *xdstest.Server {
	w.t.Helper()
	s := xdstest.New(w.t, xdstest.Options{Addr: w.ip(1) + ":18000"})
	w.push(s, doc)
	return s
}

func (w *world) push(s *xdstest.Server, doc []byte) {
	w.t.Helper()
	rs, err := xdstest.Load(doc, nil)
	if err != nil {
		w.t.Fatal(err)
	}
	s.Replace(rs)
}

// https is a client that finds every host at the gateway.
func (w *world) https(h2 bool) *http.Client {
	dial := func(ctx context.Context, _, addr string) (net.Conn, error) {
		_, port, _ := net.SplitHostPort(addr)
		return new(net.Dialer).DialContext(ctx, "tcp", net.JoinHostPort(w.ip(1), port))
	}
	return w.client(&http.Transport{DialContext: dial, ForceAttemptHTTP2: h2, TLSClientConfig: &tls.Config{RootCAs: w.roots(ServerCA), MinVersion: tls.VersionTLS12}})
}

func token(t *testing.T, file string) string {
	t.Helper()
	b, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	return "Bearer " + strings.TrimSpace(string(b))
}

func TestTheIngressExample(t *testing.T) {
	w := newWorld(t)
	shop, admin := w.origin("shop", 11, 8081, ""), w.origin("admin", 12, 8081, "")
	routes := w.file("ingress/routes.yaml")
	cp := w.serveRoutes(routes)
	w.proxy("ingress/ingress.yaml")
	c := w.https(false)

	t.Run("plain HTTP is redirected", func(t *testing.T) {
		status, _, h := exchange(t, c, "GET", "http://shop.example.com:8080/a?b=c", nil)
		if status != 301 || h.Get("location") != "https://shop.example.com:8443/a?b=c" {
			t.Errorf("%d to %q", status, h.Get("location"))
		}
	})

	t.Run("each name has its certificate and its application", func(t *testing.T) {
		for _, h2 := range []bool{false, true} {
			for host, o := range map[string]*origin{"shop.example.com": shop, "admin.example.com": admin} {
				c := w.https(h2) // it verifies the name
				status, body := send(t, c, "GET", "https://"+host+":8443/x", nil)
				r := o.take()
				if status != 200 || body != o.name+" GET /x" || len(r) != 1 {
					t.Fatalf("%s: %d %q", host, status, body)
				}
				if r[0].Header.Get("x-forwarded-proto") != "https" || r[0].Host != host+":8443" {
					t.Errorf("the origin saw %s %v", r[0].Host, r[0].Header)
				}
			}
		}
		w.logged(`"GET /x HTTP/2" 200 - via_upstream`, " shop.example.com shop\n")
	})

	t.Run("other names are refused without a certificate", func(t *testing.T) {
		for _, name := range []string{"evil.example.com", "example.com", ""} {
			shown := false
			err := refusedTLS(t, w.ip(1)+":8443", &tls.Config{ServerName: name, InsecureSkipVerify: true, VerifyConnection: func(tls.ConnectionState) error {
				shown = true
				return nil
			}})
			if err == nil || shown {
				t.Errorf("name %q: %v, certificate shown: %v", name, err, shown)
			}
		}
		w.logged("NR filter_chain_not_found", " evil.example.com\n")
	})

	t.Run("a connection for one name does not reach another's application", func(t *testing.T) {
		if status, _ := send(t, c, "GET", "https://shop.example.com:8443/", nil, "host", "admin.example.com"); status != 404 {
			t.Errorf("%d", status)
		}
	})

	t.Run("a token is required below /account", func(t *testing.T) {
		alice, expired := token(t, "ingress/alice.jwt"), token(t, "ingress/expired.jwt")
		shop.take()
		for _, q := range []struct {
			name, path, auth, reply string
			status                  int
		}{
			{"no token", "/account/1", "", "Jwt is missing", 401},
			{"no token, another spelling of the path", "/x/..//account", "", "Jwt is missing", 401},
			{"an expired token", "/account/2", expired, "Jwt is expired", 401},
			{"a changed token", "/account/3", alice[:len(alice)-6] + "AAAAAA", "Jwt verification fails", 401},
			{"alice's token", "/account/4", alice, "shop GET /account/4", 200},
			{"no token elsewhere", "/products", "", "shop GET /products", 200},
		} {
			var h []string
			if q.auth != "" {
				h = []string{"authorization", q.auth}
			}
			if status, body := send(t, c, "GET", "https://shop.example.com:8443"+q.path, nil, append(h, "x-user", "mallory")...); status != q.status || body != q.reply {
				t.Errorf("%s: %d %q", q.name, status, body)
			}
		}
		r := shop.take()
		if len(r) != 2 || r[0].Header.Get("x-user") != "alice" || r[1].Header.Values("x-user") != nil {
			t.Errorf("the origin saw %v", r)
		}
		w.logged(`"GET /account/2 HTTP/1.1" 401 `, "jwt_authn_access_denied{Jwt_is_expired}")
	})

	t.Run("routes change under open connections", func(t *testing.T) {
		for _, c := range []*http.Client{w.https(false), w.https(true)} {
			w.push(cp, routes)
			catalogue := func() (int, string) {
				s, body, h := exchange(t, c, "GET", "https://shop.example.com:8443/catalogue", nil)
				return s, body + h.Get("location")
			}
			w.eventually("the old routes", func() bool { s, to := catalogue(); return s == 301 && to == "https://shop.example.com:8443/products" })
			used := countDials(c)
			w.push(cp, []byte(strings.Replace(string(routes), "redirect: {path_redirect: /products}", "route: {cluster: shop, prefix_rewrite: /v2/products}", 1)))
			w.eventually("the new routes", func() bool { s, body := catalogue(); return s == 200 && body == "shop GET /v2/products" })
			if n := used(); n != 0 {
				t.Errorf("%d connections were made", n)
			}
		}
	})
	w.checkLog()
}

// countDials counts the connections that c makes from now on.
func countDials(c *http.Client) func() int {
	tr, _ := c.Transport.(*http.Transport)
	dial, n := tr.DialContext, make(chan struct{}, 100)
	tr.DialContext = func(ctx context.Context, network, addr string) (net.Conn, error) {
		n <- struct{}{}
		return dial(ctx, network, addr)
	}
	return func() int { return len(n) }
}
