package h1

import (
	"sync"

	"github.com/fairlead-mesh/fairlead/internal/netio"
)

// tunnel is a connection after CONNECT or 101: what was read ahead comes first,
// and its end ends the HTTP connection that it was.
type tunnel struct {
	netio.Conn
	rd    *reader
	close sync.Once
	ended func()
}

func newTunnel(rd *reader, ended func()) netio.Conn {
	return &tunnel{Conn: rd.c, rd: rd, ended: ended}
}

func (t *tunnel) ahead(p []byte) (int, bool) {
	b := t.rd.bytes()
	if len(b) == 0 {
		t.rd.release()
		return 0, false
	}
	n := copy(p, b)
	t.rd.r += n
	t.rd.release()
	return n, true
}

// Read implements netio.Conn.
func (t *tunnel) Read(p []byte) (int, error) {
	if n, ok := t.ahead(p); ok {
		return n, nil
	}
	return t.Conn.Read(p)
}

// TryRead implements netio.Conn.
func (t *tunnel) TryRead(p []byte) (int, error) {
	if n, ok := t.ahead(p); ok {
		return n, nil
	}
	return t.Conn.TryRead(p)
}

// Park implements netio.Conn.
func (t *tunnel) Park(resume func()) bool {
	if len(t.rd.bytes()) > 0 {
		return false
	}
	return t.Conn.Park(resume)
}

// Close implements netio.Conn.
func (t *tunnel) Close() error {
	err := t.Conn.Close()
	t.close.Do(t.ended)
	return err
}

// Reset implements netio.Conn.
func (t *tunnel) Reset() {
	t.Conn.Reset()
	t.close.Do(t.ended)
}
