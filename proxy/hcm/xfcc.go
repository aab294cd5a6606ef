package hcm

import (
	"strings"

	"github.com/fairlead-mesh/fairlead/xdsclient/xdsresource"
)

// pemEscaper is Envoy's encoding of PEM in a header.
var pemEscaper = strings.NewReplacer("\n", "%0A", " ", "%20", "+", "%2B", "/", "%2F", "=", "%3D")

const xfccHeader = "x-forwarded-client-cert"

// xfcc applies forward_client_cert_details (Envoy's mutateXfccRequestHeader).
func (st *stream) xfcc() {
	spec, h := st.m.spec, &st.s.Request
	ci := st.cn.c.Info.Conn
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
	d := spec.SetClientCert
	var parts []string
	if len(ci.TLS.LocalCert.URISANs) > 0 {
		parts = append(parts, "By="+ci.TLS.LocalCert.URISANs[0])
	}
	peer := &ci.TLS.Peer
	parts = append(parts, "Hash="+peer.Digest)
	if d.Cert {
		parts = append(parts, `Cert="`+pemEscaper.Replace(peer.PEM)+`"`)
	}
	if d.Subject {
		parts = append(parts, `Subject="`+strings.ReplaceAll(peer.Subject, `"`, `\"`)+`"`)
	}
	if d.URI {
		if len(peer.URISANs) == 0 {
			parts = append(parts, "URI=")
		}
		for _, u := range peer.URISANs {
			parts = append(parts, "URI="+u)
		}
	}
	if d.DNS {
		for _, n := range peer.DNSSANs {
			parts = append(parts, "DNS="+n)
		}
	}
	v := strings.Join(parts, ";")
	if mode == xdsresource.XFCCAppendForward {
		if old, ok := h.Joined(xfccHeader); ok && old != "" {
			v = old + "," + v
		}
	}
	h.Set(xfccHeader, v)
}
