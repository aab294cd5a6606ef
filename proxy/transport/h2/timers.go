package h2

import (
	"time"

	"github.com/fairlead-mesh/fairlead/proxy/transport"
)

// drainPing is the payload of the PING that follows the first GOAWAY of a
// drain: its answer proves that the client has seen the GOAWAY.
const drainPing = "fairlead"

// The callbacks of timers run on the timer wheel's goroutine: they queue frames
// and start workers, but do not write.

func (c *conn) onHandshakeTimer() {
	c.shutdown(codeSettingsTimeout, "no SETTINGS in time",
		resetError(transport.ConnectionFailure, "http/2 handshake timeout"), false)
}

func (c *conn) onIdleTimer() {
	c.mu.Lock()
	idle := len(c.streams) == 0 && c.running == 0 && c.held == 0
	left := c.lim.idle
	if idle {
		left = c.lim.idle - time.Since(c.idleSince)
	}
	if c.dead || left > 0 {
		if !c.dead {
			c.idleTimer.Arm(max(left, time.Millisecond), c.onIdleTimer)
		}
		c.mu.Unlock()
		return
	}
	c.mu.Unlock()
	c.shutdown(codeNo, "", resetError(transport.ConnectionTermination, "idle timeout"), true)
}

// onPingTimer sends a PING when nothing was received for an interval and ends
// the connection when nothing was received after that for the timeout.
func (c *conn) onPingTimer() {
	seen := c.received.Load()
	c.mu.Lock()
	switch {
	case c.dead:
	case seen != c.pingMark:
		c.pingSent, c.pingMark = false, seen
		c.pingTimer.Arm(c.lim.pingInterval, c.onPingTimer)
	case !c.pingSent:
		c.pingSent = true
		c.sendPing(0, []byte("alive?\x00\x00"))
		c.pingTimer.Arm(c.lim.pingTimeout, c.onPingTimer)
		c.kick()
	default:
		c.mu.Unlock()
		c.shutdown(codeNo, "keepalive timeout", errKeepalive, false)
		return
	}
	c.mu.Unlock()
}

// onHeadersTimer fires when a header block or frame stayed incomplete.
func (c *conn) onHeadersTimer() {
	c.shutdown(codeEnhanceYourCalm, "headers timeout", resetError(transport.ConnectionTermination, "request headers timeout"), false)
}

// armHeaders bounds the time that a partial frame may take.
func (r *reader) armHeaders(partial bool) {
	c := r.c
	if c.lim.headers <= 0 || partial == r.waiting {
		return
	}
	r.waiting = partial
	if partial {
		r.headersTimer.Arm(c.lim.headers, c.onHeadersTimer)
	} else {
		r.headersTimer.Stop()
	}
}

// drain ends the connection in order. A server first says GOAWAY with the
// highest ID, so that requests under way are served, then with the last one.
func (c *conn) drain() {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.dead || c.draining {
		return
	}
	c.draining = true
	if c.client {
		c.quiesce()
		return
	}
	c.notice, c.goAwaySent = true, true
	c.sendGoAway(maxStreamID, codeNo)
	c.sendPing(0, []byte(drainPing))
	c.drainTimer.Arm(drainNotice, c.drainFinal)
	c.kick()
}

func (c *conn) drainFinal() {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.dead || !c.notice {
		return
	}
	c.notice, c.finalID = false, c.lastID
	c.drainTimer.Stop()
	c.sendGoAway(c.finalID, codeNo)
	c.kick()
	c.quiesce()
}
