package xdsclient

import (
	"crypto/sha256"
	"errors"
	"fmt"
	"slices"
	"strings"
	"time"

	discoveryv3pb "github.com/envoyproxy/go-control-plane/envoy/service/discovery/v3"
	rpcstatus "google.golang.org/genproto/googleapis/rpc/status"
	"google.golang.org/grpc/codes"

	"github.com/fairlead-mesh/fairlead/internal/hamt"
)

// maxErrorDetail bounds the text of a NACK.
const maxErrorDetail = 16 << 10

// held is one accepted resource. Views share it, and read the Resource, which never
// changes.
type held struct {
	Resource
	digest [sha256.Size]byte
	refs   []Key
	// version is the newest: the same content may come again with another one.
	version string
}

// rejected is the newest version of a resource, which could not be decoded.
type rejected struct {
	version string
	digest  [sha256.Size]byte
	err     error
	at      time.Time
	// proven: by a Proof, which may say otherwise the next time.
	proven bool
}

// typeState is what the client knows about one type. It is written only by the
// session's goroutine, under Client.mu; that goroutine may read it without.
type typeState struct {
	ResourceType
	// wanted are the names that somebody needs; empty for a wildcard.
	wanted   map[string]struct{}
	held     hamt.Map[*held]
	rejected map[string]rejected
	// passed are what came and was removed again without a View between, and when
	// it was removed; nil if there is nothing. It is forgotten after passedTime.
	passed map[string]time.Time
	// missing are the names that are wanted and not held.
	missing map[string]struct{}

	// opened and subscribed belong to the current stream.
	opened     bool
	subscribed map[string]struct{}
	// unsynced: wanted and subscribed may differ; if the type is opened, in the names
	// of turned at most. orphans are names that came not to be wanted any more:
	// nothing else can be held or refused in vain.
	unsynced        bool
	turned, orphans map[string]struct{}

	// proofs run, by name; open are the responses that wait for them and those
	// behind. Both belong to the current stream.
	proofs map[string]*proof
	open   []*unanswered

	answered         time.Time
	responses, nacks uint64
}

func newTypeState(t ResourceType) *typeState {
	return &typeState{
		ResourceType: t, wanted: map[string]struct{}{}, rejected: map[string]rejected{}, missing: map[string]struct{}{},
		subscribed: map[string]struct{}{}, turned: map[string]struct{}{}, orphans: map[string]struct{}{}, proofs: map[string]*proof{},
	}
}

// get returns what is held under a name, or nil.
func (t *typeState) get(name string) *held {
	h, _ := t.held.Get(name)
	return h
}

// wantLocked notes that a name is wanted, or no more.
func (t *typeState) wantLocked(name string, on bool) {
	if on {
		t.wanted[name] = struct{}{}
		delete(t.orphans, name)
		if t.get(name) == nil {
			t.missing[name] = struct{}{}
		}
	} else {
		delete(t.wanted, name)
		delete(t.missing, name)
		t.orphans[name] = struct{}{}
	}
	t.turned[name] = struct{}{}
	t.unsynced = true
}

// changes collects what OnChange callbacks will be told, by type.
type changes map[*typeState][]Change

func (c changes) add(t *typeState, ch Change) {
	if t.OnChange != nil {
		c[t] = append(c[t], ch)
	}
}

// verdict is a decoded resource that has not been applied yet.
type verdict struct {
	name, version string
	digest        [sha256.Size]byte
	raw           []byte
	same          bool // as held
	value         any
	refs          []Key
	err           error
	proof         Proof // nil: none is needed
	joins         bool  // the proof runs already
	proven        bool  // err is what the proof said
}

// judge decodes one resource, without the lock.
func (t *typeState) judge(r *discoveryv3pb.Resource) verdict {
	v := verdict{name: r.GetName(), version: r.GetVersion()}
	if v.name == "" {
		v.err = errors.New("the resource has no name")
		return v
	}
	if _, wanted := t.wanted[v.name]; !t.Wildcard && !wanted {
		return v // unsubscribed while the response was under way: applyLocked skips it
	}
	a := r.GetResource()
	if a == nil {
		v.err = errors.New("the resource has no value")
		return v
	}
	if a.GetTypeUrl() != t.TypeURL {
		v.err = fmt.Errorf("the resource is a %q", a.GetTypeUrl())
		return v
	}
	v.digest = sha256.Sum256(a.GetValue())
	if h := t.get(v.name); h != nil && h.digest == v.digest {
		v.same = true
		return v
	}
	if old, ok := t.rejected[v.name]; ok && old.digest == v.digest && !old.proven {
		v.err = old.err
		return v
	}
	if p := t.proofs[v.name]; p != nil && p.v.digest == v.digest {
		version := v.version
		v = p.v
		v.version, v.joins = version, true
		return v
	}
	if t.KeepRaw {
		v.raw = a.GetValue()
	}
	v.value, v.refs, v.err = decode(t.Decode, v.name, a.GetValue())
	if v.err == nil && t.Prove != nil {
		v.proof = t.Prove(v.name, v.value)
	}
	return v
}

