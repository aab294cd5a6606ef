// Package websocket sends WebSocket messages through a running Fairlead, in over
// HTTP/1.1 and HTTP/2 (RFC 8441), out over both: what Autobahn's test suite tries
// against an endpoint, tried against who is between two of them. Every byte must
// arrive, good or bad: a proxy has no opinion of frames.
package websocket
