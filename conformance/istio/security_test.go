package istio

import (
	"crypto"
	"crypto/rand"
	"crypto/rsa"
	"crypto/sha256"
	"encoding/base64"
	"encoding/json"
	"fmt"
	"io"
	"math/big"
	"net"
	"net/http"
	"net/url"
	"path"
	"strings"
	"testing"
	"time"
)

const denied = "RBAC: access denied"

// nothing fails if an application saw a request.
func (s *scenario) nothing(t *testing.T) {
	t.Helper()
	if r := append(s.web1.requests(), s.web2.requests()...); len(r) > 0 {
		t.Errorf("an application saw %+v", r)
	}
}

func TestAnAllowPolicyByPrincipal(t *testing.T) {
	s := begin(t, "allow")
	for _, c := range []struct {
		name, method, path string
		as                 *client
		allowed            bool
	}{
		{"the principal", "GET", "/", s.shop, true},
		{"another principal", "GET", "/", s.stranger, false},
		{"another principal of the namespace, where its namespace is enough", "GET", "/public", s.stranger, true},
		{"another method", "POST", "/", s.shop, false},
		{"an excepted path", "GET", "/internal/x", s.shop, false},
		{"an excepted path by a detour", "GET", "/a/../internal/x", s.shop, false},
	} {
		t.Run(c.name, func(t *testing.T) {
			s.web1.reset(nil)
			s.web2.reset(nil)
			a := c.as.raw(t, "web.app.svc.cluster.local:80", c.method+" "+c.path+" HTTP/1.1\r\nhost: web.app.svc.cluster.local\r\ncontent-length: 0\r\nx-forwarded-client-cert: URI=spiffe://cluster.local/ns/client/sa/shop\r\n\r\n")
			if c.allowed {
				if n := len(s.web1.requests()) + len(s.web2.requests()); a.Status != 200 || n != 1 {
					t.Errorf("%+v, seen %d times", a, n)
				}
				return
			}
			if a.Status != 403 || a.Body != denied {
				t.Errorf("%+v", a)
			}
			s.nothing(t)
		})
	}
}

func TestADenyPolicyCannotBeBypassedBySpelling(t *testing.T) {
	s := begin(t, "deny")
	send := func(t *testing.T, method, target string) answer {
		s.web1.reset(nil)
		s.web2.reset(nil)
		return s.shop.raw(t, "web.app.svc.cluster.local:80", method+" "+target+" HTTP/1.1\r\nhost: web.app.svc.cluster.local\r\ncontent-length: 0\r\n\r\n")
	}
	for _, target := range []string{
		"/admin", "/admin/", "/admin/x", "/admin?x=1", "//admin", "///admin//x", "/./admin", "/x/../admin", "/x/y/../../admin", "/%61dmin", "/%2e/admin",
		"/x/%2e%2e/admin", "/x/%2E./admin", "/%2fadmin", "/%2Fadmin", "/x%2f..%2fadmin", "/admin%2fx", "/admin%2Fx", `/\admin`, `/x\..\admin`, "/%5cadmin", "/x/..//admin",
		"http://web.app.svc.cluster.local/admin", "http://web.app.svc.cluster.local//admin", "/admin#x", "/admin/..;/admin",
	} {
		t.Run(target, func(t *testing.T) {
			a := send(t, "GET", target)
			switch a.Status {
			case 403:
				if a.Body != denied {
					t.Errorf("%+v", a)
				}
				s.nothing(t)
			case 400, 404:
				s.nothing(t)
			default:
				// Whatever goes through must not be the path in disguise.
				for _, r := range append(s.web1.requests(), s.web2.requests()...) {
					if isAdmin(r.Target) {
						t.Errorf("status %d, the application saw %q", a.Status, r.Target)
					}
				}
			}
			if strings.HasSuffix(target, "/admin") && a.Status == 200 {
				t.Errorf("not denied: %+v", a)
			}
		})
	}
	for _, target := range []string{"/", "/administrator", "/x/admin", "/ADMIN", "/admin/../public", "/x?p=/admin"} {
		if a := send(t, "GET", target); a.Status != 200 {
			t.Errorf("%s is not denied by the policy, but got %+v", target, a)
		}
	}
	if a := send(t, "DELETE", "/x"); a.Status != 403 || a.Body != denied {
		t.Errorf("the denied method: %+v", a)
	}
	s.nothing(t)
}

