package rego

import (
	"fmt"
	"strconv"
	"strings"
	"sync"

	"github.com/open-policy-agent/opa/v1/ast"
	"github.com/open-policy-agent/opa/v1/topdown"
)

// maxExponent and maxDigits bound numbers in arithmetic. OPA computes with
// exact integers: one addition to 1e999999999, written by a client in a body
// or a JWT claim, would take gigabytes and ignore the timeout.
const (
	maxExponent = 400
	maxDigits   = 1000
)

// arithmetic lists the built-in functions that make exact integers of their
// operands.
var arithmetic = []string{
	"plus", "minus", "mul", "div", "rem", "abs", "round", "ceil", "floor", "sum", "product",
	"format_int", "sprintf", "numbers.range", "numbers.range_step", "rand.intn",
	"bits.or", "bits.and", "bits.xor", "bits.negate", "bits.lsh", "bits.rsh",
	"units.parse", "units.parse_bytes",
	"time.date", "time.clock", "time.weekday", "time.format", "time.add_date", "time.diff",
}

// guardArithmetic bounds the operands of OPA's arithmetic. The functions are
// OPA's own, process-wide; they are wrapped once, before the first policy is
// prepared.
var guardArithmetic = sync.OnceFunc(func() {
	for _, name := range arithmetic {
		f := topdown.GetBuiltin(name)
		if f == nil {
			continue
		}
		topdown.RegisterBuiltinFunc(name, func(bctx topdown.BuiltinContext, operands []*ast.Term, iter func(*ast.Term) error) error {
			for _, o := range operands {
				if !bounded(o.Value, 0) {
					return fmt.Errorf("%s: number out of bounds", name)
				}
			}
			return f(bctx, operands, iter)
		})
	}
})

// bounded reports whether the numbers in v are fit for exact arithmetic.
func bounded(v ast.Value, depth int) bool {
	switch v := v.(type) {
	case ast.Number:
		return boundedNumber(string(v))
	case ast.String:
		return boundedNumber(string(v)) || !looksNumeric(string(v))
	case *ast.Array:
		ok := true
		if depth < 2 {
			v.Foreach(func(t *ast.Term) { ok = ok && bounded(t.Value, depth+1) })
		}
		return ok
	case ast.Set:
		ok := true
		if depth < 2 {
			v.Foreach(func(t *ast.Term) { ok = ok && bounded(t.Value, depth+1) })
		}
		return ok
	}
	return true
}

// boundedNumber reports whether the number s has few digits and a small
// exponent.
func boundedNumber(s string) bool {
	if len(s) > maxDigits {
		return false
	}
	i := strings.IndexAny(s, "eE")
	if i < 0 {
		return true
	}
	j := i + 1
	if j < len(s) && (s[j] == '+' || s[j] == '-') {
		j++
	}
	k := j
	for k < len(s) && '0' <= s[k] && s[k] <= '9' {
		k++
	}
	if k == j {
		return true
	}
	e, err := strconv.Atoi(s[j:k])
	return err == nil && e <= maxExponent
}

// looksNumeric reports whether s begins like a number: units.parse reads those.
func looksNumeric(s string) bool {
	s = strings.TrimLeft(s, " \"+-.")
	return s != "" && '0' <= s[0] && s[0] <= '9'
}
