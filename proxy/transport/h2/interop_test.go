package h2

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"strings"
	"sync"
	"testing"

	"golang.org/x/net/http2"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/grpc/metadata"
	"google.golang.org/grpc/status"

	"github.com/fairlead-mesh/fairlead/internal/message"
	"github.com/fairlead-mesh/fairlead/internal/netio"
	"github.com/fairlead-mesh/fairlead/proxy/transport"
)

// xnetClient is x/net's client on a connection to our server.
func xnetClient(t *testing.T, f func(transport.ServerStream)) *http2.ClientConn {
	t.Helper()
	a, _ := serve(t, &transport.ServerConfig{}, &handlerFunc{f: f})
	tr := &http2.Transport{AllowHTTP: true}
	cc, err := tr.NewClientConn(stdConn{a})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = cc.Close() })
	return cc
}

func TestXNetsClientTalksToOurServer(t *testing.T) {
	cc := xnetClient(t, echo)
	var wg sync.WaitGroup
	for i := range 20 {
		wg.Go(func() {
			for size := range 4 {
				want := strings.Repeat("x", size*100_000+i+1)
				req, _ := http.NewRequestWithContext(t.Context(), http.MethodPost, "http://example.com/p", strings.NewReader(want))
				req.Header.Add("Cookie", "a=b")
				req.Header.Add("X-Long", strings.Repeat("l", 20_000))
				req.Trailer = http.Header{"X-Trailer": {"t"}}
				resp, err := cc.RoundTrip(req)
				if err != nil {
					t.Error(err)
					return
				}
				got, err := io.ReadAll(resp.Body)
				if err != nil || string(got) != want || resp.Header.Get("X-Path") != "/p" || resp.Trailer.Get("X-Trailer") != "t" {
					t.Error(len(got), len(want), err, resp.Header, resp.Trailer)
				}
				_ = resp.Body.Close()
			}
		})
	}
	wg.Wait()
}

func TestXNetsClientIsCancelledAndGoesOn(t *testing.T) {
	cc := xnetClient(t, func(s transport.ServerStream) {
		var h message.Header
		s.ReadHeaders(&h)
		if h.Get(":path") == "/hang" {
			ch := make(chan struct{})
			s.OnReset(func(error) { close(ch) })
			<-ch
			return
		}
		_ = s.WriteHeaders(header(":status", "200"), true)
	})
	for range 50 {
		ctx, cancel := context.WithCancel(t.Context())
		req, _ := http.NewRequestWithContext(ctx, http.MethodGet, "http://example.com/hang", nil)
		go cancel()
		if _, err := cc.RoundTrip(req); !errors.Is(err, context.Canceled) {
			t.Fatal(err)
		}
		req, _ = http.NewRequestWithContext(t.Context(), http.MethodGet, "http://example.com/", nil)
		resp, err := cc.RoundTrip(req)
		if err != nil || resp.StatusCode != http.StatusOK {
			t.Fatal(resp, err)
		}
		_ = resp.Body.Close()
	}
}

// xnetServer is our client on a connection to x/net's server.
func xnetServer(t *testing.T, f http.HandlerFunc) transport.ClientConn {
	t.Helper()
	a, b := netio.Pipe(clientAddr, serverAddr)
	done := make(chan struct{})
	go func() {
		(&http2.Server{}).ServeConn(stdConn{b}, &http2.ServeConnOpts{Handler: f})
		close(done)
	}()
	cc, err := NewClient(a, &transport.ClientConfig{})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		cc.Close(nil)
		<-cc.Done()
		_ = b.Close()
		<-done
	})
	return cc
}

