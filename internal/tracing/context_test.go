package tracing

import (
	"strings"
	"testing"

	"github.com/fairlead-mesh/fairlead/internal/message"
)

const (
	traceText = "0af7651916cd43dd8448eb211c80319c"
	spanText  = "b7ad6b7169203331"
	parent    = "00-" + traceText + "-" + spanText + "-01"
)

func header(kv ...string) *message.Header {
	h := &message.Header{}
	for i := 0; i < len(kv); i += 2 {
		h.Add(kv[i], kv[i+1])
	}
	return h
}

func TestATraceparentIsTakenOrLeftAsEnvoyDoes(t *testing.T) {
	for name, c := range map[string]struct {
		value       string
		ok, sampled bool
	}{
		"sampled":                       {parent, true, true},
		"not sampled":                   {parent[:53] + "00", true, false},
		"other flags mean nothing":      {parent[:53] + "fe", true, false},
		"all flags":                     {parent[:53] + "ff", true, true},
		"upper case":                    {strings.ToUpper(parent), true, true},
		"a later version":               {"01" + parent[2:], true, true},
		"the invalid version":           {"ff" + parent[2:], true, true}, // taken by Envoy, too
		"a version that is no number":   {"0x" + parent[2:], false, false},
		"a later version with more":     {"01" + parent[2:] + "-more", false, false},
		"version 00 with more":          {parent + "-", false, false},
		"one digit short":               {parent[:54], false, false},
		"empty":                         {"", false, false},
		"a trace of zeros":              {"00-" + strings.Repeat("0", 32) + "-" + spanText + "-01", false, false},
		"a span of zeros":               {"00-" + traceText + "-" + strings.Repeat("0", 16) + "-01", false, false},
		"a trace with another letter":   {"00-g" + traceText[1:] + "-" + spanText + "-01", false, false},
		"a span with a space":           {"00-" + traceText + "- " + spanText[1:] + "-01", false, false},
		"flags with a sign":             {parent[:53] + "+1", false, false},
		"dashes elsewhere":              {"000-" + traceText[1:] + "-" + spanText + "-01", false, false},
		"another separator":             {strings.ReplaceAll(parent, "-", "_"), false, false},
		"space around it":               {" " + parent[:54], false, false},
		"a byte that is no ASCII":       {"00-\xff" + traceText[1:] + "-" + spanText + "-01", false, false},
		"two in one header":             {parent + "," + parent, false, false},
		"a trace whose end isn't zeros": {"00-" + strings.Repeat("0", 31) + "1-" + spanText + "-01", true, true},
	} {
		t.Run(name, func(t *testing.T) {
			got, present, ok := extract(header(traceparent, c.value))
			if !present || ok != c.ok || ok && got.sampled != c.sampled {
				t.Fatalf("present %v, ok %v, sampled %v; want ok %v, sampled %v", present, ok, got.sampled, c.ok, c.sampled)
			}
			if !ok {
				return
			}
			h := &message.Header{}
			got.inject(h)
			want := "00-" + strings.ToLower(c.value[3:52]) + "-0"
			if v := h.Get(traceparent); len(v) != parentSize || v[:54] != want || v[54:] != map[bool]string{true: "1", false: "0"}[c.sampled] {
				t.Errorf("it goes on as %q, want %q", v, want)
			}
		})
	}
}

func TestARequestWithoutATraceparentHasNoContext(t *testing.T) {
	if _, present, ok := extract(header(tracestate, "a=b")); present || ok {
		t.Errorf("present %v, ok %v", present, ok)
	}
}

func TestTracestateGoesOnAsItIs(t *testing.T) {
	many := make([]string, 40) // more than the 32 members that W3C lets vendors keep
	for i := range many {
		many[i] = "k" + strings.Repeat("x", i) + "=v"
	}
	for name, c := range map[string]struct {
		in   []string
		want string
	}{
		"none":               {nil, ""},
		"one":                {[]string{"a=b"}, "a=b"},
		"several lines":      {[]string{"a=b", "c=d"}, "a=b,c=d"},
		"more than 512 long": {[]string{"a=" + strings.Repeat("b", 600)}, "a=" + strings.Repeat("b", 600)},
		"more than 32":       {[]string{strings.Join(many, ",")}, strings.Join(many, ",")},
		"not well-formed":    {[]string{"=,;"}, "=,;"},
	} {
		t.Run(name, func(t *testing.T) {
			in := header(traceparent, parent)
			for _, v := range c.in {
				in.Add(tracestate, v)
			}
			got, _, ok := extract(in)
			if !ok || got.state != c.want {
				t.Fatalf("state %q, ok %v", got.state, ok)
			}
			out := header(tracestate, "of=another")
			got.inject(out)
			if v, has := out.Lookup(tracestate); v != c.want || has != (c.want != "") || out.Count(tracestate) > 1 {
				t.Errorf("it goes on as %q, there %v", v, has)
			}
		})
	}
}

func TestNewIdentifiersAreNeverZero(t *testing.T) {
	seen := map[[16]byte]bool{}
	for range 1000 {
		id, span := newTraceID(), newSpanID()
		if id == [16]byte{} || span == [8]byte{} || seen[id] {
			t.Fatalf("trace %x, span %x", id, span)
		}
		seen[id] = true
	}
}
