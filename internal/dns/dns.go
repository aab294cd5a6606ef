// Package dns resolves names to addresses as a stub resolver that tells for how
// long an answer holds, which the system's doesn't. It reads resolv.conf and the
// hosts file, like that, and notices when they change.
package dns

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"golang.org/x/net/dns/dnsmessage"
)

// Config is how names are resolved. The zero value is what the system's files
// say.
type Config struct {
	// Servers are asked instead of those of resolv.conf; with Fallback only if
	// that names none.
	Servers  []netip.AddrPort
	Fallback bool
	// TCP asks over TCP from the start.
	TCP bool
	// NoSearch asks for names as they are, without the search list.
	NoSearch bool
	// Timeout bounds one question to one server, Attempts how often each server is
	// asked; 0 is what resolv.conf says, 5 s and 2 by default.
	Timeout  time.Duration
	Attempts int
	// Rotate spreads questions over the servers.
	Rotate bool
	// PayloadSize is how large an answer over UDP may be (EDNS0), 1232 by default.
	PayloadSize uint16
	// Routable leaves a family out if no interface but loopback has an address of
	// it.
	Routable bool
}

// Key tells configurations apart.
func (c *Config) Key() string { return fmt.Sprintf("%+v", *c) }

// Environment is what a Resolver finds outside; the zero value is the system's.
type Environment struct {
	// ResolvConf and Hosts are paths, /etc/resolv.conf and /etc/hosts by default.
	ResolvConf, Hosts string
	// Dial connects to a server; net.Dialer's by default. A connection that is no
	// net.PacketConn gets questions as over TCP.
	Dial func(ctx context.Context, network, address string) (net.Conn, error)
}

// Type is which addresses are asked for.
type Type uint8

// Types.
const (
	IPv4 Type = iota
	IPv6
)

func (t Type) record() dnsmessage.Type {
	if t == IPv6 {
		return dnsmessage.TypeAAAA
	}
	return dnsmessage.TypeA
}

func (t Type) holds(a netip.Addr) bool { return a.Unmap().Is4() == (t == IPv4) }

// Answer is what a name stands for.
type Answer struct {
	// Addrs are in the order of the server; none if the name doesn't exist or has
	// no address of the type.
	Addrs []netip.Addr
	// TTL is the shortest of all records that led to Addrs, in whole seconds; 0 if
	// there is none, as for the hosts file.
	TTL time.Duration
}

// Resolver resolves names. It keeps no answers. It is safe for concurrent use.
type Resolver struct {
	cfg    Config
	sys    system
	dial   func(ctx context.Context, network, address string) (net.Conn, error)
	turn   atomic.Uint32 // for Rotate
	served health
	// places bounds questions under way: each has a socket.
	places chan struct{}
	// interfaces is net.InterfaceAddrs but in tests.
	interfaces func() ([]net.Addr, error)
}

// New returns a Resolver.
func New(cfg Config, env Environment) *Resolver {
	r := &Resolver{cfg: cfg, dial: env.Dial, interfaces: net.InterfaceAddrs, places: make(chan struct{}, maxQuestions)}
	r.sys.conf.path, r.sys.hosts.path = env.ResolvConf, env.Hosts
	if r.sys.conf.path == "" {
		r.sys.conf.path = "/etc/resolv.conf"
	}
	if r.sys.hosts.path == "" {
		r.sys.hosts.path = "/etc/hosts"
	}
	if r.dial == nil {
		r.dial = (&net.Dialer{}).DialContext
	}
	return r
}

// maxQuestions is how many names a Resolver asks for at once; others wait.
const maxQuestions = 256

// errName is why a name is asked of nobody.
var errName = errors.New("is no domain name")

