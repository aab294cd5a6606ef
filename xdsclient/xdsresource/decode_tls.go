package xdsresource

import (
	"crypto/tls"
	"crypto/x509"
	"encoding/base64"
	"encoding/hex"
	"errors"
	"slices"
	"strings"

	corev3pb "github.com/envoyproxy/go-control-plane/envoy/config/core/v3"
	internalv3pb "github.com/envoyproxy/go-control-plane/envoy/extensions/transport_sockets/internal_upstream/v3"
	proxyprotocolv3pb "github.com/envoyproxy/go-control-plane/envoy/extensions/transport_sockets/proxy_protocol/v3"
	rawbufferv3pb "github.com/envoyproxy/go-control-plane/envoy/extensions/transport_sockets/raw_buffer/v3"
	tlsv3pb "github.com/envoyproxy/go-control-plane/envoy/extensions/transport_sockets/tls/v3"
	metadatav3pb "github.com/envoyproxy/go-control-plane/envoy/type/metadata/v3"
	"google.golang.org/protobuf/types/known/anypb"

	"github.com/fairlead-mesh/fairlead/internal/matcher"
)

// socketConfig returns the typed_config of ts, which by name alone may be
// raw_buffer.
func (s *scope) socketConfig(ts *corev3pb.TransportSocket) *anypb.Any {
	a, err := unwrapStruct(ts.GetTypedConfig())
	s.reject("typed_config", err)
	return a
}

func isRawBuffer(ts *corev3pb.TransportSocket, a *anypb.Any) bool {
	return isType(a, (*rawbufferv3pb.RawBuffer)(nil)) || a == nil && ts.GetName() == "envoy.transport_sockets.raw_buffer"
}

// downstreamSocket returns nil for raw_buffer.
func (s *scope) downstreamSocket(ts *corev3pb.TransportSocket) *DownstreamTLS {
	a := s.socketConfig(ts)
	if isRawBuffer(ts, a) {
		return nil
	}
	t := &DownstreamTLS{}
	var m tlsv3pb.DownstreamTlsContext
	s.push("typed_config")
	defer s.pop()
	if !s.unpack(a, &m) {
		t.Unknown = "transport socket " + ts.GetName() + " (" + ExtensionType(a) + ") is not supported"
		return t
	}
	mark := len(s.closed)
	s.classify(&m)
	s.push("common_tls_context")
	t.CommonTLS = s.commonTLS(m.GetCommonTlsContext())
	s.pop()
	t.RequireClientCert = m.GetRequireClientCertificate().GetValue()
	t.RequireSNI = m.GetRequireSni().GetValue()
	t.DisableStatelessResumption = m.GetDisableStatelessSessionResumption()
	if len(t.Certificates) == 0 && len(s.closed) == mark {
		s.errorf("common_tls_context", "there is no certificate")
	}
	t.Unknown = s.takeClosed(mark)
	return t
}

func (s *scope) upstreamSocket(ts *corev3pb.TransportSocket) TransportSocket {
	return s.upstreamSocketAt(ts, 0)
}

const maxSocketDepth = 4

