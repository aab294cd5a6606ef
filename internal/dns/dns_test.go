package dns

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"strings"
	"testing"
	"time"

	"golang.org/x/net/dns/dnsmessage"

	"github.com/fairlead-mesh/fairlead/internal/sweep"
)

const noSearch = "search .\n"

func TestAnswersAreReadWithTheShortestTTL(t *testing.T) {
	s := serve(t, zone(
		"a.test. 30 A 10.0.0.1", "a.test. 20 A 10.0.0.2", "a.test. 5 TXT x", "a.test. 9 AAAA fd00::1",
		"web.test. 60 CNAME edge.test.", "edge.test. 7 CNAME node.test.", "node.test. 300 A 10.0.0.3",
		"MIXED.test. 8 CNAME Node.Test.",
		"zero.test. 0 A 10.0.0.4",
		"huge.test. 4294967295 A 10.0.0.5", "long.test. 2147483647 A 10.0.0.6",
		"dangling.test. 60 CNAME gone.test.",
		"loop.test. 60 CNAME pool.test.", "pool.test. 60 CNAME loop.test.",
		"self.test. 60 CNAME self.test.",
	))
	r := New(Config{}, files(t, noSearch, "", s.addr))
	for _, tc := range []struct {
		name string
		typ  Type
		want string
	}{
		{"a.test", IPv4, "10.0.0.1 10.0.0.2 20s"},
		{"A.TEST.", IPv4, "10.0.0.1 10.0.0.2 20s"},
		{"a.test", IPv6, "fd00::1 9s"},
		{"web.test", IPv4, "10.0.0.3 7s"},
		{"mixed.test", IPv4, "10.0.0.3 8s"},
		{"web.test", IPv6, "0s"},
		{"zero.test", IPv4, "10.0.0.4 0s"},
		{"huge.test", IPv4, "10.0.0.5 0s"}, // RFC 2181: the first bit means 0
		{"long.test", IPv4, "10.0.0.6 168h0m0s"},
		{"dangling.test", IPv4, "0s"},
		{"gone.test", IPv4, "0s"},
		{"10.9.8.7", IPv4, "10.9.8.7 0s"},
		{"10.9.8.7", IPv6, "0s"},
		{"localhost", IPv6, "::1 0s"},
		{"web.localhost", IPv4, "127.0.0.1 0s"},
		{"", IPv4, `error: "" is no domain name`},
		{"a..test", IPv4, `error: "a..test" is no domain name`},
	} {
		if got := lookup(t, r, tc.name, tc.typ); got != tc.want {
			t.Errorf("%s %v: %s, want %s", tc.name, tc.typ, got, tc.want)
		}
	}
	for _, name := range []string{"loop.test", "self.test"} {
		if got := lookup(t, r, name, IPv4); !strings.Contains(got, "circle") {
			t.Errorf("%s: %s", name, got)
		}
	}
	if got := lookup(t, r, strings.Repeat("x", 64)+".test", IPv4); !strings.Contains(got, "is no domain name") {
		t.Errorf("a label of 64 bytes: %s", got)
	}
}

