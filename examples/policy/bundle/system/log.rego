# What the decision log must not hold.
package system.log

mask contains "/input/parsed_body/card"

mask contains {"op": "upsert", "path": "/input/attributes/request/http/headers/x-user", "value": hash} if {
	user := input.input.attributes.request.http.headers["x-user"]
	hash := substring(crypto.sha256(user), 0, 12)
}

drop if input.request.path == "/healthz"
