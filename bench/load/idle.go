package load

import (
	"bytes"
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"net"
	"sync"
	"time"

	"golang.org/x/net/http2/hpack"

	"github.com/fairlead-mesh/fairlead/bench/h2wire"
)

// Tunnel is a connection over which CONNECT streams can be opened, one at a
// time. It costs this process little, so that there can be thousands.
type Tunnel struct {
	nc   *tls.Conn
	w    *h2wire.Conn
	wait chan error
	serv sync.WaitGroup

	mu     sync.Mutex
	stream uint32
	want   int
	answer []byte
}

// OpenTunnel does a whole handshake, without resumption, and waits for the
// server's SETTINGS: then the server has accepted the client's certificate.
func OpenTunnel(ctx context.Context, address string, config *tls.Config) (*Tunnel, error) {
	nc, err := (&net.Dialer{KeepAlive: -1}).DialContext(ctx, "tcp", address)
	if err != nil {
		return nil, err
	}
	t := &Tunnel{nc: tls.Client(nc, config), wait: make(chan error, 1)}
	if err = t.nc.HandshakeContext(ctx); err == nil {
		if t.w, err = h2wire.New(t.nc, h2wire.Options{Decode: true, ReadBuffer: 512}); err == nil {
			err = t.w.ReadFrame(t)
		}
	}
	if err != nil {
		_ = nc.Close()
		return nil, err
	}
	return t, nil
}

// Close ends the tunnel and its streams.
func (t *Tunnel) Close() {
	// close_notify would wait for a peer that doesn't read.
	_ = t.nc.NetConn().Close()
	t.serv.Wait()
}

// Connect opens a stream to authority and returns its number. The first call
// starts a goroutine that reads.
func (t *Tunnel) Connect(authority string) (uint32, error) {
	t.mu.Lock()
	first := t.stream == 0
	t.mu.Unlock()
	id, err := t.w.Open([]hpack.HeaderField{{Name: ":method", Value: "CONNECT"}, {Name: ":authority", Value: authority}}, false, func(id uint32) { t.expect(id, -1) })
	if err != nil {
		return 0, err
	}
	if first {
		t.serv.Go(func() { t.tell(t.w.Serve(t)) })
	}
	if err := t.w.Flush(); err != nil {
		return 0, err
	}
	return id, t.await()
}

// Request sends an HTTP/1.1 request on a stream and waits for an answer with a
// body of size bytes.
func (t *Tunnel) Request(stream uint32, request []byte, size int) error {
	t.expect(stream, size)
	t.w.Send(stream, nil, request, nil, false)
	if err := t.w.Flush(); err != nil {
		return err
	}
	return t.await()
}

// patience is how long one answer may take.
const patience = 10 * time.Second

func (t *Tunnel) await() error {
	late := time.NewTimer(patience)
	defer late.Stop()
	select {
	case err := <-t.wait:
		return err
	case <-late.C:
		return fmt.Errorf("no answer in %v", patience)
	}
}

// expect makes what arrives on a stream end the wait: a head if size is -1.
func (t *Tunnel) expect(stream uint32, size int) {
	t.mu.Lock()
	t.stream, t.want, t.answer = stream, size, t.answer[:0]
	t.mu.Unlock()
}

func (t *Tunnel) tell(err error) {
	select {
	case t.wait <- err:
	default:
	}
}

// Header implements h2wire.Handler.
func (t *Tunnel) Header(stream uint32, fields []hpack.HeaderField, end bool) {
	t.mu.Lock()
	mine := stream == t.stream && t.want < 0
	t.mu.Unlock()
	if !mine {
		return
	}
	for _, f := range fields {
		if f.Name == ":status" && f.Value != "200" || end {
			t.tell(fmt.Errorf("CONNECT: %s %s", f.Name, f.Value))
			return
		}
	}
	t.tell(nil)
}

// Data implements h2wire.Handler.
func (t *Tunnel) Data(stream uint32, p []byte, end bool) {
	t.mu.Lock()
	defer t.mu.Unlock()
	if stream != t.stream {
		return
	}
	t.answer = append(t.answer, p...)
	done, err := complete(t.answer, t.want)
	if end && !done {
		done, err = true, io.ErrUnexpectedEOF
	}
	if done {
		t.tell(err)
	}
}

// Reset implements h2wire.Handler.
func (t *Tunnel) Reset(stream, code uint32) {
	t.mu.Lock()
	defer t.mu.Unlock()
	if stream == t.stream {
		t.tell(fmt.Errorf("the stream was reset with code %d", code))
	}
}

// complete reports whether answer is a whole HTTP/1.1 answer with a body of size
// bytes, or can't become one.
func complete(answer []byte, size int) (bool, error) {
	i := bytes.Index(answer, headEnd)
	if i < 0 {
		return false, nil
	}
	if !bytes.HasPrefix(answer, status200) {
		return true, fmt.Errorf("answer %q", firstLine(answer))
	}
	rest := len(answer) - i - len(headEnd)
	if rest > size {
		return true, errors.New("bytes after the answer")
	}
	return rest == size, nil
}