func TestNamesAreSearchedAsResolvConfSays(t *testing.T) {
	s := serve(t, zone("web.app.svc.cluster.local. 5 A 10.0.0.1", "web.other.svc.cluster.local. 5 A 10.0.0.2", "www.example.com. 5 A 10.0.0.3"))
	for _, tc := range []struct{ name, conf, ask, want, asked string }{
		{
			"a short name in a pod", "search app.svc.cluster.local svc.cluster.local cluster.local\noptions ndots:5\n", "web", "10.0.0.1 5s",
			"udp A web.app.svc.cluster.local.",
		},
		{
			"a service of another namespace", "search app.svc.cluster.local svc.cluster.local cluster.local\noptions ndots:5\n", "web.other", "10.0.0.2 5s",
			"udp A web.other.app.svc.cluster.local., udp A web.other.svc.cluster.local.",
		},
		{
			"a name of the world in a pod", "search app.svc.cluster.local svc.cluster.local\noptions ndots:5\n", "www.example.com", "10.0.0.3 5s",
			"udp A www.example.com.app.svc.cluster.local., udp A www.example.com.svc.cluster.local., udp A www.example.com.",
		},
		{"a dot at the end ends the search", "search app.svc.cluster.local\noptions ndots:5\n", "www.example.com.", "10.0.0.3 5s", "udp A www.example.com."},
		{"enough dots come first", "search app.svc.cluster.local\n", "www.example.com", "10.0.0.3 5s", "udp A www.example.com."},
		{"domain is a search list of one", "domain app.svc.cluster.local\noptions ndots:2\n", "web", "10.0.0.1 5s", "udp A web.app.svc.cluster.local."},
		{"the last list counts", "domain nowhere\nsearch app.svc.cluster.local\n", "web", "10.0.0.1 5s", "udp A web.app.svc.cluster.local."},
		{"over TCP", noSearch + "options use-vc\n", "www.example.com", "10.0.0.3 5s", "tcp A www.example.com."},
	} {
		t.Run(tc.name, func(t *testing.T) {
			s.mu.Lock()
			s.asked = nil
			s.mu.Unlock()
			if got := lookup(t, New(Config{}, files(t, tc.conf, "", s.addr)), tc.ask, IPv4); got != tc.want || s.questions() != tc.asked {
				t.Errorf("%s, asked %s\nwant %s, asked %s", got, s.questions(), tc.want, tc.asked)
			}
		})
	}
}

func TestResolvConfIsReadAsItsManualSays(t *testing.T) {
	c := parseConfig([]byte("# comment\n; another\nnameserver 10.0.0.1\nnameserver fe80::1%eth0\nnameserver bad\nnameserver 10.0.0.3\nnameserver 10.0.0.4\n" +
		"search a b. \noptions timeout:3 attempts:4 rotate ndots:99 edns0\noptions attempts:x timeout:0\nlookup file\n"))
	if got := fmt.Sprint(c.servers, c.search, c.ndots, c.timeout, c.attempts, c.rotate, c.tcp, c.defaulted); got !=
		"[10.0.0.1:53 [fe80::1%eth0]:53 10.0.0.3:53] [a. b.] 15 1s 4 true false false" {
		t.Error(got)
	}
	c = parseConfig(nil)
	if got := fmt.Sprint(c.servers, c.ndots, c.timeout, c.attempts, c.rotate, c.defaulted); got != "[127.0.0.1:53 [::1]:53] 1 5s 2 false true" {
		t.Error(got)
	}
}

func TestTheHostsFileComesFirst(t *testing.T) {
	s := serve(t, zone("other.test. 5 A 10.0.0.2", "both.test. 5 AAAA fd00::9"))
	r := New(Config{}, files(t, noSearch, "10.0.0.1 Own.test own  # comment\n::1 own.test\n10.0.0.7 own.test\n10.0.0.8 both.test\nnonsense x\n", s.addr))
	for _, tc := range []struct {
		name string
		typ  Type
		want string
	}{
		{"own.test", IPv4, "10.0.0.1 10.0.0.7 0s"},
		{"OWN.test.", IPv6, "::1 0s"},
		{"own", IPv4, "10.0.0.1 0s"},
		{"other.test", IPv4, "10.0.0.2 5s"},
		{"both.test", IPv6, "fd00::9 5s"}, // DNS may know what the file doesn't
	} {
		if got := lookup(t, r, tc.name, tc.typ); got != tc.want {
			t.Errorf("%s: %s, want %s", tc.name, got, tc.want)
		}
	}
}

func TestChangedFilesAreReadAgain(t *testing.T) {
	a, b := serve(t, zone("x.test. 5 A 10.0.0.1")), serve(t, zone("x.test. 5 A 10.0.0.2"))
	env := files(t, "", "", a.addr, b.addr)
	write(t, env.ResolvConf, "nameserver 192.0.2.1\n")
	r := New(Config{}, env)
	later := func() { r.sys.mu.Lock(); r.sys.checked = time.Now().Add(-time.Hour); r.sys.mu.Unlock() }
	step := func(what, want string) {
		t.Helper()
		if got := lookup(t, r, "x.test", IPv4); got != want {
			t.Errorf("%s: %s, want %s", what, got, want)
		}
	}
	step("at first", "10.0.0.1 5s")
	write(t, env.ResolvConf, "nameserver 192.0.2.2 \n")
	step("not looked at yet", "10.0.0.1 5s")
	later()
	step("another server", "10.0.0.2 5s")
	write(t, env.Hosts, "10.0.0.3 x.test\n")
	later()
	step("a new line in hosts", "10.0.0.3 0s")
	if err := os.Remove(env.Hosts); err != nil {
		t.Fatal(err)
	}
	later()
	step("a file that is gone stays in force", "10.0.0.3 0s")
}

