package xdsclient

import (
	"slices"
	"strings"
	"time"
)

// State is what the client is doing.
type State uint8

// States. A client in StateBackoff will try again by itself.
const (
	StateConnecting State = iota
	StateConnected
	StateBackoff
	StateStopped
)

// String returns a lower-case word.
func (s State) String() string {
	return [...]string{"connecting", "connected", "backoff", "stopped"}[s]
}

type connStatus struct {
	state        State
	since        time.Time
	lastErr      error
	lastResponse time.Time
	controlPlane string
	streams      uint64
}

// Status is a client's condition at one moment.
type Status struct {
	State State
	// Since is when State was entered.
	Since time.Time
	// Err is why the last stream ended, nil if none has.
	Err error
	// LastResponse is when anything arrived last; zero if nothing has.
	LastResponse time.Time
	// ControlPlane is the identifier that the server gives itself.
	ControlPlane string
	// Streams counts streams that came up.
	Streams    uint64
	Generation uint64
	Types      []TypeStatus
}

// TypeStatus is the condition of one resource type.
type TypeStatus struct {
	TypeURL  string
	Wildcard bool
	// Subscribed, Held and Missing count names; Missing ones are subscribed
	// and have not arrived.
	Subscribed, Held, Missing int
	// Responses and Nacks count over the client's life.
	Responses, Nacks uint64
	// Answered is when the first response of this type arrived.
	Answered time.Time
	// Rejected lists resources whose newest version was refused, by name.
	Rejected []Rejected
}

// Rejected is a resource version that could not be decoded.
type Rejected struct {
	Name, Version string
	Err           error
	At            time.Time
	// Serving is true if an older version is in use.
	Serving bool
}

// Refused reports whether the newest version of a resource was rejected; an older
// one may be in use.
func (c *Client) Refused(typeURL, name string) bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	t := c.byURL[typeURL]
	if t == nil {
		return false
	}
	_, ok := t.rejected[name]
	return ok
}

// Passed lists resources of a type that came and were removed again in the last
// minute before a View could show them; what refers to them may be in the next View.
// nil is none.
func (c *Client) Passed(typeURL string) map[string]bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	t := c.byURL[typeURL]
	if t == nil || len(t.passed) == 0 {
		return nil
	}
	names := make(map[string]bool, len(t.passed))
	for n := range t.passed {
		names[n] = true
	}
	return names
}

// Status returns the current condition.
func (c *Client) Status() Status {
	c.mu.Lock()
	defer c.mu.Unlock()
	s := Status{
		State: c.conn.state, Since: c.conn.since, Err: c.conn.lastErr, LastResponse: c.conn.lastResponse,
		ControlPlane: c.conn.controlPlane, Streams: c.conn.streams, Generation: c.generation,
	}
	for _, t := range c.types {
		ts := TypeStatus{
			TypeURL: t.TypeURL, Wildcard: t.Wildcard, Subscribed: len(t.subscribed), Held: t.held.Len(), Missing: len(t.missing),
			Responses: t.responses, Nacks: t.nacks, Answered: t.answered,
		}
		for n, r := range t.rejected {
			ts.Rejected = append(ts.Rejected, Rejected{Name: n, Version: r.version, Err: r.err, At: r.at, Serving: t.get(n) != nil})
		}
		slices.SortFunc(ts.Rejected, func(a, b Rejected) int { return strings.Compare(a.Name, b.Name) })
		s.Types = append(s.Types, ts)
	}
	return s
}

func (c *Client) setConn(s State, err error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.conn.state != s || c.conn.since.IsZero() {
		c.conn.state, c.conn.since = s, time.Now()
	}
	if err != nil {
		c.conn.lastErr = err
	}
	if s == StateConnected {
		c.conn.streams++
	}
}
