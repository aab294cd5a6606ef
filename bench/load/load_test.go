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

	"github.com/fairlead-mesh/fairlead/bench/origin"
)

func generator(t *testing.T, url string, s Spec) *Generator {
	t.Helper()
	g, err := New(context.Background(), TCP{netip.MustParseAddrPort(strings.TrimPrefix(url, "http://"))}, s)
	if err != nil {
		t.Fatal(err)
	}
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
	res := generator(t, s.URL, Spec{Streams: 3, Request: []byte(post), BodySize: 20000}).Run(100 * time.Millisecond)
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
			res := generator(t, s.URL, Spec{Streams: 1, Request: []byte(post), BodySize: 20000}).Run(50 * time.Millisecond)
			if res.Errors != 1 || res.FirstError != tc.want || res.Requests != 0 {
				t.Errorf("%+v", res)
			}
		})
	}
}

func TestAPacedRunKeepsItsRate(t *testing.T) {
	o, err := origin.New(10)
	if err != nil {
		t.Fatal(err)
	}
	defer o.Close()
	g := generator(t, fmt.Sprintf("http://127.0.0.1:%d", o.Port()), Spec{Streams: 4, Request: []byte(post), BodySize: 10, Rate: 200})
	// A slow machine sends later, not less: the timetable is made up for.
	res := g.Run(500 * time.Millisecond)
	if res.Errors != 0 || res.Requests < 80 || res.Requests > 110 {
		t.Errorf("%d requests in half a second at 200/s, %+v", res.Requests, res)
	}
}
