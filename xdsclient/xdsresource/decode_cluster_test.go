package xdsresource_test

import (
	"crypto/tls"
	"crypto/x509"
	encpem "encoding/pem"
	"fmt"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/fairlead-mesh/fairlead/internal/identity"
	"github.com/fairlead-mesh/fairlead/proxy/transport"
	"github.com/fairlead-mesh/fairlead/xdsclient/xdsresource"
)

func cluster(t *testing.T, doc string) *xdsresource.Cluster {
	t.Helper()
	return decode[*xdsresource.Cluster](t, xdsresource.ClusterType, doc)
}

func TestClusterDefaultsAreEnvoys(t *testing.T) {
	c := cluster(t, `{name: c, outlier_detection: {}}`)
	if c.ConnectTimeout != 5*time.Second || c.DNS.RefreshRate != 5*time.Second ||
		c.HTTP.IdleTimeout != time.Hour || c.HTTP.Version != xdsresource.UpstreamHTTP1 || c.Assignment == nil || c.TransportSocket.TLS != nil {
		t.Errorf("cluster %+v", c)
	}
	if lb := c.LB; lb.Policy != xdsresource.LBRoundRobin || lb.PanicThreshold != 50 || lb.ChoiceCount != 2 || lb.ActiveRequestBias != 1 ||
		lb.RingMin != 1024 || lb.RingMax != 8<<20 || lb.MaglevTableSize != 65537 {
		t.Errorf("lb %+v", lb)
	}
	want := xdsresource.CircuitBreaker{MaxConnections: 1024, MaxPendingRequests: 1024, MaxRequests: 1024, MaxRetries: 3}
	if c.Breakers[0] != want || c.Breakers[1] != want {
		t.Errorf("breakers %+v", c.Breakers)
	}
	if o := c.Outlier; o.Consecutive5xx != 5 || o.Interval != 10*time.Second || o.BaseEjectionTime != 30*time.Second || o.MaxEjectionPercent != 10 ||
		o.EnforcingConsecutive5xx != 100 || o.EnforcingConsecutiveGatewayFailure != 0 || o.MaxEjectionTime != 300*time.Second || o.SuccessRateStdevFactor != 1900 {
		t.Errorf("outlier %+v", o)
	}
}

