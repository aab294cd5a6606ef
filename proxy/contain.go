package proxy

import (
	"errors"
	"fmt"
	"io"
	"log/slog"
	"runtime/debug"
)

// errPanic is what a configuration fails with whose code panicked.
var errPanic = errors.New("its code panicked; the log has the stack")

// contained runs a part of a filter's code that works on configuration; a panic
// is an error, so that the filter fails closed like one that can't be executed.
func contained[T any](log *slog.Logger, filter string, f func() (T, error)) (v T, err error) {
	defer func() {
		if p := recover(); p != nil {
			log.Error("panic while compiling a filter", "filter", filter, "panic", fmt.Sprint(p), "stack", string(debug.Stack()))
			var none T
			v, err = none, errPanic
		}
	}()
	return f()
}

// closeFilter closes a filter that is not used any more.
func closeFilter(log *slog.Logger, name string, c io.Closer) {
	defer func() {
		if p := recover(); p != nil {
			log.Error("panic while closing a filter", "filter", name, "panic", fmt.Sprint(p), "stack", string(debug.Stack()))
		}
	}()
	if err := c.Close(); err != nil {
		log.Warn("closing a filter", "filter", name, "error", err)
	}
}

// containApply is deferred in Apply: configuration that makes it panic is not in
// force, what was before still is.
func (s *Server) containApply(err *error) {
	if p := recover(); p != nil {
		s.log.Error("panic while applying configuration; the former stays in force", "panic", fmt.Sprint(p), "stack", string(debug.Stack()))
		*err = fmt.Errorf("proxy: applying configuration panicked: %v", p)
	}
}
