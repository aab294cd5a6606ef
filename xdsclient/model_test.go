package xdsclient

import (
	"context"
	"fmt"
	"maps"
	"math/rand/v2"
	"os"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	discoveryv3pb "github.com/envoyproxy/go-control-plane/envoy/service/discovery/v3"
	"google.golang.org/protobuf/encoding/protowire"
	"google.golang.org/protobuf/types/known/anypb"
)

// world is a server's state and a model of what a client must hold. Values are
// numbers; those that divide by 7 are refused, others refer to further names.
type world struct {
	t    *testing.T
	rnd  *rand.Rand
	seed uint64
	c    *Client
	w    *sotw // nil for delta

	have    map[string]map[string]int // what the server has
	subs    map[string]*modelSub      // of the stream
	queue   []any                     // responses under way
	nonce   int
	good    map[string]map[string]int // the last good value that was delivered and wanted
	replay  map[string]int            // endpoints, as OnChange tells them
	nacks   int
	bad     int
	version int
	views   modelViews
}

type modelSub struct {
	wildcard bool
	names    map[string]bool
	versions map[string]string
}

const (
	mCDS, mEDS, mLDS, mRDS, mSDS = "t/cds", "t/eds", "t/lds", "t/rds", "t/sds"
)

var (
	modelTypes = []string{mCDS, mEDS, mLDS, mRDS, mSDS}
	modelNames = []string{"a", "b", "c", "d", "e"}
)

// modelRefs are what a value refers to.
func modelRefs(typeURL, name string, v int) []Key {
	other := modelNames[v%len(modelNames)]
	switch typeURL {
	case mCDS:
		return []Key{{mEDS, name}, {mSDS, other}}
	case mLDS:
		return []Key{{mRDS, other}, {mRDS, name}, {mSDS, name}}
	case mRDS:
		if v%3 == 0 {
			return []Key{{mSDS, other}}
		}
	}
	return nil
}

func modelValue(name string, v int) []byte {
	b := protowire.AppendTag(nil, 1, protowire.BytesType)
	b = protowire.AppendString(b, name)
	b = protowire.AppendTag(b, 2, protowire.VarintType)
	return protowire.AppendVarint(b, uint64(v))
}

func modelDecode(typeURL string) Decoder {
	return func(name string, b []byte) (any, []Key, error) {
		v, _ := protowire.ConsumeVarint(b[len(b)-varintLen(b):])
		if v%7 == 0 {
			return nil, nil, fmt.Errorf("bad %d", v)
		}
		return int(v), modelRefs(typeURL, name, int(v)), nil
	}
}

// varintLen is the length of the last field of a modelValue.
func varintLen(b []byte) int {
	_, n := protowire.ConsumeString(b[1:])
	return len(b) - 1 - n - 1
}

func newModelWorld(t *testing.T, seed uint64, delta bool) *world {
	w := &world{t: t, seed: seed, rnd: rand.New(rand.NewPCG(seed, 1)), have: map[string]map[string]int{}, good: map[string]map[string]int{}, replay: map[string]int{}}
	for _, typ := range modelTypes {
		w.have[typ], w.good[typ] = map[string]int{}, map[string]int{}
	}
	types := []ResourceType{
		{TypeURL: mCDS, Wildcard: true},
		{TypeURL: mEDS, KeepRemoved: true, OnChange: w.onChange},
		{TypeURL: mLDS, Wildcard: true, After: []string{mCDS}},
		{TypeURL: mRDS, KeepRemoved: true},
		{TypeURL: mSDS},
	}
	for i := range types {
		types[i].Decode = modelDecode(types[i].TypeURL)
	}
	c, err := New(Config{Types: types, Node: Node{ID: "n"}, StateOfTheWorld: !delta, connect: func(context.Context) (stream, func(), error) { return nil, nil, nil }})
	if err != nil {
		t.Fatal(err)
	}
	w.c = c
	w.connect()
	return w
}

func (w *world) onChange(cs []Change) {
	for _, c := range cs {
		if c.Removed {
			delete(w.replay, c.Name)
			continue
		}
		w.replay[c.Name], _ = c.Value.(int)
	}
}

