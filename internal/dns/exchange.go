package dns

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"net"
	"net/netip"
	"strings"
	"time"

	"golang.org/x/net/dns/dnsmessage"
)

const (
	defaultPayload = 1232
	// maxStrangers bounds packets that are no answer to a question, while one is
	// waited for.
	maxStrangers = 1024
	// maxAliases bounds the CNAME records that lead to an address.
	maxAliases = 16
	// maxTTL bounds how long an answer holds (RFC 8767, section 4).
	maxTTL = 7 * 24 * 60 * 60
)

// message is what a server said.
type message struct {
	Answer
	truncated bool
	rcode     dnsmessage.RCode
	// lame: the server knows nothing of the name and asks nobody for us.
	lame bool
}

// errStranger marks a packet that doesn't answer the question: it is passed over.
var errStranger = errors.New("is no answer to the question")

// exchange asks one server: over UDP, and TCP for an answer that was cut off;
// once more without EDNS for a server that doesn't know it.
func (r *Resolver) exchange(ctx context.Context, conf *config, server netip.AddrPort, q dnsmessage.Question) (*message, error) {
	stream, edns := r.cfg.TCP || conf.tcp, true
	for {
		m, err := r.roundTrip(ctx, conf, server, q, stream, edns)
		switch {
		case err != nil:
			return nil, err
		case m.truncated && !stream:
			stream = true
		case edns && (m.rcode == dnsmessage.RCodeFormatError || m.rcode == dnsmessage.RCodeNotImplemented):
			edns = false
		case m.truncated:
			return nil, errors.New("the answer is cut off over TCP, too")
		case m.lame:
			return nil, errors.New("the server knows nothing of the name and asks no other")
		case m.rcode != dnsmessage.RCodeSuccess && m.rcode != dnsmessage.RCodeNameError:
			return nil, fmt.Errorf("the server answers %s", strings.TrimPrefix(m.rcode.String(), "RCode"))
		default:
			return m, nil
		}
	}
}

// roundTrip sends one question on a connection of its own, so that its port and
// its id are both to be guessed by who wants to answer in the server's place.
func (r *Resolver) roundTrip(ctx context.Context, conf *config, server netip.AddrPort, q dnsmessage.Question, stream, edns bool) (*message, error) {
	ctx, cancel := context.WithTimeout(ctx, r.timeout(conf))
	defer cancel()
	network := "udp"
	if stream {
		network = "tcp"
	}
	c, err := r.dial(ctx, network, server.String())
	if err != nil {
		return nil, err
	}
	defer func() { _ = c.Close() }()
	if d, ok := ctx.Deadline(); ok {
		_ = c.SetDeadline(d)
	}
	defer context.AfterFunc(ctx, func() { _ = c.SetDeadline(time.Unix(1, 0)) })()
	size := r.cfg.PayloadSize
	if size == 0 {
		size = defaultPayload
	}
	id := uint16(rand.Uint32())
	out, err := question(id, q, edns, size)
	if err != nil {
		return nil, fmt.Errorf("%w: %w", errName, err)
	}
	if _, packets := c.(net.PacketConn); !packets {
		return overStream(c, out, id, q)
	}
	if _, err := c.Write(out[2:]); err != nil {
		return nil, err
	}
	b := make([]byte, max(int(size), 4096))
	for range maxStrangers {
		n, err := c.Read(b)
		if err != nil {
			return nil, err
		}
		m, err := parse(b[:n], id, q)
		if errors.Is(err, errStranger) {
			continue
		}
		return m, err
	}
	return nil, errors.New("too many packets that answer nothing")
}

func overStream(c net.Conn, out []byte, id uint16, q dnsmessage.Question) (*message, error) {
	if _, err := c.Write(out); err != nil {
		return nil, err
	}
	var n [2]byte
	if _, err := io.ReadFull(c, n[:]); err != nil {
		return nil, err
	}
	b := make([]byte, binary.BigEndian.Uint16(n[:]))
	if _, err := io.ReadFull(c, b); err != nil {
		return nil, err
	}
	return parse(b, id, q)
}

// question returns the packet to send, after its length in two bytes.
func question(id uint16, q dnsmessage.Question, edns bool, size uint16) ([]byte, error) {
	b := dnsmessage.NewBuilder(make([]byte, 2, 2+512), dnsmessage.Header{ID: id, RecursionDesired: true})
	b.EnableCompression()
	if err := errors.Join(b.StartQuestions(), b.Question(q)); err != nil {
		return nil, err
	}
	if edns {
		var h dnsmessage.ResourceHeader
		if err := errors.Join(b.StartAdditionals(), h.SetEDNS0(int(size), dnsmessage.RCodeSuccess, false), b.OPTResource(h, dnsmessage.OPTResource{})); err != nil {
			return nil, err
		}
	}
	out, err := b.Finish()
	if err != nil {
		return nil, err
	}
	binary.BigEndian.PutUint16(out, uint16(len(out)-2))
	return out, nil
}

