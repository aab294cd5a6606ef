package matcher

import (
	"strconv"
	"strings"
)

// The Describe methods say in words what a matcher wants, for people who read
// why something did not match. They are not meant for the request path.

// Describe returns, for example, `prefix "/api"`.
func (m *String) Describe() string {
	fold := ""
	if m.ignoreCase {
		fold = " (ignoring case)"
	}
	q := strconv.Quote(m.text) + fold
	switch m.kind {
	case Exact:
		return "exactly " + q
	case Prefix:
		return "prefix " + q
	case Suffix:
		return "suffix " + q
	case Contains:
		return "containing " + q
	case Regex:
		return "regex " + q
	case Any:
	}
	return "anything"
}

// Describe returns, for example, `header "x-a": exactly "b"`.
func (m *Header) Describe() string {
	return "header " + strconv.Quote(m.Name) + ": " + m.DescribeValue()
}

// DescribeValue is Describe without the name.
func (m *Header) DescribeValue() string {
	w := ""
	switch m.kind {
	case headerPresent:
		w = "present"
	case headerAbsent:
		w = "absent"
	case headerString:
		w = m.str.Describe()
	case headerRange:
		w = "a number from " + strconv.FormatInt(m.rng.Start, 10) + " to below " + strconv.FormatInt(m.rng.End, 10)
	}
	if m.invert {
		w = "not " + w
	}
	return w
}

// Describe returns, for example, `query parameter "a": exactly "b"`.
func (m *QueryParameter) Describe() string {
	w := "present"
	switch {
	case m.absent:
		w = "absent"
	case m.str != nil:
		w = m.str.Describe()
	}
	return "query parameter " + strconv.Quote(m.Name) + ": " + w
}

// Describe names what m looks at, for example `metadata istio: a.b`.
func (m *Metadata) Describe() string {
	not := ""
	if m.invert {
		not = "not "
	}
	return not + "metadata " + m.ns + ": " + strings.Join(m.path, ".")
}

// Describe returns, for example, `filter state "k": exactly "v"`.
func (m *FilterState) Describe() string {
	w := "an address in the configured ranges"
	if m.str != nil {
		w = m.str.Describe()
	}
	return "filter state " + strconv.Quote(m.key) + ": " + w
}
