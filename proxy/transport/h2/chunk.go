package h2

import (
	"sync"

	"github.com/fairlead-mesh/fairlead/internal/netio"
)

// chunk is a piece of received payload in a pooled buffer.
type chunk struct {
	buf  *[]byte
	r, w int
	next *chunk
}

func (ch *chunk) bytes() []byte { return (*ch.buf)[ch.r:ch.w] }

// queue is the payload that waits for its consumer.
type queue struct {
	first, last *chunk
	n           int
}

// add copies p into the queue. Small pieces share a buffer, so that memory
// stays in proportion to bytes.
func (q *queue) add(p []byte) {
	q.n += len(p)
	if ch := q.last; ch != nil {
		k := copy((*ch.buf)[ch.w:], p)
		ch.w += k
		p = p[k:]
	}
	for len(p) > 0 {
		ch := newChunk(len(p))
		ch.w = copy(*ch.buf, p)
		p = p[ch.w:]
		q.push(ch)
	}
}

func (q *queue) push(ch *chunk) {
	if q.last == nil {
		q.first = ch
	} else {
		q.last.next = ch
	}
	q.last = ch
}

// take removes the first chunk; the caller frees it.
func (q *queue) take() *chunk {
	ch := q.first
	if ch == nil {
		return nil
	}
	q.first = ch.next
	if q.first == nil {
		q.last = nil
	}
	ch.next = nil
	q.n -= ch.w - ch.r
	return ch
}

// read copies into p.
func (q *queue) read(p []byte) int {
	n := 0
	for n < len(p) && q.first != nil {
		ch := q.first
		k := copy(p[n:], ch.bytes())
		ch.r += k
		n += k
		q.n -= k
		if ch.r == ch.w {
			q.first = ch.next
			if q.first == nil {
				q.last = nil
			}
			ch.free()
		}
	}
	return n
}

// drop frees everything and returns how many bytes that was.
func (q *queue) drop() int {
	n := q.n
	for ch := q.first; ch != nil; {
		next := ch.next
		ch.free()
		ch = next
	}
	*q = queue{}
	return n
}

var chunks = sync.Pool{New: func() any { return new(chunk) }}

func newChunk(n int) *chunk {
	ch := chunks.Get().(*chunk) //nolint:errcheck,forcetypeassert // the pool holds nothing else
	ch.buf = netio.GetBuffer(min(n, netio.LargeBuffer))
	return ch
}

func (ch *chunk) free() {
	netio.PutBuffer(ch.buf)
	*ch = chunk{}
	chunks.Put(ch)
}
