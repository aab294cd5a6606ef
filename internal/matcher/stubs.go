package matcher

// Header matches one request header (or cookie): Envoy's HeaderMatcher.
type Header struct{ Name string }

// QueryParameter matches one query parameter.
type QueryParameter struct{ Name string }

// Metadata matches dynamic metadata.
type Metadata struct{}

// FilterState matches a filter-state object.
type FilterState struct{}

// URITemplate is a compiled URI template.
type URITemplate struct{}

// URITemplateRewrite rewrites by the variables of a URITemplate.
type URITemplateRewrite struct{}

// Substitution replaces every match of a regular expression.
type Substitution struct{}

// Tree is xDS's unified matcher over connection inputs, whose action is the
// name of a filter chain.
type Tree struct{}