func (s *scope) upstreamSocketAt(ts *corev3pb.TransportSocket, depth int) TransportSocket {
	if ts == nil {
		return TransportSocket{}
	}
	a := s.socketConfig(ts)
	if isRawBuffer(ts, a) {
		return TransportSocket{}
	}
	s.push("typed_config")
	defer s.pop()
	if depth > maxSocketDepth {
		s.errorf("", "nested more than %d deep", maxSocketDepth)
		return TransportSocket{}
	}
	var out TransportSocket
	mark := len(s.closed)
	var u tlsv3pb.UpstreamTlsContext
	var in internalv3pb.InternalUpstreamTransport
	var pp proxyprotocolv3pb.ProxyProtocolUpstreamTransport
	switch {
	case s.unpack(a, &u):
		s.classify(&u)
		out.TLS = s.upstreamTLS(&u)
	case s.unpack(a, &in):
		s.classify(&in)
		s.push("transport_socket")
		out = s.upstreamSocketAt(in.GetTransportSocket(), depth+1)
		s.pop()
		if out.Internal != nil {
			s.unsupported("transport_socket", "internal_upstream inside internal_upstream is not supported")
		}
		out.Internal = s.internalUpstream(&in)
	case s.unpack(a, &pp):
		s.classify(&pp)
		s.push("transport_socket")
		out = s.upstreamSocketAt(pp.GetTransportSocket(), depth+1)
		s.pop()
		if out.Internal != nil || out.ProxyProtocol != 0 {
			s.unsupported("transport_socket", "only raw_buffer and tls are supported inside proxy_protocol")
		}
		out.ProxyProtocol = 1
		if pp.GetConfig().GetVersion() == corev3pb.ProxyProtocolConfig_V2 {
			out.ProxyProtocol = 2
		}
	default:
		s.unsupported("", "transport socket %q (%s) is not supported", ts.GetName(), ExtensionType(a))
	}
	if reason := s.takeClosed(mark); reason != "" && out.Unknown == "" {
		out.Unknown = reason
	}
	return out
}

func (s *scope) internalUpstream(m *internalv3pb.InternalUpstreamTransport) *InternalUpstream {
	out := &InternalUpstream{}
	for i, p := range m.GetPassthroughMetadata() {
		s.pushIndex("passthrough_metadata", i)
		switch p.GetKind().GetKind().(type) {
		case *metadatav3pb.MetadataKind_Host_:
			out.Passthrough = append(out.Passthrough, PassthroughMetadata{Host: true, Name: p.GetName()})
		case *metadatav3pb.MetadataKind_Cluster_:
			out.Passthrough = append(out.Passthrough, PassthroughMetadata{Name: p.GetName()})
		default:
			s.errorf("kind", "must be host or cluster")
		}
		s.pop()
	}
	return out
}

func (s *scope) upstreamTLS(m *tlsv3pb.UpstreamTlsContext) *UpstreamTLS {
	t := &UpstreamTLS{
		SNI:                  m.GetSni(),
		AutoHostSNI:          m.GetAutoHostSni(),
		AutoSNISANValidation: m.GetAutoSniSanValidation(),
		AllowRenegotiation:   m.GetAllowRenegotiation(),
		MaxSessionKeys:       u32(m.GetMaxSessionKeys(), 1),
	}
	if len(t.SNI) > 255 {
		s.errorf("sni", "is longer than 255 bytes")
	}
	s.push("common_tls_context")
	t.CommonTLS = s.commonTLS(m.GetCommonTlsContext())
	s.pop()
	if t.AutoSNISANValidation && t.Validation == nil {
		s.errorf("auto_sni_san_validation", "needs a validation context with a trusted CA")
	}
	return t
}

func (s *scope) commonTLS(m *tlsv3pb.CommonTlsContext) CommonTLS {
	s.push("tls_params")
	t := CommonTLS{ALPN: m.GetAlpnProtocols(), Params: s.tlsParams(m.GetTlsParams())}
	s.pop()
	for i, c := range m.GetTlsCertificates() {
		s.pushIndex("tls_certificates", i)
		t.Certificates = append(t.Certificates, s.certificate(c))
		s.pop()
	}
	for i, c := range m.GetTlsCertificateSdsSecretConfigs() {
		s.pushIndex("tls_certificate_sds_secret_configs", i)
		t.Certificates = append(t.Certificates, Certificate{SDSName: c.GetName(), SDSSource: s.configSource("sds_config", c.GetSdsConfig())})
		s.pop()
	}
	switch v := m.GetValidationContextType().(type) {
	case nil:
	case *tlsv3pb.CommonTlsContext_ValidationContext:
		s.push("validation_context")
		t.Validation = s.validation(v.ValidationContext)
		if pinned := len(t.Validation.SANs) > 0; pinned && t.Validation.TrustedCA == nil && !t.Validation.SystemRoots {
			s.errorf("", "SAN-based verification of peer certificates without trusted CA is insecure and not allowed")
		}
		s.pop()
	case *tlsv3pb.CommonTlsContext_ValidationContextSdsSecretConfig:
		t.Validation = &Validation{}
		s.validationSDS(t.Validation, "validation_context_sds_secret_config", v.ValidationContextSdsSecretConfig)
	case *tlsv3pb.CommonTlsContext_CombinedValidationContext:
		s.push("combined_validation_context")
		s.push("default_validation_context")
		t.Validation = s.validation(v.CombinedValidationContext.GetDefaultValidationContext())
		s.pop()
		s.validationSDS(t.Validation, "validation_context_sds_secret_config", v.CombinedValidationContext.GetValidationContextSdsSecretConfig())
		s.pop()
	}
	return t
}

