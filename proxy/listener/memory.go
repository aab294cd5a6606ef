package listener

import (
	"github.com/fairlead-mesh/fairlead/internal/netio"
	"github.com/fairlead-mesh/fairlead/proxy/transport"
)

// Memory is what the connections of all chains hold in buffers. Terminal filters
// without a say of their own relay: a buffer each way, and none while nothing
// moves.
func (l *Listener) Memory() transport.Memory {
	var m transport.Memory
	c := l.current.Load()
	if c == nil {
		return m
	}
	for _, ch := range chainsOf(&c.cfg) {
		if r, ok := ch.Terminal.(transport.MemoryReporter); ok {
			o := r.Memory()
			m.Merge(&o)
			continue
		}
		n := ch.Active()
		m.Connections += n
		m.Streams += n
		m.Bound += int64(n) * 2 * netio.LargeBuffer
	}
	return m
}