func TestClusterPoliciesAndProtocols(t *testing.T) {
	const lbp = `load_balancing_policy: {policies: [{typed_extension_config: {name: x, typed_config: {"@type": type.googleapis.com/acme.LB}}},
{typed_extension_config: {name: y, typed_config: {"@type": type.googleapis.com/envoy.extensions.load_balancing_policies.`
	for _, tc := range []struct {
		name, doc string
		check     func(*xdsresource.Cluster) bool
	}{
		{"ring hash", `lb_policy: RING_HASH, ring_hash_lb_config: {minimum_ring_size: 7}`, func(c *xdsresource.Cluster) bool {
			return c.LB.Policy == xdsresource.LBRingHash && c.LB.RingMin == 7
		}},
		{"maglev", `lb_policy: MAGLEV, maglev_lb_config: {table_size: 101}`, func(c *xdsresource.Cluster) bool {
			return c.LB.Policy == xdsresource.LBMaglev && c.LB.MaglevTableSize == 101
		}},
		{"the first known policy", lbp + `least_request.v3.LeastRequest, choice_count: 5}}}]}`, func(c *xdsresource.Cluster) bool {
			return c.LB.Policy == xdsresource.LBLeastRequest && c.LB.ChoiceCount == 5
		}},
		{"override host", lbp + `override_host.v3.OverrideHost, override_host_sources: [{header: x-dst}], fallback_policy: {policies: [{typed_extension_config: {name: r, typed_config: {
"@type": type.googleapis.com/envoy.extensions.load_balancing_policies.round_robin.v3.RoundRobin}}}]}}}}]}`, func(c *xdsresource.Cluster) bool {
			return c.LB.Policy == xdsresource.LBRoundRobin && c.LB.OverrideHostHeader == "x-dst"
		}},
		{"HTTP/2 by the deprecated field", `http2_protocol_options: {}`, func(c *xdsresource.Cluster) bool { return c.HTTP.Version == xdsresource.UpstreamHTTP2 }},
		{
			"downstream protocol", `typed_extension_protocol_options: {envoy.extensions.upstreams.http.v3.HttpProtocolOptions: {
"@type": type.googleapis.com/envoy.extensions.upstreams.http.v3.HttpProtocolOptions, use_downstream_protocol_config: {}, common_http_protocol_options: {idle_timeout: 0s}}}`,
			func(c *xdsresource.Cluster) bool {
				return c.HTTP.Version == xdsresource.UpstreamDownstreamProtocol && c.HTTP.IdleTimeout < 0
			},
		},
		{"names in proper case", `http_protocol_options: {header_key_format: {proper_case_words: {}}}`, func(c *xdsresource.Cluster) bool {
			return c.HTTP.Client.Case == transport.ProperCase
		}},
		{"names as they came", `http_protocol_options: {header_key_format: {stateful_formatter: {name: f, typed_config: {
"@type": type.googleapis.com/envoy.extensions.http.header_formatters.preserve_case.v3.PreserveCaseFormatterConfig}}}}`, func(c *xdsresource.Cluster) bool {
			return c.HTTP.Client.Case == transport.KeepCase
		}},
		{"names by a formatter nobody knows", `http_protocol_options: {header_key_format: {stateful_formatter: {name: f, typed_config: {
"@type": type.googleapis.com/acme.Formatter}}}}`, func(c *xdsresource.Cluster) bool {
			return c.HTTP.Client.Case == transport.LowerCase
		}},
		{
			"dynamic forward proxy", `lb_policy: CLUSTER_PROVIDED, cluster_type: {name: dfp, typed_config: {
"@type": type.googleapis.com/envoy.extensions.clusters.dynamic_forward_proxy.v3.ClusterConfig, dns_cache_config: {name: n, dns_lookup_family: V4_ONLY}}}`,
			func(c *xdsresource.Cluster) bool {
				return c.Discovery == xdsresource.DiscoveryDynamicForwardProxy && c.DNS.Family == xdsresource.DNSV4Only && c.DNS.Port == 80
			},
		},
		{
			"dynamic forward proxy in plaintext, as istiod wraps it", `lb_policy: CLUSTER_PROVIDED, cluster_type: {name: dfp, typed_config: {
"@type": type.googleapis.com/envoy.extensions.clusters.dynamic_forward_proxy.v3.ClusterConfig, dns_cache_config: {name: n}}},
transport_socket: {name: internal_upstream, typed_config: {"@type": type.googleapis.com/envoy.extensions.transport_sockets.internal_upstream.v3.InternalUpstreamTransport,
transport_socket: {name: raw_buffer, typed_config: {"@type": type.googleapis.com/envoy.extensions.transport_sockets.raw_buffer.v3.RawBuffer}}}}`,
			func(c *xdsresource.Cluster) bool { return c.DNS.Port == 80 },
		},
		{
			"dynamic forward proxy with TLS, as istiod wraps it", `lb_policy: CLUSTER_PROVIDED, cluster_type: {name: dfp, typed_config: {
"@type": type.googleapis.com/envoy.extensions.clusters.dynamic_forward_proxy.v3.ClusterConfig, dns_cache_config: {name: n}}},
transport_socket: {name: internal_upstream, typed_config: {"@type": type.googleapis.com/envoy.extensions.transport_sockets.internal_upstream.v3.InternalUpstreamTransport,
transport_socket: {name: tls, typed_config: {"@type": type.googleapis.com/envoy.extensions.transport_sockets.tls.v3.UpstreamTlsContext}}}}`,
			func(c *xdsresource.Cluster) bool { return c.DNS.Port == 443 },
		},
		{
			"original destination", `type: ORIGINAL_DST, lb_policy: CLUSTER_PROVIDED, original_dst_lb_config: {upstream_port_override: 15008, metadata_key: {key: ns, path: [{key: a}]}}`,
			func(c *xdsresource.Cluster) bool {
				o := c.OriginalDst
				return o.PortOverride == 15008 && o.MetadataNS == "ns" && len(o.MetadataPath) == 1
			},
		},
	} {
		t.Run(tc.name, func(t *testing.T) {
			if c := cluster(t, "{name: c, "+tc.doc+"}"); !tc.check(c) || c.Broken != "" {
				t.Errorf("%+v", c)
			}
		})
	}
}