// alias is a CNAME record.
type alias struct {
	to  string
	ttl uint32
}

// found are the addresses of one name.
type found struct {
	addrs []netip.Addr
	ttl   uint32
}

// section is what an answer section says, by lower-case owner: its CNAME records,
// of several for one owner the first, and addresses.
type section struct {
	aliases map[string]alias
	addrs   map[string]*found
}

// parse reads an answer to q. The error is errStranger for a packet that is none.
func parse(b []byte, id uint16, q dnsmessage.Question) (*message, error) {
	var p dnsmessage.Parser
	h, err := p.Start(b)
	if err != nil || !h.Response || h.ID != id {
		return nil, errStranger
	}
	got, err := p.Question()
	if err != nil || got.Type != q.Type || got.Class != q.Class || !strings.EqualFold(got.Name.String(), q.Name.String()) {
		return nil, errStranger
	}
	m := &message{truncated: h.Truncated, rcode: h.RCode}
	if h.Truncated || (h.RCode != dnsmessage.RCodeSuccess && h.RCode != dnsmessage.RCodeNameError) {
		return m, nil
	}
	if err := p.SkipAllQuestions(); err != nil {
		return nil, fmt.Errorf("the answer can't be read: %w", err)
	}
	sec := section{map[string]alias{}, map[string]*found{}}
	if err := sec.read(&p, q.Type); err != nil {
		return nil, fmt.Errorf("the answer can't be read: %w", err)
	}
	if len(sec.aliases) == 0 && len(sec.addrs) == 0 && h.RCode == dnsmessage.RCodeSuccess && !h.Authoritative && !h.RecursionAvailable {
		m.lame = true
		return m, nil
	}
	ttl := uint32(maxTTL)
	name := strings.ToLower(q.Name.String())
	for range maxAliases {
		if f := sec.addrs[name]; f != nil {
			m.Addrs, m.TTL = f.addrs, time.Duration(min(ttl, f.ttl))*time.Second
			return m, nil
		}
		a, ok := sec.aliases[name]
		if !ok {
			return m, nil // no address
		}
		ttl, name = min(ttl, a.ttl), a.to
	}
	return nil, errors.New("the answer's CNAME records lead in a circle, or are too many")
}

// read reads the answer section, of addresses those of type t.
func (s *section) read(p *dnsmessage.Parser, t dnsmessage.Type) error {
	for {
		h, err := p.AnswerHeader()
		if errors.Is(err, dnsmessage.ErrSectionDone) {
			return nil
		}
		if err != nil {
			return err
		}
		if h.TTL > 1<<31-1 { // RFC 2181, section 8
			h.TTL = 0
		}
		owner := strings.ToLower(h.Name.String())
		switch {
		case h.Class == dnsmessage.ClassINET && h.Type == dnsmessage.TypeCNAME:
			err = s.alias(p, owner, h.TTL)
		case h.Class == dnsmessage.ClassINET && h.Type == t:
			err = s.address(p, owner, h.TTL, t)
		default:
			err = p.SkipAnswer()
		}
		if err != nil {
			return err
		}
	}
}

func (s *section) alias(p *dnsmessage.Parser, owner string, ttl uint32) error {
	r, err := p.CNAMEResource()
	if _, twice := s.aliases[owner]; err == nil && !twice {
		s.aliases[owner] = alias{strings.ToLower(r.CNAME.String()), ttl}
	}
	return err
}

func (s *section) address(p *dnsmessage.Parser, owner string, ttl uint32, t dnsmessage.Type) error {
	var a netip.Addr
	var err error
	if t == dnsmessage.TypeA {
		var r dnsmessage.AResource
		r, err = p.AResource()
		a = netip.AddrFrom4(r.A)
	} else {
		var r dnsmessage.AAAAResource
		r, err = p.AAAAResource()
		a = netip.AddrFrom16(r.AAAA)
	}
	if err != nil {
		return err
	}
	f := s.addrs[owner]
	if f == nil {
		f = &found{ttl: ttl}
		s.addrs[owner] = f
	}
	f.addrs, f.ttl = append(f.addrs, a), min(f.ttl, ttl)
	return nil
}
