package message

import "strings"

// ForbiddenTrailer reports whether a field called name, in lower case, has no
// meaning, or a dangerous one, in a trailer section (RFC 9110 section 6.5.1):
// framing, routing, authentication, request modifiers, and what proxies write
// about a request. Spellings that CGI takes for the same count too, see
// SameForCGI.
func ForbiddenTrailer(name string) bool {
	switch name = dashed(name); name {
	case "age", "authorization", "cache-control", "connection", "content-encoding", "content-length", "content-range",
		"content-type", "cookie", "date", "expect", "expires", "forwarded", "host", "http2-settings", "if-match",
		"if-modified-since", "if-none-match", "if-range", "if-unmodified-since", "keep-alive", "location",
		"max-forwards", "pragma", "proxy-authenticate", "proxy-authorization", "proxy-connection", "range",
		"retry-after", "set-cookie", "te", "trailer", "transfer-encoding", "upgrade", "vary", "www-authenticate":
		return true
	}
	return strings.HasPrefix(name, "x-forwarded-") || strings.HasPrefix(name, "x-envoy-")
}

// ForbiddenRequestTrailer is ForbiddenTrailer for the trailers of a request:
// those of a client may not hold what a proxy tells an origin in the head
// either, because some origins take trailers for headers.
func ForbiddenRequestTrailer(name string) bool {
	if ForbiddenTrailer(name) {
		return true
	}
	switch dashed(name) {
	case "via", "x-request-id", "traceparent", "tracestate", "baggage":
		return true
	}
	return false
}

// dashed is name as CGI knows it. It allocates only for a name with "_".
func dashed(name string) string {
	if strings.IndexByte(name, '_') < 0 {
		return name
	}
	return strings.ReplaceAll(name, "_", "-")
}
