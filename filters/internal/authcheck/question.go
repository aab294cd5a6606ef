package authcheck

import (
	"net/netip"
	"slices"
	"strconv"
	"strings"
	"unicode/utf8"

	"google.golang.org/protobuf/encoding/protowire"

	"github.com/fairlead-mesh/fairlead/filters"
	"github.com/fairlead-mesh/fairlead/internal/matcher"
	"github.com/fairlead-mesh/fairlead/internal/message"
	"github.com/fairlead-mesh/fairlead/internal/streaminfo"
)

// Telling says what a question tells beside the request itself. It is
// immutable.
type Telling struct {
	// PeerCertificate includes the peer's certificate, TLSSession the SNI.
	PeerCertificate, TLSSession bool
	// RawHeaders keeps repeated headers apart and their bytes as they are.
	RawHeaders bool
	// BodyAsBytes sends the body as raw_body.
	BodyAsBytes bool
	// Namespaces and RouteNamespaces are of dynamic and of route metadata.
	Namespaces, RouteNamespaces []string
	// Labels are the destination's, sorted by name.
	Labels [][2]string
	// Allowed and Disallowed choose headers; nil Allowed is all of them.
	Allowed, Disallowed []matcher.String
	AllowedSet          bool
	// Extensions are context_extensions, sorted by name.
	Extensions [][2]string
}

// Body is the part of the request body that is told. A nil *Body is none.
type Body struct {
	Bytes   []byte
	Partial bool
}

const partialBody = "x-envoy-auth-partial-body"

// Tells reports whether the header of this name is told.
func (t *Telling) Tells(name string) bool {
	return name != partialBody && (!t.AllowedSet || matchAny(t.Allowed, name)) && !matchAny(t.Disallowed, name)
}

func matchAny(ms []matcher.String, name string) bool {
	for i := range ms {
		if ms[i].Match(name) {
			return true
		}
	}
	return false
}

// AppendRequest appends the question about s, FrameSize bytes first. received
// is how many bytes of its body are here.
func (t *Telling) AppendRequest(b []byte, s *filters.Stream, body *Body, received uint64) []byte {
	b = append(b, make([]byte, FrameSize)...)
	return nested(b, 1, func(b []byte) []byte { // attributes
		b = t.peers(b, &s.Info, s.Request.Get("x-envoy-downstream-service-cluster"))
		b = nested(b, 4, func(b []byte) []byte { // request
			b = timestamp(b, s)
			return nested(b, 2, func(b []byte) []byte { return t.http(b, s, body, received) })
		})
		for _, kv := range t.Extensions {
			b = entry(b, 10, kv[0], kv[1])
		}
		b = t.context(b, &s.Info)
		b = t.session(b, s.Info.Conn)
		if s.Route != nil && s.Route.Metadata() != nil {
			for _, ns := range t.RouteNamespaces {
				b = namespace(b, 13, ns, s.Route.Metadata().Namespace(ns))
			}
		}
		return b
	})
}

// AppendConnection appends the question about a connection, FrameSize bytes
// first.
func (t *Telling) AppendConnection(b []byte, info *streaminfo.Info) []byte {
	b = append(b, make([]byte, FrameSize)...)
	return nested(b, 1, func(b []byte) []byte {
		b = t.peers(b, info, "")
		b = t.context(b, info)
		return t.session(b, info.Conn)
	})
}

// context appends the namespaces of dynamic metadata, the connection's where
// the stream has none.
func (t *Telling) context(b []byte, info *streaminfo.Info) []byte {
	for _, ns := range t.Namespaces {
		m := info.Metadata.Namespace(ns)
		if m == nil && info.Conn != nil {
			m = info.Conn.Metadata.Namespace(ns)
		}
		b = namespace(b, 11, ns, m)
	}
	return b
}

// Keys of the filter state that carries identities across an HBONE tunnel.
const (
	peerPrincipalKey  = "io.istio.peer_principal"
	localPrincipalKey = "io.istio.local_principal"
)

func (t *Telling) peers(b []byte, info *streaminfo.Info, service string) []byte {
	var c streaminfo.Conn
	if info.Conn != nil {
		c.Remote, c.Local, c.TLS = info.Conn.Remote, info.Conn.Local, info.Conn.TLS
	}
	var source, destination streaminfo.Certificate
	if c.TLS != nil {
		source, destination = c.TLS.Peer, c.TLS.LocalCert
	}
	b = nested(b, 1, func(b []byte) []byte {
		b = address(b, c.Remote)
		b = text(b, 2, service)
		b = text(b, 4, principal(&info.FilterState, peerPrincipalKey, &source))
		if t.PeerCertificate && source.PEM != "" {
			b = text(b, 5, certificateText.Replace(source.PEM))
		}
		return b
	})
	return nested(b, 2, func(b []byte) []byte {
		b = address(b, c.Local)
		for _, kv := range t.Labels {
			b = entry(b, 3, kv[0], kv[1])
		}
		return text(b, 4, principal(&info.FilterState, localPrincipalKey, &destination))
	})
}

// certificateText encodes PEM as Envoy does.
var certificateText = strings.NewReplacer("\n", "%0A", " ", "%20", "+", "%2B", "/", "%2F", "=", "%3D")

