package h2

import (
	"github.com/fairlead-mesh/fairlead/internal/netio"
	"github.com/fairlead-mesh/fairlead/proxy/transport"
)

var (
	_ transport.MemoryReporter = (*Server)(nil)
	_ transport.MemoryReporter = (*client)(nil)
)

// Memory implements transport.MemoryReporter.
func (s *Server) Memory() transport.Memory { return s.c.memory() }

// Memory implements transport.MemoryReporter.
func (cc *client) Memory() transport.Memory { return cc.c.memory() }

// memory adds up what the connection holds: payload that waits for consumers, an
// incomplete frame, frames that wait for the transport.
func (c *conn) memory() transport.Memory {
	c.mu.Lock()
	streams := make([]streamRef, 0, len(c.streams))
	for id, s := range c.streams {
		streams = append(streams, streamRef{s, id})
	}
	m := transport.Memory{
		Connections: 1, Streams: len(streams), Write: int64(len(c.out)),
		Read: c.buffered.Load() + c.rd.kept.Load(),
		// Read ahead, collected and being written, received and not yet taken.
		Bound: netio.LargeBuffer + 2*batchMax + c.lim.buffered,
	}
	c.mu.Unlock()
	if m.Read == 0 {
		return m
	}
	peer := c.nc.RemoteAddr().String()
	for _, v := range streams {
		v.s.mu.Lock()
		held := 0
		if v.s.c == c && v.s.id == v.id {
			held = v.s.q.n
		}
		v.s.mu.Unlock()
		m.Keep(transport.StreamMemory{Peer: peer, Stream: v.id, Held: int64(held), Bound: c.lim.streamWindow})
	}
	return m
}
