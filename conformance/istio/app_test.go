package istio

import (
	"context"
	"fmt"
	"io"
	"net"
	"net/http"
	"slices"
	"sync"
	"time"
)

// request is what an application saw.
type request struct {
	Pod, Port, Proto string
	// Target is the request target as it was on the wire.
	Method, Target, Host, Body string
	Header, Trailer            http.Header
}

// app is the application of one pod. It answers every request with its pod's
// name unless a scenario sets another handler.
type app struct {
	pod     string
	servers []*http.Server

	mu     sync.Mutex
	seen   []request
	handle http.HandlerFunc
}

// startApp serves HTTP at the ports of a pod's address.
func startApp(pod, addr string, ports ...string) (*app, error) {
	a := &app{pod: pod}
	for _, p := range ports {
		l, err := net.Listen("tcp", net.JoinHostPort(addr, p))
		if err != nil {
			return nil, err
		}
		s := &http.Server{ReadHeaderTimeout: 5 * time.Second, Protocols: h1AndH2C(), Handler: http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) { a.serve(w, r, p) })}
		a.servers = append(a.servers, s)
		go func() { _ = s.Serve(l) }()
	}
	return a, nil
}

// h1AndH2C are HTTP/1.1 and HTTP/2 with prior knowledge.
func h1AndH2C() *http.Protocols {
	p := &http.Protocols{}
	p.SetHTTP1(true)
	p.SetUnencryptedHTTP2(true)
	return p
}

func (a *app) serve(w http.ResponseWriter, r *http.Request, port string) {
	a.mu.Lock()
	h := a.handle
	a.mu.Unlock()
	body := ""
	if r.Header.Get("upgrade") == "" {
		b, _ := io.ReadAll(r.Body)
		body = string(b)
	}
	a.mu.Lock()
	a.seen = append(a.seen, request{a.pod, port, r.Proto, r.Method, r.RequestURI, r.Host, body, r.Header.Clone(), r.Trailer.Clone()})
	a.mu.Unlock()
	if h != nil {
		h(w, r)
		return
	}
	w.Header().Set("x-pod", a.pod)
	fmt.Fprint(w, a.pod)
}

// reset forgets what was seen and sets the handler, nil for the default one.
func (a *app) reset(h http.HandlerFunc) {
	a.mu.Lock()
	defer a.mu.Unlock()
	a.seen, a.handle = nil, h
}

// requests returns what was seen so far.
func (a *app) requests() []request {
	a.mu.Lock()
	defer a.mu.Unlock()
	return slices.Clone(a.seen)
}

func (a *app) stop() {
	for _, s := range a.servers {
		ctx, cancel := context.WithTimeout(context.Background(), time.Second)
		_ = s.Shutdown(ctx)
		cancel()
		_ = s.Close()
	}
}

// stream is what a TCP application saw of one connection: all bytes until the
// client half-closed.
type stream struct {
	Port, Data string
	Err        error
}

// tcpApp answers a connection only after the end of what the client sends:
// with its length, and the data again.
type tcpApp struct {
	listeners []net.Listener
	mu        sync.Mutex
	seen      []stream
}

func startTCPApp(addr string, ports ...string) (*tcpApp, error) {
	a := &tcpApp{}
	for _, p := range ports {
		l, err := net.Listen("tcp", net.JoinHostPort(addr, p))
		if err != nil {
			return nil, err
		}
		a.listeners = append(a.listeners, l)
		go func() {
			for {
				c, err := l.Accept()
				if err != nil {
					return
				}
				go a.serve(c, p)
			}
		}()
	}
	return a, nil
}

func (a *tcpApp) serve(c net.Conn, port string) {
	defer c.Close()
	_ = c.SetDeadline(time.Now().Add(10 * time.Second))
	b, err := io.ReadAll(c)
	a.mu.Lock()
	a.seen = append(a.seen, stream{port, string(b), err})
	a.mu.Unlock()
	fmt.Fprintf(c, "%d bytes\n", len(b))
	_, _ = c.Write(b)
}

func (a *tcpApp) reset() {
	a.mu.Lock()
	defer a.mu.Unlock()
	a.seen = nil
}

func (a *tcpApp) streams() []stream {
	a.mu.Lock()
	defer a.mu.Unlock()
	return slices.Clone(a.seen)
}

func (a *tcpApp) stop() {
	for _, l := range a.listeners {
		_ = l.Close()
	}
}