func (s *scope) validationSDS(v *Validation, field string, c *tlsv3pb.SdsSecretConfig) {
	s.push(field)
	defer s.pop()
	if c.GetName() == "" {
		s.errorf("name", "is empty")
	}
	v.SDSName, v.SDSSource = c.GetName(), s.configSource("sds_config", c.GetSdsConfig())
}

var tlsVersions = map[tlsv3pb.TlsParameters_TlsProtocol]uint16{
	tlsv3pb.TlsParameters_TLS_AUTO: 0,
	tlsv3pb.TlsParameters_TLSv1_0:  tls.VersionTLS10,
	tlsv3pb.TlsParameters_TLSv1_1:  tls.VersionTLS11,
	tlsv3pb.TlsParameters_TLSv1_2:  tls.VersionTLS12,
	tlsv3pb.TlsParameters_TLSv1_3:  tls.VersionTLS13,
}

// cipherSuites are BoringSSL's names of the suites that crypto/tls has.
var cipherSuites = map[string]uint16{
	"ECDHE-ECDSA-AES128-GCM-SHA256": tls.TLS_ECDHE_ECDSA_WITH_AES_128_GCM_SHA256,
	"ECDHE-RSA-AES128-GCM-SHA256":   tls.TLS_ECDHE_RSA_WITH_AES_128_GCM_SHA256,
	"ECDHE-ECDSA-AES256-GCM-SHA384": tls.TLS_ECDHE_ECDSA_WITH_AES_256_GCM_SHA384,
	"ECDHE-RSA-AES256-GCM-SHA384":   tls.TLS_ECDHE_RSA_WITH_AES_256_GCM_SHA384,
	"ECDHE-ECDSA-CHACHA20-POLY1305": tls.TLS_ECDHE_ECDSA_WITH_CHACHA20_POLY1305_SHA256,
	"ECDHE-RSA-CHACHA20-POLY1305":   tls.TLS_ECDHE_RSA_WITH_CHACHA20_POLY1305_SHA256,
	"ECDHE-ECDSA-AES128-SHA":        tls.TLS_ECDHE_ECDSA_WITH_AES_128_CBC_SHA,
	"ECDHE-RSA-AES128-SHA":          tls.TLS_ECDHE_RSA_WITH_AES_128_CBC_SHA,
	"ECDHE-ECDSA-AES256-SHA":        tls.TLS_ECDHE_ECDSA_WITH_AES_256_CBC_SHA,
	"ECDHE-RSA-AES256-SHA":          tls.TLS_ECDHE_RSA_WITH_AES_256_CBC_SHA,
	"AES128-GCM-SHA256":             tls.TLS_RSA_WITH_AES_128_GCM_SHA256,
	"AES256-GCM-SHA384":             tls.TLS_RSA_WITH_AES_256_GCM_SHA384,
	"AES128-SHA":                    tls.TLS_RSA_WITH_AES_128_CBC_SHA,
	"AES256-SHA":                    tls.TLS_RSA_WITH_AES_256_CBC_SHA,
}

// curves are BoringSSL's names of key exchanges; 0 is one that crypto/tls has not.
var curves = map[string]tls.CurveID{
	"X25519": tls.X25519, "x25519": tls.X25519,
	"P-256": tls.CurveP256, "prime256v1": tls.CurveP256,
	"P-384": tls.CurveP384, "secp384r1": tls.CurveP384,
	"P-521": tls.CurveP521, "secp521r1": tls.CurveP521,
	"X25519MLKEM768": tls.X25519MLKEM768, "MLKEM1024": 0,
}

