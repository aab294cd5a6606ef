package hcm

import (
	"net/netip"
	"strings"
	"time"

	"github.com/fairlead-mesh/fairlead/filters"
	"github.com/fairlead-mesh/fairlead/internal/message"
	"github.com/fairlead-mesh/fairlead/internal/streaminfo"
	"github.com/fairlead-mesh/fairlead/routing"
	"github.com/fairlead-mesh/fairlead/xdsclient/xdsresource"
)

// admit makes the request canonical, or answers it: the one place where names
// are normalized. The order is Envoy's (ConnectionManagerImpl::decodeHeaders and
// ConnectionManagerUtility::mutateRequestHeaders).
func (st *stream) admit() *filters.Response {
	s, spec := &st.s, st.m.spec
	h := &s.Request
	if !h.Has(message.Authority) && h.Get(message.Method) != "CONNECT" {
		return s.LocalReply(400, "", "missing_host_header", 0)
	}
	if hasLower(h.Get(message.Method)) {
		return s.LocalReply(400, "", "method_in_lower_case", 0)
	}
	if path := h.Get(message.Path); path != "" && path[0] != '/' {
		return s.LocalReply(404, "", "absolute_path_rejected", 0) // "*", or a URL without a path
	}
	if r := st.normalizeHost(); r != nil {
		return r
	}
	if r := st.normalizePath(); r != nil {
		return r
	}
	if r := st.underscores(); r != nil {
		return r
	}
	st.forwarded()
	st.xfcc()
	appendVia(h, spec.Via)
	return nil
}

// hasLower reports whether a method has small letters. Methods have case (RFC
// 9110 §9.1), but not every origin knows: "delete" may not pass where DELETE may
// not. HTTP/1 knows its methods; Envoy takes any in HTTP/2.
func hasLower(method string) bool {
	for i := range len(method) {
		if c := method[i]; 'a' <= c && c <= 'z' {
			return true
		}
	}
	return false
}

// appendVia adds a hop to the one Via field, as Envoy does.
func appendVia(h *message.Header, via string) {
	if via == "" {
		return
	}
	if old, ok := h.Joined("via"); ok && old != "" {
		via = old + ", " + via
	}
	h.Set("via", via)
}

// normalizeHost strips the port as configured, and always one trailing dot:
// origins take "a.test." for "a.test", so that a policy about the one must see
// the other, too. Two dots name nothing, nor does a dot alone.
func (st *stream) normalizeHost() *filters.Response {
	spec, h := st.m.spec, &st.s.Request
	host := h.Get(message.Authority)
	out := stripTrailingDot(host)
	if out != host && (stripTrailingDot(out) != out || out == "" || out[0] == ':') {
		return st.s.LocalReply(400, "", "invalid_host", 0)
	}
	if spec.StripAnyPort {
		out = stripPort(out, 0)
	} else if spec.StripMatchingPort {
		if p := st.cn.info.Local.Port(); p != 0 {
			out = stripPort(out, p)
		}
	}
	if out != host {
		h.Set(message.Authority, out)
	}
	return nil
}

func stripTrailingDot(host string) string {
	name, port := splitPort(host)
	if before, ok := strings.CutSuffix(name, "."); ok {
		return before + port
	}
	return host
}

// splitPort cuts ":port" off, if there is one.
func splitPort(host string) (name, port string) {
	i := strings.LastIndexByte(host, ':')
	if i < 0 || i < strings.LastIndexByte(host, ']') {
		return host, ""
	}
	for _, c := range host[i+1:] {
		if c < '0' || c > '9' {
			return host, ""
		}
	}
	return host[:i], host[i:]
}

func stripPort(host string, only uint16) string {
	name, port := splitPort(host)
	if port == "" || only != 0 && port != ":"+utoa(only) {
		return host
	}
	return name
}

func utoa(p uint16) string {
	var b [5]byte
	i := len(b)
	for {
		i--
		b[i] = byte('0' + p%10)
		if p /= 10; p == 0 {
			return string(b[i:])
		}
	}
}

// normalizePath applies path_with_escaped_slashes_action, normalize_path and
// merge_slashes in Envoy's order.
func (st *stream) normalizePath() *filters.Response {
	s, spec := &st.s, st.m.spec
	h := &s.Request
	path, ok := h.Lookup(message.Path)
	if !ok {
		return nil // CONNECT
	}
	if strings.IndexByte(path, '#') >= 0 {
		return s.LocalReply(400, "", "path_normalization_failed", 0)
	}
	out, redirect := path, false
	if spec.EscapedSlashes != xdsresource.KeepUnchanged {
		un, found := unescapeSlashes(out)
		switch {
		case !found:
		case spec.EscapedSlashes == xdsresource.RejectRequest:
			return s.LocalReply(400, "", "path_normalization_failed", 0)
		default:
			out, redirect = un, spec.EscapedSlashes == xdsresource.UnescapeAndRedirect
		}
	}
	if spec.NormalizePath {
		if out, ok = canonicalPath(out); !ok {
			return s.LocalReply(400, "", "path_normalization_failed", 0)
		}
	}
	if spec.MergeSlashes {
		out = mergeSlashes(out)
	}
	if redirect {
		st.m.st.pathRedirect.Inc()
		r := s.LocalReply(307, "", "path_normalization_failed", 0)
		r.Header.Add("location", out)
		return r
	}
	if out != path {
		h.Set(message.Path, out)
	}
	return nil
}

