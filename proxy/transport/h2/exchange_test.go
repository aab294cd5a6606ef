package h2

import (
	"errors"
	"fmt"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/fairlead-mesh/fairlead/internal/message"
	"github.com/fairlead-mesh/fairlead/proxy/transport"
)

func roundTrip(cc transport.ClientConn, h *message.Header, reqBody string) (*message.Header, string, error) {
	cs, err := cc.NewStream()
	if err != nil {
		return nil, "", err
	}
	defer cs.Release()
	if err := cs.WriteHeaders(h, reqBody == ""); err != nil {
		return nil, "", err
	}
	if reqBody != "" {
		if err := cs.WriteData([]byte(reqBody), true); err != nil {
			return nil, "", err
		}
	}
	var resp message.Header
	if _, _, err := cs.ReadHeaders(&resp); err != nil {
		return nil, "", err
	}
	b := cs.Body()
	defer b.Close()
	out, err := readBody(b)
	return &resp, out, err
}

func TestARequestIsAnswered(t *testing.T) {
	cc, _ := dial(t, &transport.ServerConfig{}, &transport.ClientConfig{}, echo)
	for i := range 5 {
		path := fmt.Sprintf("/%d", i)
		h, body, err := roundTrip(cc, postHead(path), "hello")
		if err != nil || body != "hello" || h.Get("x-path") != path || h.Get(":status") != "200" {
			t.Fatal(h, body, err)
		}
	}
	h, body, err := roundTrip(cc, getHead("/"), "")
	if err != nil || body != "" || h.Get("x-path") != "/" {
		t.Fatal(h, body, err)
	}
}

func TestManyStreamsAtOnce(t *testing.T) {
	cc, _ := dial(t, &transport.ServerConfig{}, &transport.ClientConfig{MaxConcurrentStreams: 1000}, echo)
	var wg sync.WaitGroup
	for i := range 100 {
		wg.Go(func() {
			want := strings.Repeat(fmt.Sprint(i), 1+i*200)
			for range 5 {
				_, body, err := roundTrip(cc, postHead("/"), want)
				if err != nil || body != want {
					t.Errorf("%d: %d octets, %v", i, len(body), err)
				}
			}
		})
	}
	wg.Wait()
	if n := cc.Active(); n != 0 {
		t.Errorf("%d active", n)
	}
}

func TestALargeBodyGoesBothWays(t *testing.T) {
	cc, _ := dial(t, &transport.ServerConfig{}, &transport.ClientConfig{}, echo)
	want := strings.Repeat("0123456789abcdef", 1<<18) // 4 MiB
	cs, err := cc.NewStream()
	if err != nil {
		t.Fatal(err)
	}
	defer cs.Release()
	go func() {
		_ = cs.WriteHeaders(postHead("/"), false)
		_ = cs.WriteData([]byte(want), true)
	}()
	var resp message.Header
	time.Sleep(time.Millisecond) // ReadHeaders may come before WriteHeaders too
	if _, _, err := cs.ReadHeaders(&resp); err != nil {
		t.Fatal(err)
	}
	got, err := readBody(cs.Body())
	if err != nil || got != want {
		t.Fatal(len(got), err)
	}
}

func TestTrailersGoBothWays(t *testing.T) {
	cc, _ := dial(t, &transport.ServerConfig{}, &transport.ClientConfig{}, echo)
	cs, err := cc.NewStream()
	if err != nil {
		t.Fatal(err)
	}
	defer cs.Release()
	_ = cs.WriteHeaders(postHead("/"), false)
	_ = cs.WriteData([]byte("x"), false)
	if err := cs.WriteTrailers(header("grpc-status", "0", "connection", "close")); err != nil {
		t.Fatal(err)
	}
	var resp message.Header
	if _, _, err := cs.ReadHeaders(&resp); err != nil {
		t.Fatal(err)
	}
	b := cs.Body()
	got, err := readBody(b)
	if err != nil || got != "x" || b.Trailers() == nil || b.Trailers().Get("grpc-status") != "0" || b.Trailers().Len() != 1 {
		t.Fatal(got, err, b.Trailers())
	}
	b.Close()
}

