package h2

import "time"

// bucket is a token bucket; the zero bucket is full.
type bucket struct {
	used float64
	last time.Time
}

// take takes n tokens from a bucket of the given size that refills at rate
// tokens a second, after giving back refund. It reports false if it is empty.
func (b *bucket) take(now time.Time, n, size, rate, refund float64) bool {
	b.used = max(0, b.used-refund)
	if !b.last.IsZero() {
		b.used = max(0, b.used-now.Sub(b.last).Seconds()*rate)
	}
	b.last = now
	b.used += n
	return b.used <= size
}

const (
	// Streams ended early by RST_STREAM, from the peer or provoked by it: a
	// burst, and a rate (nghttp2's figures). An exchange that ends in order
	// gives one back, so that a client that sometimes cancels is never cut.
	resetBurst, resetRate = 1000, 33
	// Frames that cost work and carry nothing: PING, SETTINGS, unknown types,
	// frames for closed streams. Frames that carry something give one back:
	// bandwidth estimators send a PING for each round trip.
	glitchBurst, glitchRate = 10_000, 333
	// streamsFloor is what Envoy allows beyond its per-stream limits.
	windowUpdateFloor = 5
)

// floodGuard counts what a peer may do for nothing. The reader owns it.
type floodGuard struct {
	resets, glitches    bucket
	seenDone, seenSent  uint64
	useful              uint64 // DATA and HEADERS received since the last glitch
	empty               int
	priorities, updates uint64
}

// reset counts a stream that ended early.
func (r *reader) countReset() *connError {
	done := r.c.completed.Load()
	refund := float64(done - r.flood.seenDone)
	r.flood.seenDone = done
	if !r.flood.resets.take(time.Now(), 1, resetBurst, resetRate, refund) {
		return flood("http2.rapid_reset", "too many streams were reset")
	}
	return nil
}

// countGlitch counts a frame that carries nothing.
func (r *reader) countGlitch() *connError {
	sent := r.c.dataSent.Load()
	refund := float64(sent - r.flood.seenSent + r.flood.useful)
	r.flood.seenSent, r.flood.useful = sent, 0
	if !r.flood.glitches.take(time.Now(), 1, glitchBurst, glitchRate, refund) {
		return flood("http2.inbound_control_frames_flood", "too many frames that carry nothing")
	}
	return nil
}

// countPayload counts HEADERS, CONTINUATION and DATA frames; empty ones that
// end nothing may not follow each other (CVE-2019-9518).
func (r *reader) countPayload(empty bool) *connError {
	if !empty {
		r.flood.empty = 0
		r.flood.useful++
		return nil
	}
	if r.flood.empty++; r.flood.empty > r.c.lim.emptyFrames {
		return flood("http2.inbound_empty_frames_flood", "too many empty frames")
	}
	return nil
}

// smallData is less than who sends a body puts into a frame: what is under way
// when a stream is reset is mostly more.
const smallData = 1 << 10

// countNobodys counts DATA that no stream takes, after countPayload.
func (r *reader) countNobodys(size int) *connError {
	if size > 0 {
		r.flood.useful--
	}
	return r.countGlitch()
}

func (r *reader) countPriority() *connError {
	r.flood.priorities++
	if r.flood.priorities > uint64(r.c.lim.priorities)*(1+r.opened()) {
		return flood("http2.inbound_priority_frames_flood", "too many PRIORITY frames")
	}
	return nil
}

func (r *reader) countWindowUpdate() *connError {
	r.flood.updates++
	if r.flood.updates > windowUpdateFloor+2*(r.opened()+uint64(r.c.lim.winUp)*r.c.dataSent.Load()) {
		return flood("http2.inbound_window_update_frames_flood", "too many WINDOW_UPDATE frames")
	}
	return nil
}

// opened is how many streams the connection has had.
func (r *reader) opened() uint64 {
	r.c.mu.Lock()
	defer r.c.mu.Unlock()
	return r.c.total
}

// checkOutbound is called after frames that were answered: a peer that makes us
// answer and does not read is cut. mu is held.
func (c *conn) checkOutbound() *connError {
	switch {
	case c.control > c.lim.outControl:
		return flood("http2.outbound_control_frames_flood", "the peer does not read the answers it asks for")
	case c.frames > c.lim.outFrames:
		return flood("http2.outbound_frames_flood", "the peer does not read")
	}
	return nil
}