func TestInvalidClustersAreRejected(t *testing.T) {
	for _, tc := range []struct{ name, doc, want string }{
		{"EDS without config", `type: EDS`, "eds_cluster_config: is missing"},
		{"EDS config without EDS", `eds_cluster_config: {eds_config: {ads: {}}}`, "eds_cluster_config: is set, but type is not EDS"},
		{"original destination with round robin", `type: ORIGINAL_DST`, "lb_policy: CLUSTER_PROVIDED belongs"},
		{"static with cluster provided", `lb_policy: CLUSTER_PROVIDED`, "lb_policy: CLUSTER_PROVIDED belongs"},
		{"name in a static cluster", `load_assignment: {cluster_name: c, endpoints: [{lb_endpoints: [{endpoint: {address: {socket_address: {address: a.b, port_value: 1}}}}]}]}`, "names need a cluster of type STRICT_DNS"},
		{"logical DNS with two endpoints", `type: LOGICAL_DNS, load_assignment: {cluster_name: c, endpoints: [{}, {}]}`, "must have one locality with one endpoint"},
		{"maglev table", `lb_policy: MAGLEV, maglev_lb_config: {table_size: 100}`, "100 is not a prime"},
		{"ring sizes", `lb_policy: RING_HASH, ring_hash_lb_config: {minimum_ring_size: 9, maximum_ring_size: 8}`, "minimum_ring_size (9) > maximum_ring_size (8)"},
		{"connect_timeout", `connect_timeout: 0s`, "connect_timeout: value must be greater than 0s"},
	} {
		t.Run(tc.name, func(t *testing.T) { wantError(t, xdsresource.ClusterType, "{name: c, "+tc.doc+"}", tc.want) })
	}
}

func TestFieldsOfAClusterWithoutEffectAreReported(t *testing.T) {
	c := cluster(t, `{name: c, per_connection_buffer_limit_bytes: 5, filters: [
{name: a, typed_config: {"@type": type.googleapis.com/udpa.type.v1.TypedStruct, type_url: type.googleapis.com/fairlead.upecho.v1.Config, value: {odd: x}}},
{name: b, typed_config: {"@type": type.googleapis.com/udpa.type.v1.TypedStruct, type_url: type.googleapis.com/fairlead.upecho.v1.Config}}]}`)
	var got []string
	for _, ig := range c.Ignored {
		got = append(got, ig.Path)
	}
	if want := []string{"per_connection_buffer_limit_bytes", "filters[0].typed_config.odd"}; c.Broken != "" || !slices.Equal(got, want) {
		t.Errorf("ignored %q, want %q; broken %q", got, want, c.Broken)
	}
	if len(c.Filters) != 2 || c.Filters[0].Name != "a" || c.Filters[1].Config != "upstream {}" {
		t.Errorf("filters %+v", c.Filters)
	}
}

