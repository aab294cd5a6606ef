// Package authz is the RBAC engine behind the HTTP and network rbac filters:
// Envoy's envoy.config.rbac.v3.RBAC as plain data, compiled to closures and an
// index over the attributes that policies usually name.
//
// Where Envoy's answer depends on data that is missing or ambiguous (an
// unknown address, a repeated header), the engine answers by what a policy
// would do with it: a rule that grants needs certainty, a rule that refuses
// does not. Below a "not" the two change places.
package authz

import (
	"net/netip"

	"github.com/fairlead-mesh/fairlead/internal/matcher"
)

// Action is what a match means: RBAC.action.
type Action uint8

// Actions. The zero Action is Envoy's default.
const (
	// Allow admits a request that matches some policy and refuses all others.
	Allow Action = iota
	// Deny refuses a request that matches some policy and admits all others.
	Deny
	// Log admits every request and records whether a policy matched.
	Log
)

// Rules is one RBAC message. It is plain data and immutable once compiled.
type Rules struct {
	Action Action
	// Policies are sorted by name; the first match is the effective policy.
	Policies []Policy
}

// Policy matches if one permission and one principal match.
type Policy struct {
	Name                    string
	Permissions, Principals []Rule
}

// Kind says which fields of a Rule count.
type Kind uint8

// Kinds of Rule: the union of Envoy's permissions and principals. The zero
// Kind is invalid and never compiles.
const (
	// KindAny matches everything.
	KindAny Kind = iota + 1
	// KindAnd, KindOr and KindNot combine Rules; KindNot has exactly one.
	KindAnd
	KindOr
	KindNot
	// KindHeader matches Header against the request; there is no header on TCP.
	KindHeader
	// KindPath matches String against the path without query and fragment.
	KindPath
	// KindTemplate matches Template against the path.
	KindTemplate
	// KindPort matches the destination port in [PortStart, PortEnd).
	KindPort
	// KindDestinationIP, KindSourceIP, KindDirectRemoteIP and KindRemoteIP
	// match Prefix against an address of the connection or stream.
	KindDestinationIP
	KindSourceIP
	KindDirectRemoteIP
	KindRemoteIP
	// KindServerName matches String against the SNI.
	KindServerName
	// KindMetadata matches Metadata.
	KindMetadata
	// KindFilterState matches String, or Prefixes, against the object called Key.
	KindFilterState
	// KindAuthenticated matches String against the peer certificate's names;
	// AnyName accepts every TLS connection.
	KindAuthenticated
)

// Rule is a permission or principal.
type Rule struct {
	Kind  Kind
	Rules []Rule

	Header             Header
	String             String
	Key                string
	AnyName            bool
	Template           PathTemplate
	PortStart, PortEnd uint32
	Prefix             netip.Prefix
	// Prefixes, if not nil, match a filter-state object that is an IP address;
	// InvertPrefixes negates.
	Prefixes       []netip.Prefix
	InvertPrefixes bool
	Metadata       Metadata
}

// PathTemplate is a compiled URI template; matcher.URITemplate is one.
type PathTemplate interface {
	// Match reports whether the whole path, query and fragment removed, fits.
	Match(path string) bool
}

// String is a StringMatcher before compilation.
type String struct {
	Kind       matcher.StringKind
	Text       string
	IgnoreCase bool
}

// HeaderKind says how a Header matches.
type HeaderKind uint8

// Header match kinds.
const (
	HeaderString HeaderKind = iota
	HeaderRange
	HeaderPresent
	HeaderAbsent
)

// Header is a HeaderMatcher. Name is lower case, ":authority" for "host".
type Header struct {
	Name   string
	Kind   HeaderKind
	String String
	// RangeStart and RangeEnd bound HeaderRange: [start, end).
	RangeStart, RangeEnd int64
	Invert               bool
	TreatMissingAsEmpty  bool
}

// Metadata is a MetadataMatcher.
type Metadata struct {
	Namespace string
	Path      []string
	Value     Value
	Invert    bool
	// Route reads the route's static metadata instead of the stream's.
	Route bool
}

// ValueKind says how a Value matches.
type ValueKind uint8

// Value match kinds. The zero kind is invalid.
const (
	ValueNull ValueKind = iota + 1
	// ValueNumber matches a number equal to Min.
	ValueNumber
	// ValueRange matches a number in [Min, Max).
	ValueRange
	ValueString
	// ValueBool matches a boolean equal to Bool.
	ValueBool
	// ValuePresent matches anything if Bool, else nothing.
	ValuePresent
	// ValueOneOf matches a list that has an element matching Values[0].
	ValueOneOf
	// ValueOr matches if one of Values does.
	ValueOr
)

// Value is a ValueMatcher.
type Value struct {
	Kind     ValueKind
	Min, Max float64
	Bool     bool
	String   String
	Values   []Value
}
