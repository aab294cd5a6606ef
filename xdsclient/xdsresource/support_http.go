package xdsresource

var httpTable = []message{
	{
		name: "envoy.extensions.filters.network.http_connection_manager.v3.HttpConnectionManager", root: true,
		supported: `codec_type stat_prefix rds route_config http_filters tracing common_http_protocol_options
			http_protocol_options http2_protocol_options server_name server_header_transformation
			scheme_header_transformation max_request_headers_kb stream_idle_timeout request_timeout
			request_headers_timeout access_log use_remote_address
			xff_num_trusted_hops internal_address_config skip_xff_append via generate_request_id
			preserve_external_request_id always_set_request_id_in_response forward_client_cert_details
			set_current_client_cert_details proxy_100_continue upgrade_configs normalize_path merge_slashes
			path_with_escaped_slashes_action request_id_extension local_reply_config strip_matching_host_port
			strip_any_host_port append_x_forwarded_port`,
		moot: notes{
			"add_proxy_protocol_connection_state": "the state of PROXY protocol is kept with the connection",
			"strip_trailing_host_dot":             "one trailing dot of the host is always stripped",
			"typed_header_validation_config":      "the built-in header checks always apply",
		},
		ignored: notes{
			"add_user_agent?":                                    "user-agent is left as it is",
			"http1_safe_max_connection_duration?":                "an HTTP/1 connection ends after the response in flight",
			"http3_protocol_options":                             "HTTP/3 is not served",
			"stream_flush_timeout":                               "stream_idle_timeout applies to flushing, too",
			"drain_timeout":                                      "connections drain for the drain time of the process",
			"delayed_close_timeout":                              "a connection is closed when its last byte is sent",
			"drain_timeout_jitter":                               "the drain timeout is exact",
			"access_log_flush_interval":                          "a request is logged when it ends",
			"flush_access_log_on_new_request?":                   "a request is logged when it ends",
			"access_log_options":                                 "a request is logged when it ends",
			"represent_ipv4_remote_address_as_ipv4_mapped_ipv6?": "IPv4 addresses are represented as such",
			"stream_error_on_invalid_http_message?":              "the connection is closed after an invalid HTTP/1 message; HTTP/2 resets the stream",
			"proxy_status_config":                                "the proxy-status header is not sent",
			"append_local_overload?":                             "x-envoy-local-overloaded is not sent",
			"record_route_resolution_stats?":                     "route resolution is not counted",
		},
		closed: notes{
			"scoped_routes":                    "scoped routes are not supported: use rds or route_config",
			"original_ip_detection_extensions": "the client address would be another one: use xff_num_trusted_hops",
			"early_header_mutation_extensions": "routes and policies would see other headers",
			"forward_client_cert_matcher":      "x-forwarded-client-cert would be handled otherwise",
			"path_normalization_options":       "routes and policies would see another path: use normalize_path",
			"forward_proto_config":             "x-forwarded-proto would be another one",
		},
	},
	{name: "envoy.extensions.filters.network.http_connection_manager.v3.Rds", supported: `config_source route_config_name`},
	{
		name:      "envoy.extensions.filters.network.http_connection_manager.v3.HttpFilter",
		supported: `name typed_config config_discovery is_optional disabled`,
	},
	{
		name: "envoy.extensions.filters.network.http_connection_manager.v3.HttpConnectionManager.Tracing",
		supported: `client_sampling random_sampling overall_sampling provider custom_tags max_path_tag_length spawn_upstream_span
			operation upstream_operation no_context_propagation`,
		ignored: notes{"verbose?": "spans have no events"},
	},
	{name: "envoy.config.trace.v3.Tracing.Http", supported: `typed_config`, moot: notes{"name": "the type says which tracer it is"}},
	{
		name: "envoy.config.trace.v3.OpenTelemetryConfig", root: true,
		supported: `grpc_service http_service service_name resource_detectors sampler max_cache_size
			set_telemetry_sdk_resource_attributes set_service_name_resource_attribute set_instrumentation_scope`,
		ignored: notes{"exporter": "use grpc_service or http_service"},
	},
	{
		name:      "envoy.extensions.filters.network.http_connection_manager.v3.HttpConnectionManager.InternalAddressConfig",
		supported: `cidr_ranges`,
		moot:      notes{"unix_sockets": "listeners have IP addresses"},
	},
	{
		name:      "envoy.extensions.filters.network.http_connection_manager.v3.HttpConnectionManager.SetCurrentClientCertDetails",
		supported: `subject cert dns uri`,
		ignored:   notes{"chain": "the peer's chain is not sent", "issuer": "the issuer is not sent"},
		closed:    notes{"format": "x-forwarded-client-cert is only sent as text"},
	},
	{
		name:      "envoy.extensions.filters.network.http_connection_manager.v3.HttpConnectionManager.UpgradeConfig",
		supported: `upgrade_type enabled`,
		closed:    notes{"filters": "a filter chain of its own for upgrades is not supported"},
	},
	{name: "envoy.extensions.filters.network.http_connection_manager.v3.RequestIDExtension", supported: `typed_config`},
	{name: "envoy.extensions.request_id.uuid.v3.UuidRequestIdConfig", root: true, supported: `pack_trace_reason use_request_id_for_trace_sampling`},
	{name: "envoy.extensions.filters.network.http_connection_manager.v3.LocalReplyConfig", supported: `mappers body_format`},
	{
		name:      "envoy.extensions.filters.network.http_connection_manager.v3.ResponseMapper",
		supported: `filter status_code body body_format_override headers_to_add`,
	},
	{
		name: "envoy.config.core.v3.HttpProtocolOptions",
		supported: `idle_timeout max_connection_duration max_headers_count max_response_headers_kb max_stream_duration
			headers_with_underscores_action max_requests_per_connection`,
		ignored: notes{"max_connection_duration_jitter": "the duration is exact"},
	},
	{
		name: "envoy.config.core.v3.Http1ProtocolOptions",
		supported: `allow_absolute_url accept_http_10 default_host_for_http_10 enable_trailers allow_chunked_length
			header_key_format`,
		moot: notes{
			"use_balsa_parser": "there is one parser",
		},
		ignored: notes{
			"allow_custom_methods?":                          "methods that are not registered are answered 400",
			"override_stream_error_on_invalid_http_message?": "the connection is closed after an invalid message",
			"ignore_http_11_upgrade":                         "an upgrade that no upgrade_configs allow is answered 403",
		},
		closed: notes{"send_fully_qualified_url?": "requests are sent with a path only"},
	},
	{
		name:      "envoy.config.core.v3.Http1ProtocolOptions.HeaderKeyFormat",
		supported: `proper_case_words stateful_formatter`,
	},
	{name: "envoy.config.core.v3.Http1ProtocolOptions.HeaderKeyFormat.ProperCaseWords"},
	{
		name: "envoy.extensions.http.header_formatters.preserve_case.v3.PreserveCaseFormatterConfig", root: true,
		ignored: notes{
			"forward_reason_phrase?":           "the reason phrase is the one of the status",
			"formatter_type_on_envoy_headers?": "header names that are added are in lower case",
		},
	},
	{
		name: "envoy.config.core.v3.Http2ProtocolOptions",
		supported: `max_concurrent_streams initial_stream_window_size initial_connection_window_size allow_connect
			max_outbound_frames max_outbound_control_frames max_consecutive_inbound_frames_with_empty_payload
			max_inbound_priority_frames_per_stream max_inbound_window_update_frames_per_data_frame_sent
			connection_keepalive`,
		moot: notes{
			"use_oghttp2_codec":                             "there is one codec",
			"enable_huffman_encoding":                       "strings are compressed where that is shorter",
			"max_metadata_size":                             "METADATA frames are not accepted",
			"disallow_obs_text":                             "header values are checked as RFC 9110 says",
			"stream_error_on_invalid_http_messaging":        "an invalid message resets its stream",
			"override_stream_error_on_invalid_http_message": "an invalid message resets its stream",
		},
		ignored: notes{
			"hpack_table_size":           "the table has its default size",
			"allow_metadata?":            "METADATA frames are not accepted",
			"custom_settings_parameters": "no other settings are sent",
			"max_header_field_size_kb":   "a header is bounded by max_request_headers_kb",
			"stream_reset_burst":         "resets are bounded by the limits of control frames",
			"stream_reset_rate":          "resets are bounded by the limits of control frames",
		},
	},
	{
		name: "envoy.config.core.v3.KeepaliveSettings", supported: `interval timeout`,
		ignored: notes{
			"interval_jitter":          "the interval is exact",
			"connection_idle_interval": "pings follow the interval only",
		},
	},
	{
		name: "envoy.config.core.v3.SchemeHeaderTransformation", supported: `scheme_to_overwrite`,
		ignored: notes{"match_upstream?": "the scheme is the client's"},
	},
	{
		name: "envoy.extensions.filters.http.router.v3.Router", root: true,
		supported: `upstream_log suppress_envoy_headers strict_check_headers respect_expected_rq_timeout
			upstream_http_filters`,
		moot: notes{
			"dynamic_stats": "statistics have no cost that could be saved",
		},
		ignored: notes{
			"start_child_span?":                         "use spawn_upstream_span of the connection manager's tracing",
			"upstream_log_options":                      "an upstream request is logged when it ends",
			"suppress_grpc_request_failure_code_stats?": "statistics by gRPC status are kept",
			"reject_connect_request_early_data?":        "data sent before the answer to CONNECT waits for it",
		},
	},
	{name: "envoy.config.accesslog.v3.AccessLog", supported: `name filter typed_config`},
	{
		name: "envoy.extensions.access_loggers.file.v3.FileAccessLog", root: true,
		supported: `path format json_format typed_json_format log_format`,
	},
	{name: "envoy.extensions.access_loggers.stream.v3.StdoutAccessLog", root: true, supported: `log_format`},
	{name: "envoy.extensions.access_loggers.stream.v3.StderrAccessLog", root: true, supported: `log_format`},
	{
		name: "envoy.extensions.access_loggers.open_telemetry.v3.OpenTelemetryAccessLogConfig", root: true,
		supported: `common_config http_service grpc_service disable_builtin_labels resource_attributes resource_detectors body
			attributes formatters log_name buffer_flush_interval filter_state_objects_to_log custom_tags`,
		ignored: notes{
			"stat_prefix":       "records are counted in fairlead_otlp_exported_total",
			"buffer_size_bytes": "up to 512 records leave together",
		},
	},
	{
		name:      "envoy.extensions.access_loggers.grpc.v3.CommonGrpcAccessLogConfig",
		supported: `log_name grpc_service buffer_flush_interval`,
		moot:      notes{"custom_tags": "Envoy does not send them by OTLP either; use the field beside common_config", "filter_state_objects_to_log": "Envoy does not send them by OTLP either; use the field beside common_config", "transport_api_version": "OTLP has one"},
		ignored: notes{
			"buffer_size_bytes":        "up to 512 records leave together",
			"grpc_stream_retry_policy": "a batch is sent up to four times, with its own back-off",
		},
	},
	{
		name:      "envoy.config.core.v3.SubstitutionFormatString",
		supported: `text_format json_format text_format_source omit_empty_values content_type formatters`,
		moot:      notes{"json_format_options": "keys are always sorted"},
	},
}
