package format

import (
	"encoding/base64"
	"fmt"
	"slices"
	"strconv"
	"strings"
	"sync"
	"time"

	"cel.dev/cel-go/cel"
	"cel.dev/cel-go/common/ast"
	"cel.dev/cel-go/common/operators"
	"cel.dev/cel-go/common/types"
	"cel.dev/cel-go/common/types/ref"
	"cel.dev/cel-go/common/types/traits"
	"cel.dev/cel-go/interpreter"
)

// maxCELBytes bounds an expression from configuration.
const maxCELBytes = 8 << 10

// CEL is a compiled expression over Envoy's attributes. It is immutable and
// safe for concurrent use.
type CEL struct {
	src string
	prg cel.Program
}

// celEnv is made on first use: most processes have no CEL.
var celEnv = sync.OnceValues(func() (*cel.Env, error) {
	opts := []cel.EnvOption{cel.ParserExpressionSizeLimit(maxCELBytes)}
	for name := range celRoots {
		opts = append(opts, cel.Variable(name, cel.DynType))
	}
	return cel.NewEnv(opts...)
})

// CompileCEL compiles an expression over Envoy's attributes: request,
// response, connection, upstream, source, destination, metadata, filter_state
// and xds. An attribute that has no value is an error at run time; ask with
// has() or "in" first.
func CompileCEL(expr string) (*CEL, error) {
	if len(expr) > maxCELBytes {
		return nil, fmt.Errorf("cel: expression of %d bytes exceeds the limit of %d", len(expr), maxCELBytes)
	}
	env, err := celEnv()
	if err != nil {
		return nil, fmt.Errorf("cel: %w", err)
	}
	checked, iss := env.Compile(expr)
	if iss.Err() != nil {
		return nil, fmt.Errorf("cel: %w", iss.Err())
	}
	if err := known(checked.NativeRep().Expr()); err != nil {
		return nil, fmt.Errorf("cel: %w", err)
	}
	prg, err := env.Program(checked, cel.EvalOptions(cel.OptOptimize))
	if err != nil {
		return nil, fmt.Errorf("cel: %w", err)
	}
	return &CEL{src: expr, prg: prg}, nil
}

// known refuses attributes that Envoy has and this package has not: they would
// be absent at run time, which a condition may take for an answer.
func known(e ast.Expr) error {
	var err error
	ast.PostOrderVisit(e, ast.NewExprVisitor(func(e ast.Expr) {
		var of ast.Expr
		var field string
		switch {
		case e.Kind() == ast.SelectKind:
			of, field = e.AsSelect().Operand(), e.AsSelect().FieldName()
		case e.Kind() == ast.CallKind && e.AsCall().FunctionName() == operators.Index:
			args := e.AsCall().Args()
			if args[1].Kind() == ast.LiteralKind {
				of = args[0]
				field, _ = args[1].AsLiteral().Value().(string)
			}
		}
		if of != nil && of.Kind() == ast.IdentKind && of.AsIdent() == "xds" && slices.Contains(missingXDS, field) {
			err = fmt.Errorf("the attribute xds.%s is not supported", field)
		}
	}))
	return err
}

// missingXDS are the attributes of xds that Envoy 1.40 has beside those of
// celXDS.
var missingXDS = []string{"node", "upstream_host_locality_metadata"}

// Source returns the expression.
func (e *CEL) Source() string { return e.src }

// Match reports whether the expression is true for c; an error is not.
func (e *CEL) Match(c *Context) bool {
	v := e.eval(c)
	b, ok := v.(types.Bool)
	return ok && bool(b)
}

// Append appends the value as %CEL(…)% prints it: a string as it is, other
// values as JSON. It returns false and appends nothing if there is no value.
func (e *CEL) Append(dst []byte, c *Context) ([]byte, bool) {
	v := e.eval(c)
	switch v := v.(type) {
	case nil, *types.Err, *types.Unknown:
		return dst, false
	case types.String:
		return append(dst, v...), true
	case types.Bytes:
		return append(dst, v...), true
	case types.Timestamp:
		return v.UTC().AppendFormat(dst, time.RFC3339Nano), true
	case types.Duration:
		return append(strconv.AppendFloat(dst, v.Seconds(), 'f', -1, 64), 's'), true
	}
	return appendCELJSON(dst, v)
}

