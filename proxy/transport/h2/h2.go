// Package h2 is HTTP/2 (RFC 9113) on both sides, with a connection state
// machine of its own over x/net's hpack.
//
// A goroutine runs while a stream's request is in flight; a connection that is
// quiet for a moment and an idle CONNECT stream hold none.
//
// Writing: whoever has something to send appends frames to the connection's
// batch; the first one there yields once, so that others can join, and writes
// the batch, at most 64 KiB, in one call. The reader never writes.
//
// Flow control: a stream's window is granted again only as its consumer takes
// data. The connection's window is granted on receipt until eight times its size
// (at most 32 MiB more than it) waits for consumers, so that a slow stream does
// not stall others, and as consumers take data beyond that.
//
// A head that exceeds the limits is answered with 431 (Envoy resets the stream);
// one that goes on in CONTINUATION frames beyond them ends the connection.
// CONNECT always reaches the handler, extended CONNECT as the upgrade request that
// Envoy makes of it, if AllowConnect.
//
// Limitations: no server push, no priorities (RFC 9113 deprecates both).
package h2

import (
	"github.com/fairlead-mesh/fairlead/internal/netio"
	"github.com/fairlead-mesh/fairlead/proxy/transport"
)

// Server is one downstream connection; it implements transport.ServerConn. Safe
// for concurrent use.
type Server struct{ c conn }

// NewServer prepares nc; the preface has not been read yet. cfg is read now and
// not kept. Serve must follow.
func NewServer(nc netio.Conn, cfg *transport.ServerConfig, h transport.Handler) *Server {
	s := &Server{}
	s.c.handler, s.c.rx, s.c.tx = h, cfg.Received, cfg.Sent
	s.c.init(nc, serverLimits(cfg), false)
	return s
}

// Serve drives the connection, see h1.Server.Serve. done, which may be nil, is
// called once, when the connection has ended and all handlers have returned.
func (s *Server) Serve(done func()) {
	s.c.onEnd = func(error) {
		if done != nil {
			done()
		}
	}
	s.c.start()
	s.c.read()
}

// Drain implements transport.ServerConn: GOAWAY with the highest stream ID, a
// PING, and on its answer or after a second GOAWAY with the last stream ID.
func (s *Server) Drain() { s.c.drain() }

// Close implements transport.ServerConn. Streams end with cause; the peer gets a
// GOAWAY if the transport still takes it.
func (s *Server) Close(cause error) { s.c.shutdown(codeNo, "", cause, false) }

// Active implements transport.ServerConn: streams and handlers in flight.
func (s *Server) Active() int {
	s.c.mu.Lock()
	defer s.c.mu.Unlock()
	return max(len(s.c.streams), s.c.running)
}

// client is one upstream connection.
type client struct {
	c     conn
	cfg   *transport.ClientConfig
	ended chan struct{}
}

// NewClient sends the preface on nc and returns the upstream connection. cfg is
// kept and must not change. It does not wait for the peer's SETTINGS: until they
// are there the peer is taken to allow 100 streams.
func NewClient(nc netio.Conn, cfg *transport.ClientConfig) (transport.ClientConn, error) {
	cc := &client{cfg: cfg, ended: make(chan struct{})}
	c := &cc.c
	c.onEnd = func(err error) {
		close(cc.ended)
		if cfg.OnClose != nil {
			cfg.OnClose(cc, err)
		}
	}
	c.onFree = func() {
		if cfg.OnIdle != nil && cc.Available() > 0 {
			cfg.OnIdle(cc)
		}
	}
	c.init(nc, clientLimits(cfg), true)
	c.start()
	go c.read()
	return cc, nil
}

// NewStream implements transport.ClientConn. The stream gets its ID with its
// head.
func (cc *client) NewStream() (transport.ClientStream, error) {
	c := &cc.c
	c.mu.Lock()
	switch {
	case c.dead:
		err := c.err
		c.mu.Unlock()
		return nil, err
	case c.draining:
		c.mu.Unlock()
		return nil, resetError(transport.RemoteRefused, "connection is going away")
	case cc.availableLocked() <= 0:
		c.mu.Unlock()
		return nil, resetError(transport.Overflow, "too many streams on the connection")
	}
	c.held++
	c.mu.Unlock()
	s := newStream(c)
	s.held = true
	return (*clientStream)(s), nil
}

func (cc *client) availableLocked() int {
	c := &cc.c
	limit := int64(c.peer.maxStreams)
	if c.lim.maxStreams > 0 {
		limit = min(limit, int64(c.lim.maxStreams))
	}
	if c.dead || c.draining || c.nextID > maxStreamID {
		return 0
	}
	return int(max(0, limit-int64(c.held)))
}

// Available implements transport.ClientConn.
func (cc *client) Available() int {
	cc.c.mu.Lock()
	defer cc.c.mu.Unlock()
	return cc.availableLocked()
}

// Active implements transport.ClientConn.
func (cc *client) Active() int {
	cc.c.mu.Lock()
	defer cc.c.mu.Unlock()
	return cc.c.held
}

// Drain implements transport.ClientConn. A stream that NewStream has returned may
// still be used.
func (cc *client) Drain() { cc.c.drain() }

// Close implements transport.ClientConn.
func (cc *client) Close(cause error) { cc.c.shutdown(codeNo, "", cause, false) }

// Done implements transport.ClientConn.
func (cc *client) Done() <-chan struct{} { return cc.ended }
