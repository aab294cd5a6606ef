package hcm

import (
	"net/netip"
	"testing"
	"testing/synctest"
	"time"

	"github.com/fairlead-mesh/fairlead/filters"
	"github.com/fairlead-mesh/fairlead/internal/netio"
	"github.com/fairlead-mesh/fairlead/internal/streaminfo"
	"github.com/fairlead-mesh/fairlead/proxy/transport"
	"github.com/fairlead-mesh/fairlead/xdsclient/xdsresource"
)

// A client that says nothing, or not enough to tell HTTP/2 from HTTP/1.1, is idle.
func TestAConnectionWithoutAProtocolIsIdle(t *testing.T) {
	for _, said := range []string{"", "PRI * HT"} {
		for set, idle := range map[time.Duration]time.Duration{time.Minute: time.Minute, 0: time.Hour} {
			synctest.Test(t, func(t *testing.T) {
				spec := &xdsresource.HTTPConnectionManager{Codec: xdsresource.CodecAuto, Server: transport.ServerConfig{IdleTimeout: set}}
				m, err := New(Config{Spec: spec, Routes: &Routes{}, DefaultChain: []filters.HTTPFilter{seen{}}})
				if err != nil {
					t.Fatal(err)
				}
				near, far := netio.Pipe(netip.AddrPort{}, netip.AddrPort{})
				done := make(chan struct{})
				m.Serve(&filters.Connection{Conn: far, Info: &streaminfo.Info{Conn: &streaminfo.Conn{}}}, func() { close(done) })
				_, _ = near.Write([]byte(said))
				time.Sleep(idle - time.Second)
				synctest.Wait()
				select {
				case <-done:
					t.Error("it ended too early")
				default:
				}
				<-done
				_ = near.Close()
			})
		}
	}
}
