package dlp

import (
	"fmt"
	"slices"
	"strings"

	"github.com/fairlead-mesh/fairlead/filters/internal/dlp"
)

// place is a part of a message.
type place uint8

const (
	inPath place = iota
	inQuery
	inHeader
	inBody
	inTrailer
	places
)

var placeNames = [places]string{"path", "query", "header", "body", "trailer"}

// action is what a rule does.
type action uint8

const (
	report action = iota
	mask
	replace
	tokenize
	block
	route
)

// actionNames are labels of metrics and logs.
var actionNames = [...]string{report: "report", mask: "mask", replace: "replace", tokenize: "tokenize", block: "block", route: "route"}

// edit is what a does with the bytes of a match.
func (a action) edit() dlp.Action {
	switch a {
	case mask:
		return dlp.Mask
	case replace, tokenize:
		return dlp.Replace
	case block:
		return dlp.Block
	case report, route:
	}
	return dlp.Keep
}

// ruleSet is what is looked for in one direction.
type ruleSet struct {
	engine *dlp.Engine
	rules  []rule
	byType [][]int    // engine type → rules
	tags   [][]string // rule → engine type → replacement
	looks  [places]bool
	// headers are those that rules add: nobody else may. routes are those of
	// them that choose a route.
	headers, routes []string
	// What rules may do to a body.
	blocks, edits, replaces, heads bool
}

func (c *config) compile() error {
	var err error
	if c.request, err = newRuleSet(c.rules, func(r *rule) bool { return r.request }); err != nil {
		return fmt.Errorf("rules: %w", err)
	}
	if !slices.ContainsFunc(c.rules, func(r rule) bool { return !r.request || !r.response }) {
		c.answer = c.request
		return nil
	}
	if c.answer, err = newRuleSet(c.rules, func(r *rule) bool { return r.response }); err != nil {
		return fmt.Errorf("rules: %w", err)
	}
	return nil
}

func newRuleSet(rules []rule, want func(*rule) bool) (*ruleSet, error) {
	s := &ruleSet{}
	var o dlp.Options
	for i := range rules {
		r := &rules[i]
		if !want(r) {
			continue
		}
		s.add(r, &o)
	}
	if len(s.rules) == 0 {
		return nil, nil
	}
	var err error
	if s.engine, err = dlp.New(o); err != nil {
		return nil, err
	}
	types := s.engine.Types()
	s.byType = make([][]int, len(types))
	for i := range s.rules {
		r := &s.rules[i]
		names := slices.Clone(r.types)
		for _, x := range r.regexes {
			names = append(names, x.Type)
		}
		for _, x := range r.words {
			names = append(names, x.Type)
		}
		tags := make([]string, len(types))
		for t, name := range types {
			if slices.Contains(names, name) {
				s.byType[t] = append(s.byType[t], i)
				tags[t] = strings.ReplaceAll(r.edit.Tag, "{TYPE}", name)
			}
		}
		s.tags = append(s.tags, tags)
	}
	return s, nil
}

// add takes r into s, and its detectors into o.
func (s *ruleSet) add(r *rule, o *dlp.Options) {
	s.rules = append(s.rules, *r)
	if r.header != "" && !slices.Contains(s.headers, r.header) {
		s.headers = append(s.headers, r.header)
	}
	if r.action == route {
		s.routes = append(s.routes, r.header)
	}
	for _, t := range r.types {
		if !slices.Contains(o.Types, t) {
			o.Types = append(o.Types, t)
		}
	}
	o.Regexes = append(o.Regexes, r.regexes...)
	o.Words = append(o.Words, r.words...)
	for p, on := range r.places {
		s.looks[p] = s.looks[p] || on
	}
	if r.places[inBody] {
		s.blocks = s.blocks || r.action == block || r.action == route
		s.edits = s.edits || r.action == mask || r.action.edit() == dlp.Replace
		s.replaces = s.replaces || r.action.edit() == dlp.Replace
		s.heads = s.heads || r.header != ""
	}
}

// allowList holds values that are no findings.
type allowList struct {
	values   map[string]bool
	patterns []func([]byte) bool
}

func newAllowList(values []string) allowList {
	if len(values) == 0 {
		return allowList{}
	}
	a := allowList{values: map[string]bool{}}
	for _, v := range values {
		a.values[compactValue(v)] = true
	}
	return a
}

func compactValue(v string) string { return strings.NewReplacer(" ", "", "-", "").Replace(v) }

// has reports whether text is allowed.
func (a *allowList) has(text []byte) bool {
	if len(a.values) > 0 && (a.values[string(text)] || a.values[compactValue(string(text))]) {
		return true
	}
	return slices.ContainsFunc(a.patterns, func(match func([]byte) bool) bool { return match(text) })
}
