package transport

import "github.com/fairlead-mesh/fairlead/internal/message"

// hostChar is RFC 3986 reg-name without the comma, which a list of hosts has.
var hostChar = func() (t [256]bool) {
	for _, c := range "!$%&'()*+-.;=_~0123456789abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ" {
		t[c] = true
	}
	return t
}()

// ValidAuthority checks host and port (RFC 3986, section 3.2): a registered name,
// an IPv4 address or an IPv6 literal in brackets, and a port from 0 to 65535, at
// most five digits, that may be missing unless needPort; no user information. It
// is one for all versions of HTTP: what one took and another wrote differently
// would be two hosts.
func ValidAuthority[T []byte | string](b T, needPort bool) bool {
	i := 0
	if len(b) > 0 && b[0] == '[' {
		for i = 1; i < len(b) && (message.Unhex(b[i]) >= 0 || b[i] == ':' || b[i] == '.'); i++ {
		}
		if i < 3 || i == len(b) || b[i] != ']' {
			return false
		}
		i++
	} else {
		for i < len(b) && hostChar[b[i]] {
			i++
		}
		if i == 0 {
			return false
		}
	}
	if i == len(b) {
		return !needPort
	}
	if b[i] != ':' || i+1 == len(b) || len(b)-i > 6 {
		return false
	}
	port := 0
	for i++; i < len(b); i++ {
		if b[i] < '0' || b[i] > '9' {
			return false
		}
		port = 10*port + int(b[i]-'0')
	}
	return port <= 65535
}
