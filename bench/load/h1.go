package load

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"net/netip"
	"strconv"

	"github.com/fairlead-mesh/fairlead/internal/netio"
)

// Opener returns byte streams that carry HTTP/1.1 to the proxy: connections, or
// CONNECT streams on shared tunnels.
type Opener interface {
	Open(ctx context.Context) (netio.Conn, error)
}

// H1 returns n streams that send request, head and body as they are, and expect
// answers with a body of size bytes.
func H1(ctx context.Context, o Opener, n int, request []byte, size int) ([]Exchanger, error) {
	var all []Exchanger
	for range n {
		c, err := o.Open(ctx)
		if err != nil {
			for _, x := range all {
				x.Close()
			}
			return nil, fmt.Errorf("stream %d: %w", len(all)+1, err)
		}
		all = append(all, NewH1(c, request, size))
	}
	return all, nil
}

// NewH1 uses one stream, see H1.
func NewH1(c netio.Conn, request []byte, size int) Exchanger {
	return &h1{c: c, request: request, size: size, buf: make([]byte, min(max(size+1024, 4<<10), 128<<10))}
}

// h1 is one stream of HTTP/1.1.
type h1 struct {
	c       netio.Conn
	request []byte
	size    int
	buf     []byte
}

// Close implements Exchanger.
func (x *h1) Close() { _ = x.c.Close() }

// Exchange implements Exchanger.
func (x *h1) Exchange() error {
	if _, err := x.c.Write(x.request); err != nil {
		return fmt.Errorf("write: %w", err)
	}
	return x.answer()
}

var (
	errLong   = errors.New("the answer's head is too long")
	headEnd   = []byte("\r\n\r\n")
	status200 = []byte("HTTP/1.1 200 ")
)

// answer reads one answer and checks status and length.
func (x *h1) answer() error {
	n, head := 0, -1
	for head < 0 {
		if n == len(x.buf) {
			return errLong
		}
		m, err := x.c.Read(x.buf[n:])
		if err != nil {
			return fmt.Errorf("read: %w", err)
		}
		n += m
		head = bytes.Index(x.buf[:n], headEnd)
	}
	if !bytes.HasPrefix(x.buf[:n], status200) {
		return fmt.Errorf("answer %q", firstLine(x.buf[:n]))
	}
	if size := contentLength(x.buf[:head+2]); size != x.size {
		return fmt.Errorf("content-length %d, want %d", size, x.size)
	}
	rest := x.size - (n - head - len(headEnd))
	for rest > 0 {
		m, err := x.c.Read(x.buf)
		if err != nil {
			return fmt.Errorf("read: %w", err)
		}
		rest -= m
	}
	if rest < 0 {
		return errors.New("bytes after the answer")
	}
	return nil
}

func firstLine(b []byte) []byte {
	l, _, _ := bytes.Cut(b, []byte("\r\n"))
	return l
}

// contentLength returns the value of the field in head, -1 without.
func contentLength(head []byte) int {
	const name = "\r\ncontent-length: "
	i := bytes.Index(bytes.ToLower(head), []byte(name))
	if i < 0 {
		return -1
	}
	n, err := strconv.Atoi(string(firstLine(head[i+len(name):])))
	if err != nil {
		return -1
	}
	return n
}

// TCP opens plain connections.
type TCP struct{ Address netip.AddrPort }

// Open implements Opener.
func (t TCP) Open(ctx context.Context) (netio.Conn, error) {
	return netio.Dial(ctx, t.Address, netio.DialOptions{})
}
