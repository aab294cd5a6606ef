package listener

import (
	"errors"

	"github.com/fairlead-mesh/fairlead/internal/netio"
	"github.com/fairlead-mesh/fairlead/internal/streaminfo"
)

// ErrNoSuchListener means that no listener can be dialled under that name.
var ErrNoSuchListener = errors.New("internal listener is not configured")

// Dial connects to an internal listener by an in-memory pipe and returns the
// near end. info describes the far one: the addresses and filter state that
// cross the hop.
func (l *Listener) Dial(info *streaminfo.Conn) (netio.Conn, error) {
	cur := l.current.Load()
	if cur == nil {
		return nil, ErrNoSuchListener
	}
	near, far := netio.Pipe(info.Remote, info.Local)
	go l.serve(cur, far, info, func() {})
	return near, nil
}
