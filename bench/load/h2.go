package load

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"net"
	"sync"

	"golang.org/x/net/http2/hpack"

	"github.com/fairlead-mesh/fairlead/bench/h2wire"
)

// H2Request is what each stream of a connection sends.
type H2Request struct {
	Header []hpack.HeaderField
	// Body is sent whole; for gRPC it is a framed message.
	Body []byte
	// Size is how long the answer's body must be; for gRPC that of the one
	// message.
	Size int
	// GRPC expects a message and a grpc-status of 0.
	GRPC bool
	// Bidi keeps one call open for each stream; a request is a message and the
	// message that answers it. GRPC must be set.
	Bidi bool
}

// H2 opens one connection and returns n streams on it. config nil is plaintext.
func H2(ctx context.Context, address string, config *tls.Config, n int, r *H2Request) ([]Exchanger, error) {
	nc, err := (&net.Dialer{}).DialContext(ctx, "tcp", address)
	if err != nil {
		return nil, err
	}
	var rw io.ReadWriteCloser = nc
	if config != nil {
		tc := tls.Client(nc, config)
		if err := tc.HandshakeContext(ctx); err != nil {
			_ = nc.Close()
			return nil, err
		}
		rw = tc
	}
	w, err := h2wire.New(rw, h2wire.Options{Decode: true})
	if err != nil {
		_ = rw.Close()
		return nil, err
	}
	c := &h2conn{w: w, r: r, open: map[uint32]*h2{}}
	c.wg.Go(func() { c.fail(w.Serve(c)) })
	shut := sync.OnceFunc(func() {
		_ = rw.Close()
		c.wg.Wait()
	})
	var all []Exchanger
	for range n {
		all = append(all, &h2{c: c, done: make(chan error, 1), shut: shut})
	}
	return all, nil
}

// h2conn hands what arrives to the streams.
type h2conn struct {
	w    *h2wire.Conn
	r    *H2Request
	wg   sync.WaitGroup
	mu   sync.Mutex
	open map[uint32]*h2
	err  error
}

// h2 is one stream at a time of a connection. Between Open and done its fields
// belong to the connection's reader.
type h2 struct {
	c    *h2conn
	id   uint32
	done chan error
	shut func()

	headed, status bool
	in             h2wire.Messages
	size           int
}

// Close implements Exchanger: it closes the connection.
func (x *h2) Close() { x.shut() }

// Exchange implements Exchanger.
func (x *h2) Exchange() error {
	r := x.c.r
	id := x.id
	if id == 0 {
		x.headed, x.status, x.size, x.in = false, false, 0, h2wire.Messages{}
		var err error
		if id, err = x.c.w.Open(r.Header, len(r.Body) == 0, x.register); err != nil {
			return err
		}
	}
	if len(r.Body) > 0 {
		x.c.w.Send(id, nil, r.Body, nil, !r.Bidi)
	}
	if err := x.c.w.Flush(); err != nil {
		return err
	}
	return <-x.done
}

func (x *h2) register(id uint32) {
	x.c.mu.Lock()
	if x.c.err != nil {
		x.done <- x.c.err
	} else {
		x.c.open[id] = x
	}
	x.c.mu.Unlock()
	if x.c.r.Bidi {
		x.id = id
	}
}

// fail ends all streams.
func (c *h2conn) fail(err error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.err = err
	for id, x := range c.open {
		delete(c.open, id)
		x.end(err)
	}
}

// end tells Exchange; a stream that has told already stays silent.
func (x *h2) end(err error) {
	select {
	case x.done <- err:
	default:
	}
}

func (c *h2conn) stream(id uint32, last bool) *h2 {
	c.mu.Lock()
	defer c.mu.Unlock()
	x := c.open[id]
	if last {
		delete(c.open, id)
	}
	return x
}

// Header implements h2wire.Handler.
func (c *h2conn) Header(id uint32, fields []hpack.HeaderField, end bool) {
	x := c.stream(id, end)
	if x == nil {
		return
	}
	for _, f := range fields {
		switch {
		case f.Name == ":status" && f.Value != "200":
			c.stream(id, true)
			x.end(fmt.Errorf("status %s", f.Value))
			return
		case f.Name == "grpc-status" && f.Value != "0":
			c.stream(id, true)
			x.end(fmt.Errorf("grpc-status %s", f.Value))
			return
		case f.Name == "grpc-status":
			x.status = true
		}
	}
	x.headed = true
	if end {
		x.end(x.check())
	}
}

// Data implements h2wire.Handler.
func (c *h2conn) Data(id uint32, p []byte, end bool) {
	x := c.stream(id, end)
	if x == nil {
		return
	}
	if !c.r.GRPC {
		x.size += len(p)
	} else {
		x.in.Feed(p, func(n int) {
			if x.size += n; c.r.Bidi {
				x.size = 0
				err := error(nil)
				if n != c.r.Size {
					err = fmt.Errorf("a message of %d bytes, want %d", n, c.r.Size)
				}
				x.end(err)
			}
		})
	}
	if end {
		x.end(x.check())
	}
}

// check is called at the end of an answer.
func (x *h2) check() error {
	switch {
	case !x.headed:
		return errors.New("an answer without a head")
	case x.c.r.Bidi:
		return errors.New("the call has ended")
	case x.size != x.c.r.Size:
		return fmt.Errorf("a body of %d bytes, want %d", x.size, x.c.r.Size)
	case x.c.r.GRPC && !x.status:
		return errors.New("an answer without grpc-status")
	}
	return nil
}

// Reset implements h2wire.Handler.
func (c *h2conn) Reset(id, code uint32) {
	if x := c.stream(id, true); x != nil {
		x.end(fmt.Errorf("the stream was reset with code %d", code))
	}
}
