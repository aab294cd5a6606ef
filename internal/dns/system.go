package dns

import (
	"bytes"
	"net/netip"
	"os"
	"strconv"
	"strings"
	"sync"
	"time"
)

// config is what resolv.conf says.
type config struct {
	servers []netip.AddrPort
	// defaulted: the file names no server.
	defaulted   bool
	search      []string // each with a dot at its end
	ndots       int
	timeout     time.Duration
	attempts    int
	rotate, tcp bool
}

// hostsTable is what the hosts file says, by lower-case name without a dot at the
// end.
type hostsTable struct{ names map[string][]netip.Addr }

// recheck is how often the files are looked at, while names are resolved.
const recheck = 5 * time.Second

// maxFile bounds what is read of either file.
const maxFile = 8 << 20

// system keeps what the files say, and reads them again when they change.
type system struct {
	mu      sync.Mutex
	checked time.Time
	conf    watched[config]
	hosts   watched[hostsTable]
}

type watched[T any] struct {
	path string
	mod  time.Time
	size int64
	v    *T
}

// look reads the file again if it is another one than before. A file that can't
// be read is as an empty one at the start, and later as it was.
func (w *watched[T]) look(parse func([]byte) *T) {
	fi, err := os.Stat(w.path)
	if err == nil && w.v != nil && fi.ModTime().Equal(w.mod) && fi.Size() == w.size {
		return
	}
	var b []byte
	if err == nil && fi.Size() <= maxFile {
		b, err = os.ReadFile(w.path)
	}
	if err == nil {
		w.mod, w.size = fi.ModTime(), fi.Size()
	}
	if err == nil || w.v == nil {
		w.v = parse(b)
	}
}

func (s *system) read(now time.Time) (*config, *hostsTable) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.conf.v == nil || now.Sub(s.checked) >= recheck {
		s.checked = now
		s.conf.look(parseConfig)
		s.hosts.look(parseHosts)
	}
	return s.conf.v, s.hosts.v
}

// parseConfig reads resolv.conf (resolv.conf(5)) as the system's resolver does.
func parseConfig(b []byte) *config {
	c := &config{ndots: 1, timeout: 5 * time.Second, attempts: 2}
	searched := false
	for line := range bytes.Lines(b) {
		if line[0] == ';' || line[0] == '#' {
			continue
		}
		f := strings.Fields(string(line))
		if len(f) < 2 {
			continue
		}
		switch f[0] {
		case "nameserver":
			if a, err := netip.ParseAddr(f[1]); err == nil && len(c.servers) < 3 {
				c.servers = append(c.servers, netip.AddrPortFrom(a, 53))
			}
		case "domain":
			c.search, searched = []string{rooted(f[1])}, true
		case "search":
			c.search, searched = nil, true
			for _, d := range f[1:] {
				if d = rooted(d); d != "." {
					c.search = append(c.search, d)
				}
			}
		case "options":
			for _, o := range f[1:] {
				c.option(o)
			}
		}
	}
	if len(c.servers) == 0 {
		c.defaulted = true
		c.servers = []netip.AddrPort{netip.AddrPortFrom(netip.AddrFrom4([4]byte{127, 0, 0, 1}), 53), netip.AddrPortFrom(netip.IPv6Loopback(), 53)}
	}
	if !searched {
		c.search = defaultSearch()
	}
	return c
}

func (c *config) option(o string) {
	name, v, _ := strings.Cut(o, ":")
	n, err := strconv.Atoi(v)
	switch name {
	case "ndots":
		if err == nil {
			c.ndots = min(max(n, 0), 15)
		}
	case "timeout":
		if err == nil {
			c.timeout = time.Duration(min(max(n, 1), 30)) * time.Second
		}
	case "attempts":
		if err == nil {
			c.attempts = min(max(n, 1), 5)
		}
	case "rotate":
		c.rotate = true
	case "use-vc", "usevc", "tcp":
		c.tcp = true
	}
}

func rooted(s string) string {
	if strings.HasSuffix(s, ".") {
		return s
	}
	return s + "."
}

// maxName is the longest name with the dot at its end.
const maxName = 254

// candidates are the names to ask for, in order, each with a dot at its end.
func (c *config) candidates(name string, noSearch bool) []string {
	if name == "" || name == "." || strings.HasPrefix(name, ".") || strings.Contains(name, "..") || len(rooted(name)) > maxName {
		return nil
	}
	if strings.HasSuffix(name, ".") {
		return []string{name}
	}
	dots := strings.Count(name, ".")
	name = rooted(name)
	if noSearch {
		return []string{name}
	}
	out := make([]string, 0, 1+len(c.search))
	if dots >= c.ndots {
		out = append(out, name)
	}
	for _, d := range c.search {
		if n := name + d; len(n) <= maxName {
			out = append(out, n)
		}
	}
	if dots < c.ndots {
		out = append(out, name)
	}
	return out
}

// parseHosts reads the hosts file (hosts(5)).
func parseHosts(b []byte) *hostsTable {
	t := &hostsTable{names: map[string][]netip.Addr{}}
	for line := range bytes.Lines(b) {
		line, _, _ = bytes.Cut(line, []byte("#"))
		f := strings.Fields(string(line))
		if len(f) < 2 {
			continue
		}
		a, err := netip.ParseAddr(f[0])
		if err != nil {
			continue
		}
		for _, n := range f[1:] {
			n = strings.ToLower(strings.TrimSuffix(n, "."))
			t.names[n] = append(t.names[n], a.Unmap())
		}
	}
	return t
}
