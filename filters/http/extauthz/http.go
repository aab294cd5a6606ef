package extauthz

import (
	"fmt"
	"strconv"
	"strings"

	"github.com/fairlead-mesh/fairlead/filters"
	"github.com/fairlead-mesh/fairlead/filters/internal/authcheck"
	"github.com/fairlead-mesh/fairlead/internal/matcher"
	"github.com/fairlead-mesh/fairlead/internal/message"
)

// maxAnswer bounds the body of an answer.
const maxAnswer = 1 << 20

const partialBody = "x-envoy-auth-partial-body"

// askHTTP asks a service that speaks HTTP: 200 allows, 5xx is an error,
// everything else is the client's answer.
func (f *filter) askHTTP(s *filters.Stream, body *authcheck.Body) (*authcheck.Answer, error) {
	c := f.http
	if s.Request.Get(message.Method) == "CONNECT" {
		return nil, errConnect
	}
	callout := &filters.Callout{Header: f.question(&s.Request, body), Timeout: c.Timeout, Retry: c.Retry}
	if body != nil {
		callout.Body = body.Bytes
	}
	r, err := f.upstreams.RoundTrip(s.Context(), c.Cluster, callout, maxAnswer)
	if err != nil {
		return nil, err
	}
	switch {
	case r.Status >= 500 || r.Status < 200:
		return nil, fmt.Errorf("ext_authz: the service answered HTTP status %d", r.Status)
	case r.Status == 200:
		return c.granted(&r.Header), nil
	}
	a := &authcheck.Answer{Kind: authcheck.Denied, Status: r.Status, Body: string(r.Body)}
	for i := range r.Header.Len() {
		if h := r.Header.At(i); h.Name[0] != ':' && !hopByHop(h.Name) && c.tellsClient(h.Name) {
			a.Headers = append(a.Headers, authcheck.Header{Name: strings.Clone(h.Name), Value: strings.Clone(h.Value)})
		}
	}
	return a, nil
}

// granted is the answer of status 200.
func (c *HTTPService) granted(h *message.Header) *authcheck.Answer {
	a := &authcheck.Answer{}
	for i := range h.Len() {
		f := authcheck.Header{Name: strings.Clone(h.At(i).Name), Value: strings.Clone(h.At(i).Value)}
		if f.Name[0] == ':' || hopByHop(f.Name) {
			continue
		}
		if f.Name == "x-envoy-auth-headers-to-remove" {
			for n := range strings.SplitSeq(f.Value, ",") {
				a.Remove = append(a.Remove, strings.ToLower(strings.TrimSpace(n)))
			}
			continue
		}
		if matchAny(c.UpstreamHeaders, f.Name) {
			a.Headers = append(a.Headers, f)
		}
		if matchAny(c.UpstreamAppend, f.Name) {
			f.Add = true
			a.Headers = append(a.Headers, f)
			f.Add = false
		}
		if matchAny(c.ClientHeadersOnOK, f.Name) {
			a.ResponseHeaders = append(a.ResponseHeaders, f)
		}
		if matchAny(c.MetadataHeaders, f.Name) {
			if a.Metadata == nil {
				a.Metadata = map[string]any{}
			}
			a.Metadata[f.Name] = f.Value
		}
	}
	return a
}

// question is the head of the request to the service: the request's own method
// and path, and the headers that may be told.
func (f *filter) question(h *message.Header, body *authcheck.Body) message.Header {
	c := f.http
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
		n := h.At(i)
		if !f.tells(n.Name) {
			continue
		}
		switch {
		case f.c.Tell.RawHeaders:
			q.Add(n.Name, n.Value)
		case !q.Has(n.Name):
			v, _ := h.Joined(n.Name)
			q.Add(n.Name, authcheck.Clean(v))
		}
	}
	n := 0
	if body != nil {
		n = len(body.Bytes)
		q.Set(partialBody, strconv.FormatBool(body.Partial))
	}
	for _, kv := range c.Add {
		q.Set(kv[0], kv[1])
	}
	q.Set("content-length", strconv.Itoa(n))
	q.Set("x-envoy-internal", "true")
	if c.Timeout > 0 {
		q.Set("x-envoy-expected-rq-timeout-ms", strconv.FormatInt(max(c.Timeout.Milliseconds(), 1), 10))
	}
	return q
}

func (f *filter) tells(name string) bool {
	if name[0] == ':' || name == partialBody || hopByHop(name) || matchAny(f.c.Disallowed, name) {
		return false
	}
	return name == "authorization" || matchAny(f.c.Allowed, name) || matchAny(f.http.AllowedFromService, name)
}

// hopByHop names headers that belong to one message or connection.
func hopByHop(name string) bool { return authcheck.Framing(name) || name == "host" }

func matchAny(ms []matcher.String, name string) bool {
	for i := range ms {
		if ms[i].Match(name) {
			return true
		}
	}
	return false
}

func (c *HTTPService) tellsClient(name string) bool {
	return c.AllClientHeaders || name == "www-authenticate" || name == "location" || matchAny(c.ClientHeaders, name)
}
