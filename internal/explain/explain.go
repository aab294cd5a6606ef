// Package explain is the vocabulary of "what would happen to this request":
// the question, the answer, and the answer as text. Who evaluates it is package
// proxy, with the objects that serve live traffic; both the command and the
// admin endpoint speak these types as JSON.
package explain

import (
	"time"

	"github.com/fairlead-mesh/fairlead/filters"
)

// Request is a request that is asked about.
type Request struct {
	// Listener is where the request arrives. Empty: the listener that
	// terminates HBONE if there is one, else the one that Destination's port
	// belongs to, else the only one.
	Listener string `json:"listener,omitempty"`
	// Source is who asks.
	Source Source `json:"source"`
	// Destination is where the client connects to, "10.96.0.10:9080", or
	// "name:port" where a filter chain or a listener is known by that name.
	Destination string `json:"destination,omitempty"`
	// Method is "GET" if empty, Path "/", Host the destination.
	Method string `json:"method,omitempty"`
	Path   string `json:"path,omitempty"`
	Host   string `json:"host,omitempty"`
	// Scheme is "https" on TLS listeners and else "http" if empty.
	Scheme string `json:"scheme,omitempty"`
	// Headers are "name: value" lines in order.
	Headers []string `json:"headers,omitempty"`
	Body    string   `json:"body,omitempty"`
	// ConnectHeaders are those of the CONNECT request of the tunnel (HBONE) that
	// the request comes through, as Headers.
	ConnectHeaders []string `json:"connect_headers,omitempty"`
	// Response is an answer of the upstream that the filters are to be asked
	// about, too; nil asks about the request only.
	Response *Response `json:"response,omitempty"`
	// SNI and ALPN are what a TLS client says; SNI is Host if empty.
	SNI  string   `json:"sni,omitempty"`
	ALPN []string `json:"alpn,omitempty"`
	// HTTP1 asks as an HTTP/1.1 client where the protocol makes a difference.
	HTTP1 bool `json:"http1,omitempty"`
	// Random decides about weights and percentages; 0 takes the first choice.
	Random uint64 `json:"random,omitempty"`
}

// Response is an answer that an upstream may give.
type Response struct {
	Status  int      `json:"status,omitempty"` // 200 if 0
	Headers []string `json:"headers,omitempty"`
	Body    string   `json:"body,omitempty"`
}

// Source is the client.
type Source struct {
	// Identity is the SPIFFE ID in its certificate, empty for none; Address
	// its IP address, with or without port.
	Identity string `json:"identity,omitempty"`
	Address  string `json:"address,omitempty"`
}

// Outcomes of a Report.
const (
	Forward = "forward" // the request goes to a host
	Deny    = "deny"    // a filter refuses it
	Answer  = "answer"  // the proxy answers: redirect, direct response, no route
	Close   = "close"   // the connection is closed
	Unknown = "unknown" // it depends on a callout or the like; Decider names who is asked
)

// Report is the answer.
type Report struct {
	Request Request `json:"request"`
	// Outcome is one of the above; Status and Details are the response's if
	// the proxy makes it. Decider is the filter, or the part of the proxy, that
	// settles it.
	Outcome string `json:"outcome"`
	Status  int    `json:"status,omitempty"`
	Details string `json:"response_code_details,omitempty"`
	Decider string `json:"decider,omitempty"`
	// Hops are the listeners that the request passes, from outside in.
	Hops []Hop `json:"hops"`
	// Notes qualify the answer.
	Notes []string `json:"notes,omitempty"`
}

// Hop is one listener on the way.
type Hop struct {
	Listener string `json:"listener"`
	// ListenerFilters are those that ran; others need bytes to look at.
	ListenerFilters []string `json:"listener_filters,omitempty"`
	// Destination is where the connection goes as the filter chain is chosen.
	Destination string `json:"destination,omitempty"`
	FilterChain string `json:"filter_chain"`
	Chains      int    `json:"filter_chains"` // of the listener
	// Protocol is "http" or "tcp".
	Protocol       string   `json:"protocol,omitempty"`
	NetworkFilters []Filter `json:"network_filters,omitempty"`
	// Request is the head after normalization, before any filter.
	Request *Head `json:"request,omitempty"`
	// Reply is the answer of the connection manager itself, before any route or
	// filter.
	Reply    *Reply    `json:"reply,omitempty"`
	Routing  *Routing  `json:"routing,omitempty"`
	Filters  []Filter  `json:"http_filters,omitempty"`
	Upstream *Upstream `json:"upstream,omitempty"`
	// ResponseFilters say what they would do with the given response, the last
	// filter first. Those that can't be asked are left out.
	ResponseFilters []Filter `json:"http_response_filters,omitempty"`
}

// Head is a request head.
type Head struct {
	Method    string   `json:"method"`
	Authority string   `json:"authority"`
	Path      string   `json:"path,omitempty"`
	Headers   []string `json:"headers,omitempty"`
}

