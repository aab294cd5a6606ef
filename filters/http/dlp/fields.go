package dlp

import (
	"net/url"
	"slices"
	"strings"

	"github.com/fairlead-mesh/fairlead/filters/internal/dlp"
	"github.com/fairlead-mesh/fairlead/internal/message"
)

// maxLayers is how often percent encoding is undone in a path or query.
const maxLayers = 3

// head examines path, query and headers of a message and edits them. It stops
// at the first blocking finding.
func (in *inspection) head(h *message.Header) {
	if in.set.looks[inPath] || in.set.looks[inQuery] {
		if p, ok := h.Lookup(message.Path); ok {
			if edited := in.path(p); edited != p {
				h.Set(message.Path, edited)
			}
		}
	}
	if in.set.looks[inHeader] {
		in.header(h, inHeader)
	}
	if in.clear {
		in.hide(h, inHeader)
		in.clear = false
	}
}

func (in *inspection) path(p string) string {
	path, query, hasQuery := strings.Cut(p, "?")
	if in.set.looks[inPath] {
		path = in.text(inPath, "", path, false, url.PathEscape)
	}
	if hasQuery {
		if in.set.looks[inQuery] && in.blocker == nil {
			query = in.text(inQuery, "", query, true, url.QueryEscape)
		}
		path += "?" + query
	}
	return path
}

// header examines the fields of h, which are headers or trailers.
func (in *inspection) header(h *message.Header, at place) {
	for i := range h.Len() {
		f := h.At(i)
		if in.blocker != nil {
			return
		}
		if !in.inspects(f) {
			continue
		}
		if v := in.text(at, f.Name, f.Value, false, nil); v != f.Value {
			h.SetAt(i, v)
		}
	}
}

// inspects reports whether f is looked at.
func (in *inspection) inspects(f message.Field) bool {
	return f.Value != "" && f.Name[0] != ':' && !structural(f.Name) && !slices.Contains(in.f.cfg.exclude, f.Name)
}

// structural headers are read and written by the proxy itself; editing them
// would break messages rather than protect anything.
func structural(name string) bool {
	switch name {
	case "content-length", "content-type", "content-encoding", "transfer-encoding", "connection", "date", "host", "te", "upgrade",
		"grpc-status", "grpc-encoding", "accept", "accept-encoding", "trailer", "expect":
		return true
	}
	return false
}

// text examines one value. The name of a header is put before it, as context.
// quote is nil for headers.
func (in *inspection) text(at place, name, value string, plus bool, quote func(string) string) string {
	in.place, in.field, in.seen, in.track = at, name, in.seen[:0], quote != nil
	value = in.once(name, value, plus, quote)
	// "%2534" is "%34" is "4", for whoever decodes twice, and "%2B" a space.
	inner := value
	for layer := 1; quote != nil && layer < maxLayers && in.blocker == nil; layer++ {
		before := inner
		if plus && strings.Contains(inner, "%2") {
			inner = spaces.Replace(inner)
		}
		if inner = strings.ReplaceAll(inner, "%25", "%"); inner == before {
			break
		}
		in.again = true
		edited := in.once(name, inner, plus, quote)
		in.again = false
		if edited != inner {
			value = edited
			break
		}
	}
	in.field, in.track = "", false
	return value
}

var spaces = strings.NewReplacer("%2B", "+", "%2b", "+")

// once scans value as it is.
func (in *inspection) once(name, value string, plus bool, quote func(string) string) string {
	if !in.set.replaces && !in.replacesFields() {
		quote = nil
	}
	if in.fields == nil {
		in.fields = in.set.engine.NewStream(in.found, plus, quote)
	} else {
		in.fields.Syntax(plus, quote)
	}
	text := value
	if name != "" {
		text = name + ": " + value
	}
	before := in.changed
	in.changed = false
	out, err := in.fields.Write([]byte(text), true)
	edited := in.changed
	in.changed = in.changed || before
	if err != nil {
		in.uninspectable("too_complex")
		return value
	}
	if !edited || in.blocker != nil {
		return value
	}
	if name == "" {
		return string(out)
	}
	if v, ok := strings.CutPrefix(string(out), name+": "); ok {
		return v
	}
	// The match reached into the name: scan the value alone, and if nothing
	// is found then, hide all of it.
	in.fields.Syntax(plus, quote)
	if out, err = in.fields.Write([]byte(value), true); err == nil && string(out) != value {
		return string(out)
	}
	return strings.Repeat("*", len(value))
}

func (in *inspection) replacesFields() bool {
	return slices.ContainsFunc(in.set.rules, func(r rule) bool {
		return r.action.edit() == dlp.Replace && (r.places[inPath] || r.places[inQuery])
	})
}
