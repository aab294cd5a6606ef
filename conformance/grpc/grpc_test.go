package grpc

import (
	"context"
	"crypto/sha256"
	"fmt"
	"io"
	"maps"
	"net"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"golang.org/x/net/http2"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/grpc/metadata"
	"google.golang.org/grpc/status"

	"github.com/fairlead-mesh/fairlead/conformance/running"
	"github.com/fairlead-mesh/fairlead/internal/hbonetest"
)

func plaintext() credentials.TransportCredentials { return insecure.NewCredentials() }

// account is what a client can say about a call that is over.
func account(messages []string, header, trailer metadata.MD, err error) string {
	s := status.Convert(err)
	text := s.Message()
	if s.Code() == codes.DeadlineExceeded || s.Code() == codes.Canceled {
		text = "" // of the client, or of the server: who was faster
	}
	h := sha256.New()
	for _, m := range messages {
		_, _ = fmt.Fprintf(h, "%d:%s", len(m), m)
	}
	meta := func(md metadata.MD) string {
		var b strings.Builder
		for _, k := range slices.Sorted(maps.Keys(md)) {
			if strings.HasPrefix(k, "x-echo") || strings.HasPrefix(k, "x-trail") || k == "content-type" {
				_, _ = fmt.Fprintf(&b, "%s=%q ", k, md[k])
			}
		}
		return b.String()
	}
	return fmt.Sprintf("status %v %q, %d messages %x, header %s, trailer %s", s.Code(), text, len(messages), h.Sum(nil), meta(header), meta(trailer))
}

// stream makes a call of any kind: send, then half-close, then read to the end.
func stream(method string, send []string, md metadata.MD) func(context.Context, *grpc.ClientConn) string {
	return func(ctx context.Context, c *grpc.ClientConn) string {
		ctx = metadata.NewOutgoingContext(ctx, md)
		st, err := c.NewStream(ctx, &grpc.StreamDesc{ServerStreams: true, ClientStreams: true}, method)
		if err != nil {
			return account(nil, nil, nil, err)
		}
		var got []string
		for _, m := range send {
			if err := st.SendMsg(&m); err != nil {
				break // RecvMsg has the status
			}
		}
		_ = st.CloseSend()
		for {
			var m string
			if err := st.RecvMsg(&m); err == io.EOF { //nolint:errorlint // as grpc says it
				header, _ := st.Header()
				return account(got, header, st.Trailer(), nil)
			} else if err != nil {
				header, _ := st.Header()
				return account(got, header, st.Trailer(), err)
			}
			got = append(got, m)
		}
	}
}

// Calls of all kinds, all statuses, early and late, with metadata of both kinds, end
// through the proxy as without.
func TestCallsEndAsWithoutAProxy(t *testing.T) {
	p := newPair(t)
	calls := 0
	try := func(name string, call func(context.Context, *grpc.ClientConn) string) {
		calls++
		p.both(t, name, call)
	}
	md := metadata.MD{"x-echo": {"a", "b c", "%41"}, "x-echo-bin": {"\x00\xff\r\n", ""}}
	for code := range 18 { // 17 is none
		try(fmt.Sprint("status ", code), stream(fmt.Sprint("/app/status-", code), []string{"q"}, md))
		try(fmt.Sprint("late status ", code), stream(fmt.Sprint("/app/late-", code), []string{"q"}, md))
	}
	for _, n := range []int{0, 1, 5, 16383, 16384, 16385, 1 << 20, 3 << 20} {
		try(fmt.Sprint("unary of ", n, " bytes"), stream("/app/unary", []string{strings.Repeat("u", n)}, nil))
	}
	try("a message that is too large", stream("/app/unary", []string{strings.Repeat("u", 5<<20)}, nil))
	many := make([]string, 500)
	for i := range many {
		many[i] = strings.Repeat("m", i)
	}
	try("client streaming", stream("/app/collect", many, md))
	try("server streaming", stream("/app/stream-700", []string{""}, md))
	try("server streaming of nothing", stream("/app/stream-0", []string{""}, md))
	try("both ways", stream("/app/chat", many, md))
	try("both ways, nothing", stream("/app/chat", nil, nil))
	try("an unknown verb", stream("/app/what", []string{"q"}, md))
	for _, path := range []string{"/", "/a", "/a/b/c", "//a/b", "/app/", "/a%20b/c"} {
		try("path "+path, stream(path, []string{"q"}, nil))
	}
	if calls != 57 {
		t.Errorf("%d calls, want 57", calls)
	}
}

