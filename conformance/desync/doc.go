// Package desync sends requests that parsers are known to disagree about
// through a running Fairlead, over HTTP/1.1 and HTTP/2, and reads what reaches
// the origin with a parser that knows nothing but RFC 9112's grammar, strictly:
// every byte must belong to a valid request, or the request must have been
// refused.
package desync