func TestEndpointsOfAServer(t *testing.T) {
	const doc = `{name: c, type: EDS, eds_cluster_config: {eds_config: {api_config_source: {api_type: %s, grpc_services: [%s]}}}}`
	const service = `{initial_metadata: [{key: X-A, value: b}], envoy_grpc: {cluster_name: x}}`
	for kind, sotw := range map[string]bool{"GRPC": true, "DELTA_GRPC": false} {
		want := xdsresource.ConfigSource{APIServer: xdsresource.APIServer{Cluster: "x", StateOfTheWorld: sotw, Metadata: "x-a\nb\n"}}
		if c := cluster(t, fmt.Sprintf(doc, kind, service)); c.EDSSource != want || c.Broken != "" {
			t.Errorf("%s: %+v, %q", kind, c.EDSSource, c.Broken)
		}
	}
	const at = "eds_cluster_config.eds_config.api_config_source."
	for _, tc := range [][3]string{
		{"REST", service, at + "api_type: REST is not supported: use DELTA_GRPC or GRPC"},
		{"GRPC", service + ", " + service, at + "grpc_services: want exactly one, not 2"},
		{"GRPC", "{google_grpc: {target_uri: x, stat_prefix: y}}", at + "grpc_services[0]: only envoy_grpc is supported"},
	} {
		wantError(t, xdsresource.ClusterType, fmt.Sprintf(doc, tc[0], tc[1]), tc[2])
	}
}

func TestUnsupportedClustersAreBroken(t *testing.T) {
	for _, tc := range []struct{ name, doc, want string }{
		{"subsets", `lb_subset_config: {fallback_policy: ANY_ENDPOINT}`, "lb_subset_config: "},
		{"custom type", `cluster_type: {name: acme.redis}`, "acme.redis"},
		{"HTTP/3", `typed_extension_protocol_options: {envoy.extensions.upstreams.http.v3.HttpProtocolOptions: {
"@type": type.googleapis.com/envoy.extensions.upstreams.http.v3.HttpProtocolOptions, explicit_http_config: {http3_protocol_options: {}}}}`, "http3_protocol_options: "},
		{"an upstream filter", `filters: [{name: guard, typed_config: {"@type": type.googleapis.com/envoy.extensions.filters.network.rbac.v3.RBAC, stat_prefix: x}}]`, `filters[0]: upstream network filter "guard" can't be executed: type type.googleapis.com/envoy.extensions.filters.network.rbac.v3.RBAC is not supported`},
		{"an upstream filter by discovery", `filters: [{name: guard, config_discovery: {config_source: {ads: {}}, type_urls: [x]}}]`, "filters[0]"},
		{"unknown policies only", `load_balancing_policy: {policies: [{typed_extension_config: {name: x, typed_config: {"@type": type.googleapis.com/acme.LB}}}]}`, "none of the policies"},
	} {
		t.Run(tc.name, func(t *testing.T) {
			if c := cluster(t, "{name: c, "+tc.doc+"}"); !strings.Contains(c.Broken, tc.want) {
				t.Errorf("Broken = %q", c.Broken)
			}
		})
	}
}

const upstreamTLS = `{name: tls, typed_config: {"@type": type.googleapis.com/envoy.extensions.transport_sockets.tls.v3.UpstreamTlsContext, %}}`

func socket(t *testing.T, ctx string) xdsresource.TransportSocket {
	t.Helper()
	return cluster(t, `{name: c, transport_socket: `+strings.Replace(upstreamTLS, "%", ctx, 1)+`}`).TransportSocket
}

