package xdsresource

const (
	noSubsets  = "subset load balancing is all it is for, and that is not supported"
	noHedging  = "requests are not hedged"
	legacyCORS = "superseded by typed_per_filter_config"
	noRuntime  = "there is no runtime; the default value applies"
)

var routeTable = []message{
	{
		name: "envoy.config.route.v3.RouteConfiguration", root: true,
		supported: `name virtual_hosts internal_only_headers response_headers_to_add response_headers_to_remove
			request_headers_to_add request_headers_to_remove most_specific_header_mutations_wins
			max_direct_response_body_size_bytes request_mirror_policies ignore_port_in_host_matching
			typed_per_filter_config`,
		ignored: notes{"metadata": "no operator, attribute or matcher asks for it"},
		moot: notes{
			"validate_clusters":         "a route to a missing cluster is reported, and answers its cluster_not_found_response_code",
			"cluster_specifier_plugins": "routes that name one answer 500",
		},
		closed: notes{
			"vhds":         "virtual host discovery is not supported",
			"vhost_header": "virtual hosts are chosen by authority only",
			"ignore_path_parameters_in_path_matching": "routes would match other paths",
			"route_specifiers":                        "is not supported",
		},
	},
	{
		name: "envoy.config.route.v3.VirtualHost", root: true,
		supported: `name domains routes require_tls request_headers_to_add request_headers_to_remove
			response_headers_to_add response_headers_to_remove typed_per_filter_config include_request_attempt_count
			include_attempt_count_in_response retry_policy include_is_timeout_retry_header request_mirror_policies
			metadata per_request_buffer_limit_bytes request_body_buffer_limit rate_limits`,
		ignored: notes{
			"virtual_clusters": "virtual clusters are not counted",
			"cors":             legacyCORS,
			"hedge_policy":     noHedging,
		},
		closed: notes{
			"matcher":                   "matcher trees over routes are not supported",
			"retry_policy_typed_config": "retry policy extensions are not supported",
			"route_specifiers":          "is not supported",
		},
	},
	{
		name: "envoy.config.route.v3.Route", root: true,
		supported: `name match route redirect direct_response non_forwarding_action metadata typed_per_filter_config
			request_headers_to_add request_headers_to_remove response_headers_to_add response_headers_to_remove
			per_request_buffer_limit_bytes request_body_buffer_limit decorator tracing`,
		ignored: notes{
			"stat_prefix": "routes are not counted one by one",
		},
		closed: notes{
			"filter_action":    "is not supported",
			"route_specifiers": "is not supported",
		},
	},
	{name: "envoy.config.route.v3.Decorator", supported: `operation propagate`},
	{
		name:      "envoy.config.route.v3.Tracing",
		supported: `client_sampling random_sampling overall_sampling custom_tags operation upstream_operation`,
	},
	{
		name: "envoy.config.route.v3.RouteMatch", strict: true,
		supported: `prefix path safe_regex connect_matcher path_separated_prefix path_match_policy case_sensitive
			runtime_fraction headers query_parameters cookies grpc tls_context dynamic_metadata filter_state`,
	},
	{name: "envoy.config.route.v3.RouteMatch.ConnectMatcher", strict: true},
	{name: "envoy.config.route.v3.RouteMatch.GrpcRouteMatchOptions", strict: true},
	{name: "envoy.config.route.v3.RouteMatch.TlsContextMatchOptions", strict: true, supported: `presented validated`},
	{
		name: "envoy.config.route.v3.RouteAction",
		supported: `cluster cluster_header weighted_clusters cluster_not_found_response_code
			prefix_rewrite regex_rewrite path_rewrite_policy path_rewrite host_rewrite_literal auto_host_rewrite
			host_rewrite_header host_rewrite_path_regex append_x_forwarded_host timeout idle_timeout retry_policy
			request_mirror_policies priority hash_policy max_grpc_timeout grpc_timeout_offset upgrade_configs
			max_stream_duration rate_limits include_vh_rate_limits`,
		moot: notes{
			"internal_redirect_action": "deprecated by Envoy; its default is what happens",
			"metadata_match":           noSubsets,
		},
		ignored: notes{
			"flush_timeout":            "idle_timeout applies to flushing, too",
			"early_data_policy":        "TLS early data is not accepted",
			"cors":                     legacyCORS,
			"internal_redirect_policy": "redirects are passed to the client",
			"max_internal_redirects":   "redirects are passed to the client",
			"hedge_policy":             noHedging,
		},
		closed: notes{
			"cluster_specifier_plugin":        "cluster specifier plugins are not supported",
			"inline_cluster_specifier_plugin": "cluster specifier plugins are not supported",
			"host_rewrite":                    "use host_rewrite_literal or host_rewrite_header",
			"retry_policy_typed_config":       "retry policy extensions are not supported",
		},
	},
	{
		name:      "envoy.config.route.v3.RouteAction.RequestMirrorPolicy",
		supported: `cluster cluster_header runtime_fraction disable_shadow_host_suffix_append`,
		ignored: notes{
			"trace_sampled":             "the copy has the trace context of the request, and no span",
			"request_headers_mutations": "the copy has the headers of the request",
			"host_rewrite_literal":      "the copy has the host of the request",
		},
	},
	{
		name:      "envoy.config.route.v3.RouteAction.HashPolicy",
		supported: `header cookie connection_properties query_parameter filter_state terminal`,
	},
	{name: "envoy.config.route.v3.RouteAction.HashPolicy.Header", supported: `header_name regex_rewrite`},
	{name: "envoy.config.route.v3.RouteAction.HashPolicy.Cookie", supported: `name ttl path attributes`},
	{name: "envoy.config.route.v3.RouteAction.HashPolicy.CookieAttribute", supported: `name value`},
	{name: "envoy.config.route.v3.RouteAction.HashPolicy.ConnectionProperties", supported: `source_ip`},
	{name: "envoy.config.route.v3.RouteAction.HashPolicy.QueryParameter", supported: `name`},
	{name: "envoy.config.route.v3.RouteAction.HashPolicy.FilterState", supported: `key`},
	{name: "envoy.config.route.v3.RouteAction.UpgradeConfig", supported: `upgrade_type enabled connect_config`},
	{
		name: "envoy.config.route.v3.RouteAction.UpgradeConfig.ConnectConfig",
		closed: notes{
			"proxy_protocol_config": "PROXY protocol in tunnels is not supported",
			"allow_post":            "only CONNECT is terminated",
		},
	},
	{
		name:      "envoy.config.route.v3.RouteAction.MaxStreamDuration",
		supported: `max_stream_duration grpc_timeout_header_max grpc_timeout_header_offset`,
	},
	{
		name: "envoy.config.route.v3.WeightedCluster", supported: `clusters header_name`,
		moot: notes{"total_weight": "deprecated by Envoy; the sum of weights is used"},
		ignored: notes{
			"runtime_key_prefix": noRuntime,
			"use_hash_policy?":   "the choice is random",
		},
	},
	{
		name: "envoy.config.route.v3.WeightedCluster.ClusterWeight",
		supported: `name cluster_header weight request_headers_to_add request_headers_to_remove
			response_headers_to_add response_headers_to_remove typed_per_filter_config host_rewrite_literal`,
		moot: notes{"metadata_match": noSubsets},
	},
	{
		name: "envoy.config.route.v3.RetryPolicy",
		supported: `retry_on num_retries per_try_timeout per_try_idle_timeout retry_priority retry_host_predicate
			host_selection_retry_max_attempts retriable_status_codes retry_back_off rate_limited_retry_back_off
			retriable_headers retriable_request_headers`,
		ignored: notes{
			"retry_options_predicates":  "retries have the options of the first attempt",
			"refresh_cluster_on_retry?": "a retry goes to the same cluster",
		},
	},
	{name: "envoy.config.route.v3.RetryPolicy.RetryPriority", supported: `name typed_config`},
	{name: "envoy.config.route.v3.RetryPolicy.RetryHostPredicate", supported: `name typed_config`},
	{name: "envoy.config.route.v3.RetryPolicy.RetryBackOff", supported: `base_interval max_interval`},
	{name: "envoy.config.route.v3.RetryPolicy.RateLimitedRetryBackOff", supported: `reset_headers max_interval`},
	{name: "envoy.config.route.v3.RetryPolicy.ResetHeader", supported: `name format`},
	{
		name: "envoy.config.route.v3.RedirectAction",
		supported: `https_redirect scheme_redirect host_redirect port_redirect path_redirect prefix_rewrite
			regex_rewrite response_code strip_query`,
		closed: notes{"path_rewrite": "use prefix_rewrite or regex_rewrite"},
	},
	{name: "envoy.config.route.v3.DirectResponseAction", supported: `status body body_format`},
	{name: "envoy.config.route.v3.NonForwardingAction"},
}
