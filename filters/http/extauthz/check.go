package extauthz

import (
	"errors"
	"slices"
	"strings"
	"time"

	"github.com/fairlead-mesh/fairlead/filters"
	"github.com/fairlead-mesh/fairlead/filters/internal/authcheck"
	"github.com/fairlead-mesh/fairlead/internal/format"
	"github.com/fairlead-mesh/fairlead/internal/message"
	"github.com/fairlead-mesh/fairlead/internal/streaminfo"
)

// metadataNamespace is where dynamic metadata of answers goes.
const metadataNamespace = "envoy.filters.http.ext_authz"

var (
	errTooLarge   = errors.New("ext_authz: request body is too large to be checked")
	errNoClusters = errors.New("ext_authz: no clusters are at hand")
	errConnect    = errors.New("ext_authz: an HTTP service cannot be asked about CONNECT")
)

// check asks the service and does what it says.
func (f *filter) check(s *filters.Stream, next filters.Next) (*filters.Response, error) {
	var body *authcheck.Body
	received := s.Info.BytesReceived
	if f.body != nil && s.Body != message.NoBody && s.Request.Get(message.Method) != "CONNECT" && !s.Request.Has("upgrade") {
		buf, partial, err := f.buffer(s)
		if err != nil {
			if errors.Is(err, errTooLarge) {
				return s.Deny(413, "Payload Too Large", "request_payload_too_large", 0, f.decision("body_too_large", nil)), nil
			}
			return nil, err
		}
		body, received = &authcheck.Body{Bytes: buf[:min(len(buf), f.body.Max)], Partial: partial}, uint64(len(buf))
	}
	start := time.Now()
	a, err := f.ask(s, body, received)
	if cause := s.Cause(); cause != nil {
		return nil, cause
	}
	if err != nil {
		a = &authcheck.Answer{Kind: authcheck.Failed}
	} else if !a.Valid(f.c.Strict) {
		return f.refuseInvalid(s), nil
	}
	f.setMetadata(s, a, start)
	switch a.Kind {
	case authcheck.OK:
		return f.pass(s, next, a)
	case authcheck.Denied:
		f.denied.Inc()
		f.of(s).denied.Inc()
		return f.deny(s, a, 403, "denied", nil), nil
	case authcheck.Failed:
	}
	f.failed.Inc()
	f.of(s).failed.Inc()
	if !f.c.AllowOnError {
		return f.deny(s, a, f.c.StatusOnError, "error", err), nil
	}
	f.failedAllowed.Inc()
	f.of(s).failedAllowed.Inc()
	if f.c.HeaderOnError {
		s.Request.Set("x-envoy-auth-failure-mode-allowed", "true")
	}
	return next.Do(s)
}

// refuseInvalid answers a request about which the service said what cannot be
// done.
func (f *filter) refuseInvalid(s *filters.Stream) *filters.Response {
	f.invalid.Inc()
	f.of(s).invalid.Inc()
	return s.Deny(500, "", "ext_authz_invalid", streaminfo.UnauthorizedExternalService, f.decision("invalid", nil))
}

// ask calls the service. The error says that there is no decision.
func (f *filter) ask(s *filters.Stream, body *authcheck.Body, received uint64) (*authcheck.Answer, error) {
	if f.upstreams == nil {
		return nil, errNoClusters
	}
	if f.http != nil {
		return f.askHTTP(s, body)
	}
	b := make([]byte, 0, 1024)
	b = f.tell.AppendRequest(b, s, body, received)
	return f.grpc.Check(s.Context(), f.upstreams, b, &format.Context{Info: &s.Info, Request: &s.Request})
}

// setMetadata publishes the answer's dynamic metadata.
func (f *filter) setMetadata(s *filters.Stream, a *authcheck.Answer, start time.Time) {
	if len(a.Metadata) == 0 {
		return
	}
	if f.c.NoMetadata {
		f.ignoredMetadata.Inc()
		return
	}
	for k, v := range a.Metadata {
		s.Info.Metadata.Set(metadataNamespace, k, v)
	}
	if a.Kind == authcheck.OK {
		s.Info.Metadata.Set(metadataNamespace, "ext_authz_duration", float64(time.Since(start).Milliseconds()))
	}
}

