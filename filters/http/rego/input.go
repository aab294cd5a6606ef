package rego

import (
	"encoding/base64"
	"errors"
	"fmt"
	"net/netip"
	"net/url"
	"strconv"
	"strings"
	"unicode/utf8"

	"github.com/open-policy-agent/opa/v1/ast"

	"github.com/fairlead-mesh/fairlead/filters"
	"github.com/fairlead-mesh/fairlead/internal/message"
	"github.com/fairlead-mesh/fairlead/internal/streaminfo"
)

// Keys of the input document: opa-envoy-plugin's, which are the fields of
// envoy.service.auth.v3.CheckRequest under their JSON names, with numbers as
// numbers and bytes in base64, plus what the plugin parses.
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
	kSrcPrincipal  = ast.StringTerm("source_principal")
	kSeconds       = ast.StringTerm("seconds")
	kNanos         = ast.StringTerm("nanos")

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
	path, query, _ := strings.Cut(s.Request.Get(message.Path), "?")
	if w.parsedPath {
		t, err := parsePath(path)
		if err != nil {
			return nil, err
		}
		top = append(top, ast.Item(kParsedPath, t))
	}
	if w.parsedQuery {
		values, err := url.ParseQuery(query)
		if err != nil {
			return nil, fmt.Errorf("parsed_query: %w", err)
		}
		top = append(top, ast.Item(kParsedQuery, valuesTerm(values)))
	}
	if w.needsBody() {
		parsed, truncated := ast.InternedNullTerm, b.truncated
		if w.parsedBody || w.truncated {
			var err error
			if parsed, truncated, err = f.parseBody(&s.Request, b); err != nil {
				return nil, err
			}
		}
		top = append(top, ast.Item(kParsedBody, parsed), ast.Item(kTruncated, ast.InternedTerm(truncated)))
	}
	if w.version {
		top = append(top, ast.Item(kVersion, versionTerm))
	}
	if w.sourcePrincipal {
		if p := sourcePrincipal(&s.Info); p != "" {
			top = append(top, ast.Item(kSrcPrincipal, str(p)))
		}
	}
	return ast.NewObject(top...), nil
}

func (f *filter) attributes(s *filters.Stream, w *want, b requestBody) *ast.Term {
	attrs := make([][2]*ast.Term, 0, 5)
	req := make([][2]*ast.Term, 0, 2)
	req = append(req, ast.Item(kHTTP, httpRequest(s, w, b)))
	if w.time {
		req = append(req, ast.Item(kTime, ast.ObjectTerm(
			ast.Item(kSeconds, integer(s.Info.Start.Unix())), ast.Item(kNanos, integer(int64(s.Info.Start.Nanosecond()))))))
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

func integer(n int64) *ast.Term { return ast.NewTerm(ast.Number(strconv.FormatInt(n, 10))) }

// str copies s. What is not UTF-8 has "!" in place of each wrong byte, as
// ext_authz sends it: nothing is left out, and every reader of the document
// sees the same.
func str(s string) *ast.Term { return ast.StringTerm(validUTF8(s)) }

func validUTF8(s string) string {
	if utf8.ValidString(s) {
		return strings.Clone(s)
	}
	b := make([]byte, 0, len(s))
	for len(s) > 0 {
		r, n := utf8.DecodeRuneInString(s)
		if r == utf8.RuneError && n == 1 {
			b = append(b, '!')
		} else {
			b = append(b, s[:n]...)
		}
		s = s[n:]
	}
	return string(b)
}

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
		h = append(h, ast.Item(kSize, integer(requestSize(s, w, b))))
	}
	if w.hasHeaders() {
		h = append(h, ast.Item(kHeaders, requestHeaders(&s.Request, w)))
	}
	if w.body && len(b.bytes) > 0 {
		// Always, also if it is not text: a rule that looks for something bad
		// in it must not become undefined.
		h = append(h, ast.Item(kBody, str(string(b.bytes))))
	}
	if w.rawBody && len(b.bytes) > 0 {
		h = append(h, ast.Item(kRawBody, ast.StringTerm(base64.StdEncoding.EncodeToString(b.bytes))))
	}
	return ast.ObjectTerm(h...)
}

// requestSize is content-length, else the size of the buffered body, else -1.
func requestSize(s *filters.Stream, w *want, b requestBody) int64 {
	if v, ok := s.Request.Lookup("content-length"); ok {
		if n, err := strconv.ParseUint(v, 10, 63); err == nil {
			return int64(n)
		}
	}
	switch {
	case w.needsBody() && !b.truncated:
		return int64(len(b.bytes))
	case message.IsEmpty(s.Body):
		return 0
	}
	return -1
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
	if tls := info.Conn.TLS; tls != nil && f.cfg.peerCertificate && tls.Peer.PEM != "" {
		out = append(out, ast.Item(kCertificate, ast.StringTerm(url.QueryEscape(tls.Peer.PEM))))
	}
	if principal := sourcePrincipal(info); principal != "" {
		out = append(out, ast.Item(kPrincipal, str(principal)))
	}
	return ast.ObjectTerm(out...)
}

// sourcePrincipal is the peer's identity: the tunnel's, else the connection's.
func sourcePrincipal(info *streaminfo.Info) string {
	p := info.FilterState.GetString(peerPrincipalKey)
	if p == "" && info.Conn != nil && info.Conn.TLS != nil {
		p = certPrincipal(&info.Conn.TLS.Peer)
	}
	return p
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
		return validUTF8(v)
	case []any:
		out := make([]any, len(v))
		for i := range v {
			out[i] = cloneJSON(v[i])
		}
		return out
	case map[string]any:
		out := make(map[string]any, len(v))
		for k, e := range v {
			out[validUTF8(k)] = cloneJSON(e)
		}
		return out
	}
	return v
}

// errPathForm is a :path that is neither in origin form nor "*" nor absent
// (CONNECT): its segments are not those that upstream will see.
var errPathForm = errors.New("parsed_path: the path does not begin with a slash")

// parsePath splits path, decoded, at its slashes, as the plugin does: leading
// slashes don't count. It is no URL: "//admin/x" has no host.
func parsePath(path string) (*ast.Term, error) {
	if path != "" && path != "*" && path[0] != '/' {
		return nil, errPathForm
	}
	path, err := url.PathUnescape(path)
	if err != nil {
		return nil, fmt.Errorf("parsed_path: %w", err)
	}
	parts := strings.Split(strings.TrimLeft(path, "/"), "/")
	terms := make([]*ast.Term, len(parts))
	for i, p := range parts {
		terms[i] = str(p)
	}
	return ast.ArrayTerm(terms...), nil
}

func valuesTerm(values url.Values) *ast.Term {
	clean := make(map[string][]*ast.Term, len(values))
	for k, vs := range values {
		k = validUTF8(k)
		for _, v := range vs {
			clean[k] = append(clean[k], str(v))
		}
	}
	out := make([][2]*ast.Term, 0, len(clean))
	for k, vs := range clean {
		out = append(out, ast.Item(ast.StringTerm(k), ast.ArrayTerm(vs...)))
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
