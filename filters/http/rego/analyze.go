package rego

import (
	"maps"
	"slices"

	"github.com/open-policy-agent/opa/v1/ast"
)

// want says which parts of the input document a policy can read. The other
// parts are not built; the request body is buffered only for those that need
// it.
type want struct {
	method, path, host, scheme, protocol, id, size, time bool
	body, rawBody, parsedBody, truncated                 bool
	allHeaders                                           bool
	headers                                              []string // sorted; nil if allHeaders
	source, destination, sourcePrincipal                 bool
	extensions, metadata                                 bool
	parsedPath, parsedQuery, version                     bool
}

// needsBody reports whether the request body must be buffered.
func (w *want) needsBody() bool { return w.body || w.rawBody || w.parsedBody || w.truncated }

// hasHeaders reports whether the headers object is built.
func (w *want) hasHeaders() bool { return w.allHeaders || len(w.headers) > 0 }

func (w *want) everything() {
	*w = want{
		method: true, path: true, host: true, scheme: true, protocol: true, id: true, size: true, time: true,
		body: true, rawBody: true, parsedBody: true, truncated: true, allHeaders: true, source: true, destination: true, sourcePrincipal: true,
		extensions: true, metadata: true, parsedPath: true, parsedQuery: true, version: true,
	}
}

// mark records that the policy reads the document at path, the ground prefix
// of a reference below input.
func (w *want) mark(path []string) {
	if len(path) == 0 {
		w.everything()
		return
	}
	switch path[0] {
	case "attributes":
		w.markAttributes(path[1:])
	case "parsed_path":
		w.parsedPath = true
	case "parsed_query":
		w.parsedQuery = true
	case "parsed_body":
		w.parsedBody = true
	case "truncated_body":
		w.truncated = true
	case "version":
		w.version = true
	case "source_principal":
		w.sourcePrincipal = true
	}
}

func (w *want) markAttributes(path []string) {
	if len(path) == 0 {
		w.source, w.destination, w.extensions, w.metadata = true, true, true, true
		w.markRequest(nil)
		return
	}
	switch path[0] {
	case "source":
		w.source = true
	case "destination":
		w.destination = true
	case "contextExtensions":
		w.extensions = true
	case "metadataContext":
		w.metadata = true
	case "request":
		w.markRequest(path[1:])
	}
}

func (w *want) markRequest(path []string) {
	if len(path) == 0 {
		w.time = true
		w.markHTTP(nil)
		return
	}
	switch path[0] {
	case "time":
		w.time = true
	case "http":
		w.markHTTP(path[1:])
	}
}

func (w *want) markHTTP(path []string) {
	if len(path) == 0 {
		w.method, w.path, w.host, w.scheme, w.protocol, w.id, w.size = true, true, true, true, true, true, true
		w.body, w.rawBody, w.allHeaders = true, true, true
		return
	}
	switch path[0] {
	case "method":
		w.method = true
	case "path":
		w.path = true
	case "host":
		w.host = true
	case "scheme":
		w.scheme = true
	case "protocol":
		w.protocol = true
	case "id":
		w.id = true
	case "size":
		w.size = true
	case "body":
		w.body = true
	case "rawBody":
		w.rawBody = true
	case "headers":
		if len(path) == 1 {
			w.allHeaders = true
		} else if !slices.Contains(w.headers, path[1]) {
			w.headers = append(w.headers, path[1])
		}
	}
}

// analyze finds every reference to input in compiled modules. What it can't
// follow counts as reading the whole document at that point. Packages that only
// serve the decision log don't count: their input is the log's event.
func analyze(all map[string]*ast.Module, q queries) want {
	a := &analysis{aliases: map[ast.Var][]string{}, defs: map[*ast.Expr]bool{}}
	modules := maps.Clone(all)
	decision, err := ast.ParseRef(q.decision)
	for _, rule := range []string{q.mask, q.drop} {
		ref, errLog := ast.ParseRef(rule)
		if err != nil || errLog != nil || len(ref) < 3 {
			continue
		}
		pkg := ref[:len(ref)-1]
		if !decision.HasPrefix(pkg) && !pkg.HasPrefix(decision) && !usedElsewhere(all, pkg) {
			maps.DeleteFunc(modules, func(_ string, m *ast.Module) bool { return m.Package.Path.Equal(pkg) })
		}
	}
	for _, m := range modules {
		for _, r := range m.Rules {
			a.findAliases(r)
		}
	}
	for _, m := range modules {
		for _, r := range m.Rules {
			a.visit(r)
		}
	}
	// An alias that nothing looks into still has to be defined.
	for v, path := range a.aliases {
		if !a.used[v] {
			a.want.mark(path)
		}
	}
	if a.want.allHeaders {
		a.want.headers = nil
	}
	slices.Sort(a.want.headers)
	return a.want
}

