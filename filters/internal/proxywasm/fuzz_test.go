package proxywasm

import (
	"bytes"
	"context"
	"os"
	"path/filepath"
	"testing"

	"github.com/tetratelabs/wazero"
	"github.com/tetratelabs/wazero/api"
)

func valid(r wazero.Runtime, module []byte) error {
	c, err := r.CompileModule(context.Background(), module)
	if err == nil {
		_ = c.Close(context.Background())
	}
	return err
}

// FuzzMeter: a module that is not refused and that the runtime takes, it takes
// rewritten too, with the same exports. What is refused may not be shown to the
// runtime, which would make room for what a module of 40 bytes says it has.
func FuzzMeter(f *testing.F) {
	files, err := filepath.Glob("testdata/*.wasm")
	if err != nil || len(files) < 8 {
		f.Fatal(files, err)
	}
	for _, name := range files {
		b, err := os.ReadFile(name)
		if err != nil {
			f.Fatal(err)
		}
		f.Add(b)
	}
	ctx := context.Background()
	r := wazero.NewRuntimeWithConfig(ctx, wazero.NewRuntimeConfigInterpreter().WithCoreFeatures(api.CoreFeaturesV2).WithMemoryLimitPages(MaxMemory/65536))
	f.Cleanup(func() { _ = r.Close(ctx) })
	f.Fuzz(func(t *testing.T, module []byte) {
		if len(module) > 64<<10 {
			return
		}
		out, merr := meter(module)
		if merr != nil || valid(r, module) != nil {
			return
		}
		if err := valid(r, out); err != nil {
			t.Fatalf("rewritten: %v", err)
		}
		a, err1 := r.CompileModule(ctx, module)
		b, err2 := r.CompileModule(ctx, out)
		if err1 != nil || err2 != nil {
			t.Fatal(err1, err2)
		}
		if len(a.ExportedFunctions()) != len(b.ExportedFunctions()) || len(a.ImportedFunctions())+1 != len(b.ImportedFunctions()) {
			t.Fatalf("exports %d and %d, imports %d and %d", len(a.ExportedFunctions()), len(b.ExportedFunctions()), len(a.ImportedFunctions()), len(b.ImportedFunctions()))
		}
		for name, fn := range a.ExportedFunctions() {
			o := b.ExportedFunctions()[name]
			if o == nil || !bytes.Equal(o.ParamTypes(), fn.ParamTypes()) || !bytes.Equal(o.ResultTypes(), fn.ResultTypes()) {
				t.Fatalf("%q has another type", name)
			}
		}
		_ = a.Close(ctx)
		_ = b.Close(ctx)
	})
}

// FuzzPairs: a list that is taken is written back to the same bytes.
func FuzzPairs(f *testing.F) {
	f.Add(appendPairs(nil, 2, func(i int) (string, string) { return []string{"a", ""}[i], []string{"b", "c"}[i] }))
	f.Add([]byte{0, 0, 0, 0})
	f.Add([]byte{1, 0, 0, 0, 255, 255, 255, 255, 0, 0, 0, 0, 0, 0})
	f.Fuzz(func(t *testing.T, b []byte) {
		pairs, ok := parsePairs(b)
		if !ok {
			return
		}
		again := appendPairs(nil, len(pairs), func(i int) (string, string) { return string(pairs[i][0]), string(pairs[i][1]) })
		if !bytes.Equal(again, b) {
			t.Fatalf("%q became %q", b, again)
		}
	})
}