func TestUpstreamSockets(t *testing.T) {
	s := socket(t, `sni: x, common_tls_context: {alpn_protocols: [h2], tls_params: {tls_minimum_protocol_version: TLSv1_3, cipher_suites: ["[ECDHE-RSA-AES128-GCM-SHA256|AES128-SHA]", NOPE], ecdh_curves: [X25519MLKEM768, MLKEM1024, P-256]},
tls_certificate_sds_secret_configs: [{name: default, sds_config: {api_config_source: {api_type: GRPC, grpc_services: [{envoy_grpc: {cluster_name: sds-grpc}}]}}}],
combined_validation_context: {default_validation_context: {match_typed_subject_alt_names: [{san_type: URI, matcher: {prefix: "spiffe://td/"}}]},
validation_context_sds_secret_config: {name: ROOTCA, sds_config: {ads: {}}}}}`)
	v := s.TLS.Validation
	if s.TLS.SNI != "x" || s.TLS.Params.MinVersion != tls.VersionTLS13 || len(s.TLS.Params.CipherSuites) != 2 || !slices.Equal(s.TLS.Params.Curves, []tls.CurveID{tls.X25519MLKEM768, tls.CurveP256}) || s.TLS.MaxSessionKeys != 1 ||
		s.TLS.Certificates[0].SDSName != "default" || s.TLS.Certificates[0].SDSSource.Cluster != "sds-grpc" ||
		v.SDSName != "ROOTCA" || !v.SDSSource.ADS || len(v.SANs) != 1 || v.SANs[0].Type != xdsresource.SANURI || !v.SANs[0].Matcher.Match("spiffe://td/ns") {
		t.Errorf("tls %+v, validation %+v", s.TLS, v)
	}
	nested := cluster(t, `{name: c, transport_socket: {name: i, typed_config: {"@type": type.googleapis.com/envoy.extensions.transport_sockets.internal_upstream.v3.InternalUpstreamTransport,
passthrough_metadata: [{name: a, kind: {host: {}}}, {name: b, kind: {cluster: {}}}], transport_socket: {name: p, typed_config: {
"@type": type.googleapis.com/envoy.extensions.transport_sockets.proxy_protocol.v3.ProxyProtocolUpstreamTransport, config: {version: V2}, transport_socket: `+
		strings.Replace(upstreamTLS, "%", "sni: y", 1)+`}}}}}`).TransportSocket
	if nested.Internal == nil || len(nested.Internal.Passthrough) != 2 || !nested.Internal.Passthrough[0].Host || nested.ProxyProtocol != 2 ||
		nested.TLS == nil || nested.TLS.SNI != "y" || nested.Unknown != "" {
		t.Errorf("%+v", nested)
	}
}

// Which of them are taken is executed, which is preferred is not.
func TestAnOrderOfCurvesThatIsNotKeptIsReported(t *testing.T) {
	for list, want := range map[string]string{
		"X25519MLKEM768, X25519, P-256":       "",
		"x25519, prime256v1":                  "",
		"P-384":                               "",
		"P-256, X25519":                       "their order counts for nothing",
		"X25519, X25519MLKEM768":              "their order counts for nothing",
		"X25519, MLKEM1024":                   "MLKEM1024 is not available",
		"secp521r1, MLKEM1024, secp384r1":     "their order counts for nothing",
		"X25519, X25519, P-256, P-256, P-521": "",
	} {
		c := cluster(t, `{name: c, transport_socket: `+strings.Replace(upstreamTLS, "%", "common_tls_context: {tls_params: {ecdh_curves: ["+list+"]}}", 1)+`}`)
		var got string
		for _, ig := range c.Ignored {
			if strings.HasSuffix(ig.Path, "ecdh_curves") {
				got = ig.Reason
			}
		}
		if (got == "") != (want == "") || !strings.Contains(got, want) {
			t.Errorf("%s: reported %q, want %q", list, got, want)
		}
	}
}

