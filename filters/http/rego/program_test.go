package rego

import (
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"testing"
	"testing/synctest"
	"time"

	"github.com/fairlead-mesh/fairlead/filters"
	"github.com/fairlead-mesh/fairlead/internal/stats"
)

func TestAFileIsSwappedByContent(t *testing.T) {
	dir := t.TempDir()
	file, data := filepath.Join(dir, "p.rego"), filepath.Join(dir, "d.yaml")
	put := func(name, text string) {
		t.Helper()
		if err := os.WriteFile(name, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	put(file, v1allow+`allow if input.attributes.request.http.method in data.methods`)
	put(data, "methods: [POST]")
	synctest.Test(t, func(t *testing.T) {
		cfg := decode(t, fmt.Sprintf(`{"policy":{"sources":[{"filename":%q},{"filename":%q}],"pollInterval":"1s"}}`, file, data))
		c := cfg.(*config)
		failures := (&stats.Registry{}).Scope("").Counter("x")
		shared := &filters.Shared{}
		p, release, err := acquireProgram(&filters.Env{}, shared, c, slog.New(slog.DiscardHandler), failures)
		if err != nil {
			t.Fatal(err)
		}
		first := p.current.Load()
		step := func() {
			time.Sleep(1001 * time.Millisecond)
			synctest.Wait()
		}
		step()
		if p.current.Load() != first {
			t.Error("recompiled without a change")
		}
		put(data, "methods: [GET]")
		step()
		second := p.current.Load()
		if second == first {
			t.Error("a changed data file was not noticed")
		}
		put(file, "package envoy.authz\nallow if {")
		step()
		if p.current.Load() != second {
			t.Error("a broken policy replaced a good one")
		}
		if err := os.Remove(file); err != nil {
			t.Fatal(err)
		}
		step()
		if p.current.Load() != second {
			t.Error("a removed policy replaced a good one")
		}
		put(file, v1allow)
		step()
		if p.current.Load() == second {
			t.Error("a repaired policy was not taken")
		}
		release() // ends the watcher, or the bubble deadlocks
	})
}
