// Package headeredit changes headers as Envoy's HeaderMutation and
// HeaderValueOption say.
package headeredit

import (
	"github.com/fairlead-mesh/fairlead/internal/format"
	"github.com/fairlead-mesh/fairlead/internal/matcher"
	"github.com/fairlead-mesh/fairlead/internal/message"
)

// Action says what an Edit does.
type Action uint8

// Actions.
const (
	// AppendOrAdd adds another field.
	AppendOrAdd Action = iota
	// AddIfAbsent adds a field if there is none.
	AddIfAbsent
	// OverwriteOrAdd replaces all fields by one.
	OverwriteOrAdd
	// OverwriteIfExists does so only if there is a field.
	OverwriteIfExists
	// Remove removes all fields of the name.
	Remove
	// RemoveMatching removes all fields whose name matches.
	RemoveMatching
)

// Edit is one change. Name is lower case.
type Edit struct {
	Action    Action
	Name      string
	Value     *format.String
	KeepEmpty bool
	Match     matcher.String
}

// Apply makes the edits in order. Values are rendered into h's own memory.
func Apply(edits []Edit, h *message.Header, c *format.Context) {
	for i := range edits {
		edits[i].apply(h, c)
	}
}

func (e *Edit) apply(h *message.Header, c *format.Context) {
	switch e.Action {
	case Remove:
		h.Del(e.Name)
		return
	case RemoveMatching:
		h.DelFunc(func(f message.Field) bool { return editable(f.Name) && e.Match.Match(f.Name) })
		return
	case AddIfAbsent:
		if h.Has(e.Name) {
			return
		}
	case OverwriteIfExists:
		if !h.Has(e.Name) {
			return
		}
	case AppendOrAdd, OverwriteOrAdd:
	}
	v := e.Value.Intern(h, c)
	if v == "" && !e.KeepEmpty {
		return
	}
	if e.Action == AppendOrAdd || e.Action == AddIfAbsent {
		h.Add(e.Name, v)
		return
	}
	h.Set(e.Name, v)
}

// editable reports whether a header may be changed: pseudo-headers decide
// about routing and authorization and are not for filters' edits.
func editable(name string) bool { return name != "" && name[0] != ':' && name != "host" }
