package load

import (
	"crypto/tls"
	"fmt"
	"strings"
	"testing"

	"github.com/fairlead-mesh/fairlead/internal/identity"

	"github.com/fairlead-mesh/fairlead/bench/origin"
)

func TestTunnels(t *testing.T) {
	ca, err := identity.NewDevCA("cluster.local")
	if err != nil {
		t.Fatal(err)
	}
	cert, err := ca.Issue(identity.Leaf{URIs: []string{"spiffe://cluster.local/ns/app/sa/app"}})
	if err != nil {
		t.Fatal(err)
	}
	s, err := origin.NewHBONE(&tls.Config{
		Certificates: []tls.Certificate{*cert}, ClientAuth: tls.RequireAndVerifyClientCert, ClientCAs: ca.Roots(),
		MinVersion: tls.VersionTLS13, NextProtos: []string{"h2"},
	})
	if err != nil {
		t.Fatal(err)
	}
	defer s.Close()
	addr := fmt.Sprintf("127.0.0.1:%d", s.Port())
	client := &tls.Config{NextProtos: []string{"h2"}, InsecureSkipVerify: true}
	if _, err := OpenTunnel(t.Context(), addr, client); err == nil {
		t.Error("a tunnel without certificate was opened")
	}
	client.Certificates = []tls.Certificate{*cert}
	tun, err := OpenTunnel(t.Context(), addr, client)
	if err != nil {
		t.Fatal(err)
	}
	defer tun.Close()
	const request = "GET / HTTP/1.1\r\nhost: h\r\n\r\n"
	var ids []uint32
	for range 3 {
		id, err := tun.Connect("10.1.2.3:9080")
		if err != nil {
			t.Fatal(err)
		}
		ids = append(ids, id)
	}
	for _, id := range append(ids, ids...) {
		if err := tun.Request(id, []byte(request), origin.Size); err != nil {
			t.Fatal(err)
		}
	}
	if err := tun.Request(ids[0], []byte(request), 7); err == nil {
		t.Error("an answer of another size was accepted")
	}
}

func TestComplete(t *testing.T) {
	const head = "HTTP/1.1 200 OK\r\ncontent-length: 3\r\n\r\n"
	for in, want := range map[string]string{
		"": "false", head[:20]: "false", head: "false", head + "ab": "false", head + "abc": "true",
		head + "abcd":                            "true bytes after the answer",
		"HTTP/1.1 503 Nope\r\ncontent: \r\n\r\n": `true answer "HTTP/1.1 503 Nope"`,
	} {
		done, err := complete([]byte(in), 3)
		got := fmt.Sprint(done)
		if err != nil {
			got += " " + err.Error()
		}
		if got != want {
			t.Errorf("%q: %s, want %s", strings.TrimSpace(in), got, want)
		}
	}
}
