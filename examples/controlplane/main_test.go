package main

import (
	"context"
	"net"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"go.uber.org/goleak"

	"github.com/fairlead-mesh/fairlead/xdsclient"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

const routeType = "type.googleapis.com/envoy.config.route.v3.RouteConfiguration"

func TestChangesOfTheFileArePushed(t *testing.T) {
	doc, err := os.ReadFile("../ingress/routes.yaml")
	if err != nil {
		t.Fatal(err)
	}
	file := filepath.Join(t.TempDir(), "routes.yaml")
	write := func(s string) {
		if err := os.WriteFile(file+".new", []byte(s), 0o600); err != nil {
			t.Fatal(err)
		}
		if err := os.Rename(file+".new", file); err != nil {
			t.Fatal(err)
		}
	}
	write(string(doc))
	addr := freeAddress(t)
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() { done <- run(ctx, addr, file, 10*time.Millisecond) }()
	got := make(chan string, 16)
	c, err := xdsclient.New(xdsclient.Config{
		Target: addr, MinBackoff: 10 * time.Millisecond, Node: xdsclient.Node{ID: "test"},
		Types: []xdsclient.ResourceType{{TypeURL: routeType, Names: []string{"shop"}, Decode: func(_ string, b []byte) (any, []xdsclient.Key, error) { return string(b), nil, nil }}},
		OnView: func(v *xdsclient.View) {
			if r, ok := v.Get(routeType, "shop"); ok {
				s, _ := r.Value.(string)
				got <- s
			}
		},
	})
	if err != nil {
		t.Fatal(err)
	}
	ended := make(chan struct{})
	go func() { defer close(ended); _ = c.Run(ctx) }()
	await := func(text string) {
		t.Helper()
		timeout := time.NewTimer(10 * time.Second)
		defer timeout.Stop()
		for {
			select {
			case s := <-got:
				if strings.Contains(s, text) {
					return
				}
			case err := <-done:
				t.Fatal(err)
			case <-timeout.C:
				t.Fatalf("no resource with %q", text)
			}
		}
	}
	await("/products")
	write("- [broken")
	write(strings.Replace(string(doc), "/products", "/articles", 1))
	await("/articles")
	cancel()
	<-ended
	if err := <-done; err != nil {
		t.Error(err)
	}
}

func TestWhatCannotBeServedIsNamed(t *testing.T) {
	bad := filepath.Join(t.TempDir(), "bad.yaml")
	if err := os.WriteFile(bad, []byte("- {name: x}\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	for file, want := range map[string]string{bad: "bad.yaml: resource 0", "missing.yaml": "missing.yaml"} {
		if err := run(t.Context(), "127.0.0.1:0", file, time.Second); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%s: %v", file, err)
		}
	}
}

func freeAddress(t *testing.T) string {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	return l.Addr().String()
}
