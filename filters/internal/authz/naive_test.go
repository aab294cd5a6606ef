package authz

import (
	"math/rand/v2"
	"net/netip"
	"regexp"
	"strconv"
	"strings"
	"sync"

	"github.com/fairlead-mesh/fairlead/internal/matcher"
	"github.com/fairlead-mesh/fairlead/internal/message"
	"github.com/fairlead-mesh/fairlead/internal/streaminfo"
)

// naive evaluates rules by walking them, without compiling, indexing or any
// code of the engine. It returns the names of all policies that match.
func naive(r *Rules, in Input) []string {
	var names []string
	refuse := r.Action != Allow
	for _, p := range r.Policies {
		perm, prin := false, false
		for _, x := range p.Permissions {
			perm = perm || naiveRule(x, in, refuse)
		}
		for _, x := range p.Principals {
			prin = prin || naiveRule(x, in, refuse)
		}
		if perm && prin {
			names = append(names, p.Name)
		}
	}
	return names
}

func naiveRule(r Rule, in Input, refuse bool) bool {
	conn := in.Info.Conn
	switch r.Kind {
	case KindAny:
		return true
	case KindNot:
		return !naiveRule(r.Rules[0], in, !refuse)
	case KindAnd:
		n := 0
		for _, x := range r.Rules {
			if naiveRule(x, in, refuse) {
				n++
			}
		}
		return n == len(r.Rules)
	case KindOr:
		n := 0
		for _, x := range r.Rules {
			if naiveRule(x, in, refuse) {
				n++
			}
		}
		return n > 0
	case KindHeader:
		return naiveHeader(r.Header, in, refuse)
	case KindPath:
		p := naiveValues(in, ":path")
		return len(p) == 1 && naiveString(r.String, naiveCut(p[0]))
	case KindTemplate:
		p := naiveValues(in, ":path")
		if len(p) != 1 {
			return false
		}
		return naiveRegex(templateRegex[r.Template.(*matcher.URITemplate).String()]).MatchString(naiveCut(p[0]))
	case KindPort:
		if conn.Local == (netip.AddrPort{}) {
			return refuse
		}
		return int(conn.Local.Port()) >= int(r.PortStart) && int(conn.Local.Port()) < int(r.PortEnd)
	case KindDestinationIP:
		return naiveIP(r.Prefix, conn.Local, refuse)
	case KindRemoteIP:
		return naiveIP(r.Prefix, conn.Remote, refuse)
	case KindDirectRemoteIP:
		return naiveIP(r.Prefix, conn.DirectRemote, refuse)
	case KindSourceIP:
		a, b := naiveIP(r.Prefix, conn.Remote, refuse), naiveIP(r.Prefix, conn.DirectRemote, refuse)
		return a && b || refuse && (a || b)
	case KindServerName:
		return naiveString(r.String, conn.RequestedServerName)
	case KindMetadata:
		return naiveMetadata(r.Metadata, in)
	case KindFilterState:
		o := in.Info.FilterState.Get(r.Key)
		if o == nil {
			return false
		}
		if r.Prefixes != nil {
			a, err := netip.ParseAddr(o.Serialize())
			if err != nil {
				return refuse
			}
			hit := false
			for _, p := range r.Prefixes {
				hit = hit || p.Contains(a)
			}
			return hit != r.InvertPrefixes
		}
		return naiveString(r.String, o.Serialize())
	case KindAuthenticated:
		return naiveAuthenticated(r, conn.TLS, refuse)
	}
	panic("kind")
}

func naiveAuthenticated(r Rule, t *streaminfo.TLS, refuse bool) bool {
	if t == nil {
		return false
	}
	if r.AnyName {
		return true
	}
	kinds := [][]string{t.Peer.URISANs, t.Peer.DNSSANs, {t.Peer.Subject}}
	for _, names := range kinds {
		for _, n := range names {
			if naiveString(r.String, n) {
				return true
			}
		}
		if len(names) > 0 && !refuse {
			return false
		}
	}
	return false
}

func naiveIP(p netip.Prefix, a netip.AddrPort, refuse bool) bool {
	if a == (netip.AddrPort{}) {
		return refuse
	}
	return p.Contains(a.Addr().Unmap())
}

func naiveCut(path string) string {
	out := ""
	for _, c := range path {
		if c == '?' || c == '#' {
			break
		}
		out += string(c)
	}
	return out
}

