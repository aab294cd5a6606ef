package rego

import (
	"errors"
	"math"
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
					return halt(name + ": number out of bounds")
				}
			}
			return f(bctx, operands, iter)
		})
	}
	for name, grows := range amplifiers {
		f := topdown.GetBuiltin(name)
		if f == nil {
			continue
		}
		topdown.RegisterBuiltinFunc(name, func(bctx topdown.BuiltinContext, operands []*ast.Term, iter func(*ast.Term) error) error {
			if grows(operands) > maxGrowth {
				return halt(name + ": result out of bounds")
			}
			return f(bctx, operands, iter)
		})
	}
})

// halt is an error that ends the evaluation. Another one would only make the
// expression undefined, and a rule that denies would not fire.
func halt(msg string) error { return topdown.Halt{Err: errors.New(msg)} }

// maxGrowth bounds, in bytes, the result of a function that can make much of
// little.
const maxGrowth = 16 << 20

// digitCost is what a digit of an exact number counts as: arithmetic costs the
// square of its length.
const digitCost = 1024

// amplifiers estimate the size of such results: a shift by a client's number,
// or a replacement of each of its characters, would take all memory at once.
var amplifiers = map[string]func(operands []*ast.Term) float64{
	"bits.lsh": func(o []*ast.Term) float64 {
		n, _ := o[1].Value.(ast.Number)
		f, err := strconv.ParseFloat(string(n), 64)
		if err != nil {
			return 0 // an error of the function's own
		}
		return f / 8 * digitCost
	},
	"product": func(o []*ast.Term) float64 {
		digits := 0.0
		add := func(t *ast.Term) {
			n, _ := t.Value.(ast.Number)
			digits += float64(len(n))
			if i := strings.IndexAny(string(n), "eE"); i >= 0 {
				e, _ := strconv.ParseFloat(string(n[i+1:]), 64)
				digits += math.Abs(e)
			}
		}
		switch v := o[0].Value.(type) {
		case *ast.Array:
			v.Foreach(add)
		case ast.Set:
			v.Foreach(add)
		}
		return digits * digitCost
	},
	"replace": func(o []*ast.Term) float64 {
		s, _ := o[0].Value.(ast.String)
		old, _ := o[1].Value.(ast.String)
		by, _ := o[2].Value.(ast.String)
		return float64(len(s)) + float64(strings.Count(string(s), string(old)))*float64(len(by))
	},
	"strings.replace_n": func(o []*ast.Term) float64 {
		pairs, _ := o[0].Value.(ast.Object)
		s, _ := o[1].Value.(ast.String)
		n := float64(len(s))
		if pairs == nil {
			return n
		}
		most := 0
		pairs.Foreach(func(_, by *ast.Term) {
			if v, ok := by.Value.(ast.String); ok {
				most = max(most, len(v))
			}
		})
		return n + n*float64(most)
	},
	"concat": func(o []*ast.Term) float64 {
		sep, _ := o[0].Value.(ast.String)
		n, total := 0, 0
		add := func(t *ast.Term) {
			if v, ok := t.Value.(ast.String); ok {
				total += len(v)
			}
			n++
		}
		switch v := o[1].Value.(type) {
		case *ast.Array:
			v.Foreach(add)
		case ast.Set:
			v.Foreach(add)
		}
		return float64(total) + float64(n)*float64(len(sep))
	},
}

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
