package h1

import (
	"bytes"

	"github.com/fairlead-mesh/fairlead/internal/message"
	"github.com/fairlead-mesh/fairlead/proxy/transport"
)

// writeNames gives the header names of a finished head, or of the end of a
// chunked body, the case that was configured or kept with h. Names change in
// place: no case is longer than another.
func writeNames(b []byte, h *message.Header, c transport.HeaderCase) {
	keeps := h != nil && h.KeepsNames()
	if !keeps && c != transport.ProperCase {
		return
	}
	for {
		i := bytes.IndexByte(b, '\n') // behind the start line, or the line before
		if i < 0 {
			return
		}
		b = b[i+1:]
		n := bytes.IndexByte(b, ':')
		if n < 0 || b[0] == '\r' {
			return
		}
		name := b[:n]
		if keeps {
			if kept, ok := h.KeptName(string(name)); ok {
				copy(name, kept)
				continue
			}
		}
		if c == transport.ProperCase {
			properCase(name)
		}
	}
}

// properCase makes letters at the start and behind anything that is neither
// letter nor digit capitals, as Envoy's proper_case_words.
func properCase(name []byte) {
	start := true
	for i, c := range name {
		letter := 'a' <= c && c <= 'z'
		if start && letter {
			name[i] = c - 'a' + 'A'
		}
		start = !letter && (c < '0' || c > '9') && (c < 'A' || c > 'Z')
	}
}
