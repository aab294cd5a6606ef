package rego

import (
	"encoding/base64"
	"net/netip"
	"net/url"
	"strconv"
	"strings"
	"time"
	"unicode/utf8"

	"github.com/open-policy-agent/opa/v1/ast"

	"github.com/fairlead-mesh/fairlead/filters"
	"github.com/fairlead-mesh/fairlead/internal/message"
	"github.com/fairlead-mesh/fairlead/internal/streaminfo"
)

// Keys of the input document: opa-envoy-plugin's, which are the protojson form
// of envoy.service.auth.v3.CheckRequest plus what the plugin parses.
var (
	kAttributes    = ast.StringTerm("attributes")
	kRequest       = ast.StringTerm("request")
	kHTTP          = ast.StringTerm("http")
	kSource        = ast.StringTerm("source")
	kDestination   = ast.StringTerm("destination")
	kAddress       = ast.StringTerm("address")
	kSocketAddress = ast.StringTerm("socketAddress")
	kPortValue     = ast.StringTerm("portValue")
	kPrincipal     = ast.StringTerm("principal")
	kCertificate   = ast.StringTerm("certificate")
	kExtensions    = ast.StringTerm("contextExtensions")
	kMetadata      = ast.StringTerm("metadataContext")
	kFilterMD      = ast.StringTerm("filterMetadata")
	kTime          = ast.StringTerm("time")
	kID            = ast.StringTerm("id")
	kMethod        = ast.StringTerm("method")
	kHeaders       = ast.StringTerm("headers")
	kPath          = ast.StringTerm("path")
	kHost          = ast.StringTerm("host")
	kScheme        = ast.StringTerm("scheme")
	kSize          = ast.StringTerm("size")
	kProtocol      = ast.StringTerm("protocol")
	kBody          = ast.StringTerm("body")
	kRawBody       = ast.StringTerm("rawBody")
	kParsedPath    = ast.StringTerm("parsed_path")
	kParsedQuery   = ast.StringTerm("parsed_query")
	kParsedBody    = ast.StringTerm("parsed_body")
	kTruncated     = ast.StringTerm("truncated_body")
	kVersion       = ast.StringTerm("version")

	versionTerm = ast.ObjectTerm(
		ast.Item(ast.StringTerm("ext_authz"), ast.StringTerm("v3")),
		ast.Item(ast.StringTerm("encoding"), ast.StringTerm("protojson")),
	)
)

// requestBody is what was buffered of the request.
type requestBody struct {
	bytes     []byte
	truncated bool
}

// buildInput makes the parts of the input document that w asks for. Strings
// are copied: nothing of the document refers to the stream's memory, because
// OPA's caches may keep what they were given.
func (f *filter) buildInput(s *filters.Stream, w *want, b requestBody) (ast.Value, error) {
	top := make([][2]*ast.Term, 0, 6)
	top = append(top, ast.Item(kAttributes, f.attributes(s, w, b)))
	if w.parsedPath || w.parsedQuery {
		path, query, err := parseURL(strings.Clone(s.Request.Get(message.Path)))
		if err != nil {
			return nil, err
		}
		top = append(top, ast.Item(kParsedPath, path), ast.Item(kParsedQuery, query))
	}
	if w.needsBody() {
		parsed, truncated := ast.InternedNullTerm, b.truncated
		if w.parsedBody || w.truncated {
			var err error
			if parsed, truncated, err = parseBody(&s.Request, b); err != nil {
				return nil, err
			}
		}
		top = append(top, ast.Item(kParsedBody, parsed), ast.Item(kTruncated, ast.InternedTerm(truncated)))
	}
	if w.version {
		top = append(top, ast.Item(kVersion, versionTerm))
	}
	return ast.NewObject(top...), nil
}

