// Package xdsclient keeps one ADS stream to a control plane, delta or state of
// the world, and turns
// what arrives into immutable Views. It knows no resource type: a ResourceType
// brings its own Decoder, and a decoded resource names the further resources
// it needs, which are subscribed for as long as somebody needs them.
//
// A resource that can't be decoded is NACKed by name; the others of the same
// response apply and the rejected one keeps its last good value. While the
// control plane is gone everything stays as it was.
package xdsclient

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"sync"
	"time"
)

// Key names one resource.
type Key struct{ TypeURL, Name string }

// Decoder turns a serialized resource into a value that will be shared and
// must be immutable, and names the resources that value needs. It is pure: the
// same bytes always give the same result, so equal bytes are decoded once. A
// panic is treated as an error.
type Decoder func(name string, b []byte) (value any, refs []Key, err error)

// Resource is one accepted resource.
type Resource struct {
	Name, Version string
	Value         any
	// Seq grows with every accepted change in this client: of two values of
	// one resource the one with the larger Seq is the newer.
	Seq     uint64
	Updated time.Time
	// Raw are the bytes that Value was decoded from, if the type keeps them. It
	// must not be modified.
	Raw []byte
}

// Change is a resource that is new or changed, or was removed (Value is nil).
type Change struct {
	Resource
	Removed bool
}

// ResourceType is a type to subscribe to. A control plane may end the stream
// when asked for a type it doesn't know (istiod does), so list known ones only.
type ResourceType struct {
	TypeURL string
	Decode  Decoder
	// Prove, if not nil, is asked about each value that Decode returned, in the
	// client's goroutine. One that it has a Proof for is accepted when that succeeds
	// and rejected when it fails; meanwhile the former value stays, the answer to the
	// response waits, with those behind it of the same type, and nothing else does.
	Prove func(name string, value any) Proof
	// Wildcard subscribes to all resources; otherwise to Names and to what
	// held resources refer to. A type without either is never mentioned to
	// the server.
	Wildcard bool
	Names    []string
	// After lists types whose first answer is awaited before this one is
	// opened for the first time, bounded by Config.InitialFetchTimeout.
	After []string
	// KeepRemoved ignores the removal of a resource that is still referred to,
	// as Envoy does for EDS, RDS and SDS.
	KeepRemoved bool
	// KeepRaw keeps the bytes of resources, for configuration dumps.
	KeepRaw bool
	// NoWait keeps a View from waiting for references to this type. istiod
	// answers nothing at all for a secret it doesn't have.
	NoWait bool
	// OnChange, if not nil, receives the changes of one response, in the
	// client's goroutine, before Latest's readers could miss them; it must not
	// block for long. Changes of such a type alone make no View.
	OnChange func([]Change)
	// Omit leaves the type out of Views (large types with OnChange).
	Omit bool
	// Last says that a control plane sends this type after those that it goes
	// with, and that it refers to none: when nothing else has changed since the last
	// View, the next is made at once, but OnView rests as long as it worked. Removals
	// wait nevertheless.
	Last bool
}

// Node is what the client says about itself in the first request of a stream.
type Node struct {
	ID, Cluster, UserAgent, UserAgentVersion string
	Region, Zone, SubZone                    string
	// Metadata values are nil, bool, float64, int, string, []any or
	// map[string]any.
	Metadata map[string]any
	// ClientFeatures as in envoy.config.core.v3.Node.
	ClientFeatures []string
}

// Config is a Client's configuration; zero durations mean the defaults given.
type Config struct {
	// Target is a gRPC target: "istiod.istio-system.svc:15012",
	// "unix:///path".
	Target    string
	Transport Transport
	// StateOfTheWorld speaks that variant of the protocol instead of delta.
	StateOfTheWorld bool
	// Method, if not empty, is the gRPC method of a stream for the one type of Types
	// ("/envoy.service.secret.v3.SecretDiscoveryService/StreamSecrets"), which is
	// opened instead of ADS.
	Method string
	Node   Node
	// Types in the order of subscription, usually CDS, EDS, LDS, RDS, ECDS,
	// SDS, others.
	Types []ResourceType
	// OnView receives Views, newest only, one at a time, on a goroutine of the
	// client. It may block; changes meanwhile coalesce into the next View.
	OnView   func(*View)
	Reporter Reporter
	Logger   *slog.Logger

	// MinBackoff (500 ms) and MaxBackoff (30 s) bound the pause between two
	// streams: it doubles, is jittered between its half and the whole, and
	// starts anew after a stream that lived for MaxBackoff and brought
	// something.
	MinBackoff, MaxBackoff time.Duration
	// Quiet (20 ms) is how long no change may arrive before a View is made,
	// but at most ten times that after the first change; the first View, and one
	// for types that come Last, don't wait for it. SettleTimeout (2 s) bounds how
	// long a View waits for resources that were newly referred to.
	Quiet, SettleTimeout time.Duration
	// InitialFetchTimeout (15 s) bounds waiting for the first answer of a
	// wildcard type.
	InitialFetchTimeout time.Duration
	// connect replaces dialling, for tests.
	connect func(context.Context) (stream, func(), error)
}

// Reporter learns what happens, for metrics. Methods must not block.
type Reporter interface {
	// Stream is called when a stream has come up (err is nil), and when it has
	// ended or could not be opened (err says why).
	Stream(connected bool, err error)
	// Response is called for each response when it is answered: how many resources
	// it set, removed and had rejected.
	Response(typeURL string, resources, removed, rejected int)
}

