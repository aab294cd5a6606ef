package tcpproxy

import (
	"io"
	"net/netip"
	"sync"
	"sync/atomic"
	"time"

	"github.com/fairlead-mesh/fairlead/filters"
	"github.com/fairlead-mesh/fairlead/internal/netio"
	"github.com/fairlead-mesh/fairlead/internal/timer"
)

// CanOpen implements filters.Opener: a tunnel's stream can be given away.
func (f *Filter) CanOpen() bool { return f.cfg.Tunneling != nil }

// Open implements filters.Opener. What holds for a connection that is copied
// holds for the stream: idle timeout, longest duration, log lines, counters.
func (f *Filter) Open(c *filters.Connection, done func()) (upstream netio.Conn) {
	f.cxTotal.Inc()
	f.cxActive.Add(1)
	s := &session{f: f, c: c, info: c.Info, done: done}
	defer s.cutByPanic(&upstream)
	near := c.Info.Conn
	far := s.upstream()
	if far == nil {
		s.refuse()
		return ended(near.Remote, near.Local)
	}
	s.connected()
	if _, ok := far.(byteStream); !ok {
		a, b := netio.Pipe(near.Remote, near.Local)
		c.Conn = b
		s.join(far)
		return a
	}
	return s.open(far)
}

// ended is a stream that the other side has closed.
func ended(local, remote netip.AddrPort) netio.Conn {
	a, b := netio.Pipe(local, remote)
	_ = b.Close()
	return a
}

// byteStream is what a stream must be able to do to stand for an internal
// connection.
type byteStream interface {
	netio.Conn
	netio.Unparker
	netio.Prober
	netio.PartsWriter
	netio.ReadInterrupter
}

// opened is the upstream stream of a session in the hands of the one who
// dialled.
type opened struct {
	byteStream
	s             *session
	stop          func()
	local, remote netip.AddrPort

	idle   timer.Timer
	idleFn func()
	seen   uint64
	quiet  int

	// cut is set when this side ended the stream by a timeout: the holder sees
	// what it would see if a proxy in between had closed the connection.
	cut  atomic.Bool
	mu   sync.Mutex
	err  error // guarded by mu: why it ended
	over bool  // guarded by mu
}

// idleParts is how often activity is sampled within an idle timeout.
const idleParts = 4

func (s *session) open(far netio.Conn) netio.Conn {
	ci := s.info.Conn
	tc, _ := far.(byteStream)
	o := &opened{byteStream: tc, s: s, local: ci.Remote, remote: ci.Local}
	o.stop = s.flushLogs()
	if d := s.f.cfg.MaxConnectionDuration; d > 0 {
		s.duration.Arm(d, func() {
			s.expired.Store(true)
			o.interrupt(errMaxDuration)
		})
	}
	if d := s.f.cfg.IdleTimeout; d > 0 {
		o.idleFn = o.checkIdle
		o.idle.Arm(max(d/idleParts, 1), o.idleFn)
	}
	return o
}

func (o *opened) checkIdle() {
	n := o.s.bytesUp.Load() + o.s.bytesDown.Load()
	if n != o.seen {
		o.seen, o.quiet = n, 0
	} else {
		o.quiet++
	}
	o.mu.Lock()
	over := o.over
	if !over && o.quiet < idleParts {
		o.idle.Arm(max(o.s.f.cfg.IdleTimeout/idleParts, 1), o.idleFn)
		over = true
	}
	o.mu.Unlock()
	if !over {
		o.interrupt(netio.ErrJoinIdle)
	}
}

// interrupt ends the stream from this side.
func (o *opened) interrupt(cause error) {
	o.fail(cause)
	o.cut.Store(true)
	o.Interrupt(cause)
}

// Read implements netio.Conn.
func (o *opened) Read(p []byte) (int, error) {
	n, err := o.byteStream.Read(p)
	return o.got(n, err)
}

// TryRead implements netio.Conn.
func (o *opened) TryRead(p []byte) (int, error) {
	n, err := o.byteStream.TryRead(p)
	return o.got(n, err)
}

func (o *opened) got(n int, err error) (int, error) {
	if n > 0 {
		o.s.bytesDown.Add(uint64(n))
	}
	switch {
	case err == nil, err == netio.ErrWouldBlock, err == io.EOF: //nolint:errorlint // compared as they are, each read passes here
		return n, err
	case o.cut.Load():
		return n, io.EOF
	}
	o.fail(err)
	return n, netio.ErrReset
}

// fail notes why the stream broke. What its holder sees is a connection that
// was reset: the reasons of the hop are the hop's.
func (o *opened) fail(err error) {
	o.mu.Lock()
	if o.err == nil {
		o.err = err
	}
	o.mu.Unlock()
}

// Write implements netio.Conn.
func (o *opened) Write(p []byte) (int, error) {
	n, err := o.byteStream.Write(p)
	return n, o.put(n, err)
}

// WriteParts implements netio.PartsWriter.
func (o *opened) WriteParts(a, b, c []byte) error {
	return o.put(len(a)+len(b)+len(c), o.byteStream.WriteParts(a, b, c))
}

func (o *opened) put(n int, err error) error {
	if err == nil {
		o.s.bytesUp.Add(uint64(n))
		return nil
	}
	if !o.cut.Load() {
		o.fail(err)
	}
	return netio.ErrReset
}

// LocalAddr implements netio.Conn: the addresses are those of the hop.
func (o *opened) LocalAddr() netip.AddrPort { return o.local }

// RemoteAddr implements netio.Conn.
func (o *opened) RemoteAddr() netip.AddrPort { return o.remote }

// Close implements netio.Conn.
func (o *opened) Close() error {
	err := o.byteStream.Close()
	o.end(nil)
	return err
}

// Reset implements netio.Conn.
func (o *opened) Reset() {
	o.byteStream.Reset()
	o.end(netio.ErrReset)
}

// end closes the books, once.
func (o *opened) end(err error) {
	o.mu.Lock()
	if o.over {
		o.mu.Unlock()
		return
	}
	o.over = true
	if o.err != nil {
		err = o.err
	}
	o.mu.Unlock()
	o.idle.Stop()
	o.stop()
	o.s.joined(o.s.bytesUp.Load(), o.s.bytesDown.Load(), err)
}

// watch calls the observers of a connection.
type watch struct {
	mu    sync.Mutex
	done  bool
	timer timer.Timer
}

// progressInterval is how often observers hear of a connection that lasts.
const progressInterval = 5 * time.Second

// observe reports to the observers now and every progressInterval.
func (s *session) observe() {
	if !s.c.Observed() {
		return
	}
	w := &s.watch
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.done {
		return
	}
	s.info.BytesReceived, s.info.BytesSent = s.bytesUp.Load(), s.bytesDown.Load()
	s.report()
	w.timer.Arm(progressInterval, s.observe)
}

func (s *session) report() {
	defer s.contain()
	s.c.Progress()
}

// end waits for a report that is under way; none follows.
func (w *watch) end() {
	w.mu.Lock()
	w.done = true
	w.mu.Unlock()
	w.timer.Stop()
}

var (
	_ filters.Opener = (*Filter)(nil)
	_ byteStream     = (*opened)(nil)
)
