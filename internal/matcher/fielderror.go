package matcher

import (
	"fmt"
	"strings"
)

// fieldError is an error about one field of a message.
type fieldError struct {
	path string
	err  error
}

// Error returns "path: reason".
func (e *fieldError) Error() string { return e.path + ": " + e.err.Error() }

// Unwrap returns the reason.
func (e *fieldError) Unwrap() error { return e.err }

// badField returns an error about field.
func badField(field, format string, args ...any) error {
	return &fieldError{field, fmt.Errorf(format, args...)}
}

// within says that err happened inside field; nil stays nil.
func within(field string, err error) error {
	if err == nil {
		return nil
	}
	//nolint:errorlint // only an error made here, not one wrapped by others, continues the path
	if fe, ok := err.(*fieldError); ok {
		if !strings.HasPrefix(fe.path, "[") {
			field += "."
		}
		return &fieldError{field + fe.path, fe.err}
	}
	return &fieldError{field, err}
}

// each applies f to every element; the error names the index.
func each[M, T any](ms []M, f func(M) (T, error)) ([]T, error) {
	if len(ms) == 0 {
		return nil, nil
	}
	out := make([]T, len(ms))
	for i, m := range ms {
		var err error
		if out[i], err = f(m); err != nil {
			return nil, within(fmt.Sprintf("[%d]", i), err)
		}
	}
	return out, nil
}