func TestInformationalHeadsArePassedOn(t *testing.T) {
	cc, _ := dial(t, &transport.ServerConfig{}, &transport.ClientConfig{}, func(s transport.ServerStream) {
		for i := range 3 {
			_ = s.WriteInformational(header(":status", "103", "x-n", fmt.Sprint(i)))
		}
		_ = s.WriteHeaders(header(":status", "204"), true)
	})
	cs, err := cc.NewStream()
	if err != nil {
		t.Fatal(err)
	}
	defer cs.Release()
	_ = cs.WriteHeaders(getHead("/"), true)
	var h message.Header
	for i := range 3 {
		status, end, err := cs.ReadHeaders(&h)
		if status != 103 || end || err != nil || h.Get("x-n") != fmt.Sprint(i) {
			t.Fatal(status, end, err, h)
		}
	}
	if status, end, err := cs.ReadHeaders(&h); status != 204 || !end || err != nil {
		t.Fatal(status, end, err)
	}
}

// A stream whose connection ends before anything of it was sent is as safe to
// repeat as one that was refused.
func TestAStreamThatWasNotSentIsRefused(t *testing.T) {
	cc, _ := dial(t, &transport.ServerConfig{}, &transport.ClientConfig{}, echo)
	st, err := cc.NewStream()
	if err != nil {
		t.Fatal(err)
	}
	cc.Close(errors.New("the pool ends"))
	<-cc.Done()
	if err := st.WriteHeaders(getHead("/"), true); transport.ReasonOf(err) != transport.RemoteRefused || !strings.Contains(err.Error(), "the pool ends") {
		t.Error(err)
	}
	st.Release()
}

func waitFor(t testing.TB, f func() bool) {
	t.Helper()
	for range 1000 {
		if f() {
			return
		}
		time.Sleep(10 * time.Millisecond)
	}
	t.Fatal("timed out")
}

func TestASlowStreamDoesNotStallOthers(t *testing.T) {
	release := make(chan struct{})
	cc, _ := dial(t, &transport.ServerConfig{}, &transport.ClientConfig{}, func(s transport.ServerStream) {
		var h message.Header
		s.ReadHeaders(&h)
		if h.Get(":path") == "/slow" {
			<-release
		}
		b := s.Body()
		defer b.Close()
		got, _ := readBody(b)
		_ = s.WriteHeaders(header(":status", "200"), false)
		_ = s.WriteData([]byte(fmt.Sprint(len(got))), true)
	})
	// Eight stalled streams fill twice the connection's window of 1 MiB.
	var slow sync.WaitGroup
	for range 8 {
		slow.Go(func() {
			_, body, err := roundTrip(cc, postHead("/slow"), strings.Repeat("s", 300<<10))
			if err != nil || body != "307200" {
				t.Error(body, err)
			}
		})
	}
	time.Sleep(50 * time.Millisecond)
	for range 20 {
		_, body, err := roundTrip(cc, postHead("/fast"), strings.Repeat("f", 300<<10))
		if err != nil || body != "307200" {
			t.Fatal(body, err)
		}
	}
	close(release)
	slow.Wait()
}

func TestAResponseThatIsNotReadHoldsItsWriterBack(t *testing.T) {
	var sent atomic.Int64
	cc, _ := dial(t, &transport.ServerConfig{}, &transport.ClientConfig{}, func(s transport.ServerStream) {
		_ = s.WriteHeaders(header(":status", "200"), false)
		for range 100 {
			if s.WriteData(make([]byte, 64<<10), false) != nil {
				break
			}
			sent.Add(64 << 10)
		}
	})
	cs, err := cc.NewStream()
	if err != nil {
		t.Fatal(err)
	}
	_ = cs.WriteHeaders(getHead("/"), true)
	last := int64(0)
	waitFor(t, func() bool { // until it stops
		time.Sleep(100 * time.Millisecond)
		n := sent.Load()
		same := n > 0 && n == last
		last = n
		return same
	})
	if last > 256<<10 {
		t.Errorf("%d octets were sent into a window of 256 KiB", last)
	}
	cs.Release()
}