func TestTLSThatCannotBeExecutedFailsHandshakes(t *testing.T) {
	for _, tc := range []struct{ name, ctx, want string }{
		{"custom validator", `common_tls_context: {validation_context: {custom_validator_config: {name: spiffe, typed_config: {"@type": type.googleapis.com/google.protobuf.Empty}}}}`, "custom_validator_config"},
		{"handshaker", `common_tls_context: {custom_handshaker: {name: x, typed_config: {"@type": type.googleapis.com/google.protobuf.Empty}}}`, "custom_handshaker"},
		{"other names", `common_tls_context: {validation_context: {trusted_ca: {filename: /ca.pem}, match_typed_subject_alt_names: [{san_type: OTHER_NAME, oid: "1.2.3", matcher: {exact: a}}]}}`, "OTHER_NAME"},
		{"no cipher", `common_tls_context: {tls_params: {cipher_suites: [NOPE]}}`, "none of the suites"},
		{"no curve", `common_tls_context: {tls_params: {ecdh_curves: [MLKEM1024]}}`, "none of the curves"},
		{"versions", `common_tls_context: {tls_params: {tls_minimum_protocol_version: TLSv1_3, tls_maximum_protocol_version: TLSv1_2}}`, "is greater than"},
		{"FIPS", `common_tls_context: {tls_params: {compliance_policies: [FIPS_202205]}}`, "compliance_policies"},
		{"SCT", `common_tls_context: {validation_context: {require_signed_certificate_timestamp: true}}`, "require_signed_certificate_timestamp"},
	} {
		t.Run(tc.name, func(t *testing.T) {
			if s := socket(t, tc.ctx); !strings.Contains(s.Unknown, tc.want) {
				t.Errorf("Unknown = %q", s.Unknown)
			}
		})
	}
	s := cluster(t, `{name: c, transport_socket: {name: alts, typed_config: {"@type": type.googleapis.com/acme.Alts}}}`).TransportSocket
	if s.Unknown == "" {
		t.Error("an unknown socket is taken for raw_buffer")
	}
	l := decode[*xdsresource.Listener](t, xdsresource.ListenerType, `{name: l, internal_listener: {}, filter_chains: [{transport_socket: {name: quic, typed_config: {"@type": type.googleapis.com/acme.Quic}}}]}`)
	if ts := l.FilterChains[0].TransportSocket; ts == nil || ts.Unknown == "" {
		t.Errorf("an unknown downstream socket is taken for raw_buffer: %+v", ts)
	}
}

func TestInvalidTLSIsRejected(t *testing.T) {
	for _, tc := range []struct{ name, ctx, want string }{
		{"names without a CA", `common_tls_context: {validation_context: {match_typed_subject_alt_names: [{san_type: DNS, matcher: {exact: a}}]}}`, "without trusted CA is insecure"},
		{"missing file", `common_tls_context: {validation_context: {trusted_ca: {filename: /nope}}}`, "trusted_ca.filename: no such file"},
		{"no private key", `common_tls_context: {tls_certificates: [{certificate_chain: {inline_string: x}}]}`, "private_key: is missing"},
		{"curve", `common_tls_context: {tls_params: {ecdh_curves: [X25519, P-224]}}`, `"P-224" is no curve`},
		{"hash", `common_tls_context: {validation_context: {verify_certificate_hash: ["` + strings.Repeat("zz", 32) + `"]}}`, "is no SHA-256"},
	} {
		t.Run(tc.name, func(t *testing.T) {
			wantError(t, xdsresource.ClusterType, `{name: c, transport_socket: `+strings.Replace(upstreamTLS, "%", tc.ctx, 1)+`}`, tc.want)
		})
	}
}

func TestAssignment(t *testing.T) {
	a := decode[*xdsresource.ClusterLoadAssignment](t, xdsresource.EndpointsType, `{cluster_name: c, named_endpoints: {n: {address: {socket_address: {address: "::1", port_value: 2}}}},
endpoints: [{locality: {region: r}, priority: 1, load_balancing_weight: 3, lb_endpoints: [
{endpoint: {hostname: h, address: {socket_address: {address: 10.0.0.1, port_value: 1}}}, health_status: TIMEOUT},
{endpoint_name: n, load_balancing_weight: 9},
{endpoint: {address: {envoy_internal_address: {server_listener_name: connect_originate, endpoint_id: "10.0.0.2:80"}}}, health_status: DRAINING,
 metadata: {filter_metadata: {envoy.filters.listener.original_dst: {local: "10.0.0.2:80"}}}}]}]}`)
	l := a.Localities[0]
	if a.Name != "c" || a.OverprovisioningFactor != 140 || l.Region != "r" || l.Priority != 1 || l.Weight != 3 || len(l.Endpoints) != 3 {
		t.Fatalf("%+v", a)
	}
	e := l.Endpoints
	if e[0].Address.String() != "10.0.0.1:1" || e[0].DisplayHost != "h" || e[0].Weight != 1 || e[0].Health != xdsresource.HealthUnhealthy {
		t.Errorf("%+v", e[0])
	}
	if e[1].Address.String() != "[::1]:2" || e[1].Weight != 9 {
		t.Errorf("%+v", e[1])
	}
	if v, _ := e[2].Metadata.Lookup("envoy.filters.listener.original_dst", "local"); e[2].InternalListener != "connect_originate" || v != "10.0.0.2:80" {
		t.Errorf("%+v", e[2])
	}
	wantError(t, xdsresource.EndpointsType, `{cluster_name: c, endpoints: [{lb_endpoints: [{endpoint_name: x}]}]}`, `endpoints[0].lb_endpoints[0].endpoint_name: "x" is not in named_endpoints`)
}