func TestOurClientTalksToXNetsServer(t *testing.T) {
	cc := xnetServer(t, func(w http.ResponseWriter, r *http.Request) {
		w.Header().Set("Trailer", "X-T")
		w.Header().Set("X-Path", r.URL.Path)
		w.Header().Set("X-Host", r.Host)
		w.WriteHeader(http.StatusEarlyHints)
		_, _ = io.Copy(w, r.Body)
		w.Header().Set("X-T", "t")
	})
	var wg sync.WaitGroup
	for i := range 20 {
		wg.Go(func() {
			for size := range 4 {
				want := strings.Repeat("x", size*100_000+i+1)
				cs, err := cc.NewStream()
				if err != nil {
					t.Error(err)
					return
				}
				if err := cs.WriteHeaders(postHead("/q"), false); err != nil {
					t.Error(err)
				}
				go func() {
					_ = cs.WriteData([]byte(want), true)
				}()
				var h message.Header
				if st, _, err := cs.ReadHeaders(&h); st != 103 || err != nil {
					t.Error(st, err)
				}
				if st, _, err := cs.ReadHeaders(&h); st != 200 || err != nil || h.Get("x-path") != "/q" || h.Get("x-host") != "example.com" {
					t.Error(st, err, h)
				}
				b := cs.Body()
				got, err := readBody(b)
				if err != nil || got != want || b.Trailers().Get("x-t") != "t" {
					t.Error(len(got), len(want), err)
				}
				b.Close()
				cs.Release()
			}
		})
	}
	wg.Wait()
}

func TestOurClientOpensATunnelThroughXNetsServer(t *testing.T) {
	cc := xnetServer(t, func(w http.ResponseWriter, r *http.Request) {
		w.WriteHeader(http.StatusOK)
		_ = http.NewResponseController(w).Flush()
		buf := make([]byte, 1000)
		for {
			n, err := r.Body.Read(buf)
			_, _ = w.Write(buf[:n])
			_ = http.NewResponseController(w).Flush()
			if err != nil {
				return
			}
		}
	})
	tun := connect(t, cc)
	for i := range 10 {
		msg := fmt.Sprint("message ", i)
		_, _ = tun.Write([]byte(msg))
		got := make([]byte, len(msg))
		if _, err := io.ReadFull(readOnly{tun}, got); err != nil || string(got) != msg {
			t.Fatal(string(got), err)
		}
	}
	_ = tun.CloseWrite()
	if b, err := io.ReadAll(tun); len(b) != 0 || err != nil {
		t.Error(b, err)
	}
	_ = tun.Close()
}

type readOnly struct{ io.Reader }

// rawCodec passes messages through grpc as they are.
type rawCodec struct{}

func (rawCodec) Marshal(v any) ([]byte, error) { return *v.(*[]byte), nil }
func (rawCodec) Unmarshal(data []byte, v any) error {
	*v.(*[]byte) = append([]byte(nil), data...)
	return nil
}
func (rawCodec) Name() string { return "raw" }

func TestGRPCGoTalksToOurServer(t *testing.T) {
	a, _ := serve(t, &transport.ServerConfig{}, &handlerFunc{f: func(s transport.ServerStream) {
		var h message.Header
		s.ReadHeaders(&h)
		_ = s.WriteHeaders(header(":status", "200", "content-type", "application/grpc", "x-te", h.Get("te")), false)
		b := s.Body()
		defer b.Close()
		for {
			p, last, err := b.Next()
			if err != nil {
				return
			}
			if last {
				_ = s.(transport.LastWriter).WriteLast(p, header("grpc-status", h.Get("x-status"), "grpc-message", "done"))
				return
			}
			if s.WriteData(p, false) != nil {
				return
			}
		}
	}})
	cc, err := grpc.NewClient("passthrough:///x", grpc.WithTransportCredentials(insecure.NewCredentials()),
		grpc.WithContextDialer(func(context.Context, string) (net.Conn, error) { return stdConn{a}, nil }),
		grpc.WithDefaultCallOptions(grpc.ForceCodec(rawCodec{})))
	if err != nil {
		t.Fatal(err)
	}
	defer cc.Close()
	for i := range 50 {
		in, out := []byte(strings.Repeat("m", i*1000)), []byte(nil)
		ctx := metadata.AppendToOutgoingContext(t.Context(), "x-status", fmt.Sprint(i%3))
		var hd metadata.MD
		err := cc.Invoke(ctx, "/svc/Echo", &in, &out, grpc.Header(&hd))
		if got := status.Code(err); got != codes.Code(i%3) {
			t.Fatal(err)
		}
		if err == nil && string(out) != string(in) || len(hd["x-te"]) != 1 || hd["x-te"][0] != "trailers" {
			t.Fatal(len(out), len(in), hd)
		}
	}
}
