package main

import (
	"cmp"
	"fmt"
	"go/ast"
	"go/parser"
	"go/token"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
)

// target is a fuzz target in the source.
type target struct {
	// Package is the target's directory, slash-separated, from the root.
	Package string
	Name    string
	// Module is the directory of the module that Package is in, "." or below.
	Module string
	// Oracle is the target's doc comment as one line.
	Oracle string
}

func (t target) dirInModule() string {
	return strings.TrimPrefix(t.Package, strings.TrimPrefix(t.Module+"/", "./"))
}

// find returns all targets below root, sorted.
func find(root string) ([]target, error) {
	var ts []target
	err := filepath.WalkDir(root, func(p string, d fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		name := d.Name()
		if d.IsDir() {
			if p != root && (strings.HasPrefix(name, ".") || name == "testdata" || name == "bin") {
				return filepath.SkipDir
			}
			return nil
		}
		if !strings.HasSuffix(name, "_test.go") {
			return nil
		}
		found, err := inFile(p)
		if err != nil {
			return err
		}
		for _, t := range found {
			rel, err := filepath.Rel(root, filepath.Dir(p))
			if err != nil {
				return err
			}
			t.Package = filepath.ToSlash(rel)
			t.Module = module(root, rel)
			ts = append(ts, t)
		}
		return nil
	})
	slices.SortFunc(ts, func(a, b target) int {
		return cmp.Or(strings.Compare(a.Package, b.Package), strings.Compare(a.Name, b.Name))
	})
	return ts, err
}

// module is the directory, from root, of the go.mod that governs dir.
func module(root, dir string) string {
	for {
		if _, err := os.Stat(filepath.Join(root, dir, "go.mod")); err == nil || dir == "." {
			return filepath.ToSlash(dir)
		}
		dir = filepath.Dir(dir)
	}
}

func inFile(path string) ([]target, error) {
	f, err := parser.ParseFile(token.NewFileSet(), path, nil, parser.ParseComments|parser.SkipObjectResolution)
	if err != nil {
		return nil, err
	}
	var ts []target
	for _, d := range f.Decls {
		fn, ok := d.(*ast.FuncDecl)
		if !ok || fn.Recv != nil || !strings.HasPrefix(fn.Name.Name, "Fuzz") || len(fn.Type.Params.List) != 1 {
			continue
		}
		oracle := strings.Join(strings.Fields(fn.Doc.Text()), " ")
		if oracle == "" {
			return nil, fmt.Errorf("%s: %s has no doc comment that names its oracle", path, fn.Name.Name)
		}
		oracle = strings.TrimLeft(strings.TrimPrefix(oracle, fn.Name.Name), ": ")
		ts = append(ts, target{Name: fn.Name.Name, Oracle: oracle})
	}
	return ts, nil
}
