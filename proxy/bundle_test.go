package proxy_test

import (
	"bufio"
	"crypto/tls"
	"fmt"
	"net"
	"strings"
	"testing"
	"time"

	"github.com/fairlead-mesh/fairlead/internal/identity"
	"github.com/fairlead-mesh/fairlead/internal/xdstest"
)

// A bundle of a thousand roots arrives over ADS and is searched for each client: the
// one that signed its certificate is found, and somebody's of none of them isn't let
// in. A bundle of nothing changes nothing.
func TestABundleOfAThousandRoots(t *testing.T) {
	w := newPushed(t)
	const roots = 1000
	first, last, other := newRoot(t), newRoot(t), newRoot(t)
	pem := strings.Builder{}
	pem.Write(first.RootsPEM())
	for range roots - 2 {
		pem.Write(newRoot(t).RootsPEM())
	}
	pem.Write(last.RootsPEM())
	if n := strings.Count(pem.String(), "BEGIN CERTIFICATE"); n != roots {
		t.Fatalf("%d roots", n)
	}
	bundle := func(s string) string {
		doc := strings.Replace(pushedYAML, "        common_tls_context: {", "        require_client_certificate: true\n        common_tls_context: {validation_context_sds_secret_config: {name: roots, sds_config: {ads: {}}}, ", 1)
		return doc + fmt.Sprintf("- {\"@type\": type.googleapis.com/envoy.extensions.transport_sockets.tls.v3.Secret, name: roots, validation_context: {trusted_ca: {inline_string: %q}}}\n", s)
	}
	w.set(bundle(pem.String()))
	admitted := func(ca *identity.DevCA) (bool, time.Duration) {
		cert, err := ca.Issue(identity.Leaf{URIs: []string{clientID}})
		if err != nil {
			t.Fatal(err)
		}
		began := time.Now()
		c, err := tls.DialWithDialer(&net.Dialer{Timeout: 20 * time.Second}, "tcp", fmt.Sprintf("127.0.0.1:%d", w.port), &tls.Config{RootCAs: w.ca.Roots(), ServerName: "edge.example", Certificates: []tls.Certificate{*cert}})
		if err != nil {
			return false, 0
		}
		defer c.Close()
		_ = c.SetDeadline(time.Now().Add(20 * time.Second))
		status, _ := (&client{c, bufio.NewReader(c)}).get("/open")
		return status == 200, time.Since(began)
	}
	eventually(t, "the roots in force", func() bool {
		ok, _ := admitted(other)
		found, _ := admitted(last)
		return !ok && found
	})
	check := func(when string) {
		t.Helper()
		for name, ca := range map[string]*identity.DevCA{"first": first, "last": last} {
			ok, took := admitted(ca)
			t.Logf("%s: by the %s root in %v", when, name, took)
			if !ok || took > 10*time.Second {
				t.Errorf("%s: a certificate of the %s root: admitted %t, after %v", when, name, ok, took)
			}
		}
		if ok, _ := admitted(other); ok {
			t.Errorf("%s: a certificate of no root in the bundle is admitted", when)
		}
	}
	check("with a thousand roots")
	w.set(bundle("# no certificate at all\n"))
	if !w.cp.Await(10*time.Second, func(rs []xdstest.Request) bool {
		r := rs[len(rs)-1]
		return r.IsNACK() && strings.Contains(r.GetErrorDetail().GetMessage(), "roots: ")
	}) {
		t.Error("an empty bundle is not refused by name")
	}
	check("after an empty bundle")
}

func newRoot(t *testing.T) *identity.DevCA {
	t.Helper()
	ca, err := identity.NewDevCA("cluster.local")
	if err != nil {
		t.Fatal(err)
	}
	return ca
}
