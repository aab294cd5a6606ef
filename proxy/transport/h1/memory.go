package h1

import (
	"github.com/fairlead-mesh/fairlead/internal/netio"
	"github.com/fairlead-mesh/fairlead/proxy/transport"
)

var (
	_ transport.MemoryReporter = (*Server)(nil)
	_ transport.MemoryReporter = (*Client)(nil)
)

// Memory implements transport.MemoryReporter.
func (s *Server) Memory() transport.Memory {
	return s.rd.memory(s.Active(), s.maxHeaderBytes())
}

// Memory implements transport.MemoryReporter.
func (c *Client) Memory() transport.Memory { return c.rd.memory(c.Active(), c.maxHeaderBytes()) }

// memory is what is read ahead; what is being written is at most joinLimit, or
// belongs to the reader of the other side.
func (r *reader) memory(active, maxHead int) transport.Memory {
	bound := int64(max(netio.LargeBuffer, maxHead))
	m := transport.Memory{Connections: 1, Streams: active, Read: r.held.Load(), Bound: bound + joinLimit}
	if active > 0 {
		m.Keep(transport.StreamMemory{Peer: r.c.RemoteAddr().String(), Held: m.Read, Bound: bound})
	}
	return m
}
