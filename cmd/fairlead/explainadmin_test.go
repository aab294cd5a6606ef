package main

import (
	"context"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/fairlead-mesh/fairlead/examples"
	"github.com/fairlead-mesh/fairlead/filters/builtin"
	"github.com/fairlead-mesh/fairlead/proxy"
)

// A running proxy and its file give the same answer, word for word.
func TestARunningProxyAnswersAsItsFile(t *testing.T) {
	dir := t.TempDir()
	if err := os.CopyFS(dir, os.DirFS("../../examples")); err != nil {
		t.Fatal(err)
	}
	if err := examples.WriteCertificates(filepath.Join(dir, "certs")); err != nil {
		t.Fatal(err)
	}
	t.Chdir(dir)
	doc, err := os.ReadFile("waypoint/waypoint.yaml")
	if err != nil {
		t.Fatal(err)
	}
	// A loopback network of the test's own, so that the fixed ports are free.
	network := fmt.Sprintf("127.%d.%d.", 32+os.Getpid()/250%60, os.Getpid()%250)
	doc = []byte(strings.ReplaceAll(string(doc), "127.0.0.", network))
	if err := os.WriteFile("mine.yaml", doc, 0o600); err != nil {
		t.Fatal(err)
	}
	ready := make(chan struct{})
	p, err := proxy.FromBootstrap(doc, proxy.ProcessOptions{
		Registry: builtin.Registry(), DrainTime: 10 * time.Millisecond, Logger: slog.New(slog.DiscardHandler), OnReady: func() { close(ready) },
	})
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan error, 1)
	go func() { done <- p.Run(ctx) }()
	defer func() {
		cancel()
		if err := <-done; err != nil {
			t.Error(err)
		}
	}()
	select {
	case <-ready:
	case <-time.After(20 * time.Second):
		t.Fatal("the proxy does not become ready")
	}
	for _, q := range []string{
		"-s spiffe://cluster.local/ns/app/sa/client http://reviews:9080/reviews",
		"-s spiffe://cluster.local/ns/app/sa/client -H x-version:v2 http://reviews:9080/reviews",
		"-s spiffe://cluster.local/ns/app/sa/client http://reviews:9080/internal",
		"-s spiffe://cluster.local/ns/other/sa/stranger http://reviews:9080/reviews",
		"-s spiffe://cluster.local/ns/app/sa/client -d 10.96.0.10:9080 -X POST -H content-type:application/json --data {\"rating\":9}",
		"-s spiffe://other.mesh/ns/app/sa/client -d 10.96.0.10:9080",
		"-s spiffe://cluster.local/ns/app/sa/client -d 10.96.0.99:9080",
	} {
		for _, output := range []string{"text", "json"} {
			args := append(strings.Fields(q), "--source-address", "10.0.0.9", "-o", output)
			file, err := fairlead(t, append([]string{"explain", "--config", "mine.yaml"}, args...)...)
			if err != nil {
				t.Fatal(err, file)
			}
			live, err := fairlead(t, append([]string{"explain", "--admin", network + "2:15000"}, args...)...)
			if err != nil {
				t.Fatal(err, live)
			}
			if file, live = sameID(file), sameID(live); file != live {
				t.Errorf("%s: the file says\n%s\nand the running proxy\n%s", q, file, live)
			}
		}
	}
}

// sameID takes out what each answer makes up: request ids.
func sameID(s string) string {
	var b strings.Builder
	for l := range strings.Lines(s) {
		if !strings.Contains(l, "x-request-id: ") {
			b.WriteString(l)
		}
	}
	return b.String()
}
