package router

import (
	"context"
	"io"
	"net"
	"net/http"
	"net/netip"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/fairlead-mesh/fairlead/filters"
	"github.com/fairlead-mesh/fairlead/internal/netio"
	"github.com/fairlead-mesh/fairlead/internal/streaminfo"
	"github.com/fairlead-mesh/fairlead/proxy/hcm"
	"github.com/fairlead-mesh/fairlead/routing"
	"github.com/fairlead-mesh/fairlead/xdsclient/xdsresource"
)

// front serves w's router behind a connection manager on loopback, so that real
// clients meet real codecs on both sides.
func front(t *testing.T, w *world) (url string, client func(h2 bool) *http.Client) {
	t.Helper()
	table, errs := routing.Compile(w.rc, routing.Options{Chain: func([]xdsresource.Overrides) ([]filters.HTTPFilter, error) { return []filters.HTTPFilter{w.f}, nil }})
	if len(errs) > 0 {
		t.Fatal(errs)
	}
	routes := &hcm.Routes{}
	routes.Set(table)
	m, err := hcm.New(hcm.Config{Spec: &xdsresource.HTTPConnectionManager{}, Routes: routes, DefaultChain: []filters.HTTPFilter{w.f}})
	if err != nil {
		t.Fatal(err)
	}
	ln, err := netio.Listen(netip.MustParseAddrPort("127.0.0.1:0"), netio.ListenOptions{})
	if err != nil {
		t.Fatal(err)
	}
	var wg sync.WaitGroup
	wg.Go(func() {
		for {
			c, err := ln.Accept()
			if err != nil {
				return
			}
			wg.Add(1)
			go func() {
				info := &streaminfo.Info{Conn: &streaminfo.Conn{Local: c.LocalAddr(), Remote: c.RemoteAddr(), DirectRemote: c.RemoteAddr(), Start: time.Now()}}
				m.Serve(&filters.Connection{Conn: c, Info: info}, wg.Done)
			}()
		}
	})
	var transports []*http.Transport
	t.Cleanup(func() {
		for _, tr := range transports {
			tr.CloseIdleConnections()
		}
		_ = ln.Close()
		m.Drain()
		done := make(chan struct{})
		go func() { wg.Wait(); close(done) }()
		select {
		case <-done:
		case <-time.After(10 * time.Second):
			t.Error("connections don't end")
		}
	})
	return "http://" + ln.Addr().String(), func(h2 bool) *http.Client {
		p := &http.Protocols{}
		p.SetHTTP1(!h2)
		p.SetUnencryptedHTTP2(h2)
		tr := &http.Transport{Protocols: p, DialContext: (&net.Dialer{}).DialContext}
		transports = append(transports, tr)
		return &http.Client{Transport: tr, Timeout: 10 * time.Second}
	}
}

// stalled is an upload that sends one chunk and then nothing until it is closed.
func stalled() (io.ReadCloser, func()) {
	r, w := io.Pipe()
	go func() { _, _ = w.Write([]byte("begin")) }()
	return r, func() { _ = w.Close() }
}

func TestEndToEnd(t *testing.T) {
	for up, v := range versions {
		w := serveReal(t, v, func(rw http.ResponseWriter, r *http.Request) {
			switch r.URL.Path {
			case "/early":
				rw.Header().Set("connection", "close") // or net/http waits for the body first
				rw.WriteHeader(http.StatusRequestEntityTooLarge)
				_, _ = rw.Write([]byte("too large"))
			case "/slow":
				_, _ = io.Copy(io.Discard, r.Body)
			default:
				n, _ := io.Copy(io.Discard, r.Body)
				_, _ = rw.Write([]byte(strings.Repeat("r", int(n))))
			}
		})
		w.action().Timeout = 0
		d := 300 * time.Millisecond
		slow := *w.route()
		slow.Match.Path = "/slow"
		act := *slow.Action
		act.MaxStreamDuration = &d
		slow.Action = &act
		w.vhost().Routes = append([]*xdsresource.Route{&slow}, w.vhost().Routes...)
		url, client := front(t, w)
		for _, h2 := range []bool{false, true} {
			name := up + " from http/1.1"
			if h2 {
				name = up + " from h2c"
			}
			t.Run(name, func(t *testing.T) {
				c := client(h2)
				for range 3 {
					resp, err := c.Post(url+"/echo", "text/plain", strings.NewReader(strings.Repeat("q", 100_000)))
					if err != nil {
						t.Fatal(err)
					}
					b, err := io.ReadAll(resp.Body)
					_ = resp.Body.Close()
					if resp.StatusCode != http.StatusOK || len(b) != 100_000 || err != nil {
						t.Fatalf("%d, %d bytes, %v", resp.StatusCode, len(b), err)
					}
				}
				for path, want := range map[string]int{"/early": 413, "/slow": 408} {
					body, end := stalled()
					req, _ := http.NewRequestWithContext(context.Background(), http.MethodPost, url+path, body)
					start := time.Now()
					// The client does not return before its upload has ended.
					timer := time.AfterFunc(time.Second, end)
					resp, err := c.Do(req)
					timer.Stop()
					if err != nil {
						end()
						t.Errorf("%s: %v", path, err)
						continue
					}
					_, _ = io.Copy(io.Discard, resp.Body)
					_ = resp.Body.Close()
					end()
					if resp.StatusCode != want || time.Since(start) > 5*time.Second {
						t.Errorf("%s: %d after %v, want %d", path, resp.StatusCode, time.Since(start), want)
					}
				}
			})
		}
		w.idle()
	}
}
