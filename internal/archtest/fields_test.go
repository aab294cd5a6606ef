package archtest

import (
	"go/ast"
	"go/token"
	"go/types"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"
)

// configRoots are what configuration is decoded into.
var configRoots = map[string][]string{
	"xdsclient/xdsresource": {"Listener", "RouteConfiguration", "Cluster", "ClusterLoadAssignment", "Secret", "ExtensionConfig"},
	"proxy/bootstrap":       {"Config"},
}

// unread are fields that may be without a reader where they are executed.
var unread = map[string]string{
	"filters.Node.ServiceAccount": "describes the node to filters; the control plane gets Metadata",
	"filters.Node.TrustDomain":    "describes the node to filters; the control plane gets Metadata",
}

// unset are fields that may be without a writer.
var unset = map[string]string{}

// A field that is decoded and then read by nobody is neither executed nor
// reported: such fields are left out, and their proto field is classified as
// ignored, moot, closed or rejected.
func TestEveryDecodedFieldIsRead(t *testing.T) {
	s := loadedSource(t)
	u := s.usage(t)
	excused := map[string]bool{}
	n := 0
	for _, st := range s.configStructs(t) {
		home := st.Obj().Pkg()
		for f := range st.Underlying().(*types.Struct).Fields() { //nolint:forcetypeassert // configStructs
			if !f.Exported() {
				continue
			}
			n++
			name := home.Name() + "." + st.Obj().Name() + "." + f.Name()
			byOthers := slices.ContainsFunc(u.readers[f], func(p *types.Package) bool { return !decodes(p) })
			if !byOthers {
				if unread[name] == "" {
					t.Errorf("%s: %s is read only where it is decoded: execute it, or leave it out and classify the proto field as ignored",
						s.fset.Position(f.Pos()), name)
				}
				excused[name] = true
			}
			if decodes(home) && !u.written[f] {
				if unset[name] == "" {
					t.Errorf("%s: %s is set by nobody: decode it, or leave it out", s.fset.Position(f.Pos()), name)
				}
				excused[name] = true
			}
		}
	}
	if n < 400 {
		t.Errorf("%d fields were looked at: the test is blind", n)
	}
	for _, list := range []map[string]string{unread, unset} {
		for name := range list {
			if !excused[name] {
				t.Errorf("%s needs no excuse any more", name)
			}
		}
	}
}

// decodes reports whether p declares what configuration is decoded into.
func decodes(p *types.Package) bool {
	return configRoots[strings.TrimPrefix(p.Path(), module)] != nil
}

// unreadInFilters are fields of filters that may be without a reader.
var unreadInFilters = map[string]string{
	"filters/internal/dlp.Finding.Start": "where the scanner found it; what it masks is part of its output",
	"filters/internal/dlp.Finding.End":   "where the scanner found it; what it masks is part of its output",
}

// Filters decode into structs of their own; what they share is in
// filters/internal.
func TestEveryFieldOfAFiltersConfigurationIsRead(t *testing.T) {
	s := loadedSource(t)
	u := s.usage(t)
	excused := map[string]bool{}
	n := 0
	for _, c := range s.pkgs {
		if !strings.HasPrefix(c.rel, "filters/") || strings.HasSuffix(c.rel, "pb") {
			continue
		}
		for _, name := range c.Scope().Names() {
			tn, ok := c.Scope().Lookup(name).(*types.TypeName)
			if !ok || strings.HasPrefix(c.rel, "filters/internal/") && !tn.Exported() ||
				!strings.HasPrefix(c.rel, "filters/internal/") && !s.inFile(tn, "config.go") {
				continue
			}
			st, ok := tn.Type().Underlying().(*types.Struct)
			if !ok || notProduct.MatchString(c.rel) {
				continue
			}
			for f := range st.Fields() {
				n++
				where := c.rel + "." + name + "." + f.Name()
				if len(u.readers[f]) > 0 || f.Embedded() {
					continue
				}
				if unreadInFilters[where] == "" {
					t.Errorf("%s: %s is read by nobody: execute it, or report what sets it as ignored", s.fset.Position(f.Pos()), where)
				}
				excused[where] = true
			}
		}
	}
	if n < 200 {
		t.Errorf("%d fields were looked at: the test is blind", n)
	}
	for name := range unreadInFilters {
		if !excused[name] {
			t.Errorf("%s needs no excuse any more", name)
		}
	}
}

