package xdsclient

import (
	"errors"
	"maps"
	"slices"
	"strconv"
	"sync"
	"time"

	discoveryv3pb "github.com/envoyproxy/go-control-plane/envoy/service/discovery/v3"
	rpcstatus "google.golang.org/genproto/googleapis/rpc/status"
	"google.golang.org/protobuf/encoding/protowire"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/anypb"
)

// wrapperType is the type of a resource that comes in an envelope with its name.
const wrapperType = "type.googleapis.com/envoy.service.discovery.v3.Resource"

// sotwStream is the part of a state-of-the-world stream that is used.
type sotwStream interface {
	Send(*discoveryv3pb.DiscoveryRequest) error
	Recv() (*discoveryv3pb.DiscoveryResponse, error)
}

// sotw speaks the state-of-the-world protocol and looks like a delta stream:
// the rest of the client knows names that come and go. A response to a type that
// is subscribed to as a whole is its whole content, so what it lacks is removed;
// one to names may hold some of them only.
type sotw struct {
	s sotwStream
	// whole tells whether a type is subscribed to as a whole.
	whole func(typeURL string) bool
	// accepted are the versions of former streams and this one by type.
	accepted *versions

	sending sync.Mutex // one Send at a time

	mu    sync.Mutex
	types map[string]*sotwType
	ended bool
	// sent numbers responses: their nonces need not be unique over types, nor
	// have any value.
	sent int
}

// versions are the newest accepted version_info by type; they outlive a stream.
type versions struct {
	mu sync.Mutex
	m  map[string]string
}

func (v *versions) get(t string) string {
	v.mu.Lock()
	defer v.mu.Unlock()
	return v.m[t]
}

func (v *versions) set(t, version string) {
	v.mu.Lock()
	defer v.mu.Unlock()
	if v.m == nil {
		v.m = map[string]string{}
	}
	v.m[t] = version
}

// sotwType is the state of one type on one stream.
type sotwType struct {
	names map[string]bool
	// known are the resources that the client holds, for removals.
	known map[string]bool
	// nonce is the newest response's; open maps our numbers to responses that
	// are not answered yet.
	nonce string
	open  map[string]response
	// refused is the version that was refused last, calm how long its next
	// refusal waits, held that refusal while it does.
	refused string
	calm    time.Duration
	held    *time.Timer
	detail  *rpcstatus.Status
}

// A server answers a refusal with what it has: the same again. Refusals of one
// version after the first are sent with growing pauses between these.
const (
	calmMin = 200 * time.Millisecond
	calmMax = 30 * time.Second
)

type response struct{ nonce, version string }

func newSotw(s sotwStream, whole func(string) bool, accepted *versions) *sotw {
	return &sotw{s: s, whole: whole, accepted: accepted, types: map[string]*sotwType{}}
}

// Send implements stream.
func (w *sotw) Send(d *discoveryv3pb.DeltaDiscoveryRequest) error {
	w.sending.Lock()
	defer w.sending.Unlock()
	if r := w.request(d); r != nil {
		return w.s.Send(r)
	}
	return nil
}

// close ends waiting refusals.
func (w *sotw) close() {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.ended = true
	for _, t := range w.types {
		if t.held != nil {
			t.held.Stop()
		}
	}
}

// later sends the refusal that is held for a type, unless something else did.
func (w *sotw) later(url string, t *sotwType) {
	w.sending.Lock()
	defer w.sending.Unlock()
	w.mu.Lock()
	if w.ended || t.held == nil {
		w.mu.Unlock()
		return
	}
	r := w.currentLocked(url, t)
	w.mu.Unlock()
	_ = w.s.Send(r) // Recv tells what is wrong
}

// currentLocked is a request with what is asked for now; it answers the newest
// response that was refused, if that waits.
func (w *sotw) currentLocked(url string, t *sotwType) *discoveryv3pb.DiscoveryRequest {
	r := &discoveryv3pb.DiscoveryRequest{TypeUrl: url, VersionInfo: w.accepted.get(url), ResponseNonce: t.nonce, ResourceNames: slices.Sorted(maps.Keys(t.names))}
	if t.held != nil {
		t.held.Stop()
		t.held, r.ErrorDetail = nil, t.detail
	}
	return r
}

// refuseLocked tells whether the refusal of a version may be sent now.
func (w *sotw) refuseLocked(url string, t *sotwType, version string, detail *rpcstatus.Status) bool {
	if t.refused != version || t.calm == 0 {
		t.refused, t.calm = version, calmMin
		return true
	}
	wait := t.calm
	t.calm = min(2*t.calm, calmMax)
	t.detail = detail
	if t.held != nil {
		t.held.Stop()
	}
	t.held = time.AfterFunc(wait, func() { w.later(url, t) })
	return false
}