// curveOrder is in which order crypto/tls prefers them, whatever it is told.
var curveOrder = []tls.CurveID{tls.X25519MLKEM768, tls.X25519, tls.CurveP256, tls.CurveP384, tls.CurveP521}

func (s *scope) ecdhCurves(names []string) (out []tls.CurveID) {
	for _, name := range names {
		switch id, ok := curves[name]; {
		case !ok:
			s.errorf("ecdh_curves", "%q is no curve", name)
		case id == 0:
			s.ignore("ecdh_curves", "curve "+name+" is not available; the others are offered")
		default:
			out = append(out, id)
		}
	}
	if len(names) > 0 && len(out) == 0 {
		s.unsupported("ecdh_curves", "none of the curves is available")
	}
	if !slices.IsSortedFunc(out, func(a, b tls.CurveID) int {
		return slices.Index(curveOrder, a) - slices.Index(curveOrder, b)
	}) {
		s.ignore("ecdh_curves", "their order counts for nothing: X25519MLKEM768 is taken before all others, then what the client has sent a share for, then X25519, P-256, P-384, P-521")
	}
	return out
}

func (s *scope) tlsParams(m *tlsv3pb.TlsParameters) TLSParams {
	p := TLSParams{MinVersion: tlsVersions[m.GetTlsMinimumProtocolVersion()], MaxVersion: tlsVersions[m.GetTlsMaximumProtocolVersion()]}
	if p.MinVersion != 0 && p.MaxVersion != 0 && p.MinVersion > p.MaxVersion {
		s.unsupported("tls_minimum_protocol_version", "is greater than tls_maximum_protocol_version")
	}
	for _, entry := range m.GetCipherSuites() {
		// "[A|B]" is a group of equal preference.
		for name := range strings.SplitSeq(strings.Trim(entry, "[]"), "|") {
			id, ok := cipherSuites[name]
			if !ok {
				s.ignore("cipher_suites", "suite "+name+" is not available; the others are offered")
				continue
			}
			p.CipherSuites = append(p.CipherSuites, id)
		}
	}
	if len(m.GetCipherSuites()) > 0 && len(p.CipherSuites) == 0 && p.MinVersion < tls.VersionTLS13 {
		s.unsupported("cipher_suites", "none of the suites is available")
	}
	p.Curves = s.ecdhCurves(m.GetEcdhCurves())
	return p
}

func (s *scope) certificate(m *tlsv3pb.TlsCertificate) Certificate {
	var c Certificate
	if f := m.GetCertificateChain().GetFilename(); f != "" {
		c.ChainFile = f
	} else {
		c.Chain = s.data("certificate_chain", m.GetCertificateChain())
	}
	if f := m.GetPrivateKey().GetFilename(); f != "" {
		c.KeyFile = f
	} else {
		c.Key = s.data("private_key", m.GetPrivateKey())
	}
	c.Password = string(s.data("password", m.GetPassword()))
	c.OCSP = s.data("ocsp_staple", m.GetOcspStaple())
	switch {
	case m.GetPkcs12() != nil: // closed
	case m.GetPrivateKeyProvider() != nil && !m.GetPrivateKeyProvider().GetFallback():
		s.unsupported("private_key_provider", "is not supported, and fallback isn't set")
	case m.GetCertificateChain() == nil:
		s.errorf("certificate_chain", "is missing")
	case m.GetPrivateKey() == nil:
		s.errorf("private_key", "is missing")
	}
	return c
}

