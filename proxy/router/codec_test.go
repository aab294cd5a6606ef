package router

import (
	"bytes"
	"fmt"
	"io"
	"net"
	"net/http"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/fairlead-mesh/fairlead/internal/message"
	"github.com/fairlead-mesh/fairlead/proxy/upstream"
	"github.com/fairlead-mesh/fairlead/xdsclient/xdsresource"
)

// serveReal runs a net/http server, an implementation that shares no code with
// ours, and returns a world whose cluster is that server.
func serveReal(t *testing.T, v xdsresource.UpstreamHTTP, h http.HandlerFunc) *world {
	t.Helper()
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	srv := &http.Server{Handler: h, Protocols: &http.Protocols{}}
	srv.Protocols.SetHTTP1(true)
	srv.Protocols.SetUnencryptedHTTP2(true)
	var wg sync.WaitGroup
	wg.Go(func() { _ = srv.Serve(ln) })
	w := newWorld(t, &origin{})
	w.m = upstream.NewManager(upstream.Options{})
	spec := clusterOf("c", ln.Addr().String())
	spec.HTTP.Version = v
	w.m.Apply([]*xdsresource.Cluster{spec})
	w.f = New(nil, Deps{Clusters: w.m})
	t.Cleanup(func() {
		w.m.Close()
		_ = srv.Close()
		wg.Wait()
	})
	return w
}

var versions = map[string]xdsresource.UpstreamHTTP{"http/1.1": xdsresource.UpstreamHTTP1, "h2c": xdsresource.UpstreamHTTP2}

func TestRealOrigins(t *testing.T) {
	for name, v := range versions {
		t.Run(name, func(t *testing.T) {
			var conns sync.Map
			w := serveReal(t, v, func(rw http.ResponseWriter, r *http.Request) {
				conns.Store(r.RemoteAddr, true)
				b, _ := io.ReadAll(r.Body)
				rw.Header().Set("x-proto", r.Proto)
				rw.Header().Set("x-host", r.Host)
				fmt.Fprintf(rw, "%s %s %d", r.Method, r.URL, len(b))
			})
			for _, size := range []int{0, 1, 70_000} {
				s := newStream(message.Method, "POST", message.Path, "/p?q=1")
				if size > 0 {
					s.Body = message.Bytes(bytes.Repeat([]byte("x"), size))
				}
				r := w.do(s)
				if want := fmt.Sprintf("POST /p?q=1 %d", size); r.status != 200 || r.body != want || r.header.Get("x-host") != "svc.test" {
					t.Errorf("%d %q, want %q: %+v %v %v", r.status, r.body, want, r.header, r.err, r.bodyErr)
				}
			}
			b := newSlowBody()
			s := newStream(message.Method, "POST")
			s.Body = b
			go func() {
				for range 10 {
					b.c <- strings.Repeat("y", 1000)
				}
				close(b.c)
			}()
			if r := w.do(s); r.body != "POST /x 10000" {
				t.Errorf("streamed: %d %q %v", r.status, r.body, r.err)
			}
			if r := w.do(newStream(message.Method, "HEAD")); r.status != 200 || r.body != "" || r.bodyErr != nil {
				t.Errorf("HEAD: %d %q %v", r.status, r.body, r.bodyErr)
			}
			w.idle()
			n := 0
			conns.Range(func(any, any) bool { n++; return true })
			if n != 1 {
				t.Errorf("%d connections for requests one after another", n)
			}
		})
	}
}

