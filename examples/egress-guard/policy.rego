# Who may reach what: each host is allowed for a namespace, or it is denied.
package envoy.authz

import input.attributes.request.http as http

hosts := {
	"payments": {"api.bank.example", "api.partner.example"},
	"reports": {"api.stats.example"},
}

default allow := false

allow if lower(split(http.host, ":")[0]) in hosts[namespace]

# The client's certificate says where it comes from: spiffe://<trust domain>/ns/<namespace>/sa/<service account>.
namespace := parts[4] if {
	parts := split(input.attributes.source.principal, "/")
	count(parts) == 7
	parts[2] == "cluster.local"
	parts[3] == "ns"
}
