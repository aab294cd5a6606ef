package proxy_test

import (
	"log/slog"
	"net/http"
	"net/http/httptest"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/fairlead-mesh/fairlead/filters/builtin"
	"github.com/fairlead-mesh/fairlead/proxy"
)

// A file is checked without a word to the network.
func TestACheckedFileCallsNobody(t *testing.T) {
	var asked atomic.Int32
	idp := httptest.NewServer(http.HandlerFunc(func(http.ResponseWriter, *http.Request) { asked.Add(1) }))
	defer idp.Close()
	filters := `{name: jwt, typed_config: {"@type": type.googleapis.com/envoy.extensions.filters.http.jwt_authn.v3.JwtAuthentication,
            providers: {p: {issuer: i, remote_jwks: {http_uri: {uri: "http://idp.test/keys", cluster: idp, timeout: 1s}, async_fetch: {}}}}}},
            {name: rego, typed_config: {"@type": type.googleapis.com/udpa.type.v1.TypedStruct, type_url: type.googleapis.com/fairlead.rego.v1.Config,
            value: {policy: {bundles: [{name: b, http: {cluster: idp, path: /b.tar.gz}}]}}}}, `
	doc := "node: {id: a, cluster: a}\nstatic_resources:\n  listeners:" +
		strings.Replace(hcmListener("main", freePort(t), "idp", ""), "http_filters: [", "http_filters: ["+filters, 1) +
		"  clusters:" + httpCluster("idp", urlPort(idp.URL), "http_protocol_options: {}")
	o := proxy.ProcessOptions{Registry: builtin.Registry(), Logger: slog.New(slog.DiscardHandler)}
	if _, _, err := proxy.Validate([]byte(doc), o); err != nil {
		t.Fatal(err)
	}
	time.Sleep(100 * time.Millisecond)
	if n := asked.Load(); n != 0 {
		t.Errorf("%d calls", n)
	}
	startProxy(t, doc, nil) // where both are asked for
	within(t, "calls of a running proxy", func() bool { return asked.Load() >= 2 })
}
