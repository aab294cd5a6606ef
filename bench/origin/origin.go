// Package origin holds the servers behind the proxies: they answer every
// request with the same bytes and cost as little as they can.
package origin

import (
	"bytes"
	"context"
	"crypto/tls"
	"fmt"
	"net/netip"
	"strconv"
	"sync"

	"github.com/fairlead-mesh/fairlead/internal/netio"
	"github.com/fairlead-mesh/fairlead/proxy/hbone"
)

// Size is the length of a body unless the path asks for another.
const Size = 1 << 10

// Sizes are the lengths that a path /bytes/N can ask for.
var Sizes = []int{64 << 10, 1 << 20}

// Server answers HTTP/1.1 on connections, or inside HBONE tunnels, or gRPC.
type Server struct {
	l *netio.Listener
	// answer is for every path but those of others.
	answer []byte
	others map[string][]byte
	wg     sync.WaitGroup
	mu     sync.Mutex
	conns  map[netio.Conn]struct{}
}

// Answer renders a 200 with a body of size bytes.
func Answer(size int) []byte {
	head := fmt.Appendf(nil, "HTTP/1.1 200 OK\r\ncontent-type: text/plain\r\ncontent-length: %d\r\n\r\n", size)
	return append(head, bytes.Repeat([]byte("x"), size)...)
}

// New serves plaintext HTTP/1.1 on a port of its own.
func New() (*Server, error) { return start((*Server).serve) }

// NewHBONE serves CONNECT over mutual TLS and HTTP/1.1 inside.
func NewHBONE(config *tls.Config) (*Server, error) {
	return start(func(s *Server, c netio.Conn) { s.tunnel(c, config) })
}

// NewGRPC serves gRPC over plaintext HTTP/2: each message is answered with one
// of Size bytes, whatever the method.
func NewGRPC() (*Server, error) { return start((*Server).grpc) }

func start(serve func(*Server, netio.Conn)) (*Server, error) {
	l, err := netio.Listen(netip.MustParseAddrPort("127.0.0.1:0"), netio.ListenOptions{})
	if err != nil {
		return nil, err
	}
	s := &Server{l: l, answer: Answer(Size), others: map[string][]byte{}, conns: map[netio.Conn]struct{}{}}
	for _, n := range Sizes {
		s.others[strconv.Itoa(n)] = Answer(n)
	}
	s.wg.Go(func() {
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			s.wg.Go(func() { serve(s, c) })
		}
	})
	return s, nil
}

// Port is where the server listens.
func (s *Server) Port() int { return int(s.l.Addr().Port()) }

// Close stops the server and its connections.
func (s *Server) Close() {
	_ = s.l.Close()
	s.mu.Lock()
	for c := range s.conns {
		c.Reset()
	}
	s.mu.Unlock()
	s.wg.Wait()
}

func (s *Server) track(c netio.Conn) (untrack func()) {
	s.mu.Lock()
	s.conns[c] = struct{}{}
	s.mu.Unlock()
	return func() {
		s.mu.Lock()
		delete(s.conns, c)
		s.mu.Unlock()
		_ = c.Close()
	}
}

func (s *Server) tunnel(c netio.Conn, config *tls.Config) {
	defer s.track(c)()
	tc, err := netio.ServerTLS(context.Background(), c, config)
	if err != nil {
		return
	}
	done := make(chan struct{})
	hbone.NewServer(tc, &hbone.ServerConfig{}, func(r *hbone.Request) {
		if st, err := r.Accept(); err == nil {
			s.wg.Go(func() { s.serve(st) })
		}
	}).Serve(func() { close(done) })
	<-done
}

// serve answers each request: a head, and a body if it has a length.
func (s *Server) serve(c netio.Conn) {
	defer s.track(c)()
	var buf [8 << 10]byte
	n, skip := 0, 0
	answer := s.answer
	for {
		m, err := c.Read(buf[n:])
		if err != nil {
			return
		}
		n += m
		for {
			if skip > 0 {
				k := min(skip, n)
				n = copy(buf[:], buf[k:n])
				if skip -= k; skip > 0 {
					break
				}
				if _, err := c.Write(answer); err != nil {
					return
				}
			}
			i := bytes.Index(buf[:n], []byte("\r\n\r\n"))
			if i < 0 {
				break
			}
			skip, answer = length(buf[:i+2]), s.answerTo(buf[:i])
			n = copy(buf[:], buf[i+4:n])
			if skip > 0 {
				continue
			}
			if _, err := c.Write(answer); err != nil {
				return
			}
		}
		if n == len(buf) {
			return // a head of more than 8 KiB
		}
	}
}

// answerTo picks the answer by the path.
func (s *Server) answerTo(head []byte) []byte {
	const path = " /bytes/"
	line, _, _ := bytes.Cut(head, []byte("\r\n"))
	_, after, ok := bytes.Cut(line, []byte(path))
	if !ok {
		return s.answer
	}
	size, _, _ := bytes.Cut(after, []byte(" "))
	if a := s.others[string(size)]; a != nil {
		return a
	}
	return s.answer
}

// length is the request's content-length, 0 without.
func length(head []byte) int {
	const name = "\r\ncontent-length: "
	i := bytes.Index(bytes.ToLower(head), []byte(name))
	if i < 0 {
		return 0
	}
	n := 0
	for _, c := range head[i+len(name):] {
		if c < '0' || c > '9' {
			break
		}
		n = n*10 + int(c-'0')
	}
	return n
}