// pem returns a certificate and its key.
func pem(t *testing.T) (chain, key string) {
	t.Helper()
	ca, err := identity.NewDevCA("cluster.local")
	if err != nil {
		t.Fatal(err)
	}
	crt, err := ca.Issue(identity.Leaf{DNSNames: []string{"a.example"}})
	if err != nil {
		t.Fatal(err)
	}
	der, err := x509.MarshalPKCS8PrivateKey(crt.PrivateKey)
	if err != nil {
		t.Fatal(err)
	}
	return string(identity.EncodeCertificates(crt.Certificate...)), string(encpem.EncodeToMemory(&encpem.Block{Type: "PRIVATE KEY", Bytes: der}))
}

func TestSecrets(t *testing.T) {
	s := decode[*xdsresource.Secret](t, xdsresource.SecretType, `{name: s, generic_secret: {secret: {environment_variable: K}}}`)
	if string(s.Generic) != "from env" {
		t.Errorf("%+v", s)
	}
	chain, key := pem(t)
	s = decode[*xdsresource.Secret](t, xdsresource.SecretType, fmt.Sprintf(`{name: s, tls_certificate: {certificate_chain: {inline_string: %q}, private_key: {inline_string: %q}}}`, chain, key))
	if string(s.Certificate.Chain) != chain || string(s.Certificate.Key) != key {
		t.Errorf("%+v", s.Certificate)
	}
	s = decode[*xdsresource.Secret](t, xdsresource.SecretType, `{name: s, validation_context: {trusted_ca: {filename: /ca.pem}}}`)
	if string(s.Validation.TrustedCA) != "PEM" || s.Validation.TrustedCAFile != "/ca.pem" {
		t.Errorf("%+v", s.Validation)
	}
	s = decode[*xdsresource.Secret](t, xdsresource.SecretType, `{name: s, generic_secret: {secret: {inline_bytes: aGk=}}}`)
	if string(s.Generic) != "hi" {
		t.Errorf("%q", s.Generic)
	}
	for _, tc := range []struct{ doc, want string }{
		{`{name: s}`, "type: none is set"},
		{`{name: s, session_ticket_keys: {keys: [{inline_string: x}]}}`, "session_ticket_keys: "},
		{`{name: s, validation_context: {custom_validator_config: {name: x, typed_config: {"@type": type.googleapis.com/google.protobuf.Empty}}}}`, "custom_validator_config"},
		{`{name: s, tls_certificate: {pkcs12: {inline_string: x}}}`, "pkcs12"},
		{`{name: s, tls_certificate: {certificate_chain: {inline_string: a}, private_key: {environment_variable: K}}}`, "tls_certificate: can't be used: tls: failed to find any PEM data"},
		{`{name: s, validation_context: {trusted_ca: {inline_string: a}}}`, "validation_context.trusted_ca: can't be used"},
	} {
		wantError(t, xdsresource.SecretType, tc.doc, tc.want)
	}
}
