package ztunnel

import (
	"crypto/tls"
	"crypto/x509"
	"slices"
	"strings"
	"testing"

	"github.com/fairlead-mesh/fairlead/internal/identity"
)

func TestAnOverlongChainIsRefused(t *testing.T) {
	ca, err := identity.NewDevCA("td")
	if err != nil {
		t.Fatal(err)
	}
	cert, err := ca.Issue(identity.Leaf{URIs: []string{"spiffe://td/ns/app/sa/peer"}})
	if err != nil {
		t.Fatal(err)
	}
	for n, want := range map[int]string{1: "", identity.MaxChain: "", identity.MaxChain + 1: "a chain of 17 certificates", 200: "a chain of 200 certificates"} {
		cs := &tls.ConnectionState{PeerCertificates: slices.Repeat([]*x509.Certificate{cert.Leaf}, n)}
		_, err := verify(cs, ca.Roots(), x509.ExtKeyUsageClientAuth)
		if (err == nil) != (want == "") || err != nil && !strings.Contains(err.Error(), want) {
			t.Errorf("%d certificates: %v, want %q", n, err, want)
		}
	}
}
