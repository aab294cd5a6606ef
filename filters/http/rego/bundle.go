package rego

import (
	"archive/tar"
	"bytes"
	"compress/gzip"
	"crypto/sha256"
	"errors"
	"fmt"
	"io"
	"maps"
	"strings"

	"github.com/open-policy-agent/opa/v1/ast"
	"github.com/open-policy-agent/opa/v1/bundle"

	"github.com/fairlead-mesh/fairlead/filters/http/rego/regopb"
)

// loadedBundle is the content of a bundle, read and verified. It is immutable
// and shared: compilation copies what it changes.
type loadedBundle struct {
	name, revision string
	roots          []string
	modules        map[string]*ast.Module
	data           map[string]any
	sum            [sha256.Size]byte // of the archive
}

var errUnpacked = errors.New("bundle unpacks to more than max_unpacked_bytes")

// readBundle unpacks, verifies and parses an archive.
func readBundle(archive []byte, c *bundleConfig) (l *loadedBundle, err error) {
	defer func() {
		if p := recover(); p != nil { // the archive came from outside; see docs/adr/0009-panics.md
			l, err = nil, &panicError{p}
		}
	}()
	if err := checkUnpacked(archive, c.MaxUnpacks); err != nil {
		return nil, err
	}
	vc, err := c.Verify.config()
	if err != nil {
		return nil, err
	}
	read := func(v ast.RegoVersion) (bundle.Bundle, error) {
		loader := bundle.NewTarballLoaderWithBaseURL(bytes.NewReader(archive), "").WithSizeLimitBytes(c.MaxUnpacks)
		return bundle.NewCustomReader(loader).WithSizeLimitBytes(c.MaxUnpacks).WithBundleName(c.Name).
			WithBundleVerificationConfig(vc).WithRegoVersion(v).WithLazyLoadingMode(false).Read()
	}
	version := ast.RegoV1
	if c.Version == regopb.Policy_V0 {
		version = ast.RegoV0
	}
	b, err := read(version)
	if err != nil && c.Version == regopb.Policy_AUTO {
		if b0, err0 := read(ast.RegoV0); err0 == nil {
			b, err = b0, nil
		}
	}
	if err != nil {
		return nil, err
	}
	switch {
	case b.Type() == bundle.DeltaBundleType:
		return nil, errors.New("a delta bundle: only snapshots can be loaded")
	case len(b.Manifest.WasmResolvers) > 0:
		return nil, errors.New("the manifest names WebAssembly policies, which are not executed: build the bundle for the target rego")
	}
	return &loadedBundle{
		name: c.Name, revision: b.Manifest.Revision, roots: *b.Manifest.Roots,
		modules: b.ParsedModules(c.Name), data: b.Data, sum: sha256.Sum256(archive),
	}, nil
}

// checkUnpacked refuses an archive that would take more than limit bytes,
// before any of it is kept. Sizes that headers claim count too: a sparse file
// is small in the archive only.
func checkUnpacked(archive []byte, limit int64) error {
	z, err := gzip.NewReader(bytes.NewReader(archive))
	if err != nil {
		return fmt.Errorf("not a gzipped archive: %w", err)
	}
	// One byte more than the limit is an error and no silent end.
	plain := &io.LimitedReader{R: z, N: limit + 1}
	t := tar.NewReader(plain)
	var claimed int64
	for {
		h, err := t.Next()
		switch {
		case plain.N <= 0:
			return fmt.Errorf("%w of %d", errUnpacked, limit)
		case errors.Is(err, io.EOF):
			return nil
		case err != nil:
			return fmt.Errorf("archive: %w", err)
		case h.Size > limit-claimed:
			return fmt.Errorf("%w of %d", errUnpacked, limit)
		}
		claimed += h.Size
	}
}

// checkRoots refuses parts that claim the same paths below data: whoever
// delivers one of them must not add rules to another.
func checkRoots(bundles []*loadedBundle, modules map[string]*ast.Module, data map[string]any) error {
	for i, a := range bundles {
		for _, root := range a.roots {
			for _, b := range bundles[i+1:] {
				for _, other := range b.roots {
					if bundle.RootPathsOverlap(root, other) {
						return fmt.Errorf("bundles %s and %s both claim data below %q and %q: their manifests must name different roots", a.name, b.name, root, other)
					}
				}
			}
			for _, m := range modules {
				p := packagePath(m)
				if bundle.RootPathsOverlap(root, p) {
					return fmt.Errorf("a source has %s, which overlaps root %q of bundle %s: the bundle's manifest must name roots that leave it out", m.Package, root, a.name)
				}
			}
			if holds(data, root) {
				return fmt.Errorf("policy.data or a data file has values below root %q of bundle %s", root, a.name)
			}
		}
	}
	return nil
}

// packagePath is the path of m's package as roots are written, without "data".
func packagePath(m *ast.Module) string {
	var parts []string
	for _, t := range m.Package.Path[1:] {
		if s, ok := t.Value.(ast.String); ok {
			parts = append(parts, string(s))
		}
	}
	return strings.Join(parts, "/")
}

// holds reports whether data has something at root or is something else than
// an object on the way.
func holds(data map[string]any, root string) bool {
	if root == "" {
		return len(data) > 0
	}
	for p := range strings.SplitSeq(root, "/") {
		v, ok := data[p]
		if !ok {
			return false
		}
		if data, ok = v.(map[string]any); !ok {
			return true
		}
	}
	return true
}

// mergeTrees adds from to into, which it changes; nothing of from is changed.
func mergeTrees(into, from map[string]any, name string) error {
	for k, v := range from {
		old, ok := into[k]
		if !ok {
			into[k] = v
			continue
		}
		a, okA := old.(map[string]any)
		b, okB := v.(map[string]any)
		if !okA || !okB {
			return fmt.Errorf("%s: %q is defined twice", name, k)
		}
		a = maps.Clone(a)
		if err := mergeTrees(a, b, name+": "+k); err != nil {
			return err
		}
		into[k] = a
	}
	return nil
}