func TestTheClientsResetReachesTheHandler(t *testing.T) {
	causes := make(chan error, 2)
	started := make(chan struct{})
	cc, _ := dial(t, &transport.ServerConfig{}, &transport.ClientConfig{}, func(s transport.ServerStream) {
		s.OnReset(func(err error) { causes <- err })
		close(started)
		_, err := readBody(s.Body())
		causes <- err
	})
	cs, err := cc.NewStream()
	if err != nil {
		t.Fatal(err)
	}
	_ = cs.WriteHeaders(postHead("/"), false)
	_ = cs.Flush()
	<-started
	cs.Reset()
	for range 2 {
		if err := <-causes; transport.ReasonOf(err) != transport.RemoteReset {
			t.Error(err)
		}
	}
	cs.Release()
}

func TestAHandlerThatPanicsLosesItsStreamOnly(t *testing.T) {
	cc, _ := dial(t, &transport.ServerConfig{}, &transport.ClientConfig{}, func(s transport.ServerStream) {
		var h message.Header
		s.ReadHeaders(&h)
		if h.Get(":path") == "/panic" {
			panic("as asked")
		}
		_ = s.WriteHeaders(header(":status", "200"), true)
	})
	if _, _, err := roundTrip(cc, getHead("/panic"), ""); transport.ReasonOf(err) != transport.RemoteReset {
		t.Error(err)
	}
	if _, _, err := roundTrip(cc, getHead("/"), ""); err != nil {
		t.Error(err)
	}
}

func TestDrainServesWhatIsInFlightAndCloses(t *testing.T) {
	release := make(chan struct{})
	closed := make(chan error, 1)
	cc, s := dial(t, &transport.ServerConfig{}, &transport.ClientConfig{OnClose: func(_ transport.ClientConn, err error) { closed <- err }},
		func(s transport.ServerStream) {
			<-release
			_ = s.WriteHeaders(header(":status", "200"), true)
		})
	cs, err := cc.NewStream()
	if err != nil {
		t.Fatal(err)
	}
	_ = cs.WriteHeaders(getHead("/"), true)
	waitFor(t, func() bool { return s.Active() == 1 })
	s.Drain()
	waitFor(t, func() bool { return cc.Available() == 0 })
	if _, err := cc.NewStream(); transport.ReasonOf(err) != transport.RemoteRefused {
		t.Error(err)
	}
	close(release)
	var h message.Header
	if status, _, err := cs.ReadHeaders(&h); status != 200 || err != nil {
		t.Error(status, err)
	}
	cs.Release()
	<-closed
}

// A gRPC answer is a message and trailers: they need one write, not two.
func TestLastBytesAndTrailersLeaveTogether(t *testing.T) {
	var srv *Server
	writes := make(chan uint64, 1)
	ready := make(chan struct{})
	cc, srv := dial(t, &transport.ServerConfig{}, &transport.ClientConfig{}, func(s transport.ServerStream) {
		<-ready
		var h message.Header
		s.ReadHeaders(&h)
		_ = s.WriteHeaders(header(":status", "200"), false)
		_ = s.Flush()
		count := func() uint64 {
			srv.c.mu.Lock()
			defer srv.c.mu.Unlock()
			return srv.c.writes
		}
		before := count()
		if err := s.(transport.LastWriter).WriteLast([]byte("bytes"), header("grpc-status", "0")); err != nil {
			t.Error(err)
		}
		writes <- count() - before
	})
	close(ready)
	cs, err := cc.NewStream()
	if err != nil {
		t.Fatal(err)
	}
	if err := cs.WriteHeaders(getHead("/"), true); err != nil {
		t.Fatal(err)
	}
	var h message.Header
	if _, _, err := cs.ReadHeaders(&h); err != nil {
		t.Fatal(err)
	}
	got, err := readBody(cs.Body())
	if err != nil || got != "bytes" || cs.Body().Trailers() == nil || cs.Body().Trailers().Get("grpc-status") != "0" {
		t.Errorf("%q, %v, trailers %v", got, err, cs.Body().Trailers())
	}
	cs.Release()
	if n := <-writes; n > 1 { // 0: whoever was writing took it along
		t.Errorf("%d writes, want 1", n)
	}
}
