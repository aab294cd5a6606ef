package format

import "errors"

// CEL is a compiled expression over Envoy's attributes.
type CEL struct{}

// CompileCEL compiles an expression over Envoy's attributes (request.*,
// response.*, connection.*, source.*, destination.*, upstream.*, metadata,
// filter_state).
func CompileCEL(expr string) (*CEL, error) { return nil, errors.New("CEL is not yet available") }

// Match reports whether the expression is true for c.
func (e *CEL) Match(c *Context) bool { return false }

func celOp(bool) func(command) (op, error) {
	return func(command) (op, error) { return op{}, errors.New("not yet") }
}
