package xdsresource

const (
	noZones  = "zone-aware routing needs a local cluster, which a bootstrap's cluster_manager can't name here; priorities and weights of the control plane are executed"
	noHealth = "active health checks are not executed; endpoints count as healthy"
)

var clusterTable = []message{
	{
		name: "envoy.config.cluster.v3.Cluster", root: true,
		supported: `transport_socket_matches name alt_stat_name type cluster_type eds_cluster_config connect_timeout lb_policy load_assignment max_requests_per_connection circuit_breakers
			upstream_http_protocol_options common_http_protocol_options http_protocol_options http2_protocol_options
			typed_extension_protocol_options dns_refresh_rate dns_failure_refresh_rate respect_dns_ttl dns_jitter dns_lookup_family
			dns_resolvers use_tcp_for_dns_lookups dns_resolution_config typed_dns_resolver_config
			outlier_detection cleanup_interval upstream_bind_config ring_hash_lb_config maglev_lb_config
			original_dst_lb_config least_request_lb_config round_robin_lb_config common_lb_config transport_socket
			metadata protocol_selection upstream_connection_options filters
			load_balancing_policy`,
		moot: notes{
			"ignore_health_on_host_removal": "an endpoint that the control plane removes is gone at once",
			"track_timeout_budgets":         "timeout budgets are not counted",
			"track_cluster_stats":           "timeout budgets and sizes are not counted",
			"wait_for_warm_on_init":         "clusters serve as soon as they have endpoints",
		},
		ignored: notes{
			"stats_matcher":                                "statistics can't be selected for a cluster",
			"per_connection_buffer_limit_bytes":            "buffers of upstream connections have a size of their own; the listener's limit bounds retries",
			"per_connection_buffer_high_watermark_timeout": "connections with full buffers wait for their peer; idle timeouts apply",
			"health_checks":                                noHealth,
			"close_connections_on_host_health_failure?":    "connections to an unhealthy endpoint end with their requests",
			"lrs_server":                                   "load is not reported",
			"lrs_report_endpoint_metrics":                  "load is not reported",
			"preconnect_policy":                            "connections are made when they are needed",
			"queuing_policies":                             "requests wait in the order of their arrival",
		},
		closed: notes{
			"transport_socket_matcher":                   "use transport_socket_matches",
			"lb_subset_config":                           "subset load balancing is not supported; requests could reach endpoints outside of the subset",
			"upstream_config":                            "upstream extensions are not supported",
			"connection_pool_per_downstream_connection?": "connections are shared",
		},
	},
	{
		name: "envoy.config.cluster.v3.Cluster.TransportSocketMatch", supported: `match transport_socket`,
		moot: notes{"name": "matches are not counted"},
	},
	{name: "envoy.config.cluster.v3.Cluster.CustomClusterType", supported: `name typed_config`},
	{name: "envoy.config.cluster.v3.Cluster.EdsClusterConfig", supported: `eds_config service_name`},
	{name: "envoy.config.cluster.v3.Cluster.SlowStartConfig", supported: `slow_start_window aggression min_weight_percent`},
	{name: "envoy.config.cluster.v3.Cluster.RoundRobinLbConfig", supported: `slow_start_config`},
	{name: "envoy.config.cluster.v3.Cluster.LeastRequestLbConfig", supported: `choice_count active_request_bias slow_start_config`},
	{
		name: "envoy.config.cluster.v3.Cluster.RingHashLbConfig", supported: `minimum_ring_size maximum_ring_size`,
		ignored: notes{"hash_function": "the ring is built with xxHash"},
	},
	{name: "envoy.config.cluster.v3.Cluster.MaglevLbConfig", supported: `table_size`},
	{
		name:      "envoy.config.cluster.v3.Cluster.OriginalDstLbConfig",
		supported: `use_http_header http_header_name upstream_port_override metadata_key`,
	},
	{
		name: "envoy.config.cluster.v3.Cluster.CommonLbConfig",
		supported: `healthy_panic_threshold zone_aware_lb_config locality_weighted_lb_config consistent_hashing_lb_config
			close_connections_on_host_set_change`,
		moot: notes{
			"update_merge_window":             "an update is applied at once",
			"ignore_new_hosts_until_first_hc": noHealth,
		},
		ignored: notes{
			"override_host_status": "an override host must be healthy or degraded",
		},
	},
	{name: "envoy.config.cluster.v3.Cluster.CommonLbConfig.LocalityWeightedLbConfig"},
	{
		name: "envoy.config.cluster.v3.Cluster.CommonLbConfig.ZoneAwareLbConfig", supported: `fail_traffic_on_panic`,
		ignored: notes{"routing_enabled": noZones, "min_cluster_size": noZones},
	},
	{
		name:      "envoy.config.cluster.v3.Cluster.CommonLbConfig.ConsistentHashingLbConfig",
		supported: `use_hostname_for_hashing`,
		ignored:   notes{"hash_balance_factor": "load is not bounded by endpoint"},
	},
	{
		name: "envoy.config.cluster.v3.CircuitBreakers", supported: `thresholds`,
		ignored: notes{"per_host_thresholds": "limits are the cluster's"},
	},
	{
		name:      "envoy.config.cluster.v3.CircuitBreakers.Thresholds",
		supported: `priority max_connections max_pending_requests max_requests max_retries retry_budget`,
		moot:      notes{"track_remaining": "what is in use is always tracked"},
		ignored:   notes{"max_connection_pools": "pools are bounded by max_connections"},
	},
	{
		name: "envoy.config.cluster.v3.CircuitBreakers.Thresholds.RetryBudget", supported: `budget_percent min_retry_concurrency`,
		ignored: notes{"budget_interval": "the budget is a share of the requests in flight"},
	},
	{
		name: "envoy.config.cluster.v3.OutlierDetection",
		supported: `consecutive_5xx interval base_ejection_time max_ejection_percent enforcing_consecutive_5xx
			enforcing_success_rate success_rate_minimum_hosts success_rate_request_volume success_rate_stdev_factor
			consecutive_gateway_failure enforcing_consecutive_gateway_failure split_external_local_origin_errors
			consecutive_local_origin_failure enforcing_consecutive_local_origin_failure failure_percentage_threshold
			enforcing_failure_percentage failure_percentage_minimum_hosts failure_percentage_request_volume
			max_ejection_time max_ejection_time_jitter always_eject_one_host`,
		moot: notes{
			"successful_active_health_check_uneject_host": noHealth,
		},
		ignored: notes{
			"enforcing_local_origin_success_rate?":       "success rates count all failures",
			"enforcing_failure_percentage_local_origin?": "failure percentages count all failures",
			"monitors":               "extensions don't take part in outlier detection",
			"detect_degraded_hosts?": "only the control plane marks endpoints degraded",
		},
	},
	{
		name: "envoy.config.cluster.v3.UpstreamConnectionOptions", supported: `tcp_keepalive`,
		ignored: notes{
			"set_local_interface_name_on_upstream_connections?": "the interface is not recorded",
			"happy_eyeballs_config":                             "an endpoint has one address",
		},
	},
	{name: "envoy.config.cluster.v3.Filter", supported: `name typed_config`, closed: notes{"config_discovery": "is not supported for upstream filters"}},
	{name: "envoy.config.cluster.v3.LoadBalancingPolicy", supported: `policies`},
	{name: "envoy.config.cluster.v3.LoadBalancingPolicy.Policy", supported: `typed_extension_config`},
	{name: "envoy.extensions.load_balancing_policies.round_robin.v3.RoundRobin", root: true, supported: `slow_start_config locality_lb_config`},
	{
		name: "envoy.extensions.load_balancing_policies.least_request.v3.LeastRequest", root: true,
		supported: `choice_count active_request_bias slow_start_config locality_lb_config`,
		ignored: notes{
			"enable_full_scan?": "endpoints are compared by random choices",
			"selection_method":  "endpoints are compared by random choices",
		},
	},
	{name: "envoy.extensions.load_balancing_policies.random.v3.Random", root: true, supported: `locality_lb_config`},
	{
		name: "envoy.extensions.load_balancing_policies.ring_hash.v3.RingHash", root: true,
		supported: `minimum_ring_size maximum_ring_size consistent_hashing_lb_config locality_weighted_lb_config`,
		ignored: notes{
			"hash_function":            "the ring is built with xxHash",
			"use_hostname_for_hashing": "use consistent_hashing_lb_config",
			"hash_balance_factor":      "load is not bounded by endpoint",
		},
	},
	{
		name: "envoy.extensions.load_balancing_policies.maglev.v3.Maglev", root: true,
		supported: `table_size consistent_hashing_lb_config locality_weighted_lb_config`,
	},
	{
		name: "envoy.extensions.load_balancing_policies.override_host.v3.OverrideHost", root: true,
		supported: `override_host_sources fallback_policy`,
		ignored:   notes{"selected_host_key": "the chosen host is not written to metadata"},
	},
	{
		name:      "envoy.extensions.load_balancing_policies.override_host.v3.OverrideHost.OverrideHostSource",
		supported: `header`,
		ignored:   notes{"metadata": "only headers choose the host"},
	},
	{
		name:      "envoy.extensions.load_balancing_policies.common.v3.LocalityLbConfig",
		supported: `locality_weighted_lb_config zone_aware_lb_config`,
	},
	{
		name: "envoy.extensions.load_balancing_policies.common.v3.LocalityLbConfig.ZoneAwareLbConfig", supported: `fail_traffic_on_panic`,
		ignored: notes{
			"routing_enabled": noZones, "min_cluster_size": noZones, "force_locality_direct_routing?": noZones, "force_local_zone": noZones, "locality_basis": noZones,
		},
	},
	{name: "envoy.extensions.load_balancing_policies.common.v3.LocalityLbConfig.LocalityWeightedLbConfig"},
	{name: "envoy.extensions.load_balancing_policies.common.v3.SlowStartConfig", supported: `slow_start_window aggression min_weight_percent`},
	{
		name:      "envoy.extensions.load_balancing_policies.common.v3.ConsistentHashingLbConfig",
		supported: `use_hostname_for_hashing`,
		ignored: notes{
			"hash_balance_factor": "load is not bounded by endpoint",
			"hash_policy":         "the route's hash_policy decides",
		},
	},
	{
		name: "envoy.extensions.clusters.dynamic_forward_proxy.v3.ClusterConfig", root: true,
		supported: `dns_cache_config`,
		moot:      notes{"allow_insecure_cluster_options": "auto_sni and auto_san_validation are the cluster's own choice"},
		ignored:   notes{"allow_coalesced_connections?": "each host has its own connections"},
		closed:    notes{"sub_clusters_config": "use dns_cache_config"},
	},
	{
		name: "envoy.extensions.common.dynamic_forward_proxy.v3.DnsCacheConfig",
		supported: `dns_lookup_family dns_refresh_rate dns_min_refresh_rate dns_failure_refresh_rate host_ttl max_hosts
			disable_dns_refresh_on_failure dns_query_timeout preresolve_hostnames
			use_tcp_for_dns_lookups dns_resolution_config typed_dns_resolver_config`,
		moot: notes{
			"name": "each cluster has a cache of its own",
		},
		ignored: notes{
			"dns_cache_circuit_breaker": "waiting requests are bounded by the cluster's circuit breaker",
			"key_value_config":          "names are not kept over restarts",
		},
		closed: notes{"resolved_address_filter": "addresses are not filtered"},
	},
	{
		name: "envoy.extensions.clusters.dns.v3.DnsCluster", root: true,
		supported: `dns_refresh_rate dns_failure_refresh_rate respect_dns_ttl dns_jitter typed_dns_resolver_config
			dns_lookup_family all_addresses_in_single_endpoint dns_min_refresh_rate`,
	},
	{name: "envoy.extensions.clusters.dns.v3.DnsCluster.RefreshRate", supported: `base_interval max_interval`},
	{name: "envoy.config.cluster.v3.Cluster.RefreshRate", supported: `base_interval max_interval`},
	{name: "envoy.config.core.v3.DnsResolutionConfig", supported: `resolvers dns_resolver_options`},
	{name: "envoy.config.core.v3.DnsResolverOptions", supported: `use_tcp_for_dns_lookups no_default_search_domain`},
	{
		name: "envoy.extensions.network.dns_resolver.cares.v3.CaresDnsResolverConfig", root: true,
		supported: `resolvers use_resolvers_as_fallback filter_unroutable_families dns_resolver_options query_timeout_seconds
			query_tries rotate_nameservers edns0_max_payload_size`,
		moot: notes{
			"udp_max_queries":           "each question has a socket and port of its own",
			"max_udp_channel_duration":  "each question has a socket and port of its own",
			"reinit_channel_on_timeout": "each question has a socket and port of its own",
		},
		ignored: notes{"qcache_max_ttl": "answers are kept by the cluster, for their TTL, and not by the resolver"},
	},
	{
		name: "envoy.extensions.network.dns_resolver.getaddrinfo.v3.GetAddrInfoDnsResolverConfig", root: true,
		moot:    notes{"num_resolver_threads": "questions wait for no thread"},
		ignored: notes{"num_retries": "questions are repeated as resolv.conf says"},
	},
	{
		name: "envoy.extensions.upstreams.http.v3.HttpProtocolOptions", root: true,
		supported: `common_http_protocol_options upstream_http_protocol_options explicit_http_config
			use_downstream_protocol_config auto_config http_filters`,
		moot: notes{"header_validation_config": "the built-in header checks always apply"},
		ignored: notes{
			"outlier_detection":       "5xx responses and connection failures count",
			"request_mirror_policies": "the route's policies decide",
			"hash_policy":             "the route's policies decide",
			"retry_policy":            "the route's policies decide",
		},
	},
	{
		name:      "envoy.extensions.upstreams.http.v3.HttpProtocolOptions.ExplicitHttpConfig",
		supported: `http_protocol_options http2_protocol_options`,
		closed:    notes{"http3_protocol_options": "HTTP/3 is not supported"},
	},
	{
		name:      "envoy.extensions.upstreams.http.v3.HttpProtocolOptions.UseDownstreamHttpConfig",
		supported: `http_protocol_options http2_protocol_options`,
		moot:      notes{"http3_protocol_options": "HTTP/3 is not served"},
	},
	{
		name:      "envoy.extensions.upstreams.http.v3.HttpProtocolOptions.AutoHttpConfig",
		supported: `http_protocol_options http2_protocol_options`,
		ignored: notes{
			"http3_protocol_options":            "HTTP/3 is not supported; HTTP/2 or HTTP/1.1 is chosen by ALPN",
			"alternate_protocols_cache_options": "HTTP/3 is not supported; HTTP/2 or HTTP/1.1 is chosen by ALPN",
		},
	},
	{name: "envoy.config.core.v3.UpstreamHttpProtocolOptions", supported: `auto_sni auto_san_validation override_auto_sni_header`},
}

