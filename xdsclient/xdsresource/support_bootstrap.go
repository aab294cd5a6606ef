package xdsresource

var bootstrapTable = []message{
	{
		name: "envoy.config.bootstrap.v3.Bootstrap", root: true,
		supported: `node static_resources dynamic_resources admin bootstrap_extensions
			use_tcp_for_dns_lookups dns_resolution_config typed_dns_resolver_config`,
		moot: notes{
			"deferred_stat_options":            "statistics are made when they are first used",
			"stats_flush_interval":             "statistics are pulled",
			"stats_flush_on_admin":             "statistics are pulled",
			"stats_eviction_interval":          "statistics of what is removed are removed with it",
			"default_regex_engine":             "RE2 syntax is the only one",
			"inline_headers":                   "headers have no registry",
			"application_log_config":           "the process log is structured; see its flags",
			"grpc_async_client_manager_config": "clients are kept while they are in use",
			"memory_allocator_manager":         "memory is returned by Go's runtime",
			"enable_worker_cpu_affinity":       "Go's runtime places its threads",
			"enable_dispatcher_stats":          "there are no dispatchers",
			"perf_tracing_file_path":           "profiles are taken over the admin port",
			"watchdog":                         "there are no worker threads to watch",
			"watchdogs":                        "there are no worker threads to watch",
			"fatal_actions":                    "there are no worker threads to watch",
			"xds_config_tracker_extension":     "see /config_dump",
		},
		ignored: notes{
			"node_context_params":            "names are not URIs",
			"cluster_manager":                "clusters have no common settings",
			"hds_config":                     noHealth,
			"flags_path":                     "flags come from the command line",
			"stats_sinks":                    "statistics are served to Prometheus only",
			"stats_config":                   "metrics and their labels are fixed",
			"tracing":                        "no spans are exported",
			"layered_runtime":                noRuntime,
			"overload_manager":               "memory is watched by GOMEMLIMIT: docs/flow-control.md",
			"stats_server_version_override":  "the version is the binary's",
			"config_sources":                 "every reference names its own source",
			"default_config_source":          "every reference names its own source",
			"default_socket_interface":       "sockets are the system's",
			"certificate_provider_instances": "certificate providers are not supported",
			"xds_delegate_extension":         "configuration is not kept over restarts",
			"listener_manager":               "there is one",
		},
		rejected: notes{"header_prefix": "only x-envoy is supported"},
	},
	{name: "envoy.config.bootstrap.v3.Bootstrap.StaticResources", supported: `listeners clusters secrets`},
	{
		name: "envoy.config.bootstrap.v3.Bootstrap.DynamicResources", supported: `lds_config cds_config ads_config`,
		rejected: notes{
			"lds_resources_locator": "names are not URIs",
			"cds_resources_locator": "names are not URIs",
		},
	},
	{
		name: "envoy.config.bootstrap.v3.Admin", supported: `address`,
		moot: notes{
			"profile_path":             "profiles are answers of the admin port",
			"ignore_global_conn_limit": "the admin port is not limited",
		},
		ignored: notes{
			"access_log":      "requests to the admin port are not logged",
			"access_log_path": "requests to the admin port are not logged",
			"socket_options":  "socket options of listeners are the system's",
		},
		rejected: notes{"allow_paths": "is not supported: more would be served than is allowed"},
	},
	{
		name: "envoy.config.core.v3.Node", supported: `id cluster metadata locality`,
		moot: notes{
			"user_agent_name":          "the node says what this process is",
			"user_agent_version":       "the node says what this process is",
			"user_agent_build_version": "the node says what this process is",
			"extensions":               "the node says what this process is",
			"client_features":          "the node says what this process is",
		},
		ignored: notes{
			"dynamic_parameters":  "names are not URIs",
			"listening_addresses": "deprecated by Envoy",
		},
	},
}