func (f *filter) attributes(s *filters.Stream, w *want, b requestBody) *ast.Term {
	attrs := make([][2]*ast.Term, 0, 5)
	req := make([][2]*ast.Term, 0, 2)
	req = append(req, ast.Item(kHTTP, httpRequest(s, w, b)))
	if w.time {
		req = append(req, ast.Item(kTime, ast.StringTerm(s.Info.Start.UTC().Format(time.RFC3339Nano))))
	}
	attrs = append(attrs, ast.Item(kRequest, ast.ObjectTerm(req...)))
	if w.source {
		attrs = append(attrs, ast.Item(kSource, f.sourcePeer(&s.Info)))
	}
	if w.destination {
		attrs = append(attrs, ast.Item(kDestination, destinationPeer(&s.Info)))
	}
	if w.extensions && f.extensions != nil {
		attrs = append(attrs, ast.Item(kExtensions, f.extensions))
	}
	if w.metadata {
		attrs = append(attrs, ast.Item(kMetadata, f.metadataContext(s)))
	}
	return ast.ObjectTerm(attrs...)
}

func str(s string) *ast.Term { return ast.StringTerm(strings.Clone(s)) }

func httpRequest(s *filters.Stream, w *want, b requestBody) *ast.Term {
	h := make([][2]*ast.Term, 0, 10)
	add := func(on bool, k *ast.Term, v string) {
		if on && v != "" { // protojson leaves empty strings out
			h = append(h, ast.Item(k, str(v)))
		}
	}
	add(w.method, kMethod, s.Request.Get(message.Method))
	add(w.path, kPath, s.Request.Get(message.Path))
	add(w.host, kHost, s.Request.Get(message.Authority))
	add(w.scheme, kScheme, s.Request.Get(message.Scheme))
	if w.protocol {
		add(true, kProtocol, s.Info.Protocol.String())
	}
	if w.id {
		id := s.Info.RequestID
		if id == "" {
			id = strconv.FormatUint(s.Random, 10)
		}
		add(true, kID, id)
	}
	if w.size {
		add(true, kSize, requestSize(s, w, b))
	}
	if w.hasHeaders() {
		h = append(h, ast.Item(kHeaders, requestHeaders(&s.Request, w)))
	}
	if w.body && len(b.bytes) > 0 {
		if utf8.Valid(b.bytes) {
			h = append(h, ast.Item(kBody, ast.StringTerm(string(b.bytes))))
		} else {
			h = append(h, ast.Item(kRawBody, ast.StringTerm(base64.StdEncoding.EncodeToString(b.bytes))))
		}
	}
	return ast.ObjectTerm(h...)
}

// requestSize is content-length, else the size of the buffered body, else -1;
// a string, as protojson writes int64.
func requestSize(s *filters.Stream, w *want, b requestBody) string {
	if v, ok := s.Request.Lookup("content-length"); ok {
		if n, err := strconv.ParseUint(v, 10, 63); err == nil {
			return strconv.FormatUint(n, 10)
		}
	}
	if w.needsBody() && !b.truncated {
		return strconv.Itoa(len(b.bytes))
	}
	if message.IsEmpty(s.Body) {
		return "0"
	}
	return "-1"
}

func requestHeaders(h *message.Header, w *want) *ast.Term {
	n := len(w.headers)
	if w.allHeaders {
		n = h.Len()
	}
	out := make([][2]*ast.Term, 0, n)
	if !w.allHeaders {
		for _, name := range w.headers {
			if v, ok := h.Joined(name); ok {
				out = append(out, ast.Item(ast.StringTerm(name), str(v)))
			}
		}
		return ast.ObjectTerm(out...)
	}
	for i := range h.Len() {
		f := h.At(i)
		v := f.Value
		if h.Count(f.Name) > 1 {
			if firstIndex(h, f.Name) != i {
				continue
			}
			v, _ = h.Joined(f.Name)
		}
		out = append(out, ast.Item(str(f.Name), str(v)))
	}
	return ast.ObjectTerm(out...)
}

func firstIndex(h *message.Header, name string) int {
	for i := range h.Len() {
		if h.At(i).Name == name {
			return i
		}
	}
	return -1
}

// Keys of the filter state that carries identities across an HBONE tunnel.
const (
	peerPrincipalKey  = "io.istio.peer_principal"
	localPrincipalKey = "io.istio.local_principal"
)

func (f *filter) sourcePeer(info *streaminfo.Info) *ast.Term {
	out := make([][2]*ast.Term, 0, 3)
	if info.Conn == nil {
		return ast.ObjectTerm(out...)
	}
	out = append(out, ast.Item(kAddress, address(info.Conn.Remote)))
	principal := info.FilterState.GetString(peerPrincipalKey)
	if tls := info.Conn.TLS; tls != nil {
		if principal == "" {
			principal = certPrincipal(&tls.Peer)
		}
		if f.cfg.peerCertificate && tls.Peer.PEM != "" {
			out = append(out, ast.Item(kCertificate, ast.StringTerm(url.QueryEscape(tls.Peer.PEM))))
		}
	}
	if principal != "" {
		out = append(out, ast.Item(kPrincipal, str(principal)))
	}
	return ast.ObjectTerm(out...)
}

