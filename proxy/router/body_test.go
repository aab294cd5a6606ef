package router

import (
	"errors"
	"slices"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/fairlead-mesh/fairlead/filters"
	"github.com/fairlead-mesh/fairlead/internal/message"
	"github.com/fairlead-mesh/fairlead/proxy/transport"
	"github.com/fairlead-mesh/fairlead/xdsclient/xdsresource"
)

func TestBodiesReachUpstream(t *testing.T) {
	for _, kind := range []string{"whole", "streaming"} {
		t.Run(kind, func(t *testing.T) {
			var got atomic.Value
			o := &origin{handle: func(x *exchange) answer { got.Store(x.body()); return answer{status: 200, body: "ok"} }}
			w := newWorld(t, o)
			s := newStream(message.Method, "POST")
			if kind == "whole" {
				s.Body = message.Bytes([]byte("abcdef"))
			} else {
				b := newSlowBody()
				s.Body = b
				go func() { b.c <- "abc"; b.c <- "def"; close(b.c) }()
			}
			if r := w.do(s); r.status != 200 || got.Load() != "abcdef" {
				t.Errorf("%d, upstream got %q", r.status, got.Load())
			}
			w.idle()
		})
	}
}

// begunBody is a slowBody whose first chunk is there.
type begunBody struct {
	*slowBody
	first string
}

func (b *begunBody) Ready() (int, bool) { return len(b.first), false }

func (b *begunBody) Next() ([]byte, bool, error) {
	if p := b.first; p != "" {
		b.first = ""
		return []byte(p), false, nil
	}
	return b.slowBody.Next()
}

func TestWhatIsThereOfABodyLeavesBeforeTheAnswerIsRead(t *testing.T) {
	b := &begunBody{slowBody: newSlowBody(), first: "abc"}
	var got atomic.Value
	o := &origin{handle: func(x *exchange) answer {
		x.st.mu.Lock()
		got.Store(string(x.st.got))
		x.st.mu.Unlock()
		return answer{status: 413}
	}}
	w := newWorld(t, o)
	s := newStream(message.Method, "POST")
	s.Body = b
	if r := w.do(s); r.status != 413 || got.Load() != "abc" {
		t.Errorf("%d, upstream got %q", r.status, got.Load())
	}
	w.idle()
}

func TestBodiesAreReplayedOnRetry(t *testing.T) {
	for _, kind := range []string{"whole", "streaming", "streaming, broken half-way"} {
		t.Run(kind, func(t *testing.T) {
			b := newSlowBody()
			begun := make(chan struct{}) // "abc" was taken
			var got atomic.Value
			o := &origin{}
			o.handle = func(x *exchange) answer {
				if x.n == 1 {
					if kind != "streaming, broken half-way" {
						x.body()
					}
					return answer{err: reset(transport.RemoteReset)}
				}
				if kind == "streaming, broken half-way" {
					go func() { <-begun; b.c <- "def"; close(b.c) }()
				}
				got.Store(x.body())
				return answer{status: 200}
			}
			w := newWorld(t, o)
			w.retry(xdsresource.RetryPolicy{On: xdsresource.RetryReset, NumRetries: 1, BaseInterval: time.Millisecond})
			s := newStream(message.Method, "POST")
			switch kind {
			case "whole":
				s.Body = message.Bytes([]byte("abcdef"))
			case "streaming":
				s.Body = b
				go func() { b.c <- "abc"; b.c <- "def"; close(b.c) }()
			default:
				s.Body = b
				go func() { b.c <- "abc"; close(begun) }()
			}
			if r := w.do(s); r.status != 200 || got.Load() != "abcdef" {
				t.Errorf("%d, upstream got %q", r.status, got.Load())
			}
			w.idle()
		})
	}
}

