package filters

// Verdict is what a filter would do with a request.
type Verdict string

// Verdicts. Allow is a decision, Pass the absence of one: the filter has no say
// about this request. Unknown means that the answer depends on something that an
// explanation does not touch: a callout, a token bucket, a percentage.
const (
	VerdictAllow   Verdict = "allow"
	VerdictDeny    Verdict = "deny"
	VerdictPass    Verdict = "pass"
	VerdictUnknown Verdict = "unknown"
)

// Explanation is what a filter says about a request that it is asked about
// instead of being given it. Filters that can be asked have a method
//
//	Explain(s *Stream) Explanation
//
// or, for network filters, Explain(c *Connection) Explanation. It decides by the
// very objects that Do uses, has the same effect on the stream as Do has before
// it calls next (headers, metadata, filter state, route), and none beyond it: it
// counts nothing, logs nothing, calls nobody and takes no token.
//
// HTTP filters that look at responses may also have a method
//
//	ExplainResponse(s *Stream, r *Response) Explanation
//
// which is asked about a response that somebody made up, and leaves in r what
// the client would get.
type Explanation struct {
	Verdict Verdict `json:"verdict"`
	// Status and Details are those of the local reply of a VerdictDeny.
	Status  int    `json:"status,omitempty"`
	Details string `json:"details,omitempty"`
	// Text says in words what led to the verdict, one sentence an element.
	Text []string `json:"text,omitempty"`
	// Policies are all policies that were looked at, in order.
	Policies []PolicyExplanation `json:"policies,omitempty"`
	// Nearest is the allowing policy that came closest, if none allowed.
	Nearest *PolicyExplanation `json:"nearest,omitempty"`
}

// PolicyExplanation is one policy's part in an Explanation.
type PolicyExplanation struct {
	// Name is the configured name, Action what a match means: "allow", "deny",
	// "log". A Shadow policy is only recorded.
	Name   string `json:"name"`
	Action string `json:"action"`
	Shadow bool   `json:"shadow,omitempty"`
	// Matched tells whether the policy applies to the request; Failed are the
	// clauses for want of which it does not.
	Matched bool     `json:"matched"`
	Failed  []Clause `json:"failed,omitempty"`
}

// Clause is one condition of a policy that did not hold.
type Clause struct {
	// Path is its place in the policy, "permissions[0].and_rules.rules[1].header".
	Path string `json:"path"`
	// Want is the condition in words, Have what the request has instead.
	Want string `json:"want"`
	Have string `json:"have,omitempty"`
}
