package netio

// The interfaces in this file are implemented by some connections only. A
// caller asks with a type assertion, and the connection wrappers of this
// package (TLS, WithPrefix) pass them through if what they wrap has them.

// Looper runs a reader inside the runtime's poller callback. It saves the
// system call by which Read and Park must find out that nothing is there yet:
// readiness is told once, and a short read proves that the socket is empty.
type Looper interface {
	// Loop calls f at once and again whenever the connection may have become
	// readable, until f returns false. f must TryRead until ErrWouldBlock or
	// an error before it returns true. Inside f, Write, Close, Reset and
	// Interrupt are allowed; Read, Peek, Park and WriteRead are not. Loop
	// returns nil when f ended it, and the cause when the connection was
	// closed or interrupted while it waited. Closing a connection inside its
	// loop releases the socket only when the loop ends.
	Loop(f func() (wait bool)) error
}

// Dozer is a Looper that needs no goroutine while nothing comes.
type Dozer interface {
	// LoopOrDoze is Loop, except that it also ends when the connection has been
	// quiet for a moment: with dozing true, and then resume is called once, on a
	// goroutine of its own, when there may be something for f, or when the
	// connection is closed or interrupted. The caller must give up its goroutine
	// and must not read before that; resume calls LoopOrDoze again.
	LoopOrDoze(f func() (wait bool), resume func()) (dozing bool, err error)
}

// LoopWriter is a Looper that holds its descriptor inside the loop.
type LoopWriter interface {
	// LoopWrite is Write. Only f, called by Loop, may call it, on its goroutine.
	LoopWrite(p []byte) (int, error)
}

// Rechecker is a Looper for which a short read proves that the socket is empty.
// It does not prove that no end follows: a FIN that arrived together with the
// last bytes shows only in another read, or once the loop has been quiet for a
// second or two. Who has to pass ends on at once asks for that read.
type Rechecker interface {
	// Recheck makes the next TryRead inside Loop ask the kernel. It reports
	// whether that may tell more than is known. Only the reader may call it,
	// inside Loop.
	Recheck() bool
}

// Prober tells without blocking, and without reading, what a connection has
// for its reader.
type Prober interface {
	// Probe reports whether a read would return now (bytes, an end or an
	// error), and whether the peer has ended its direction or reset the
	// connection, with or without unread bytes before that, or this side has
	// reset or closed it.
	Probe() (readable, ended bool)
}

// Quieter tells cheaply whether a connection has nothing for its reader.
type Quieter interface {
	// Quiet reports whether a read would block: no bytes, no end, no error. It
	// reads nothing, and does not block.
	Quiet() bool
}

// Exchanger joins a request and the wait for its answer.
type Exchanger interface {
	// WriteRead writes all of out and blocks until it has read at least one
	// byte into in, in one visit to the poller. wrote reports that all of out
	// was handed to the transport. Nothing may be unread before the call.
	WriteRead(out, in []byte) (n int, wrote bool, err error)
}

// PartsWriter writes several pieces in one system call, record run or frame.
type PartsWriter interface {
	// WriteParts is Write of a, b and c joined; each may be empty.
	WriteParts(a, b, c []byte) error
}

// Unparker is implemented by connections whose Park calls back.
type Unparker interface {
	// Unpark cancels a Park. It reports whether resume was prevented; false
	// means that it has been or is being called, or that nothing was parked.
	Unpark() bool
}

// Holder is implemented by connections that may hold bytes for their reader
// above the transport, where Prober does not look.
type Holder interface {
	// Holds reports whether there may be such bytes. Only the reader may call
	// it.
	Holds() bool
}

// ReadInterrupter can end the reading side alone.
type ReadInterrupter interface {
	// InterruptRead is Interrupt for blocked and future reads (TryRead, Park
	// and Loop too); writes go on, so that an answer can still be sent.
	InterruptRead(cause error)
}

// InterruptRead interrupts the reads of c, or all of it if c can't do that.
func InterruptRead(c Conn, cause error) {
	if r, ok := c.(ReadInterrupter); ok {
		r.InterruptRead(cause)
		return
	}
	c.Interrupt(cause)
}

// WriteParts writes a, b and c to c0 in order, joined in one write if the
// connection can do so or if they are small.
func WriteParts(c0 Conn, a, b, c []byte) error {
	if w, ok := c0.(PartsWriter); ok {
		return w.WriteParts(a, b, c)
	}
	total := len(a) + len(b) + len(c)
	if total <= MediumBuffer {
		buf := GetBuffer(total)
		n := copy(*buf, a)
		n += copy((*buf)[n:], b)
		n += copy((*buf)[n:], c)
		_, err := c0.Write((*buf)[:n])
		PutBuffer(buf)
		return err
	}
	for _, p := range [...][]byte{a, b, c} {
		if len(p) > 0 {
			if _, err := c0.Write(p); err != nil {
				return err
			}
		}
	}
	return nil
}

// WriteRead writes out to c and reads the first bytes of the answer into in,
// as an Exchanger does, whatever c is.
func WriteRead(c Conn, out, in []byte) (n int, wrote bool, err error) {
	if x, ok := c.(Exchanger); ok {
		return x.WriteRead(out, in)
	}
	if _, err := c.Write(out); err != nil {
		return 0, false, err
	}
	n, err = c.Read(in)
	return n, true, err
}