// connect opens a new stream; responses under way are lost.
func (w *world) connect() {
	w.queue, w.subs = nil, map[string]*modelSub{}
	w.c.mu.Lock()
	w.c.beginLocked(time.Now())
	w.c.mu.Unlock()
	if w.c.cfg.StateOfTheWorld {
		if w.w != nil {
			w.w.close()
		}
		w.w = newSotw(nil, func(typeURL string) bool { return w.c.byURL[typeURL].Wildcard }, &w.c.accepted)
	}
	reqs, _ := w.c.advance(changes{})
	w.receive(reqs)
}

// receive is the server's side of requests.
func (w *world) receive(reqs []*discoveryv3pb.DeltaDiscoveryRequest) {
	for _, d := range reqs {
		if d.GetErrorDetail() != nil {
			w.nacks++
		}
		if w.w != nil {
			r := w.w.request(d)
			if r == nil { // a repeated refusal, which waits
				continue
			}
			w.receiveState(r)
			continue
		}
		sub := w.subs[d.GetTypeUrl()]
		if sub == nil {
			sub = &modelSub{wildcard: len(d.GetResourceNamesSubscribe()) == 0, names: map[string]bool{}, versions: maps.Clone(d.GetInitialResourceVersions())}
			if sub.versions == nil {
				sub.versions = map[string]string{}
			}
			w.subs[d.GetTypeUrl()] = sub
			if sub.wildcard {
				w.answer(d.GetTypeUrl(), modelNames, true)
			}
		}
		for _, n := range d.GetResourceNamesUnsubscribe() {
			delete(sub.names, n)
			delete(sub.versions, n)
		}
		for _, n := range d.GetResourceNamesSubscribe() {
			sub.names[n] = true
			_, held := sub.versions[n]
			if _, ok := w.have[d.GetTypeUrl()][n]; ok || held || w.rnd.IntN(2) == 0 { // else silence, as istiod
				w.answer(d.GetTypeUrl(), []string{n}, true)
			}
		}
	}
}

// answer queues what a client lacks of names.
func (w *world) answer(typeURL string, names []string, force bool) {
	sub := w.subs[typeURL]
	if sub == nil {
		return
	}
	w.nonce++
	r := &discoveryv3pb.DeltaDiscoveryResponse{TypeUrl: typeURL, Nonce: strconv.Itoa(w.nonce)}
	for _, n := range names {
		if !sub.wildcard && !sub.names[n] {
			continue
		}
		v, ok := w.have[typeURL][n]
		switch known, held := sub.versions[n]; {
		case !ok && (held || force && !sub.wildcard):
			r.RemovedResources = append(r.RemovedResources, n)
			delete(sub.versions, n)
		case ok && known != strconv.Itoa(v):
			sub.versions[n] = strconv.Itoa(v)
			r.Resources = append(r.Resources, &discoveryv3pb.Resource{Name: n, Version: strconv.Itoa(v), Resource: &anypb.Any{TypeUrl: typeURL, Value: modelValue(n, v)}})
		}
	}
	if len(r.GetResources())+len(r.GetRemovedResources()) > 0 || force && sub.wildcard {
		w.queue = append(w.queue, r)
	}
}

// receiveState is the server's side of the state of the world: it answers a new
// set of names with the whole state.
func (w *world) receiveState(r *discoveryv3pb.DiscoveryRequest) {
	sub := w.subs[r.GetTypeUrl()]
	names := map[string]bool{}
	for _, n := range r.GetResourceNames() {
		names[n] = true
	}
	if sub == nil {
		w.subs[r.GetTypeUrl()] = &modelSub{wildcard: len(names) == 0, names: names}
		w.state(r.GetTypeUrl())
		return
	}
	if !maps.Equal(sub.names, names) {
		sub.names = names
		w.state(r.GetTypeUrl())
	}
}

