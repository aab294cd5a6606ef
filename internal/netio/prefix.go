package netio

// putBack holds bytes that were read from a connection and not used yet. The
// zero putBack is empty.
type putBack struct {
	b    *[]byte // nil while empty
	r, w int
}

func (u *putBack) len() int { return u.w - u.r }

func (u *putBack) bytes() []byte {
	if u.b == nil {
		return nil
	}
	return (*u.b)[u.r:u.w]
}

// read moves bytes out to p.
func (u *putBack) read(p []byte) int {
	n := copy(p, u.bytes())
	u.r += n
	u.release()
	return n
}

func (u *putBack) release() {
	if u.r == u.w {
		PutBuffer(u.b)
		*u = putBack{}
	}
}

// take gives the buffer away, bytes at its start.
func (u *putBack) take() (b *[]byte, n int) {
	n = copy(*u.b, u.bytes())
	b = u.b
	*u = putBack{}
	return b, n
}

// room returns where to read so that n bytes can be held; grew must follow.
func (u *putBack) room(n int) []byte {
	u.b = GrowBuffer(u.b, u.w, u.r+n)
	return (*u.b)[u.w:]
}

func (u *putBack) grew(n int) { u.w += n; u.release() }

// put inserts a copy of p before the bytes held.
func (u *putBack) put(p []byte) {
	if len(p) == 0 {
		return
	}
	b := GetBuffer(len(p) + u.len())
	n := copy(*b, p)
	n += copy((*b)[n:], u.bytes())
	PutBuffer(u.b)
	*u = putBack{b: b, w: n}
}

// WithPrefix returns a connection whose reader first gets a copy of prefix,
// bytes that were read from c and belong to its next user. The result may be c
// itself; c must not be used any more.
func WithPrefix(c Conn, prefix []byte) Conn {
	if len(prefix) == 0 {
		return c
	}
	if u, ok := c.(interface{ putBack(p []byte) }); ok {
		u.putBack(prefix)
		return c
	}
	p := &prefixed{Conn: c}
	p.u.put(prefix)
	return p
}

// Peekable returns c as a Peeker: itself, or a wrapper.
func Peekable(c Conn) interface {
	Conn
	Peeker
} {
	if p, ok := c.(interface {
		Conn
		Peeker
	}); ok {
		return p
	}
	return &prefixed{Conn: c}
}

// prefixed is any Conn with bytes put back.
type prefixed struct {
	Conn
	u putBack
}

func (p *prefixed) Read(b []byte) (int, error) {
	if p.u.b != nil && len(b) > 0 {
		return p.u.read(b), nil
	}
	return p.Conn.Read(b)
}

func (p *prefixed) TryRead(b []byte) (int, error) {
	if p.u.b != nil && len(b) > 0 {
		return p.u.read(b), nil
	}
	return p.Conn.TryRead(b)
}

func (p *prefixed) Park(resume func()) bool {
	if p.u.b != nil {
		return false
	}
	return p.Conn.Park(resume)
}

func (p *prefixed) putBack(b []byte) { p.u.put(b) }

// Peek implements Peeker.
func (p *prefixed) Peek(n int) ([]byte, error) {
	n = min(n, LargeBuffer)
	for p.u.len() < n {
		m, err := p.Conn.Read(p.u.room(n))
		p.u.grew(m)
		if err != nil {
			return p.u.bytes(), err
		}
	}
	return p.u.bytes()[:n], nil
}

// Probe implements Prober.
func (p *prefixed) Probe() (readable, ended bool) {
	if p.u.b != nil {
		readable = true
	}
	if q, ok := p.Conn.(Prober); ok {
		r, e := q.Probe()
		return readable || r, e
	}
	return readable, false
}

// InterruptRead implements ReadInterrupter.
func (p *prefixed) InterruptRead(cause error) { InterruptRead(p.Conn, cause) }

// WriteParts implements PartsWriter.
func (p *prefixed) WriteParts(a, b, c []byte) error { return WriteParts(p.Conn, a, b, c) }