// principal is the tunnel's identity, else the first URI SAN, DNS SAN, or the
// subject.
func principal(fs *streaminfo.FilterState, key string, c *streaminfo.Certificate) string {
	if p := fs.GetString(key); p != "" {
		return p
	}
	switch {
	case len(c.URISANs) > 0:
		return c.URISANs[0]
	case len(c.DNSSANs) > 0:
		return c.DNSSANs[0]
	}
	return c.Subject
}

func address(b []byte, a netip.AddrPort) []byte {
	return nested(b, 1, func(b []byte) []byte {
		return nested(b, 1, func(b []byte) []byte {
			if !a.IsValid() {
				return b
			}
			b = text(b, 2, a.Addr().Unmap().String())
			return varint(b, 3, uint64(a.Port()))
		})
	})
}

func timestamp(b []byte, s *filters.Stream) []byte {
	return nested(b, 1, func(b []byte) []byte {
		b = varint(b, 1, uint64(s.Info.Start.Unix()))
		return varint(b, 2, uint64(s.Info.Start.Nanosecond()))
	})
}

func (t *Telling) http(b []byte, s *filters.Stream, body *Body, received uint64) []byte {
	h := &s.Request
	b = text(b, 1, strconv.FormatUint(s.Random, 10))
	b = text(b, 2, h.Get(message.Method))
	b = text(b, 4, clean(h.Get(message.Path)))
	b = text(b, 5, clean(h.Get(message.Authority)))
	b = text(b, 6, clean(h.Get(message.Scheme)))
	b = varint(b, 9, received)
	b = text(b, 10, s.Info.Protocol.String())
	partial := ""
	if body != nil {
		partial = strconv.FormatBool(body.Partial)
		switch {
		case t.BodyAsBytes && len(body.Bytes) > 0:
			b = protowire.AppendTag(b, 12, protowire.BytesType)
			b = protowire.AppendBytes(b, body.Bytes)
		case !t.BodyAsBytes:
			b = text(b, 11, clean(string(body.Bytes)))
		}
	}
	if t.RawHeaders {
		return nested(b, 13, func(b []byte) []byte { return t.rawHeaders(b, h, partial) })
	}
	for i := range h.Len() {
		f := h.At(i)
		if !t.Tells(f.Name) {
			continue
		}
		v := f.Value
		if h.Count(f.Name) > 1 {
			if first(h, f.Name) != i {
				continue
			}
			v, _ = h.Joined(f.Name)
		}
		b = entry(b, 3, f.Name, clean(v))
	}
	if partial != "" {
		b = entry(b, 3, partialBody, partial)
	}
	return b
}

func (t *Telling) rawHeaders(b []byte, h *message.Header, partial string) []byte {
	add := func(name, value string) {
		b = nested(b, 1, func(b []byte) []byte { return text(text(b, 1, name), 3, value) })
	}
	for i := range h.Len() {
		if f := h.At(i); t.Tells(f.Name) {
			add(f.Name, f.Value)
		}
	}
	if partial != "" {
		add(partialBody, partial)
	}
	return b
}

func first(h *message.Header, name string) int {
	for i := range h.Len() {
		if h.At(i).Name == name {
			return i
		}
	}
	return -1
}

func (t *Telling) session(b []byte, c *streaminfo.Conn) []byte {
	if !t.TLSSession || c == nil || c.TLS == nil {
		return b
	}
	return nested(b, 12, func(b []byte) []byte { return text(b, 1, c.RequestedServerName) })
}

// namespace appends a Metadata message with one namespace; such messages are
// merged by the reader.
func namespace(b []byte, field protowire.Number, ns string, m map[string]any) []byte {
	if m == nil {
		return b
	}
	return nested(b, field, func(b []byte) []byte {
		return nested(b, 1, func(b []byte) []byte {
			b = text(b, 1, ns)
			return nested(b, 2, func(b []byte) []byte { return appendStruct(b, m) })
		})
	})
}

// Clean returns s with "!" in place of bytes that are not UTF-8, as Envoy tells
// header values.
func Clean(s string) string { return clean(s) }

// clean returns s with "!" in place of bytes that are not UTF-8.
func clean(s string) string {
	if utf8.ValidString(s) {
		return s
	}
	var b strings.Builder
	for s != "" {
		r, n := utf8.DecodeRuneInString(s)
		if r == utf8.RuneError && n == 1 {
			b.WriteByte('!')
		} else {
			b.WriteString(s[:n])
		}
		s = s[n:]
	}
	return b.String()
}

// Labels returns what the node's metadata has under key, for Telling.
func Labels(n *filters.Node, key string) [][2]string {
	if n == nil || key == "" {
		return nil
	}
	m, _ := n.Metadata[key].(map[string]any)
	out := make(map[string]string, len(m))
	for k, v := range m {
		if s, ok := v.(string); ok {
			out[k] = s
		}
	}
	return Sorted(out)
}

// Sorted returns names and values in the form that Telling wants.
func Sorted(m map[string]string) [][2]string {
	out := make([][2]string, 0, len(m))
	for k, v := range m {
		out = append(out, [2]string{k, v})
	}
	slices.SortFunc(out, func(a, b [2]string) int { return strings.Compare(a[0], b[0]) })
	return out
}