func TestAnswersThatWereCutOffAreAskedForOverTCP(t *testing.T) {
	many := make([]string, 200)
	for i := range many {
		many[i] = fmt.Sprintf("big.test. 60 A 10.1.%d.%d", i/100, i%100+1)
	}
	s := serve(t, func(q *dnsmessage.Message, network string) []byte {
		if network == "udp" {
			q.Truncated = true
			return reply(q, dnsmessage.RCodeSuccess, many[:3]...)
		}
		return reply(q, dnsmessage.RCodeSuccess, many...)
	})
	a, err := New(Config{}, files(t, noSearch, "", s.addr)).Lookup(t.Context(), "big.test", IPv4)
	if err != nil || len(a.Addrs) != 200 || s.questions() != "udp A big.test., tcp A big.test." {
		t.Errorf("%d addresses, %v, asked %s", len(a.Addrs), err, s.questions())
	}
	never := serve(t, func(q *dnsmessage.Message, _ string) []byte {
		q.Truncated = true
		return reply(q, dnsmessage.RCodeSuccess)
	})
	if got := lookup(t, New(Config{Attempts: 1}, files(t, noSearch, "", never.addr)), "x.test", IPv4); !strings.Contains(got, "cut off over TCP, too") {
		t.Error(got)
	}
}

func TestHugeAnswers(t *testing.T) {
	s := serve(t, func(q *dnsmessage.Message, network string) []byte {
		if network == "udp" {
			q.Truncated = true
			return reply(q, dnsmessage.RCodeSuccess)
		}
		b := reply(q, dnsmessage.RCodeSuccess)
		// As many addresses as fit into one message, each 16 bytes.
		n := (65535 - len(b)) / 16
		b[6], b[7] = byte(n>>8), byte(n)
		for i := range n {
			b = append(b, 0xc0, 12, 0, 1, 0, 1, 0, 0, 0, 9, 0, 4, 10, 2, byte(i>>8), byte(i))
		}
		return b
	})
	a, err := New(Config{}, files(t, noSearch, "", s.addr)).Lookup(t.Context(), "x.test", IPv4)
	if err != nil || len(a.Addrs) < 4000 || a.TTL != 9*time.Second {
		t.Errorf("%d addresses, %v, %v", len(a.Addrs), a.TTL, err)
	}
}

func TestAnswersOfStrangersArePassedOver(t *testing.T) {
	evil := func(q *dnsmessage.Message, change func(m *dnsmessage.Message)) []byte {
		m := *q
		m.Questions = append([]dnsmessage.Question(nil), q.Questions...)
		change(&m)
		return reply(&m, dnsmessage.RCodeSuccess, m.Questions[0].Name.String()+" 60 A 6.6.6.6")
	}
	s := serveSpoofed(t, func(q *dnsmessage.Message, _ string) []byte {
		return reply(q, dnsmessage.RCodeSuccess, "x.test. 9 A 10.0.0.1")
	}, func(q *dnsmessage.Message) [][]byte { // right in all but the socket it comes from
		return [][]byte{evil(q, func(*dnsmessage.Message) {})}
	})
	if got := lookup(t, New(Config{}, files(t, noSearch, "", s.addr)), "x.test", IPv4); got != "10.0.0.1 9s" {
		t.Errorf("another socket: %s", got)
	}

	q := dnsmessage.Question{Name: dnsmessage.MustNewName("x.test."), Type: dnsmessage.TypeA, Class: dnsmessage.ClassINET}
	ask := &dnsmessage.Message{Header: dnsmessage.Header{ID: 7}, Questions: []dnsmessage.Question{q}}
	for name, change := range map[string]func(m *dnsmessage.Message){
		"another id":       func(m *dnsmessage.Message) { m.ID++ },
		"another name":     func(m *dnsmessage.Message) { m.Questions[0].Name = dnsmessage.MustNewName("y.test.") },
		"another type":     func(m *dnsmessage.Message) { m.Questions[0].Type = dnsmessage.TypeAAAA },
		"another class":    func(m *dnsmessage.Message) { m.Questions[0].Class = dnsmessage.ClassCHAOS },
		"nothing is wrong": nil,
	} {
		if change == nil {
			change = func(*dnsmessage.Message) {}
		}
		_, err := parse(evil(ask, change), 7, q)
		if want := name != "nothing is wrong"; errors.Is(err, errStranger) != want {
			t.Errorf("%s: %v", name, err)
		}
	}
	b, _ := ask.Pack()
	if _, err := parse(b, 7, q); !errors.Is(err, errStranger) {
		t.Errorf("a question: %v", err)
	}
	// An address of another name is none of ours.
	b = reply(ask, dnsmessage.RCodeSuccess, "x.test. 60 CNAME y.test.", "bank.test. 60 A 6.6.6.6")
	if m, err := parse(b, 7, q); err != nil || len(m.Addrs) != 0 {
		t.Errorf("%v, %v", m, err)
	}
}

