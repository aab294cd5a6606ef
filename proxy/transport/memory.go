package transport

import (
	"cmp"
	"slices"
)

// Memory is what connections keep in buffers at a moment, and the most that they
// may. All sizes are bytes.
type Memory struct {
	// Connections is how many there are, Streams how many exchanges are in flight.
	Connections, Streams int
	// Read was received and is not used yet; Write waits for the transport.
	Read, Write int64
	// Bound is the most that Read and Write may come to on these connections.
	Bound int64
	// Largest are the streams that hold most, the largest first; streams that hold
	// nothing are not among them.
	Largest []StreamMemory
}

// StreamMemory is what was received for one stream and waits for its consumer.
type StreamMemory struct {
	// Peer is the remote address, Stream the HTTP/2 stream, 0 with HTTP/1.
	Peer   string
	Stream uint32
	// Held is at most Bound.
	Held, Bound int64
}

// MemoryReporter is implemented by connections that can tell what they hold. It
// may be called at any time and by any goroutine.
type MemoryReporter interface{ Memory() Memory }

// maxLargest is how many streams a Memory names.
const maxLargest = 10

// Add adds what c holds; a connection that can't tell is counted.
func (m *Memory) Add(c any) {
	r, ok := c.(MemoryReporter)
	if !ok {
		m.Connections++
		return
	}
	o := r.Memory()
	m.Merge(&o)
}

// Merge adds o.
func (m *Memory) Merge(o *Memory) {
	m.Connections += o.Connections
	m.Streams += o.Streams
	m.Read += o.Read
	m.Write += o.Write
	m.Bound += o.Bound
	m.Keep(o.Largest...)
}

// Keep adds streams to Largest, as far as they are.
func (m *Memory) Keep(s ...StreamMemory) {
	for _, one := range s {
		if one.Held <= 0 {
			continue
		}
		at, _ := slices.BinarySearchFunc(m.Largest, one, func(a, b StreamMemory) int { return cmp.Compare(b.Held, a.Held) })
		if at < maxLargest {
			m.Largest = slices.Insert(m.Largest, at, one)
			m.Largest = m.Largest[:min(len(m.Largest), maxLargest)]
		}
	}
}