// Lookup asks for the addresses of name: the hosts file, then DNS with the
// search list. The error is why nobody knows; a name that doesn't exist is an
// Answer without addresses. An IP address stands for itself.
func (r *Resolver) Lookup(ctx context.Context, name string, t Type) (Answer, error) {
	if a, err := netip.ParseAddr(name); err == nil {
		if t.holds(a) {
			return Answer{Addrs: []netip.Addr{a.Unmap()}}, nil
		}
		return Answer{}, nil
	}
	if r.cfg.Routable && !r.routable(t) {
		return Answer{}, nil
	}
	conf, hosts := r.sys.read(time.Now())
	plain := strings.ToLower(strings.TrimSuffix(name, "."))
	if as, ok := hosts.names[plain]; ok {
		var out Answer
		for _, a := range as {
			if t.holds(a) {
				out.Addrs = append(out.Addrs, a)
			}
		}
		if len(out.Addrs) > 0 {
			return out, nil
		}
	}
	if plain == "localhost" || strings.HasSuffix(plain, ".localhost") { // RFC 6761, section 6.3
		return Answer{Addrs: []netip.Addr{map[Type]netip.Addr{IPv4: netip.AddrFrom4([4]byte{127, 0, 0, 1}), IPv6: netip.IPv6Loopback()}[t]}}, nil
	}
	names := conf.candidates(name, r.cfg.NoSearch)
	if len(names) == 0 {
		return Answer{}, fmt.Errorf("%q %w", name, errName)
	}
	select {
	case r.places <- struct{}{}:
		defer func() { <-r.places }()
	case <-ctx.Done():
		return Answer{}, fmt.Errorf("too many names are being resolved: %w", context.Cause(ctx))
	}
	var failed error
	for i, n := range names {
		a, err := r.ask(ctx, conf, n, t)
		switch {
		case err == nil && len(a.Addrs) > 0:
			return a, nil
		case err != nil && failed == nil:
			failed = err
		}
		if over(ctx) {
			if i < len(names)-1 && failed == nil { // it may have one of the others
				failed = fmt.Errorf("no time was left to ask for %s: %w", names[i+1], cmp.Or(context.Cause(ctx), context.DeadlineExceeded))
			}
			break
		}
	}
	return Answer{}, failed
}

// over tells whether ctx has ended, or should have.
func over(ctx context.Context) bool {
	d, ok := ctx.Deadline()
	return ctx.Err() != nil || ok && !time.Now().Before(d)
}

// routable tells whether an interface other than loopback has an address of t.
func (r *Resolver) routable(t Type) bool {
	as, err := r.interfaces()
	if err != nil {
		return true // nobody knows
	}
	for _, a := range as {
		p, err := netip.ParsePrefix(a.String())
		if err == nil && !p.Addr().IsLoopback() && t.holds(p.Addr()) {
			return true
		}
	}
	return false
}

// health remembers which servers failed to answer lately.
type health struct {
	mu   sync.Mutex
	last map[netip.AddrPort]time.Time
}

// avoid is how long a server that failed is asked after the others.
const avoid = 5 * time.Second

func (h *health) note(s netip.AddrPort, ok bool) {
	h.mu.Lock()
	defer h.mu.Unlock()
	if ok {
		delete(h.last, s)
		return
	}
	if h.last == nil || len(h.last) > 64 {
		h.last = map[netip.AddrPort]time.Time{}
	}
	h.last[s] = time.Now()
}

// order returns the servers of conf in the order to ask them.
func (r *Resolver) order(conf *config) []netip.AddrPort {
	all := conf.servers
	if len(r.cfg.Servers) > 0 && (!r.cfg.Fallback || conf.defaulted) {
		all = r.cfg.Servers
	}
	first := 0
	if r.cfg.Rotate || conf.rotate {
		first = int(r.turn.Add(1)-1) % len(all)
	}
	out, late := make([]netip.AddrPort, 0, len(all)), []netip.AddrPort(nil)
	r.served.mu.Lock()
	defer r.served.mu.Unlock()
	for i := range all {
		s := all[(first+i)%len(all)]
		if t, ok := r.served.last[s]; ok && time.Since(t) < avoid {
			late = append(late, s)
			continue
		}
		out = append(out, s)
	}
	return append(out, late...)
}

// ask asks the servers for one name until one knows.
func (r *Resolver) ask(ctx context.Context, conf *config, name string, t Type) (Answer, error) {
	n, err := dnsmessage.NewName(name)
	if err != nil {
		return Answer{}, fmt.Errorf("%q %w", name, errName)
	}
	q := dnsmessage.Question{Name: n, Type: t.record(), Class: dnsmessage.ClassINET}
	attempts := conf.attempts
	if r.cfg.Attempts > 0 {
		attempts = r.cfg.Attempts
	}
	var failed error
	for range attempts {
		for _, s := range r.order(conf) {
			m, err := r.exchange(ctx, conf, s, q)
			if !over(ctx) {
				r.served.note(s, err == nil)
			}
			if err == nil {
				return m.Answer, nil
			}
			failed = fmt.Errorf("asking %s for %s %s: %w", s, strings.TrimPrefix(q.Type.String(), "Type"), name, err)
			if errors.Is(err, errName) || over(ctx) {
				return Answer{}, failed
			}
		}
	}
	return Answer{}, failed
}

// timeout is how long one server has for one question.
func (r *Resolver) timeout(conf *config) time.Duration {
	if r.cfg.Timeout > 0 {
		return r.cfg.Timeout
	}
	return conf.timeout
}

// defaultSearch is the domain of this host's name, which stands for a search
// list that isn't there.
func defaultSearch() []string {
	h, err := os.Hostname()
	if err != nil {
		return nil
	}
	if i := strings.IndexByte(h, '.'); i >= 0 && i < len(h)-1 {
		return []string{rooted(h[i+1:])}
	}
	return nil
}
