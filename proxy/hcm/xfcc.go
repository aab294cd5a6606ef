package hcm

import (
	"strings"

	"github.com/fairlead-mesh/fairlead/internal/streaminfo"
	"github.com/fairlead-mesh/fairlead/xdsclient/xdsresource"
)

// pemEscaper is Envoy's encoding of PEM in a header.
var pemEscaper = strings.NewReplacer("\n", "%0A", " ", "%20", "+", "%2B", "/", "%2F", "=", "%3D")

const xfccHeader = "x-forwarded-client-cert"

// xfcc applies forward_client_cert_details (Envoy's mutateXfccRequestHeader).
func (st *stream) xfcc() {
	spec, h := st.m.spec, &st.s.Request
	ci := st.cn.info
	mode := spec.ForwardClientCert
	if mode == xdsresource.XFCCAlwaysForwardOnly {
		return
	}
	h.DelAliases(xfccHeader)
	mutual := ci.TLS != nil && ci.TLS.Peer.Present()
	if mode == xdsresource.XFCCSanitize || !mutual {
		h.Del(xfccHeader)
		return
	}
	if mode == xdsresource.XFCCForwardOnly {
		return
	}
	v := xfccElement(ci.TLS, &spec.SetClientCert)
	if mode == xdsresource.XFCCAppendForward {
		if old, ok := h.Joined(xfccHeader); ok && old != "" {
			v = old + "," + v
		}
	}
	h.Set(xfccHeader, v)
}

// xfccElement describes the peer of t, as d wants it: key=value pairs between
// semicolons. The subject is in RFC 2253 form, which has a backslash before
// quotes and backslashes already; SANs can't hold what separates pairs or
// elements, so that is percent-encoded, unlike in Envoy.
func xfccElement(t *streaminfo.TLS, d *xdsresource.SetClientCertDetails) string {
	var b strings.Builder
	if len(t.LocalCert.URISANs) > 0 {
		b.WriteString("By=" + xfccPlain.Replace(t.LocalCert.URISANs[0]) + ";")
	}
	peer := &t.Peer
	b.WriteString("Hash=" + peer.Digest)
	if d.Cert {
		b.WriteString(`;Cert="` + pemEscaper.Replace(peer.PEM) + `"`)
	}
	if d.Subject {
		b.WriteString(`;Subject="` + peer.Subject + `"`)
	}
	if d.URI {
		if len(peer.URISANs) == 0 {
			b.WriteString(";URI=")
		}
		for _, u := range peer.URISANs {
			b.WriteString(";URI=" + xfccPlain.Replace(u))
		}
	}
	if d.DNS {
		for _, n := range peer.DNSSANs {
			b.WriteString(";DNS=" + xfccPlain.Replace(n))
		}
	}
	return b.String()
}

// xfccPlain keeps a value that is not quoted in its pair.
var xfccPlain = strings.NewReplacer(",", "%2C", ";", "%3B", `"`, "%22", `\`, "%5C", " ", "%20")