func TestRealConcurrentRequests(t *testing.T) {
	for name, v := range versions {
		t.Run(name, func(t *testing.T) {
			w := serveReal(t, v, func(rw http.ResponseWriter, r *http.Request) {
				n, _ := io.Copy(io.Discard, r.Body)
				_, _ = rw.Write(bytes.Repeat([]byte("z"), int(n)*2))
			})
			table := w.table()
			var wg sync.WaitGroup
			for i := range 16 {
				wg.Go(func() {
					for k := range 20 {
						s := newStream(message.Method, "POST")
						size := (i*37 + k*911) % 5000
						if size > 0 {
							s.Body = message.Bytes(make([]byte, size))
						}
						s.SelectRoute(table.Match(s))
						if r := w.do(s); r.status != 200 || len(r.body) != 2*size {
							t.Errorf("%d, %d bytes for %d: %v %v %s", r.status, len(r.body), size, r.err, r.bodyErr, r.info.Details)
						}
					}
				})
			}
			wg.Wait()
			w.idle()
		})
	}
}

func TestRealFaults(t *testing.T) {
	for name, v := range versions {
		t.Run(name, func(t *testing.T) {
			var n atomic.Int32
			release := make(chan struct{})
			w := serveReal(t, v, func(rw http.ResponseWriter, r *http.Request) {
				switch r.URL.Path {
				case "/abort":
					n.Add(1)
					panic(http.ErrAbortHandler)
				case "/half":
					rw.Header().Set("content-length", "100")
					_, _ = rw.Write([]byte("abc"))
					rw.(http.Flusher).Flush()
					panic(http.ErrAbortHandler)
				case "/early":
					rw.Header().Set("connection", "close")
					rw.WriteHeader(http.StatusRequestEntityTooLarge)
				case "/hang":
					select {
					case <-release:
					case <-r.Context().Done():
					}
				case "/info":
					rw.Header().Set("link", "</a>")
					rw.WriteHeader(http.StatusEarlyHints)
					rw.WriteHeader(http.StatusNoContent)
				case "/trailers":
					rw.Header().Set("trailer", "x-sum")
					_, _ = rw.Write([]byte("body"))
					rw.Header().Set("x-sum", "7")
				}
			})
			defer close(release)
			w.retry(xdsresource.RetryPolicy{On: xdsresource.Retry5xx, NumRetries: 2, BaseInterval: time.Millisecond})
			if r := w.do(newStream(message.Path, "/abort")); r.status != 503 || n.Load() < 3 || !strings.HasPrefix(r.info.Details, "upstream_reset_before_response_started{") {
				t.Errorf("abort: %d after %d, %s", r.status, n.Load(), r.info.Details)
			}
			w.action().Retry = nil
			// A reset that overtakes the head is an answer of ours.
			if r := w.do(newStream(message.Path, "/half")); r.info.Flags == 0 || r.status == 200 && r.bodyErr == nil || r.status != 200 && r.status != 503 {
				t.Errorf("half: %d %q %v %s", r.status, r.body, r.bodyErr, r.info.Flags)
			}
			b := newSlowBody()
			s := newStream(message.Path, "/early", message.Method, "POST")
			s.Body = b
			if r := w.do(s); r.status != 413 {
				t.Errorf("early answer: %d %v %s", r.status, r.err, r.info.Details)
			}
			w.action().Timeout = 300 * time.Millisecond
			if r := w.do(newStream(message.Path, "/hang")); r.status != 504 || r.info.Details != "response_timeout" {
				t.Errorf("hang: %d %s", r.status, r.info.Details)
			}
			w.action().Timeout = 5 * time.Second
			s = newStream(message.Path, "/info")
			var seen []string
			s.Informational = func(h *message.Header) error { seen = append(seen, strings.Clone(h.Get(message.Status))); return nil }
			if r := w.do(s); r.status != 204 || len(seen) != 1 || seen[0] != "103" {
				t.Errorf("info: %d %v", r.status, seen)
			}
			if v == xdsresource.UpstreamHTTP2 {
				if r := w.do(newStream(message.Path, "/trailers")); r.body != "body" || r.trailers == nil || r.trailers.Get("x-sum") != "7" {
					t.Errorf("trailers: %q %v", r.body, r.trailers)
				}
			}
			w.idle()
		})
	}
}