// underscores applies headers_with_underscores_action.
func (st *stream) underscores() *filters.Response {
	s := &st.s
	switch st.m.spec.UnderscoreAction {
	case xdsresource.UnderscoreAllow:
		return nil
	case xdsresource.UnderscoreReject:
		for i := range s.Request.Len() {
			if strings.IndexByte(s.Request.At(i).Name, '_') >= 0 {
				return s.LocalReply(400, "Bad Request", codecName(s.Info.Protocol)+".unexpected_underscore", streaminfo.DownstreamProtocolError)
			}
		}
	case xdsresource.UnderscoreDrop:
		s.Request.DelFunc(func(f message.Field) bool { return strings.IndexByte(f.Name, '_') >= 0 })
	}
	return nil
}

// codecName is the prefix of Envoy's codec details.
func codecName(v message.Version) string {
	if v == message.HTTP2 {
		return "http2"
	}
	return "http1"
}

// internalOnly are headers that only internal requests may carry.
var internalOnly = [...]string{
	"x-envoy-retriable-status-codes", "x-envoy-retriable-header-names", "x-envoy-retry-on", "x-envoy-retry-grpc-on",
	"x-envoy-max-retries", "x-envoy-upstream-alt-stat-name", "x-envoy-upstream-rq-timeout-ms",
	"x-envoy-upstream-rq-per-try-timeout-ms", "x-envoy-upstream-rq-timeout-alt-response",
	"x-envoy-expected-rq-timeout-ms", "x-envoy-force-trace", "x-envoy-ip-tags", "x-envoy-original-url",
	"x-envoy-hedge-on-per-try-timeout",
}

// edgeOnly are headers that a request from outside the edge loses as well.
var edgeOnly = [...]string{
	"x-envoy-decorator-operation", "x-envoy-downstream-service-cluster", "x-envoy-downstream-service-node",
	"x-envoy-original-path", "x-envoy-original-host",
}

// forwarded decides who the client is (x-forwarded-for), whether the request is
// internal, and which x-envoy-* headers it may carry.
func (st *stream) forwarded() {
	s, spec, ci := &st.s, st.m.spec, st.cn.info
	h := &s.Request
	remote := ci.Remote.Addr().Unmap()
	var final netip.Addr
	single := false
	if spec.UseRemoteAddress {
		xff, had := h.Joined("x-forwarded-for")
		single = !had
		if spec.XFFNumTrustedHops > 0 {
			final, _ = lastXFF(xff, spec.XFFNumTrustedHops-1)
		}
		if !final.IsValid() {
			final = remote
		}
		if !spec.SkipXFFAppend && remote.IsValid() {
			st.appendXFF(xff, had, remote)
		}
		if spec.XFFNumTrustedHops == 0 || !h.Has("x-forwarded-proto") {
			h.Set("x-forwarded-proto", st.scheme())
		}
	} else if xff, had := h.Joined("x-forwarded-for"); had {
		final, single = lastXFF(xff, spec.XFFNumTrustedHops)
	}
	if spec.SchemeToOverwrite != "" {
		h.Set(message.Scheme, spec.SchemeToOverwrite)
		h.Set("x-forwarded-proto", spec.SchemeToOverwrite)
	}
	if !h.Has("x-forwarded-proto") {
		h.Set("x-forwarded-proto", st.scheme())
	}
	if h.Get(message.Method) != "CONNECT" || h.Has(message.Protocol) {
		st.fixScheme()
	}
	if spec.AppendXForwardedPort && spec.UseRemoteAddress && (spec.XFFNumTrustedHops == 0 || !h.Has("x-forwarded-port")) {
		h.Set("x-forwarded-port", utoa(ci.Local.Port()))
	}
	internal := single && final.IsValid() && isInternal(spec.InternalCIDRs, final)
	if final.IsValid() && final != remote {
		st.setRemote(final)
	}
	edge := !internal && spec.UseRemoteAddress
	st.dropLookalikes()
	st.cleanEnvoyHeaders(internal, edge, final)
	st.setRequestID(edge)
}

