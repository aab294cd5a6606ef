package load

import (
	"context"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"net/netip"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"golang.org/x/net/http2/hpack"

	"github.com/fairlead-mesh/fairlead/bench/h2wire"
	"github.com/fairlead-mesh/fairlead/bench/origin"
)

func generator(t *testing.T, url string, streams, size int, rate float64) *Generator {
	t.Helper()
	x, err := H1(context.Background(), TCP{netip.MustParseAddrPort(strings.TrimPrefix(url, "http://"))}, streams, []byte(post), size)
	if err != nil {
		t.Fatal(err)
	}
	g := New(x, rate)
	t.Cleanup(g.Close)
	return g
}

const post = "POST /x HTTP/1.1\r\nhost: h\r\ncontent-length: 3\r\n\r\nabc"

func TestTheServerSeesWhatTheResultSays(t *testing.T) {
	var seen atomic.Uint64
	s := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if b, err := io.ReadAll(r.Body); err == nil && string(b) == "abc" {
			seen.Add(1)
		}
		fmt.Fprint(w, strings.Repeat("y", 20000))
	}))
	defer s.Close()
	// 20,000 bytes are chunked unless their number is told.
	s.Config.Handler = lengthOf(s.Config.Handler)
	res := generator(t, s.URL, 3, 20000, 0).Run(100 * time.Millisecond)
	if res.Errors != 0 || res.Requests == 0 || res.Requests != seen.Load() || uint64(res.Latency.TotalCount()) != res.Requests {
		t.Errorf("%+v, the server saw %d", res, seen.Load())
	}
}

func lengthOf(h http.Handler) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		w.Header().Set("Content-Length", "20000")
		h.ServeHTTP(w, r)
	})
}

func TestWrongAnswersAreErrors(t *testing.T) {
	for name, tc := range map[string]struct {
		status int
		size   string
		want   string
	}{
		"status": {503, "20000", `answer "HTTP/1.1 503 Service Unavailable"`},
		"length": {200, "4", "content-length 4, want 20000"},
	} {
		t.Run(name, func(t *testing.T) {
			s := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
				w.Header().Set("Content-Length", tc.size)
				w.WriteHeader(tc.status)
				_, _ = w.Write(make([]byte, 4))
			}))
			defer s.Close()
			res := generator(t, s.URL, 1, 20000, 0).Run(50 * time.Millisecond)
			if res.Errors != 1 || res.FirstError != tc.want || res.Requests != 0 {
				t.Errorf("%+v", res)
			}
		})
	}
}

func TestAPacedRunKeepsItsRate(t *testing.T) {
	o, err := origin.New()
	if err != nil {
		t.Fatal(err)
	}
	defer o.Close()
	g := generator(t, fmt.Sprintf("http://127.0.0.1:%d", o.Port()), 4, origin.Size, 200)
	// A slow machine sends later, not less: the timetable is made up for.
	res := g.Run(500 * time.Millisecond)
	if res.Errors != 0 || res.Requests < 80 || res.Requests > 110 {
		t.Errorf("%d requests in half a second at 200/s, %+v", res.Requests, res)
	}
}

// Each origin answers each kind of load.
func TestOrigins(t *testing.T) {
	plain, err := origin.New()
	if err != nil {
		t.Fatal(err)
	}
	defer plain.Close()
	calls, err := origin.NewGRPC()
	if err != nil {
		t.Fatal(err)
	}
	defer calls.Close()
	address := netip.MustParseAddrPort(fmt.Sprintf("127.0.0.1:%d", plain.Port()))
	get := func(size int) func() ([]Exchanger, error) {
		return func() ([]Exchanger, error) {
			return H1(t.Context(), TCP{address}, 4, fmt.Appendf(nil, "GET /bytes/%d HTTP/1.1\r\nhost: h\r\n\r\n", size), size)
		}
	}
	call := func(size int, bidi bool) func() ([]Exchanger, error) {
		return func() ([]Exchanger, error) {
			return H2(t.Context(), fmt.Sprintf("127.0.0.1:%d", calls.Port()), nil, 4, &H2Request{
				Header: []hpack.HeaderField{{Name: ":method", Value: "POST"}, {Name: ":path", Value: "/s/m"}, {Name: ":scheme", Value: "http"}},
				Body:   h2wire.Message(make([]byte, 128)), Size: size, GRPC: true, Bidi: bidi,
			})
		}
	}
	for name, tc := range map[string]struct {
		open func() ([]Exchanger, error)
		want string
	}{
		"1 KiB": {get(origin.Size), ""}, "64 KiB": {get(64 << 10), ""}, "1 MiB": {get(1 << 20), ""},
		"a size that nobody serves": {get(77), "content-length 1024, want 77"},
		"unary":                     {call(origin.Size, false), ""}, "bidi": {call(origin.Size, true), ""},
		"unary of another size": {call(7, false), "a body of 1024 bytes, want 7"},
		"bidi of another size":  {call(7, true), "a message of 1024 bytes, want 7"},
	} {
		t.Run(name, func(t *testing.T) {
			x, err := tc.open()
			if err != nil {
				t.Fatal(err)
			}
			g := New(x, 0)
			defer g.Close()
			for range 2 {
				res := g.Run(50 * time.Millisecond)
				if res.FirstError != tc.want || tc.want == "" && (res.Requests < 4 || uint64(res.Latency.TotalCount()) != res.Requests) {
					t.Fatalf("%+v", res)
				}
				if tc.want != "" {
					break
				}
			}
		})
	}
}