func decode(d Decoder, name string, b []byte) (v any, refs []Key, err error) {
	defer func() {
		if p := recover(); p != nil {
			v, refs, err = nil, nil, fmt.Errorf("the decoder panicked: %v", p)
		}
	}()
	return d(name, b)
}

// applyLocked takes over one response, but for what is proven first, and notes in
// o what was rejected.
func (c *Client) applyLocked(t *typeState, vs []verdict, removed []string, o *unanswered, ch changes) {
	now := time.Now()
	for i := range vs {
		v := &vs[i]
		if v.err == nil && v.proof != nil {
			c.proveLocked(t, v, o)
			continue
		}
		t.dropLocked(v.name)
		if bad := c.takeLocked(t, v, now, ch); bad != "" {
			o.bad = append(o.bad, bad)
		}
	}
	for _, name := range removed {
		delete(c.pending, Key{t.TypeURL, name})
		t.dropLocked(name)
		if _, wanted := t.wanted[name]; wanted && t.KeepRemoved {
			c.log.Info("xds: ignoring the removal of a resource that is referred to", "type", t.TypeURL, "name", name)
			continue
		}
		c.removeLocked(t, name, ch)
	}
}

// takeLocked takes over one resource, or returns "name: reason" if it is rejected.
func (c *Client) takeLocked(t *typeState, v *verdict, now time.Time, ch changes) (bad string) {
	_, wanted := t.wanted[v.name]
	if !t.Wildcard && !wanted && v.name != "" {
		return ""
	}
	delete(c.pending, Key{t.TypeURL, v.name})
	switch h := t.get(v.name); {
	case v.err != nil:
		t.rejected[v.name] = rejected{v.version, v.digest, v.err, now, v.proven}
		return fmt.Sprintf("%s: %v", v.name, v.err)
	case v.same:
		delete(t.rejected, v.name)
		h.version = v.version
	default:
		delete(t.rejected, v.name)
		c.setLocked(t, v, now, ch)
	}
	return ""
}

func (c *Client) setLocked(t *typeState, v *verdict, now time.Time, ch changes) {
	slices.SortFunc(v.refs, compareKeys)
	refs := slices.Compact(v.refs)
	c.seq++
	h := &held{
		Resource: Resource{Name: v.name, Version: v.version, Value: v.value, Seq: c.seq, Updated: now, Raw: v.raw},
		digest:   v.digest, refs: refs, version: v.version,
	}
	for _, k := range refs {
		c.retainLocked(k)
	}
	if old := t.get(v.name); old != nil {
		for _, k := range old.refs {
			c.releaseLocked(k)
		}
	}
	t.held.Set(v.name, h)
	delete(t.missing, v.name)
	delete(t.passed, v.name)
	c.touchedLocked(t, t.Last && len(refs) == 0)
	ch.add(t, Change{Resource: h.Resource})
}

func (c *Client) removeLocked(t *typeState, name string, ch changes) {
	delete(t.rejected, name)
	h := t.get(name)
	if h == nil {
		return
	}
	t.held.Delete(name)
	if _, wanted := t.wanted[name]; wanted {
		t.missing[name] = struct{}{}
	}
	if h.Seq > c.viewed && t.OnChange == nil {
		if t.passed == nil {
			t.passed = map[string]time.Time{}
		}
		t.passed[name] = time.Now()
	}
	for _, k := range h.refs {
		c.releaseLocked(k)
	}
	c.touchedLocked(t, false)
	c.seq++
	ch.add(t, Change{Resource: Resource{Name: name, Seq: c.seq, Updated: time.Now()}, Removed: true})
}

func (c *Client) touchedLocked(t *typeState, alone bool) {
	if t.OnChange == nil {
		c.markDirtyLocked(alone)
	}
}

func (c *Client) retainLocked(k Key) {
	t := c.byURL[k.TypeURL]
	if t == nil {
		c.log.Warn("xds: a resource refers to a type that is not subscribed", "type", k.TypeURL, "name", k.Name)
		return
	}
	if t.Wildcard || k.Name == "" {
		return
	}
	if c.refs[k]++; c.refs[k] == 1 {
		t.wantLocked(k.Name, true)
	}
}

func (c *Client) releaseLocked(k Key) {
	n, ok := c.refs[k]
	if !ok {
		return
	}
	if n > 1 {
		c.refs[k] = n - 1
		return
	}
	delete(c.refs, k)
	delete(c.pending, k)
	c.byURL[k.TypeURL].wantLocked(k.Name, false)
}

// renameLocked takes up what SetNames asked for.
func (c *Client) renameLocked() {
	for k := range c.names {
		if _, ok := c.asked[k]; !ok {
			c.asked[k] = struct{}{}
			c.retainLocked(k)
		}
	}
	for k := range c.asked {
		if _, ok := c.names[k]; !ok {
			delete(c.asked, k)
			c.releaseLocked(k)
		}
	}
}