func TestServersThatFailAreFollowedByTheNext(t *testing.T) {
	good := serve(t, zone("x.test. 9 A 10.0.0.1"))
	code := func(c dnsmessage.RCode) func(q *dnsmessage.Message, _ string) []byte {
		return func(q *dnsmessage.Message, _ string) []byte { return reply(q, c) }
	}
	for name, bad := range map[string]func(q *dnsmessage.Message, _ string) []byte{
		"SERVFAIL": code(dnsmessage.RCodeServerFailure), "REFUSED": code(dnsmessage.RCodeRefused), "NOTIMP": code(dnsmessage.RCodeNotImplemented),
		"silence": func(*dnsmessage.Message, string) []byte { return nil },
		"garbage": func(q *dnsmessage.Message, _ string) []byte { return reply(q, 0, "x.test. 9 A 6.6.6.6")[:38] },
		"a referral": func(q *dnsmessage.Message, _ string) []byte {
			b := reply(q, 0)
			b[3] &^= 0x80 // no recursion
			return b
		},
		"a circle": zone("x.test. 9 CNAME x.test."),
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			r := New(Config{Timeout: time.Second}, files(t, noSearch, "", serve(t, bad).addr, good.addr))
			for range 2 {
				if got := lookup(t, r, "x.test", IPv4); got != "10.0.0.1 9s" {
					t.Error(got)
				}
			}
		})
	}
}

func TestAServerThatFailedIsAskedLastForAWhile(t *testing.T) {
	bad, good := serve(t, func(*dnsmessage.Message, string) []byte { return nil }), serve(t, zone("x.test. 9 A 10.0.0.1"))
	r := New(Config{Timeout: time.Second}, files(t, noSearch, "", bad.addr, good.addr))
	for range 5 {
		if got := lookup(t, r, "x.test", IPv4); got != "10.0.0.1 9s" {
			t.Fatal(got)
		}
	}
	if got := strings.Count(bad.questions(), "x.test"); got != 1 {
		t.Errorf("it was asked %d times", got)
	}
	r.served.mu.Lock()
	for s := range r.served.last {
		r.served.last[s] = time.Now().Add(-avoid)
	}
	r.served.mu.Unlock()
	lookup(t, r, "x.test", IPv4)
	if got := strings.Count(bad.questions(), "x.test"); got != 2 {
		t.Errorf("later it was asked %d times", got)
	}
}

func TestFailuresAreNoAnswers(t *testing.T) {
	s := serve(t, func(q *dnsmessage.Message, _ string) []byte {
		if strings.HasPrefix(q.Questions[0].Name.String(), "x.fails.") {
			return reply(q, dnsmessage.RCodeServerFailure)
		}
		return reply(q, dnsmessage.RCodeNameError)
	})
	if got := lookup(t, New(Config{}, files(t, "search fails. empty.\noptions attempts:3\n", "", s.addr)), "x", IPv4); !strings.Contains(got, "asking 192.0.2.1:53 for A x.fails.: the server answers ServerFailure") {
		t.Error(got)
	}
	if got := strings.Count(s.questions(), "x.fails."); got != 3 {
		t.Errorf("asked %d times: %s", got, s.questions())
	}
	if !strings.HasSuffix(s.questions(), "x.empty., udp A x.") {
		t.Errorf("the search ended: %s", s.questions())
	}
}