func (s *source) inFile(tn *types.TypeName, name string) bool {
	return filepath.Base(s.fset.Position(tn.Pos()).Filename) == name
}

// configStructs returns the struct types of this module that values of
// configRoots are made of.
func (s *source) configStructs(t *testing.T) []*types.Named {
	t.Helper()
	var out []*types.Named
	seen := map[types.Type]bool{}
	var visit func(t types.Type)
	visit = func(t types.Type) {
		t = types.Unalias(t)
		if seen[t] {
			return
		}
		seen[t] = true
		switch t := t.(type) {
		case *types.Map:
			visit(t.Key())
			visit(t.Elem())
		case interface{ Elem() types.Type }: // pointers, slices, arrays
			visit(t.Elem())
		case *types.Named:
			if t.Obj().Pkg() == nil || !strings.HasPrefix(t.Obj().Pkg().Path(), module) {
				return
			}
			st, ok := t.Underlying().(*types.Struct)
			if !ok {
				visit(t.Underlying())
				return
			}
			out = append(out, t)
			for f := range st.Fields() {
				if f.Exported() {
					visit(f.Type())
				}
			}
		}
	}
	for rel, names := range configRoots {
		for _, name := range names {
			o := s.pkg(t, rel).Scope().Lookup(name)
			if o == nil {
				t.Fatalf("%s has no %s", rel, name)
			}
			visit(o.Type())
		}
	}
	return out
}

// usage says who reads and writes fields.
type usage struct {
	readers map[*types.Var][]*types.Package
	written map[*types.Var]bool
}

// notProduct are packages that only tests and demonstrations use.
var notProduct = regexp.MustCompile(`^(internal/(xdstest|leaktest|hbonetest|archtest)|demo|examples)(/|$)|conntest$`)

func (s *source) usage(t *testing.T) *usage {
	t.Helper()
	u := &usage{readers: map[*types.Var][]*types.Package{}, written: map[*types.Var]bool{}}
	for _, c := range s.pkgs {
		if notProduct.MatchString(c.rel) {
			continue
		}
		for _, f := range c.files {
			c.fields(f, u)
		}
	}
	return u
}

// fields enters what one file does. A field is read where it is selected, but
// for the left side of an assignment, and written there and in literals.
func (c *checked) fields(file *ast.File, u *usage) {
	assigned := map[ast.Expr]bool{}
	ast.Inspect(file, func(n ast.Node) bool {
		switch n := n.(type) {
		case *ast.AssignStmt:
			for _, l := range n.Lhs {
				markAssigned(assigned, l)
			}
		case *ast.IncDecStmt:
			markAssigned(assigned, n.X)
		case *ast.UnaryExpr:
			if sel, ok := n.X.(*ast.SelectorExpr); ok && n.Op == token.AND { // whoever has the address may write
				c.selector(sel, true, u)
			}
		case *ast.CompositeLit:
			c.literal(n, u)
		case *ast.SelectorExpr:
			c.selector(n, assigned[n], u)
		}
		return true
	})
}

func (c *checked) literal(n *ast.CompositeLit, u *usage) {
	st := structOf(c.info.Types[n].Type)
	if st == nil {
		return
	}
	for i, e := range n.Elts {
		if kv, ok := e.(*ast.KeyValueExpr); ok {
			if id, ok := kv.Key.(*ast.Ident); ok {
				if v, ok := c.info.Uses[id].(*types.Var); ok {
					u.written[v.Origin()] = true
				}
			}
		} else {
			u.written[st.Field(i).Origin()] = true
		}
	}
}

// selector enters a selected field, and those on the way to it.
func (c *checked) selector(n *ast.SelectorExpr, assigned bool, u *usage) {
	sel := c.info.Selections[n]
	if sel == nil {
		return
	}
	path := sel.Index()
	if sel.Kind() != types.FieldVal {
		path = path[:len(path)-1] // the last one is a method
	}
	t := sel.Recv()
	for i, x := range path {
		v := structOf(t).Field(x).Origin()
		t = v.Type()
		if assigned && i == len(path)-1 {
			u.written[v] = true
			continue
		}
		if rs := u.readers[v]; len(rs) == 0 || rs[len(rs)-1] != c.Package {
			u.readers[v] = append(rs, c.Package)
		}
	}
}

