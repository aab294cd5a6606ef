package matcher

import (
	"errors"
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

// FieldPath returns the field's path.
func (e *fieldError) FieldPath() string { return e.path }

// Unwrap returns the reason.
func (e *fieldError) Unwrap() error { return e.err }

// badField returns an error about field.
func badField(field, format string, args ...any) error {
	return &fieldError{field, fmt.Errorf(format, args...)}
}

// unsupportedError is a reason why something valid can't be executed.
type unsupportedError string

// Error returns the reason.
func (e unsupportedError) Error() string { return string(e) }

// Is makes the error an errors.ErrUnsupported.
func (unsupportedError) Is(target error) bool { return target == errors.ErrUnsupported }

// unsupported returns an error about a field that is valid but not supported;
// errors.Is(err, errors.ErrUnsupported) holds.
func unsupported(field, format string, args ...any) error {
	return &fieldError{field, unsupportedError(fmt.Sprintf(format, args...))}
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