func TestConfiguredServers(t *testing.T) {
	system, own, second := serve(t, zone("x.test. 1 A 10.0.0.1")), serve(t, zone("x.test. 2 A 10.0.0.2")), serve(t, zone("x.test. 3 A 10.0.0.3"))
	servers := []netip.AddrPort{own.addr, second.addr}
	with, without := files(t, "search deep.test\n", "", system.addr), files(t, "search deep.test\n", "")
	for _, tc := range []struct {
		name string
		cfg  Config
		env  Environment
		ask  string
		want string
	}{
		{"instead of the system's", Config{Servers: servers}, with, "x.test", "10.0.0.2 2s"},
		{"as a fallback", Config{Servers: servers, Fallback: true}, with, "x.test", "10.0.0.1 1s"},
		{"as a fallback without a server", Config{Servers: servers, Fallback: true}, without, "x.test", "10.0.0.2 2s"},
		{"no search", Config{Servers: servers, NoSearch: true}, with, "x", "0s"},
	} {
		if got := lookup(t, New(tc.cfg, tc.env), tc.ask, IPv4); got != tc.want {
			t.Errorf("%s: %s, want %s", tc.name, got, tc.want)
		}
	}
	r, got := New(Config{Servers: servers, Rotate: true}, with), map[string]int{}
	for range 4 {
		got[lookup(t, r, "x.test", IPv4)]++
	}
	if got["10.0.0.2 2s"] != 2 || got["10.0.0.3 3s"] != 2 {
		t.Errorf("rotated: %v", got)
	}
	tcp := New(Config{Servers: servers, TCP: true}, with)
	lookup(t, tcp, "x.test", IPv4)
	if !strings.HasSuffix(own.questions(), "tcp A x.test.") {
		t.Errorf("asked %s", own.questions())
	}
	a, b := Config{Servers: servers}, Config{Servers: servers[:1]}
	if a.Key() == b.Key() || a.Key() != (&Config{Servers: servers}).Key() {
		t.Error("keys don't tell configurations apart")
	}
}

func TestEDNSIsLeftOutForServersThatDontKnowIt(t *testing.T) {
	s := serve(t, func(q *dnsmessage.Message, _ string) []byte {
		if len(q.Additionals) > 0 {
			if q.Additionals[0].Header.Class != 2000 {
				t.Errorf("payload size %d", q.Additionals[0].Header.Class)
			}
			return reply(q, dnsmessage.RCodeFormatError)
		}
		return reply(q, dnsmessage.RCodeSuccess, "x.test. 9 A 10.0.0.1")
	})
	if got := lookup(t, New(Config{PayloadSize: 2000}, files(t, noSearch, "", s.addr)), "x.test", IPv4); got != "10.0.0.1 9s" {
		t.Error(got)
	}
}

func TestFamiliesWithoutAnAddressAreLeftOut(t *testing.T) {
	s := serve(t, zone("x.test. 9 A 10.0.0.1", "x.test. 9 AAAA fd00::1"))
	r := New(Config{Routable: true}, files(t, noSearch, "", s.addr))
	r.interfaces = func() ([]net.Addr, error) {
		return []net.Addr{
			&net.IPNet{IP: net.IPv4(10, 0, 0, 9), Mask: net.CIDRMask(8, 32)},
			&net.IPNet{IP: net.IPv6loopback, Mask: net.CIDRMask(128, 128)},
		}, nil
	}
	if v4, v6 := lookup(t, r, "x.test", IPv4), lookup(t, r, "x.test", IPv6); v4 != "10.0.0.1 9s" || v6 != "0s" {
		t.Errorf("%s and %s", v4, v6)
	}
}