func (s *scope) validation(m *tlsv3pb.CertificateValidationContext) *Validation {
	v := &Validation{
		TrustedCA:       s.data("trusted_ca", m.GetTrustedCa()),
		TrustedCAFile:   m.GetTrustedCa().GetFilename(),
		CRL:             s.data("crl", m.GetCrl()),
		CRLFile:         m.GetCrl().GetFilename(),
		AcceptUntrusted: m.GetTrustChainVerification() == tlsv3pb.CertificateValidationContext_ACCEPT_UNTRUSTED,
		AllowExpired:    m.GetAllowExpiredCertificate(),
		SystemRoots:     m.GetSystemRootCerts() != nil,
		MaxVerifyDepth:  m.GetMaxVerifyDepth().GetValue(),
	}
	for i, h := range m.GetVerifyCertificateHash() {
		h = strings.ToLower(strings.ReplaceAll(h, ":", ""))
		if b, err := hex.DecodeString(h); err != nil || len(b) != 32 {
			s.pushIndex("verify_certificate_hash", i)
			s.errorf("", "is no SHA-256 in hexadecimal")
			s.pop()
		}
		v.Hashes = append(v.Hashes, h)
	}
	for i, p := range m.GetVerifyCertificateSpki() {
		if b, err := base64.StdEncoding.DecodeString(p); err != nil || len(b) != 32 {
			s.pushIndex("verify_certificate_spki", i)
			s.errorf("", "is no SHA-256 in base64")
			s.pop()
		}
		v.SPKI = append(v.SPKI, p)
	}
	s.sans(v, m)
	return v
}

func (s *scope) sans(v *Validation, m *tlsv3pb.CertificateValidationContext) {
	types := map[tlsv3pb.SubjectAltNameMatcher_SanType]SANType{
		tlsv3pb.SubjectAltNameMatcher_EMAIL:      SANEmail,
		tlsv3pb.SubjectAltNameMatcher_DNS:        SANDNS,
		tlsv3pb.SubjectAltNameMatcher_URI:        SANURI,
		tlsv3pb.SubjectAltNameMatcher_IP_ADDRESS: SANIP,
	}
	for i, t := range m.GetMatchTypedSubjectAltNames() {
		s.pushIndex("match_typed_subject_alt_names", i)
		typ, ok := types[t.GetSanType()]
		if !ok {
			s.unsupported("san_type", "%s is not supported", t.GetSanType())
		}
		str, err := matcher.StringFromProto(t.GetMatcher())
		s.matcherErr("matcher", err)
		v.SANs = append(v.SANs, SANMatcher{Type: typ, Matcher: str})
		s.pop()
	}
	if len(v.SANs) > 0 {
		return // as in Envoy the typed list replaces the other
	}
	for i, t := range m.GetMatchSubjectAltNames() {
		s.pushIndex("match_subject_alt_names", i)
		str, err := matcher.StringFromProto(t)
		s.matcherErr("", err)
		v.SANs = append(v.SANs, SANMatcher{Type: SANAny, Matcher: str})
		s.pop()
	}
}

func (s *scope) secret(m *tlsv3pb.Secret) *Secret {
	s.classify(m)
	x := &Secret{Resource: Resource{Name: m.GetName()}}
	switch t := m.GetType().(type) {
	case *tlsv3pb.Secret_TlsCertificate:
		s.push("tls_certificate")
		c := s.certificate(t.TlsCertificate)
		x.Certificate = &c
		if len(c.Chain) > 0 && len(c.Key) > 0 && c.Password == "" {
			if _, err := tls.X509KeyPair(c.Chain, c.Key); err != nil {
				s.errorf("", "can't be used: %v", err)
			}
		}
		s.pop()
	case *tlsv3pb.Secret_ValidationContext:
		s.push("validation_context")
		x.Validation = s.validation(t.ValidationContext)
		if ca := x.Validation.TrustedCA; len(ca) > 0 && x.Validation.TrustedCAFile == "" {
			if !x509.NewCertPool().AppendCertsFromPEM(ca) {
				s.errorf("trusted_ca", "can't be used: there is no certificate in it")
			}
		}
		s.pop()
	case *tlsv3pb.Secret_GenericSecret:
		x.Generic = s.data("generic_secret.secret", t.GenericSecret.GetSecret())
	}
	if m.GetType() == nil {
		s.errorf("type", "none is set")
	}
	// A secret can't fail closed by itself: what is missing in it rejects it.
	if reason := s.takeClosed(0); reason != "" {
		s.errs = append(s.errs, errors.New(reason))
	}
	return x
}