func TestABodyOverTheLimitIsSentOnce(t *testing.T) {
	small, large := uint64(150), uint64(5000)
	for _, c := range []struct {
		name        string
		listener    uint32
		route, host xdsresource.BufferLimit
		attempts    int
	}{
		{name: "the default is large", attempts: 4},
		{name: "the listener's limit", listener: 150, attempts: 1},
		{name: "the route's body limit", route: xdsresource.BufferLimit{Body: &small}, attempts: 1},
		{name: "the route's request limit", route: xdsresource.BufferLimit{PerRequest: &small}, attempts: 1},
		{name: "the host's body limit", host: xdsresource.BufferLimit{Body: &small}, attempts: 1},
		{name: "the route's body limit before the listener's", listener: 150, route: xdsresource.BufferLimit{Body: &large}, attempts: 4},
		{name: "the host's body limit before the route's request limit", route: xdsresource.BufferLimit{PerRequest: &large}, host: xdsresource.BufferLimit{Body: &small}, attempts: 1},
		{name: "the route's body limit before the host's", route: xdsresource.BufferLimit{Body: &large}, host: xdsresource.BufferLimit{Body: &small}, attempts: 4},
	} {
		t.Run(c.name, func(t *testing.T) {
			big := strings.Repeat("x", 100)
			var got atomic.Value
			o := &origin{handle: func(x *exchange) answer { got.Store(x.body()); return answer{status: 503} }}
			w := newWorld(t, o)
			w.retry(xdsresource.RetryPolicy{On: xdsresource.Retry5xx, NumRetries: 3, BaseInterval: time.Millisecond})
			w.route().BufferLimit, w.vhost().BufferLimit = c.route, c.host
			b := newSlowBody()
			s := newStream(message.Method, "POST")
			s.Info.Conn.BufferLimit = c.listener
			s.Body = b
			go func() { b.c <- big; b.c <- big; close(b.c) }()
			if r := w.do(s); r.status != 503 || got.Load() != big+big || o.attempts() != c.attempts {
				t.Errorf("%d after %d attempts, %d bytes", r.status, o.attempts(), len(got.Load().(string)))
			}
			w.idle()
		})
	}
}

func TestAnEarlyAnswerEndsTheUpload(t *testing.T) {
	o := &origin{handle: func(x *exchange) answer { return answer{status: 413, body: "too large"} }}
	w := newWorld(t, o)
	b := newSlowBody()
	s := newStream(message.Method, "POST")
	s.Body = b
	if r := w.do(s); r.status != 413 || r.body != "too large" {
		t.Errorf("%d %q", r.status, r.body)
	}
	w.idle()
}

func TestAFailingRequestBodyEndsTheRequest(t *testing.T) {
	o := &origin{handle: func(x *exchange) answer { return answer{hang: true} }}
	w := newWorld(t, o)
	b := newSlowBody()
	s := newStream(message.Method, "POST")
	s.Body = b
	cause := errors.New("chunk is malformed")
	go b.Interrupt(cause)
	if r := w.do(s); !errors.Is(r.err, cause) {
		t.Errorf("%+v", r)
	}
	w.idle()
}

func TestABodyThatBreaksOffIsNeverComplete(t *testing.T) {
	cases := map[string]struct {
		a       answer
		flags   string
		details string
	}{
		"connection ended": {answer{status: 200, body: "abc", bodyErr: reset(transport.ConnectionTermination)}, "UC", "upstream_reset_after_response_started{connection_termination}"},
		"protocol error":   {answer{status: 200, body: "abc", bodyErr: reset(transport.ProtocolError)}, "UPE", "upstream_reset_after_response_started{protocol_error}"},
		"route timeout":    {answer{status: 200, body: "abc", bodyHang: true}, "UT", "response_timeout"},
	}
	for name, tc := range cases {
		w := newWorld(t, &origin{handle: func(*exchange) answer { return tc.a }})
		w.action().Timeout = 500 * time.Millisecond
		r := w.do(newStream())
		if r.bodyErr == nil || r.info.Flags.String() != tc.flags || r.info.Details != tc.details || r.body != "abc" {
			t.Errorf("%s: %v flags %s details %s", name, r.bodyErr, r.info.Flags, r.info.Details)
		}
		w.idle()
	}
}

func TestTrailersAndInformationalHeadsPass(t *testing.T) {
	tr := &message.Header{}
	tr.Add("grpc-status", "0")
	w := newWorld(t, &origin{handle: func(*exchange) answer { return answer{info: []int{103, 103}, status: 200, body: "x", trailers: tr} }})
	s := newStream()
	var seen []string
	s.Informational = func(h *message.Header) error { seen = append(seen, strings.Clone(h.Get(message.Status))); return nil }
	r := w.do(s)
	if r.trailers.Get("grpc-status") != "0" || !slices.Equal(seen, []string{"103", "103"}) || r.header.Count(message.Status) != 1 {
		t.Errorf("%v, informational %v", r.trailers, seen)
	}
}

