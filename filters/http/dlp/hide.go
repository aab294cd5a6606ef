package dlp

import (
	"strings"

	"github.com/fairlead-mesh/fairlead/filters/internal/dlp"
	"github.com/fairlead-mesh/fairlead/internal/message"
)

// What rules leave as it is – because they only report, count to a threshold,
// choose a route, or because the message is stopped – is still in the head that
// access logs and traces write about. hide has them show asterisks instead.

// hide looks at all of h once more. The findings are neither counted nor
// reported again.
func (in *inspection) hide(h *message.Header, at place) {
	if at == inHeader {
		if p, ok := h.Lookup(message.Path); ok {
			path, query, _ := strings.Cut(p, "?")
			in.hideText(inPath, "", path, false)
			in.hideText(inQuery, "", query, true)
		}
	}
	if !in.set.looks[at] {
		return
	}
	for i := range h.Len() {
		if f := h.At(i); in.inspects(f) {
			in.hideText(at, f.Name, f.Value, false)
		}
	}
}

// trailers examines the trailers of a body. Nothing writes about those of
// requests, whose body may be sent by another goroutine.
func (in *inspection) trailers(t *message.Header) {
	in.header(t, inTrailer)
	if in.clear && in.dir == "response" {
		in.hide(t, inTrailer)
	}
	in.clear = false
}

// hideText hides what is found in one value, as it is written there.
func (in *inspection) hideText(at place, name, value string, plus bool) {
	if value == "" || !in.set.looks[at] {
		return
	}
	prefix := ""
	if name != "" {
		prefix = name + ": " // as context
	}
	inner := value
	for layer := range maxLayers {
		text := prefix + inner
		masked, ok := in.masked(at, text, plus)
		switch {
		case !ok, layer > 0 && masked != text: // where it is written can't be told
			in.info.Hide(value, strings.Repeat("*", len(value)))
			return
		case masked != text:
			in.hideSpans(text[len(prefix):], masked[len(prefix):])
		}
		before := inner
		if plus {
			inner = spaces.Replace(inner)
		}
		if inner = strings.ReplaceAll(inner, "%25", "%"); at == inHeader || at == inTrailer || inner == before {
			return
		}
	}
}

// masked returns text with all of its findings overwritten. It reports false if
// that can't be told.
func (in *inspection) masked(at place, text string, plus bool) (string, bool) {
	s := in.set.engine.NewStream(func(fd dlp.Finding, match []byte) dlp.Edit {
		for _, i := range in.set.byType[fd.Type] {
			r := &in.set.rules[i]
			if r.places[at] && fd.Likelihood >= r.min && !r.allow.has(match) && !in.f.cfg.allow.has(match) {
				return dlp.Edit{Action: dlp.Mask, All: true}
			}
		}
		return dlp.Edit{}
	}, plus, nil)
	defer s.Free()
	out, err := s.Write([]byte(text), true)
	return string(out), err == nil && len(out) == len(text)
}

// hideSpans hides what differs in masked, which has the length of value.
func (in *inspection) hideSpans(value, masked string) {
	for i := 0; i < len(value); i++ {
		if value[i] == masked[i] {
			continue
		}
		from := i
		for i < len(value) && masked[i] == '*' {
			i++
		}
		in.info.Hide(value[from:i], masked[from:i])
	}
}
