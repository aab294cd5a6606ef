// Package listener accepts connections, runs listener filters, picks the
// filter chain and hands the connection to it. Internal listeners are the same
// without a socket: a function call with a connection.
package listener