func naiveValues(in Input, name string) []string {
	if in.Request == nil {
		return nil
	}
	var vs []string
	for i := range in.Request.Len() {
		if in.Request.At(i).Name == name {
			vs = append(vs, in.Request.At(i).Value)
		}
	}
	return vs
}

func naiveHeader(h Header, in Input, refuse bool) bool {
	vs := naiveValues(in, h.Name)
	switch h.Kind {
	case HeaderPresent:
		return (len(vs) > 0) != h.Invert
	case HeaderAbsent:
		return (len(vs) == 0) != h.Invert
	}
	one := func(v string) bool {
		if h.Kind == HeaderRange {
			n, err := strconv.ParseInt(v, 10, 64)
			return err == nil && (refuse != h.Invert || !strings.HasPrefix(v, "+")) && n >= h.RangeStart && n < h.RangeEnd
		}
		return naiveString(h.String, v)
	}
	if len(vs) == 0 {
		return h.TreatMissingAsEmpty && one("") != h.Invert
	}
	every, some := true, false
	for _, v := range vs {
		every = every && one(v)
		some = some || one(v)
		if h.Name[0] != ':' && strings.Contains(v, ",") {
			for e := range strings.SplitSeq(v, ",") {
				some = some || one(strings.Trim(e, " \t"))
			}
		}
	}
	some = some || len(vs) > 1 && one(strings.Join(vs, ","))
	if refuse {
		if h.Invert {
			return !every
		}
		return some
	}
	if h.Invert {
		return !some
	}
	return every
}

func naiveString(s String, v string) bool {
	t := s.Text
	if s.IgnoreCase {
		t, v = strings.ToLower(t), strings.ToLower(v)
	}
	switch s.Kind {
	case matcher.Exact:
		return v == t
	case matcher.Prefix:
		return strings.HasPrefix(v, t)
	case matcher.Suffix:
		return strings.HasSuffix(v, t)
	case matcher.Contains:
		return strings.Contains(v, t)
	case matcher.Regex:
		return naiveRegex(`\A(?s:` + t + `)\z`).MatchString(v)
	}
	panic("string kind")
}

var regexes sync.Map

func naiveRegex(src string) *regexp.Regexp {
	if re, ok := regexes.Load(src); ok {
		return re.(*regexp.Regexp)
	}
	re := regexp.MustCompile(src)
	regexes.Store(src, re)
	return re
}

func naiveMetadata(m Metadata, in Input) bool {
	md := &in.Info.Metadata
	if m.Route {
		if in.Route == nil {
			return false
		}
		md = in.Route
	}
	var v any = map[string]any{}
	ok := true
	if ns := md.Namespaces()[m.Namespace]; ns != nil {
		v = ns
	}
	for _, p := range m.Path {
		mm, is := v.(map[string]any)
		if !is {
			ok = false
			break
		}
		if v, ok = mm[p]; !ok {
			break
		}
	}
	if !ok {
		v = nil
	}
	return naiveValue(m.Value, v, ok) != m.Invert
}

func naiveValue(m Value, v any, ok bool) bool {
	switch m.Kind {
	case ValueNull:
		return ok && v == nil
	case ValueNumber:
		return v == m.Min
	case ValueRange:
		f, is := v.(float64)
		return is && f >= m.Min && f < m.Max
	case ValueString:
		s, is := v.(string)
		return is && naiveString(m.String, s)
	case ValueBool:
		return v == m.Bool
	case ValuePresent:
		return m.Bool && ok
	case ValueOneOf:
		l, _ := v.([]any)
		for _, e := range l {
			if naiveValue(m.Values[0], e, true) {
				return true
			}
		}
		return false
	case ValueOr:
		for _, x := range m.Values {
			if naiveValue(x, v, ok) {
				return true
			}
		}
		return false
	}
	panic("value kind")
}

// templateRegex gives the meaning of each template that the generator uses.
var templateRegex = map[string]string{
	"/tpl/*/x":     `\A/tpl/[^/]+/x\z`,
	"/tpl/*/x/**":  `\A/tpl/[^/]+/x/.*\z`,
	"/api/**":      `\A/api/.*\z`,
	"/api/*/admin": `\A/api/[^/]+/admin\z`,
}

