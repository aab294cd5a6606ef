package hcm

import (
	"bufio"
	"errors"
	"net/http"
	"net/netip"
	"sync/atomic"
	"testing"
	"time"

	"github.com/fairlead-mesh/fairlead/filters"
	"github.com/fairlead-mesh/fairlead/internal/message"
	"github.com/fairlead-mesh/fairlead/internal/netio"
	"github.com/fairlead-mesh/fairlead/internal/streaminfo"
	"github.com/fairlead-mesh/fairlead/proxy/transport"
	"github.com/fairlead-mesh/fairlead/proxy/transport/h2"
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
		} else {
			st.onIdle = func() {} // a busy machine may need as long for the second request
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

// asks runs what it is given in the midst of a request, and notes why the stream was
// interrupted.
type asks struct {
	during func()
	cause  error
}

func (f *asks) Do(s *filters.Stream, _ filters.Next) (*filters.Response, error) {
	if f.during != nil {
		f.during()
	}
	f.cause = s.Cause()
	return s.LocalReply(200, "", "asked", 0), nil
}

// What a codec still wants to say about a stream that has ended must not be said to
// the next one, which has its record.
func TestALateResetDoesNotMeetTheNextStream(t *testing.T) {
	f := &asks{}
	m, err := New(Config{Spec: &xdsresource.HTTPConnectionManager{}, Routes: &Routes{}, DefaultChain: []filters.HTTPFilter{f}})
	if err != nil {
		t.Fatal(err)
	}
	cn := &conn{m: m, info: &streaminfo.Conn{}}
	for range 20 { // the race detector has pools lose some of what they are given
		former := &fakeStream{version: message.HTTP2}
		f.during = nil
		cn.ServeStream(former)
		f.during = func() {
			if former.onReset != nil {
				former.onReset(errors.New("reset by the former client"))
			}
		}
		cn.ServeStream(&fakeStream{version: message.HTTP2})
		if f.cause != nil {
			t.Fatalf("the next stream was interrupted: %v", f.cause)
		}
		if former.onReset != nil {
			t.Fatal("the callback was not taken back")
		}
	}
}

// again answers; its first request when c is closed. It notes whether the record of
// that one serves another.
type again struct {
	c     chan struct{}
	begun chan struct{} // closed by the first request
	first atomic.Pointer[filters.Stream]
	met   atomic.Bool
}

func (f *again) Do(s *filters.Stream, _ filters.Next) (*filters.Response, error) {
	if f.first.CompareAndSwap(nil, s) {
		close(f.begun)
		<-f.c
	} else if s == f.first.Load() {
		f.met.Store(true)
	}
	return s.LocalReply(200, "", "again", 0), nil
}

// A client that goes away while its answer is made may be about to interrupt its
// stream when that has ended: that must not meet the next one.
func TestAResetThatIsBeingToldDoesNotMeetTheNextStream(t *testing.T) {
	for _, codec := range []xdsresource.Codec{xdsresource.CodecHTTP1, xdsresource.CodecHTTP2} {
		t.Run(map[xdsresource.Codec]string{xdsresource.CodecHTTP1: "h1", xdsresource.CodecHTTP2: "h2"}[codec], func(t *testing.T) {
			lateReset(t, codec)
		})
	}
}

func lateReset(t *testing.T, codec xdsresource.Codec) {
	taken, goOn, interrupted := make(chan struct{}), make(chan struct{}), make(chan struct{})
	f := &again{c: taken, begun: make(chan struct{})}
	m, err := New(Config{Spec: &xdsresource.HTTPConnectionManager{Codec: codec}, Routes: &Routes{}, DefaultChain: []filters.HTTPFilter{f}})
	if err != nil {
		t.Fatal(err)
	}
	var made atomic.Int32
	m.pool.New = func() any {
		st := newStream(m)
		if made.Add(1) == 1 {
			st.onReset = func(cause error) {
				close(taken)
				<-goOn
				st.interrupt(cause)
				close(interrupted)
			}
		}
		return st
	}
	dial := func() (c netio.Conn, done chan struct{}) {
		near, far := netio.Pipe(netip.MustParseAddrPort("9.9.9.9:1000"), netip.MustParseAddrPort("10.0.0.1:80"))
		done = make(chan struct{})
		go m.Serve(&filters.Connection{Conn: far, Info: &streaminfo.Info{Conn: &streaminfo.Conn{}}}, func() { close(done) })
		return near, done
	}
	one, oneDone := dial()
	ask := asker(t, codec, one)
	ask(false)
	<-f.begun
	_ = one.Close()
	<-taken // by the codec, which has not called it yet
	two, twoDone := dial()
	ask = asker(t, codec, two)
	for range 100 {
		ask(true)
	}
	close(goOn)
	<-interrupted
	_ = two.Close()
	<-oneDone
	<-twoDone
	if f.met.Load() {
		t.Error("a request got the stream that the first one's reset is about to interrupt")
	}
}

// asker returns what sends a request on c, and awaits its answer if told to.
func asker(t *testing.T, codec xdsresource.Codec, c netio.Conn) func(answer bool) {
	t.Helper()
	if codec == xdsresource.CodecHTTP1 {
		r := bufio.NewReader(c)
		return func(answer bool) {
			if _, err := c.Write([]byte("GET / HTTP/1.1\r\nhost: a\r\n\r\n")); err != nil {
				t.Fatal(err)
			}
			if !answer {
				return
			}
			resp, err := http.ReadResponse(r, nil)
			if err != nil || resp.StatusCode != http.StatusOK {
				t.Fatalf("%v, %v", resp, err)
			}
			_ = resp.Body.Close()
		}
	}
	cc, err := h2.NewClient(c, &transport.ClientConfig{})
	if err != nil {
		t.Fatal(err)
	}
	return func(answer bool) {
		cs, err := cc.NewStream()
		if err != nil {
			t.Fatal(err)
		}
		var h message.Header
		h.Add(message.Method, "GET")
		h.Add(message.Scheme, "http")
		h.Add(message.Authority, "a")
		h.Add(message.Path, "/")
		if err := cs.WriteHeaders(&h, true); err != nil {
			t.Fatal(err)
		}
		if !answer {
			return
		}
		if status, _, err := cs.ReadHeaders(&h); err != nil || status != http.StatusOK {
			t.Fatalf("%d, %v", status, err)
		}
		cs.Release()
	}
}