func TestALookupEndsWithItsContext(t *testing.T) {
	s := serve(t, func(*dnsmessage.Message, string) []byte { return nil })
	r := New(Config{Timeout: time.Minute}, files(t, noSearch, "", s.addr))
	ctx, cancel := context.WithTimeout(t.Context(), 50*time.Millisecond)
	defer cancel()
	begin := time.Now()
	if _, err := r.Lookup(ctx, "x.test", IPv4); err == nil || time.Since(begin) > 20*time.Second {
		t.Errorf("%v after %v", err, time.Since(begin))
	}
	if len(r.served.last) != 0 {
		t.Error("the server is blamed for it")
	}
}

// lastAnswer is a connection whose first answer comes as the time is over.
type lastAnswer struct {
	*net.UDPConn
	end func()
}

func (c *lastAnswer) Read(p []byte) (int, error) {
	defer c.end()
	return c.UDPConn.Read(p)
}

// The search list was not asked to its end.
func TestALookupThatRunsOutOfTimeIsNoAnswer(t *testing.T) {
	s := serve(t, zone("web.b.test. 5 A 10.0.0.1"))
	env := files(t, "search a.test b.test\n", "", s.addr)
	ctx, cancel := context.WithCancel(t.Context())
	dial := env.Dial
	env.Dial = func(ctx context.Context, network, address string) (net.Conn, error) {
		c, err := dial(ctx, network, address)
		if err != nil {
			return nil, err
		}
		return &lastAnswer{c.(*net.UDPConn), cancel}, nil
	}
	if a, err := New(Config{}, env).Lookup(ctx, "web", IPv4); !errors.Is(err, context.Canceled) {
		t.Errorf("%v, %v", a, err)
	}
}

// FuzzAnswer: no answer makes parse panic or run for long, and what it accepts
// has addresses of the right kind only, and a TTL within bounds.
func FuzzAnswer(f *testing.F) {
	q := dnsmessage.Question{Name: dnsmessage.MustNewName("x.test."), Type: dnsmessage.TypeA, Class: dnsmessage.ClassINET}
	ask := &dnsmessage.Message{Header: dnsmessage.Header{ID: 7}, Questions: []dnsmessage.Question{q}}
	f.Add(reply(ask, 0, "x.test. 9 A 10.0.0.1", "x.test. 9 TXT a"))
	f.Add(reply(ask, 0, "x.test. 9 CNAME y.test.", "y.test. 8 A 10.0.0.1"))
	f.Add(reply(ask, 0, "x.test. 9 CNAME x.test."))
	f.Add(reply(ask, 3))
	f.Add([]byte{0, 7, 0x80, 0, 0, 1, 0xff, 0xff, 0, 0, 0, 0, 1, 'x', 4, 't', 'e', 's', 't', 0, 0, 1, 0, 1, 0xc0, 12, 0, 5})
	f.Fuzz(sweep.Around(f, func(t *testing.T, b []byte) {
		for _, typ := range []dnsmessage.Type{dnsmessage.TypeA, dnsmessage.TypeAAAA} {
			q.Type = typ
			m, err := parse(b, 7, q)
			if (m == nil) == (err == nil) {
				t.Fatalf("%v, %v", m, err)
			}
			if err != nil {
				continue
			}
			for _, a := range m.Addrs {
				if (typ == dnsmessage.TypeA) != a.Is4() {
					t.Fatalf("%v for %v", a, typ)
				}
			}
			if m.TTL < 0 || m.TTL > maxTTL*time.Second || len(m.Addrs) == 0 && m.TTL != 0 {
				t.Fatalf("TTL %v of %d addresses", m.TTL, len(m.Addrs))
			}
		}
	}))
}

// FuzzFiles: neither file makes the resolver panic, and what it asks for are names.
func FuzzFiles(f *testing.F) {
	f.Add([]byte("search a b\noptions ndots:5\nnameserver 10.0.0.1\n"), "x.y")
	f.Add([]byte("10.0.0.1 a b # c"), ".")
	f.Fuzz(func(t *testing.T, b []byte, name string) {
		parseHosts(b)
		c := parseConfig(b)
		if len(c.servers) == 0 || c.attempts < 1 || c.timeout < time.Second {
			t.Fatalf("%+v", c)
		}
		for _, n := range c.candidates(name, false) {
			if !strings.HasSuffix(n, ".") || len(n) > maxName {
				t.Fatalf("%q of %q", n, name)
			}
		}
	})
}
