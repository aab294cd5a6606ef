package filters

import "github.com/fairlead-mesh/fairlead/internal/message"

// Interruptible returns wrapper, a request body that reads from body. It can be
// interrupted if body can: without that an early end of the request ends the
// whole stream.
func Interruptible(wrapper, body message.Body) message.Body {
	i, ok := body.(Interrupter)
	if !ok {
		return wrapper
	}
	return &interruptible{wrapper, i}
}

type interruptible struct {
	message.Body
	Interrupter
}

// WithoutTrailers returns a request body without the trailers whose names drop
// reports; without any there are none. Some origins take trailers for headers, and
// what a filter sets or removes must not be undone there. drop is called when the
// trailers have been read. Interruptions reach body.
func WithoutTrailers(body message.Body, drop func(name string) bool) message.Body {
	if body == message.NoBody {
		return body
	}
	return Interruptible(&cleanTrailers{body, drop}, body)
}

// cleanTrailers is a body whose trailers are filtered.
type cleanTrailers struct {
	message.Body
	drop func(name string) bool
}

// Trailers implements message.Body.
func (c *cleanTrailers) Trailers() *message.Header {
	t := c.Body.Trailers()
	if t == nil {
		return nil
	}
	t.DelFunc(func(f message.Field) bool { return c.drop(f.Name) })
	if t.Len() == 0 {
		return nil
	}
	return t
}
