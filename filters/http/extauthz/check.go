package extauthz

import (
	"errors"
	"strconv"
	"strings"

	"github.com/fairlead-mesh/fairlead/filters"
	"github.com/fairlead-mesh/fairlead/internal/matcher"
	"github.com/fairlead-mesh/fairlead/internal/message"
	"github.com/fairlead-mesh/fairlead/internal/streaminfo"
)

// maxAnswer bounds the body of an answer.
const maxAnswer = 1 << 20

var errTooLarge = errors.New("ext_authz: request body is too large to be checked")

// check asks the service and does what it says.
func (f *filter) check(s *filters.Stream, next filters.Next) (*filters.Response, error) {
	var body []byte
	if f.body != nil && s.Body != message.NoBody && s.Request.Get(message.Method) != "CONNECT" {
		var err error
		if body, err = f.buffer(s); err != nil {
			if errors.Is(err, errTooLarge) {
				f.denied.Inc()
				return s.LocalReply(413, "Payload Too Large", "request_payload_too_large", 0), nil
			}
			return nil, err
		}
	}
	callout := &filters.Callout{Header: f.question(&s.Request, len(body)), Body: body, Timeout: f.c.HTTP.Timeout}
	a, err := f.upstreams.RoundTrip(s.Context(), f.c.HTTP.Cluster, callout, maxAnswer)
	if cause := s.Cause(); cause != nil {
		return nil, cause
	}
	switch {
	case err != nil || a.Status >= 500 || a.Status < 200:
		f.failed.Inc()
		if !f.c.AllowOnError {
			return f.refuse(s), nil
		}
		f.failedAllowed.Inc()
		if f.c.HeaderOnError {
			s.Request.Set("x-envoy-auth-failure-mode-allowed", "true")
		}
		return next.Do(s)
	case a.Status == 200:
		f.ok.Inc()
		return f.pass(s, next, a)
	}
	f.denied.Inc()
	return f.deny(s, a), nil
}

// question is the head of the request to the service: the request's own method
// and path, and the headers that may be told.
func (f *filter) question(h *message.Header, bodyBytes int) message.Header {
	c := f.c.HTTP
	var q message.Header
	path := c.Path
	if path == "" {
		path = c.PathPrefix + h.Get(message.Path)
	}
	q.Add(message.Method, h.Get(message.Method))
	q.Add(message.Scheme, c.Scheme)
	q.Add(message.Authority, h.Get(message.Authority))
	q.Add(message.Path, path)
	for i := range h.Len() {
		if n := h.At(i); f.tells(n.Name) {
			q.Add(n.Name, n.Value)
		}
	}
	for _, kv := range c.Add {
		q.Set(kv[0], kv[1])
	}
	if f.body != nil || q.Get(message.Method) != "GET" {
		q.Set("content-length", strconv.Itoa(bodyBytes))
	}
	return q
}

func (f *filter) tells(name string) bool {
	if name[0] == ':' || hopByHop(name) || matchAny(f.c.Disallowed, name) {
		return false
	}
	if name == "authorization" && f.c.Allowed == nil && f.c.HTTP.AllowedFromService == nil {
		return true
	}
	return matchAny(f.c.Allowed, name) || matchAny(f.c.HTTP.AllowedFromService, name)
}

// hopByHop names headers that belong to one message or connection.
func hopByHop(name string) bool {
	switch name {
	case "content-length", "transfer-encoding", "connection", "upgrade", "te", "keep-alive", "proxy-connection", "expect", "host", "trailer":
		return true
	}
	return false
}

func matchAny(ms []matcher.String, name string) bool {
	for i := range ms {
		if ms[i].Match(name) {
			return true
		}
	}
	return false
}

// pass lets the request go on with what the service adds to it.
func (f *filter) pass(s *filters.Stream, next filters.Next, a *filters.CalloutResponse) (*filters.Response, error) {
	c := f.c.HTTP
	changed := false
	set := map[string]bool{}
	for i := range a.Header.Len() {
		h := a.Header.At(i)
		if h.Name[0] == ':' || hopByHop(h.Name) {
			continue
		}
		switch {
		case matchAny(c.UpstreamHeaders, h.Name):
			if !set[h.Name] {
				s.Request.Del(h.Name)
				set[h.Name] = true
			}
			s.Request.Add(strings.Clone(h.Name), strings.Clone(h.Value))
			changed = true
		case matchAny(c.UpstreamAppend, h.Name):
			s.Request.Add(strings.Clone(h.Name), strings.Clone(h.Value))
			changed = true
		}
	}
	if changed && f.c.ClearRoute {
		s.ClearRouteCache()
	}
	r, err := next.Do(s)
	if err != nil || r == nil || len(c.ClientHeadersOnOK) == 0 {
		return r, err
	}
	for i := range a.Header.Len() {
		if h := a.Header.At(i); h.Name[0] != ':' && !hopByHop(h.Name) && matchAny(c.ClientHeadersOnOK, h.Name) {
			r.Header.Add(h.Name, h.Value)
		}
	}
	return r, nil
}

// deny passes the service's answer to the client.
func (f *filter) deny(s *filters.Stream, a *filters.CalloutResponse) *filters.Response {
	r := s.LocalReply(a.Status, string(a.Body), "ext_authz_denied", streaminfo.UnauthorizedExternalService)
	for i := range a.Header.Len() {
		h := a.Header.At(i)
		if h.Name[0] == ':' || hopByHop(h.Name) || !f.c.HTTP.tellsClient(h.Name) {
			continue
		}
		if h.Name == "content-type" && !s.Info.IsGRPC {
			r.Header.Set(h.Name, h.Value)
		} else if h.Name != "content-type" {
			r.Header.Add(h.Name, h.Value)
		}
	}
	return r
}

func (c *HTTPService) tellsClient(name string) bool {
	return c.AllClientHeaders || name == "www-authenticate" || name == "location" || matchAny(c.ClientHeaders, name)
}

// buffer reads the request body up to the limit and puts it back in front of
// what is left.
func (f *filter) buffer(s *filters.Stream) ([]byte, error) {
	var buf []byte
	for {
		p, last, err := s.Body.Next()
		if err != nil {
			return nil, err
		}
		buf = append(buf, p...)
		over := len(buf) > f.body.Max
		if over && !f.body.AllowPartial {
			return nil, errTooLarge
		}
		if over || last {
			s.Body = &replay{Body: s.Body, ahead: buf, last: last}
			return buf[:min(len(buf), f.body.Max)], nil
		}
	}
}

// replay serves what was read ahead, then the rest of the body.
type replay struct {
	message.Body
	ahead []byte
	last  bool // ahead is all there is
}

// Next implements message.Body.
func (r *replay) Next() ([]byte, bool, error) {
	if p := r.ahead; len(p) > 0 {
		r.ahead = nil
		return p, r.last, nil
	}
	if r.last {
		return nil, true, nil
	}
	return r.Body.Next()
}

// Ready implements message.Body.
func (r *replay) Ready() (int, bool) {
	if len(r.ahead) > 0 || r.last {
		return len(r.ahead), r.last
	}
	return r.Body.Ready()
}
