package routing

import (
	"math/bits"
	"net/netip"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/cespare/xxhash/v2"

	"github.com/fairlead-mesh/fairlead/filters"
	"github.com/fairlead-mesh/fairlead/internal/matcher"
	"github.com/fairlead-mesh/fairlead/internal/message"
	"github.com/fairlead-mesh/fairlead/xdsclient/xdsresource"
)

// Hash returns the hash for consistent load balancing by the route's hash
// policies, and a Set-Cookie value to add to the response ("" if none). Hashes
// are Envoy's, so that a host ring gives the same host. If several cookie
// policies want a cookie set, the last one is returned.
func (r *Route) Hash(s *filters.Stream) (hash uint64, ok bool, setCookie string) {
	if r.Config.Action == nil {
		return 0, false, ""
	}
	policies := r.Config.Action.HashPolicy
	for i := range policies {
		p := &policies[i]
		h, found, set := hashOne(p, s)
		if set != "" {
			setCookie = set
		}
		if found {
			// Rotation keeps equal rules from cancelling each other out.
			hash = bits.RotateLeft64(hash, 1) ^ h
			ok = true
		}
		if p.Terminal && ok {
			break
		}
	}
	return hash, ok, setCookie
}

func hashOne(p *xdsresource.HashPolicy, s *filters.Stream) (h uint64, ok bool, setCookie string) {
	switch {
	case p.Header != "":
		h, ok = hashHeader(&s.Request, p)
	case p.Cookie != nil:
		return hashCookie(p.Cookie, s)
	case p.SourceIP:
		if s.Info.Conn == nil || !s.Info.Conn.Remote.IsValid() {
			return 0, false, ""
		}
		var buf [64]byte
		return xxhash.Sum64(s.Info.Conn.Remote.Addr().Unmap().AppendTo(buf[:0])), true, ""
	case p.QueryParameter != "":
		_, query := matcher.SplitPath(s.Request.Get(message.Path))
		var v string
		if v, ok = matcher.QueryValue(query, p.QueryParameter); ok {
			h = xxhash.Sum64String(v)
		}
	case p.FilterState != "":
		if o := s.Info.FilterState.Get(p.FilterState); o != nil {
			return xxhash.Sum64String(o.Serialize()), true, ""
		}
	}
	return h, ok, ""
}

// hashHeader hashes the value, or the sorted values of a repeated header one
// after the other.
func hashHeader(h *message.Header, p *xdsresource.HashPolicy) (uint64, bool) {
	name := headerName(p.Header)
	v, ok := h.Lookup(name)
	if !ok {
		return 0, false
	}
	if h.Count(name) == 1 {
		if p.HeaderRegex != nil {
			v, _ = p.HeaderRegex.Pattern.Replace(v)
		}
		return xxhash.Sum64String(v), true
	}
	var vs []string
	for i := range h.Len() {
		if f := h.At(i); f.Name == name {
			vs = append(vs, f.Value)
		}
	}
	if p.HeaderRegex != nil {
		for i := range vs {
			vs[i], _ = p.HeaderRegex.Pattern.Replace(vs[i])
		}
	}
	slices.Sort(vs)
	var seed uint64
	for _, v := range vs {
		d := xxhash.NewWithSeed(seed)
		_, _ = d.WriteString(v) // never fails
		seed = d.Sum64()
	}
	return seed, true
}

// hashCookie hashes the cookie; with a TTL, a client without one gets a cookie
// made from both ends of its connection.
func hashCookie(c *xdsresource.HashCookie, s *filters.Stream) (uint64, bool, string) {
	v, ok := cookie(&s.Request, c.Name)
	if ok && v != "" {
		return xxhash.Sum64String(v), true, ""
	}
	if c.TTL == nil || s.Info.Conn == nil {
		return 0, false, ""
	}
	conn := s.Info.Conn
	v = strconv.FormatUint(xxhash.Sum64String(addressText(conn.Remote)+addressText(conn.Local)), 16)
	v = strings.Repeat("0", 16-len(v)) + v
	var b strings.Builder
	b.WriteString(c.Name + `="` + v + `"`)
	if secs := int64(*c.TTL / time.Second); secs != 0 {
		b.WriteString("; Max-Age=" + strconv.FormatInt(secs, 10))
	}
	if c.Path != "" {
		b.WriteString("; Path=" + c.Path)
	}
	for _, a := range c.Attributes {
		b.WriteString("; " + a[0])
		if a[1] != "" {
			b.WriteString("=" + a[1])
		}
	}
	b.WriteString("; HttpOnly")
	return xxhash.Sum64String(v), true, b.String()
}

// addressText is "ip:port", with an IPv4-mapped address as IPv4.
func addressText(a netip.AddrPort) string {
	return netip.AddrPortFrom(a.Addr().Unmap(), a.Port()).String()
}
