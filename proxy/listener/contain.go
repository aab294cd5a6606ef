package listener

import (
	"errors"
	"fmt"
	"runtime/debug"

	"github.com/fairlead-mesh/fairlead/filters"
	"github.com/fairlead-mesh/fairlead/internal/netio"
)

// errPanic ends a connection whose filter panicked. The process goes on.
var errPanic = errors.New("listener: a filter panicked")

func (c *compiled) reportPanic(what string, p any) {
	if c.cfg.Logger != nil {
		c.cfg.Logger.Error("panic in "+what, "listener", c.cfg.Spec.Name, "panic", fmt.Sprint(p), "stack", string(debug.Stack()))
	}
}

// accepted runs a listener filter; a panic is an error.
func (c *compiled) accepted(f filters.ListenerFilter, fc *filters.Connection) (err error) {
	defer func() {
		if p := recover(); p != nil {
			c.reportPanic("a listener filter", p)
			err = errPanic
		}
	}()
	return f.OnAccept(fc)
}

// admit runs a network filter; a panic refuses the connection.
func (cn *connection) admit(cur *compiled, f filters.NetworkFilter) (err error) {
	defer func() {
		if p := recover(); p != nil {
			cur.reportPanic("a network filter", p)
			err = errPanic
		}
	}()
	fc := &cn.rec.fc
	before := fc.Conn
	if err := f.OnNewConnection(fc); err != nil {
		return err
	}
	if fc.Conn != before {
		fc.Conn = &guarded{fc.Conn, cn}
	}
	return nil
}

// contain is deferred around what closes the books, so that the rest of them is
// closed all the same.
func (cn *connection) contain(what string) {
	if p := recover(); p != nil {
		cn.l.current.Load().reportPanic(what, p)
	}
}

// cutByPanic is deferred around what a connection goes through until its terminal
// filter has it.
func (cn *connection) cutByPanic(cur *compiled, entered *bool) {
	if p := recover(); p != nil {
		cur.reportPanic("the way of a connection into its filter chain", p)
		cn.raw.Reset()
		cn.end()
		*entered = false
	}
}

// open is what Opener.Open gives; a panic ends the connection. It returns a
// stream in any case.
func (cn *connection) open(cur *compiled, h *hop) (c netio.Conn) {
	defer func() {
		if p := recover(); p != nil {
			cur.reportPanic("a terminal filter", p)
			cn.end()
			c = ended(h)
		}
	}()
	o, _ := cn.chain.Terminal.(filters.Opener)
	return o.Open(&cn.rec.fc, cn.end)
}

// serve runs the terminal filter; a panic before it has gone on by itself ends
// the connection.
func (cn *connection) serve(cur *compiled) {
	defer func() {
		if p := recover(); p != nil {
			cur.reportPanic("a terminal filter", p)
			cn.raw.Reset()
			cn.end()
		}
	}()
	if t, ok := cn.chain.Terminal.(filters.ConnTerminal); ok && cn.recordIsBlank() {
		cn.dropRecord()
		t.ServeConn(cn.conn, cn.info, cn.end)
		return
	}
	cn.chain.Terminal.Serve(&cn.rec.fc, cn.end)
}

// endFilter contains a panic, so that the filters before it and the books are
// closed all the same.
func (cn *connection) endFilter(e filters.ConnectionEnder) {
	defer func() {
		if p := recover(); p != nil {
			cn.l.current.Load().reportPanic("a network filter at the end of a connection", p)
		}
	}()
	e.OnConnectionEnd(&cn.rec.fc)
}

// refused tells those filters of the chain that the connection never reached.
func (cn *connection) refused(rest []filters.NetworkFilter) {
	for _, f := range rest {
		if w, ok := f.(filters.RefusalWitness); ok {
			func() {
				defer cn.contain("counting a refused connection")
				w.OnConnectionRefused(&cn.rec.fc)
			}()
		}
	}
}