// markAssigned marks the selectors that assigning to e goes through.
func markAssigned(assigned map[ast.Expr]bool, e ast.Expr) {
	for {
		assigned[e] = true
		switch x := e.(type) {
		case *ast.ParenExpr:
			e = x.X
		case *ast.StarExpr:
			e = x.X
		case *ast.IndexExpr:
			e = x.X
		case *ast.SelectorExpr:
			e = x.X
		default:
			return
		}
	}
}

func structOf(t types.Type) *types.Struct {
	if p, ok := t.Underlying().(*types.Pointer); ok {
		t = p.Elem()
	}
	st, _ := t.Underlying().(*types.Struct)
	return st
}

var (
	docMessage = regexp.MustCompile(`^## (\S+)$`)
	docField   = regexp.MustCompile("^\\| `(\\w+)` \\| yes")
)

// undecoded are fields that docs/xds-support.md calls executed although no
// getter of theirs is called.
var undecoded = map[string]string{
	"envoy.config.core.v3.GrpcService.GoogleGrpc.ChannelCredentials.local_credentials": "plaintext is what remains without ssl_credentials",
}

// The other half of the way from docs/xds-support.md to execution: what it
// calls executed is decoded.
func TestEveryExecutedFieldIsDecoded(t *testing.T) {
	s := loadedSource(t)
	used, several := map[string]bool{}, map[string]bool{} // several messages are read through an interface
	for _, c := range s.pkgs {
		for _, sel := range c.info.Selections {
			if fn, ok := sel.Obj().(*types.Func); ok && strings.HasPrefix(fn.Name(), "Get") {
				field := strings.ToLower(separators.Replace(strings.TrimPrefix(fn.Name(), "Get")))
				if types.IsInterface(fn.Signature().Recv().Type()) {
					several[field] = true
				} else {
					used[protoName(fn.Signature().Recv().Type())+field] = true
				}
			}
		}
		for _, o := range c.info.Uses { // wrappers of oneofs: RouteAction_Cluster
			if tn, ok := o.(*types.TypeName); ok && tn.Pkg() != nil {
				used[protoName(tn.Type())] = true
			}
		}
	}
	doc, err := os.ReadFile(filepath.Join("..", "..", "docs", "xds-support.md"))
	if err != nil {
		t.Fatal(err)
	}
	message, n := "", 0
	for line := range strings.SplitSeq(string(doc), "\n") {
		if m := docMessage.FindStringSubmatch(line); m != nil {
			message = m[1]
			continue
		}
		m := docField.FindStringSubmatch(line)
		if m == nil {
			continue
		}
		n++
		decoded := used[strings.ToLower(separators.Replace(message+m[1]))] || several[separators.Replace(m[1])]
		name := message + "." + m[1]
		if !decoded && undecoded[name] == "" {
			t.Errorf("docs/xds-support.md says that %s is executed, but nothing decodes it", name)
		} else if decoded && undecoded[name] != "" {
			t.Errorf("%s needs no excuse any more", name)
		}
	}
	if n < 400 {
		t.Errorf("%d fields were looked at: the test is blind", n)
	}
}

// protoName is the full name of a generated type in lower case and without
// separators, which Go names and proto names differ by.
func protoName(t types.Type) string {
	if p, ok := t.(*types.Pointer); ok {
		t = p.Elem()
	}
	n, ok := t.(*types.Named)
	if !ok || n.Obj().Pkg() == nil {
		return ""
	}
	_, path, ok := strings.Cut(n.Obj().Pkg().Path(), "/go-control-plane/")
	if !ok {
		if _, path, ok = strings.Cut(n.Obj().Pkg().Path(), "/cncf/xds/go/"); !ok {
			return ""
		}
	}
	return strings.ToLower(separators.Replace(path + n.Obj().Name()))
}

var separators = strings.NewReplacer("/", "", "_", "", ".", "")