// setRemote makes the client address of this stream differ from the
// connection's: RBAC's remote_ip and the access log read it.
func (st *stream) setRemote(a netip.Addr) {
	ci := *st.cn.info
	ci.Remote = netip.AddrPortFrom(a, 0)
	st.s.Info.Conn = &ci
	st.s.Info.FilterState.Reset(&st.cn.info.FilterState)
}

// dropLookalikes removes fields that origins which take "_" for "-" (CGI and its
// heirs) would frame the body by. Nobody has another use for them.
func (st *stream) dropLookalikes() {
	h := &st.s.Request
	for i := range h.Len() {
		switch h.At(i).Name {
		case "transfer_encoding", "content_length":
			h.Del("transfer_encoding")
			h.Del("content_length")
			st.m.st.droppedUnderscores.Inc()
			return
		}
	}
}

func (st *stream) cleanEnvoyHeaders(internal, edge bool, final netip.Addr) {
	h := &st.s.Request
	hasEnvoy := false
	for i := range h.Len() {
		if strings.HasPrefix(h.At(i).Name, "x-envoy-") {
			hasEnvoy = true
			break
		}
	}
	if internal {
		h.Set("x-envoy-internal", "true")
		return
	}
	if hasEnvoy {
		h.Del("x-envoy-internal")
		if edge {
			for _, n := range edgeOnly {
				h.Del(n)
			}
		}
		for _, n := range internalOnly {
			h.Del(n)
		}
	}
	if st.table != nil {
		for _, n := range st.table.InternalOnlyHeaders() {
			h.Del(n)
		}
	}
	if edge && final.IsValid() {
		h.Set("x-envoy-external-address", final.String())
	}
}

func (st *stream) scheme() string {
	if st.cn.secure {
		return "https"
	}
	return "http"
}

// fixScheme fills in a :scheme that the request did not say, or that is none: what
// x-forwarded-proto says if that is a scheme, else the connection's.
func (st *stream) fixScheme() {
	h := &st.s.Request
	if s := h.Get(message.Scheme); s == "http" || s == "https" {
		return
	}
	p := h.Get("x-forwarded-proto")
	if p != "http" && p != "https" {
		p = st.scheme()
	}
	h.Set(message.Scheme, p)
}

// appendXFF adds the direct client to x-forwarded-for.
func (st *stream) appendXFF(xff string, had bool, remote netip.Addr) {
	var buf [128]byte
	b := buf[:0]
	if had && xff != "" {
		b = append(append(b, xff...), ',')
	}
	b = remote.AppendTo(b)
	h := &st.s.Request
	h.Set("x-forwarded-for", h.Intern(b))
}

// lastXFF returns the address skip places from the right of an x-forwarded-for
// value, and whether the list had one entry only (Envoy's
// Utility::getLastAddressFromXFF).
func lastXFF(xff string, skip uint32) (a netip.Addr, single bool) {
	rest := xff
	for ; skip > 0; skip-- {
		i := strings.LastIndexByte(rest, ',')
		if i < 0 {
			return netip.Addr{}, false
		}
		rest = rest[:i]
	}
	last := rest
	if i := strings.LastIndexByte(rest, ','); i >= 0 {
		last = rest[i+1:]
	}
	a, err := netip.ParseAddr(strings.Trim(last, " \t"))
	if err != nil {
		return netip.Addr{}, false
	}
	return a.Unmap(), last == xff
}

func isInternal(cidrs []netip.Prefix, a netip.Addr) bool {
	for _, p := range cidrs {
		if p.Contains(a) {
			return true
		}
	}
	return false
}

// checkUpgrade refuses CONNECT and upgrades that neither the manager nor the
// route allows, as Envoy does: 403, upgrade_failed.
func (st *stream) checkUpgrade() *filters.Response {
	s := &st.s
	kind := ""
	if s.Request.Get(message.Method) == "CONNECT" {
		kind = "connect"
		if p := s.Request.Get(message.Protocol); p != "" {
			kind = strings.ToLower(p)
		}
	} else if u := s.Request.Get("upgrade"); u != "" {
		kind = strings.ToLower(u)
	}
	if kind == "" || kind == "connect" && s.Route == nil {
		return nil // no route: 404
	}
	s.Info.RequestComplete = time.Time{} // what it goes on with has no end yet
	allowed := st.m.upgrades[kind].Enabled
	if r, ok := s.Route.(*routing.Route); ok && r.Config != nil && r.Config.Action != nil {
		for _, u := range r.Config.Action.Upgrades {
			if u.Type == kind {
				allowed = u.Enabled
			}
		}
	}
	if allowed {
		return nil
	}
	st.m.st.wsFail.Inc()
	if s.Info.Protocol != message.HTTP2 {
		st.m.st.rqRxReset.Inc() // what it goes on with is not read
	}
	return s.LocalReply(403, "", "upgrade_failed", 0)
}
