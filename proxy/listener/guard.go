package listener

import (
	"github.com/fairlead-mesh/fairlead/internal/netio"
)

// guarded is a connection that a network filter has wrapped: a panic of the
// filter's code, on whatever goroutine it runs, ends the connection. What else
// the wrapper may offer is not used.
type guarded struct {
	netio.Conn
	cn *connection
}

// broke is deferred around each call of the wrapper.
func (g *guarded) broke(err *error) {
	if p := recover(); p != nil {
		g.cn.l.current.Load().reportPanic("a network filter's connection", p)
		g.cn.raw.Reset()
		if err != nil {
			*err = errPanic
		}
	}
}

func (g *guarded) Read(p []byte) (n int, err error) {
	defer g.broke(&err)
	return g.Conn.Read(p)
}

func (g *guarded) TryRead(p []byte) (n int, err error) {
	defer g.broke(&err)
	return g.Conn.TryRead(p)
}

func (g *guarded) Write(p []byte) (n int, err error) {
	defer g.broke(&err)
	return g.Conn.Write(p)
}

func (g *guarded) Park(resume func()) (parked bool) {
	defer g.broke(nil)
	return g.Conn.Park(resume)
}

func (g *guarded) CloseWrite() (err error) {
	defer g.broke(&err)
	return g.Conn.CloseWrite()
}

func (g *guarded) Close() (err error) {
	defer g.broke(&err)
	return g.Conn.Close()
}

func (g *guarded) Reset() {
	defer g.broke(nil)
	g.Conn.Reset()
}

func (g *guarded) Interrupt(cause error) {
	defer g.broke(nil)
	g.Conn.Interrupt(cause)
}
