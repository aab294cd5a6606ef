package routing

import (
	"strconv"
	"strings"

	"github.com/fairlead-mesh/fairlead/filters"
	"github.com/fairlead-mesh/fairlead/internal/format"
	"github.com/fairlead-mesh/fairlead/internal/message"
	"github.com/fairlead-mesh/fairlead/xdsclient/xdsresource"
)

// Redirect returns status and location if r is a redirect.
func (r *Route) Redirect(s *filters.Stream) (status int, location string, ok bool) {
	d := r.Config.Redirect
	if d == nil {
		return 0, "", false
	}
	h := &s.Request
	if r.secure {
		return d.Status, "https://" + h.Get(message.Authority) + h.Get(message.Path), true
	}
	if status = d.Status; status == 0 {
		status = 301
	}
	scheme := d.Scheme
	switch {
	case scheme != "":
	case d.HTTPS:
		scheme = "https"
	default:
		scheme = h.Get(message.Scheme)
	}
	port := ""
	if d.Port != 0 {
		port = ":" + strconv.FormatUint(uint64(d.Port), 10)
	}
	host := d.Host
	if host == "" {
		host = redirectHost(h, scheme, port != "")
	}
	return status, scheme + "://" + host + port + r.redirectPath(d, h), true
}

// redirectHost returns the request's host for a location with the given
// scheme: its port goes if another one is set, or if it is the default of a
// scheme that is left.
func redirectHost(h *message.Header, scheme string, newPort bool) string {
	host := h.Get(message.Authority)
	if host == "" {
		return host
	}
	at := strings.LastIndexByte(host, ':')
	if host[0] == '[' {
		if at = strings.LastIndex(host, "]:"); at >= 0 {
			at++
		}
	}
	if at < 0 {
		return host
	}
	old, ok := h.Lookup("x-forwarded-proto")
	if !ok {
		old = h.Get(message.Scheme)
	}
	remove := newPort
	if scheme != old {
		remove = remove || old == "https" && host[at:] == ":443" || old == "http" && host[at:] == ":80"
	}
	if remove {
		return host[:at]
	}
	return host
}

// redirectPath returns path and query of the location.
func (r *Route) redirectPath(d *xdsresource.Redirect, h *message.Header) string {
	target := h.Get(message.Path)
	path, rest := splitTarget(target)
	hasQuery := strings.Contains(d.Path, "?")
	switch {
	case d.Path != "" && hasQuery:
		return d.Path
	case d.Path != "":
		target = d.Path
		if i := strings.IndexByte(rest, '?'); i >= 0 {
			target += rest[i:]
		}
	case d.Regex != nil:
		p, _ := d.Regex.Pattern.Replace(path)
		target = p + rest
	case d.Prefix != "":
		target = d.Prefix + target[min(r.matchedLen(path), len(target)):]
	}
	if d.StripQuery {
		target, _, _ = strings.Cut(target, "?")
	}
	return target
}

// DirectReply returns the local reply of a redirect or direct response, nil if
// r forwards. It sets s.Info.Details like Envoy, and for direct responses whose
// status asks for one the request's own URL as location.
func (r *Route) DirectReply(s *filters.Stream) *filters.Response {
	const details = "direct_response"
	if status, location, ok := r.Redirect(s); ok {
		resp := s.LocalReply(status, "", details, 0)
		resp.Header.Add("location", resp.Header.Intern([]byte(location)))
		return resp
	}
	d := r.Config.Direct
	if d == nil {
		return nil
	}
	body := string(d.Body)
	if d.BodyFormat != nil {
		body = d.BodyFormat.Render(&format.Context{Info: &s.Info, Request: &s.Request, LocalReplyBody: body})
	}
	resp := s.LocalReply(d.Status, body, details, 0)
	if d.Status == 201 || d.Status/100 == 3 {
		h := &s.Request
		resp.Header.Add("location", h.Get(message.Scheme)+"://"+h.Get(message.Authority)+h.Get(message.Path))
	}
	return resp
}