func TestAStalledUploadIsAnsweredBeforeItIsStopped(t *testing.T) {
	w := newWorld(t, &origin{handle: func(*exchange) answer { return answer{hang: true} }})
	d := 300 * time.Millisecond
	w.action().MaxStreamDuration = &d
	b := newSlowBody()
	s := newStream(message.Method, "POST")
	s.Body = b
	s.SelectRoute(w.table().Match(s))
	resp, err := w.f.Do(s, filters.Next{})
	if err != nil || resp.Status() != 408 {
		t.Fatalf("%v %v", resp, err)
	}
	select {
	case <-b.stop:
		t.Error("the body was interrupted before the response could be written")
	default:
	}
	if p, _, _ := resp.Body.Next(); string(p) != "downstream duration timeout" {
		t.Errorf("%q", p)
	}
	resp.Body.Close()
	select {
	case <-b.stop:
	default:
		t.Error("the pump was left waiting for the client")
	}
	w.idle()
}

// TestABodyIsNotKeptOnceItsAnswerHasBegun is about calls that go on for days.
func TestABodyIsNotKeptOnceItsAnswerHasBegun(t *testing.T) {
	w := newWorld(t, &origin{handle: func(*exchange) answer { return answer{status: 200, bodyHang: true} }})
	w.retry(xdsresource.RetryPolicy{On: xdsresource.RetryReset, NumRetries: 3})
	b := &begunBody{slowBody: newSlowBody(), first: "abc"}
	s := newStream(message.Method, "POST")
	s.Body = b
	s.SelectRoute(w.table().Match(s))
	resp, err := w.f.Do(s, filters.Next{})
	if err != nil || resp.Status() != 200 {
		t.Fatalf("%v %v", resp, err)
	}
	for range 3 {
		b.c <- "message"
	}
	rb, ok := resp.Body.(*responseBody)
	if !ok {
		t.Fatalf("%T", resp.Body)
	}
	p := &rb.rq.pump
	p.mu.Lock()
	if p.keep || len(p.buf) > 0 || !p.lost {
		t.Errorf("keep %v, lost %v, %d bytes", p.keep, p.lost, len(p.buf))
	}
	p.mu.Unlock()
	s.Interrupt(reset(transport.RemoteReset))
	resp.Body.Close()
	w.idle()
}

// An origin that has answered may read no more of the request, and still keep the
// connection open.
func TestAnAnswerPassesWhileTheRequestIsNotRead(t *testing.T) {
	for _, c := range []struct {
		name string
		last bool // what is not read ends the request
		a    answer
	}{
		{"a head", false, answer{status: 413}},
		{"a head, before the end", true, answer{status: 413}},
		{"a body", false, answer{status: 413, body: "too large"}},
		{"a body, before the end", true, answer{status: 413, body: "too large"}},
	} {
		t.Run(c.name, func(t *testing.T) {
			o := &origin{stuck: make(chan struct{})}
			o.handle = func(*exchange) answer {
				<-o.stuck
				return c.a
			}
			w := newWorld(t, o)
			w.retry(xdsresource.RetryPolicy{On: xdsresource.RetryReset, NumRetries: 1})
			w.action().Timeout = 0 // nothing else would end it
			b := newSlowBody()
			s := newStream(message.Method, "POST")
			s.Body = b
			if c.last {
				s.Body = &endedBody{b}
			}
			go func() { b.c <- "abc" }()
			got := make(chan result, 1)
			go func() { got <- w.do(s) }()
			select {
			case r := <-got:
				if r.status != 413 || r.body != c.a.body || r.err != nil || r.bodyErr != nil {
					t.Errorf("%d %q, %v %v", r.status, r.body, r.err, r.bodyErr)
				}
			case <-time.After(20 * time.Second):
				t.Fatal("the answer does not pass")
			}
			w.idle()
		})
	}
}

// endedBody ends with its first chunk.
type endedBody struct{ *slowBody }

func (b *endedBody) Next() ([]byte, bool, error) {
	p, _, err := b.slowBody.Next()
	return p, true, err
}