func (w *world) state(typeURL string) {
	sub := w.subs[typeURL]
	if sub == nil {
		return
	}
	w.nonce++
	w.version++
	r := &discoveryv3pb.DiscoveryResponse{TypeUrl: typeURL, Nonce: strconv.Itoa(w.nonce), VersionInfo: strconv.Itoa(w.version)}
	for _, n := range modelNames {
		if v, ok := w.have[typeURL][n]; ok && (sub.wildcard || sub.names[n]) {
			r.Resources = append(r.Resources, &anypb.Any{TypeUrl: typeURL, Value: modelValue(n, v)})
		}
	}
	w.queue = append(w.queue, r)
}

// wanted recomputes from the model what the client must ask for.
func (w *world) wanted() map[Key]bool {
	out := map[Key]bool{}
	for _, typ := range []string{mCDS, mLDS} {
		for n, v := range w.good[typ] {
			for _, k := range modelRefs(typ, n, v) {
				out[k] = true
			}
		}
	}
	for n, v := range w.good[mRDS] {
		if out[Key{mRDS, n}] {
			for _, k := range modelRefs(mRDS, n, v) {
				out[k] = true
			}
		}
	}
	return out
}

// deliver hands the oldest response to client and model.
func (w *world) deliver() {
	if len(w.queue) == 0 {
		return
	}
	next := w.queue[0]
	w.queue = w.queue[1:]
	d, ok := next.(*discoveryv3pb.DeltaDiscoveryResponse)
	if !ok {
		s, _ := next.(*discoveryv3pb.DiscoveryResponse)
		d = w.w.response(s)
	}
	typ := d.GetTypeUrl()
	wild := typ == mCDS || typ == mLDS
	want := w.wanted()
	refused := false
	for _, r := range d.GetResources() {
		v, _ := protowire.ConsumeVarint(r.GetResource().GetValue()[len(r.GetResource().GetValue())-varintLen(r.GetResource().GetValue()):])
		switch {
		case !wild && !want[Key{typ, r.GetName()}]:
		case v%7 == 0:
			refused = true
		default:
			w.good[typ][r.GetName()] = int(v)
		}
	}
	for _, n := range d.GetRemovedResources() {
		if wild || typ == mSDS {
			delete(w.good[typ], n)
		}
	}
	for again := true; again; { // what nobody wants any more is dropped
		again = false
		want = w.wanted()
		for _, t := range []string{mEDS, mRDS, mSDS} {
			for n := range w.good[t] {
				if !want[Key{t, n}] {
					delete(w.good[t], n)
					again = true
				}
			}
		}
	}
	if refused {
		w.bad++
	}
	ch := changes{}
	ack := w.c.handle(d, ch)
	reqs, _ := w.c.advance(ch)
	w.receive(append(ack, reqs...))
}

func (w *world) fatalf(step int, format string, args ...any) {
	w.t.Helper()
	w.t.Fatalf("seed %d, step %d: %s", w.seed, step, fmt.Sprintf(format, args...))
}

// check compares the client with the model.
func (w *world) check(step int) {
	w.t.Helper()
	w.c.mu.Lock()
	defer w.c.mu.Unlock()
	want := w.wanted()
	for _, typ := range modelTypes {
		ts := w.c.byURL[typ]
		held := map[string]int{}
		for n, h := range ts.held.All() {
			held[n], _ = h.Value.(int)
		}
		if !maps.Equal(held, w.good[typ]) {
			w.fatalf(step, "%s: held is %v, want %v", typ, held, w.good[typ])
		}
		if ts.Wildcard {
			continue
		}
		names := map[string]bool{}
		for k := range want {
			if k.TypeURL == typ {
				names[k.Name] = true
			}
		}
		got := map[string]bool{}
		for n := range ts.wanted {
			got[n] = true
		}
		if !maps.Equal(got, names) {
			w.fatalf(step, "%s: wanted is %v, want %v", typ, got, names)
		}
		for n := range names {
			if _, missing := ts.missing[n]; missing != (ts.get(n) == nil) {
				w.fatalf(step, "%s: %s is missing: %v", typ, n, missing)
			}
		}
		if n := len(ts.missing) + len(ts.orphans); n > len(names) {
			w.fatalf(step, "%s: %v are missing, %v not swept, of %v", typ, ts.missing, ts.orphans, names)
		}
		if sub := w.subs[typ]; sub != nil && !maps.Equal(sub.names, names) || sub == nil && len(names) > 0 {
			w.fatalf(step, "%s: the server's names are %v, want %v", typ, sub, names)
		}
	}
	if !maps.Equal(w.replay, w.good[mEDS]) {
		w.fatalf(step, "the changes of endpoints add up to %v, want %v", w.replay, w.good[mEDS])
	}
}

