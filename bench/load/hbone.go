package load

import (
	"context"
	"crypto/tls"
	"net/netip"

	"github.com/fairlead-mesh/fairlead/internal/netio"
	"github.com/fairlead-mesh/fairlead/proxy/hbone"
)

// Tunnels opens CONNECT streams, Streams to a tunnel.
type Tunnels struct {
	Authority string
	Streams   int
	address   netip.AddrPort
	config    *tls.Config
	dialers   []*hbone.Dialer
	opened    int
}

// NewTunnels returns an Opener for tunnels to address. config presents the
// client's certificate. Close ends the tunnels.
func NewTunnels(address netip.AddrPort, config *tls.Config, authority string, streams int) *Tunnels {
	return &Tunnels{Authority: authority, Streams: streams, address: address, config: config}
}

// Open implements Opener.
func (t *Tunnels) Open(ctx context.Context) (netio.Conn, error) {
	if t.opened%t.Streams == 0 {
		t.dialers = append(t.dialers, hbone.NewDialer(hbone.Config{
			TLS:        func(*hbone.Target) *tls.Config { return t.config },
			MaxStreams: uint32(t.Streams),
		}))
	}
	t.opened++
	return t.dialers[len(t.dialers)-1].Dial(ctx, &hbone.Target{Address: t.address, Authority: t.Authority}, nil)
}

// Close ends the tunnels.
func (t *Tunnels) Close() {
	for _, d := range t.dialers {
		d.Close()
	}
}