// request translates a delta request: a change of names, an ACK or a NACK. It is
// nil for a NACK that has to wait.
func (w *sotw) request(d *discoveryv3pb.DeltaDiscoveryRequest) *discoveryv3pb.DiscoveryRequest {
	w.mu.Lock()
	defer w.mu.Unlock()
	url := d.GetTypeUrl()
	t, first := w.types[url], false
	if t == nil {
		first = true
		t = &sotwType{names: map[string]bool{}, known: map[string]bool{}, open: map[string]response{}}
		for n := range d.GetInitialResourceVersions() {
			t.known[n] = true
		}
		w.types[url] = t
	}
	for _, n := range d.GetResourceNamesSubscribe() {
		t.names[n] = true
	}
	for _, n := range d.GetResourceNamesUnsubscribe() {
		delete(t.names, n)
		delete(t.known, n)
	}
	got, isAnswer := t.open[d.GetResponseNonce()]
	if isAnswer {
		delete(t.open, d.GetResponseNonce())
		switch {
		case d.GetErrorDetail() == nil:
			w.accepted.set(url, got.version)
			t.calm = 0
		case !w.refuseLocked(url, t, got.version, d.GetErrorDetail()):
			return nil
		}
	}
	r := w.currentLocked(url, t)
	r.Node = d.GetNode()
	if isAnswer {
		r.ResponseNonce, r.ErrorDetail = got.nonce, d.GetErrorDetail()
	}
	if first && !current(d) {
		r.VersionInfo = "" // the server is to send everything
	}
	return r
}

// current tells whether the client holds all that it asks for, in the versions
// that the server knows.
func current(d *discoveryv3pb.DeltaDiscoveryRequest) bool {
	for _, n := range d.GetResourceNamesSubscribe() {
		if d.GetInitialResourceVersions()[n] == "" {
			return false
		}
	}
	for _, v := range d.GetInitialResourceVersions() {
		if v == "" {
			return false
		}
	}
	return true
}

// Recv implements stream.
func (w *sotw) Recv() (*discoveryv3pb.DeltaDiscoveryResponse, error) {
	r, err := w.s.Recv()
	if err != nil {
		return nil, err
	}
	return w.response(r), nil
}

func (w *sotw) response(r *discoveryv3pb.DiscoveryResponse) *discoveryv3pb.DeltaDiscoveryResponse {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.sent++
	url := r.GetTypeUrl()
	d := &discoveryv3pb.DeltaDiscoveryResponse{
		TypeUrl: url, SystemVersionInfo: r.GetVersionInfo(), Nonce: strconv.Itoa(w.sent), ControlPlane: r.GetControlPlane(),
	}
	seen := map[string]bool{}
	for _, a := range r.GetResources() {
		res := unwrap(a, r.GetVersionInfo())
		seen[res.GetName()] = true
		d.Resources = append(d.Resources, res)
	}
	t := w.types[url]
	if t == nil {
		return d // nobody asked for it
	}
	t.nonce = r.GetNonce()
	t.open[d.GetNonce()] = response{r.GetNonce(), r.GetVersionInfo()}
	if w.whole(url) {
		for n := range t.known {
			if !seen[n] {
				d.RemovedResources = append(d.RemovedResources, n)
				delete(t.known, n)
			}
		}
		slices.Sort(d.RemovedResources)
	}
	for n := range seen {
		t.known[n] = true
	}
	return d
}

// unwrap gives a resource its name and version.
func unwrap(a *anypb.Any, version string) *discoveryv3pb.Resource {
	if a.GetTypeUrl() == wrapperType {
		var res discoveryv3pb.Resource
		if err := proto.Unmarshal(a.GetValue(), &res); err == nil {
			if res.Version == "" {
				res.Version = version
			}
			return &res
		}
	}
	name, _ := nameOf(a.GetValue()) // a resource without a name is refused
	return &discoveryv3pb.Resource{Name: name, Version: version, Resource: a}
}

// nameOf reads the name of a serialized resource: field 1 of every type of
// Envoy's that has names.
func nameOf(b []byte) (name string, err error) {
	for len(b) > 0 {
		num, typ, n := protowire.ConsumeTag(b)
		if n < 0 {
			return "", errors.New("it is no message")
		}
		b = b[n:]
		if num == 1 && typ == protowire.BytesType {
			v, n := protowire.ConsumeBytes(b)
			if n < 0 {
				return "", errors.New("it is no message")
			}
			name, b = string(v), b[n:]
			continue
		}
		if n = protowire.ConsumeFieldValue(num, typ, b); n < 0 {
			return "", errors.New("it is no message")
		}
		b = b[n:]
	}
	return name, nil
}