// pass lets the request go on with what the service changes of it.
func (f *filter) pass(s *filters.Stream, next filters.Next, a *authcheck.Answer) (*filters.Response, error) {
	refused := false
	var allowed func(name string, removeOrAppend bool) bool
	if r := f.c.Rules; r != nil {
		allowed = func(name string, removeOrAppend bool) bool {
			ok := r.allow(name, removeOrAppend)
			refused = refused || !ok
			return ok
		}
	}
	changed := a.EditRequest(&s.Request, allowed)
	if refused {
		f.rejectedMutations.Inc()
		if f.c.Rules.IsError {
			return f.refuseInvalid(s), nil
		}
	}
	s.Body = a.CleanTrailers(s.Body)
	f.ok.Inc()
	f.of(s).ok.Inc()
	query := a.EditQuery(&s.Request)
	if f.c.ClearRoute && (query || changed && f.routesBy(a)) {
		s.ClearRouteCache()
	}
	r, err := next.Do(s)
	if err != nil || r == nil {
		return r, err
	}
	a.EditResponse(&r.Header)
	return r, nil
}

// routesBy reports whether a changes a header that routes match on.
func (f *filter) routesBy(a *authcheck.Answer) bool {
	if len(f.c.ClearRouteHeaders) == 0 {
		return true
	}
	for _, n := range f.c.ClearRouteHeaders {
		for i := range a.Headers {
			if a.Headers[i].Name == n {
				return true
			}
		}
		if slices.Contains(a.Remove, n) {
			return true
		}
	}
	return false
}

// deny answers the client as the service wants, or with status if it names none
// that can be sent.
func (f *filter) deny(s *filters.Stream, a *authcheck.Answer, status int, reason string, err error) *filters.Response {
	if a.Status >= 200 && a.Status <= 599 {
		status = a.Status
	}
	body := a.Body
	if n := f.c.MaxDeniedBody; n > 0 && len(body) > n {
		body = body[:n]
	}
	r := s.Deny(status, body, "ext_authz_"+reason, streaminfo.UnauthorizedExternalService, f.decision(reason, err))
	grpc := s.Info.IsGRPC
	ct := r.Header.Get("content-type")
	a.EditRefusal(&r.Header)
	if grpc {
		r.Header.Set("content-type", ct)
	}
	return r
}

// decision is what is told about a refusal; err, if not nil, says why there is
// none of the service.
func (f *filter) decision(reason string, err error) streaminfo.Decision {
	d := streaminfo.Decision{Filter: "ext_authz", Reason: reason}
	if f.http != nil {
		d.Policy = f.http.Cluster
	} else {
		d.Policy = f.grpc.Cluster
	}
	if err != nil {
		d.Why = err.Error
	}
	return d
}

// buffer reads the request body up to the limit and puts it back in front of
// what is left. It returns what it read, maybe more than the limit.
func (f *filter) buffer(s *filters.Stream) (buf []byte, partial bool, err error) {
	for {
		p, last, err := s.Body.Next()
		if err != nil {
			return nil, false, err
		}
		buf = append(buf, p...)
		over := len(buf) > f.body.Max
		if over && !f.body.AllowPartial {
			return nil, false, errTooLarge
		}
		if over || last {
			s.Body = filters.Interruptible(&replay{Body: s.Body, ahead: buf, last: last}, s.Body)
			return buf, over, nil
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

// allow decides about a change of one header, as Envoy's mutation rules do.
func (r *Rules) allow(name string, removeOrAppend bool) bool {
	system := name[0] == ':'
	switch {
	case removeOrAppend && (system || name == "host"):
		return false
	case r.Deny != nil && r.Deny.MatchString(name):
		return false
	case r.Allow != nil && r.Allow.MatchString(name):
		return true
	case r.DenyAll, r.DenySystem && system:
		return false
	case name == "host", name == message.Authority, name == message.Method, name == message.Scheme:
		return r.AllowRouting
	case strings.HasPrefix(name, "x-envoy"):
		return r.AllowEnvoy
	}
	return true
}