// Reply is a response that the proxy makes.
type Reply struct {
	Status   int    `json:"status"`
	Details  string `json:"response_code_details,omitempty"`
	Location string `json:"location,omitempty"`
	Body     string `json:"body,omitempty"`
}

// Filter is a filter and what it says.
type Filter struct {
	Name string `json:"name"`
	// State is "explained", "not explained" (the filter can't be asked, and what
	// it would do is not in the answer), or "off" (on this route).
	State string `json:"state"`
	// Reached is false for filters behind one that denies.
	Reached bool `json:"reached"`
	filters.Explanation
}

// States of a Filter.
const (
	Explained    = "explained"
	NotExplained = "not explained"
	Off          = "off"
)

// Routing is how the route was found.
type Routing struct {
	Table       string `json:"route_configuration,omitempty"`
	VirtualHost string `json:"virtual_host,omitempty"`
	// Domain is the one of VirtualHost that matched.
	Domain string `json:"domain,omitempty"`
	// Rejected are the routes before the chosen one, each with the first
	// condition that failed.
	Rejected []RejectedRoute `json:"rejected,omitempty"`
	// Route is nil if none matched.
	Route *Route `json:"route,omitempty"`
	// Reselected is set if a filter made the route be chosen again.
	Reselected bool `json:"reselected,omitempty"`
}

// RejectedRoute is a route that did not match.
type RejectedRoute struct {
	Index  int    `json:"index"`
	Name   string `json:"name,omitempty"`
	Match  string `json:"match"`
	Reason string `json:"reason"`
}

// Route is the chosen route.
type Route struct {
	Index int    `json:"index"` // -1: the redirect of require_tls
	Name  string `json:"name,omitempty"`
	Match string `json:"match"`
	// Cluster is the chosen one, Weighted all choices.
	Cluster  string   `json:"cluster,omitempty"`
	Weighted []Choice `json:"weighted,omitempty"`
	// Broken says why the route can't be executed.
	Broken string `json:"broken,omitempty"`
}

// Choice is one weighted cluster.
type Choice struct {
	Cluster string `json:"cluster"`
	Weight  uint64 `json:"weight"`
	Chosen  bool   `json:"chosen,omitempty"`
}

// Upstream is what the terminal filter would do.
type Upstream struct {
	// Reply is set if nothing is forwarded.
	Reply   *Reply `json:"reply,omitempty"`
	Cluster string `json:"cluster,omitempty"`
	// Type is the discovery type, "EDS".
	Type string `json:"type,omitempty"`
	// Problem says why the cluster can't take the request now.
	Problem  string    `json:"problem,omitempty"`
	TLS      bool      `json:"tls,omitempty"`
	Hosts    []Host    `json:"hosts,omitempty"`
	Timeouts *Timeouts `json:"timeouts,omitempty"`
	Retry    *Retry    `json:"retry,omitempty"`
	Mirrors  []string  `json:"mirrors,omitempty"`
	// Request is the head as upstream will see it.
	Request *Head `json:"request,omitempty"`
	// Next is the internal listener that the bytes go to.
	Next string `json:"next_listener,omitempty"`
}

// Host is an endpoint.
type Host struct {
	Address  string `json:"address"`
	Hostname string `json:"hostname,omitempty"`
	Health   string `json:"health"`
	Weight   uint32 `json:"weight"`
	Priority uint32 `json:"priority,omitempty"`
	Locality string `json:"locality,omitempty"`
}

// Timeouts are the limits of the request; 0 is none.
type Timeouts struct {
	Route       Duration `json:"route"`
	PerTry      Duration `json:"per_try,omitempty"`
	PerTryIdle  Duration `json:"per_try_idle,omitempty"`
	MaxDuration Duration `json:"max_stream_duration,omitempty"`
	StreamIdle  Duration `json:"stream_idle,omitempty"`
	Request     Duration `json:"request,omitempty"`
	Connect     Duration `json:"connect,omitempty"`
}

// Retry is the retry policy in force.
type Retry struct {
	On       []string `json:"on"`
	Codes    []int    `json:"status_codes,omitempty"`
	Attempts uint32   `json:"retries"`
	BackOff  Duration `json:"base_interval,omitempty"`
	MaxWait  Duration `json:"max_interval,omitempty"`
}

// Duration is a time.Duration that is "1.5s" in JSON.
type Duration time.Duration

// MarshalText implements encoding.TextMarshaler.
func (d Duration) MarshalText() ([]byte, error) { return []byte(time.Duration(d).String()), nil }

// UnmarshalText implements encoding.TextUnmarshaler.
func (d *Duration) UnmarshalText(b []byte) error {
	v, err := time.ParseDuration(string(b))
	*d = Duration(v)
	return err
}

// String returns "none" for 0.
func (d Duration) String() string {
	if d == 0 {
		return "none"
	}
	return time.Duration(d).String()
}
