package dns

import (
	"context"
	"encoding/binary"
	"fmt"
	"io"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"go.uber.org/goleak"
	"golang.org/x/net/dns/dnsmessage"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// server answers over UDP and TCP on one loopback address.
type server struct {
	addr netip.AddrPort

	mu     sync.Mutex
	asked  []string // "udp A name." in order
	answer func(q *dnsmessage.Message, network string) []byte
	// spoof, if not nil, gives packets that another socket sends first.
	spoof func(q *dnsmessage.Message) [][]byte
	other net.PacketConn
}

func serve(t *testing.T, answer func(q *dnsmessage.Message, network string) []byte) *server {
	t.Helper()
	return serveSpoofed(t, answer, nil)
}

func serveSpoofed(t *testing.T, answer func(q *dnsmessage.Message, network string) []byte, spoof func(q *dnsmessage.Message) [][]byte) *server {
	t.Helper()
	s := &server{answer: answer, spoof: spoof}
	var wg sync.WaitGroup
	var u net.PacketConn
	var l net.Listener
	for range 20 { // both on one port
		var err error
		if u, err = net.ListenPacket("udp", "127.0.0.1:0"); err != nil {
			t.Fatal(err)
		}
		if l, err = net.Listen("tcp", u.LocalAddr().String()); err == nil {
			break
		}
		_ = u.Close()
	}
	if l == nil {
		t.Fatal("no port is free for both UDP and TCP")
	}
	s.addr = netip.MustParseAddrPort(u.LocalAddr().String())
	o, err := net.ListenPacket("udp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	s.other = o
	wg.Go(func() { s.packets(u) })
	wg.Go(func() {
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			wg.Go(func() { s.stream(c) })
		}
	})
	t.Cleanup(func() { _ = u.Close(); _ = l.Close(); _ = o.Close(); wg.Wait() })
	return s
}

func (s *server) packets(u net.PacketConn) {
	b := make([]byte, 4096)
	for {
		n, from, err := u.ReadFrom(b)
		if err != nil {
			return
		}
		q := s.note(b[:n], "udp")
		if q == nil {
			continue
		}
		if s.spoof != nil {
			for _, p := range s.spoof(q) {
				_, _ = s.other.WriteTo(p, from)
			}
		}
		if out := s.answer(q, "udp"); out != nil {
			_, _ = u.WriteTo(out, from)
		}
	}
}

func (s *server) stream(c net.Conn) {
	defer func() { _ = c.Close() }()
	var n uint16
	if binary.Read(c, binary.BigEndian, &n) != nil {
		return
	}
	b := make([]byte, n)
	if _, err := io.ReadFull(c, b); err != nil {
		return
	}
	if q := s.note(b, "tcp"); q != nil {
		if out := s.answer(q, "tcp"); out != nil {
			_, _ = c.Write(append(binary.BigEndian.AppendUint16(nil, uint16(len(out))), out...))
		}
	}
}

func (s *server) note(b []byte, network string) *dnsmessage.Message {
	q := &dnsmessage.Message{}
	if q.Unpack(b) != nil || len(q.Questions) != 1 {
		return nil
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	s.asked = append(s.asked, fmt.Sprintf("%s %s %s", network, strings.TrimPrefix(q.Questions[0].Type.String(), "Type"), q.Questions[0].Name))
	return q
}

func (s *server) questions() string {
	s.mu.Lock()
	defer s.mu.Unlock()
	return strings.Join(s.asked, ", ")
}

// record is "name ttl A 1.2.3.4", AAAA or CNAME.
func record(line string) dnsmessage.Resource {
	f := strings.Fields(line)
	var ttl uint32
	_, _ = fmt.Sscan(f[1], &ttl)
	r := dnsmessage.Resource{Header: dnsmessage.ResourceHeader{Name: dnsmessage.MustNewName(f[0]), Class: dnsmessage.ClassINET, TTL: ttl}}
	switch f[2] {
	case "A":
		r.Body = &dnsmessage.AResource{A: netip.MustParseAddr(f[3]).As4()}
	case "AAAA":
		r.Body = &dnsmessage.AAAAResource{AAAA: netip.MustParseAddr(f[3]).As16()}
	case "CNAME":
		r.Body = &dnsmessage.CNAMEResource{CNAME: dnsmessage.MustNewName(f[3])}
	case "TXT":
		r.Body = &dnsmessage.TXTResource{TXT: f[3:]}
	}
	return r
}

// reply answers q with code and records, as a resolver that recurses.
func reply(q *dnsmessage.Message, code dnsmessage.RCode, records ...string) []byte {
	m := *q
	m.Response, m.RecursionAvailable, m.RCode, m.Additionals = true, true, code, nil
	for _, r := range records {
		m.Answers = append(m.Answers, record(r))
	}
	b, err := m.Pack()
	if err != nil {
		panic(err)
	}
	return b
}

// zone answers with the records of a zone that belong to the question, and those
// that CNAME records of it lead to.
func zone(records ...string) func(q *dnsmessage.Message, network string) []byte {
	return func(q *dnsmessage.Message, _ string) []byte {
		name, typ := q.Questions[0].Name.String(), strings.TrimPrefix(q.Questions[0].Type.String(), "Type")
		var out []string
		exists := false
		for range 20 {
			next := ""
			for _, r := range records {
				f := strings.Fields(r)
				if !strings.EqualFold(f[0], name) {
					continue
				}
				exists = true
				if f[2] == typ || f[2] == "CNAME" {
					out = append(out, r)
				}
				if f[2] == "CNAME" {
					next = f[3]
				}
			}
			if next == "" {
				break
			}
			name = next
		}
		code := dnsmessage.RCodeNameError
		if exists {
			code = dnsmessage.RCodeSuccess
		}
		return reply(q, code, out...)
	}
}

// files writes resolv.conf and hosts and returns where they are. Servers of
// resolv.conf are reached at addrs, in order.
func files(t *testing.T, conf, hosts string, addrs ...netip.AddrPort) Environment {
	t.Helper()
	dir := t.TempDir()
	env := Environment{ResolvConf: filepath.Join(dir, "resolv.conf"), Hosts: filepath.Join(dir, "hosts")}
	for i := range addrs {
		conf += fmt.Sprintf("nameserver 192.0.2.%d\n", i+1)
	}
	write(t, env.ResolvConf, conf)
	write(t, env.Hosts, hosts)
	env.Dial = func(ctx context.Context, network, address string) (net.Conn, error) {
		for i, a := range addrs {
			if address == fmt.Sprintf("192.0.2.%d:53", i+1) {
				address = a.String()
			}
		}
		return (&net.Dialer{}).DialContext(ctx, network, address)
	}
	return env
}

func write(t *testing.T, path, content string) {
	t.Helper()
	if err := os.WriteFile(path, []byte(content), 0o600); err != nil {
		t.Fatal(err)
	}
}

// lookup is Lookup in one line: addresses and TTL, or the error.
func lookup(t *testing.T, r *Resolver, name string, typ Type) string {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), 10*time.Second)
	defer cancel()
	a, err := r.Lookup(ctx, name, typ)
	if err != nil {
		return "error: " + err.Error()
	}
	out := make([]string, 0, len(a.Addrs)+1)
	for _, x := range a.Addrs {
		out = append(out, x.String())
	}
	return strings.Join(append(out, a.TTL.String()), " ")
}
