// Package grpccount counts the messages of a gRPC stream: the filter-state
// object that grpc_stats keeps and Istio's metrics read.
package grpccount

import (
	"strconv"
	"sync/atomic"

	"github.com/fairlead-mesh/fairlead/internal/streaminfo"
)

// Key is the name of the filter-state object.
const Key = "envoy.filters.http.grpc_stats"

// Counts is the object. It may be read while the stream runs.
type Counts struct{ Request, Response atomic.Uint64 }

// Serialize returns "request,response".
func (c *Counts) Serialize() string {
	return strconv.FormatUint(c.Request.Load(), 10) + "," + strconv.FormatUint(c.Response.Load(), 10)
}

// Field knows request_message_count and response_message_count.
func (c *Counts) Field(name string) (string, bool) {
	switch name {
	case "request_message_count":
		return strconv.FormatUint(c.Request.Load(), 10), true
	case "response_message_count":
		return strconv.FormatUint(c.Response.Load(), 10), true
	}
	return "", false
}

// Of returns the counts of a stream, nil if nobody counts.
func Of(fs *streaminfo.FilterState) *Counts {
	c, _ := fs.Get(Key).(*Counts)
	return c
}

// Parser finds the frames in a stream of gRPC messages: a flag byte, four
// bytes of length, the message. The zero Parser is at a frame's start.
type Parser struct {
	head [5]byte
	have int    // bytes of head
	skip uint64 // bytes of the message to come
}

// Count takes the next bytes and returns how many messages began in them.
func (p *Parser) Count(b []byte) (messages uint64) {
	for len(b) > 0 {
		if p.skip > 0 {
			n := min(p.skip, uint64(len(b)))
			p.skip -= n
			b = b[n:]
			continue
		}
		n := copy(p.head[p.have:], b)
		p.have += n
		b = b[n:]
		if p.have == len(p.head) {
			p.have = 0
			p.skip = uint64(p.head[1])<<24 | uint64(p.head[2])<<16 | uint64(p.head[3])<<8 | uint64(p.head[4])
			messages++
		}
	}
	return messages
}