// Vocabulary small enough for policies and requests to meet often.
var (
	vPaths  = []string{"/", "/a", "/a/b", "/admin", "/admin/x", "/api/v1", "/api/v1/admin", "/tpl/1/x", "/tpl/1/x/2", "/a?x=/admin", "/admin?q#f", "/a#b"}
	vHosts  = []string{"a.example.com", "A.Example.com", "b.example.com:80", "reviews.app", "REVIEWS.APP"}
	vIDs    = []string{"spiffe://td/ns/app/sa/x", "spiffe://td/ns/app/sa/y", "spiffe://td/ns/web/sa/x", "spiffe://evil/ns/ns/sa/x", "spiffe://td/ns/ns/app/sa/q", ""}
	vRoles  = []string{"user", "admin", "user,admin", "user, admin", "", "5", "12", "+5", "0x5"}
	vIPs    = []string{"10.1.1.1", "10.2.0.9", "::ffff:10.1.1.1", "2001:db8::1", "192.0.2.7"}
	vNets   = []string{"10.0.0.0/8", "10.1.0.0/16", "0.0.0.0/0", "2001:db8::/32", "192.0.2.7/32"}
	vPorts  = []uint16{80, 443, 8080}
	vStates = []string{"io.istio.peer_principal", "addr", "none"}
)

func pick[T any](r *rand.Rand, l []T) T { return l[r.IntN(len(l))] }

func genString(r *rand.Rand, words []string) String {
	w := pick(r, words)
	if w == "" {
		w = "x"
	}
	switch r.IntN(7) {
	case 0:
		return String{Kind: matcher.Prefix, Text: w[:1+r.IntN(len(w))], IgnoreCase: r.IntN(3) == 0}
	case 1:
		return String{Kind: matcher.Suffix, Text: w[r.IntN(len(w)):], IgnoreCase: r.IntN(3) == 0}
	case 2:
		return String{Kind: matcher.Contains, Text: w[r.IntN(len(w)):]}
	case 3:
		return String{Kind: matcher.Regex, Text: pick(r, []string{".*/ns/app/.*", ".*/ns/ns/.*", ".*admin.*", "/a.*", "admin", regexp.QuoteMeta(w)})}
	}
	return String{Kind: matcher.Exact, Text: w, IgnoreCase: r.IntN(3) == 0}
}

func genValue(r *rand.Rand, depth int) Value {
	switch r.IntN(9) {
	case 0:
		return Value{Kind: ValueNull}
	case 1:
		return Value{Kind: ValueNumber, Min: 3}
	case 2:
		return Value{Kind: ValueRange, Min: 1, Max: 4}
	case 3:
		return Value{Kind: ValueBool, Bool: r.IntN(2) == 0}
	case 4:
		return Value{Kind: ValuePresent, Bool: r.IntN(3) > 0}
	case 5:
		if depth < 2 {
			return Value{Kind: ValueOneOf, Values: []Value{genValue(r, depth+1)}}
		}
	case 6:
		if depth < 2 {
			return Value{Kind: ValueOr, Values: []Value{genValue(r, depth+1), genValue(r, depth+1)}}
		}
	}
	return Value{Kind: ValueString, String: genString(r, vRoles)}
}

func genRules(r *rand.Rand, depth int) []Rule {
	rs := make([]Rule, 1+r.IntN(3))
	for i := range rs {
		rs[i] = genRule(r, depth)
	}
	return rs
}

func genRule(r *rand.Rand, depth int) Rule {
	n := r.IntN(20)
	if depth > 3 && n < 8 {
		n += 8
	}
	switch n {
	case 0, 1, 2:
		return Rule{Kind: KindAnd, Rules: genRules(r, depth+1)}
	case 3, 4, 5:
		return Rule{Kind: KindOr, Rules: genRules(r, depth+1)}
	case 6, 7:
		return Rule{Kind: KindNot, Rules: []Rule{genRule(r, depth+1)}}
	case 8:
		return Rule{Kind: KindAny}
	case 9, 10:
		return Rule{Kind: KindHeader, Header: genHeader(r)}
	case 11, 12:
		return Rule{Kind: KindPath, String: genString(r, vPaths)}
	case 13:
		keys := []string{"/tpl/*/x", "/tpl/*/x/**", "/api/**", "/api/*/admin"}
		t, err := matcher.NewURITemplate(pick(r, keys))
		if err != nil {
			panic(err)
		}
		return Rule{Kind: KindTemplate, Template: t}
	case 14:
		p := uint32(pick(r, vPorts))
		return Rule{Kind: KindPort, PortStart: p, PortEnd: p + 1 + uint32(r.IntN(2)*8000)}
	case 15:
		return Rule{Kind: pick(r, []Kind{KindDestinationIP, KindSourceIP, KindDirectRemoteIP, KindRemoteIP}), Prefix: netip.MustParsePrefix(pick(r, vNets))}
	case 16:
		return Rule{Kind: KindServerName, String: genString(r, vHosts)}
	case 17:
		m := Metadata{Namespace: pick(r, []string{"jwt", "none"}), Path: pick(r, [][]string{{"k"}, {"payload", "iss"}}), Value: genValue(r, 0), Invert: r.IntN(4) == 0, Route: r.IntN(4) == 0}
		return Rule{Kind: KindMetadata, Metadata: m}
	case 18:
		if r.IntN(4) == 0 {
			return Rule{Kind: KindFilterState, Key: "addr", Prefixes: []netip.Prefix{netip.MustParsePrefix(pick(r, vNets))}, InvertPrefixes: r.IntN(2) == 0}
		}
		return Rule{Kind: KindFilterState, Key: pick(r, vStates), String: genString(r, vIDs)}
	}
	return Rule{Kind: KindAuthenticated, AnyName: r.IntN(4) == 0, String: genString(r, vIDs)}
}