// sweepLocked drops named resources that nobody refers to any more, and then
// what only those referred to.
func (c *Client) sweepLocked(ch changes) {
	for again := true; again; {
		again = false
		for _, t := range c.types {
			if len(t.orphans) == 0 {
				continue
			}
			names := t.orphans
			t.orphans, again = map[string]struct{}{}, true // removals may make more, of this type, too
			for n := range names {
				t.dropLocked(n)
				c.removeLocked(t, n, ch)
			}
		}
	}
}

// beginLocked forgets the previous stream.
func (c *Client) beginLocked(now time.Time) {
	for _, t := range c.types {
		t.opened, t.unsynced, t.open = false, true, nil
		clear(t.subscribed)
		t.turned = map[string]struct{}{}
		for n := range t.proofs {
			t.dropLocked(n)
			delete(c.pending, Key{t.TypeURL, n})
		}
		if t.Wildcard && t.answered.IsZero() {
			c.pending[Key{TypeURL: t.TypeURL}] = now.Add(c.cfg.InitialFetchTimeout)
		}
	}
}

// syncLocked returns the requests that bring the server's idea of the
// subscriptions to ours, and after how long to look again (0: not needed).
func (c *Client) syncLocked(now time.Time) (reqs []*discoveryv3pb.DeltaDiscoveryRequest, again time.Duration) {
	for _, t := range c.types {
		if !t.opened {
			if !t.Wildcard && len(t.wanted) == 0 {
				continue
			}
			if wait := c.gateLocked(t, now); wait > 0 {
				if again == 0 || wait < again {
					again = wait
				}
				continue
			}
		}
		if r := c.requestLocked(t, now); r != nil {
			reqs = append(reqs, r)
		}
	}
	return reqs, again
}

// gateLocked returns how long t must still wait for the types it comes after.
func (c *Client) gateLocked(t *typeState, now time.Time) (wait time.Duration) {
	if !t.answered.IsZero() {
		return 0
	}
	for k, until := range c.pending {
		if slices.Contains(t.After, k.TypeURL) && until.Sub(now) > wait {
			wait = until.Sub(now)
		}
	}
	return wait
}

func (c *Client) requestLocked(t *typeState, now time.Time) *discoveryv3pb.DeltaDiscoveryRequest {
	if !t.unsynced {
		return nil
	}
	t.unsynced = false
	r := &discoveryv3pb.DeltaDiscoveryRequest{TypeUrl: t.TypeURL}
	names := t.turned
	if !t.opened { // nothing is subscribed
		names = t.wanted
	}
	for n := range names {
		_, wanted := t.wanted[n]
		_, subscribed := t.subscribed[n]
		switch {
		case wanted && !subscribed:
			r.ResourceNamesSubscribe = append(r.ResourceNamesSubscribe, n)
			t.subscribed[n] = struct{}{}
			if _, ok := t.missing[n]; ok {
				c.pending[Key{t.TypeURL, n}] = now.Add(c.cfg.SettleTimeout)
			}
		case !wanted && subscribed:
			r.ResourceNamesUnsubscribe = append(r.ResourceNamesUnsubscribe, n)
			delete(t.subscribed, n)
		}
	}
	t.turned = map[string]struct{}{} // one that was large once takes long to clear
	slices.Sort(r.ResourceNamesSubscribe)
	slices.Sort(r.ResourceNamesUnsubscribe)
	if !t.opened {
		t.opened = true
		if t.held.Len() > 0 {
			r.InitialResourceVersions = make(map[string]string, t.held.Len())
		}
		for n, h := range t.held.All() {
			v := h.version
			if _, bad := t.rejected[n]; bad {
				v = "" // held, for removals, but not in the version the server knows
			}
			r.InitialResourceVersions[n] = v
		}
		return r
	}
	if len(r.ResourceNamesSubscribe)+len(r.ResourceNamesUnsubscribe) == 0 {
		return nil
	}
	return r
}

// answer is the ACK of a response, or its NACK if anything is bad.
func answer(r *discoveryv3pb.DeltaDiscoveryResponse, bad []string) *discoveryv3pb.DeltaDiscoveryRequest {
	a := &discoveryv3pb.DeltaDiscoveryRequest{TypeUrl: r.GetTypeUrl(), ResponseNonce: r.GetNonce()}
	if len(bad) > 0 {
		msg := strings.Join(bad, "; ")
		if len(msg) > maxErrorDetail {
			msg = strings.ToValidUTF8(msg[:maxErrorDetail], "") + " …"
		}
		a.ErrorDetail = &rpcstatus.Status{Code: int32(codes.InvalidArgument), Message: msg}
	}
	return a
}

func compareKeys(a, b Key) int {
	if d := strings.Compare(a.TypeURL, b.TypeURL); d != 0 {
		return d
	}
	return strings.Compare(a.Name, b.Name)
}