// A deadline that expires, before and between messages, and a client that goes away,
// end the call at both ends.
func TestDeadlinesAndCancellationReachBothEnds(t *testing.T) {
	p := newPair(t)
	before := p.app.cancelled.Load()
	calls := int32(0)
	for _, n := range []int{0, 3} {
		for _, cancels := range []bool{false, true} {
			calls += 2
			p.both(t, fmt.Sprintf("%d messages, cancelled %t", n, cancels), func(ctx context.Context, c *grpc.ClientConn) string {
				var cancel context.CancelFunc
				if cancels {
					ctx, cancel = context.WithCancel(ctx)
				} else {
					ctx, cancel = context.WithTimeout(ctx, 400*time.Millisecond)
				}
				defer cancel()
				st, err := c.NewStream(ctx, &grpc.StreamDesc{ServerStreams: true, ClientStreams: true}, fmt.Sprint("/app/hang-", n))
				if err != nil {
					return account(nil, nil, nil, err)
				}
				q := "q"
				_ = st.SendMsg(&q)
				var got []string
				for {
					var m string
					if len(got) == n && cancels {
						time.Sleep(100 * time.Millisecond)
						cancel()
					}
					if err := st.RecvMsg(&m); err != nil {
						if s := status.Convert(err); s.Code() == codes.Internal && strings.Contains(s.Message(), "RST_STREAM") && !cancels {
							// The server was faster than the client's own clock: its reset behind
							// the head becomes INTERNAL_ERROR in a proxy, as in Envoy.
							err = status.FromContextError(context.DeadlineExceeded).Err()
						}
						return account(got, nil, nil, err)
					}
					got = append(got, m)
				}
			})
		}
	}
	for range 1000 {
		if p.app.cancelled.Load()-before == calls {
			return
		}
		time.Sleep(20 * time.Millisecond)
	}
	t.Errorf("%d of %d calls ended at the server", p.app.cancelled.Load()-before, calls)
}

// timeouts are spellings of grpc-timeout. A server of grpc-go refuses those that
// are none; a proxy passes them on, or the deadline, and adds no limit of its own.
var timeouts = []string{
	"1n", "1000n", "5u", "5m", "200m", "1S", "5S", "1M", "1H", "99999999H", "99999999S", "0n", "0S", "0m",
	"-1S", "1x", "1s", "", "S", "1", "100000000S", "+1S", "1 S", "1.5S", "1e3S", "0x1S", "1SS", "S1", "１S", "1h",
}

// Every spelling of grpc-timeout is answered as without a proxy.
func TestTimeoutsInEverySpelling(t *testing.T) {
	p := newPair(t)
	if len(timeouts) != 30 {
		t.Errorf("%d spellings, want 30", len(timeouts))
	}
	ask := func(port int, method, timeout string) string {
		c, err := net.Dial("tcp", running.Address(port))
		if err != nil {
			t.Fatal(err)
		}
		peer := hbonetest.New(t, c)
		peer.Head(1, false, ":method", "POST", ":scheme", "http", ":authority", "a", ":path", method, "te", "trailers", "content-type", "application/grpc", "grpc-timeout", timeout)
		_ = peer.Data(1, true, []byte("\x00\x00\x00\x00\x01q"))
		a, err := peer.Wait(1, 3*time.Second, hbonetest.Over)
		if err != nil {
			return "nothing within 3 s"
		}
		if a.Reset {
			return fmt.Sprint("reset ", a.Code)
		}
		out := "status " + a.Status
		for _, f := range a.Fields {
			if strings.HasPrefix(f.Name, "grpc-status") {
				out += " " + f.Name + "=" + f.Value
			}
		}
		return out + fmt.Sprintf(" %q", a.Data)
	}
	var wg sync.WaitGroup
	for _, timeout := range timeouts {
		for _, method := range []string{"/app/unary", "/app/hang-0"} {
			wg.Go(func() {
				want, got := ask(p.ports[0], method, timeout), ask(p.ports[1], method, timeout)
				if want != got && !(brief[timeout] && ends(want) && ends(got)) && !(expired(want) && expired(got)) {
					t.Errorf("%s with grpc-timeout %q: %s, without a proxy %s", method, timeout, got, want)
				}
			})
		}
	}
	wg.Wait()
}

// brief deadlines are over before a call ends, or not.
var brief = map[string]bool{"1n": true, "1000n": true, "5u": true, "5m": true, "0n": true, "0S": true, "0m": true}

// expired tells how a call ends whose deadline the server saw expire: by a status,
// by a reset, and behind a proxy by the status that a reset before the head becomes,
// as in Envoy.
func expired(s string) bool {
	return strings.Contains(s, "grpc-status=4 ") || strings.Contains(s, "grpc-status=14 ") || s == "reset "+http2.ErrCodeCancel.String() || s == "reset "+http2.ErrCodeNo.String()
}

func ends(s string) bool { return expired(s) || strings.Contains(s, "grpc-status=0 ") }
