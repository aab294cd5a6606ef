package tcpproxy

import (
	"fmt"
	"io"
	"slices"
	"testing"
	"testing/synctest"
	"time"

	"github.com/fairlead-mesh/fairlead/filters"
	"github.com/fairlead-mesh/fairlead/internal/format"
	"github.com/fairlead-mesh/fairlead/internal/netio"
	"github.com/fairlead-mesh/fairlead/internal/streaminfo"
	"github.com/fairlead-mesh/fairlead/xdsclient/xdsresource"
)

// observed returns a connection whose observer notes the bytes it is told.
func observed(c netio.Conn, seen *[]string) *filters.Connection {
	info := &streaminfo.Info{Conn: &streaminfo.Conn{Local: dest, Remote: client}, Start: time.Now()}
	info.FilterState.Reset(&info.Conn.FilterState)
	fc := &filters.Connection{Conn: c, Info: info}
	fc.Observe(func(c *filters.Connection) {
		*seen = append(*seen, fmt.Sprint(c.Info.BytesReceived, "/", c.Info.BytesSent, " ", c.Info.Upstream.Cluster))
	})
	return fc
}

func TestObserversHearOfAConnectionAtOnceAndWhileItLasts(t *testing.T) {
	want := []string{"0/0 c", "2/2 c", "5/5 c"}
	for _, open := range []bool{false, true} {
		t.Run(fmt.Sprint("opened ", open), func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				spec := cluster("c", "10.0.0.1:80")
				cfg := &xdsresource.TCPProxy{Cluster: "c"}
				if open {
					spec.HTTP.Version = xdsresource.UpstreamHTTP2
					cfg.Tunneling = &xdsresource.Tunneling{Hostname: format.Literal("h:1")}
				}
				m := manager(t, &origin{handle: echo, status: 200}, spec)
				f, err := New(cfg, Deps{Clusters: m})
				if err != nil {
					t.Fatal(err)
				}
				var seen []string
				done := make(chan struct{})
				near, far := netio.Pipe(client, dest)
				fc := observed(far, &seen)
				if o, ok := f.(filters.Opener); ok && open {
					if !o.CanOpen() {
						t.Fatal("a tunnel can't be opened")
					}
					near = o.Open(fc, func() { close(done) })
					if _, ok := near.(*opened); !ok {
						t.Fatalf("got a %T", near)
					}
				} else {
					f.Serve(fc, func() { close(done) })
				}
				synctest.Wait()
				roundTrip(t, near, "12")
				time.Sleep(progressInterval)
				synctest.Wait()
				roundTrip(t, near, "345")
				time.Sleep(progressInterval)
				synctest.Wait()
				_ = near.CloseWrite()
				if _, err := near.Read(make([]byte, 1)); err != io.EOF { //nolint:errorlint // as it is
					t.Errorf("at the end: %v", err)
				}
				_ = near.Close()
				<-done
				time.Sleep(3 * progressInterval)
				if !slices.Equal(seen, want) {
					t.Errorf("got %q, want %q", seen, want)
				}
				if fc.Info.BytesReceived != 5 || fc.Info.BytesSent != 5 {
					t.Errorf("%d/%d bytes at the end", fc.Info.BytesReceived, fc.Info.BytesSent)
				}
			})
		})
	}
}

// Observers are told by the record that the lines are of: the race detector sees
// whether one changes it while the other reads.
func TestPeriodicLogLinesGoWithObservers(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		l, seen := &lines{}, []string{}
		d := Deps{Clusters: manager(t, &origin{handle: echo}, cluster("c", "10.0.0.1:80")), AccessLogs: []AccessLogger{l}}
		f, err := New(&xdsresource.TCPProxy{Cluster: "c", AccessLogFlushInterval: time.Second}, d)
		if err != nil {
			t.Fatal(err)
		}
		near, far := netio.Pipe(client, dest)
		done := make(chan struct{})
		f.Serve(observed(far, &seen), func() { close(done) })
		time.Sleep(2*progressInterval + progressInterval/2)
		_ = near.Close()
		<-done
		if n := len(l.all()); n < 10 || len(seen) != 3 {
			t.Errorf("%d lines, observers heard %q", n, seen)
		}
	})
}
