package rego

import (
	"encoding/json"
	"errors"
	"fmt"
	"net/url"
	"slices"
	"strings"

	"github.com/open-policy-agent/opa/v1/ast"

	"github.com/fairlead-mesh/fairlead/filters"
	"github.com/fairlead-mesh/fairlead/internal/message"
	"github.com/fairlead-mesh/fairlead/internal/streaminfo"
)

// decision is a policy's answer. The zero decision denies.
type decision struct {
	allowed         bool
	status          int // 0: the configured one
	body            string
	headers         []header // to the request if allowed, to the response if not
	responseHeaders []header
	remove          []string
	metadata        map[string]any
	querySet        []header
	queryRemove     []string
}

type header struct{ name, value string }

// parseDecision reads a boolean or an object of opa-envoy-plugin's form.
func parseDecision(v ast.Value) (decision, error) {
	switch v := v.(type) {
	case ast.Boolean:
		return decision{allowed: bool(v)}, nil
	case ast.Object:
		return parseObject(v)
	}
	return decision{}, fmt.Errorf("decision is of type %s: want boolean or object", ast.ValueName(v))
}

func parseObject(o ast.Object) (decision, error) {
	var d decision
	j, err := ast.JSON(o)
	if err != nil {
		return d, err
	}
	m, ok := j.(map[string]any)
	if !ok {
		return d, errors.New("decision object has keys that are not strings")
	}
	allowed, ok := m["allowed"].(bool)
	if !ok {
		return d, errors.New(`decision has no boolean "allowed"`)
	}
	if d.body, err = stringField(m, "body"); err != nil {
		return d, err
	}
	if d.status, err = statusField(m); err != nil {
		return d, err
	}
	if d.headers, err = headersField(m, "headers"); err != nil {
		return d, err
	}
	if d.responseHeaders, err = headersField(m, "response_headers_to_add"); err != nil {
		return d, err
	}
	if d.remove, err = stringsField(m, "request_headers_to_remove"); err != nil {
		return d, err
	}
	for i, name := range d.remove {
		d.remove[i] = strings.ToLower(name)
		if protected(d.remove[i]) {
			return d, fmt.Errorf("request_headers_to_remove: %q can't be removed by a policy", name)
		}
	}
	if d.queryRemove, err = stringsField(m, "query_parameters_to_remove"); err != nil {
		return d, err
	}
	if d.querySet, err = queryField(m); err != nil {
		return d, err
	}
	if md, ok := m["dynamic_metadata"]; ok {
		if d.metadata, ok = numbersToFloat(md).(map[string]any); !ok {
			return d, errors.New("dynamic_metadata is not an object")
		}
	}
	d.allowed = allowed
	return d, nil
}

func stringField(m map[string]any, name string) (string, error) {
	v, ok := m[name]
	if !ok {
		return "", nil
	}
	s, ok := v.(string)
	if !ok {
		return "", fmt.Errorf("%s is not a string", name)
	}
	return s, nil
}

func stringsField(m map[string]any, name string) ([]string, error) {
	v, ok := m[name]
	if !ok {
		return nil, nil
	}
	return stringList(name, v)
}

func stringList(name string, v any) ([]string, error) {
	list, ok := v.([]any)
	if !ok {
		return nil, fmt.Errorf("%s is not an array of strings", name)
	}
	out := make([]string, len(list))
	for i, e := range list {
		if out[i], ok = e.(string); !ok {
			return nil, fmt.Errorf("%s[%d] is not a string", name, i)
		}
	}
	return out, nil
}

func statusField(m map[string]any) (int, error) {
	v, ok := m["http_status"]
	if !ok {
		return 0, nil
	}
	num, ok := v.(json.Number)
	if !ok {
		return 0, errors.New("http_status is not a number")
	}
	n, err := num.Int64()
	if err != nil || n < 200 || n > 599 {
		return 0, fmt.Errorf("http_status %s is not a final HTTP status", num)
	}
	return int(n), nil
}

// headersField reads an object of name → value or values, or an array of such
// objects.
func headersField(m map[string]any, field string) ([]header, error) {
	v, ok := m[field]
	if !ok {
		return nil, nil
	}
	list, ok := v.([]any)
	if !ok {
		list = []any{v}
	}
	var out []header
	for _, e := range list {
		o, ok := e.(map[string]any)
		if !ok {
			return nil, fmt.Errorf("%s: want an object or an array of objects", field)
		}
		names := make([]string, 0, len(o))
		for name := range o {
			names = append(names, name)
		}
		slices.Sort(names) // a decision is applied the same way each time
		for _, name := range names {
			values := []string{}
			if s, ok := o[name].(string); ok {
				values = append(values, s)
			} else if l, err := stringList(field+"."+name, o[name]); err == nil {
				values = l
			} else {
				return nil, err
			}
			lower := strings.ToLower(name)
			for _, value := range values {
				if err := checkHeader(lower, value); err != nil {
					return nil, fmt.Errorf("%s: %w", field, err)
				}
				out = append(out, header{lower, value})
			}
		}
	}
	return out, nil
}

