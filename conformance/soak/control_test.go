package soak

import (
	_ "embed"
	"errors"
	"fmt"
	"maps"
	"slices"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	discoveryv3pb "github.com/envoyproxy/go-control-plane/envoy/service/discovery/v3"
	"github.com/fairlead-mesh/fairlead/internal/xdstest"
	"google.golang.org/protobuf/proto"

	"github.com/fairlead-mesh/fairlead/conformance/running"
)

//go:embed config.yaml
var config []byte

// control is the control plane: it numbers versions, and keeps book of what was
// refused.
type control struct {
	srv  *xdstest.Server
	vars map[string]string

	calm    sync.Mutex // held while something bad is served, and while a process starts
	mu      sync.Mutex // one push at a time
	version int
	live    int // the last good version
	down    bool
	pushes  int
	bad     int
	kills   int

	book     sync.Mutex
	spoilt   xdstest.Key            // what is bad now
	expected map[string]xdstest.Key // responses that must be refused, by stream and nonce
	refused  int
	wrong    []string
}

func newControl(t *testing.T, vars map[string]string, p *pki) *control {
	t.Helper()
	c := &control{vars: vars, expected: map[string]xdstest.Key{}}
	c.srv = xdstest.New(t, xdstest.Options{Addr: running.Address(keepPort(t)), OnRequest: c.requested, OnResponse: c.sending})
	c.vars["CONTROL"] = strings.TrimPrefix(c.srv.Addr(), "127.0.0.1:")
	if err := c.certify(p); err != nil {
		t.Fatal(err)
	}
	if err := c.push(); err != nil {
		t.Fatal(err)
	}
	return c
}

// badVersion begins the version of what is bad.
const badVersion = "bad-"

func ticket(stream int, nonce string) string { return strconv.Itoa(stream) + "/" + nonce }

// sending notes the responses that hold what is bad.
func (c *control) sending(stream int, r *discoveryv3pb.DeltaDiscoveryResponse) {
	c.book.Lock()
	defer c.book.Unlock()
	if c.spoilt.Name == "" || r.GetTypeUrl() != c.spoilt.TypeURL {
		return
	}
	for _, res := range r.GetResources() {
		if res.GetName() == c.spoilt.Name && strings.HasPrefix(res.GetVersion(), badVersion) {
			c.expected[ticket(stream, r.GetNonce())] = c.spoilt
		}
	}
}

// requested compares each answer of a proxy with what it should be.
func (c *control) requested(r xdstest.Request) {
	if r.GetResponseNonce() == "" {
		return
	}
	c.book.Lock()
	defer c.book.Unlock()
	id := ticket(r.Stream, r.GetResponseNonce())
	k, bad := c.expected[id]
	delete(c.expected, id)
	switch m := r.GetErrorDetail().GetMessage(); {
	case bad && !r.IsNACK():
		c.wrong = append(c.wrong, fmt.Sprintf("the bad %s was accepted", k.Name))
	case !bad && r.IsNACK():
		c.wrong = append(c.wrong, fmt.Sprintf("a good push was refused: %s: %s", r.GetTypeUrl(), m))
	case bad && (r.GetTypeUrl() != k.TypeURL || !strings.Contains(m, k.Name)):
		c.wrong = append(c.wrong, fmt.Sprintf("the NACK for %s says %s: %s", k.Name, r.GetTypeUrl(), m))
	case bad:
		c.refused++
	}
}

// fill gives the variables of a version.
func (c *control) fill(version int) map[string]string {
	v := maps.Clone(c.vars)
	v["VERSION"], v["ORIGIN"] = strconv.Itoa(version), c.vars[fmt.Sprintf("ORIGIN%d", version%origins)]
	v["EDGE_PREFIX"] = []string{"edge_a", "edge_b"}[version/40%2]
	v["CHAIN"] = []string{"a", "b"}[version/60%2]
	return v
}

// push makes the next version the one in force.
func (c *control) push() error {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.version++
	rs, err := xdstest.Load(config, c.fill(c.version))
	if err != nil {
		return err
	}
	var old []xdstest.Key
	for _, n := range []string{"app-", "grpc-"} {
		n += strconv.Itoa(c.live)
		old = append(old, xdstest.Key{TypeURL: xdstest.Cluster, Name: n}, xdstest.Key{TypeURL: xdstest.Endpoints, Name: n})
	}
	old = append(old, xdstest.Key{TypeURL: xdstest.Cluster, Name: "broken"})
	c.live = c.version
	c.pushes++
	c.srv.Update(rs, old)
	return nil
}

