# Who may do what in the shop: roles and grants are data of the bundle. It runs as
# it is under opa-envoy-plugin, too.
package envoy.authz

import input.attributes.request.http as http

default allow := {"allowed": false, "http_status": 403, "body": "not allowed\n"}

allow := {
	"allowed": true,
	"headers": {"x-roles": concat(",", roles)},
	"response_headers_to_add": {"x-policy": "shop"},
} if {
	granted
	not too_much
}

allow := {"allowed": false, "http_status": 422, "body": "orders have at most 100 items\n"} if {
	granted
	too_much
}

roles := data.shop.users[http.headers["x-user"]]

granted if {
	some role in roles
	some grant in data.shop.grants[role]
	grant.method == http.method
	grant.path == input.parsed_path[0]
}

# The reason why bodies are read at all.
too_much if input.parsed_body.items > 100
