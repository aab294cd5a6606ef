package conntest

import (
	"net/netip"
	"testing"

	"github.com/fairlead-mesh/fairlead/internal/netio"
)

// Pairs make both ends of a connection, of each kind that is not encrypted. Who
// asks for them closes them.
var Pairs = map[string]func(testing.TB) (a, b netio.Conn){"sockets": Sockets, "pipes": Pipes}

// Sockets returns both ends of a TCP connection over loopback; a has dialed.
func Sockets(tb testing.TB) (a, b netio.Conn) {
	tb.Helper()
	l, err := netio.Listen(netip.MustParseAddrPort("127.0.0.1:0"), netio.ListenOptions{})
	if err != nil {
		tb.Fatal(err)
	}
	defer func() { _ = l.Close() }()
	if a, err = netio.Dial(tb.Context(), l.Addr(), netio.DialOptions{}); err != nil {
		tb.Fatal(err)
	}
	if b, err = l.Accept(); err != nil {
		tb.Fatal(err)
	}
	return a, b
}

// Pipes returns both ends of a connection in memory, without addresses.
func Pipes(testing.TB) (a, b netio.Conn) { return netio.Pipe(netip.AddrPort{}, netip.AddrPort{}) }