// Client is a delta ADS client. Create it with New, drive it with Run; other
// methods are safe for concurrent use.
type Client struct {
	cfg   Config
	log   *slog.Logger
	types []*typeState
	byURL map[string]*typeState
	wake  chan struct{} // the publisher has something to look at; capacity 1
	// renamed wakes the session after SetNames; capacity 1.
	renamed chan struct{}

	mu sync.Mutex // guards everything below and the typeStates
	// refs counts, for each named resource, the held resources that need it.
	refs map[Key]int
	// names are what SetNames asks for; asked what of it the session has taken up.
	names, asked map[Key]struct{}
	// up says that a stream is there, and has asked for what is missing.
	up bool
	// pending are resources asked for and not answered yet; a View and After
	// wait for them until their time. The empty name stands for a wildcard.
	pending               map[Key]time.Time
	seq, generation       uint64
	viewed                uint64 // seq at the last View
	dirty                 bool
	prompt                bool // dirty: Quiet need not be waited for
	firstDirty, lastDirty time.Time
	rested                time.Time // a prompt View may be made from then on
	view                  *View
	conn                  connStatus
	provers               *provers // of the current stream
	accepted              versions // of the state of the world
}

// New checks c and returns a Client.
func New(c Config) (*Client, error) {
	if c.Target == "" && c.connect == nil {
		return nil, errors.New("xds client: no control plane address")
	}
	for d, def := range map[*time.Duration]time.Duration{
		&c.MinBackoff: 500 * time.Millisecond, &c.MaxBackoff: 30 * time.Second, &c.Quiet: 20 * time.Millisecond,
		&c.SettleTimeout: 2 * time.Second, &c.InitialFetchTimeout: 15 * time.Second,
	} {
		if *d <= 0 {
			*d = def
		}
	}
	if c.Logger == nil {
		c.Logger = slog.New(slog.DiscardHandler)
	}
	if c.Reporter == nil {
		c.Reporter = noReporter{}
	}
	cl := &Client{
		cfg: c, log: c.Logger, byURL: map[string]*typeState{}, wake: make(chan struct{}, 1), renamed: make(chan struct{}, 1), asked: map[Key]struct{}{},
		refs: map[Key]int{}, pending: map[Key]time.Time{}, view: &View{},
	}
	if _, err := c.Node.proto(); err != nil {
		return nil, err
	}
	for _, t := range c.Types {
		if t.TypeURL == "" || t.Decode == nil {
			return nil, fmt.Errorf("xds client: resource type %q has no type URL or no decoder", t.TypeURL)
		}
		if cl.byURL[t.TypeURL] != nil {
			return nil, fmt.Errorf("xds client: resource type %q is listed twice", t.TypeURL)
		}
		ts := newTypeState(t)
		cl.types = append(cl.types, ts)
		cl.byURL[t.TypeURL] = ts
		for _, n := range t.Names {
			if !t.Wildcard {
				cl.refs[Key{t.TypeURL, n}]++
				ts.wantLocked(n, true)
			}
		}
	}
	for _, t := range c.Types {
		for _, a := range t.After {
			if cl.byURL[a] == nil {
				return nil, fmt.Errorf("xds client: type %q waits for %q, which is not listed", t.TypeURL, a)
			}
		}
	}
	if cl.cfg.connect == nil {
		cl.cfg.connect = cl.dial
	}
	return cl, nil
}

// Run keeps a stream open until ctx ends, and returns ctx's error. It is
// called once; when it returns, no goroutine and no callback is left.
func (c *Client) Run(ctx context.Context) error {
	ctx, cancel := context.WithCancel(ctx)
	var wg sync.WaitGroup
	wg.Go(func() { c.publish(ctx) })
	defer wg.Wait()
	defer cancel()
	b := pauser{min: c.cfg.MinBackoff, max: c.cfg.MaxBackoff}
	for {
		start := time.Now()
		got, err := c.session(ctx)
		if ctx.Err() != nil {
			c.setConn(StateStopped, ctx.Err())
			return ctx.Err()
		}
		if got && time.Since(start) >= c.cfg.MaxBackoff {
			b.reset()
		}
		pause := b.next()
		c.setConn(StateBackoff, err)
		c.cfg.Reporter.Stream(false, err)
		c.log.Warn("xds stream ended; configuration stays as it is", "target", c.cfg.Target, "error", err, "retry_in", pause)
		if !sleep(ctx, pause) {
			c.setConn(StateStopped, ctx.Err())
			return ctx.Err()
		}
	}
}

// Latest returns the current value of a resource, which may be newer than the
// one in the last View. Whoever gets values both here (or from a View) and
// from OnChange keeps the one with the larger Seq.
func (c *Client) Latest(k Key) (Resource, bool) {
	c.mu.Lock()
	defer c.mu.Unlock()
	t := c.byURL[k.TypeURL]
	if t == nil {
		return Resource{}, false
	}
	h := t.get(k.Name)
	if h == nil {
		return Resource{}, false
	}
	r := h.Resource
	r.Version = h.version
	return r, true
}

// SetNames replaces the resources that are wanted beside Config.Types' names and
// what held resources refer to. Names of types that are not listed, or are
// subscribed to as a whole, have no effect.
func (c *Client) SetNames(keys []Key) {
	c.mu.Lock()
	c.names = make(map[Key]struct{}, len(keys))
	for _, k := range keys {
		c.names[k] = struct{}{}
	}
	c.mu.Unlock()
	select {
	case c.renamed <- struct{}{}:
	default:
	}
}

func sleep(ctx context.Context, d time.Duration) bool {
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-t.C:
		return true
	case <-ctx.Done():
		return false
	}
}

type noReporter struct{}

func (noReporter) Stream(bool, error)             {}
func (noReporter) Response(string, int, int, int) {}
