package proxy_test

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/sha256"
	"encoding/base64"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"strings"
	"sync/atomic"
	"testing"
	"time"
)

// Keys come through a cluster, ahead of the first token, and again soon after a
// failure.
func TestKeysOfTokensComeThroughACluster(t *testing.T) {
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	b64 := base64.RawURLEncoding.EncodeToString
	point, err := key.PublicKey.Bytes()
	if err != nil {
		t.Fatal(err)
	}
	jwks := fmt.Sprintf(`{"keys":[{"kty":"EC","crv":"P-256","kid":"k","x":%q,"y":%q}]}`, b64(point[1:33]), b64(point[33:]))
	signed := b64([]byte(`{"alg":"ES256","kid":"k"}`)) + "." + b64([]byte(`{"iss":"i","sub":"s"}`))
	sum := sha256.Sum256([]byte(signed))
	r, s, err := ecdsa.Sign(rand.Reader, key, sum[:])
	if err != nil {
		t.Fatal(err)
	}
	signature := make([]byte, 64)
	r.FillBytes(signature[:32])
	s.FillBytes(signature[32:])
	token := signed + "." + b64(signature)

	var down atomic.Bool
	down.Store(true)
	idp := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if down.Load() || r.URL.Path != "/keys" || r.Host != "idp.test" {
			w.WriteHeader(http.StatusNotFound)
			return
		}
		_, _ = io.WriteString(w, jwks)
	}))
	defer idp.Close()
	app := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) { _, _ = io.WriteString(w, "app") }))
	defer app.Close()
	port, admin := freePort(t), freePort(t)
	filter := `{name: jwt, typed_config: {"@type": type.googleapis.com/envoy.extensions.filters.http.jwt_authn.v3.JwtAuthentication,
            providers: {p: {issuer: i, remote_jwks: {http_uri: {uri: "http://idp.test/keys", cluster: idp, timeout: 1s}, async_fetch: {failed_refetch_duration: 0.1s}}}},
            rules: [{match: {prefix: /}, requires: {provider_name: p}}]}}, `
	startProxy(t, withAdmin("node: {id: a, cluster: a}\nstatic_resources:\n  listeners:"+
		strings.Replace(hcmListener("main", port, "app", ""), "http_filters: [", "http_filters: ["+filter, 1)+
		"\n  clusters:"+httpCluster("app", urlPort(app.URL), "http_protocol_options: {}")+httpCluster("idp", urlPort(idp.URL), "http_protocol_options: {}"), admin), nil)
	if status, body := request(t, port, "/?access_token="+token); status != 401 || body != "Jwks remote fetch is failed" {
		t.Errorf("without keys: %d %q", status, body)
	}
	down.Store(false)
	eventually(t, "the keys are fetched", func() bool {
		return metric(t, admin, `envoy_http_jwt_authn_jwks_fetch_success{envoy_http_conn_manager_prefix="main"}`) == "1"
	})
	start := time.Now()
	if status, body := request(t, port, "/?access_token="+token); status != 200 || body != "app" {
		t.Errorf("with keys: %d %q after %v", status, body, time.Since(start))
	}
	if status, body := request(t, port, "/?access_token="+token[:len(token)-4]+"AAAA"); status != 401 || body != "Jwt verification fails" {
		t.Errorf("another signature: %d %q", status, body)
	}
}
