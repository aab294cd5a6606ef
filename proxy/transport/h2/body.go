package h2

import (
	"errors"
	"io"

	"github.com/fairlead-mesh/fairlead/internal/message"
)

var errBodyClosed = errors.New("h2: the body was closed")

// body is a stream seen as the payload that it receives.
type body stream

var _ message.Body = (*body)(nil)

func (b *body) Next() (p []byte, last bool, err error) {
	s := (*stream)(b)
	s.mu.Lock()
	if s.cur != nil {
		s.cur.free()
		s.cur = nil
	}
	switch err := s.waitInput(); {
	case err == io.EOF: //nolint:errorlint // returned as it is
		s.mu.Unlock()
		return nil, true, nil
	case err != nil:
		s.mu.Unlock()
		return nil, false, err
	}
	ch := s.q.take()
	s.cur = ch
	p = ch.bytes()
	last = s.eof && s.q.first == nil
	inc, c, id := s.grant(int64(len(p))), s.c, s.id
	s.mu.Unlock()
	c.granted(s, id, len(p), inc)
	return p, last, nil
}

func (b *body) Ready() (n int, last bool) {
	s := (*stream)(b)
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.rerr != nil {
		return 0, false
	}
	if ch := s.q.first; ch != nil {
		return ch.w - ch.r, s.eof && ch.next == nil
	}
	return 0, s.eof
}

func (b *body) Trailers() *message.Header {
	s := (*stream)(b)
	s.mu.Lock()
	defer s.mu.Unlock()
	if !s.eof || !s.gotTrail || s.x == nil {
		return nil
	}
	return &s.x.trailers
}

func (b *body) Close() {
	s := (*stream)(b)
	s.mu.Lock()
	n := s.q.drop()
	if s.cur != nil {
		s.cur.free()
		s.cur = nil
	}
	if s.rerr == nil {
		s.rerr = errBodyClosed // what still arrives is discarded
	}
	c := s.c
	s.mu.Unlock()
	c.consumed(n)
}

// Interrupt implements filters.Interrupter: a Next that waits, on whatever
// goroutine, and later ones fail with cause. Sending goes on.
func (b *body) Interrupt(cause error) {
	s := (*stream)(b)
	s.mu.Lock()
	n := 0
	if !s.eof && s.rerr == nil {
		s.rerr = cause
		n = s.q.drop()
	}
	s.signal()
	c := s.c
	s.mu.Unlock()
	c.consumed(n)
}
