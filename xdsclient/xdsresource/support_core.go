package xdsresource

var tlsTable = []message{
	{name: "envoy.config.core.v3.TransportSocket", supported: `name typed_config`},
	{
		name: "envoy.extensions.transport_sockets.tls.v3.DownstreamTlsContext", root: true, strict: true,
		supported: `common_tls_context require_client_certificate require_sni disable_stateless_session_resumption`,
		moot: notes{
			"disable_stateful_session_resumption": "sessions are not kept on the server",
			"full_scan_certs_on_sni_mismatch":     "the first certificate that fits is used",
		},
		ignored: notes{
			"session_ticket_keys":                   "ticket keys are made and rotated by the process",
			"session_ticket_keys_sds_secret_config": "ticket keys are made and rotated by the process",
			"session_timeout":                       "tickets have their default life time",
			"prefer_client_ciphers?":                "the server's order is preferred",
		},
		closed: notes{"ocsp_staple_policy": "only LENIENT_STAPLING is supported"},
	},
	{
		name: "envoy.extensions.transport_sockets.tls.v3.UpstreamTlsContext", root: true, strict: true,
		supported: `common_tls_context sni auto_host_sni auto_sni_san_validation allow_renegotiation max_session_keys`,
		moot:      notes{"enforce_rsa_key_usage": "key usage is always enforced"},
	},
	{
		name: "envoy.extensions.transport_sockets.tls.v3.CommonTlsContext", strict: true,
		supported: `tls_params tls_certificates tls_certificate_sds_secret_configs validation_context
			validation_context_sds_secret_config combined_validation_context alpn_protocols`,
		ignored: notes{"key_log": "TLS keys are never logged"},
		closed: notes{
			"tls_certificate_provider_instance":                "certificate providers are not supported",
			"custom_tls_certificate_selector":                  "certificate selectors are not supported",
			"tls_certificate_certificate_provider":             "certificate providers are not supported",
			"tls_certificate_certificate_provider_instance":    "certificate providers are not supported",
			"validation_context_certificate_provider":          "certificate providers are not supported",
			"validation_context_certificate_provider_instance": "certificate providers are not supported",
			"custom_handshaker":                                "handshakers are not supported",
		},
	},
	{
		name: "envoy.extensions.transport_sockets.tls.v3.CommonTlsContext.CombinedCertificateValidationContext", strict: true,
		supported: `default_validation_context validation_context_sds_secret_config`,
		closed: notes{
			"validation_context_certificate_provider":          "certificate providers are not supported",
			"validation_context_certificate_provider_instance": "certificate providers are not supported",
		},
	},
	{
		name: "envoy.extensions.transport_sockets.tls.v3.TlsParameters", strict: true,
		supported: `tls_minimum_protocol_version tls_maximum_protocol_version cipher_suites ecdh_curves`,
		ignored:   notes{"signature_algorithms": "the default algorithms are offered"},
		closed:    notes{"compliance_policies": "are not supported"},
	},
	{
		name: "envoy.extensions.transport_sockets.tls.v3.TlsCertificate", strict: true,
		supported: `certificate_chain private_key private_key_provider password ocsp_staple`,
		moot:      notes{"watched_directory": "the directories of the files are watched"},
		ignored: notes{
			"signed_certificate_timestamp": "timestamps are not sent",
			"tls_params":                   "the parameters of the context apply",
		},
		closed: notes{"pkcs12": "use certificate_chain and private_key"},
	},
	{
		name:      "envoy.extensions.transport_sockets.tls.v3.PrivateKeyProvider",
		supported: `fallback`,
		moot:      notes{"typed_config": "belongs to the provider"},
		ignored:   notes{"provider_name": "the key itself is used, which fallback allows"},
	},
	{
		name: "envoy.extensions.transport_sockets.tls.v3.CertificateValidationContext", strict: true,
		supported: `trusted_ca system_root_certs verify_certificate_spki verify_certificate_hash
			match_typed_subject_alt_names match_subject_alt_names crl allow_expired_certificate
			trust_chain_verification max_verify_depth`,
		moot: notes{
			"watched_directory":         "the directories of the files are watched",
			"only_verify_leaf_cert_crl": "the whole chain is checked, which is stricter",
		},
		ignored: notes{"suppress_client_ca_list?": "the list of CAs is sent with the request for a certificate"},
		closed: notes{
			"ca_certificate_provider_instance":      "certificate providers are not supported",
			"require_signed_certificate_timestamp?": "timestamps are not checked",
			"custom_validator_config":               "certificate validators are not supported",
		},
	},
	{name: "envoy.extensions.transport_sockets.tls.v3.CertificateValidationContext.SystemRootCerts", strict: true},
	{
		name: "envoy.extensions.transport_sockets.tls.v3.SubjectAltNameMatcher", strict: true,
		supported: `san_type matcher`,
		closed:    notes{"oid": "OTHER_NAME is not supported"},
	},
	{name: "envoy.extensions.transport_sockets.tls.v3.SdsSecretConfig", supported: `name sds_config`},
	{
		name: "envoy.extensions.transport_sockets.tls.v3.Secret", root: true, strict: true,
		supported: `name tls_certificate validation_context generic_secret`,
		rejected:  notes{"session_ticket_keys": "ticket keys are made and rotated by the process"},
	},
	{
		name: "envoy.extensions.transport_sockets.tls.v3.GenericSecret", supported: `secret`,
		rejected: notes{"secrets": "use secret"},
	},
	{
		name: "envoy.extensions.transport_sockets.internal_upstream.v3.InternalUpstreamTransport", root: true,
		supported: `passthrough_metadata transport_socket`,
	},
	{
		name:      "envoy.extensions.transport_sockets.internal_upstream.v3.InternalUpstreamTransport.MetadataValueSource",
		supported: `kind name`,
	},
	{
		name: "envoy.extensions.transport_sockets.proxy_protocol.v3.ProxyProtocolUpstreamTransport", root: true,
		supported: `config transport_socket`,
		moot:      notes{"tlv_as_pool_key": "no TLVs are sent"},
		ignored:   notes{"allow_unspecified_address?": "a header has the addresses of the client, or says LOCAL"},
	},
	{
		name: "envoy.config.core.v3.ProxyProtocolConfig", supported: `version`,
		ignored: notes{
			"pass_through_tlvs": "TLVs are not passed on",
			"added_tlvs":        "no TLVs are added",
		},
	},
}

