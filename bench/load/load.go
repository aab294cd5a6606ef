// Package load sends requests to a proxy and times them: closed loop (each
// stream sends when its answer is there) or paced (each stream has a timetable,
// and latency counts from when a request was due, so that a slow proxy can't
// hide what it delayed).
package load

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"net/netip"
	"strconv"
	"sync"
	"sync/atomic"
	"time"

	"github.com/HdrHistogram/hdrhistogram-go"

	"github.com/fairlead-mesh/fairlead/internal/netio"
)

// Opener returns byte streams that carry HTTP/1.1 to the proxy: connections, or
// CONNECT streams on shared tunnels.
type Opener interface {
	Open(ctx context.Context) (netio.Conn, error)
}

// Spec says what to send.
type Spec struct {
	// Streams is how many byte streams are used at once.
	Streams int
	// Request is the request as it is sent, head and body.
	Request []byte
	// BodySize is how long each answer's body must be.
	BodySize int
	// Rate is the number of requests a second over all streams; 0: closed loop.
	Rate float64
}

// Result is what one run saw.
type Result struct {
	Requests, Errors uint64
	// FirstError tells one of the errors, "" without.
	FirstError string
	Elapsed    time.Duration
	// Latency is in nanoseconds.
	Latency *hdrhistogram.Histogram
}

// Generator holds open streams, so that a run measures requests and not
// handshakes.
type Generator struct {
	spec  Spec
	conns []netio.Conn
}

// Latencies from 1 µs to 60 s, with three digits.
func newHistogram() *hdrhistogram.Histogram {
	return hdrhistogram.New(int64(time.Microsecond), int64(time.Minute), 3)
}

// New opens the streams.
func New(ctx context.Context, o Opener, s Spec) (*Generator, error) {
	g := &Generator{spec: s}
	for range s.Streams {
		c, err := o.Open(ctx)
		if err != nil {
			g.Close()
			return nil, fmt.Errorf("stream %d: %w", len(g.conns)+1, err)
		}
		g.conns = append(g.conns, c)
	}
	return g, nil
}

// Close closes the streams.
func (g *Generator) Close() {
	for _, c := range g.conns {
		_ = c.Close()
	}
}

// Run sends for d and waits for the last answers. A stream that fails stops; its
// generator is of no further use.
func (g *Generator) Run(d time.Duration) Result {
	var stop atomic.Bool
	t := time.AfterFunc(d, func() { stop.Store(true) })
	defer t.Stop()
	workers := make([]worker, len(g.conns))
	start := time.Now()
	var wg sync.WaitGroup
	for i, c := range g.conns {
		w := &workers[i]
		w.c, w.spec, w.stop, w.latency = c, &g.spec, &stop, newHistogram()
		if r := g.spec.Rate; r > 0 {
			w.gap = time.Duration(float64(g.spec.Streams) / r * float64(time.Second))
			w.due = start.Add(w.gap * time.Duration(i) / time.Duration(g.spec.Streams))
		}
		wg.Go(w.run)
	}
	wg.Wait()
	res := Result{Elapsed: time.Since(start), Latency: newHistogram()}
	for i := range workers {
		w := &workers[i]
		res.Requests += w.requests
		res.Latency.Merge(w.latency)
		if w.err != nil {
			res.Errors++
			res.FirstError = w.err.Error()
		}
	}
	return res
}

// worker drives one stream.
type worker struct {
	c        netio.Conn
	spec     *Spec
	stop     *atomic.Bool
	gap      time.Duration
	due      time.Time
	requests uint64
	latency  *hdrhistogram.Histogram
	err      error
	buf      [16 << 10]byte
}

func (w *worker) run() {
	for !w.stop.Load() {
		begin := time.Now()
		if w.gap > 0 {
			time.Sleep(w.due.Sub(begin))
			begin = w.due
			w.due = w.due.Add(w.gap)
		}
		if _, err := w.c.Write(w.spec.Request); err != nil {
			w.err = fmt.Errorf("write: %w", err)
			return
		}
		if w.err = w.answer(); w.err != nil {
			return
		}
		w.requests++
		_ = w.latency.RecordValue(min(int64(time.Since(begin)), int64(time.Minute)))
	}
}

var (
	errShort  = errors.New("the answer's head is longer than 16 KiB")
	headEnd   = []byte("\r\n\r\n")
	status200 = []byte("HTTP/1.1 200 ")
)

// answer reads one answer and checks status and length.
func (w *worker) answer() error {
	n, head := 0, -1
	for head < 0 {
		if n == len(w.buf) {
			return errShort
		}
		m, err := w.c.Read(w.buf[n:])
		if err != nil {
			return fmt.Errorf("read: %w", err)
		}
		n += m
		head = bytes.Index(w.buf[:n], headEnd)
	}
	if !bytes.HasPrefix(w.buf[:n], status200) {
		return fmt.Errorf("answer %q", firstLine(w.buf[:n]))
	}
	if size := contentLength(w.buf[:head+2]); size != w.spec.BodySize {
		return fmt.Errorf("content-length %d, want %d", size, w.spec.BodySize)
	}
	for rest := w.spec.BodySize - (n - head - len(headEnd)); rest > 0; {
		m, err := w.c.Read(w.buf[:])
		if err != nil {
			return fmt.Errorf("read: %w", err)
		}
		rest -= m
		if rest < 0 {
			return errors.New("bytes after the answer")
		}
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