// converged demands, when nothing is under way, that the client holds what the
// server has.
func (w *world) converged(step int) {
	w.t.Helper()
	want := w.wanted()
	for _, typ := range modelTypes {
		wild := typ == mCDS || typ == mLDS
		for _, n := range modelNames {
			if !wild && !want[Key{typ, n}] {
				continue
			}
			v, has := w.have[typ][n]
			h := w.c.byURL[typ].get(n)
			switch {
			case has && v%7 != 0:
				if h == nil || h.Value != v {
					w.fatalf(step, "%s/%s: the server has %d, the client %v", typ, n, v, h)
				}
			case !has && wild && h != nil:
				w.fatalf(step, "%s/%s is gone, the client has %v", typ, n, h.Value)
			}
		}
	}
	v := w.c.makeView()
	w.views.add(w, step, v)
	for _, k := range v.Missing() {
		if _, ok := w.good[k.TypeURL][k.Name]; ok || !want[k] {
			w.fatalf(step, "the view misses %v", k)
		}
	}
}

// change edits the server's state at random and tells the client.
func (w *world) change() {
	typ := modelTypes[w.rnd.IntN(len(modelTypes))]
	var names []string
	for range 1 + w.rnd.IntN(3) {
		n := modelNames[w.rnd.IntN(len(modelNames))]
		if w.rnd.IntN(4) == 0 {
			delete(w.have[typ], n)
		} else {
			w.have[typ][n] = 1 + w.rnd.IntN(50)
		}
		if !slices.Contains(names, n) {
			names = append(names, n)
		}
	}
	if w.w != nil {
		w.state(typ)
		return
	}
	w.answer(typ, names, false)
}

func (w *world) run(steps int) {
	for i := range steps {
		switch k := w.rnd.IntN(100); {
		case k < 45:
			w.change()
		case k < 90:
			w.deliver()
		case k < 92:
			w.connect()
		default:
			for range 1000 {
				if len(w.queue) == 0 {
					break
				}
				w.deliver()
			}
			if len(w.queue) > 0 {
				w.fatalf(i, "client and server never come to rest: %v", w.queue[0])
			}
			w.check(i)
			w.converged(i)
		}
		w.check(i)
	}
	if w.nacks < w.bad {
		w.fatalf(steps, "%d NACKs for %d bad responses", w.nacks, w.bad)
	}
}

// Random sequences of pushes, losses of the stream and bad resources hold
// against a model of what the client must have. FAIRLEAD_SEED replays one.
func TestRandomSequencesHoldAgainstAModel(t *testing.T) {
	for _, delta := range []bool{true, false} {
		t.Run(map[bool]string{true: "delta", false: "state of the world"}[delta], func(t *testing.T) {
			seeds := make([]uint64, 20)
			for i := range seeds {
				seeds[i] = rand.Uint64()
			}
			if s, err := strconv.ParseUint(os.Getenv("FAIRLEAD_SEED"), 10, 64); err == nil {
				seeds = []uint64{s}
			}
			var shown []string
			bad := 0
			for _, s := range seeds {
				shown = append(shown, strconv.FormatUint(s, 10))
				w := newModelWorld(t, s, delta)
				w.run(1000)
				bad += w.bad
				if w.w != nil {
					w.w.close()
				}
			}
			if bad == 0 {
				t.Error("no bad resource was sent")
			}
			t.Logf("%d steps, %d bad responses; seeds %s", 1000*len(seeds), bad, strings.Join(shown, " "))
		})
	}
}