var coreTable = []message{
	{name: "envoy.config.core.v3.Address", supported: `socket_address pipe envoy_internal_address`},
	{
		name: "envoy.config.core.v3.SocketAddress", supported: `protocol address port_value named_port ipv4_compat`,
		rejected: notes{
			"resolver_name":              "resolvers are not supported",
			"network_namespace_filepath": "network namespaces are not supported",
		},
	},
	{name: "envoy.config.core.v3.Pipe", supported: `path mode`},
	{name: "envoy.config.core.v3.EnvoyInternalAddress", supported: `server_listener_name endpoint_id`},
	{
		name: "envoy.config.core.v3.BindConfig", supported: `source_address`,
		ignored: notes{
			"freebind?":                    "the source address must be local",
			"socket_options":               "socket options of connections are the system's",
			"extra_source_addresses":       "one source address is used",
			"additional_source_addresses":  "one source address is used",
			"local_address_selector":       "one source address is used",
			"validate_network_namespaces?": "network namespaces are not supported",
		},
	},
	{name: "envoy.config.core.v3.WatchedDirectory", supported: `path`, moot: notes{"watch_modify": "changes in place are noticed"}},
	{name: "envoy.config.core.v3.TcpKeepalive", supported: `keepalive_probes keepalive_time keepalive_interval`},
	{
		name: "envoy.config.core.v3.ConfigSource", supported: `path path_config_source api_config_source ads self`,
		moot: notes{
			"initial_fetch_timeout": "the process has one timeout for its first configuration",
			"resource_api_version":  "only V3 exists",
			"authorities":           "names are not URIs",
		},
	},
	{name: "envoy.config.core.v3.AggregatedConfigSource"},
	{name: "envoy.config.core.v3.SelfConfigSource", moot: notes{"transport_api_version": "only V3 exists"}},
	{
		name: "envoy.config.core.v3.PathConfigSource", supported: `path watched_directory`,
		moot: notes{"poll_interval": "the directory of the file is watched"},
	},
	{
		name: "envoy.config.core.v3.ApiConfigSource", supported: `api_type grpc_services`,
		moot: notes{
			"transport_api_version":          "only V3 exists",
			"set_node_on_first_message_only": "the node is sent once for each stream",
			"cluster_names":                  "deprecated by Envoy; belongs to REST",
			"refresh_delay":                  "belongs to REST",
			"request_timeout":                "belongs to REST",
		},
		ignored: notes{
			"rate_limit_settings": "requests to the control plane follow its responses",
			"config_validators":   "validators are not supported",
		},
	},
	{
		name: "envoy.config.core.v3.GrpcService", supported: `envoy_grpc google_grpc initial_metadata`,
		moot:    notes{"timeout": "streams have no timeout"},
		ignored: notes{"retry_policy": "a stream is opened again with its own back-off"},
	},
	{
		name: "envoy.config.core.v3.GrpcService.EnvoyGrpc", supported: `cluster_name`,
		moot: notes{
			"max_receive_message_length": "messages of any size are accepted",
			"skip_envoy_headers":         "no such headers are sent",
		},
		ignored: notes{
			"retry_policy": "a stream is opened again with its own back-off",
			"authority":    "streams carry the name that TLS verifies, or the target's",
		},
	},
	{
		name: "envoy.config.core.v3.GrpcService.GoogleGrpc", supported: `target_uri channel_credentials`,
		moot: notes{
			"stat_prefix":                   "the client has statistics of its own",
			"per_stream_buffer_limit_bytes": "messages of any size are accepted",
		},
		ignored: notes{"channel_args": "the channel has its default arguments"},
		rejected: notes{
			"channel_credentials_plugin": "use channel_credentials",
			"call_credentials":           "use initial_metadata",
			"call_credentials_plugin":    "use initial_metadata",
			"credentials_factory_name":   "use channel_credentials",
			"config":                     "use channel_credentials",
		},
	},
	{
		name: "envoy.config.core.v3.GrpcService.GoogleGrpc.ChannelCredentials", strict: true,
		supported: `ssl_credentials local_credentials`,
		rejected:  notes{"google_default": "use ssl_credentials"},
	},
	{
		name: "envoy.config.core.v3.GrpcService.GoogleGrpc.SslCredentials", strict: true,
		supported: `root_certs private_key cert_chain`,
	},
	{name: "envoy.config.core.v3.GrpcService.GoogleGrpc.GoogleLocalCredentials"},
	{
		name:      "envoy.config.core.v3.ExtensionConfigSource",
		supported: `config_source default_config type_urls`,
		ignored:   notes{"apply_default_config_without_warming?": "the default applies when the configuration has not arrived in time"},
	},
	{name: "envoy.config.core.v3.HttpService", supported: `http_uri request_headers_to_add formatters`},
	{name: "envoy.config.core.v3.HttpUri", supported: `uri cluster timeout`},
	{name: "envoy.config.core.v3.TypedExtensionConfig", supported: `name typed_config`},
	{
		name: "envoy.config.core.v3.DataSource", supported: `filename inline_bytes inline_string environment_variable`,
		moot: notes{"watched_directory": "the directory of the file is watched"},
	},
	{name: "envoy.config.core.v3.HeaderValueOption", supported: `header append append_action keep_empty_value`},
	{name: "envoy.config.core.v3.HeaderValue", supported: `key value raw_value`},
	{name: "envoy.config.core.v3.Locality", supported: `region zone sub_zone`},
	{
		name: "envoy.config.core.v3.Metadata", supported: `filter_metadata`,
		ignored: notes{"typed_filter_metadata": "only filter_metadata is read"},
	},
	{name: "envoy.config.core.v3.RuntimeFractionalPercent", supported: `default_value`, ignored: notes{"runtime_key": noRuntime}},
	{name: "envoy.config.core.v3.RuntimeDouble", supported: `default_value`, ignored: notes{"runtime_key": noRuntime}},
}
