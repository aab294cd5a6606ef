// Package grpc calls a grpc-go server directly and through a running Fairlead, and
// compares what the client gets: status, message, details, metadata, messages, and
// the code of a reset, for calls of every kind, all statuses, and deadlines in every
// spelling.
package grpc