// eval returns nil on error.
func (e *CEL) eval(c *Context) ref.Val {
	v, _, err := e.prg.Eval(activation{c})
	if err != nil {
		return nil
	}
	return v
}

// activation resolves the root names.
type activation struct{ c *Context }

var _ interpreter.Activation = activation{}

func (a activation) ResolveName(name string) (any, bool) {
	f := celRoots[name]
	if f == nil {
		return nil, false
	}
	return f(a.c), true
}

func (activation) Parent() interpreter.Activation { return nil }

// celOp is %CEL(expression)%; typed keeps the type in JSON.
func celOp(typed bool) func(command) (op, error) {
	return func(c command) (op, error) {
		if c.sub == "" {
			return op{}, fmt.Errorf("wants an expression, %s(EXPRESSION)", c.name)
		}
		e, err := CompileCEL(c.sub)
		if err != nil {
			return op{}, err
		}
		o := c.truncated(e.Append)
		if typed && c.max < 0 {
			o.json = func(dst []byte, x *Context) ([]byte, bool) { return appendCELJSON(dst, e.eval(x)) }
		}
		return o, nil
	}
}

// appendCELJSON appends v as JSON; false means that it has no value.
func appendCELJSON(dst []byte, v ref.Val) ([]byte, bool) {
	switch v := v.(type) {
	case nil, *types.Err, *types.Unknown:
		return dst, false
	case types.Null:
		return append(dst, "null"...), true
	case types.Bool:
		return strconv.AppendBool(dst, bool(v)), true
	case types.Int:
		return strconv.AppendInt(dst, int64(v), 10), true
	case types.Uint:
		return strconv.AppendUint(dst, uint64(v), 10), true
	case types.Double:
		return appendNumber(dst, float64(v)), true
	case types.String:
		return AppendJSONString(dst, string(v)), true
	case types.Bytes:
		return AppendJSONString(dst, base64.StdEncoding.EncodeToString(v)), true
	case types.Timestamp:
		return append(append(append(dst, '"'), v.UTC().Format(time.RFC3339Nano)...), '"'), true
	case types.Duration:
		return append(strconv.AppendFloat(append(dst, '"'), v.Seconds(), 'f', -1, 64), 's', '"'), true
	case traits.Lister:
		return appendCELList(dst, v)
	case traits.Mapper:
		return appendCELMap(dst, v)
	}
	return AppendJSONString(dst, fmt.Sprint(v.Value())), true
}

func appendCELList(dst []byte, l traits.Lister) ([]byte, bool) {
	dst = append(dst, '[')
	first := true
	for it := l.Iterator(); it.HasNext() == types.True; {
		if !first {
			dst = append(dst, ',')
		}
		first = false
		var ok bool
		if dst, ok = appendCELJSON(dst, it.Next()); !ok {
			dst = append(dst, "null"...)
		}
	}
	return append(dst, ']'), true
}

// appendCELMap writes a map with sorted keys.
func appendCELMap(dst []byte, m traits.Mapper) ([]byte, bool) {
	var keys []ref.Val
	for it := m.Iterator(); it.HasNext() == types.True; {
		keys = append(keys, it.Next())
	}
	slices.SortFunc(keys, func(a, b ref.Val) int { return strings.Compare(fmt.Sprint(a.Value()), fmt.Sprint(b.Value())) })
	dst = append(dst, '{')
	first := true
	for _, k := range keys {
		v, ok := m.Find(k)
		if !ok {
			continue
		}
		if !first {
			dst = append(dst, ',')
		}
		first = false
		dst = append(AppendJSONString(dst, fmt.Sprint(k.Value())), ':')
		if dst, ok = appendCELJSON(dst, v); !ok {
			dst = append(dst, "null"...)
		}
	}
	return append(dst, '}'), true
}
