package authz

import (
	"strconv"
	"strings"

	"github.com/fairlead-mesh/fairlead/internal/matcher"
	"github.com/fairlead-mesh/fairlead/internal/message"
)

// compileHeader builds a header match. Envoy joins the values of a repeated
// header by commas (and, since its CVE-2026-26308, looks at each); here a rule
// that refuses fires if any value, list element or the joined text matches,
// and a rule that grants needs every value to match.
func compileHeader(h *Header, doubt bool) (match, error) {
	name, invert := h.Name, h.Invert
	if h.Kind == HeaderPresent || h.Kind == HeaderAbsent {
		want := (h.Kind == HeaderPresent) != invert
		return func(in Input) bool { return has(in.Request, name) == want }, nil
	}
	var one func(v string) bool
	if h.Kind == HeaderRange {
		one = inRange(h.RangeStart, h.RangeEnd, doubt != invert)
	} else {
		s, err := newString(h.String)
		if err != nil {
			return nil, err
		}
		if strings.HasPrefix(name, ":") && s.Kind() == matcher.Exact && !s.IgnoreCase() && !invert && !h.TreatMissingAsEmpty {
			text := s.Text()
			return func(in Input) bool {
				v, ok := lookup(in.Request, name)
				return ok && v == text
			}, nil
		}
		one = s.Match
	}
	var onMissing bool
	if h.TreatMissingAsEmpty {
		onMissing = one("") != invert
	}
	values := everyValue
	if doubt != invert {
		values = anyValue
	}
	return func(in Input) bool {
		if !has(in.Request, name) {
			return onMissing
		}
		return values(in.Request, name, one) != invert
	}, nil
}

func has(h *message.Header, name string) bool { return h != nil && h.Has(name) }

func lookup(h *message.Header, name string) (string, bool) {
	if h == nil {
		return "", false
	}
	return h.Lookup(name)
}

func everyValue(h *message.Header, name string, one func(string) bool) bool {
	for i := range h.Len() {
		if f := h.At(i); f.Name == name && !one(f.Value) {
			return false
		}
	}
	return true
}

func anyValue(h *message.Header, name string, one func(string) bool) bool {
	n := 0
	for i := range h.Len() {
		f := h.At(i)
		if f.Name != name {
			continue
		}
		n++
		if one(f.Value) {
			return true
		}
		if name[0] != ':' && anyElement(f.Value, one) {
			return true
		}
	}
	if n < 2 {
		return false
	}
	joined, _ := h.Joined(name)
	return one(joined)
}

// anyElement looks at the elements of a comma-separated value.
func anyElement(v string, one func(string) bool) bool {
	if strings.IndexByte(v, ',') < 0 {
		return false
	}
	for e := range strings.SplitSeq(v, ",") {
		if one(strings.Trim(e, " \t")) {
			return true
		}
	}
	return false
}

// inRange matches an integer in [start, end) written in decimal. A leading plus,
// which Envoy takes and not every back end, counts only where a match refuses.
func inRange(start, end int64, plus bool) func(string) bool {
	return func(v string) bool {
		if v == "" || v[0] == '+' && !plus {
			return false
		}
		n, err := strconv.ParseInt(v, 10, 64)
		return err == nil && start <= n && n < end
	}
}
