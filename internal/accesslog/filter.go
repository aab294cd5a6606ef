package accesslog

import (
	"fmt"
	"math/rand/v2"
	"slices"
	"time"

	"github.com/fairlead-mesh/fairlead/internal/format"
	"github.com/fairlead-mesh/fairlead/internal/matcher"
	"github.com/fairlead-mesh/fairlead/internal/streaminfo"
)

// Filter is a compiled access-log filter: immutable and safe for concurrent
// use.
type Filter struct{ match func(c *format.Context) bool }

// Match reports whether the stream is to be logged. A nil Filter logs all.
func (f *Filter) Match(c *format.Context) bool { return f == nil || f.match(c) }

// Comparison is ComparisonFilter.Op.
type Comparison uint8

// Comparisons, in the order of Envoy's enum.
const (
	Equal Comparison = iota
	GreaterOrEqual
	LessOrEqual
	NotEqual
)

func (o Comparison) holds(v, want uint64) bool {
	switch o {
	case Equal:
		return v == want
	case GreaterOrEqual:
		return v >= want
	case LessOrEqual:
		return v <= want
	case NotEqual:
		return v != want
	}
	return false
}

// StatusCode compares the response code (0 if there is none): status_code_filter
// with its runtime default.
func StatusCode(o Comparison, want uint32) *Filter {
	return &Filter{func(c *format.Context) bool {
		return c.Info != nil && o.holds(uint64(max(c.Info.ResponseCode, 0)), uint64(want))
	}}
}

// Duration compares the stream's duration in milliseconds; a stream that
// hasn't ended doesn't match.
func Duration(o Comparison, wantMillis uint32) *Filter {
	return &Filter{func(c *format.Context) bool {
		if c.Info == nil || c.Info.End.IsZero() {
			return false
		}
		return o.holds(uint64(max(c.Info.End.Sub(c.Info.Start)/time.Millisecond, 0)), uint64(wantMillis))
	}}
}

// All matches every stream: not_health_check_filter, as Fairlead answers no
// health checks with routes.
func All() *Filter { return &Filter{func(*format.Context) bool { return true }} }

// Runtime matches a fraction (0 to 1) of the streams at random: runtime_filter
// with its default.
func Runtime(fraction float64) *Filter {
	return &Filter{func(*format.Context) bool { return fraction > 0 && rand.Float64() < fraction }}
}

// And matches if all of fs do.
func And(fs ...*Filter) *Filter {
	return &Filter{func(c *format.Context) bool {
		for _, f := range fs {
			if !f.Match(c) {
				return false
			}
		}
		return true
	}}
}

// Or matches if one of fs does.
func Or(fs ...*Filter) *Filter {
	return &Filter{func(c *format.Context) bool {
		return slices.ContainsFunc(fs, func(f *Filter) bool { return f.Match(c) })
	}}
}

// Not matches if f doesn't.
func Not(f *Filter) *Filter { return &Filter{func(c *format.Context) bool { return !f.Match(c) }} }

// Header matches a request header: header_filter.
func Header(m matcher.Header) *Filter {
	return &Filter{func(c *format.Context) bool { return c.Request != nil && m.Match(c.Request) }}
}

// ResponseFlags matches if one of the flags (Envoy's short names) is set; none
// means any flag.
func ResponseFlags(names []string) (*Filter, error) {
	var want streaminfo.ResponseFlag
	for _, n := range names {
		f, ok := streaminfo.ParseResponseFlag(n)
		if !ok {
			return nil, fmt.Errorf("response_flag_filter: flags: unknown response flag %q", n)
		}
		want |= f
	}
	if want == 0 {
		want = ^want
	}
	return &Filter{func(c *format.Context) bool { return c.Info != nil && c.Info.Flags&want != 0 }}, nil
}

// GRPCStatus matches responses whose gRPC status is one of names
// ("UNAVAILABLE", as in GrpcStatusFilter), or none of them with exclude. As in
// Envoy, the status of any response is derived from HTTP if need be, and is
// UNKNOWN if there is none.
func GRPCStatus(names []string, exclude bool) (*Filter, error) {
	var want [17]bool
	for _, n := range names {
		i, ok := format.ParseGRPCStatus(n)
		if !ok {
			return nil, fmt.Errorf("grpc_status_filter: statuses: unknown status %q", n)
		}
		want[i] = true
	}
	const unknown = 2
	return &Filter{func(c *format.Context) bool {
		n, ok := format.GRPCStatus(c)
		if !ok {
			n = unknown
		}
		return (n >= 0 && n < int64(len(want)) && want[n]) != exclude
	}}, nil
}

// Metadata matches dynamic metadata; absent says what happens if there is no
// value under path in namespace ns: match_if_key_not_found.
func Metadata(m matcher.Metadata, ns string, path []string, absent bool) *Filter {
	return &Filter{func(c *format.Context) bool {
		if c.Info == nil {
			return absent
		}
		if _, ok := c.Info.Metadata.Lookup(ns, path...); !ok {
			return absent
		}
		return m.Match(&c.Info.Metadata)
	}}
}

// CEL matches if the expression is true; an error at run time doesn't match.
// It fails if the expression doesn't compile.
func CEL(expr string) (*Filter, error) {
	e, err := format.CompileCEL(expr)
	if err != nil {
		return nil, fmt.Errorf("expression: %w", err)
	}
	return &Filter{e.Match}, nil
}