const brokenCluster = `[{"@type": type.googleapis.com/envoy.config.cluster.v3.Cluster, name: broken, type: EDS, connect_timeout: -1s, eds_cluster_config: {eds_config: {ads: {}}}}]`

// spoil pushes something that must be refused, waits until every proxy has done
// so, and takes it back. No process may start meanwhile: it would have nothing
// good to go back to.
func (c *control) spoil() error {
	c.calm.Lock()
	defer c.calm.Unlock()
	k, before, err := c.pushBad()
	if err != nil {
		return err
	}
	err = c.awaitRefusals(k, before)
	if e := c.push(); e != nil {
		return e
	}
	c.book.Lock()
	c.spoilt = xdstest.Key{}
	c.book.Unlock()
	return err
}

// made is how many pushes there were, and how many of them were bad.
func (c *control) made() (pushes, bad int) {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.pushes, c.bad
}

func (c *control) pushBad() (k xdstest.Key, before int, err error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.down {
		return k, 0, errDown
	}
	doc := string(config)
	switch c.bad % 3 {
	case 0:
		k, doc = xdstest.Key{TypeURL: xdstest.Listener, Name: "edge"}, strings.Replace(doc, `stat_prefix: "${EDGE_PREFIX}"`, `stat_prefix: ""`, 1)
	case 1:
		k, doc = xdstest.Key{TypeURL: xdstest.Route, Name: "table"}, strings.Replace(doc, "match: {prefix: /secure}", `match: {safe_regex: {regex: "("}}`, 1)
	case 2:
		k, doc = xdstest.Key{TypeURL: xdstest.Cluster, Name: "broken"}, brokenCluster
	}
	rs, err := xdstest.Load([]byte(doc), c.fill(c.live))
	if err != nil {
		return k, 0, err
	}
	i := slices.IndexFunc(rs, func(r xdstest.Resource) bool { return r.TypeURL == k.TypeURL && r.Name == k.Name })
	c.book.Lock()
	c.spoilt = k
	clear(c.expected)
	before = c.refused
	c.book.Unlock()
	c.pushes++
	c.bad++
	rs[i].Version = badVersion + strconv.Itoa(c.bad)
	c.srv.Update(rs[i:i+1], nil)
	return k, before, nil
}

var errDown = errors.New("the control plane is down")

// awaitRefusals waits until there was a refusal, and none is owed; a process
// that has ended may owe one.
func (c *control) awaitRefusals(k xdstest.Key, before int) error {
	began := time.Now()
	for time.Since(began) < patience {
		c.book.Lock()
		owed, got := len(c.expected), c.refused-before
		c.book.Unlock()
		if got > 0 && (owed == 0 || time.Since(began) > patience/2) {
			return nil
		}
		time.Sleep(5 * time.Millisecond)
	}
	return fmt.Errorf("the bad %s was not refused within %s", k.Name, patience)
}

// certify serves the certificates of the moment.
func (c *control) certify(p *pki) error {
	secrets, err := p.now.Load().secrets()
	if err != nil {
		return err
	}
	var rs []xdstest.Resource
	for _, s := range secrets {
		b, err := proto.MarshalOptions{Deterministic: true}.Marshal(s)
		if err != nil {
			return err
		}
		rs = append(rs, xdstest.Resource{TypeURL: xdstest.Secret, Name: s.GetName(), Value: b})
	}
	c.srv.Update(rs, nil)
	return nil
}

// kill ends the control plane; revive brings it back.
func (c *control) kill() {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.down = true
	c.kills++
	c.srv.Close()
}

func (c *control) revive() error {
	c.mu.Lock()
	defer c.mu.Unlock()
	var err error
	for range 100 {
		if err = c.srv.Restart(); err == nil {
			c.down = false
			return nil
		}
		time.Sleep(100 * time.Millisecond)
	}
	return fmt.Errorf("the control plane can't come back: %w", err)
}
