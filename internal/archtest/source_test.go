package archtest

import (
	"encoding/json"
	"errors"
	"fmt"
	"go/ast"
	"go/importer"
	"go/parser"
	"go/token"
	"go/types"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"testing"
)

// source is the module, type-checked: objects are the same in all packages.
type source struct {
	fset *token.FileSet
	// pkgs are in the order of their dependencies.
	pkgs []*checked
}

// checked is one package of the module, without its tests.
type checked struct {
	*types.Package
	rel   string
	files []*ast.File
	info  *types.Info
}

var loadOnce = sync.OnceValues(loadSource)

// loadedSource returns the module's packages. They are loaded once.
func loadedSource(t *testing.T) *source {
	t.Helper()
	s, err := loadOnce()
	if err != nil {
		t.Fatal(err)
	}
	return s
}

func (s *source) pkg(t *testing.T, rel string) *checked {
	t.Helper()
	for _, c := range s.pkgs {
		if c.rel == rel {
			return c
		}
	}
	t.Fatalf("there is no package %s", rel)
	return nil
}

// loadSource parses and checks the module; what it depends on comes from the
// compiler's export data.
func loadSource() (*source, error) {
	cmd := exec.Command("go", "list", "-pgo=off", "-deps", "-export", "-json=ImportPath,Dir,GoFiles,Export", module+"...")
	cmd.Stderr = os.Stderr
	out, err := cmd.Output()
	if err != nil {
		return nil, fmt.Errorf("go list: %w", err)
	}
	s := &source{fset: token.NewFileSet()}
	own, exports := map[string]*types.Package{}, map[string]string{}
	compiled := importer.ForCompiler(s.fset, "gc", func(path string) (io.ReadCloser, error) {
		return os.Open(exports[path])
	})
	conf := types.Config{Importer: importerFunc(func(path string) (*types.Package, error) {
		if p := own[path]; p != nil {
			return p, nil
		}
		return compiled.Import(path)
	})}
	for d := json.NewDecoder(strings.NewReader(string(out))); ; {
		var p struct {
			ImportPath, Dir, Export string
			GoFiles                 []string
		}
		if err := d.Decode(&p); errors.Is(err, io.EOF) {
			return s, nil
		} else if err != nil {
			return nil, err
		}
		exports[p.ImportPath] = p.Export
		rel, ok := strings.CutPrefix(p.ImportPath, module)
		if !ok || len(p.GoFiles) == 0 {
			continue
		}
		c := &checked{rel: rel, info: &types.Info{
			Selections: map[*ast.SelectorExpr]*types.Selection{},
			Uses:       map[*ast.Ident]types.Object{},
			Defs:       map[*ast.Ident]types.Object{},
			Types:      map[ast.Expr]types.TypeAndValue{},
		}}
		for _, name := range p.GoFiles {
			f, err := parser.ParseFile(s.fset, filepath.Join(p.Dir, name), nil, parser.SkipObjectResolution)
			if err != nil {
				return nil, err
			}
			c.files = append(c.files, f)
		}
		if c.Package, err = conf.Check(p.ImportPath, s.fset, c.files, c.info); err != nil {
			return nil, err
		}
		own[p.ImportPath] = c.Package
		s.pkgs = append(s.pkgs, c)
	}
}

type importerFunc func(string) (*types.Package, error)

func (f importerFunc) Import(path string) (*types.Package, error) { return f(path) }
