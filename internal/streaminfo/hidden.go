package streaminfo

import "strings"

// Hidden is a text of a message that logs and traces must not hold, and what
// they show instead.
type Hidden struct{ Text, Shown string }

// Hide makes logs and traces of the stream show shown instead of text, which is
// copied. The message itself is not changed. Only the goroutine that runs the
// chain may call it, until the stream ends.
func (i *Info) Hide(text, shown string) {
	if text == "" || text == shown {
		return
	}
	for k := range i.Hidden {
		if i.Hidden[k].Text == text {
			return
		}
	}
	i.Hidden = append(i.Hidden, Hidden{strings.Clone(text), strings.Clone(shown)})
}

// Show returns v as logs and traces may hold it.
func (i *Info) Show(v string) string {
	for k := range i.Hidden {
		v = strings.ReplaceAll(v, i.Hidden[k].Text, i.Hidden[k].Shown)
	}
	return v
}
