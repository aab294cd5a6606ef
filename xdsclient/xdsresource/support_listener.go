package xdsresource

var listenerTable = []message{
	{
		name: "envoy.config.listener.v3.Listener", root: true,
		supported: `name address additional_addresses filter_chains filter_chain_matcher default_filter_chain
			per_connection_buffer_limit_bytes metadata deprecated_v1 listener_filters listener_filters_timeout
		 transparent freebind traffic_direction enable_reuse_port access_log
			tcp_backlog_size bind_to_port internal_listener stat_prefix`,
		moot: notes{
			"connection_balance_config":                  "connections are balanced over all cores",
			"max_connections_to_accept_per_socket_event": "connections are accepted one by one",
			"reuse_port": "deprecated by Envoy; enable_reuse_port decides",
		},
		ignored: notes{
			"continue_on_listener_filters_timeout?":        "a connection is closed when the timeout expires",
			"drain_type":                                   "a listener drains when it is changed or removed, and when the process ends",
			"stats_matcher":                                "statistics can't be selected for a listener",
			"per_connection_buffer_high_watermark_timeout": "connections with full buffers wait for their peer; idle timeouts apply",
			"socket_options":                               "socket options of listeners are the system's",
			"tcp_fast_open_queue_length":                   "TCP fast open is not offered",
			"enable_mptcp?":                                "multipath TCP is not offered",
			"ignore_global_conn_limit?":                    "there is no limit of connections across listeners",
			"bypass_overload_manager?":                     "overload protection is not configured by the bootstrap",
			"tcp_keepalive":                                "downstream keep-alive probes are the system's",
		},
		rejected: notes{
			"fcds_config":         "filter chain discovery is not supported",
			"use_original_dst?":   "handing connections to other listeners is not supported",
			"udp_listener_config": "UDP is not supported",
			"api_listener":        "API listeners are not supported",
		},
	},
	{name: "envoy.config.listener.v3.Listener.DeprecatedV1", supported: `bind_to_port`},
	{name: "envoy.config.listener.v3.Listener.InternalListenerConfig"},
	{
		name: "envoy.config.listener.v3.AdditionalAddress", supported: `address`,
		ignored: notes{
			"socket_options": "socket options of listeners are the system's",
			"tcp_keepalive":  "downstream keep-alive probes are the system's",
		},
	},
	{
		name: "envoy.config.listener.v3.FilterChain", root: true,
		supported: `filter_chain_match filters metadata transport_socket transport_socket_connect_timeout name`,
		closed:    notes{"use_proxy_proto?": "use the proxy_protocol listener filter"},
	},
	{
		name: "envoy.config.listener.v3.FilterChainMatch", strict: true,
		supported: `destination_port prefix_ranges direct_source_prefix_ranges source_type source_prefix_ranges
			source_ports server_names transport_protocol application_protocols`,
		rejected: notes{
			"address_suffix": "not implemented, by Envoy neither",
			"suffix_len":     "not implemented, by Envoy neither",
		},
	},
	{name: "envoy.config.listener.v3.Filter", supported: `name typed_config config_discovery`},
	{name: "envoy.config.listener.v3.ListenerFilter", supported: `name typed_config config_discovery filter_disabled`},
	{
		name: "envoy.config.listener.v3.ListenerFilterChainMatchPredicate", strict: true,
		supported: `or_match and_match not_match any_match destination_port_range`,
	},
	{name: "envoy.config.listener.v3.ListenerFilterChainMatchPredicate.MatchSet", strict: true, supported: `rules`},
	{
		name: "envoy.extensions.filters.network.tcp_proxy.v3.TcpProxy", root: true,
		supported: `stat_prefix cluster weighted_clusters idle_timeout access_log max_connect_attempts
			hash_policy tunneling_config max_downstream_connection_duration access_log_flush_interval
			flush_access_log_on_connected access_log_options`,
		ignored: notes{
			"max_downstream_connection_duration_jitter_percentage": "the duration is exact",
			"downstream_idle_timeout":                              "idle_timeout applies to both sides",
			"upstream_idle_timeout":                                "idle_timeout applies to both sides",
			"backoff_options":                                      "connection attempts follow each other at once",
			"proxy_protocol_tlvs":                                  "no TLVs are added to PROXY protocol headers",
			"proxy_protocol_tlv_merge_policy":                      "no TLVs are added to PROXY protocol headers",
			"upstream_connect_mode":                                "the upstream connection is made at once",
			"max_early_data_bytes":                                 "the upstream connection is made at once",
			"check_drain_close?":                                   "connections of a draining listener are closed when its drain time is over",
		},
		moot:   notes{"metadata_match": noSubsets},
		closed: notes{"on_demand": "on-demand cluster discovery is not supported"},
	},
	{name: "envoy.extensions.filters.network.tcp_proxy.v3.TcpProxy.WeightedCluster", supported: `clusters`},
	{
		name: "envoy.extensions.filters.network.tcp_proxy.v3.TcpProxy.WeightedCluster.ClusterWeight", supported: `name weight`,
		moot: notes{"metadata_match": noSubsets},
	},
	{
		name:      "envoy.extensions.filters.network.tcp_proxy.v3.TcpProxy.TunnelingConfig",
		supported: `hostname use_post headers_to_add propagate_response_headers post_path formatters`,
		ignored: notes{
			"propagate_response_trailers?": "trailers are not kept",
			"request_id_extension":         "no request id is made for tunnels",
			"request_id_header":            "no request id is made for tunnels",
			"request_id_metadata_key":      "no request id is made for tunnels",
		},
	},
	{
		name:      "envoy.extensions.filters.network.tcp_proxy.v3.TcpProxy.TcpAccessLogOptions",
		supported: `access_log_flush_interval flush_access_log_on_connected`,
		ignored:   notes{"flush_access_log_on_start?": "a connection is logged when it is connected or ends"},
	},
	{name: "envoy.type.v3.HashPolicy", supported: `source_ip filter_state`},
	{name: "envoy.type.v3.HashPolicy.SourceIp"},
	{name: "envoy.type.v3.HashPolicy.FilterState", supported: `key`},
}
