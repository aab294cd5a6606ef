package h2

import (
	"errors"
	"io"
	"sync"
	"sync/atomic"
	"time"

	"github.com/fairlead-mesh/fairlead/internal/netio"
	"github.com/fairlead-mesh/fairlead/internal/stats"
	"github.com/fairlead-mesh/fairlead/internal/timer"
	"github.com/fairlead-mesh/fairlead/proxy/transport"
)

// conn is one HTTP/2 connection, either side.
//
// One goroutine reads at any time (see reader). Any goroutine may write: it
// appends frames to out under mu, and the first to find nobody flushing becomes
// the flusher. mu guards the stream table and all sending state; a stream's
// receiving state has its own lock, which may be taken while mu is held and
// never the other way round.
type conn struct {
	nc     netio.Conn
	client bool
	lim    limits
	pool   *workerPool
	rx, tx *stats.Counter // bytes of the connection; server only
	// onEnd is called once, when the reader and all handlers have ended.
	onEnd func(error)

	handler transport.Handler // server only
	onFree  func()            // client only: a stream's place became free

	rd reader

	mu       sync.Mutex
	room     sync.Cond // wakes writers that wait for the batch to be written
	out      []byte    // frames not yet handed to nc
	outBuf   *[]byte   // the pooled buffer that out began in
	flushing bool
	writer   *stream // whose goroutine is flushing, nil: a worker
	writes   uint64  // writes begun
	stuckAt  uint64
	frames   int // in out and in the batch being written
	control  int // control frames among them
	enc      encoder
	peer     peerSettings
	sendWin  int64
	winWait  []*stream // blocked on the connection's window

	streams map[uint32]*stream
	running int    // server: handlers that have not returned
	held    int    // client: streams not yet released
	nextID  uint32 // client
	lastID  uint32 // highest stream ID of the peer that was looked at
	total   uint64 // streams opened so far
	closed  closedIDs
	ready   sync.Cond // client: the peer's first SETTINGS

	recvWin  int64 // what the peer may still send
	owed     int64 // taken or discarded, not yet granted again
	withheld int64 // received over the buffer limit, owed once consumers catch up

	dataPut    uint64 // DATA frames queued; dataSent follows with each batch
	goAwaySent bool
	notice     bool   // the first GOAWAY of a drain was sent, the second was not
	finalID    uint32 // once the last GOAWAY was sent, streams above are ignored
	draining   bool
	refused    bool // the peer sent GOAWAY: it takes no more streams
	dead       bool // nothing more is sent
	linger     bool // dead: wait for the peer to close after the last batch
	err        error
	idleSince  time.Time
	pingSent   bool
	pingMark   uint64
	readerDone bool
	endCalled  bool

	buffered  atomic.Int64  // received bytes that wait for consumers
	isBehind  atomic.Bool   // withheld > 0
	received  atomic.Uint64 // octets read
	dataSent  atomic.Uint64 // DATA frames sent, see dataPut
	completed atomic.Uint64 // exchanges that ended in order

	flushFn, closeFn                                                        func()
	handshakeTimer, idleTimer, pingTimer, drainTimer, lifeTimer, stuckTimer timer.Timer
}

const (
	// batchMax bounds what is collected before it is written: it keeps the
	// working set in cache and makes slow peers slow their writers down.
	batchMax = netio.LargeBuffer
	// yieldBelow is the batch size up to which the flusher lets other
	// goroutines add to the batch first.
	yieldBelow = 16 << 10
)

var errKeepalive = &transport.ResetError{Reason: transport.ConnectionTermination, Detail: "http/2 keepalive timeout"}

func (c *conn) init(nc netio.Conn, l limits, client bool) {
	c.nc, c.lim, c.client = nc, l, client
	c.room.L, c.ready.L = &c.mu, &c.mu
	c.streams = make(map[uint32]*stream)
	c.enc.tab.max = defaultTableSize
	c.peer = peerSettings{initialWindow: defaultWindow, maxFrame: minMaxFrameSize, maxStreams: 100}
	c.sendWin, c.recvWin = defaultWindow, l.connWindow
	c.flushFn, c.closeFn = c.flushTask, c.closeNow
	c.rd.init(c)
	c.pool = workers
	c.pool.attach()
	c.idleSince = time.Now()
	c.appendGreeting()
}

// appendGreeting queues the preface, SETTINGS and the connection's window.
func (c *conn) appendGreeting() {
	l := &c.lim
	c.reserve(256)
	if c.client {
		c.nextID = 1
		c.out = append(c.out, preface...)
	}
	at := c.beginFrame()
	c.out = appendSetting(c.out, settingInitialWindowSize, uint32(l.streamWindow))
	c.out = appendSetting(c.out, settingMaxHeaderListSize, uint32(l.headerBytes))
	if l.frameSize != minMaxFrameSize {
		c.out = appendSetting(c.out, settingMaxFrameSize, uint32(l.frameSize))
	}
	if c.client {
		c.out = appendSetting(c.out, settingEnablePush, 0)
	} else {
		c.out = appendSetting(c.out, settingMaxConcurrentStreams, l.maxStreams)
		if l.allowConnect {
			c.out = appendSetting(c.out, settingEnableConnect, 1)
		}
	}
	c.endFrame(at, frameSettings, 0, 0)
	if l.connWindow > defaultWindow {
		c.out = appendWindowUpdate(c.out, 0, uint32(l.connWindow-defaultWindow))
	}
}

