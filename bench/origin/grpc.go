package origin

import (
	"bytes"

	"github.com/fairlead-mesh/fairlead/internal/netio"
	"golang.org/x/net/http2/hpack"

	"github.com/fairlead-mesh/fairlead/bench/h2wire"
)

var (
	grpcHead     = []hpack.HeaderField{{Name: ":status", Value: "200"}, {Name: "content-type", Value: "application/grpc"}}
	grpcTrailers = []hpack.HeaderField{{Name: "grpc-status", Value: "0"}}
)

// grpc serves one connection.
func (s *Server) grpc(c netio.Conn) {
	defer s.track(c)()
	w, err := h2wire.New(c, h2wire.Options{Server: true})
	if err != nil {
		return
	}
	_ = w.Serve(&calls{c: w, answer: h2wire.Message(bytes.Repeat([]byte("x"), Size)), open: map[uint32]*call{}})
}

// calls are the streams of a connection. Heads are not looked at.
type calls struct {
	c      *h2wire.Conn
	answer []byte
	open   map[uint32]*call
}

type call struct {
	in       h2wire.Messages
	answered bool
}

// Header implements h2wire.Handler.
func (s *calls) Header(stream uint32, _ []hpack.HeaderField, end bool) {
	s.open[stream] = &call{}
	if end {
		s.end(stream)
	}
}

// Data implements h2wire.Handler.
func (s *calls) Data(stream uint32, p []byte, end bool) {
	k := s.open[stream]
	if k == nil {
		return
	}
	k.in.Feed(p, func(int) {
		var head []hpack.HeaderField
		if !k.answered {
			head, k.answered = grpcHead, true
		}
		s.c.Send(stream, head, s.answer, nil, false)
	})
	if end {
		s.end(stream)
	}
}

func (s *calls) end(stream uint32) {
	k := s.open[stream]
	delete(s.open, stream)
	var head []hpack.HeaderField
	if !k.answered {
		head = grpcHead
	}
	s.c.Send(stream, head, nil, grpcTrailers, true)
}

// Reset implements h2wire.Handler.
func (s *calls) Reset(stream, _ uint32) { delete(s.open, stream) }
