package proxyprotocol

import (
	"errors"
	"fmt"
	"slices"

	corev3pb "github.com/envoyproxy/go-control-plane/envoy/config/core/v3"
	proxy_protocolv3pb "github.com/envoyproxy/go-control-plane/envoy/extensions/filters/listener/proxy_protocol/v3"

	"github.com/fairlead-mesh/fairlead/filters"
	"github.com/fairlead-mesh/fairlead/filters/internal/decode"
)

const (
	typeURL          = "type.googleapis.com/envoy.extensions.filters.listener.proxy_protocol.v3.ProxyProtocol"
	defaultNamespace = "envoy.filters.listener.proxy_protocol"
)

// Config is the filter's configuration.
type Config struct {
	// Optional lets connections without a PROXY header pass.
	Optional bool
	// NoV1 and NoV2 disallow a version.
	NoV1, NoV2 bool
	// Rules keep TLVs as dynamic metadata.
	Rules []Rule
	// StatPrefix is part of the metrics' names.
	StatPrefix string
}

// Rule keeps the TLV of one type.
type Rule struct {
	Type           uint8
	Namespace, Key string
	// Base64 keeps the value in base64 instead of replacing invalid UTF-8.
	Base64 bool
}

// Decode implements filters.ListenerFactory.
func (Factory) Decode(a filters.Any, d *filters.Decoding) (filters.Config, error) {
	m := &proxy_protocolv3pb.ProxyProtocol{}
	if err := decode.Into(a, m, d); err != nil {
		return nil, err
	}
	c := &Config{
		Optional:   m.GetAllowRequestsWithoutProxyProtocol(),
		NoV1:       slices.Contains(m.GetDisallowedVersions(), corev3pb.ProxyProtocolConfig_V1),
		NoV2:       slices.Contains(m.GetDisallowedVersions(), corev3pb.ProxyProtocolConfig_V2),
		StatPrefix: m.GetStatPrefix(),
	}
	if c.NoV1 && c.NoV2 && !c.Optional {
		return nil, errors.New("disallowed_versions: no version is left")
	}
	if len(m.GetRules()) > 0 && m.GetTlvLocation() != proxy_protocolv3pb.ProxyProtocol_DYNAMIC_METADATA {
		return nil, errors.New("tlv_location: only DYNAMIC_METADATA is supported")
	}
	if m.GetPassThroughTlvs() != nil {
		d.Ignore("pass_through_tlvs", "TLVs are not passed to upstream connections")
	}
	for i, r := range m.GetRules() {
		p := r.GetOnTlvPresent()
		if r.GetTlvType() > 255 {
			return nil, fmt.Errorf("rules[%d].tlv_type: %d is not a TLV type", i, r.GetTlvType())
		}
		if p.GetKey() == "" {
			return nil, fmt.Errorf("rules[%d].on_tlv_present.key: must not be empty", i)
		}
		out := Rule{Type: uint8(r.GetTlvType()), Namespace: p.GetMetadataNamespace(), Key: p.GetKey()}
		switch p.GetValueStringEncoding() {
		case proxy_protocolv3pb.ProxyProtocol_KeyValuePair_UNSPECIFIED, proxy_protocolv3pb.ProxyProtocol_KeyValuePair_SANITIZED_UTF8:
		case proxy_protocolv3pb.ProxyProtocol_KeyValuePair_BASE64:
			out.Base64 = true
		default:
			return nil, fmt.Errorf("rules[%d].on_tlv_present.value_string_encoding: %d is not supported", i, p.GetValueStringEncoding())
		}
		if out.Namespace == "" {
			out.Namespace = defaultNamespace
		}
		c.Rules = append(c.Rules, out)
	}
	return c, nil
}