// start arms the timers and sends the greeting. A connection that was closed before
// is not kept by timers.
func (c *conn) start() {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.dead {
		return
	}
	c.handshakeTimer.Arm(handshakeTimeout, c.onHandshakeTimer)
	if c.lim.idle > 0 {
		c.idleTimer.Arm(c.lim.idle, c.onIdleTimer)
	}
	if c.lim.duration > 0 {
		c.lifeTimer.Arm(c.lim.duration, c.drain)
	}
	if c.lim.pingInterval > 0 {
		c.pingTimer.Arm(c.lim.pingInterval, c.onPingTimer)
	}
	c.kick()
}

// streamRef names a stream together with the ID it had, because the object may
// serve another one by the time it is locked.
type streamRef struct {
	s  *stream
	id uint32
}

// shutdown ends the connection: GOAWAY(code) is the last frame, then the
// transport is closed. Streams end with cause.
func (c *conn) shutdown(code errCode, debug string, cause error, linger bool) {
	c.mu.Lock()
	if c.dead {
		c.mu.Unlock()
		return
	}
	c.reserve(64 + len(debug))
	c.out = appendGoAway(c.out, c.lastID, code, debug)
	c.linger = linger
	victims := c.die(cause)
	cause = c.err
	c.drainTimer.Arm(closeLinger, c.closeSoon)
	c.finish()
	c.mu.Unlock()
	c.endStreams(victims, cause)
}

// abort ends the connection without a further word.
func (c *conn) abort(cause error) {
	c.mu.Lock()
	if c.dead {
		c.mu.Unlock()
		c.closeNow()
		return
	}
	victims := c.die(cause)
	cause = c.err
	c.mu.Unlock()
	c.endStreams(victims, cause)
	c.closeNow()
}

// die marks the connection dead and empties the stream table. mu is held.
func (c *conn) die(cause error) []streamRef {
	c.dead = true
	if _, ok := errors.AsType[*transport.ResetError](cause); !ok {
		re := &transport.ResetError{Reason: transport.ConnectionTermination}
		if cause != nil && !errors.Is(cause, io.EOF) {
			re.Detail = cause.Error()
		}
		cause = re
	}
	c.err = cause
	victims := make([]streamRef, 0, len(c.streams))
	for id, s := range c.streams {
		victims = append(victims, streamRef{s, id})
		s.inMap, s.queued = false, false
		if s.werr == nil {
			s.werr = cause
		}
		s.wake.wake()
		if s.tunnelled {
			c.releaseHold(s)
		}
	}
	clear(c.streams)
	c.winWait = nil
	c.room.Broadcast()
	c.ready.Broadcast()
	for _, t := range []*timer.Timer{&c.handshakeTimer, &c.idleTimer, &c.pingTimer, &c.lifeTimer, &c.drainTimer, &c.stuckTimer, &c.rd.headersTimer} {
		t.Stop()
	}
	return victims
}

func (c *conn) endStreams(victims []streamRef, cause error) {
	for _, v := range victims {
		v.s.abort(c, v.id, cause)
	}
}

// closeSoon is closeNow for timer callbacks and holders of mu.
func (c *conn) closeSoon() { c.pool.run(task{fn: c.closeFn}) }

// closeNow closes the transport, which ends reader and flusher.
func (c *conn) closeNow() {
	c.mu.Lock()
	stuck, cause := c.flushing, c.err
	c.mu.Unlock()
	if stuck {
		c.nc.Interrupt(cause)
	}
	_ = c.nc.Close() // the connection is over either way
}

// readEnded is called by the reader, last.
func (c *conn) readEnded(err error) {
	c.abort(err)
	if s := c.rd.spare; s != nil {
		c.rd.spare = nil
		s.recycle()
	}
	c.mu.Lock()
	c.readerDone = true
	c.drainTimer.Stop()
	c.checkEnd()
}

// checkEnd calls onEnd when nothing is left. mu is held and released.
func (c *conn) checkEnd() {
	if !c.readerDone || c.running > 0 || c.endCalled {
		c.mu.Unlock()
		return
	}
	c.endCalled = true
	err := c.err
	c.mu.Unlock()
	c.pool.detach()
	c.onEnd(err)
}

// remove takes s out of the table. mu is held.
func (c *conn) remove(s *stream, how closedHow) {
	if !s.inMap {
		return
	}
	s.inMap = false
	delete(c.streams, s.id)
	c.unqueue(s)
	c.closed.add(s.id, how)
	if s.tunnelled {
		c.releaseHold(s)
	}
	c.quiesce()
}

// releaseHold frees the place of a client stream. mu is held.
func (c *conn) releaseHold(s *stream) {
	if !s.held {
		return
	}
	s.held = false
	c.held--
	if s.tunnelled && c.onFree != nil {
		c.pool.run(task{fn: c.onFree})
	}
}

// quiesce notes that the connection may have become idle. mu is held.
func (c *conn) quiesce() {
	if len(c.streams) > 0 || c.running > 0 || c.held > 0 || c.dead {
		return
	}
	c.idleSince = time.Now()
	if c.draining && !c.notice {
		c.linger = true
		c.die(nil)
		c.drainTimer.Arm(closeLinger, c.closeSoon)
		c.finish()
	}
}
