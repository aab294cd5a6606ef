// Package matcher holds compiled matchers for strings, headers, paths,
// addresses and metadata. Compiling may fail; matching cannot. All matchers
// are immutable and safe for concurrent use, and match without allocating.
package matcher
