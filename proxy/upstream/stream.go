package upstream

import (
	"net/netip"
	"sync"
	"time"

	"github.com/fairlead-mesh/fairlead/internal/message"
	"github.com/fairlead-mesh/fairlead/internal/streaminfo"
	"github.com/fairlead-mesh/fairlead/proxy/transport"
)

// Stream is one exchange on a pooled connection. It implements
// transport.ClientStream and keeps the books of host, cluster and breaker. It
// must not be touched after Release.
type Stream struct {
	transport.ClientStream
	pc     *pooledConn
	reused bool
	ended  bool
}

var streams = sync.Pool{New: func() any { return new(Stream) }}

// Reused reports whether the connection has carried a stream before, or was made for
// one that did not need it any more and has lain idle: a failure without an answer may
// then be the race with the peer closing it.
func (s *Stream) Reused() bool { return s.reused }

// LocalAddr is the local address of the connection.
func (s *Stream) LocalAddr() netip.AddrPort { return s.pc.local }

// TLS describes the connection's TLS session, nil if there is none.
func (s *Stream) TLS() *streaminfo.TLS { return s.pc.tls }

// State is what the cluster's filters know of the connection, nil without any.
func (s *Stream) State() *streaminfo.FilterState { return s.pc.state }

// Release implements transport.ClientStream.
func (s *Stream) Release() { s.ReleaseAt(time.Now()) }

// ReleaseAt is Release for who knows when the last byte came: since then the
// connection, if that was its only stream, is idle. It returns the bytes that
// went over the wire for the stream.
func (s *Stream) ReleaseAt(t time.Time) (in, out uint64) {
	if s.ended {
		panic("upstream: stream released twice")
	}
	s.ended = true
	pc, cs := s.pc, s.ClientStream
	p := pc.p
	st := p.c.stats()
	in, out = cs.BytesIn(), cs.BytesOut()
	st.cxRxBytes.Add(in)
	st.cxTxBytes.Add(out)
	if pc.streams.Add(-1) == 0 {
		pc.markIdle(t)
	}
	p.st.rqActive.Add(-1)
	st.rqActive.Add(-1)
	p.b.requests.give()
	s.ClientStream, s.pc = nil, nil
	if pc.multiplex {
		streams.Put(s)
	}
	cs.Release()
	return in, out
}

var _ transport.ClientStream = (*Stream)(nil)

// Version is what h's connections speak for o, as far as that is known before
// one exists; 0 if ALPN decides.
func (c *Cluster) Version(h *Host, o *ConnectOptions) message.Version {
	switch c.protocolFor(o) {
	case http2:
		return message.HTTP2
	case http1:
		return message.HTTP11
	case httpAuto, protocols:
	}
	return 0
}