func queryField(m map[string]any) ([]header, error) {
	const field = "query_parameters_to_set"
	v, ok := m[field]
	if !ok {
		return nil, nil
	}
	o, ok := v.(map[string]any)
	if !ok {
		return nil, fmt.Errorf("%s is not an object", field)
	}
	names := make([]string, 0, len(o))
	for name := range o {
		names = append(names, name)
	}
	slices.Sort(names)
	var out []header
	for _, name := range names {
		if s, ok := o[name].(string); ok {
			out = append(out, header{name, s})
			continue
		}
		l, err := stringList(field+"."+name, o[name])
		if err != nil {
			return nil, err
		}
		for _, s := range l {
			out = append(out, header{name, s})
		}
	}
	return out, nil
}

// protected names carry framing or routing; a policy that changes them could
// make proxy and upstream disagree about the message.
func protected(name string) bool {
	if name == "" || name[0] == ':' {
		return true
	}
	switch name {
	case "host", "content-length", "transfer-encoding", "connection", "upgrade", "te", "keep-alive", "proxy-connection":
		return true
	}
	return false
}

func checkHeader(name, value string) error {
	if protected(name) {
		return fmt.Errorf("%q can't be set by a policy", name)
	}
	for i := range len(name) {
		if !tokenChar(name[i]) {
			return fmt.Errorf("%q is not a header name", name)
		}
	}
	if strings.ContainsAny(value, "\r\n\x00") {
		return fmt.Errorf("value of %q holds a line break or NUL", name)
	}
	return nil
}

// tokenChar reports whether c may be in a field name, RFC 9110 section 5.6.2.
func tokenChar(c byte) bool {
	return 'a' <= c && c <= 'z' || '0' <= c && c <= '9' || strings.IndexByte("!#$%&'*+-.^_`|~", c) >= 0
}

// numbersToFloat gives v the value types that metadata has.
func numbersToFloat(v any) any {
	switch v := v.(type) {
	case json.Number:
		f, _ := v.Float64()
		return f
	case []any:
		for i := range v {
			v[i] = numbersToFloat(v[i])
		}
	case map[string]any:
		for k := range v {
			v[k] = numbersToFloat(v[k])
		}
	}
	return v
}

// applyRequest changes the request as an allowing decision asks.
func (d *decision) applyRequest(s *filters.Stream, f *filter) error {
	for _, name := range d.remove {
		s.Request.Del(name)
		s.Request.DelAliases(name)
	}
	for i, h := range d.headers {
		if slices.ContainsFunc(d.headers[:i], func(o header) bool { return o.name == h.name }) {
			s.Request.Add(h.name, h.value)
		} else {
			s.Request.Set(h.name, h.value)
			s.Request.DelAliases(h.name)
		}
	}
	if len(d.headers)+len(d.remove) > 0 && !message.IsEmpty(s.Body) {
		s.Body = filters.WithoutTrailers(s.Body, d.names)
	}
	if len(d.querySet)+len(d.queryRemove) > 0 {
		s.Request.Set(message.Path, d.rewriteQuery(s.Request.Get(message.Path)))
	}
	for k, v := range d.metadata {
		s.Info.Metadata.Set(f.cfg.metadataNamespace, k, v)
	}
	if f.cfg.clearRouteCache && (len(d.headers)+len(d.remove)+len(d.querySet)+len(d.queryRemove) > 0) {
		s.ClearRouteCache()
		if s.Route == nil {
			return errors.New("no route matches the request that the policy changed")
		}
	}
	return nil
}

// names tells whether the decision sets or removes a header that origins could
// take name for.
func (d *decision) names(name string) bool {
	return slices.ContainsFunc(d.headers, func(h header) bool { return message.SameForCGI(h.name, name) }) ||
		slices.ContainsFunc(d.remove, func(n string) bool { return message.SameForCGI(n, name) })
}

// rewriteQuery removes and sets parameters and leaves the others byte for byte.
func (d *decision) rewriteQuery(path string) string {
	path, fragment, hasFragment := strings.Cut(path, "#")
	path, query, _ := strings.Cut(path, "?")
	var kept []string
	for pair := range strings.SplitSeq(query, "&") {
		if pair == "" {
			continue
		}
		name, _, _ := strings.Cut(pair, "=")
		if un, err := url.QueryUnescape(name); err == nil {
			name = un
		}
		if slices.Contains(d.queryRemove, name) || slices.ContainsFunc(d.querySet, func(h header) bool { return h.name == name }) {
			continue
		}
		kept = append(kept, pair)
	}
	for _, h := range d.querySet {
		kept = append(kept, url.QueryEscape(h.name)+"="+url.QueryEscape(h.value))
	}
	if len(kept) > 0 {
		path += "?" + strings.Join(kept, "&")
	}
	if hasFragment {
		path += "#" + fragment
	}
	return path
}

// reply makes the local reply of a denying decision.
func (d *decision) reply(s *filters.Stream, f *filter) *filters.Response {
	for k, v := range d.metadata {
		s.Info.Metadata.Set(f.cfg.metadataNamespace, k, v)
	}
	status := d.status
	if status == 0 {
		status = f.cfg.denyStatus
	}
	r := s.Deny(status, d.body, "rego_denied{policy}", streaminfo.UnauthorizedExternalService, f.refusal(&result{outcome: denied}))
	for i, h := range d.headers {
		if slices.ContainsFunc(d.headers[:i], func(o header) bool { return o.name == h.name }) {
			r.Header.Add(h.name, h.value)
		} else {
			r.Header.Set(h.name, h.value)
		}
	}
	return r
}