var endpointTable = []message{
	{
		name: "envoy.config.endpoint.v3.ClusterLoadAssignment", root: true,
		supported: `cluster_name endpoints named_endpoints policy`,
	},
	{
		name: "envoy.config.endpoint.v3.ClusterLoadAssignment.Policy", supported: `drop_overloads overprovisioning_factor`,
		ignored: notes{
			"endpoint_stale_after":      "endpoints stay until the control plane removes them",
			"weighted_priority_health?": "the health of a priority is the share of healthy endpoints",
		},
	},
	{
		name: "envoy.config.endpoint.v3.ClusterLoadAssignment.Policy.DropOverload", supported: `drop_percentage`,
		moot: notes{"category": "a row of load reports, which are not sent"},
	},
	{
		name:      "envoy.config.endpoint.v3.LocalityLbEndpoints",
		supported: `locality lb_endpoints load_balancer_endpoints load_balancing_weight priority`,
		ignored: notes{
			"metadata":  "metadata of localities is not read",
			"proximity": "proximity is not used by Envoy's balancers either",
		},
		rejected: notes{"leds_cluster_locality_config": "locality endpoint discovery is not supported"},
	},
	{name: "envoy.config.endpoint.v3.LocalityLbEndpoints.LbEndpointList", supported: `lb_endpoints`},
	{name: "envoy.config.endpoint.v3.LbEndpoint", supported: `endpoint endpoint_name health_status metadata load_balancing_weight`},
	{
		name: "envoy.config.endpoint.v3.Endpoint", supported: `address hostname`,
		moot: notes{"health_check_config": noHealth},
		ignored: notes{
			"additional_addresses": "an endpoint has one address",
			"observability_name":   "an endpoint is named by its address",
		},
	},
}
