package transport_test

import (
	"testing"

	"github.com/fairlead-mesh/fairlead/proxy/transport"
)

type holder transport.Memory

func (h *holder) Memory() transport.Memory { return transport.Memory(*h) }

func TestMemoryAddsUpAndNamesTheLargestStreams(t *testing.T) {
	var m transport.Memory
	for i := range 20 {
		m.Add(&holder{Connections: 1, Streams: 2, Read: 3, Write: 4, Bound: 100, Largest: []transport.StreamMemory{{Stream: uint32(i), Held: int64(i % 15)}}})
	}
	m.Add("a connection that can't tell")
	if m.Connections != 21 || m.Streams != 40 || m.Read != 60 || m.Write != 80 || m.Bound != 2000 {
		t.Errorf("%+v", m)
	}
	if len(m.Largest) != 10 || m.Largest[0].Held != 14 || m.Largest[9].Held != 5 {
		t.Errorf("largest: %+v", m.Largest)
	}
}
