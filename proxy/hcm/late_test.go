package hcm

import (
	"bufio"
	"net/http"
	"net/netip"
	"testing"
	"time"

	"github.com/fairlead-mesh/fairlead/filters"
	"github.com/fairlead-mesh/fairlead/internal/netio"
	"github.com/fairlead-mesh/fairlead/internal/streaminfo"
	"github.com/fairlead-mesh/fairlead/xdsclient/xdsresource"
)

// waits answers its first request when c is closed.
type waits struct{ c chan struct{} }

func (f waits) Do(s *filters.Stream, _ filters.Next) (*filters.Response, error) {
	<-f.c
	return s.LocalReply(200, "", "waited", 0), nil
}

// A timeout that runs out while the answer is on its way may be about to interrupt
// its stream when that has ended: it must not meet the next one.
func TestALateTimeoutDoesNotMeetTheNextStream(t *testing.T) {
	taken, goOn, interrupted := make(chan struct{}), make(chan struct{}), make(chan struct{})
	spec := &xdsresource.HTTPConnectionManager{StreamIdleTimeout: 20 * time.Millisecond}
	m, err := New(Config{Spec: spec, Routes: &Routes{}, DefaultChain: []filters.HTTPFilter{waits{taken}}})
	if err != nil {
		t.Fatal(err)
	}
	made := 0
	m.pool.New = func() any {
		st := newStream(m)
		if made++; made == 1 {
			st.onIdle = func() {
				close(taken)
				<-goOn
				st.interrupt(errStreamIdle)
				close(interrupted)
			}
		}
		return st
	}
	near, far := netio.Pipe(netip.MustParseAddrPort("9.9.9.9:1000"), netip.MustParseAddrPort("10.0.0.1:80"))
	done := make(chan struct{})
	go m.Serve(&filters.Connection{Conn: far, Info: &streaminfo.Info{Conn: &streaminfo.Conn{}}}, func() { close(done) })
	r := bufio.NewReader(near)
	for i := range 2 {
		if _, err := near.Write([]byte("GET / HTTP/1.1\r\nhost: a\r\n\r\n")); err != nil {
			t.Fatal(err)
		}
		resp, err := http.ReadResponse(r, nil)
		if err != nil || resp.StatusCode != http.StatusOK {
			t.Fatalf("request %d: %v, %v", i, resp, err)
		}
		_ = resp.Body.Close()
	}
	close(goOn)
	<-interrupted
	_ = near.Close()
	<-done
	if made != 2 {
		t.Error("the second request got the stream that the first one's timeout is about to interrupt")
	}
}