// isAdmin tells whether an application that decodes and cleans a target any
// number of times may take it for the denied path.
func isAdmin(target string) bool {
	p, _, _ := strings.Cut(target, "?")
	for range 3 {
		p = path.Clean("/" + strings.ReplaceAll(p, `\`, "/"))
		if p == "/admin" || strings.HasPrefix(p, "/admin/") {
			return true
		}
		u, err := url.PathUnescape(p)
		if err != nil || u == p {
			return false
		}
		p = u
	}
	return false
}

func TestATCPServiceWithLayer4Policies(t *testing.T) {
	s := begin(t, "tcp")
	const db, admin = "db.app.svc.cluster.local:5432", "db-admin.app.svc.cluster.local:5433"
	exchange := func(t *testing.T, c *client, addr, data string) (string, error) {
		t.Helper()
		s.db.reset()
		conn, err := c.dial(t.Context(), addr)
		if err != nil {
			return "", err
		}
		defer conn.Close()
		_ = conn.SetDeadline(time.Now().Add(10 * time.Second))
		go func() {
			_, _ = io.WriteString(conn, data)
			_ = conn.(*net.TCPConn).CloseWrite()
		}()
		b, err := io.ReadAll(conn)
		return string(b), err
	}
	for _, n := range []int{0, 1, 5, 100_000, 3_000_000} {
		data := strings.Repeat("0123456789", n/10+1)[:n]
		// The application answers after the end of what the client sends, so an
		// answer proves that one half was closed and the other stayed open.
		began := time.Now()
		got, err := exchange(t, s.shop, db, data)
		if d := time.Since(began); d > 15*time.Second {
			t.Errorf("%d bytes took %v", n, d)
		}
		if want := fmt.Sprintf("%d bytes\n%s", n, data); err != nil || got != want {
			t.Errorf("%d bytes: got %d bytes, %v", n, len(got), err)
		}
		if seen := s.db.streams(); len(seen) != 1 || seen[0].Data != data || seen[0].Err != nil {
			t.Errorf("%d bytes: the application saw %d connections", n, len(seen))
		}
	}
	for name, c := range map[string]struct {
		as   *client
		addr string
	}{
		"another principal": {s.stranger, db}, "another port": {s.shop, "db.app.svc.cluster.local:5433"},
	} {
		began := time.Now()
		got, err := exchange(t, c.as, c.addr, "hello")
		if got != "" || time.Since(began) > 15*time.Second {
			t.Errorf("%s: got %q, %v after %v", name, got, err, time.Since(began))
		}
		for _, seen := range s.db.streams() {
			if seen.Data != "" {
				t.Errorf("%s: the application saw %+v", name, seen)
			}
		}
	}
	got, err := exchange(t, s.shop, admin, "by a route")
	if seen := s.db.streams(); err != nil || got != "10 bytes\nby a route" || len(seen) != 1 || seen[0].Port != "5432" {
		t.Errorf("the TCP route: %q, %v; the application saw %+v", got, err, seen)
	}
}

// issuer signs tokens with a key of its own.
type issuer struct{ key *rsa.PrivateKey }

func newIssuer(t *testing.T) *issuer {
	key, err := rsa.GenerateKey(rand.Reader, 2048)
	if err != nil {
		t.Fatal(err)
	}
	return &issuer{key}
}

func base64url(b []byte) string { return base64.RawURLEncoding.EncodeToString(b) }

func (i *issuer) jwks() string {
	return fmt.Sprintf(`{"keys":[{"kty":"RSA","kid":"k1","alg":"RS256","use":"sig","n":%q,"e":%q}]}`,
		base64url(i.key.N.Bytes()), base64url(big.NewInt(int64(i.key.E)).Bytes()))
}

func (i *issuer) token(t *testing.T, alg string, change map[string]any) string {
	t.Helper()
	claims := map[string]any{"iss": "https://issuer.example", "sub": "alice", "aud": "shop", "exp": time.Now().Add(time.Hour).Unix()}
	for k, v := range change {
		claims[k] = v
	}
	payload, err := json.Marshal(claims)
	if err != nil {
		t.Fatal(err)
	}
	signed := base64url(fmt.Appendf(nil, `{"alg":%q,"kid":"k1","typ":"JWT"}`, alg)) + "." + base64url(payload)
	if alg == "none" {
		return signed + "."
	}
	sum := sha256.Sum256([]byte(signed))
	sig, err := rsa.SignPKCS1v15(rand.Reader, i.key, crypto.SHA256, sum[:])
	if err != nil {
		t.Fatal(err)
	}
	return signed + "." + base64url(sig)
}

func TestTokensAndPoliciesOnTheirClaims(t *testing.T) {
	iss, other := newIssuer(t), newIssuer(t)
	s := begin(t, "jwt", "${JWKS}", iss.jwks())
	good := iss.token(t, "RS256", nil)
	for _, c := range []struct {
		name, path, token string
		status            int
	}{
		{"no token where none is needed", "/open", "", 200},
		{"a bad token where none is needed", "/open", "x.y.z", 401},
		{"no token", "/orders", "", 403},
		{"a good token", "/orders", good, 200},
		{"a token of another key", "/orders", other.token(t, "RS256", nil), 401},
		{"no signature", "/orders", iss.token(t, "none", nil), 401},
		{"a changed payload", "/orders", swapPayload(good, iss.token(t, "RS256", map[string]any{"sub": "bob"})), 401},
		{"expired", "/orders", iss.token(t, "RS256", map[string]any{"exp": time.Now().Add(-time.Hour).Unix()}), 401},
		{"not yet valid", "/orders", iss.token(t, "RS256", map[string]any{"nbf": time.Now().Add(time.Hour).Unix()}), 401},
		{"for another audience", "/orders", iss.token(t, "RS256", map[string]any{"aud": "bank"}), 403},
		{"of another issuer", "/orders", iss.token(t, "RS256", map[string]any{"iss": "https://evil.example"}), 401},
		{"without the claim", "/reports", good, 403},
		{"with another value of the claim", "/reports", iss.token(t, "RS256", map[string]any{"groups": []string{"users"}}), 403},
		{"with the claim", "/reports", iss.token(t, "RS256", map[string]any{"groups": []string{"users", "admins"}}), 200},
		{"with the claim as one string", "/reports", iss.token(t, "RS256", map[string]any{"groups": "admins"}), 200},
		{"a path that no rule has", "/other", good, 403},
	} {
		t.Run(c.name, func(t *testing.T) {
			s.web1.reset(nil)
			s.web2.reset(nil)
			headers := []string{"x-user: mallory"}
			if c.token != "" {
				headers = append(headers, "authorization: Bearer "+c.token)
			}
			a, err := s.shop.try(http.MethodGet, web+c.path, headers...)
			if err != nil || a.Status != c.status {
				t.Fatalf("%+v, %v, want %d", a, err, c.status)
			}
			if a.Status == 403 && a.Body != denied && a.Body != "Audiences in Jwt are not allowed" || a.Status == 401 && a.Header.Get("www-authenticate") == "" {
				t.Errorf("%+v", a)
			}
			if a.Status != 200 {
				s.nothing(t)
				return
			}
			r := append(s.web1.requests(), s.web2.requests()...)
			if len(r) != 1 {
				t.Fatalf("the applications saw %+v", r)
			}
			if c.token != "" && (r[0].Header.Get("x-user") != "alice" || r[0].Header.Get("authorization") != "Bearer "+c.token) {
				t.Errorf("the application saw %+v", r[0].Header)
			}
		})
	}
}

// swapPayload puts the payload of one token into another.
func swapPayload(token, of string) string {
	a, b := strings.Split(token, "."), strings.Split(of, ".")
	return a[0] + "." + b[1] + "." + a[2]
}