func genHeader(r *rand.Rand) Header {
	h := Header{Invert: r.IntN(4) == 0, TreatMissingAsEmpty: r.IntN(4) == 0}
	switch r.IntN(3) {
	case 0:
		h.Name, h.String = message.Method, genString(r, []string{"GET", "POST"})
	case 1:
		h.Name, h.String = message.Authority, genString(r, vHosts)
	default:
		h.Name, h.String = "x-role", genString(r, vRoles)
		if r.IntN(4) == 0 {
			h.Kind, h.RangeStart, h.RangeEnd = HeaderRange, 0, 10
		}
	}
	switch r.IntN(8) {
	case 0:
		h.Kind = HeaderPresent
	case 1:
		h.Kind = HeaderAbsent
	}
	return h
}

func genAll(r *rand.Rand) *Rules {
	out := &Rules{Action: Action(r.IntN(3))}
	for i := range r.IntN(14) {
		out.Policies = append(out.Policies, Policy{Name: "p" + strconv.Itoa(100+i), Permissions: genRules(r, 0), Principals: genRules(r, 0)})
	}
	return out
}

func genInput(r *rand.Rand) Input {
	addr := func() netip.AddrPort {
		if r.IntN(8) == 0 {
			return netip.AddrPort{}
		}
		return netip.AddrPortFrom(netip.MustParseAddr(pick(r, vIPs)), pick(r, vPorts))
	}
	c := &streaminfo.Conn{Local: addr(), Remote: addr(), DirectRemote: addr(), RequestedServerName: pick(r, append(vHosts, ""))}
	if r.IntN(2) == 0 {
		c.TLS = &streaminfo.TLS{}
		if r.IntN(2) == 0 {
			c.TLS.Peer.URISANs = []string{pick(r, vIDs)}
		}
		if r.IntN(2) == 0 {
			c.TLS.Peer.DNSSANs = []string{pick(r, vIDs), pick(r, vHosts)}
		}
		c.TLS.Peer.Subject = pick(r, vIDs)
	}
	in := Input{Info: &streaminfo.Info{Conn: c}}
	if r.IntN(4) > 0 {
		c.FilterState.Set("io.istio.peer_principal", streaminfo.String(pick(r, vIDs)), streaminfo.SharingNone)
	}
	if r.IntN(2) == 0 {
		c.FilterState.Set("addr", streaminfo.String(pick(r, []string{"10.1.1.1", "2001:db8::5", "x"})), streaminfo.SharingNone)
	}
	in.Info.FilterState.Reset(&c.FilterState)
	values := []any{nil, true, false, 3.0, 1.5, "user", "admin", []any{"user", "admin"}, []any{3.0, nil}, map[string]any{"iss": "admin"}}
	for _, k := range []string{"k", "payload"} {
		if r.IntN(2) == 0 {
			in.Info.Metadata.Set("jwt", k, pick(r, values))
		}
	}
	if r.IntN(2) == 0 {
		md := streaminfo.MetadataFrom(map[string]map[string]any{"jwt": {"k": pick(r, values)}})
		in.Route = &md
	}
	if r.IntN(8) == 0 {
		return in
	}
	h := &message.Header{}
	h.Add(message.Method, pick(r, []string{"GET", "POST"}))
	h.Add(message.Authority, pick(r, vHosts))
	if r.IntN(16) > 0 {
		h.Add(message.Path, pick(r, vPaths))
	}
	for range r.IntN(3) {
		h.Add("x-role", pick(r, vRoles))
	}
	in.Request = h
	return in
}