func destinationPeer(info *streaminfo.Info) *ast.Term {
	out := make([][2]*ast.Term, 0, 2)
	if info.Conn == nil {
		return ast.ObjectTerm(out...)
	}
	out = append(out, ast.Item(kAddress, address(info.Conn.Local)))
	principal := info.FilterState.GetString(localPrincipalKey)
	if tls := info.Conn.TLS; principal == "" && tls != nil {
		principal = certPrincipal(&tls.LocalCert)
	}
	if principal != "" {
		out = append(out, ast.Item(kPrincipal, str(principal)))
	}
	return ast.ObjectTerm(out...)
}

// certPrincipal is the first URI SAN, else the first DNS SAN, else the
// subject, as ext_authz chooses.
func certPrincipal(c *streaminfo.Certificate) string {
	switch {
	case len(c.URISANs) > 0:
		return c.URISANs[0]
	case len(c.DNSSANs) > 0:
		return c.DNSSANs[0]
	}
	return c.Subject
}

func address(a netip.AddrPort) *ast.Term {
	sock := make([][2]*ast.Term, 0, 2)
	if a.IsValid() {
		sock = append(sock, ast.Item(kAddress, ast.StringTerm(a.Addr().Unmap().String())),
			ast.Item(kPortValue, ast.InternedTerm(int(a.Port()))))
	}
	return ast.ObjectTerm(ast.Item(kSocketAddress, ast.ObjectTerm(sock...)))
}

func (f *filter) metadataContext(s *filters.Stream) *ast.Term {
	out := make([][2]*ast.Term, 0, len(f.cfg.metadataNamespaces))
	for _, ns := range f.cfg.metadataNamespaces {
		m := s.Info.Metadata.Namespace(ns)
		if m == nil {
			continue
		}
		if v, err := ast.InterfaceToValue(cloneJSON(m)); err == nil {
			out = append(out, ast.Item(ast.StringTerm(ns), ast.NewTerm(v)))
		}
	}
	return ast.ObjectTerm(ast.Item(kFilterMD, ast.ObjectTerm(out...)))
}

func cloneJSON(v any) any {
	switch v := v.(type) {
	case string:
		return strings.Clone(v)
	case []any:
		out := make([]any, len(v))
		for i := range v {
			out[i] = cloneJSON(v[i])
		}
		return out
	case map[string]any:
		out := make(map[string]any, len(v))
		for k, e := range v {
			out[strings.Clone(k)] = cloneJSON(e)
		}
		return out
	}
	return v
}

// parseURL splits path as the plugin does: the decoded path at "/", and the
// query's values by name.
func parseURL(path string) (segments, query *ast.Term, err error) {
	u, err := url.Parse(path)
	if err != nil {
		return nil, nil, err
	}
	parts := strings.Split(strings.TrimLeft(u.Path, "/"), "/")
	terms := make([]*ast.Term, len(parts))
	for i, p := range parts {
		terms[i] = ast.StringTerm(p)
	}
	return ast.ArrayTerm(terms...), valuesTerm(u.Query()), nil
}

func valuesTerm(values url.Values) *ast.Term {
	out := make([][2]*ast.Term, 0, len(values))
	for k, vs := range values {
		terms := make([]*ast.Term, len(vs))
		for i, v := range vs {
			terms[i] = ast.StringTerm(v)
		}
		out = append(out, ast.Item(ast.StringTerm(k), ast.ArrayTerm(terms...)))
	}
	return ast.ObjectTerm(out...)
}

// extensionsTerm is built once, at compile time.
func extensionsTerm(m map[string]string) *ast.Term {
	if len(m) == 0 {
		return nil
	}
	out := make([][2]*ast.Term, 0, len(m))
	for k, v := range m {
		out = append(out, ast.Item(ast.StringTerm(k), ast.StringTerm(v)))
	}
	return ast.ObjectTerm(out...)
}
