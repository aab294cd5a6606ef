// Package abuse attacks a running Fairlead with the floods and bombs that
// HTTP/2 and TLS servers are known to fall to, and watches what they cost: the
// attacker's connection must be cut, processor time and memory must stay small,
// and a canary on another connection must not lose a request.
package abuse
