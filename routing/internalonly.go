package routing

// InternalOnlyHeaders lists headers that requests from outside must not carry
// (internal_only_headers), lower case.
func (t *Table) InternalOnlyHeaders() []string { return t.config.InternalOnlyHeaders }