// usedElsewhere reports whether a module outside of package pkg may refer to it.
func usedElsewhere(modules map[string]*ast.Module, pkg ast.Ref) bool {
	used := false
	for _, m := range modules {
		if m.Package.Path.Equal(pkg) {
			continue
		}
		for _, r := range m.Rules {
			ast.WalkRefs(r, func(ref ast.Ref) bool {
				ground := ref.GroundPrefix()
				used = used || ref[0].Equal(ast.DefaultRootDocument) && (ground.HasPrefix(pkg) || pkg.HasPrefix(ground))
				return used
			})
		}
	}
	return used
}

type analysis struct {
	want    want
	aliases map[ast.Var][]string // generated local variable → path below input
	defs    map[*ast.Expr]bool
	used    map[ast.Var]bool
}

// findAliases collects __localN__ = input.a.b, which the compiler makes of
// x := input.a.b.
func (a *analysis) findAliases(r *ast.Rule) {
	counts := map[ast.Var]int{}
	found := map[ast.Var]*ast.Expr{}
	paths := map[ast.Var][]string{}
	ast.WalkExprs(r, func(e *ast.Expr) bool {
		if e.Negated || len(e.With) > 0 || (!e.IsEquality() && !e.IsAssignment()) || len(e.Operands()) != 2 {
			return false
		}
		l, rt := e.Operand(0), e.Operand(1)
		v, ok := l.Value.(ast.Var)
		ref, okRef := rt.Value.(ast.Ref)
		if !ok || !okRef {
			v, ok = rt.Value.(ast.Var)
			ref, okRef = l.Value.(ast.Ref)
		}
		if !ok || !okRef || !v.IsGenerated() || !ref[0].Equal(ast.InputRootDocument) {
			return false
		}
		path, whole := groundPath(ref)
		if !whole || !structural(path) {
			return false
		}
		counts[v]++
		found[v], paths[v] = e, path
		return false
	})
	for v, n := range counts {
		if n == 1 {
			a.aliases[v] = paths[v]
			a.defs[found[v]] = true
		}
	}
}

// structural reports whether path is an object that the input always has, so
// that an alias of it can be resolved by the references through the alias.
func structural(path []string) bool {
	switch len(path) {
	case 1:
		return path[0] == "attributes"
	case 2:
		return path[0] == "attributes" && path[1] == "request"
	case 3, 4:
		return path[0] == "attributes" && path[1] == "request" && path[2] == "http" && (len(path) == 3 || path[3] == "headers")
	}
	return false
}

// groundPath returns the leading constant keys of ref below its head, and
// whether that is the whole of it.
func groundPath(ref ast.Ref) (path []string, whole bool) {
	for _, t := range ref[1:] {
		s, ok := t.Value.(ast.String)
		if !ok {
			return path, false
		}
		path = append(path, string(s))
	}
	return path, true
}

// visit marks what x reads.
func (a *analysis) visit(x any) {
	ast.NewGenericVisitor(func(n any) bool {
		switch n := n.(type) {
		case *ast.Expr:
			return a.defs[n]
		case ast.Ref:
			a.ref(n)
			for _, t := range n[1:] {
				a.visit(t)
			}
			if _, isVar := n[0].Value.(ast.Var); !isVar {
				a.visit(n[0])
			}
			return true
		case ast.Var:
			if n.Equal(ast.InputRootDocument.Value) {
				a.want.everything()
			} else if path, ok := a.aliases[n]; ok {
				a.use(n)
				a.want.mark(path)
			}
		}
		return false
	}).Walk(x)
}

func (a *analysis) ref(r ast.Ref) {
	head, ok := r[0].Value.(ast.Var)
	if !ok {
		return
	}
	path, _ := groundPath(r)
	if head.Equal(ast.InputRootDocument.Value) {
		a.want.mark(path)
	} else if base, ok := a.aliases[head]; ok {
		a.use(head)
		a.want.mark(append(slices.Clone(base), path...))
	}
}

func (a *analysis) use(v ast.Var) {
	if a.used == nil {
		a.used = map[ast.Var]bool{}
	}
	a.used[v] = true
}
