package demo

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"sync"
	"time"
)

// checkHeader tells the applications which check a request belongs to.
const checkHeader = "x-check"

// visit is what an application saw of the requests of one check.
type visit struct {
	count     int // requests that began
	cancelled int // of them, those that the caller gave up
	caller    string
}

// reviews is the application. It answers with its version, except:
//
//	/flaky    fails the first request of a check
//	/slow     answers after five seconds
//	/limited  waits for release
type reviews struct {
	version string
	mu      sync.Mutex
	visits  map[string]*visit
	hold    chan struct{}
}

func newReviews(version string) *reviews {
	return &reviews{version: version, visits: map[string]*visit{}, hold: make(chan struct{})}
}

func (a *reviews) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	a.mu.Lock()
	v := a.visits[r.Header.Get(checkHeader)]
	if v == nil {
		v = &visit{}
		a.visits[r.Header.Get(checkHeader)] = v
	}
	v.count++
	v.caller = r.Header.Get("x-caller")
	n, hold := v.count, a.hold
	a.mu.Unlock()
	_, _ = io.Copy(io.Discard, r.Body)
	wait := func(until <-chan struct{}, d time.Duration) {
		t := time.NewTimer(d)
		defer t.Stop()
		select {
		case <-until:
		case <-t.C:
		case <-r.Context().Done():
			a.mu.Lock()
			v.cancelled++
			a.mu.Unlock()
		}
	}
	switch r.URL.Path {
	case "/flaky":
		if n%2 == 1 {
			http.Error(w, "try again", http.StatusServiceUnavailable)
			return
		}
	case "/slow":
		wait(nil, 20*time.Second)
	case "/limited":
		wait(hold, 20*time.Second)
	}
	_, _ = io.WriteString(w, "reviews "+a.version+"\n")
}

// seen returns what was seen of a check so far.
func (a *reviews) seen(check string) visit {
	a.mu.Lock()
	defer a.mu.Unlock()
	if v := a.visits[check]; v != nil {
		return *v
	}
	return visit{}
}

// release lets the requests to /limited go.
func (a *reviews) release() {
	a.mu.Lock()
	defer a.mu.Unlock()
	close(a.hold)
	a.hold = make(chan struct{})
}

// bank is the external service. It says what it got.
type bank struct {
	mu   sync.Mutex
	body string
	tls  string
}

func (b *bank) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	body, _ := io.ReadAll(io.LimitReader(r.Body, 1<<20))
	b.mu.Lock()
	b.body, b.tls = string(body), ""
	if r.TLS != nil {
		b.tls = tls.VersionName(r.TLS.Version) + " to " + r.TLS.ServerName
	}
	b.mu.Unlock()
	_, _ = fmt.Fprintf(w, "the bank got: %s\n", body)
}

// last returns the body of the last request, and how it came.
func (b *bank) last() (body, tls string) {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.body, b.tls
}

// serve runs an application until the mesh stops, with TLS if it has a
// certificate.
func (m *mesh) serve(ctx context.Context, what, addr string, h http.Handler, crt *tls.Certificate) error {
	var lc net.ListenConfig
	l, err := lc.Listen(ctx, "tcp", addr)
	if err != nil {
		return fmt.Errorf("%s: %w", what, err)
	}
	if crt != nil {
		l = tls.NewListener(l, &tls.Config{Certificates: []tls.Certificate{*crt}, MinVersion: tls.VersionTLS12, NextProtos: []string{"http/1.1"}})
	}
	s := &http.Server{Handler: h, ReadHeaderTimeout: 10 * time.Second, BaseContext: func(net.Listener) context.Context { return ctx }}
	m.wg.Go(func() {
		<-ctx.Done()
		_ = s.Close()
	})
	m.background(what, func() error {
		if err := s.Serve(l); !errors.Is(err, http.ErrServerClosed) {
			return err
		}
		return nil
	})
	return nil
}
