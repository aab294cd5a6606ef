package h2

import (
	"time"

	"github.com/fairlead-mesh/fairlead/proxy/transport"
)

// limits is a configuration with defaults filled in.
type limits struct {
	headerBytes, headerFields int
	streamWindow, connWindow  int64
	frameSize                 int
	maxStreams                uint32
	// buffered is how many received bytes may wait for consumers before the
	// connection's window is withheld too. Up to that, a slow stream costs its
	// own window only.
	buffered int64

	idle, headers, duration        time.Duration
	pingInterval, pingTimeout      time.Duration
	maxRequests                    int
	allowConnect                   bool
	outFrames, outControl          int
	emptyFrames, priorities, winUp int
}

const (
	defaultHeaderBytes  = 60 << 10
	defaultHeaderFields = 100
	defaultStreamWindow = 256 << 10
	defaultConnWindow   = 1 << 20
	defaultMaxStreams   = 1024
	defaultIdle         = time.Hour
	defaultPingTimeout  = 10 * time.Second

	// handshakeTimeout bounds the time until preface and first SETTINGS.
	handshakeTimeout = 10 * time.Second
	// drainNotice is how long a client may still open streams after it was
	// told to stop, if it does not answer the PING that follows.
	drainNotice = time.Second
	// closeLinger is how long a connection that was ended with GOAWAY is read
	// on, so that the peer gets to see it before a TCP reset.
	closeLinger = time.Second
)

func or[T int | int64 | uint32 | time.Duration](v, def T) T {
	if v == 0 {
		return def
	}
	return v
}

func serverLimits(c *transport.ServerConfig) limits {
	l := limits{
		headerBytes: or(c.MaxHeaderBytes, defaultHeaderBytes), headerFields: or(c.MaxHeaders, defaultHeaderFields),
		maxStreams: or(c.MaxConcurrentStreams, defaultMaxStreams),
		idle:       or(c.IdleTimeout, defaultIdle), headers: c.HeadersTimeout, duration: c.MaxConnectionDuration,
		maxRequests: c.MaxRequestsPerConnection, allowConnect: c.AllowConnect,
		outFrames: c.MaxOutboundFrames, outControl: c.MaxOutboundControlFrames,
		emptyFrames: c.MaxConsecutiveEmptyFrames, priorities: c.MaxPriorityFrames, winUp: c.MaxWindowUpdateFrames,
	}
	l.common(c.InitialStreamWindow, c.InitialConnWindow, c.MaxFrameSize, c.KeepaliveInterval, c.KeepaliveTimeout)
	return l
}

func clientLimits(c *transport.ClientConfig) limits {
	l := limits{
		headerBytes: or(c.MaxHeaderBytes, defaultHeaderBytes), headerFields: or(c.MaxHeaders, defaultHeaderFields),
		maxStreams: c.MaxConcurrentStreams, allowConnect: true,
	}
	l.common(c.InitialStreamWindow, c.InitialConnWindow, c.MaxFrameSize, c.KeepaliveInterval, c.KeepaliveTimeout)
	return l
}

func (l *limits) common(stream, conn, frame uint32, interval, timeout time.Duration) {
	l.streamWindow = min(int64(or(stream, defaultStreamWindow)), maxWindow)
	l.connWindow = min(max(int64(or(conn, defaultConnWindow)), defaultWindow), maxWindow)
	l.buffered = l.connWindow + min(7*l.connWindow, 32<<20)
	l.frameSize = int(min(max(frame, minMaxFrameSize), maxMaxFrameSize))
	l.pingInterval, l.pingTimeout = interval, or(timeout, defaultPingTimeout)
	l.outFrames, l.outControl = or(l.outFrames, 10_000), or(l.outControl, 1_000)
	l.emptyFrames, l.priorities, l.winUp = or(l.emptyFrames, 1), or(l.priorities, 100), or(l.winUp, 10)
}

// peerSettings is what the peer announced; guarded by conn.mu.
type peerSettings struct {
	received      bool
	initialWindow int64
	maxFrame      int
	maxStreams    uint32
	connect       bool
}
